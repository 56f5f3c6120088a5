"""Which inputs count, how much, and how sure that makes their mean: by hand."""

import numpy as np
import pytest

from jaxpatch.scoring import normalise

TWO = np.array([True, True])


def test_mean_of_ratios_and_ratio_of_means():
    """Effects 1 of gap 2, and 4 of gap 4: ratios 1/2 and 1; sums 5 of 6."""
    effects, gap = np.array([[1.0], [4.0]]), np.array([2.0, 4.0])
    assert normalise.normalised(effects, gap, TWO, "mean_of_ratios").tolist() == [0.75]
    assert normalise.normalised(effects, gap, TWO, "ratio_of_means") == pytest.approx([5 / 6])
    only_second = np.array([False, True])
    for aggregate in normalise.AGGREGATES:
        assert normalise.normalised(effects, gap, only_second, aggregate).tolist() == [1]
    with pytest.raises(ValueError, match=r"aggregate 'median'; wanted one of mean_of_ratios"):
        normalise.normalised(effects, gap, TWO, "median")


def test_shapes_are_kept():
    effects = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    assert normalise.normalised(effects, np.ones(2), TWO, "mean_of_ratios").shape == (3, 5)
    assert normalise.normalised(effects, np.ones(2), TWO, "mean_of_ratios").dtype == np.float32


def test_small_and_negative_gaps_are_dropped():
    """Median of the positive gaps is 1, and a twentieth of it is the bar."""
    gap = np.array([1.0, 1.0, 2.0, 0.04, 0.06, -3.0, 0.0])
    assert normalise.kept_inputs(gap, np.zeros(7)).tolist() == [True, True, True, False, True, False, False]


@pytest.mark.parametrize(
    ("gap", "base", "hint"),
    [
        ([-1.0, -2.0], [0.0, 0.0], "sign may be reversed"),
        ([1e-7, -1e-8], [3.0, 2.0], "the two models read alike"),
        ([0.0, 0.0], [0.0, 0.0], "the two models read alike"),
    ],
)
def test_no_gap_is_an_error_that_says_what_to_do(gap, base, hint):
    with pytest.raises(ValueError, match=f"no input has a positive gap.*{hint}.*Take another.*or other inputs"):
        normalise.kept_inputs(np.array(gap), np.array(base))


def test_interval_of_two_inputs():
    """Resamples of two inputs: both the first (1/4), one of each (1/2), both the second (1/4); the 95 % ends are the outer two."""
    effects, gap = np.array([[0.0], [1.0]]), np.ones(2)
    low, high = normalise.intervals(effects, gap, TWO, "mean_of_ratios", seed=0)
    assert (low.tolist(), high.tolist()) == ([0], [1])
    low, high = normalise.intervals(np.array([[1.0], [0.0]]), np.array([1.0, 3.0]), TWO, "ratio_of_means", seed=0)
    assert (low.tolist(), high.tolist()) == ([0], [1])


def test_interval_of_equal_inputs_is_a_point():
    gap = np.array([1.0, 2.0, 4.0])
    effects = 0.5 * gap[:, None, None] * np.ones((1, 2, 3))
    for aggregate in normalise.AGGREGATES:
        for end in normalise.intervals(effects, gap, np.ones(3, bool), aggregate, seed=1):
            np.testing.assert_allclose(end, np.full((2, 3), 0.5), rtol=1e-6)


def test_interval_of_one_input_is_nan():
    for kept in ([True, False], [False, False]):
        low, high = normalise.intervals(np.ones((2, 3)), np.ones(2), np.array(kept), "mean_of_ratios", seed=0)
        assert low.shape == (3,) and np.isnan(low).all() and np.isnan(high).all()


def test_interval_covers():
    """500 components whose 24 inputs have mean 0.3 and spread 1: a 95 % percentile bootstrap covers a little less than that."""
    draw = np.random.default_rng(0)
    effects = draw.normal(0.3, 1.0, (24, 500))
    low, high = normalise.intervals(effects, np.ones(24), np.ones(24, bool), "mean_of_ratios", seed=0)
    assert 0.90 < np.mean((low <= 0.3) & (high >= 0.3)) < 0.98
    width = 2 * 1.96 / 24**0.5
    np.testing.assert_allclose(np.mean(high - low), width, rtol=0.1)


def test_interval_same_seed_same_bits():
    effects = np.random.default_rng(0).normal(size=(6, 4))
    args = effects, np.ones(6), np.ones(6, bool), "mean_of_ratios"
    assert normalise.intervals(*args, seed=5)[0].tobytes() == normalise.intervals(*args, seed=5)[0].tobytes()
    assert normalise.intervals(*args, seed=5)[0].tobytes() != normalise.intervals(*args, seed=6)[0].tobytes()


@pytest.mark.parametrize("aggregate", normalise.AGGREGATES)
def test_weights_are_what_makes_the_score(aggregate):
    """0 for inputs that are dropped; of the others, times their gaps, a mean."""
    gap, is_kept = np.array([2.0, -1.0, 4.0]), np.array([True, False, True])
    weights = normalise.weights(gap, is_kept, aggregate)
    by_hand = {"mean_of_ratios": [1 / 4, 0, 1 / 8], "ratio_of_means": [1 / 6, 0, 1 / 6]}[aggregate]
    np.testing.assert_allclose(weights, by_hand, rtol=1e-12)
    assert weights @ gap == pytest.approx(1)
    effects = np.random.default_rng(0).normal(size=(3, 5))
    found = normalise.normalised(effects, gap, is_kept, aggregate)
    np.testing.assert_allclose(found, weights @ effects, rtol=1e-6)


def test_shares_of_resampled_inputs_by_hand():
    """The first of two inputs twice: half of each ratio becomes all of the first's; and its gap alone divides."""
    counts, gap = np.array([[1.0, 1.0], [2.0, 0.0]]), np.array([2.0, 4.0])
    np.testing.assert_allclose(normalise.shares(counts, gap, "mean_of_ratios"), [[1 / 4, 1 / 8], [1 / 2, 0]])
    np.testing.assert_allclose(normalise.shares(counts, gap, "ratio_of_means"), [[1 / 6, 1 / 6], [1 / 2, 0]])
