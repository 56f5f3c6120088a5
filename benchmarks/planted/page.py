"""docs/results/planted.md and its figure, out of the board's rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.planted.families import FAMILIES
from jaxpatch import atomic
from jaxpatch.reporting import drawing

DRAWS = 2000
"""Of seeds, for an interval."""


class Mean(NamedTuple):
    """Over seeds, and its 95 % bootstrap interval over them."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def mean(values: Sequence[float] | np.ndarray, seed: int = 0) -> Mean:
    """The mean of some seeds' values.

    >>> str(mean([1.0, 1.0]))
    '1.00 (1.00 to 1.00)'
    """
    known = np.asarray(values, float)
    drawn = np.random.default_rng(seed).integers(0, len(known), (DRAWS, len(known)))
    low, high = np.percentile(known[drawn].mean(axis=1), (2.5, 97.5))
    return Mean(float(known.mean()), float(low), float(high))


def write(docs: Path, command: str, rows: Sequence[Mapping], used: Mapping[str, tuple[int, int]]) -> None:
    """The page and its figure. command: that made it. used: family -> how many of its pairs were verified, and made."""
    frame = pd.DataFrame(rows)
    drawn = drawing.svg(figure(frame), "planted")
    atomic.text(docs / "planted.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}', overwrite=True)
    atomic.text(docs / "planted.md", page(frame, command, used), overwrite=True)


def page(frame: pd.DataFrame, command: str, used: Mapping[str, tuple[int, int]]) -> str:
    """The whole page."""
    singles = [name for name, family in FAMILIES.items() if family.is_single and not family.is_quiet and name in used]
    hard = [name for name, family in FAMILIES.items() if not family.is_single and name in used]
    parts = [
        "# Planted truth",
        f"```\n{command}\n```",
        "## Families",
        table(
            ["family", "what is planted", "verified, of those made"],
            [[name, FAMILIES[name].says, f"{good} of {all_}"] for name, (good, all_) in used.items()],
        ),
    ]
    for title, names in (("Where one component after the other is enough", singles), ("Where it is not", hard)):
        if len(some := frame[frame["family"].isin(names)]):
            parts += [f"## {title}", _scores(some)]
    parts += [
        "![Average precision of each method in each family](planted.svg)",
    ]
    return "\n\n".join(parts) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _scores(frame: pd.DataFrame) -> str:
    """A row a method: means over seeds of the mean over families."""
    rows = []
    for method, own in frame.groupby("method", sort=False):
        by_seed = own.groupby("seed")[["auroc", "average_precision", "precision", "first_miss"]].mean()
        rows.append([method, f"{own['cost'].mean():,.0f}", *(str(mean(by_seed[name])) for name in by_seed)])
    head = ["method", "forward-equivalents", "AUROC", "average precision", "precision at the number of sources"]
    return table([*head, "rank of the first miss"], rows)


@drawing.styled
def figure(frame: pd.DataFrame) -> Figure:
    """Average precision: a row a method, a column a family."""
    means = frame.pivot_table(index="method", columns="family", values="average_precision", sort=False)
    made = drawing.sheet(0.32 * len(means) + 1.8)
    axes = made.subplots()
    axes.imshow(means.to_numpy(), vmin=0, vmax=1, cmap="Greens", aspect="auto")
    axes.set_xticks(range(len(means.columns)), means.columns, rotation=40, ha="right")
    axes.set_yticks(range(len(means)), means.index)
    for (row, column), value in np.ndenumerate(means.to_numpy()):
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black", fontsize=7
        )
    return made
