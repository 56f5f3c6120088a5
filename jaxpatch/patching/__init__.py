"""Which parameters form a component, and the patch itself. Knows trees, no model and no read-out."""
