"""Trees are told apart by any bit, any place, any name and any type."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.trees import fingerprint as module
from jaxpatch.trees.fingerprint import fingerprint

BASE = testing.tiny_pair().base


def test_a_copy_is_the_same_and_where_it_lies_does_not_matter():
    made = fingerprint(BASE)
    assert len(made) == 16 and made == fingerprint({name: BASE[name] for name in reversed(list(BASE))})
    leaf = BASE["embed"]["kernel"]
    assert fingerprint({"a": leaf}) == fingerprint({"a": np.asarray(leaf)})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([0.0], [-0.0]),
        ([1.0, 2.0], [2.0, 1.0]),
        ([1.0, 2.0, 0.0], [1.0, 2.0]),
        ([[1.0, 2.0]], [[1.0], [2.0]]),
        (np.float32([1]), np.int32([1])),
        (np.float32([1]), jnp.bfloat16([1])),
        (np.array([True, False]), np.array([False, True])),
    ],
)
def test_any_difference_shows(one, other):
    assert fingerprint({"a": jnp.asarray(one)}) != fingerprint({"a": jnp.asarray(other)})
    assert fingerprint({"a": jnp.asarray(one)}) != fingerprint({"b": jnp.asarray(one)})


def test_any_single_bit_of_a_large_leaf_shows():
    draw = np.random.default_rng(0)
    leaf = draw.integers(0, 2**32, 4096, dtype=np.uint32)
    seen = {fingerprint({"a": leaf})}
    for _ in range(200):
        flipped = leaf.copy()
        flipped[draw.integers(leaf.size)] ^= np.uint32(1) << np.uint32(draw.integers(32))
        seen.add(fingerprint({"a": flipped}))
    assert len(seen) > 195, "one draw in 131,072 may come twice"


@pytest.mark.parametrize("slab", [1, 12, 20, 10**6])
def test_slabs_of_any_height_sum_to_the_same(monkeypatch, slab):
    """Seven rows of five numbers, one by one, two or four at a time, and all at once."""
    leaf = jnp.asarray(np.random.default_rng(0).normal(size=(7, 5)), jnp.float32)
    whole = module._sums(leaf)
    monkeypatch.setattr(module, "SLAB", slab)
    np.testing.assert_array_equal(module._sums.__wrapped__(leaf), whole)
