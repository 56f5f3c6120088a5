"""Rotary positions: how far each pair of a head's numbers turns from one token to the next, stretched where a context is long.

Su et al., arXiv 2104.09864.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Every pair turns slower, by one factor. Chen et al., arXiv 2306.15595."""

    factor: float

    def stretched(self, frequencies: np.ndarray) -> np.ndarray:
        return frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3:
    """Pairs that turn slowly turn slower by one factor, fast ones as before, those between by a mixture. Llama 3.1, arXiv 2407.21783.

    slow, fast: turns within the original context, in tokens, up to which a pair is slow and from which it is fast.
    """

    factor: float
    slow: float
    fast: float
    original: int

    def stretched(self, frequencies: np.ndarray) -> np.ndarray:
        turns = self.original * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True, kw_only=True)
class Rope:
    """theta: base of the frequencies. stretch: what was done to them for a longer context.

    >>> Rope(theta=100.0).frequencies(4).tolist(), Rope(theta=100.0, stretch=Linear(factor=2.0)).frequencies(4).tolist()
    ([1.0, 0.1], [0.5, 0.05])
    """

    theta: float = 10_000.0
    stretch: Linear | Llama3 | None = None

    def frequencies(self, width: int) -> np.ndarray:
        """Radians a token of each pair of a head's numbers: float64 [width / 2]."""
        plain = self.theta ** (-np.arange(0, width, 2) / width)
        return plain if self.stretch is None else self.stretch.stretched(plain)

    def faults(self) -> list[str]:
        """What is wrong with it, in words."""
        found = [] if self.theta > 0 else [f"rope theta must be positive; got {self.theta}"]
        if self.stretch is not None:
            found += [
                f"rope {name} must be positive; got {value}" for name, value in vars(self.stretch).items() if value <= 0
            ]
        if isinstance(self.stretch, Llama3) and self.stretch.slow >= self.stretch.fast:
            found.append(f"rope: slow = {self.stretch.slow} must be less than fast = {self.stretch.fast}")
        return found
