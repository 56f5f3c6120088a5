"""How two trees differ."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch.trees import compare

TREE = {"a": np.zeros((2, 3), np.float32), "b": {"c": np.ones(4, np.float32)}}


def test_a_tree_has_the_structure_of_itself():
    assert compare.structure_faults(TREE, TREE) == []


def test_every_difference_of_structure_is_named_in_order():
    other = {"a": np.zeros((2, 4), np.float32), "b": {"d": np.ones(4)}}
    assert compare.structure_faults(TREE, other) == [
        "a: base has shape (2, 3), special has (2, 4)",
        "b/c: only in base",
        "b/d: only in special",
    ]
    wide = {"a": TREE["a"].astype(np.float64), "b": TREE["b"]}
    assert compare.structure_faults(TREE, wide) == ["a: base is float32, special is float64"]


def test_changed_leaves_are_found_by_content():
    same = {"a": jnp.zeros((2, 3)), "b": TREE["b"]}
    assert compare.changed_leaves(TREE, same) == ()
    one_entry = TREE["b"]["c"].copy()
    one_entry[3] = np.nextafter(np.float32(1), np.float32(2))
    assert compare.changed_leaves(TREE, {"a": TREE["a"], "b": {"c": one_entry}}) == ("b/c",)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2, 39])
def test_what_is_not_finite_is_found_in_every_type(dtype, value, at):
    leaf = np.zeros(40, dtype)
    assert compare.is_finite(leaf)
    leaf[at] = value
    assert not compare.is_finite(leaf)


def test_the_largest_finite_number_is_finite():
    assert compare.is_finite(np.array([np.finfo(np.float64).max]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_number_of_two_bytes_is_taken_for_what_it_is(dtype):
    each = np.arange(2**16, dtype=np.uint16).view(dtype)
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(each)
    assert compare.is_finite(each[finite])
    assert not any(map(compare.is_finite, each[~finite]))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("at", [0, 7, 39])
def test_the_last_bit_of_a_number_of_two_bytes_counts(dtype, at):
    one, two = np.ones(40, dtype), np.ones(40, dtype)
    assert compare.is_same(one, two)
    two.view(np.uint16)[at] ^= 1
    assert not compare.is_same(one, two)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_numbers_are_the_same_whatever_their_bits(dtype):
    assert compare.is_same(np.zeros(3, dtype), -np.zeros(3, dtype))
    assert compare.is_same(np.ones(3, dtype), np.ones(3))
    bits = np.full(3, 0x3C00, np.uint16)
    assert not compare.is_same(bits.view(jnp.float16), bits.view(jnp.bfloat16))


def test_arrays_are_compared_number_by_number_whatever_their_shape():
    for shape in [(), (1,), (3,), (40, 5), (2, 3, 4)]:
        one = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
        two = one.copy()
        assert compare.is_same(one, jnp.asarray(two)) and compare.is_same(jnp.asarray(one), jnp.asarray(two))
        two.reshape(-1)[-1] += 1
        assert not compare.is_same(one, two) and not compare.is_same(jnp.asarray(one), jnp.asarray(two))
    assert not compare.is_same(np.ones((2, 3)), np.ones((3, 2)))
