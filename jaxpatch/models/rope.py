"""Rotary positions: how far each pair of a head's numbers turns from one token to the next, stretched where a context is long.

Su et al., arXiv 2104.09864.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Every pair turns slower, by one factor. Chen et al., arXiv 2306.15595."""

    factor: float

    def stretched(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        del theta
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

    def stretched(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        del theta
        turns = self.original * frequencies / (2 * np.pi)
        kept = np.clip((turns - self.slow) / (self.fast - self.slow), 0, 1)
        return (1 - kept) * frequencies / self.factor + kept * frequencies


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """As Llama3, but mixed by a pair's number instead of by its turns, and keys and queries grow by `scale`. arXiv 2309.00071.

    whole: the numbers between which pairs are mixed are whole ones.
    """

    factor: float
    slow: float
    fast: float
    original: int
    scale: float
    whole: bool = True

    def stretched(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        width = 2 * len(frequencies)
        first, last = (
            width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(theta))
            for turns in (self.fast, self.slow)
        )
        if self.whole:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        slowed = np.clip((np.arange(len(frequencies)) - first) / (last - first or 0.001), 0, 1)
        return (1 - slowed) * frequencies + slowed * frequencies / self.factor


@dataclass(frozen=True, kw_only=True)
class LongRope:
    """Each pair turns slower by a factor of its own: another one where the longest sequence is beyond the original context. Keys and
    queries grow by `scale`. arXiv 2402.13753."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original: int
    scale: float

    def stretched(self, frequencies: np.ndarray, theta: float) -> np.ndarray:
        """Two rows: of sequences within the original context, and of longer ones."""
        del theta
        return frequencies / np.array([self.short, self.long])


Stretch = Linear | Llama3 | Yarn | LongRope


@dataclass(frozen=True, kw_only=True)
class Rope:
    """theta: base of the frequencies. share: of a head's numbers that turn. stretch: what was done for a longer context.

    >>> Rope(theta=100.0).frequencies(4, 9).tolist(), Rope(theta=100.0, stretch=Linear(factor=2.0)).frequencies(4, 9).tolist()
    ([1.0, 0.1], [0.5, 0.05])
    """

    theta: float = 10_000.0
    share: float = 1.0
    stretch: Stretch | None = None

    @property
    def scale(self) -> float:
        """By which turned queries and keys are multiplied."""
        return getattr(self.stretch, "scale", 1.0)

    def turning(self, width: int) -> int:
        """How many of a head's numbers turn."""
        return int(width * self.share)

    def frequencies(self, width: int, longest: jax.Array | int) -> np.ndarray | jax.Array:
        """Radians a token of each pair of a head's numbers: float64 [r / 2]; where that depends on the length of a sequence, of each,
        [*lead, r / 2]. longest: tokens of it, [*lead]."""
        turning = self.turning(width)
        plain = self.theta ** (-np.arange(0, turning, 2) / turning)
        stretched = plain if self.stretch is None else self.stretch.stretched(plain, self.theta)
        if not isinstance(self.stretch, LongRope):
            return stretched
        short, long = stretched
        return jnp.where(jnp.asarray(longest)[..., None] > self.stretch.original, long, short)

    def faults(self, width: int) -> list[str]:
        """What is wrong with it for heads of this width, in words."""
        numbers = {"theta": self.theta, "share": self.share} | (vars(self.stretch) if self.stretch else {})
        found = [
            f"rope {name} must be positive and finite; got {value}"
            for name, value in numbers.items()
            if not isinstance(value, bool)
            and not all(0 < each < math.inf for each in (value if isinstance(value, tuple) else (value,)))
        ]
        turning = self.turning(width) if 0 < self.share < math.inf else 2
        if self.share == 1 and width % 2:
            found.append(f"head_width must be even; got {width}")
        elif turning % 2 or not 2 <= turning <= width:
            found.append(f"rope share must turn an even number of a head's {width} numbers; got {self.share}")
        if isinstance(self.stretch, Yarn) and self.theta <= 1:
            found.append(f"rope theta must be above 1 where it is stretched by yarn; got {self.theta}")
        if isinstance(self.stretch, Llama3 | Yarn) and self.stretch.slow >= self.stretch.fast:
            found.append(f"rope: slow = {self.stretch.slow} must be less than fast = {self.stretch.fast}")
        if isinstance(self.stretch, LongRope):
            found += [
                f"rope {name}: wanted {turning // 2} factors, got {len(factors)}"
                for name, factors in (("short", self.stretch.short), ("long", self.stretch.long))
                if len(factors) != turning // 2
            ]
        return found
