"""How two changes of one base lie to each other, by hand and against plain arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.patching import changes, components
from jaxpatch.trees import paths


@pytest.fixture(scope="module")
def sides():
    """One base and two specials."""
    one, other = testing.tiny_pair(), testing.tiny_pair(seed=5)
    moved = jax.tree.map(lambda base, a, b: base + (b - a), one.base, other.base, other.special)
    return one.base, one.special, moved


@pytest.mark.parametrize("kind", ["head", "kv", "neuron", "layer", "matrix", "norm", "final_norm"])
def test_every_kind_is_what_its_patches_say(sides, kind):
    """A component owns what patching it alone changes."""
    base, one, other = sides
    sort = components.of_decoder(base)[kind]
    found = changes.between(base, one, other, sort)
    place = tuple(size - 1 for size in sort.shape)
    inner, own, others, both, opposed = np.zeros(5)
    flat = [paths.flatten(tree) for tree in sides]
    for slot in sort.slots:
        gate = np.zeros(sort.shape)
        gate[place] = 1
        chosen = gate[slot.select]
        shape = [1] * flat[0][slot.leaf].ndim
        for axis, size in zip(slot.axes, chosen.shape, strict=True):
            shape[axis] = size
        order = np.argsort(slot.axes)
        mask = np.broadcast_to(chosen.transpose(order).reshape(shape), flat[0][slot.leaf].shape)
        x, y = (np.asarray(tree[slot.leaf] - flat[0][slot.leaf], np.float64)[mask > 0] for tree in flat[1:])
        inner, own, others = inner + (x * y).sum(), own + (x * x).sum(), others + (y * y).sum()
        both, opposed = both + ((x != 0) & (y != 0)).sum(), opposed + (x * y < 0).sum()
    assert found.cosine[place] == pytest.approx(inner / np.sqrt(own * others), abs=1e-5)
    assert (found.both[place], found.opposed[place]) == (both, opposed)
    assert found.cosine.shape == sort.shape and (np.abs(found.cosine) <= 1).all()


def test_the_same_change_and_the_opposite_one(sides):
    base, one, _ = sides
    sort = components.of_decoder(base)["neuron"]
    back = jax.tree.map(lambda base, special: base - 3 * (special - base), base, one)
    same, opposite = changes.between(base, one, one, sort), changes.between(base, one, back, sort)
    np.testing.assert_allclose(same.cosine, 1, atol=1e-6)
    np.testing.assert_allclose(opposite.cosine, -1, atol=1e-5)
    assert not same.opposed.any() and (opposite.opposed == opposite.both).all()


def test_where_one_changed_nothing_there_is_no_direction(sides):
    base, one, _ = sides
    sort = components.of_decoder(base)["head"]
    found = changes.between(base, one, base, sort)
    assert np.isnan(found.cosine).all() and not found.both.any() and not found.opposed.any()


def test_narrow_trees_are_compared_in_float32(sides):
    narrow = [jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree) for tree in sides]
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in narrow]
    sort = components.of_decoder(sides[0])["neuron"]
    np.testing.assert_array_equal(changes.between(*narrow, sort).cosine, changes.between(*wide, sort).cosine)
