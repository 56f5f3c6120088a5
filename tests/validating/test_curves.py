"""Curves on a toy whose answer is known: effects add up, and one component carries most of it."""

import numpy as np
import pytest

from jaxpatch.measuring.outcomes import Outcome
from jaxpatch.validating import controls, curves

WEIGHTS = np.array([8.0, 1.0, 0.5, 0.5])
BASE, GAP = np.array([1.0, -2.0, 0.5]), np.array([10.0, 20.0, 5.0])


def outcome(gates, mode):
    share = (gates["part"] * WEIGHTS).sum() / WEIGHTS.sum()
    share = share if mode == "restoration" else 1 - share
    return Outcome(BASE + share * GAP, np.full(3, 2 * (1 - share)))


def test_curves_by_hand():
    order = controls.ranked({"part": WEIGHTS}, {"part": np.ones(4, bool)})
    orders = {"top": [order], "random": [controls.shuffled(order, 0), controls.shuffled(order, 1)]}
    calls, wholes = [], []

    def counting(gates, mode):
        wholes.extend([mode] if gates["part"].all() else [])
        return outcome(gates, mode)

    drawn = curves.draw(
        counting,
        orders,
        {"part": (4,)},
        np.array([1, 2, 4]),
        BASE,
        GAP,
        progress=lambda done, total: calls.append((done, total)),
    )
    found = {(curve.name, curve.mode): curve for curve in drawn}
    top = found["top", "restoration"]
    np.testing.assert_allclose(top.recovery, [0.8, 0.9, 1.0], rtol=1e-6)
    np.testing.assert_allclose(top.kl, [0.4, 0.2, 0.0], atol=1e-12)
    np.testing.assert_allclose(found["top", "knockout"].recovery, [0.2, 0.1, 0.0], atol=1e-6)
    np.testing.assert_allclose(top.low, top.recovery, rtol=1e-5)
    expected = [
        np.mean([(controls.mask(o, k, {"part": (4,)})["part"] * WEIGHTS).sum() / 10 for o in orders["random"]])
        for k in (1, 2, 4)
    ]
    np.testing.assert_allclose(found["random", "restoration"].recovery, expected, rtol=1e-6)
    np.testing.assert_allclose(found["random", "restoration"].kl, 2 * (1 - np.array(expected)), rtol=1e-6, atol=1e-12)
    for mode in curves.MODES:
        first, other = found["top", mode], found["random", mode]
        np.testing.assert_allclose(other.lag, abs(first.recovery - other.recovery), atol=1e-6)
        assert not first.lag.any() and not first.lag_low.any() and not first.lag_high.any()
    assert calls[-1] == (18, 18) and len(calls) == 18
    assert wholes == ["restoration", "knockout"], "all together are the same in every order"


@pytest.mark.parametrize(("total", "grid"), [(1, [1]), (3, [1, 3]), (45, [1, 3, 10, 30, 45])])
def test_sizes_end_with_all(total, grid):
    assert curves.sizes(total).tolist() == grid


@pytest.mark.parametrize("mode", curves.MODES)
def test_a_small_lag_that_every_input_agrees_on_is_clear_where_intervals_overlap(mode):
    """One component recovers 10 to 90 % by input, another 1 % less on each: two wide intervals, and a narrow one of the difference."""
    by_input = np.array([[0.1, 0.09], [0.5, 0.49], [0.9, 0.89]])

    def uneven(gates, mode):
        share = by_input @ gates["part"]
        return Outcome(BASE + GAP * (share if mode == "restoration" else 1 - share), np.zeros(3))

    order = controls.ranked({"part": np.array([2.0, 1.0])}, {"part": np.ones(2, bool)})
    orders = {"top": [order], "other": [controls.some(order, np.array([1, 0]))]}
    top, other = curves.draw(uneven, orders, {"part": (2,)}, np.array([1, 2]), BASE, GAP, modes=(mode,))
    assert top.low[0] < other.recovery[0] < top.high[0]
    np.testing.assert_allclose([other.lag[0], other.lag_low[0], other.lag_high[0]], 0.01, atol=1e-6)
