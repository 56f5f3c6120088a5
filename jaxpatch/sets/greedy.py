"""A set grown one by one, each time by what adds most to those already in it. Ours, over weights.

A ranking counts every one of several components that stand for each other; this counts the first of them, and sees that the others add
little to it. What does nothing before its partner is there it does not see either.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.measuring import sweep
from jaxpatch.sets.game import Component, Game


class Greedy(NamedTuple):
    """All in shares of the gap.

    components: k of them, in the order in which they were chosen. gains: [k], what each added to those chosen in earlier steps.
    sizes: [K], how many there are after each step. recovery: [K], E_w of them together. low, high: [K], 95 % bootstrap interval over
        inputs. Where components are chosen by these same inputs, other inputs will give less (`compare_sets`, held_out).
    pool: how many were to choose from.
    """

    components: tuple[Component, ...]
    gains: np.ndarray
    sizes: np.ndarray
    recovery: np.ndarray
    low: np.ndarray
    high: np.ndarray
    pool: int

    def to_frame(self) -> pd.DataFrame:
        """One row a step: size, last (the component chosen last), recovery, low, high."""
        last = [self.components[size - 1].name for size in self.sizes]
        columns = {"recovery": self.recovery, "low": self.low, "high": self.high}
        return pd.DataFrame({"size": self.sizes, "last": last, **columns})


def select(
    game: Game, count: int, *, at_once: int = 1, seed: int = 0, progress: sweep.Progress = sweep.silent
) -> Greedy:
    """Forward selection: a sweep of the whole pool for each step.

    Args: count: how many of the game's components to choose. at_once: how many a step takes, the best by what each adds alone; so these
        may stand for each other. seed: of the bootstrap.

    Example:
        >>> from jaxpatch.sets import game
        >>> either = game.of_value(lambda c: np.full(2, max(c[0], 0.9 * c[1]) + 0.2 * c[2]), 3, np.ones(2))
        >>> found = select(either, 2)
        >>> [each.name for each in found.components], found.recovery.round(4).tolist()
        (['part 0', 'part 2'], [1.0, 1.2000000476837158])
    """
    chosen, order = np.zeros(len(game.components), bool), []
    gains, reached = [], []
    steps = -(-count // at_once)
    for number in range(steps):
        worth = game.recovered(game.marginals(chosen, sweep.part(progress, number, steps)))
        left = np.where(
            np.isnan(worth), -np.finfo(worth.dtype).max, worth
        )  # what is no number comes last of what is left
        best = np.argsort(-np.where(chosen, -np.inf, left), kind="stable")[: min(at_once, count - len(order))]
        chosen[best] = True
        order += best.tolist()
        gains += worth[best].tolist()
        reached.append(game.value(chosen))
    effects = np.stack(reached, axis=1)
    low, high = game.intervals(effects, seed)
    return Greedy(
        components=tuple(game.components[number] for number in order),
        gains=np.array(gains, np.float32),
        sizes=np.minimum(at_once * np.arange(1, steps + 1), count),
        recovery=game.recovered(effects),
        low=low,
        high=high,
        pool=len(game.components),
    )
