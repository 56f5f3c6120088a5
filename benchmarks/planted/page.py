"""docs/results/planted.md and its figure, out of the board's rows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.planted import promises
from benchmarks.planted.families import FAMILIES
from benchmarks.planted.records import Record
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


class Example(NamedTuple):
    """Why a method fails in a family: a sentence, to stand beside what it says of one pair."""

    family: str
    method: str
    reason: str


EXAMPLES = (
    Example(
        "written",
        "activation patching",
        "What passes a relay is all of the state, so the relay is above each of the sources.",
    ),
    Example("written", "change", "Everything changes, and how much it does says nothing of what for."),
    Example(
        "both needed",
        "weight patching",
        "Put into base alone, a source does little without the others, and what is no source comes near.",
    ),
    Example("both needed", "knockout", "What is lost without it: the right question where all are needed."),
    Example("either", "knockout", "What is lost without a source is little, where the other group makes up for it."),
    Example("cancelling", "weight patching", "What only undoes others has nothing to undo in base."),
    Example("large changes", "first order", "The slope in base says little of a place as far away as this."),
    Example(
        "saturated",
        "first order",
        "Where attention is fixed, its slope is next to nothing, whatever a whole change does.",
    ),
    Example("keys and values", "attribution patching", "Activations of keys and values pass on what others made, too."),
)
FIRST = 4
"""Of an example's ranking, so many are shown."""


