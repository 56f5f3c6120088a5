"""How well a cheap score agrees with the exact one, where both are known."""

from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """spearman: rank correlation. sign: share of equal signs. slope: least squares of exact on cheap through 0. top_overlap: share
    of the exact top tenth that is in the cheap top tenth. NaN where there is nothing to compare."""

    spearman: float
    sign: float
    slope: float
    top_overlap: float


def agreement(cheap: np.ndarray, exact: np.ndarray) -> Agreement:
    """Of two scores of the same components, [n] each.

    >>> agreement(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])).slope
    2.0
    """
    a, b = cheap.astype(np.float64), exact.astype(np.float64)
    tenth = max(1, len(a) // 10)
    best = [set(np.argsort(-np.abs(x), kind="stable")[:tenth].tolist()) for x in (a, b)]
    return Agreement(
        spearman=spearman(a, b),
        sign=float(np.mean(np.sign(a) == np.sign(b))) if len(a) else float("nan"),
        slope=float(a @ b / (a @ a)) if a.any() else float("nan"),
        top_overlap=len(best[0] & best[1]) / tenth,
    )


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN for fewer than two values or no spread.

    >>> round(spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0])), 6)
    0.5
    """
    if len(a) < 2:
        return float("nan")
    ranks = [_ranks(x) for x in (a, b)]
    if any(np.ptp(r) == 0 for r in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]
