"""Orders: every control takes as many components of each kind, at every size, as the ranking does."""

import numpy as np
import pytest

from jaxpatch.validating import controls

VALUES = {"head": np.array([[0.1, 0.9], [0.5, 0.3]]), "neuron": np.arange(8.0).reshape(2, 4) / 10}
REACH = {"head": np.ones((2, 2), bool), "neuron": np.array([[True] * 4, [False] * 4])}
SHAPES = {"head": (2, 2), "neuron": (2, 4)}


def test_ranking_by_hand():
    order = controls.ranked(VALUES, REACH)
    named = [(order.names[k], int(p)) for k, p in zip(order.kinds, order.places, strict=True)]
    assert named[:4] == [("head", 1), ("head", 2), ("head", 3), ("neuron", 3)]
    assert len(named) == 8 and ("neuron", 4) not in named


@pytest.mark.parametrize(
    "make",
    [
        lambda o: controls.shuffled(o, 3),
        lambda o: controls.shuffled_in_layers(o, SHAPES, 3),
        lambda o: controls.shuffled_among_alike(o, {k: v[::-1] for k, v in VALUES.items()}, 3),
        lambda o: controls.matched(o, {k: -v for k, v in VALUES.items()}),
    ],
)
def test_controls_match_the_kinds_at_every_size(make):
    order = controls.ranked(VALUES, REACH)
    other = make(order)
    for count in range(len(order.places) + 1):
        ours, theirs = (controls.mask(o, count, SHAPES) for o in (order, other))
        assert {k: g.sum() for k, g in ours.items()} == {k: g.sum() for k, g in theirs.items()}
    assert sorted(zip(order.kinds, order.places, strict=True)) == sorted(zip(other.kinds, other.places, strict=True))
    assert other.places.tolist() != order.places.tolist()


def test_random_orders_depend_on_the_seed_alone():
    order = controls.ranked(VALUES, REACH)
    one, same, other = (controls.shuffled(order, seed).places.tolist() for seed in (1, 1, 2))
    assert one == same != other


def test_random_orders_in_layers_keep_every_depth_at_every_size():
    order = controls.ranked(VALUES, REACH)
    other = controls.shuffled_in_layers(order, SHAPES, 0)
    width = np.array([SHAPES[name][1] for name in order.names])[order.kinds]
    assert (order.places // width == other.places // width).all() and (order.places != other.places).any()
    single = controls.ranked({"layer": np.array([0.3, 0.1])}, {"layer": np.ones(2, bool)})
    assert controls.shuffled_in_layers(single, {"layer": (2,)}, 0).places.tolist() == single.places.tolist()


def test_random_orders_among_alike_keep_the_sizes_of_changes_nearly():
    """A control of the same changes: at every size it has changed about as much as the ranking has."""
    draw = np.random.default_rng(0)
    values, changes = {"neuron": draw.random((4, 50))}, {"neuron": 10 ** draw.uniform(-3, 3, (4, 50))}
    order = controls.ranked(values, {"neuron": np.ones((4, 50), bool)})
    other = controls.shuffled_among_alike(order, changes, 0)
    rank = np.argsort(np.argsort(changes["neuron"].ravel()))
    assert (other.places != order.places).mean() > 0.8
    assert np.abs(rank[other.places] - rank[order.places]).max() < controls.ALIKE
    assert controls.shuffled_among_alike(order, changes, 1).places.tolist() != other.places.tolist()
