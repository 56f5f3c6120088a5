"""Screening: who is replaced, what they get, and what is said about the rest."""

import numpy as np
import pytest
import scipy.stats
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument
from jaxpatch.scoring import exact, local_linear, screened

CHEAP = [0.1, -5.0, 0.2, 4.0, 0.3, -0.4, 0.5, 0.6]
EXACT = [1.0, -6.0, 0.0, 4.0, 0.3, 0.4, 0.25, 0.6]


def screen(**changes):
    return screened.effects(scoring_toys.ladder(EXACT, CHEAP), ("part",), scoring_toys.options(**changes))["part"]


def test_replaced_are_the_top_and_as_many_random_ones():
    for seed in range(5):
        answer = screen(top=2, seed=seed)
        replaced, is_random = answer.screening.replaced, answer.screening.is_random
        assert replaced.sum() == 4 and is_random.sum() == 2
        assert np.flatnonzero(replaced & ~is_random).tolist() == [1, 3]
        np.testing.assert_allclose(answer.effects.mean(0)[replaced], np.array(EXACT)[replaced], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(answer.effects.mean(0)[~replaced], np.array(CHEAP)[~replaced], rtol=1e-5)


def test_same_seed_same_bits_other_seed_other_sample():
    first, again = screen(seed=3), screen(seed=3)
    assert first.effects.tobytes() == again.effects.tobytes()
    assert (first.screening.is_random == again.screening.is_random).all()
    assert any((first.screening.is_random != screen(seed=seed).screening.is_random).any() for seed in range(4, 8))


def test_agreement_by_hand():
    """Top 8 replaces all: ranks of CHEAP against ranks of EXACT; only -0.4 and 0.0 have another sign; residual has no sample."""
    said = screen(top=8).screening
    assert said.replaced.all() and not said.is_random.any()
    np.testing.assert_allclose(said.cheap, CHEAP, rtol=1e-5)
    np.testing.assert_allclose(said.exact, EXACT, rtol=1e-5, atol=1e-6)
    assert said.spearman == pytest.approx(scipy.stats.spearmanr(CHEAP, EXACT)[0])
    assert said.sign == pytest.approx(6 / 8)
    assert said.slope == pytest.approx(np.dot(CHEAP, EXACT) / np.dot(CHEAP, CHEAP), rel=1e-5)
    assert said.top_overlap == 1 and said.residual == 0


def test_residual_is_that_of_the_random_ones():
    said = screen(top=3, seed=1).screening
    misses = (np.array(EXACT) - np.array(CHEAP))[said.is_random]
    assert said.residual == pytest.approx(misses.std(), rel=1e-4)
    assert len(said.cheap) == len(said.exact) == 6


def test_top_overlap_of_two_orders():
    """Twenty components, a tenth is two: cheap has 0 and 1 on top, exact 0 and 19."""
    cheap, true = np.arange(20, 0, -1.0), np.r_[30.0, np.zeros(18), -25.0]
    said = screened.agreement(cheap, true, np.ones(20, bool), np.zeros(20, bool))
    assert said.top_overlap == 0.5


def test_degenerate_agreement_is_nan_and_not_an_error():
    none = screened.agreement(np.ones(3), np.ones(3), np.zeros(3, bool), np.zeros(3, bool))
    assert np.isnan([none.spearman, none.sign, none.slope]).all() and none.residual == 0
    flat = screened.agreement(np.zeros(3), np.ones(3), np.ones(3, bool), np.zeros(3, bool))
    assert np.isnan([flat.spearman, flat.slope]).all() and flat.sign == 0


def test_spearman_takes_ties_at_their_mean_rank():
    draw = np.random.default_rng(0)
    for _ in range(20):
        a, b = draw.integers(0, 4, 12).astype(float), draw.integers(0, 4, 12).astype(float)
        assert screened.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])


def test_a_real_pair_gets_exact_values_where_replaced():
    tool = instrument.of_pair(testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0]))
    answer = screened.effects(tool, ("neuron",), scoring_toys.options(top=5))["neuron"]
    true = exact.effects(tool, ("neuron",), scoring_toys.options())["neuron"].effects
    cheap = local_linear.effects(tool, ("neuron",), scoring_toys.options())["neuron"].effects
    replaced = answer.screening.replaced
    assert replaced.sum() == 10 and not replaced[2:].any(), "nothing above the anchor is worth replacing"
    largest = np.abs(true).max()
    np.testing.assert_allclose(answer.effects[:, replaced], true[:, replaced], atol=1e-5 * largest, rtol=0)
    np.testing.assert_array_equal(answer.effects[:, ~replaced], cheap[:, ~replaced])
    top = np.argsort(-np.abs(cheap.mean(0)).ravel())[:5]
    assert sorted(top) == np.flatnonzero(replaced & ~answer.screening.is_random).tolist()
    assert 0.9 < answer.screening.spearman <= 1 and answer.screening.slope == pytest.approx(1, abs=0.3)
