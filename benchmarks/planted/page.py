"""docs/results/planted.md and its figure, out of the board's rows."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from benchmarks.planted import checks, promises
from benchmarks.planted.families import FAMILIES
from benchmarks.planted.records import Record
from jaxpatch import atomic
from jaxpatch.reporting import drawing

DRAWS = 2000
"""Of seeds, for an interval."""
PAIR = ["family", "seed"]
"""What tells pairs apart."""
OWN = "weight patching"
"""Which the others are held against."""


class Mean(NamedTuple):
    """Over families and their pairs, and its 95 % bootstrap interval over seeds."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"

    @property
    def difference(self) -> str:
        """In three digits; in bold where the interval leaves out 0."""
        words = f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"
        return f"**{words}**" if self.low > 0 or self.high < 0 else words


def mean(values: Sequence[float] | np.ndarray) -> Mean:
    """The mean of some pairs' values, a pair a seed.

    >>> str(mean([1.0, 1.0]))
    '1.00 (1.00 to 1.00)'
    """
    return over_families(pd.Series(values, pd.MultiIndex.from_product([[""], range(len(values))], names=PAIR)))


def over_families(values: pd.Series, seed: int = 0) -> Mean:
    """The mean over families of the mean over their pairs, so that a family of which few pairs were used counts as much as the others.

    Drawn again are seeds, for all families together: pairs of one seed share their base, and are no independent trials.

    Args:
        values: one a pair, indexed by `PAIR`. seed: of the draws.

    >>> pairs = pd.MultiIndex.from_tuples([("a", 0), ("b", 0), ("b", 1)], names=PAIR)
    >>> over_families(pd.Series([0.0, 1.0, 1.0], pairs)).value
    0.5
    """
    wide = values.unstack("seed")
    known, numbers, count = wide.notna().to_numpy(float), wide.fillna(0).to_numpy(), len(wide.columns)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), DRAWS)
    there = drawn @ known.T
    means = np.divide(drawn @ numbers.T, there, out=np.full(there.shape, np.nan), where=there > 0)
    low, high = np.percentile(np.nanmean(means, axis=1), (2.5, 97.5))
    return Mean(float((numbers.sum(1) / known.sum(1)).mean()), float(low), float(high))


class Example(NamedTuple):
    """Why a method fails in a family. beside: one that differs by what the reason speaks of. It is shown where the method does worse
    there than beside, by more than chance."""

    family: str
    method: str
    beside: str
    reason: str


