"""Agreement of a cheap score with the exact one: by hand, and where there is nothing to compare."""

import numpy as np
import pytest
import scipy.stats

from jaxpatch.scoring.agreement import agreement, spearman

CHEAP = np.array([0.1, -5.0, 0.2, 4.0, 0.3, -0.4, 0.5, 0.6])
EXACT = np.array([1.0, -6.0, 0.0, 4.0, 0.3, 0.4, 0.25, 0.6])


def test_by_hand():
    """Only -0.4 and 0.2 have another sign; a tenth of eight is one, and -5 is the largest of both."""
    said = agreement(CHEAP, EXACT)
    assert said.spearman == pytest.approx(scipy.stats.spearmanr(CHEAP, EXACT)[0])
    assert said.sign == pytest.approx(6 / 8)
    assert said.slope == pytest.approx(np.dot(CHEAP, EXACT) / np.dot(CHEAP, CHEAP), rel=1e-12)
    assert said.top_overlap == 1


def test_top_overlap_of_two_orders():
    """Twenty components, a tenth is two: cheap has 0 and 1 on top, exact 0 and 19."""
    cheap, true = np.arange(20, 0, -1.0), np.r_[30.0, np.zeros(18), -25.0]
    assert agreement(cheap, true).top_overlap == 0.5


def test_degenerate_agreement_is_nan_and_not_an_error():
    none = agreement(np.zeros(0), np.zeros(0))
    assert np.isnan([none.spearman, none.sign, none.slope]).all() and none.top_overlap == 0
    flat = agreement(np.zeros(3), np.ones(3))
    assert np.isnan([flat.spearman, flat.slope]).all() and flat.sign == 0


def test_spearman_takes_ties_at_their_mean_rank():
    draw = np.random.default_rng(0)
    for _ in range(20):
        a, b = draw.integers(0, 4, 12).astype(float), draw.integers(0, 4, 12).astype(float)
        assert spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0])


def test_spearman_of_one_value_is_nan():
    assert np.isnan(spearman(np.ones(1), np.ones(1)))
