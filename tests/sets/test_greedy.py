"""Sets grown one by one, where the best set is known."""

import numpy as np
import pytest
import set_games as toys

from jaxpatch.sets import game, greedy


def names(found):
    return [each.place[0] for each in found.components]


def test_where_effects_add_up_it_is_the_ranking():
    found = greedy.select(toys.additive(), 4)
    assert names(found) == [0, 1, 3, 2]
    np.testing.assert_allclose(found.gains, [0.5, 0.3, 0.2, -0.1], atol=1e-6)
    np.testing.assert_allclose(found.recovery, [0.5, 0.8, 1.0, 0.9], atol=1e-6)
    np.testing.assert_allclose([found.low, found.high], [found.recovery] * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("toy", "chosen", "recovered"),
    [
        (toys.redundant(), [0, 2], [1, 1.1]),  # by the ranking: 0 and 1, which recover 1
        (toys.synergistic(), [2, 0], [0.1, 0.1]),  # 0 and 1 recover 1, and neither does anything first
        (toys.cancelling(), [0, 2], [1, 1.1]),
    ],
)
def test_it_leaves_out_what_stands_for_another_and_does_not_see_what_needs_another(toy, chosen, recovered):
    found = greedy.select(toy, 2)
    assert names(found) == chosen
    np.testing.assert_allclose(found.recovery, recovered, atol=1e-6)


def test_several_at_once_take_fewer_steps_and_may_stand_for_each_other():
    steps = []
    found = greedy.select(toys.redundant(), 3, at_once=2, progress=lambda done, total: steps.append((done, total)))
    assert names(found) == [0, 1, 2] and found.sizes.tolist() == [2, 3] and found.pool == 3
    np.testing.assert_allclose(found.recovery, [1, 1.1], atol=1e-6)
    assert steps[-1] == (6, 6) and found.to_frame()["last"].tolist() == ["part 1", "part 2"]


def test_what_is_no_number_is_chosen_last_and_nothing_twice():
    toy = game.of_value(
        lambda chosen: np.where(chosen[1] & ~chosen[0], np.nan, 0.5 * chosen[2] * np.ones(2)), 3, np.ones(2)
    )
    assert names(greedy.select(toy, 3)) == [2, 0, 1]
    lost = game.of_value(lambda chosen: np.full(2, np.nan if chosen.any() else 0.0), 3, np.ones(2))
    assert sorted(names(greedy.select(lost, 3))) == [0, 1, 2]


def test_on_a_pair_it_is_what_whole_runs_choose():
    engine, definition = toys.played(("head", "neuron"), 5)
    one, other = greedy.select(engine, 3), greedy.select(definition, 3)
    assert one.components == other.components
    np.testing.assert_allclose(one.recovery, other.recovery, rtol=1e-5)
    np.testing.assert_allclose(one.gains.sum(), one.recovery[-1], rtol=1e-5)