EXAMPLES = (
    Example("written", "activation patching", "both", "Relays stand above sources: what they pass on is others' work."),
    Example("small among large", "change", "both", "The largest changes are idle."),
    Example(
        "keys and values", "attribution patching", "both", "Activations of keys and values pass on what others made."
    ),
    Example("both needed", OWN, "both", "Put into base alone, a source does little without the others."),
    Example("both needed", "local-linear", "both", "Put into base alone, a source does little without the others."),
    Example("either", "knockout", "neurons", "What is lost without a source, the other group makes up for."),
    Example(
        "large changes", "first order", "small changes", "The slope in base says little of a place as far away as this."
    ),
    Example("saturated", "first order", "written", "Where attention is fixed, its slope in base is next to nothing."),
)
SHOWN = {
    "auroc": "AUROC",
    "auroc_within": "AUROC within kinds",
    "average_precision": "average precision",
    "precision": "precision at the number of sources",
    "recall": "recall at twice as many",
    "first_miss": "rank of the first miss",
}
"""What a table of scores has of each row."""
FEWEST = 6
"""Pairs without which an interval says nothing: of five the chance that all differ in the same way is 1 in 16."""
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
        "Values in brackets are 95 % intervals, over seeds drawn again. A mean is over families, of the mean over each one's pairs. "
        "Intervals at the very end of a scale are too narrow, as the bootstrap's are, and so are those of few pairs: of one they have "
        "no width, and a family without a pair of the seeds that are drawn is left out of that draw.",
    ]
    for title, names in (("Where one component after the other is enough", singles), ("Where it is not", hard)):
        if len(some := frame[frame["family"].isin(names)]):
            parts += [
                f"## {title}",
                "By what they cost; in bold those whose average precision is above that of all that cost no more. Within kinds, a "
                "source is held against others of its own kind alone. Methods that look at weights or words alone are told where the "
                "state is: they rank what comes after it last. Changes, gradients, saliency and repaired attribution "
                "(which drops gradients) are magnitudes, which do not tell what gives from what takes away; saliency is that of the "
                "next token, as it was published, and all others that look at more than weights look at the state.",
                _scores(some),
            ]
            if names == singles:
                held = [record.held for record in records if record.held and record.family in names]
                parts += [_verdicts(some, held), _apart(some), _each_single(some)]
            else:
                parts += [_by_family(some), _recovered(some)]
    if singles or hard:
        parts += ["![Average precision of each method in each family](planted.svg)"]
    if len(some := frame[frame["family"].isin(quiet)]):
        parts += [
            "## Where there is nothing to find",
            _refused(records),
            "Asked for a ranking all the same, methods are scored against components drawn from all, and in *nothing learned* against "
            "those that were trained as sources are, but to do nothing: an AUROC of one half is to say nothing. Of so many intervals "
            "one in twenty leaves it out by chance. Whoever forces the library to score such a pair is told of sources, all the same: "
            "those that `jp.place` names stand below, since its criteria are shares of the largest score of each kind; and intervals "
            "of scores, which are shares of a gap that is none, hold less often than they should.",
            _chance(some),
        ]
    parts += promised([record.held for record in records if record.held])
    if rows := _examples(records):
        parts += [
            "## Why",
            f"Where a method does worse in a family than in another, by more than chance over {FEWEST} seeds or more: average "
            "precision in both, and what it says of the verified pair in which it does worst; sources in bold.",
            table(["family", "method", "average precision", "beside", "it says", "since"], rows),
        ]
    if rows := _worst(records):
        parts += [
            "Of every method that misses something, the same of the family in which it does worst:",
            table(["method", "worst in", "average precision", "it says", "what is planted there"], rows),
        ]
    return "\n\n".join(parts) + "\n"


_CHECKED = (
    f"A pair is used only where all of this holds. Special obeys (at least {checks.ALWAYS:.0%} of its answers), and so does "
    f"base with the sources' changes alone; base, and base with everything else, do not (at most {checks.NEVER:.0%}); all of "
    "them say what is right to prompts that do not ask; and where decoys learn a second behaviour, and are not tuned "
    "afterwards, special has it. Along the anchor special is ahead of base by more than that varies; the sources recover at "
    f"least {checks.CARRIED:.0%} of it, everything else at most {checks.LEFT:.0%}; where some of the sources are to be enough, "
    f"or not to be, these recover at least {checks.ENOUGH:.0%}, or at most {checks.LITTLE:.0%}. Where sources are not to be "
    f"enough one by one, without any of them at least {checks.NEEDED:.0%} of the state is lost. No decoy by itself moves the "
    f"state by more than {checks.HALFWAY:.0%} of the way, nor any of {checks.HALVES} random halves of them by more than "
    f"{checks.LITTLE:.0%}. Where others carry on what block 0 notes, that moves the last token's stream after block 0 by at "
    f"most {checks.EARLY:.0%} of what the state is moved by, so that the others are relays. Where attention is fixed in base, "
    f"{checks.SOME:.0%} of a head's change does at most {checks.FIXED:.0%} of what all of it does. (Pairs that are written by "
    "hand are what they are: of them is checked what is said, obeyed, recovered and fixed.)\n\n"
    "Where one component after the other is to be enough, each of n sources is trained to carry 1/n of the state by itself, and decoys "
    f"none of it in any combination; a pair is used where each source moves the state by at least {checks.ALONE}/n on the way that "
    "base's own state goes where prompts tell what to do. So weight patching must see something of the sources there; whether it tells "
    "them from everything else, and whether cheaper questions do, is what is measured."
)


