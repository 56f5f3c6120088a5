"""Numbers and their intervals as the page writes them."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

import jaxpatch as jp
from jaxpatch.reporting.wording import interval, percent
from jaxpatch.scoring import normalise


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def exactly(share: float, decimals: int = 1) -> str:
    """A share in per cent with so many decimals: where small differences count.

    >>> exactly(0.2249)
    '22.5 %'
    """
    return f"{100 * share:.{decimals}f} %".replace("-", "−")


def points(share: float) -> str:
    """A difference of shares, in points.

    >>> points(-0.012)
    '−1.2'
    """
    return f"{100 * share:.1f}".replace("-", "−")


def size(value: int | None) -> str:
    return "never" if value is None else f"{value:,}"


def share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def counted(count: int, total: int) -> tuple[float, float]:
    """Interval of a share that was counted (Wilson's).

    >>> [round(end, 2) for end in counted(5, 8)]
    [0.31, 0.86]
    """
    ends = stats.binomtest(int(count), int(total)).proportion_ci(method="wilson")
    return float(ends.low), float(ends.high)


def whole(found: jp.Scores, name: str) -> str:
    """What a whole kind recovers, and its interval."""
    return f"{percent(found.ceilings[name])} ({interval(*found.ceiling_ends(name))})"


def lower_half(found: jp.Scores, kind: str, blocks: int) -> tuple[float, float, float]:
    """Share of the positive scores of a kind that lies in the lower half of so many blocks, and its interval: of the same components'
    scores on prompts drawn again."""
    values = found.values[kind][: found.layer + 1].reshape(found.layer + 1, -1)
    effects = found.effects[kind][found.is_kept].astype(np.float32)
    effects = effects[:, : found.layer + 1].reshape(len(effects), *values.shape)
    drawn = normalise.drawn_weights(found.gap, found.is_kept, found.aggregate, 0)
    by_layer = np.clip(drawn @ (effects * (values > 0)).sum(axis=2), 0, None)
    own, half = np.clip(values, 0, None).sum(axis=1), blocks // 2
    shares = by_layer[:, :half].sum(1) / by_layer.sum(1)
    return float(own[:half].sum() / own.sum()), *map(float, np.percentile(shares, (2.5, 97.5)))


def with_ends(share: tuple[float, float, float]) -> str:
    return f"{percent(share[0])} ({interval(*share[1:])})"


def close(row: Mapping[str, float]) -> str:
    """An interval whose ends are near each other."""
    return f"{exactly(row['low'], 3)[:-2]} to {exactly(row['high'], 3)}"


def ends(row: Mapping[str, float]) -> str:
    return interval(row["low"], row["high"])
