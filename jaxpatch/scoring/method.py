"""What a way of scoring is."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.measuring.sweep import Progress, silent


def all_silent(kind: str) -> Progress:
    """The progress that shows nothing, for every kind."""
    del kind
    return silent


class Options(NamedTuple):
    """top: components truly replaced because the cheap score ranks them high, and as many again drawn at random (screened).
    steps: points along the path (integrated). seed: of everything drawn. progress: kind -> a function called with (done, total).
    """

    top: int = 150
    steps: int = 16
    seed: int = 0
    progress: Callable[[str], Progress] = all_silent


DEFAULTS = Options()


class Screening(NamedTuple):
    """What screening did to one kind.

    replaced: bool, the kind's shape: truly replaced. is_random: those of them that were drawn at random.
    cheap, exact: the two scores of the replaced ones, [n], in the order of `np.argwhere(replaced)`; means of effects, not
    normalised. spearman, sign, slope: agreement over the replaced: rank correlation, share of equal signs, least-squares slope of
    exact on cheap through 0. top_overlap: share of the exact top tenth that is in the cheap top tenth, over the replaced.
    residual: standard deviation of exact - cheap over the random ones, which stand for all that was not replaced.
    """

    replaced: np.ndarray
    is_random: np.ndarray
    cheap: np.ndarray
    exact: np.ndarray
    spearman: float
    sign: float
    slope: float
    top_overlap: float
    residual: float


class Answer(NamedTuple):
    """effects: [B, *shape], ``F_a(patched) - F_a(base)`` or its estimate. screening: where the method screens."""

    effects: np.ndarray
    screening: Screening | None = None


Method = Callable[[Instrument, tuple[str, ...], Options], Mapping[str, Answer]]
"""(instrument, kinds, options) -> the answer for each kind."""
