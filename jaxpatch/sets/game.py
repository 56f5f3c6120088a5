"""What sets of components do together, asked in two ways: of a whole set, and of each component beside the rest of it."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from jaxpatch.measuring import sweep
from jaxpatch.measuring.instrument import Instrument, Marginals
from jaxpatch.patching.components import Partition
from jaxpatch.scoring import normalise
from jaxpatch.scoring.scores import component_names
from jaxpatch.validating import controls
from jaxpatch.validating.smallest import Recovered


class Component(NamedTuple):
    """kind, place: (layer, index), as gates are made of them. name: as tables call it."""

    kind: str
    place: tuple[int, ...]
    name: str


class Game(NamedTuple):
    """Some components, n of them, and what their sets do; a set is a bool [n]. All else is base's.

    components: best first, by the ranking that they come from.
    value: set -> what it does, ``F(base with these of special's) - F(base)``, [B].
    marginals: (set, progress) -> what each component does beside the others of the set, ``F(with it) - F(without it)``, [B, n].
    gap, is_kept: [B], of base and special themselves. aggregate: how inputs are weighed.
    """

    components: tuple[Component, ...]
    value: Callable[[np.ndarray], np.ndarray]
    marginals: Callable[[np.ndarray, sweep.Progress], np.ndarray]
    gap: np.ndarray
    is_kept: np.ndarray
    aggregate: str = "mean_of_ratios"

    def recovered(self, effects: np.ndarray) -> np.ndarray:
        """E_w out of effects [B, ...]."""
        return normalise.normalised(effects, self.gap, self.is_kept, self.aggregate)

    def intervals(self, effects: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Both ends, 95 % over inputs. effects: [B, ...]."""
        return normalise.intervals(effects, self.gap, self.is_kept, self.aggregate, seed)

    def summed_up(self, effects: np.ndarray, seed: int) -> Recovered:
        """One E_w and its interval. effects: [B]."""
        return Recovered(float(self.recovered(effects)), *map(float, self.intervals(effects, seed)))


def of_value(value: Callable[[np.ndarray], np.ndarray], num: int, gap: np.ndarray) -> Game:
    """The game of anything that gives a set, bool [num], an effect on each input, [B]. Marginals are differences of two values.

    >>> either = of_value(lambda chosen: np.array([float(chosen.any())]), 2, np.ones(1))
    >>> either.marginals(np.array([True, False]), sweep.silent).tolist()
    [[1.0, 0.0]]
    """

    def marginals(chosen: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        found = []
        for number in range(num):
            only = np.arange(num) == number
            found.append(value(chosen | only) - value(chosen & ~only))
            progress(number + 1, num)
        return np.stack(found, axis=1)

    players = tuple(Component("part", (number,), f"part {number}") for number in range(num))
    return Game(players, value, marginals, gap, np.ones(len(gap), bool))


def of_order(
    tool: Instrument,
    order: controls.Order,
    shapes: Mapping[str, tuple[int, ...]],
    marginals: Marginals,
    aggregate: str,
) -> Game:
    """The game of the components of an order.

    Args: tool: what measures them. shapes: of each kind's gates. marginals: by the engine or by the definition.
    """
    mine = {name: np.flatnonzero(order.kinds == number) for number, name in enumerate(order.names)}
    mine = {name: which for name, which in mine.items() if len(which)}
    indices = {name: np.stack(np.unravel_index(order.places[which], shapes[name]), 1) for name, which in mine.items()}

    def gates(chosen: np.ndarray) -> dict[str, np.ndarray]:
        return controls.mask(controls.some(order, chosen), len(chosen), shapes)

    def value(chosen: np.ndarray) -> np.ndarray:
        return tool.read(gates(chosen)) - tool.base

    def beside(chosen: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        found = marginals(gates(chosen), indices, progress)
        out = np.zeros((len(tool.base), len(order.places)), tool.base.dtype)
        for name, which in mine.items():
            out[:, which] = found[name].T
        return out

    is_kept = normalise.kept_inputs(tool.gap, tool.base)
    return Game(named(order, shapes, tool.partition), value, beside, tool.gap, is_kept, aggregate)


def named(order: controls.Order, shapes: Mapping[str, tuple[int, ...]], partition: Partition) -> tuple[Component, ...]:
    """The components of an order, in its sequence."""
    names = {kind: component_names(kind, partition[kind]) for kind in order.names}
    found = []
    for number, flat in zip(order.kinds, order.places, strict=True):
        kind = order.names[number]
        place = tuple(int(part) for part in np.unravel_index(flat, shapes[kind]))
        found.append(Component(kind, place, names[kind][flat]))
    return tuple(found)
