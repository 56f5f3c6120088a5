"""How good a ranking is, where the truth is known.

Rules, for all of them alike: a component that has no number is ranked last. The higher the number, the more it is said to be a source:
signs count, and a large negative number says the opposite. Components with the same number are taken in random order, and a scorer is
its mean over such orders: so a method that says the same of all has an AUROC of one half, and finds no more than chance.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats


class Card(NamedTuple):
    """What a ranking is worth. auroc: a source is above any other component, with this probability. average_precision: mean, over
    sources, of the share of sources down to each. precision: share of sources among the first as many as there are sources. recall:
    share of the sources that are among the first twice as many. first_miss: rank of the first that is none; one more than there are
    sources is perfect. not_numbers: how many values were none.
    """

    auroc: float
    average_precision: float
    precision: float
    recall: float
    first_miss: float
    not_numbers: int


def card(values: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> Card:
    """All scorers at once.

    >>> card(np.array([0.9, 0.1, 0.5, np.nan]), np.array([True, False, True, False]))
    Card(auroc=1.0, average_precision=1.0, precision=1.0, recall=1.0, first_miss=3.0, not_numbers=1)
    """
    sources = int(truth.sum())
    return Card(
        auroc(values, truth),
        average_precision(values, truth),
        found(values, truth, sources) / sources if sources else float("nan"),
        found(values, truth, 2 * sources) / sources if sources else float("nan"),
        first_miss(values, truth),
        int(np.isnan(values).sum()),
    )


def auroc(values: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Probability that a source is above another component, halves for ties; NaN where there are only sources, or none.

    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False])), auroc(np.zeros(2), np.array([True, False]))
    (1.0, 0.5)
    """
    sources, others = int(truth.sum()), int((~truth).sum())
    if not sources or not others:
        return float("nan")
    ranks = stats.rankdata(_ranked(values))
    return float((ranks[truth].sum() - sources * (sources + 1) / 2) / (sources * others))


def auroc_within(values: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> float:
    """Probability that a source is above another component of its own kind, the mean over sources: what is left where kinds that are
    larger than others help nobody. NaN where no kind has both.

    >>> auroc_within({"a": np.array([2.0, 1.0]), "b": np.array([9.0])}, {"a": np.array([True, False]), "b": np.array([False])})
    1.0
    """
    told = [(auroc(values[kind].ravel(), known.ravel()), int(known.sum())) for kind, known in truth.items()]
    told = [(each, weight) for each, weight in told if not np.isnan(each)]
    if not told:
        return float("nan")
    chances, weights = zip(*told, strict=True)
    return float(np.average(chances, weights=weights))


def average_precision(values: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Mean over sources of the precision down to each of them; NaN where there are none.

    Of g tied components with t sources, behind b others with s sources, the i-th is a source with chance t / g, and then the expected
    number of sources down to it is s + 1 + (i - 1)(t - 1) / (g - 1).

    >>> average_precision(np.array([3.0, 2.0, 1.0]), np.array([False, True, True])).__round__(4)
    0.5833
    """
    sources = int(truth.sum())
    if not sources:
        return float("nan")
    total = 0.0
    for before, size, earlier, there in _ties(values, truth):
        place = np.arange(1, size + 1)
        share = (there - 1) / (size - 1) if size > 1 else 0.0
        total += there / size * ((earlier + 1 + (place - 1) * share) / (before + place)).sum()
    return float(total / sources)


def found(values: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"], count: int) -> float:
    """How many sources are among the first `count`.

    >>> found(np.array([1.0, 1.0, 0.0]), np.array([True, False, True]), 1)
    0.5
    """
    total = 0.0
    for before, size, _, there in _ties(values, truth):
        total += there * min(max(count - before, 0), size) / size
    return float(total)


def first_miss(values: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> float:
    """Rank, from 1, of the first component that is no source: n + 1 where all are.

    Of g tied components of which m are none, the first of these comes (g + 1) / (m + 1) places down.

    >>> first_miss(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    2.0
    """
    for before, size, _, there in _ties(values, truth):
        if there < size:
            return before + (size + 1) / (size - there + 1)
    return len(truth) + 1.0


def coverage(
    low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"], true_values: Float[np.ndarray, " n"]
) -> float:
    """Share of intervals that hold the true value; one that has no end holds nothing.

    >>> coverage(np.array([0.0, 0.0]), np.array([1.0, np.nan]), np.array([0.5, 0.5]))
    0.5
    """
    return float(((low <= true_values) & (true_values <= high)).mean())


def _ranked(values: np.ndarray) -> np.ndarray:
    """What is no number is below all that are."""
    return np.where(np.isnan(values), -np.inf, values)


def _ties(values: np.ndarray, truth: np.ndarray) -> list[tuple[int, int, int, int]]:
    """From the best: (how many are before, how many are tied, sources before, sources among them)."""
    ranked, rows, before, earlier = _ranked(values), [], 0, 0
    for value in np.unique(ranked)[::-1]:
        same = ranked == value
        size, there = int(same.sum()), int(truth[same].sum())
        rows.append((before, size, earlier, there))
        before, earlier = before + size, earlier + there
    return rows
