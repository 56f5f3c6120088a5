"""The smallest beginning of a ranking that recovers so much of the gap, found by halving between sizes that were tried. Ours."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

SHARES = (0.5, 0.8, 0.95)


class Recovered(NamedTuple):
    """E_w of a set, share of the gap, and its 95 % bootstrap interval over inputs."""

    value: float
    low: float
    high: float


class Smallest(NamedTuple):
    """How far down a ranking one must go.

    share: of the gap that was asked for. size: the first so many components recover it, and one fewer do not; None where no size that
    was tried recovers it. counts: how many of each kind these are. recovered: what they recover; None where size is.
    """

    share: float
    size: int | None
    counts: Mapping[str, int]
    recovered: Recovered | None


def search(
    recover: Callable[[int], Recovered],
    tried: Mapping[int, Recovered],
    shares: Sequence[float],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[tuple[int, Recovered] | None]:
    """For each share the size k at which the ranking passes it: k recovers it, k - 1 does not.

    Recovery may fall as k grows (components may work against the state). Then there are several such sizes, and this is one between the
    first tried one that recovers the share and the one tried before it.

    Args: recover: k -> what the first k recover. tried: sizes that are known already.

    Example:
        >>> def line(k):
        ...     return Recovered(k / 100, 0.0, 1.0)
        >>> [found and found[0] for found in search(line, {k: line(k) for k in (1, 10, 90)}, (0.5, 0.9, 0.95))]
        [50, 90, None]
    """
    known, found, done = {0: Recovered(0.0, 0.0, 0.0), **tried}, [], 0
    brackets = [_bracket(known, share) for share in shares]
    total = sum(math.ceil(math.log2(bracket[1] - bracket[0])) for bracket in brackets if bracket)
    for share in shares:
        while (bracket := _bracket(known, share)) and bracket[1] - bracket[0] > 1:
            middle = sum(bracket) // 2
            known[middle] = recover(middle)
            done += 1
            progress(min(done, total), total)
        found.append(bracket and (bracket[1], known[bracket[1]]))
    progress(total, total)
    return found


def _bracket(known: Mapping[int, Recovered], share: float) -> tuple[int, int] | None:
    """The first known size that recovers the share, and the known one before it; None where none does."""
    sizes = sorted(known)
    enough = [n for n, k in enumerate(sizes) if n and known[k].value >= share]
    return (sizes[enough[0] - 1], sizes[enough[0]]) if enough else None
