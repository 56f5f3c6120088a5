"""Strict settings for every test, shapes checked at every call, and no network."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import pytest

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

MAPS = Path("/proc/self/maps")
MOST_MAPS = 30_000
"""Linux allows a process 65530 memory maps, and every compiled program keeps some; without any left, XLA crashes."""


@pytest.fixture(autouse=True, scope="module")
def room_for_more_programs():
    """Between files, programs are given back before they are too many."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