def _precisions(records: Sequence[Record]) -> pd.Series:
    """Average precision in pairs with sources, indexed by method and `PAIR`."""
    rows = [row for record in records if not FAMILIES[record.family].is_quiet for row in record.rows]
    return pd.DataFrame(rows, columns=["method", *PAIR, "average_precision"]).set_index(["method", *PAIR])[
        "average_precision"
    ]


def _examples(records: Sequence[Record]) -> list[list[str]]:
    """Each of `EXAMPLES` that chance does not explain."""
    rows, reached = [], _precisions(records)
    for family, method, beside, reason in EXAMPLES:
        wide = reached.get(method, pd.Series(dtype=float))
        if not len(wide) or not {family, beside} <= set(wide.index.get_level_values("family")):
            continue
        here, there = wide.xs(family, level="family"), wide.xs(beside, level="family")
        lost = (there - here).dropna()
        if len(lost) >= FEWEST and mean(lost.to_numpy()).low > 0:
            rows.append(
                [
                    family,
                    method,
                    mean(here.to_numpy()),
                    f"{beside}: {mean(there.to_numpy())}",
                    _said(records, family, method),
                    reason,
                ]
            )
    return rows


def _worst(records: Sequence[Record]) -> list[list[str]]:
    """Of each method the family in which it finds least."""
    rows = []
    for method, own in _precisions(records).groupby(level="method", sort=False):
        means = own.groupby(level="family", sort=False).mean()
        if method == "random" or means.min() == 1:
            continue
        name = str(means.idxmin())
        here = own.xs(name, level="family").to_numpy()
        rows.append([method, name, mean(here), _said(records, name, str(method)), FAMILIES[name].says])
    return rows


def _said(records: Sequence[Record], family: str, method: str) -> str:
    """The first components that a method names of the pair of a family in which it does worst."""
    known = [
        (row["average_precision"], record.first.get(method, ""))
        for record in records
        if record.family == family
        for row in record.rows
        if row["method"] == method
    ]
    return min(known)[1]


def _measured_by(records: Sequence[Record]) -> str:
    """By which code."""
    commits = {
        commit
        for record in records
        for commit in (record.commit, *(row.get("commit") for row in record.rows))
        if commit
    }
    known = sorted({f"{commit[:7]}{'+' * commit.endswith('+')}" for commit in commits})
    recipes = sorted({record.recipe for record in records})
    changed = " (a + is for changes that were not committed)" if any(each.endswith("+") for each in known) else ""
    at = f" Measured at {', '.join(known)}{changed}." if known else ""
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


