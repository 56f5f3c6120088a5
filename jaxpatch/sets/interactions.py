"""Whether effects add up: what two components do together and not one by one, and what a whole set does and not the sum of its parts.

Pairs that interact below 0 stand for each other (redundancy); above 0, they need each other (synergy).
"""

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.measuring import sweep
from jaxpatch.sets.game import Component, Game
from jaxpatch.validating.smallest import Recovered


class Interactions(NamedTuple):
    """All in shares of the gap; intervals are 95 %, bootstrap over inputs.

    components: n of them, best first. alone: [n], E_w of each. joint: of all together. excess: joint - sum of alone.
    values: [n, n], ``I(i, j) = E(i and j) - E(i) - E(j)``, symmetric, 0 on the diagonal. low, high: [n, n].
    noise: the largest distance between I(i, j) from i's host and from j's, which are one number computed twice: what is smaller may be
        rounding.
    """

    components: tuple[Component, ...]
    alone: np.ndarray
    joint: Recovered
    excess: Recovered
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    noise: float

    @property
    def is_clear(self) -> np.ndarray:
        """Which pairs' interval leaves out 0, and whose interaction is above the noise: [n, n]. Of pairs that do not interact one in
        twenty passes for clear by chance."""
        return ((self.low > 0) | (self.high < 0)) & (np.abs(self.values) > self.noise)

    @property
    def higher(self) -> float:
        """What of the excess no pair explains: it takes three components or more."""
        return self.excess.value - float(np.triu(self.values, 1).sum())

    def to_frame(self) -> pd.DataFrame:
        """One row a pair, strongest first: one, other, interaction, low, high, is_clear."""
        one, other = np.triu_indices(len(self.components), 1)
        frame = pd.DataFrame(
            {
                "one": [self.components[i].name for i in one],
                "other": [self.components[j].name for j in other],
                "interaction": self.values[one, other],
                "low": self.low[one, other],
                "high": self.high[one, other],
                "is_clear": self.is_clear[one, other],
            }
        )
        strongest = np.argsort(-np.abs(self.values[one, other]), kind="stable")
        return frame.iloc[strongest].reset_index(drop=True)


def pairs(game: Game, *, seed: int = 0, progress: sweep.Progress = sweep.silent) -> Interactions:
    """Exact pairwise interactions of a game's components, by n + 1 sweeps: of nothing, and of each component by itself.

    ``I(i, j) = [F(i and j) - F(i)] - [F(j) - F(base)]``, over the gap. Where effects add up it is 0.

    Args: seed: of the bootstrap.

    References: the Shapley interaction of Grabisch and Roubens (1999) in the smallest game that holds both; over weights: ours.

    Example:
        >>> from jaxpatch.sets import game
        >>> either = game.of_value(lambda chosen: np.full(3, float(chosen.any())), 2, np.ones(3))
        >>> found = pairs(either)
        >>> found.values.tolist(), found.alone.tolist(), found.joint.value
        ([[0.0, -1.0], [-1.0, 0.0]], [1.0, 1.0], 1.0)
    """
    num = len(game.components)
    sets = [np.zeros(num, bool), *np.eye(num, dtype=bool)]
    found = [game.marginals(chosen, sweep.part(progress, number, len(sets))) for number, chosen in enumerate(sets)]
    alone = found[0]
    twice = (np.stack(found[1:], axis=1) - alone[:, None, :]) * (1 - np.eye(num, dtype=alone.dtype))
    effects = (twice + twice.swapaxes(1, 2)) / 2
    low, high = game.intervals(effects, seed)
    joint = game.value(np.ones(num, bool))
    return Interactions(
        components=game.components,
        alone=game.recovered(alone),
        joint=game.summed_up(joint, seed),
        excess=game.summed_up(joint - alone.sum(axis=1), seed),
        values=game.recovered(effects),
        low=low,
        high=high,
        noise=float(np.abs(game.recovered(twice - twice.swapaxes(1, 2))).max(initial=0)),
    )
