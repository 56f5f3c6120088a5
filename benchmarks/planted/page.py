"""docs/results/planted.md and its figure, out of the board's rows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.planted import checks, promises
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
    """The mean of some pairs' values.

    >>> str(mean([1.0, 1.0]))
    '1.00 (1.00 to 1.00)'
    """
    return mean_of_means([values], seed)


def mean_of_means(families: Sequence[Sequence[float] | np.ndarray], seed: int = 0) -> Mean:
    """The mean over families of the mean over their pairs, so that a family of which few pairs were used counts as much as the others.
    Drawn again are the pairs of each family.

    >>> mean_of_means([[0.0], [1.0, 1.0]]).value
    0.5
    """
    rng, means, drawn = np.random.default_rng(seed), [], []
    for values in families:
        known = np.asarray(values, float)
        means.append(known.mean())
        drawn.append(known[rng.integers(0, len(known), (DRAWS, len(known)))].mean(axis=1))
    low, high = np.percentile(np.mean(drawn, axis=0), (2.5, 97.5))
    return Mean(float(np.mean(means)), float(low), float(high))


def over_families(values: pd.Series) -> Mean:
    """Of one value a pair, indexed by family and seed."""
    return mean_of_means([own.to_numpy() for _, own in values.groupby(level="family", sort=False)])


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
SHOWN = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "precision": "precision at the number of sources",
    "recall": "recall at twice as many",
    "first_miss": "rank of the first miss",
}
"""What a table of scores has of each row."""
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
        "the command makes the pairs, too. " + _measured_by(records),
        "## Families",
        _families(records),
        _CHECKED,
        "Values in brackets are 95 % intervals, over pairs drawn again. A mean is over families, of the mean over each one's pairs.",
    ]
    for title, names in (("Where one component after the other is enough", singles), ("Where it is not", hard)):
        if len(some := frame[frame["family"].isin(names)]):
            parts += [
                f"## {title}",
                "By what they cost; in bold those that do better than all that cost less.",
                _scores(some),
            ]
            if names == singles:
                held = [record.held for record in records if record.held and record.family in names]
                parts += [_verdicts(some, held), _each_single(some)]
            else:
                parts += [_by_family(some)]
    if singles or hard:
        parts += ["![Average precision of each method in each family](planted.svg)"]
    if len(some := frame[frame["family"].isin(quiet)]):
        parts += [
            "## Where there is nothing to find",
            _refused([record.held for record in records if record.held and record.family in quiet]),
            "Asked for a ranking all the same, methods are scored against components drawn from all: an AUROC of one half is to say "
            "nothing. Whoever forces the library to score such a pair is told of sources, all the same: those that `jp.place` names "
            "stand below, since its criteria are shares of the largest score there is.",
            _chance(some),
        ]
    parts += promised([record.held for record in records if record.held])
    if rows := _examples(records):
        parts += [
            "## Why",
            "Of each the verified pair in which the method does worst; sources in bold.",
            table(["family", "method", "it says", "since"], rows),
        ]
    return "\n\n".join(parts) + "\n"


_CHECKED = (
    f"A pair is used only where all of this holds. Special obeys (at least {checks.ALWAYS:.0%} of its answers), and so does base with "
    f"the sources' changes alone; base, and base with everything else, do not (at most {checks.NEVER:.0%}); all of them say what is "
    "right to prompts that do not ask. Along the anchor special is ahead of base by more than that varies; the sources recover at "
    f"least {checks.CARRIED:.0%} of it, everything else at most {checks.LEFT:.0%}. Without any one source at least {checks.NEEDED:.0%} "
    "of the obedience is lost. And where one component after the other is to be enough, that is what is checked: each of n sources by "
    f"itself moves the state by at least {checks.ALONE}/n on the way that base's own state goes where prompts tell what to do. So "
    "weight patching must see the sources there; whether it tells them from everything else, and whether cheaper questions do, is what "
    "is measured."
)


def _examples(records: Sequence[Record]) -> list[list[str]]:
    """Each of `EXAMPLES` where its method misses something, on the pair where it does worst."""
    rows = []
    for family, method, reason in EXAMPLES:
        reached = [
            (row["average_precision"], record.first[method])
            for record in records
            if record.family == family and method in record.first
            for row in record.rows
            if row["method"] == method
        ]
        if reached and min(reached)[0] < 1:
            rows.append([family, method, min(reached)[1], reason])
    return rows


def _measured_by(records: Sequence[Record]) -> str:
    """By which code."""
    known = sorted({record.commit[:7] for record in records if record.commit is not None})
    recipes = sorted({record.recipe for record in records})
    at = f" Measured at {', '.join(known)}." if known else ""
    return f"Pairs are planted by recipe {', '.join(map(str, recipes))}.{at}"


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


def _verdicts(frame: pd.DataFrame, held: Sequence[Mapping]) -> str:
    """Weight patching against what is asked of it, and what it has to beat, on the same pairs."""
    wide = frame.pivot_table(index=["family", "seed"], columns="method", values=["auroc", "precision", "first_miss"])
    lines, own, there = [], "weight patching", set(frame["method"])
    if own in there:
        for name, words, wanted in (("auroc", "AUROC", 0.95), ("precision", "precision", 0.9)):
            reached = over_families(wide[name][own].dropna())
            verdict = "holds" if reached.value >= wanted else "**does not hold**"
            lines.append(f"* {words} of {own}, wanted at least {wanted}: {reached}; {verdict}.")
    for method in ("change", "relative change", "activation patching"):
        if {own, method} <= there:
            apart = [over_families((wide[name][own] - wide[name][method]).dropna()) for name in ("auroc", "precision")]
            lines.append(
                f"* {own.capitalize()} less {method}, on the same pairs: AUROC {apart[0]}, precision {apart[1]}."
            )
    for method in (own, "activation patching"):
        if method in there:
            lost = over_families((wide["first_miss"][method].dropna() == 1).astype(float))
            lines.append(
                f"* Share of the pairs in which {method} puts a component that is no source above every source: {lost}."
            )
    return "\n".join([*lines, *_passing_on(held)])


def _passing_on(held: Sequence[Mapping]) -> list[str]:
    """Of what activation patching takes for sources, how much its own weights matter."""
    said = [each["passing on"] for each in held if each["passing on"] is not None]
    above = [each for each in said if each["E_a"] > each["E_a of a source"]]
    if not above:
        return []
    median = {name: float(np.median([each[name] for each in above])) for name in above[0]}
    return [
        f"* These components pass on what others made: in the {len(above)} of {len(said)} pairs where there is one, their activations "
        "recover "
        f"{median['E_a']:.2f} of the state in the median, the best source's {median['E_a of a source']:.2f}, and their own weights "
        f"{median['E_w']:.2f}."
    ]


def _each_single(frame: pd.DataFrame) -> str:
    """A row a family."""
    shown = [
        ("weight patching", "auroc"),
        ("weight patching", "precision"),
        ("activation patching", "auroc"),
        ("activation patching", "precision"),
        ("change", "auroc"),
        ("relative change", "auroc"),
    ]
    shown = [each for each in shown if each[0] in set(frame["method"])]
    rows = []
    for name, own in frame.groupby("family", sort=False):
        values = []
        for method, column in shown:
            known = own[own["method"] == method][column].dropna().to_numpy()
            values.append(str(mean(known)) if len(known) else "-")
        passed = own[own["method"] == "activation patching"]["first_miss"]
        rows.append([name, own["seed"].nunique(), *values, f"{(passed == 1).sum()} of {len(passed)}"])
    heads = [f"{method}: {SHOWN['auroc'] if column == 'auroc' else column}" for method, column in shown]
    return table(["family", "pairs", *heads, "activation patching: no source first"], rows)


def _by_family(frame: pd.DataFrame) -> str:
    """Average precision, a column a family; and who tells those that take away from all others."""
    names = list(dict.fromkeys(frame["family"]))
    rows = [
        [method, *(str(mean(own[own["family"] == name]["average_precision"].to_numpy())) for name in names)]
        for method, own in by_cost(frame)
        if set(names) <= set(own["family"])
    ]
    parts = ["Average precision in each:", table(["method", *names], rows)]
    taking = frame[frame["auroc_taking"].notna()] if "auroc_taking" in frame else frame[:0]
    if len(taking):
        rows = [[method, str(mean(own["auroc_taking"].to_numpy()))] for method, own in by_cost(taking)]
        parts += [
            "Components that take the behaviour away should have the lowest values of all: the chance that one is below any other "
            "component, ties halved.",
            table(["method", "AUROC"], rows),
        ]
    return "\n\n".join(parts)


def by_cost(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each method's rows, those first that cost least."""
    return sorted(frame.groupby("method", sort=False), key=lambda each: float(each[1]["cost"].mean()))


