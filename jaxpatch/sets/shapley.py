"""What each component is worth among the others: Shapley values of the game of the first n, by sampled sets with intervals.

``phi_i`` is the mean over sizes, and over sets of each size, of what i does beside the others of the set. A set is drawn with its
complement, and one sweep gives the marginal of every component beside it, members and others alike. So with sets S of every size,

    phi_i = 1/(n + 1) sum_{s=0}^{n} mean_{|S| = s} [ F(S with i) - F(S without i) ]

holds for all i at once: of a set of size s, i is no member with probability 1 - s/n and sees s others, else it sees s - 1; over uniform
sizes, it sees 0, ..., n - 1 others equally often. A round takes each size once, which is an unbiased estimate by itself, and the
spread of the rounds gives the interval. The empty and the whole set are swept once for all rounds.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.measuring import sweep
from jaxpatch.sets.game import Component, Game
from jaxpatch.validating.smallest import Recovered

LEVEL = 0.95


class Shapley(NamedTuple):
    """All in shares of the gap. Components are in the ranking's order; `ranked` is by their values.

    components: n of them. alone: [n], E_w of each. last: [n], what each does beside all the others. values: [n], their Shapley values.
    low, high: [n], 95 % interval over the sets that might have been drawn; the values themselves where all were.
    input_low, input_high: [n], 95 % bootstrap interval over inputs.
    joint: E_w of all together, to which true Shapley values add up. total: of these, with its interval over the sets drawn.
    rounds: of sampled sets; 0 where every set was taken. sweeps: that it took.
    """

    components: tuple[Component, ...]
    alone: np.ndarray
    last: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    input_low: np.ndarray
    input_high: np.ndarray
    joint: Recovered
    total: Recovered
    rounds: int
    sweeps: int

    @property
    def is_exact(self) -> bool:
        """Whether every set was taken."""
        return self.rounds == 0

    @property
    def ranked(self) -> tuple[Component, ...]:
        """The components by falling Shapley value."""
        return tuple(self.components[number] for number in np.argsort(-self.values, kind="stable"))

    def to_frame(self) -> pd.DataFrame:
        """One row a component, in the ranking's order: name, alone, last, shapley, low, high, input_low, input_high."""
        columns = {"alone": self.alone, "last": self.last, "shapley": self.values, "low": self.low, "high": self.high}
        inputs = {"input_low": self.input_low, "input_high": self.input_high}
        return pd.DataFrame({"name": [each.name for each in self.components], **columns, **inputs})


def values(game: Game, *, rounds: int = 8, seed: int = 0, progress: sweep.Progress = sweep.silent) -> Shapley:
    """Shapley values of a game's components: of all sets, where those take no more sweeps than the rounds; else by sampling.

    Args: rounds: at least 2; each takes n - 1 sweeps, or n where n is even, and there are 2 more. All sets take 2^(n - 1).

    References: Shapley (1953); estimation by sampling, Castro, Gómez and Tejada (2009), here by strata of sizes; one sweep for all
        marginals of a set, and this estimator: ours.

    Example:
        >>> from jaxpatch.sets import game
        >>> either = game.of_value(lambda chosen: np.full(3, float(chosen.any())), 2, np.ones(3))
        >>> found = values(either)
        >>> found.values.tolist(), found.alone.tolist(), found.last.tolist(), found.is_exact
        ([0.5, 0.5], [1.0, 1.0], [0.0, 0.0], True)
    """
    num = len(game.components)
    everything = np.ones(num, bool)
    if is_cheaper_whole(num, rounds):
        alone, last, effects = _exactly(game, progress)
        rounds, num_sweeps = 0, 2 ** (num - 1)
        apart = np.zeros((0, num))
    else:
        num_sweeps = 2 + rounds * (num // 2) * 2
        alone, last = (
            game.marginals(chosen, sweep.part(progress, number, num_sweeps))
            for number, chosen in enumerate((~everything, everything))
        )
        found, done, draw = [], 2, np.random.default_rng(seed)
        for _ in range(rounds):
            sums = alone.astype(np.float64) + last
            for size, chosen in _one_of_each_size(num, draw):
                weight = 0.5 if 2 * size == num else 1.0
                sums += weight * game.marginals(chosen, sweep.part(progress, done, num_sweeps))
                done += 1
            found.append(sums / (num + 1))
        effects = np.mean(found, axis=0)
        apart = np.stack([game.recovered(each) for each in found]).astype(np.float64)
    middle = game.recovered(effects)
    low, high = _over_rounds(middle, apart)
    input_low, input_high = game.intervals(effects, seed)
    total = middle.sum()
    ends = _over_rounds(total[None], apart.sum(axis=1, keepdims=True))
    return Shapley(
        components=game.components,
        alone=game.recovered(alone),
        last=game.recovered(last),
        values=middle,
        low=low,
        high=high,
        input_low=input_low,
        input_high=input_high,
        joint=game.summed_up(game.value(everything), seed),
        total=Recovered(float(total), float(ends[0][0]), float(ends[1][0])),
        rounds=rounds,
        sweeps=num_sweeps,
    )


def is_cheaper_whole(num: int, rounds: int) -> bool:
    """Whether all sets of so many take no more sweeps than so many rounds.

    >>> [is_cheaper_whole(num, 8) for num in (2, 6, 7)]
    [True, True, False]
    """
    return 2 ** (num - 1) <= 2 + rounds * (num // 2) * 2


def _one_of_each_size(num: int, draw: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """Sets of sizes 1, ..., num - 1, each with its complement; so of size num / 2 there are two."""
    for size in range(1, num // 2 + 1):
        chosen = np.zeros(num, bool)
        chosen[draw.permutation(num)[:size]] = True
        yield size, chosen
        yield num - size, ~chosen


def _exactly(game: Game, progress: sweep.Progress) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Marginals beside none and beside all others, and Shapley values, [B, n] each. Every difference of two sets that differ in one
    component is a marginal of exactly one of them that has an even size, so these are all that are swept."""
    num = len(game.components)
    every = (np.arange(2**num)[:, None] >> np.arange(num)) % 2 == 1
    even = every[every.sum(axis=1) % 2 == 0]
    by_others = np.zeros((num, len(game.gap), num))
    for number, chosen in enumerate(even):
        found = game.marginals(chosen, sweep.part(progress, number, len(even)))
        for player in range(num):
            others = int(chosen.sum() - chosen[player])
            by_others[others, :, player] += found[:, player] / math.comb(num - 1, others)
    return by_others[0], by_others[-1], by_others.mean(axis=0)


def _over_rounds(middle: np.ndarray, apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Student's interval of the mean of rounds [R, n], about `middle` [n]."""
    if not len(apart):
        return middle, middle
    import scipy.special

    quantile = scipy.special.stdtrit(len(apart) - 1, (1 + LEVEL) / 2)
    half = quantile * apart.std(axis=0, ddof=1) / math.sqrt(len(apart))
    return (middle - half).astype(np.float32), (middle + half).astype(np.float32)
