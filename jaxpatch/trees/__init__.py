"""Any pytree: leaves by path, surgery, comparison. Knows nothing about models."""
