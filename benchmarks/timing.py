"""The harness: sides timed in turn in one process.

Sides alternate (A, B, A, B, ...), so that a machine which slows down or has other guests slows all of them alike; a figure is the
median of ratios within a round. The first call of a side stands apart: it compiles and warms up, and what it returns is checked.
"""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

FEWEST_REPEATS = 5


class Side(NamedTuple):
    """One way to do the work. run: returns when it is done. amount: units of work in one run."""

    name: str
    run: Callable[[], Any]
    amount: float
    unit: str = "patches"


class Spread(NamedTuple):
    """Quartiles and median of repeats."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """
        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0
        """
        return cls(*np.quantile(values, (0.25, 0.5, 0.75)).tolist())

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


class Timed(NamedTuple):
    """A side's times, in seconds.

    first: the first call. result: what it returned. others: cores that other processes kept busy during the rounds, on average;
    NaN where the system does not tell.
    """

    side: Side
    first: float
    seconds: tuple[float, ...]
    result: Any
    others: float

    @property
    def rates(self) -> list[float]:
        """Units of work a second, one for each repeat."""
        return [self.side.amount / second for second in self.seconds]

    @property
    def compiling(self) -> float:
        """Seconds the first call took beyond the median: compilation and warming up."""
        return max(0.0, self.first - float(np.median(self.seconds)))


class Figure(NamedTuple):
    """What is claimed, in words, and its values, one for each repeat."""

    claim: str
    values: Sequence[float]


def in_turn(
    sides: Sequence[Side], *, repeats: int, check: Callable[[list[Any]], None] = lambda results: None
) -> list[Timed]:
    """Time the sides, one run of each in every round.

    Args: check: called with the results of the first calls, before anything else is timed; raises where they are wrong.
    """
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"--repeats {repeats}: a median wants at least {FEWEST_REPEATS}.")
    firsts = [_timed(side) for side in sides]
    check([result for _, result in firsts])
    began, busy_before = time.perf_counter(), _busy_elsewhere()
    rounds = [[_timed(side)[0] for side in sides] for _ in range(repeats)]
    others = max(0.0, _busy_elsewhere() - busy_before) / (time.perf_counter() - began)
    return [
        Timed(side, first, seconds, result, others)
        for side, (first, result), seconds in zip(sides, firsts, zip(*rounds, strict=True), strict=True)
    ]


def _timed(side: Side) -> tuple[float, Any]:
    began = time.perf_counter()
    result = jax.block_until_ready(side.run())
    return time.perf_counter() - began, result


def _busy_elsewhere() -> float:
    """Core-seconds since boot that went to anything but this process."""
    if not (stat := Path("/proc/stat")).exists():
        return float("nan")
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def ratio(claim: str, over: Sequence[float], under: Sequence[float]) -> Figure:
    """Quotients within each round.

    >>> ratio("twice as fast", [4.0, 6.0], [2.0, 3.0]).values
    [2.0, 2.0]
    """
    return Figure(claim, [o / u for o, u in zip(over, under, strict=True)])
