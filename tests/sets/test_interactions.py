"""Interactions, where they can be worked on paper, and on a pair against whole runs."""

import numpy as np
import pytest
import set_games as toys
from set_games import played

from jaxpatch.sets import interactions


@pytest.mark.parametrize(
    ("toy", "first", "joint", "excess"),
    [
        (toys.additive(), 0, 0.9, 0),
        (toys.redundant(), -1, 1.1, -1),
        (toys.synergistic(), 1, 1.1, 1),
        (toys.cancelling(), -1, 0.1, -1),
        (toys.threefold(), 0, 1, 1),
    ],
)
def test_by_hand(toy, first, joint, excess):
    found = interactions.pairs(toy)
    expected = np.zeros_like(found.values)
    expected[0, 1] = expected[1, 0] = first
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    np.testing.assert_allclose([found.joint.value, found.excess.value], [joint, excess], atol=1e-6)
    np.testing.assert_allclose(found.higher, excess - first, atol=1e-6)
    assert found.is_clear.sum() == 2 * bool(first)


def test_the_table_has_the_strongest_pair_first():
    row = interactions.pairs(toys.redundant()).to_frame().iloc[0]
    assert (row["one"], row["other"], row["interaction"], row["is_clear"]) == ("part 0", "part 1", -1, True)


def test_an_interaction_that_inputs_disagree_about_is_not_clear():
    sign = np.array([1.0, -1.0, 1.0, -1.0])
    game = toys.game.of_value(lambda c: sign * (c[0] and c[1]), 2, np.ones(4))
    found = interactions.pairs(game)
    assert found.low[0, 1] < 0 < found.high[0, 1] and not found.is_clear.any()


def test_on_a_pair_both_hosts_agree_and_so_does_the_definition():
    engine, definition = played(("head", "neuron"), 5)
    steps = []
    found = interactions.pairs(engine, progress=lambda done, total: steps.append((done, total)))
    num = len(found.components)

    def together(*which):
        return definition.value(np.isin(np.arange(num), which))

    for i in range(num):
        for j in range(num):
            expected = 0 if i == j else definition.recovered(together(i, j) - together(i) - together(j))
            assert found.values[i, j] == pytest.approx(expected, abs=1e-5 * float(np.abs(found.alone).max()))
    assert (found.values == found.values.T).all() and np.abs(found.values).max() > 10 * found.noise
    assert found.noise < 1e-5
    np.testing.assert_allclose(
        found.excess.value, definition.recovered(together(*range(num))) - found.alone.sum(), atol=1e-6
    )
    assert steps[-1] == (num * (num + 1),) * 2 and steps == sorted(steps)
    assert (found.low <= found.values + 1e-7).all() and (found.values <= found.high + 1e-7).all()
