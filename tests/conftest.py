"""Strict settings for every test, shapes checked at every call, and no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping

SHAPED = (
    "models.layers",
    "models.prefix_tree",
    "models.decoder",
    "models.generate",
    "measuring.downstream",
    "measuring.local",
    "measuring.slopes",
)
jaxtyping.install_import_hook([f"jaxpatch.{module}" for module in SHAPED], "beartype.beartype")

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs, each run for a moment
