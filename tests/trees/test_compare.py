"""How two trees differ."""

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
def test_non_finite_leaves_are_found_in_every_type(dtype, value):
    bad = np.zeros(5, dtype)
    assert compare.non_finite_leaves({"x": {"y": bad}}) == ()
    bad[2] = value
    assert compare.non_finite_leaves({"x": {"y": bad}, "z": np.ones(2)}) == ("x/y",)


def test_the_largest_finite_number_is_finite():
    assert compare.non_finite_leaves({"x": np.array([np.finfo(np.float64).max])}) == ()
