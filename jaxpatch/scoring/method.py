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
    """top: how many of the best components the answer must get right (screened). alpha: its level. sample: at least so many are drawn
    at random for it. steps: points along the path (integrated). aggregate: how inputs are weighed, where a method ranks. seed: of
    everything drawn. progress: kind -> a function called with (done, total). limit: of each kind no more are truly replaced than so
    many, beside the first sample and the first `top` (screened); None for as many as the promise takes.
    """

    top: int = 100
    alpha: float = 0.05
    sample: int = 200
    steps: int = 16
    aggregate: str = "mean_of_ratios"
    seed: int = 0
    progress: Callable[[str], Progress] = all_silent
    limit: int | None = None


DEFAULTS = Options()


class Round(NamedTuple):
    """One step of a screen. replaced: components truly replaced so far. threshold: the k-th best score among them. quantile: of the
    scaled residual, from which the bounds are made. contenders: unseen components whose bound is above the threshold."""

    replaced: int
    threshold: float
    quantile: float
    contenders: int


class Screening(NamedTuple):
    """What screening did to one kind. Scores here are E_w.

    Attributes:
        replaced: bool, the kind's shape: truly replaced. is_random: those of them that were drawn for the calibration.
        cheap, exact: the two scores of the replaced ones, [n], in the order of `np.argwhere(replaced)`.
        top: k, how many of the best were to be found. alpha: the level.
        threshold: the k-th best score that was found. bound: the largest upper bound of any component not replaced (-inf where
            there is none); the screen ends when it is no higher than the threshold.
        scale: what residuals are measured in: "constant", "disagreement" (of the two linearisations) or "size" (of the cheap score).
        rounds: how the screen got there.
        excess: share of the contenders whose exact score was above the bound that they were given.
        surprises: how many of the random sample are among the top though their bounds would have hidden them.
        unnoticed: share of the components that the cheap score may be blind to without any of them being in the random sample, but with
            probability `alpha`; 0 where all were replaced.
        is_trusted: whether the calibration spoke for the cheap score; if not, a larger sample was drawn.
        left: how many whose bound is above the threshold a limit left unreplaced; 0 without a limit.
        missed: expected number of better ones that were missed, at most, whatever the cheap score is worth.
        spearman, sign, slope: agreement over the replaced: rank correlation, share of equal signs, least-squares slope of exact on
            cheap through 0. top_overlap: share of the exact top tenth that is in the cheap top tenth, over the replaced.
        residual: standard deviation of exact - cheap over the random ones, which stand for all that was not replaced.
    """

    replaced: np.ndarray
    is_random: np.ndarray
    cheap: np.ndarray
    exact: np.ndarray
    top: int
    alpha: float
    threshold: float
    bound: float
    scale: str
    rounds: tuple[Round, ...]
    excess: float
    surprises: int
    unnoticed: float
    is_trusted: bool
    left: int
    missed: float
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
