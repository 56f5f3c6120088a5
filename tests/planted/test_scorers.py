"""Scorers: cases worked by hand; ties as means over orders, counted one by one."""

import itertools

import numpy as np
import pytest

from benchmarks.planted import scorers

NAN = np.nan


def in_order(values, truth):
    """Every order in which tied components may come, as truths from the best down."""
    ranked = np.where(np.isnan(values), -np.inf, values)
    groups = [np.flatnonzero(ranked == value) for value in np.unique(ranked)[::-1]]
    for places in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield truth[np.concatenate(places)]


def precision_down_to_each(truth):
    return np.mean([truth[: place + 1].mean() for place in np.flatnonzero(truth)])


def first_miss(truth):
    return float(np.argmin(truth)) + 1 if not truth.all() else len(truth) + 1


TIED = [
    ([1.0, 1.0, 1.0, 0.0], [True, False, False, True]),
    ([2.0, 1.0, 1.0, 1.0, 0.5], [False, True, True, False, True]),
    ([0.0, 0.0, 0.0, 0.0], [True, False, True, False]),
    ([NAN, 1.0, NAN, -5.0], [True, True, False, False]),
    ([3.0, 3.0, 2.0, 2.0, 1.0], [True, True, True, False, False]),
]


@pytest.mark.parametrize(("values", "truth"), TIED)
def test_ties_are_means_over_every_order(values, truth):
    values, truth = np.array(values), np.array(truth)
    orders = list(in_order(values, truth))
    assert scorers.average_precision(values, truth) == pytest.approx(
        np.mean([precision_down_to_each(o) for o in orders])
    )
    assert scorers.first_miss(values, truth) == pytest.approx(np.mean([first_miss(o) for o in orders]))
    for count in range(len(values) + 1):
        assert scorers.found(values, truth, count) == pytest.approx(np.mean([o[:count].sum() for o in orders]))
    pairs = [(a, b) for a in np.flatnonzero(truth) for b in np.flatnonzero(~truth)]
    ranked = np.where(np.isnan(values), -np.inf, values)
    wins = [float(ranked[a] > ranked[b]) + 0.5 * float(ranked[a] == ranked[b]) for a, b in pairs]
    assert scorers.auroc(values, truth) == pytest.approx(np.mean(wins))


def test_signs_count():
    """What takes away is not said to be a source, however large."""
    truth = np.array([True, False, False])
    assert scorers.card(np.array([0.1, -9.0, 0.05]), truth).auroc == 1
    assert scorers.card(np.array([-0.1, 0.0, 0.05]), truth) == scorers.Card(0.0, 1 / 3, 0.0, 0.0, 1.0, 0)


def test_a_perfect_ranking_and_one_that_says_nothing():
    truth = np.array([True] * 3 + [False] * 7)
    perfect = scorers.card(np.arange(10.0)[::-1], truth)
    assert perfect == scorers.Card(1.0, 1.0, 1.0, 1.0, 4.0, 0)
    silent = scorers.card(np.zeros(10), truth)
    assert silent.auroc == 0.5 and silent.precision == pytest.approx(0.3) and silent.recall == pytest.approx(0.6)


def test_without_sources_or_without_others_there_is_nothing_to_score():
    none = scorers.card(np.arange(3.0), np.zeros(3, bool))
    assert np.isnan([none.auroc, none.average_precision, none.precision, none.recall]).all() and none.first_miss == 1
    every = scorers.card(np.arange(3.0), np.ones(3, bool))
    assert np.isnan(every.auroc) and every.precision == 1 and every.first_miss == 4


def test_what_is_no_number_comes_last_and_is_counted():
    truth = np.array([True, True, False])
    assert scorers.card(np.array([NAN, 1.0, -9.0]), truth) == scorers.Card(0.5, pytest.approx(5 / 6), 0.5, 1.0, 2.0, 1)


def test_coverage():
    low, high = np.array([0.0, 1.0, NAN, 2.0]), np.array([1.0, 2.0, 1.0, 3.0])
    assert scorers.coverage(low, high, np.array([1.0, 0.5, 0.5, 2.5])) == 0.5


def test_within_kinds_sizes_of_kinds_help_nobody():
    """Sources are the larger kind, and the smaller of it."""
    values = {"head": np.array([[5.0, 6.0, 7.0]]), "neuron": np.array([[1.0, 2.0, 3.0, NAN]])}
    heads = {"head": np.array([[True, False, False]]), "neuron": np.zeros((1, 4), bool)}
    flat = [np.concatenate([each[kind].ravel() for kind in values]) for each in (values, heads)]
    assert scorers.auroc(*flat) == 4 / 6 and scorers.auroc_within(values, heads) == 0
    both = heads | {"neuron": np.array([[False, False, True, True]])}
    assert scorers.auroc_within(values, both) == pytest.approx((0 + 2 * 0.5) / 3)
    assert np.isnan(scorers.auroc_within(values, {kind: np.zeros_like(each, bool) for kind, each in values.items()}))
