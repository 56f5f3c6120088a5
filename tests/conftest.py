"""Strict settings for every test, shapes checked at every call, and no network."""

import gc
import itertools
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
import quick_compilation  # noqa: F401  # isort: skip

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

gc.set_threshold(200_000, 20, 100)
"""Tracing makes and keeps millions of objects; looked at as often as by default they cost a twelfth of the time."""

MAPS = Path("/proc/self/maps")
EVERY = 5
"""Tests between two looks at them."""
MOST_MAPS = 30_000
"""Linux allows a process 65530 memory maps, and every compiled program keeps some; without any left, XLA crashes."""


_number_of_test = itertools.count(1)


@pytest.fixture(autouse=True)
def room_for_more_programs():
    """Between tests, now and then, programs are given back before they are too many."""
    yield
    if next(_number_of_test) % EVERY == 0 and MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