def _refused(held: Sequence[Mapping]) -> str:
    """What the library finds in pairs without a source, by its own rules."""
    trusted = sum(each["anchor"]["is_trusted"] for each in held)
    return (
        f"`fit_anchor` trusts an anchor in {trusted} of {len(held)} such pairs; where it trusts none, `jaxpatch run` scores nothing "
        "and says why, so nothing is found."
    )


def _chance(frame: pd.DataFrame) -> str:
    names = list(dict.fromkeys(frame["family"]))
    rows = [
        [method, *(str(mean(own[own["family"] == name]["auroc"].to_numpy())) for name in names)]
        for method, own in by_cost(frame)
        if set(names) <= set(own["family"])
    ]
    return table(["method", *names], rows)


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
    """A row a method: means over families of the mean over pairs. Those that cost least stand first, and in bold what no cheaper one
    reaches."""
    rows, best = [], -np.inf
    for method, own in by_cost(frame):
        values = own.set_index(["family", "seed"])
        reached = {name: over_families(values[name]) for name in SHOWN}
        is_best = reached["average_precision"].value > best
        best = max(best, reached["average_precision"].value)
        shown = f"**{method}**" if is_best else method
        rows.append([shown, len(own), f"{own['cost'].mean():,.0f}", *map(str, reached.values())])
    return table(["method", "pairs", "forward-equivalents", *SHOWN.values()], rows)


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
