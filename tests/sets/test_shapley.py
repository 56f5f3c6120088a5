"""Shapley values against the mean over all orders in which components could come, and what sampling says of its own error."""

import itertools

import numpy as np
import pytest
import set_games as toys

from jaxpatch.sets import shapley

SHARES = [("additive", (0.5, 0.3, -0.1, 0.2)), ("redundant", (0.5, 0.5, 0.1)), ("synergistic", (0.5, 0.5, 0.1))]
SHARES += [("cancelling", (0.5, -0.5, 0.1)), ("threefold", (1 / 3, 1 / 3, 1 / 3))]


def by_orders(game):
    """The definition: each component's mean addition to those before it."""
    num = len(game.components)
    total = np.zeros(num)
    orders = list(itertools.permutations(range(num)))
    for order in orders:
        chosen, before = np.zeros(num, bool), 0.0
        for player in order:
            chosen[player] = True
            after = float(game.recovered(game.value(chosen)))
            total[player] += after - before
            before = after
    return total / len(orders)


def tangled(num, seed=0):
    """Every pair and every three of some components interact."""
    draw = np.random.default_rng(seed)
    ones, twos, threes = draw.normal(size=num), draw.normal(size=(num, num)), draw.normal(size=(num,) * 3)
    return toys.of(lambda c: c @ ones + c @ twos @ c / 2 + np.einsum("i,j,k,ijk", c, c, c, threes) / 3, num)


@pytest.mark.parametrize(("name", "shares"), SHARES)
def test_by_hand(name, shares):
    game = getattr(toys, name)()
    found = shapley.values(game)
    np.testing.assert_allclose(found.values, shares, atol=1e-6)
    np.testing.assert_allclose(found.total.value, found.joint.value, atol=1e-6)
    assert found.is_exact and found.sweeps == 2 ** (len(shares) - 1)
    np.testing.assert_allclose([found.low, found.high], [found.values] * 2)
    assert [each.place[0] for each in found.ranked] == np.argsort(-np.array(shares), kind="stable").tolist()


@pytest.mark.parametrize("num", [2, 5, 6])
def test_all_sets_are_all_orders(num):
    game = tangled(num)
    found = shapley.values(game)
    np.testing.assert_allclose(found.values, by_orders(game), rtol=1e-5, atol=1e-6)
    everything = np.ones(num, bool)
    one_less = [float(game.recovered(game.value(everything) - game.value(np.arange(num) != i))) for i in range(num)]
    np.testing.assert_allclose(found.last, one_less, rtol=1e-4, atol=1e-5)
    assert found.is_exact


@pytest.mark.parametrize("num", [5, 6])
def test_the_true_value_lies_within_the_interval_as_often_as_it_should(num):
    """And the estimate is unbiased, and what is drawn twice is the same."""
    game = tangled(num)
    exact = shapley.values(game).values
    drawn = [shapley.values(game, rounds=2 if num == 5 else 4, seed=seed) for seed in range(60)]
    assert not drawn[0].is_exact and drawn[0].sweeps == 2 + drawn[0].rounds * (4 if num == 5 else 6)
    within = np.mean([(each.low <= exact) & (exact <= each.high) for each in drawn])
    assert 0.9 < within <= 0.99
    joint = drawn[0].joint.value
    assert np.mean([each.total.low <= joint <= each.total.high for each in drawn]) > 0.85
    spread = np.std([each.values for each in drawn], axis=0)
    apart = np.abs(np.mean([each.values for each in drawn], axis=0) - exact)
    assert (apart < 4 * spread / np.sqrt(len(drawn))).all()
    again = shapley.values(game, rounds=drawn[0].rounds, seed=0)
    assert (again.values == drawn[0].values).all() and (drawn[0].values != drawn[1].values).any()


def test_where_effects_add_up_sampling_has_no_error():
    game = toys.additive(np.linspace(-0.2, 0.8, 12))
    steps = []
    found = shapley.values(game, rounds=3, progress=lambda done, total: steps.append((done, total)))
    np.testing.assert_allclose(found.values, np.linspace(-0.2, 0.8, 12), atol=1e-6)
    np.testing.assert_allclose(found.high - found.low, 0, atol=1e-5)
    assert found.rounds == 3 and found.sweeps == 2 + 3 * 12
    assert steps[-1] == (38 * 12, 38 * 12) and steps == sorted(steps)


def test_inputs_that_disagree_widen_their_own_interval_alone():
    each = np.array([1.0, 0.0, 2.0, 1.0])
    game = toys.game.of_value(lambda chosen: each * chosen.any(), 2, np.ones(4))
    found = shapley.values(game)
    assert (found.input_high - found.input_low > 0.2).all() and (found.high == found.low).all()
    assert found.to_frame().columns[0] == "name" and len(found.to_frame()) == 2


def test_on_a_pair_engine_and_whole_runs_agree():
    engine, definition = toys.played(("head", "neuron"), 5)
    found = shapley.values(engine)
    np.testing.assert_allclose(found.values, by_orders(definition), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.total.value, found.joint.value, atol=1e-6)
