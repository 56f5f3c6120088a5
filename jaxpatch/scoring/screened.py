"""Screened: the cheap score ranks, the top part and a random sample are truly replaced, and their agreement is said."""

from collections.abc import Mapping

import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring import exact, local_linear
from jaxpatch.scoring.method import Answer, Options, Screening


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """Exact effects of the top components by |local_linear| and of as many random ones; `local_linear` for the rest.

    Cheap rank, then true replacement, is known; the random sample, which shows what the rank may have missed, is ours.
    """
    draw = np.random.default_rng(options.seed)
    cheap = local_linear.effects(instrument, kinds, options)
    return {kind: _one_kind(instrument, kind, cheap[kind].effects, draw, options) for kind in kinds}


def _one_kind(
    instrument: Instrument, kind: str, cheap: np.ndarray, draw: np.random.Generator, options: Options
) -> Answer:
    reach = instrument.reach[kind]
    size = np.abs(cheap.mean(axis=0))
    order = np.argsort(-np.where(reach, size, -1), axis=None, kind="stable")[: reach.sum()]
    top, rest = order[: options.top], order[options.top :]
    sample = draw.choice(rest, min(options.top, len(rest)), replace=False) if len(rest) else rest
    is_random = np.zeros(reach.shape, bool)
    is_random.flat[sample] = True
    replaced = is_random.copy()
    replaced.flat[top] = True
    true = exact.of_some(instrument, kind, replaced, options)
    mixed = np.where(replaced, true, cheap)
    return Answer(mixed, agreement(cheap.mean(axis=0), true.mean(axis=0), replaced, is_random))


def agreement(cheap: np.ndarray, true: np.ndarray, replaced: np.ndarray, is_random: np.ndarray) -> Screening:
    """How well the cheap score did where the exact one is known. cheap, true: mean effects, the kind's shape."""
    a, b = cheap[replaced].astype(np.float64), true[replaced].astype(np.float64)
    tenth = max(1, len(a) // 10)
    best = [set(np.argsort(-np.abs(x), kind="stable")[:tenth].tolist()) for x in (a, b)] if len(a) else [set(), set()]
    return Screening(
        replaced=replaced,
        is_random=is_random,
        cheap=a,
        exact=b,
        spearman=spearman(a, b),
        sign=float(np.mean(np.sign(a) == np.sign(b))) if len(a) else float("nan"),
        slope=float(a @ b / (a @ a)) if a.any() else float("nan"),
        top_overlap=len(best[0] & best[1]) / tenth,
        residual=float((true - cheap)[is_random].std()) if is_random.any() else 0.0,
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