def _wide(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """One value, a row a pair, a column a method."""
    return frame.pivot_table(index=PAIR, columns="method", values=column, sort=False)


def _verdicts(frame: pd.DataFrame, held: Sequence[Mapping]) -> str:
    """Weight patching against what is asked of it, and what is first where it should not be."""
    lines, there = [], set(frame["method"])
    if OWN in there:
        for name, words, wanted in (("auroc", "AUROC", 0.95), ("precision", "precision", 0.9)):
            reached = over_families(_wide(frame, name)[OWN].dropna())
            verdict = "holds" if reached.value >= wanted else "**does not hold**"
            lines.append(f"* {words} of {OWN}, wanted at least {wanted}: {reached}; {verdict}.")
    misses = _wide(frame, "first_miss")
    for method in (OWN, "activation patching"):
        if method in there:
            lost = over_families((misses[method].dropna() == 1).astype(float))
            lines.append(
                f"* Share of the pairs in which {method} puts a component that is no source above every source: {lost}."
            )
    return "\n".join([*lines, *_passing_on(held)])


IDLE = 0.1
"""Share of the state below which a component's own weights do next to nothing."""


def _passing_on(held: Sequence[Mapping]) -> list[str]:
    """Of what activation patching takes for sources, how much its own weights matter. Written pairs have relays by construction, and
    are counted apart."""
    lines, relays, asked = [], 0, 0
    for words, is_written in (("In pairs that were trained", False), ("In those written by hand, with relays", True)):
        said = [
            each["passing on"]
            for each in held
            if each["passing on"] and FAMILIES[each["family"]].is_written == is_written
        ]
        above = [each for each in said if each["E_a"] > each["E_a of a source"]]
        if not said:
            continue
        relays += sum(each["E_w"] < IDLE for each in above)
        asked += len(said)
        line = f"* {words}, that is so in {len(above)} of {len(said)}"
        if above:
            middle = {name: float(np.median([each[name] for each in above])) for name in above[0]}
            own = [each["E_w"] for each in above]
            line += (
                f": in the median the component's activations recover {middle['E_a']:.2f} of the state, the best source's "
                f"{middle['E_a of a source']:.2f}. Its own weights recover {min(own):.2f} to {max(own):.2f}; less than {IDLE}, so that "
                f"it passes on what others made, in {sum(each < IDLE for each in own)} of these {len(own)}"
            )
        lines.append(f"{line}.")
    if asked:
        shown = "shown" if relays else "refuted"
        lines.append(
            f"* That activation patching ranks relays above all sources is {shown}, here: it does in {relays} of {asked} pairs in all."
        )
    return lines


def _apart(frame: pd.DataFrame) -> str:
    """Weight patching less each of the others, on the same pairs."""
    columns = ("auroc", "auroc_within", "average_precision", "precision")
    wide = {name: _wide(frame, name) for name in columns}
    if OWN not in wide["auroc"]:
        return ""
    rows = [
        [method, *(over_families((wide[name][OWN] - wide[name][method]).dropna()).difference for name in columns)]
        for method, _ in by_cost(frame)
        if method != OWN
    ]
    return f"What {OWN} is ahead by, on the same pairs; in bold where the interval leaves out 0:\n\n" + table(
        [f"{OWN} less", *(SHOWN[name] for name in columns)], rows
    )


def _recovered(frame: pd.DataFrame) -> str:
    """What each method finds beyond weight patching."""
    wide, names = _wide(frame, "average_precision"), list(dict.fromkeys(frame["family"]))
    if OWN not in wide:
        return ""
    rows = []
    for method, _ in by_cost(frame):
        if method == OWN:
            continue
        apart = (wide[method] - wide[OWN]).dropna()
        each = [apart[apart.index.get_level_values("family") == name] for name in names]
        rows.append(
            [
                method,
                over_families(apart).difference,
                *(over_families(own).difference if len(own) else "-" for own in each),
            ]
        )
    return (
        f"Average precision beyond that of {OWN}, on the same pairs; in bold where the interval leaves out 0:\n\n"
        + table([f"less {OWN}", "all", *names], rows)
    )


def _each_single(frame: pd.DataFrame) -> str:
    """A row a family."""
    shown = [
        (OWN, "auroc"),
        (OWN, "precision"),
        ("activation patching", "auroc"),
        ("activation patching", "precision"),
        ("change", "auroc"),
        ("relative change", "auroc"),
        ("forgetting", "auroc"),
    ]
    shown = [each for each in shown if each[0] in set(frame["method"])]
    rows = []
    for name, own in frame.groupby("family", sort=False):
        values = []
        for method, column in shown:
            values.append(_mean_or_dash(own[own["method"] == method][column].dropna()))
        passed = own[own["method"] == "activation patching"]["first_miss"]
        rows.append([name, own["seed"].nunique(), *values, f"{(passed == 1).sum()} of {len(passed)}"])
    heads = [f"{method}: {SHOWN['auroc'] if column == 'auroc' else column}" for method, column in shown]
    return table(["family", "pairs", *heads, "activation patching: no source first"], rows)


def _by_family(frame: pd.DataFrame) -> str:
    """Average precision, a column a family; and who tells those that take away from all others."""
    names = list(dict.fromkeys(frame["family"]))
    rows = [
        [method, *(_mean_or_dash(own[own["family"] == name]["average_precision"]) for name in names)]
        for method, own in by_cost(frame)
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


def _mean_or_dash(values: pd.Series) -> str:
    return str(mean(values.to_numpy())) if len(values) else "-"


def by_cost(frame: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each method's rows, those first that cost least, and of those that cost the same the best."""
    return sorted(
        frame.groupby("method", sort=False),
        key=lambda each: (float(each[1]["cost"].mean()), -float(each[1]["average_precision"].mean())),
    )


def _refused(records: Sequence[Record]) -> str:
    """What the library finds in pairs without a source, by its own rules, and whether its rate is shown to be within the level."""
    there, quiet = (
        [
            record.held["anchor"]["is_trusted"]
            for record in records
            if record.held and FAMILIES[record.family].is_quiet == is_quiet
        ]
        for is_quiet in (False, True)
    )
    if not quiet:
        return "What the library promises was not asked of these pairs."
    trusted, count = sum(quiet), len(quiet)
    most = stats.binomtest(trusted, count, alternative="less").proportion_ci(method="exact").high
    found = "so nothing is found" if not trusted else f"**so in {trusted} something is found**"
    if most <= promises.LEVEL:
        verdict = "holds"
    elif trusted / count > promises.LEVEL:
        verdict = "**does not hold**"
    else:
        verdict = "**not shown by so few**"
    return (
        f"`fit_anchor` trusts an anchor after the state's block in {trusted} of {count} such pairs, {found}: where there is no "
        f"anchor that is trusted nothing is scored, unless it is asked for all the same. Of pairs with sources it trusts {sum(there)} "
        f"of {len(there)}.\n\n"
        f"* False findings, wanted in at most {promises.LEVEL:.0%} of such pairs: {trusted / count:.1%}, and below {most:.1%} with 95 "
        f"% confidence (exact); {verdict}."
    )


def _chance(frame: pd.DataFrame) -> str:
    names = list(dict.fromkeys(frame["family"]))
    rows = [
        [method, *(_mean_or_dash(own[own["family"] == name]["auroc"]) for name in names)]
        for method, own in by_cost(frame)
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
    rates = {
        name: mean([float(np.mean(each["screen"]["missed"])) / each["screen"]["top"] for each in several])
        for name, several in by_family.items()
    }
    worst = max(rates, key=lambda name: rates[name].value)
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
        f"Over {len(missed):,} screens the miss rate is {_share(sum(missed), len(missed) * held[0]['screen']['top'], 2)}; in the worst "
        f"family, {worst}, it is {rates[worst].value:.2%} ({rates[worst].low:.2%} to {rates[worst].high:.2%}); promised is at most "
        f"{promises.ALPHA:.0%}: {'holds' if rates[worst].value <= promises.ALPHA else '**does not hold**'} in each. Of other kinds "
        "there are fewer than a sample, so that a screen replaces all.",
    ]


def _share(some: int, all_: int, digits: int = 0) -> str:
    """In per cent; nothing of nothing is a dash."""
    return f"{some / all_:.{digits}%}" if all_ else "-"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _scores(frame: pd.DataFrame) -> str:
    """A row a method: means over families of the mean over pairs. Those that cost least stand first, and in bold what nothing reaches
    that costs no more. Who was asked about some pairs alone stands behind, and is held against nobody."""
    rows, some, best = [], [], -np.inf
    for method, own in by_cost(frame):
        values = own.set_index(PAIR)
        reached = {name: over_families(values[name]) for name in SHOWN}
        row = [method, len(own), f"{own['cost'].mean():,.0f}", *map(str, reached.values())]
        if method not in complete(frame):
            some.append([f"{method}, of some pairs", *row[1:]])
            continue
        if reached["average_precision"].value > best:
            best, row[0] = reached["average_precision"].value, f"**{method}**"
        rows.append(row)
    return table(["method", "pairs", "forward-equivalents", *SHOWN.values()], [*rows, *some])


def complete(frame: pd.DataFrame) -> set[str]:
    """Methods of which every pair has a row."""
    counts = frame.groupby("method")["seed"].count()
    return set(counts.index[counts == len(frame[PAIR].drop_duplicates())])


@drawing.styled
def figure(frame: pd.DataFrame) -> Figure:
    """Average precision: a row a method, a column a family; and its mean against what a method costs."""
    frame = frame[frame["method"].isin(complete(frame))]
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
    below.xaxis.set_major_formatter("{x:g}")
    below.set_xlabel("forward-equivalents + 1")
    below.set_ylabel("average precision, mean over families")
    return made