def write(docs: Path, command: str, records: Sequence[Record]) -> None:
    """The page and its figure. command: what makes it."""
    frame = pd.DataFrame([row for record in records for row in record.rows])
    if len(some := frame[~frame["family"].isin(groups(records)[2])]):
        drawn = drawing.svg(figure(some), "planted")
        atomic.text(docs / "planted.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}', overwrite=True)
    atomic.text(docs / "planted.md", page(frame, command, records), overwrite=True)


def page(frame: pd.DataFrame, command: str, records: Sequence[Record]) -> str:
    """The whole page. frame: the board's rows."""
    singles, hard, quiet = groups(records)
    parts = [
        "# Planted truth",
        "Pairs of small models whose sources are known, among decoys that change as much; and what finds them.",
        f"```\n{command}\n```",
        "What was measured of each pair is in [planted.jsonl](planted.jsonl), of which this page is made; with folders that are empty "
        "the command makes the pairs, too.",
        "## Families",
        _families(records),
        "A pair is used only where special obeys and base does not, the sources alone make base obey, everything else does not, and "
        "the state goes with the answers. Values in brackets are 95 % intervals, over seeds drawn again.",
    ]
    for title, names in (("Where one component after the other is enough", singles), ("Where it is not", hard)):
        if len(some := frame[frame["family"].isin(names)]):
            parts += [f"## {title}", _scores(some)]
            parts += [_verdicts(some)] if names == singles else [_by_family(some)]
    if singles or hard:
        parts += ["![Average precision of each method in each family](planted.svg)"]
    if len(some := frame[frame["family"].isin(quiet)]):
        parts += [
            "## Where there is nothing to find",
            _refused([record.held for record in records if record.held and record.family in quiet]),
            "Asked for a ranking all the same, methods are scored against components drawn as sources would have been: an AUROC of "
            "one half is to say nothing.",
            _chance(some),
        ]
    parts += promised([record.held for record in records if record.held])
    firsts = {(each.family, method): words for each in reversed(records) for method, words in each.first.items()}
    if firsts:
        rows = [
            [each.family, each.method, firsts[each.family, each.method], each.reason]
            for each in EXAMPLES
            if (each.family, each.method) in firsts
        ]
        parts += [
            "## Why",
            "The first verified pair of each; sources in bold.",
            table(["family", "method", "it says", "since"], rows),
        ]
    return "\n\n".join(parts) + "\n"


def _families(records: Sequence[Record]) -> str:
    """A row a family: how many of its pairs were used, and what the others failed by."""
    rows = []
    for name in dict.fromkeys(record.family for record in records):
        own = [record for record in records if record.family == name]
        failed = Counter(_check(words) for record in own for words in record.failed)
        why = "; ".join(f"{words} ({count})" for words, count in failed.most_common(2))
        rows.append([name, FAMILIES[name].says, f"{sum(not each.failed for each in own)} of {len(own)}", why])
    return table(["family", "what is planted", "verified, of those made", "failed most often"], rows)


def _check(words: str) -> str:
    """A check that failed, without its numbers and places.

    >>> _check("head 1.2 alone: obeys 0.75 (at least 0.9)"), _check("sources: share of the state 0.70 (at least 0.75)")
    ('head alone: obeys', 'sources: share of the state')
    """
    return " ".join(word for word in words.split(" (")[0].split() if not word.replace(".", "").lstrip("-").isdigit())


def first(values: Mapping[str, Sequence], marked: Mapping[str, np.ndarray]) -> str:
    """The first components of a ranking, and the best of the sources where it is not among them.

    >>> first({"head": [[0.5, None], [0.25, 0.0]]}, {"head": np.array([[False, True], [True, False]])})
    'head 0.0 0.50, **head 1.0 0.25**, head 1.1 0.00, **head 0.1 nan**'
    """
    all_ = [
        (float("nan") if value is None else value, f"{kind} {block}.{number}", bool(marked[kind][block, number]))
        for kind, rows in values.items()
        for block, row in enumerate(rows)
        for number, value in enumerate(row)
    ]
    ranked = sorted(all_, key=lambda each: -np.nan_to_num(each[0], nan=-np.inf))
    shown = ranked[:FIRST]
    if not any(is_source for *_, is_source in shown):
        shown += [each for each in ranked if each[2]][:1]
    return ", ".join(
        f"**{name} {value:.2f}**" if is_source else f"{name} {value:.2f}" for value, name, is_source in shown
    )


def groups(records: Iterable[Record]) -> tuple[list[str], list[str], list[str]]:
    """Families in which single patches are defined to find the sources; others; and those without a source."""
    known = {record.family: FAMILIES[record.family] for record in records}
    quiet = [name for name, family in known.items() if family.is_quiet]
    singles = [name for name, family in known.items() if family.is_single and not family.is_quiet]
    return singles, [name for name, family in known.items() if not family.is_single], quiet


def _verdicts(frame: pd.DataFrame) -> str:
    """Weight patching against what it has to beat, on the same pairs."""
    wide = frame.pivot_table(index=["family", "seed"], columns="method", values=["auroc", "precision", "first_miss"])
    lines = []
    own = "weight patching"
    for method in ("change", "activation patching"):
        if {own, method} <= set(wide["precision"].columns):
            apart = [
                mean((wide[name][own] - wide[name][method]).groupby("seed").mean().to_numpy())
                for name in ("auroc", "precision")
            ]
            lines.append(
                f"* {own.capitalize()} less {method}, on the same pairs: AUROC {apart[0]}, precision {apart[1]}."
            )
    for method in (own, "activation patching"):
        if method in wide["first_miss"].columns:
            lost = (wide["first_miss"][method] < 2).groupby("seed").mean()
            lines.append(
                f"* Share of the pairs in which {method} puts another component above every source: {mean(lost.to_numpy())}."
            )
    return "\n".join(lines)


def _by_family(frame: pd.DataFrame) -> str:
    """Average precision, a column a family."""
    names = list(dict.fromkeys(frame["family"]))
    rows = [
        [method, *(str(mean(own[own["family"] == name]["average_precision"].to_numpy())) for name in names)]
        for method, own in frame.groupby("method", sort=False)
    ]
    return "Average precision in each:\n\n" + table(["method", *names], rows)


def _refused(held: Sequence[Mapping]) -> str:
    """What the library finds in pairs without a source, by its own rules."""
    trusted = sum(each["anchor"]["is_trusted"] for each in held)
    return (
        f"`fit_anchor` trusts an anchor in {trusted} of {len(held)} such pairs; where it trusts none, `jaxpatch run` scores nothing "
        "and says why, so nothing is found."
    )


def _chance(frame: pd.DataFrame) -> str:
    rows = [
        [method, str(mean(own.groupby("seed")["auroc"].mean().to_numpy()))]
        for method, own in frame.groupby("method", sort=False)
    ]
    return table(["method", "AUROC"], rows)


def promised(held: Sequence[Mapping]) -> list[str]:
    """What the library promises beside a ranking, family by family."""
    if not held:
        return []
    rows, by_family = [], {}
    for each in held:
        by_family.setdefault(each["family"], []).append(each)

    def added(several: Sequence[Mapping], part: str, name: str) -> int:
        return sum(each[part][name] for each in several)

    for name, several in by_family.items():
        trials = [number for each in several for number in each["screen"]["missed"]]
        replaced = [number / each["screen"]["all"] for each in several for number in each["screen"]["replaced"]]
        trusted = sum(each["anchor"]["is_trusted"] for each in several)
        routes = [each["routes"] for each in several if "routes" in each]
        found = sum(each["both"] for each in routes)
        rows.append(
            [
                name,
                _share(added(several, "intervals", "held"), added(several, "intervals", "all")),
                _share(added(several, "findings", "called"), added(several, "findings", "sources")),
                f"{added(several, 'findings', 'others') / len(several):.1f}",
                f"{len(trials)}: {_share(sum(trials), len(trials) * several[0]['screen']['top'], 2)} of {np.mean(replaced):.0%}",
                f"{trusted} of {len(several)}",
                f"{_share(found, sum(e['traced'] for e in routes))}, {_share(found, sum(e['wanted'] for e in routes))}"
                if routes
                else "",
            ]
        )
    missed = [number for each in held for number in each["screen"]["missed"]]
    head = [
        "family",
        "intervals that hold",
        "sources called so",
        "others, a pair",
        "screens: missed, of replaced",
        "anchor trusted",
    ]
    return [
        "## What is promised beside a ranking",
        "Intervals of exact scores of 16 prompts, held against 512 others. Sources by the library's own criteria (`jp.place`): how "
        "many are called sources, and how many other components are, for each pair. Screens of the 10 best neurons at level "
        f"{promises.ALPHA}: how many of these they missed, and what share of all they replaced. Whether `fit_anchor` trusts an anchor "
        "for the behaviour. Of the traced graph, where routes are known: how many edges are true, and how many true ones are there.",
        table([*head, "edges: precision, recall"], rows),
        f"Over {len(missed):,} screens the miss rate is {_share(sum(missed), len(missed) * held[0]['screen']['top'], 2)}; promised is "
        f"{promises.ALPHA:.0%}.",
    ]


def _share(some: int, all_: int, digits: int = 0) -> str:
    """In per cent; nothing of nothing is a dash."""
    return f"{some / all_:.{digits}%}" if all_ else "-"


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
    """Average precision: a row a method, a column a family; and its mean against what a method costs."""
    means = frame.pivot_table(index="method", columns="family", values="average_precision", sort=False)
    made = drawing.sheet(0.32 * len(means) + 5.2)
    above, below = made.subplots(2, 1, height_ratios=(0.32 * len(means) + 1.6, 3.2))
    above.imshow(means.to_numpy(), vmin=0, vmax=1, cmap="Greens", aspect="auto")
    above.set_xticks(range(len(means.columns)), means.columns, rotation=40, ha="right")
    above.set_yticks(range(len(means)), means.index)
    for (row, column), value in np.ndenumerate(means.to_numpy()):
        colour = "white" if value > 0.6 else "black"
        above.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7)
    costs, reached = frame.groupby("method", sort=False)["cost"].mean(), means.mean(axis=1)
    below.scatter(costs[reached.index] + 1, reached, s=14)
    for method in reached.index:
        below.annotate(
            method, (costs[method] + 1, reached[method]), xytext=(3, 2), textcoords="offset points", fontsize=7
        )
    below.set_xscale("log")
    below.set_xlabel("forward-equivalents + 1")
    below.set_ylabel("average precision, mean over families")
    return made
