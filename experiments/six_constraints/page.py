"""docs/results/six_constraints.md and its figure, out of the files that `run.py` left: every number of it comes from one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cells
import findings
import numpy as np
import pandas as pd
import picture
import result
from result import Refused, Result

import jaxpatch as jp
from jaxpatch import atomic
from jaxpatch.measuring.prompt_sets import NUM_LAYER
from jaxpatch.reporting import drawing
from jaxpatch.reporting.wording import FEWEST_TO_HALVE, correlation, counted, interval, listed, number, percent, plural
from jaxpatch.scoring import normalise
from jaxpatch.tracing import roles
from jaxpatch.validating.curves import Curve

TABLES = ("curves", "smallest", "behaviour", "answers", "flow")
PARTS = ("refused", "fresh", "switches", "together")
"""Files of a task's results that stand beside the page: all but the scores, which are megabytes."""
FIRST = {"head": 10, "neuron": 100}
"""Of each kind, compared across tasks."""
LOOKED = (0.2, 0.8)
"""Recovery between which a ranking is compared with its controls."""
EXPECTED = {
    "no_comma": "no_comma fails at mid-depth",
    "title": "title is nearly a control (special hardly obeys it more often than base)",
    "multiple_sections": "multiple_sections is nearly one, too",
}
"""Of the anchors, before anything was scored."""
READ_BY_HEADS = {"query": "queries", "key": "keys", "value": "values"}
STANDS = ("clearly ahead of", "ahead, not clearly, of", "level with", "not ahead of", "clearly behind")
"""Where a ranking may stand beside a control."""
ALIKE = 0.95
"""Spearman of two rankings that are nearly one."""
UNSTEADY = 1.5
"""Standard deviations of the gap over prompts: where its mean is less, shares of it are of little use one by one."""
NUM_NAMED = 3
NUM_PAIRS = 5


def write(results: Path, docs: Path, names: Sequence[str], command: str, remark: str = "") -> None:
    """The page and its figure.

    Args: results: where `run.py` left its files. names: of the tasks, in the order of the page. command: that made all this. remark: on
        how it was run.
    """
    found = [each for each in (result.read(results, name) for name in names) if each is not None]
    scored = [each for each in found if isinstance(each, Result)]
    text = page(found, command, [name for name in names if name not in {each.task for each in found}], remark)
    if scored:
        drawn = drawing.svg(picture.figure(scored), "six")
        atomic.text(docs / "six_constraints.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}', overwrite=True)
    for each in found:
        _beside(results, docs / "six_constraints", each)
    atomic.text(docs / "six_constraints.md", text, overwrite=True)


def _beside(results: Path, folder: Path, each: Result | Refused) -> None:
    """The small tables that the page is of, so that it can be checked without running anything."""
    tables = [results / each.task / f"{table}.csv" for table in TABLES]
    for file in (*tables, *(results / f"{each.task}.{part}.json" for part in PARTS)):
        if file.is_file():
            kept = folder / (f"{each.task}.{file.name}" if file.parent != results else file.name)
            atomic.text(kept, file.read_text(encoding="utf-8"), overwrite=True)


def page(found: Sequence[Result | Refused], command: str, missing: Sequence[str] = (), remark: str = "") -> str:
    """The whole page. missing: tasks that were asked for and have no results yet."""
    scored = [each for each in found if isinstance(each, Result)]
    parts = [
        "# Six constraints, the whole chain",
        f"```\n{command}\n```",
        _made(found, scored),
        *([remark] if remark else []),
        *([f"Not run to the end yet: {listed(list(missing))}."] if missing else []),
        "## Which anchors hold",
        _anchors(found),
    ]
    if scored:
        parts += [
            "![For each task: E_w of neurons and E_a of heads by block; restoration against its controls](six_constraints.svg)",
            "## In plain words",
            "\n".join(f"* {_plain(each)}" for each in scored),
            "## What the paper finds, and what is found here",
            findings.of_tasks(scored),
            "## Sources and relays",
            _sources(scored),
            "## Restoration and knockout, against controls of equal size",
            _restoration(scored),
            "## The same on prompts that no score saw",
            _fresh(scored),
            "## Would other prompts rank alike?",
            _halves(scored),
            "## Inner recovery and behaviour",
            _behaviour(scored),
            "## Who supplies whom",
            _supply(scored),
            "## Do the tasks share their components?",
            _overlaps(scored),
        ]
        parts += ["## Every choice, turned by itself", _switches(scored)] if any(r.switches for r in scored) else []
        parts += ["## What ranking one by one loses", _together(scored)] if any(r.together for r in scored) else []
    return "\n\n".join(parts) + "\n"


def _limited(asked: Mapping[str, Any]) -> str:
    """What a run replaces at most."""
    if asked["limit"] is None:
        return ""
    return (
        f", of which no more than {asked['limit']} are replaced beside the first sample and the cheap score's first (how many "
        "contenders that leaves stands with the sources)"
    )


def _made(found: Sequence[Result | Refused], scored: Sequence[Result]) -> str:
    """By what, on what, and how long it took."""
    lines = []
    if scored:
        first = scored[0].manifest
        versions, source = (
            first["versions"],
            _commits(scored),
        )
        asked = first["options"]
        lines.append(
            "Base: SmolLM2-135M-Instruct (Q4_1, dequantised). Special: the adapter of `experiments/six_constraints`. "
            f"{asked['num_scoring']} scoring prompts, {asked['num_behaviour']} answered ones, screened for the top {asked['top']} of "
            "each kind" + _limited(asked) + ", seed "
            f"{asked['seed']}, {first['dtype']}; {first['machine']['processors']} {first['machine']['backend'].upper()} cores, Python "
            f"{versions['python']}, jax {versions['jax']}, commit {listed(sorted(source))}. Intervals are 95 % bootstrap intervals "
            "over prompts."
        )
    rows = []
    for each in found:
        if isinstance(each, Refused):
            rows.append([each.task, "refused", f"{each.seconds / 60:.1f}", f"{each.seconds / 60:.1f}", *["-"] * 5])
            continue
        seconds = each.manifest["seconds"]
        scoring = [value for name, value in seconds.items() if name.startswith("score")]
        parts = [seconds["find the anchor"], *scoring, seconds["trace"], seconds["validate"], seconds["write answers"]]
        rows.append(
            [each.task, "forced" if each.forced else "scored", *(f"{x / 60:.1f}" for x in (seconds["all"], *parts))]
        )
    extra = sum(part["seconds"] for r in scored for part in (r.fresh, r.switches, r.together) if part)
    total = (
        sum(r.manifest["seconds"]["all"] for r in scored)
        + sum(r.seconds for r in found if isinstance(r, Refused))
        + extra
    )
    head = ["task", "what became of it", "minutes", "anchor", "E_w", "E_a", "trace", "curves", "answers"]
    lines += [
        cells.table(head, rows),
        f"{total / 60:.0f} minutes in all, {extra / 60:.1f} of them for what is asked beside the chain: prompts that no score "
        "saw, and the last two sections.",
    ]
    for each in scored[:1]:
        lines.append(f"Each task is one command; the first one's:\n\n```\n{each.manifest['command']}\n```")
    lines.append(
        "Curves, answers and edges stand beside this page, in [six_constraints](six_constraints); scores do not, they are large."
    )
    return "\n\n".join(lines)


def _commits(scored: Sequence[Result]) -> set[str]:
    """Of the code that made the results, shortened."""
    made = [part for r in scored for part in (r.manifest, r.fresh, r.switches, r.together) if part]
    return {(part.get("source") or {}).get("commit", "unknown")[:7] for part in made}


def _anchors(found: Sequence[Result | Refused]) -> str:
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {"Reported, and not scored": [], "Scored all the same (--force)": []}
    for each in found:
        info = each.manifest["anchor"] if isinstance(each, Result) else each.anchor
        checks = {check["name"]: check for check in info["checks"]}
        gap = np.array(info["gap"])
        is_failed = not all(check["is_passed"] for check in info["checks"])
        rows.append(
            [
                each.task,
                _chosen(each),
                f"{checks['split-half cosine']['value']:.3f}",
                f"{gap.mean():.3g} / {gap.std(ddof=1):.3g}",
                cells.share(info["behaviour_before"]),
                cells.share(info["behaviour_after"]),
                f"{info['kl_before']:.2f}",
                f"{info['kl_after']:.2f}",
                "**failed**" if is_failed else "holds",
            ]
        )
        if is_failed:
            failed = [
                f"{c['name']} {c['value']:.3g} (wanted {c['wanted']})" for c in info["checks"] if not c["is_passed"]
            ]
            what = list(reasons)[isinstance(each, Result)]
            reasons[what].append(f"* {each.task}: {'; '.join(failed)}.")
    head = [
        "task",
        "after block",
        "split-half cosine",
        "gap G, mean / standard deviation",
        f"plain answers of base that obey (of {NUM_LAYER})",
        "steered",
    ]
    head += ["KL to special, nats", "steered", "verdict"]
    told = [f"{what}:\n\n" + "\n".join(several) for what, several in reasons.items() if several]
    if away := _holds_by_answers_alone(found):
        told.append(
            f"An anchor holds by what base does when pushed along it. Of {listed(away)} it obeys more, and yet its next tokens are "
            "further from special's than before: such an anchor is the weaker for it."
        )
    return "\n\n".join([cells.table(head, rows), *told, *_beside_expectation(found)])


def _holds_by_answers_alone(found: Sequence[Result | Refused]) -> list[str]:
    """Tasks whose anchor passes though the next token's KL to special rises."""
    scored = [each for each in found if isinstance(each, Result) and not each.forced]
    return [
        each.title for each in scored if each.manifest["anchor"]["kl_after"] >= each.manifest["anchor"]["kl_before"]
    ]


def _beside_expectation(found: Sequence[Result | Refused]) -> list[str]:
    """What was expected of this pair's anchors before anything was scored, and what came; nothing of other tasks."""
    came = []
    for each in found:
        if each.task not in EXPECTED:
            continue
        if isinstance(each, Refused) or each.forced:
            came.append(
                f"{each.task} fails" + ("" if isinstance(each, Result) else ", and no answers of special were counted")
            )
        else:
            ends = each.behaviour.set_index("model")[["strict", "judged"]]
            (special, judged), (base, _) = ends.loc["special"], ends.loc["base"]
            came.append(
                f"{each.task} holds, and of {judged} answers {special} of special's follow and {base} of base's"
            )
    return [f"Expected of this pair: {listed(list(EXPECTED.values()))}. Found: {'; '.join(came)}."] if came else []


def _chosen(each: Result | Refused) -> str:
    if isinstance(each, Result):
        return str(each.layer)
    best = max(each.anchor["candidates"], key=lambda c: (_is_sound(c), c["success"] or 0, c["separation"] or 0))
    return f"{best['layer']} (best of {len(each.anchor['candidates'])})"


def _is_sound(candidate: Mapping[str, Any]) -> bool:
    return candidate["split_half"] >= 0.5 and (candidate["signal"] or np.inf) >= 1


def _plain(each: Result) -> str:
    """What was found of one task, in sentences."""
    found = each.weights
    strongest = max((found.top(kind, 1).iloc[0] for kind in found.values), key=lambda row: row["score"])
    relays = each.roles[each.roles["role"].isin(findings.RELAYS)]
    kept, asked = int(found.is_kept.sum()), len(found.is_kept)
    on = "" if kept == asked else f" ({kept} of {asked} prompts have a gap)"
    told = [
        f"{each.title}{on}: all neurons together recover {cells.whole(found, 'all neuron')} of the state, all heads "
        f"{cells.whole(found, 'all head')}, and no single component more than {percent(strongest['score'])} ({strongest['name']})."
    ]
    if unsteady := _unsteady(found):
        told.append(unsteady)
    if len(relays):
        row = relays.loc[relays["E_a"].idxmax()]
        told.append(
            f"The state is seen most in {row['name']}: exchanging what it writes recovers {percent(row['E_a'])}, its own weights "
            f"{percent(row['E_w'])}."
        )
    few = each.smallest.set_index("share").loc[0.8]
    if pd.notna(few["size"]):
        restoration = each.curves[each.curves["mode"] == "restoration"]
        nearest = min(restoration["k"].unique(), key=lambda k: abs(np.log(k / few["size"])))
        there = restoration[restoration["k"] == nearest].set_index("order")["recovery"]
        others = there.drop("top").nlargest(2)
        told.append(
            f"{_first(int(few['size']))} 80 %. With {int(nearest):,} the ranking recovers {percent(there['top'])}; the best of "
            f"the other orders, {listed([f'{name} {percent(value)}' for name, value in others.items()])}."
        )
    else:
        told.append("No beginning of the ranking that was tried recovers 80 %.")
    state, behaviour = result.half_way(each)
    ends = each.behaviour.set_index("model")["strict"]
    judged = int(each.behaviour["judged"].iloc[0])
    half = (
        f"half way between them takes {cells.size(behaviour)}"
        if behaviour
        else "no beginning of the ranking comes half way"
    )
    if others := result.others_there(each, behaviour):
        half += f", and as many that no score chose come half way as well ({others})"
    half += _and_back(each, behaviour)
    if not result.is_shown(each):
        half = "nothing can be told of what lies between"
    if beaten := _beaten(each):
        told.append(f"Knocked out, {beaten} take clearly more away than as many of the ranking.")
    told.append(
        f"On the grid half of the state is there with the first {cells.size(state)}; of {judged} answers special gives "
        f"{ends['special']} that follow and base {ends['base']}, and {half}."
    )
    return " ".join(told)


def _and_back(each: Result, size: int | None) -> str:
    """Whether answers are lost again where more of the ranking is put in."""
    sets = each.behaviour[each.behaviour["order"] == "top"].sort_values("size")
    ends = each.behaviour.set_index("model")["strict"]
    if size is None or sets["strict"].iloc[-1] >= (ends["special"] + ends["base"]) / 2:
        return ""
    last = sets.iloc[-1]
    return f"; with all {int(last['size']):,} that can reach the anchor {last['strict']} follow"


def _beaten(each: Result) -> str:
    """By which orders, and with which sizes that can be compared, more is taken away than by the ranking."""
    curves = each.curves[each.curves["mode"] == "knockout"]
    top = curves[(curves["order"] == "top") & curves["recovery"].between(*LOOKED)]
    others = curves[(curves["order"] != "top") & curves["k"].isin(top["k"]) & (curves["lag_high"] < 0)]
    return listed(
        [
            f"the first {listed([f'{k:,}' for k in some['k']])} by {name}"
            for name, some in others.groupby("order", sort=False)
        ]
    )


def _unsteady(found: jp.Scores) -> str:
    """Of a gap that differs much between prompts: what whole kinds recover by the ratio of means, too."""
    gap = found.gap[found.is_kept]
    steadiness = float(gap.mean() / gap.std(ddof=1)) if len(gap) > 1 else np.inf
    if steadiness >= UNSTEADY:
        return ""
    told = [
        f"{listed([plural(kind)])} {percent(float(found.whole[f'all {kind}'][found.is_kept].sum() / gap.sum()))}"
        for kind in found.values
    ]
    return (
        f"Its gap is hardly larger than its spread ({number(steadiness)}), so that shares are unsteady; by the ratio of means "
        f"{listed(told)}."
    )


def _first(count: int) -> str:
    """As a sentence begins.

    >>> _first(1), _first(1200)
    ('The first of the ranking recovers', 'The first 1,200 of the ranking recover')
    """
    return "The first of the ranking recovers" if count == 1 else f"The first {count:,} of the ranking recover"


def _sources(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for kind in each.weights.values:
            frame = each.roles[each.roles["kind"] == kind]
            counts = frame["role"].value_counts()
            reach = frame[frame["layer"] <= each.layer]
            rows.append(
                [
                    each.title,
                    plural(kind),
                    cells.whole(each.weights, f"all {kind}"),
                    *(int(counts.get(role, 0)) for role in ("source", "relay", "both")),
                    _replaced(frame),
                    _left(each, kind),
                    _named(frame, "E_w"),
                    _named(frame, "E_a"),
                    correlation(reach["E_w"].corr(reach["E_a"], method="spearman")),
                    cells.with_ends(cells.lower_half(each.weights, kind, each.layer + 1)),
                    cells.with_ends(cells.lower_half(each.activations, kind, each.layer + 1)),
                ]
            )
    head = [
        "task",
        "kind",
        "all together recover",
        "sources",
        "relays",
        "both",
        "of these replaced for E_w, E_a",
        "contenders left by the limit",
        "highest E_w",
        "highest E_a",
        "Spearman of both",
    ]
    head += ["E_w+ in the lower half of the blocks up to the anchor", "E_a+ there"]
    share, own = (percent(part) for part in roles.DEFAULTS)
    return (
        f"A score is high where its interval lies above 0 and it is at least {share} of the largest of its kind and task, so that "
        "counts of different tasks are not of one scale. Source: high E_w, no high E_a. Relay: high E_a, of which E_w is less than "
        f"{own}. Both: high E_a, and E_w more of it. Nothing is done about there being many components: of those whose E_w is "
        "nothing, a few in a "
        "hundred have an interval above 0 by chance, though seldom so large a score.\n\n" + cells.table(head, rows)
    )


def _replaced(frame: pd.DataFrame) -> str:
    """How many of the components that have a role have it by exact scores."""
    placed = frame[frame["role"] != "neither"]
    return f"{int(placed['E_w_is_exact'].sum()):,}, {int(placed['E_a_is_exact'].sum()):,}"


def _left(each: Result, kind: str) -> str:
    """Of E_w and E_a: how many that might have been among the top a limit left as the cheap score has them."""
    screened = [found.screening.get(kind) for found in (each.weights, each.activations)]
    return ", ".join("-" if one is None else f"{one.left:,}" for one in screened)


def _named(frame: pd.DataFrame, score: str) -> str:
    best = frame.nlargest(NUM_NAMED, score)
    return ", ".join(f"{row['name']} {percent(row[score])}" for row in best.to_dict("records"))


def _restoration(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for mode in ("restoration", "knockout"):
            curves = each.curves[each.curves["mode"] == mode]
            rows += [[each.title, mode, *line] for line in _against(curves, int(curves["k"].max()))]
    names = [name for name in scored[0].curves["order"].unique() if name != "top"]
    smallest = []
    for each in scored:
        for row in each.smallest.to_dict("records"):
            size = row["size"]
            kinds = counted({k: int(row[k]) for k in each.weights.values if k in row and pd.notna(row[k])})
            smallest.append(
                [
                    each.title,
                    percent(row["share"]),
                    "none" if pd.isna(size) else f"{int(size):,}: {kinds}",
                    "-" if pd.isna(size) else f"{percent(row['value'])} ({cells.ends(row)})",
                ]
            )
    return "\n\n".join(
        [
            f"Wherever the ranking's curve lies between {percent(LOOKED[0])} and {percent(LOOKED[1])}: the share of the state that "
            "the first k recover in base (restoration), or that is left in special without them (knockout). In brackets: of the "
            "ranking its interval; of a control the interval of how far it is behind the ranking on the same prompts, in points. Each "
            f"random control is {_draws(scored)}, and intervals are over the few prompts alone: by so few they are too narrow rather "
            "than too wide. More than 100 % is possible, since components that work against the state stand last.",
            cells.table(["task", "mode", "k", "ranking", *names, "the ranking is"], rows),
            _beside_first_order(scored),
            "At which of these k the ranking leads every control, and every one but first order:",
            _leads(scored),
            "The same in one number: the area under each curve, the state on average over log k from 1 to all. A better order has "
            "more in restoration and less in knockout.",
            cells.table(
                ["task", "mode", *("ranking" if name == "top" else name for name in ("top", *names))],
                _areas(scored, names),
            ),
            "The smallest beginnings of the ranking that recover so much:",
            cells.table(["task", "at least", "the first", "they recover"], smallest),
        ]
    )


def _against(curves: pd.DataFrame, total: int) -> list[list[str]]:
    """Of each k at which the ranking's curve (order "top") can be compared: k, its recovery, each control's, and whom it leads."""
    rows = []
    top = curves[curves["order"] == "top"].set_index("k")
    for k, own in top[top["recovery"].between(*LOOKED) & (top.index < total)].iterrows():
        others = curves[(curves["order"] != "top") & (curves["k"] == k)].set_index("order")
        beside = [
            f"{cells.exactly(row['recovery'])} ({cells.points(row['lag_low'])} to {cells.points(row['lag_high'])})"
            for _, row in others.iterrows()
        ]
        stands = others.apply(_stands, axis=1)
        said = [
            f"{how} {'all' if (stands == how).all() else ' / '.join(others.index[stands == how])}"
            for how in STANDS
            if (stands == how).any()
        ]
        rows.append(
            [
                f"{k:,}",
                f"{cells.exactly(own['recovery'])} ({interval(own['low'], own['high'])})",
                *beside,
                "; ".join(said),
            ]
        )
    return rows


def _stands(control: pd.Series) -> str:
    """Where the ranking stands beside one control, by its interval on the same prompts."""
    if control["lag"] == control["lag_low"] == control["lag_high"] == 0:
        return "level with"
    if control["lag"] > 0:
        return "clearly ahead of" if control["lag_low"] > 0 else "ahead, not clearly, of"
    return "clearly behind" if control["lag_high"] < 0 else "not ahead of"


def _leads(scored: Sequence[Result]) -> str:
    """At which of the sizes that can be compared the ranking leads all, and all but first order: a row a task and way to judge."""
    rows = []
    for each in scored:
        fresh = pd.DataFrame(each.fresh["fresh"] if each.fresh else [], columns=list(each.curves))
        judged = {mode: each.curves[each.curves["mode"] == mode] for mode in ("restoration", "knockout")}
        for name, curves in (judged | {"restoration, other prompts": fresh}).items():
            top = curves[curves["order"] == "top"]
            ks = top.loc[top["recovery"].between(*LOOKED) & (top["k"] < each.curves["k"].max()), "k"]
            others = curves[(curves["order"] != "top") & curves["k"].isin(ks)]
            if others.empty:
                continue
            better, clear = (others[lag].gt(0).groupby(others["k"]) for lag in ("lag", "lag_low"))
            beside = others[others["order"] != "first order"]
            but_one = beside["lag_low"].gt(0).groupby(beside["k"])
            rows.append(
                [
                    each.title,
                    name,
                    listed([f"{k:,}" for k in ks]),
                    *map(_ks, (but_one.all(), better.all(), clear.all())),
                ]
            )
    head = [
        "task",
        "judged by",
        "k",
        "clearly ahead of all but first order at",
        "ahead of all at",
        "clearly ahead of all at",
    ]
    return cells.table(head, rows)


def _ks(holds: pd.Series) -> str:
    return listed([f"{k:,}" for k in holds.index[holds]]) or "none"


def _draws(scored: Sequence[Result]) -> str:
    """How many orders a random control is of.

    >>> from types import SimpleNamespace
    >>> _draws([SimpleNamespace(manifest={"options": {"num_random": 1}})])
    'one draw'
    """
    count = scored[0].manifest["options"]["num_random"]
    return "one draw" if count == 1 else f"the mean of {count} draws"


def _beside_first_order(scored: Sequence[Result]) -> str:
    """How much truly replacing wins over the gradient alone, in a sentence; nothing where no size can be looked at."""
    lags = []
    for each in scored:
        curves = each.curves[each.curves["mode"] == "restoration"]
        top = curves[(curves["order"] == "top") & curves["recovery"].between(*LOOKED)]
        lags += curves.loc[(curves["order"] == "first order") & curves["k"].isin(top["k"]), "lag"].tolist()
    if not lags:
        return "First order cannot be compared at any of these sizes."
    return (
        f"Restoration by the ranking and by first order alone are {cells.points(min(lags))} to {cells.points(max(lags))} points "
        "apart: of these small differences of weights the gradient says nearly as much as truly replacing."
    )


def _areas(scored: Sequence[Result], names: Sequence[str]) -> list[list[str]]:
    """A row a task and mode: the area under the curve of the ranking, and of each control."""
    rows = []
    for each in scored:
        for (mode,), part in each.curves.groupby(["mode"], sort=False):
            areas = []
            for name in ("top", *names):
                curve = part[part["order"] == name].rename(columns={"order": "name", "k": "ks"})
                columns = {field: curve[field].to_numpy() for field in Curve._fields if field not in ("name", "mode")}
                areas.append(cells.exactly(Curve(name, mode, **columns).area))
            rows.append([each.title, mode, *areas])
    return rows


def _fresh(scored: Sequence[Result]) -> str:
    """Restoration on prompts that were not scored."""
    rows, untold, names = [], [], []
    for each in scored:
        curves = pd.DataFrame(each.fresh["fresh"] if each.fresh else [])
        some = _against(curves, int(each.curves["k"].max())) if len(curves) else []
        names = [name for name in curves["order"].unique() if name != "top"] if some else names
        rows += [[each.title, *line] for line in some]
        if not some:
            top = curves[curves["order"] == "top"] if len(curves) else curves
            told = [f"{row.k:,}: {percent(row.recovery)} ({interval(row.low, row.high)})" for row in top.itertuples()]
            untold.append([each.title, "; ".join(told) or "special is no further along than base"])
    text = (
        "Restoration with the ranking, and with its controls, on as many prompts that neither chose the anchor nor were scored; "
        "wherever the ranking recovers between 20 % and 80 % of their gap. Brackets as above.\n\n"
    )
    text += cells.table(["task", "k", "ranking", *names, "the ranking is"], rows) if rows else "Of no task."
    if untold:
        text += "\n\nOf these no size that was tried does, and nothing can be compared:\n\n"
        text += cells.table(["task", "the first k, and what they recover"], untold)
    return text


def _halves(scored: Sequence[Result]) -> str:
    """Scores by one half of the prompts against those by the other."""
    rows = []
    for each in scored:
        for score, found in (("E_w", each.weights), ("E_a", each.activations)):
            if found.is_kept.sum() < FEWEST_TO_HALVE:
                continue
            for row in jp.halves(found).to_dict("records"):
                ends = f"{correlation(row['low'])} to {correlation(row['high'])}"
                shared = f"{number(row['shared'])} of {row['count']} ({number(row['chance'])})"
                rows.append(
                    [each.title, score, plural(row["kind"]), f"{correlation(row['spearman'])} ({ends})", shared]
                )
    if not rows:
        return "There are too few prompts to tell."
    return (
        "Scores by one half of the scored prompts against those by the other, over random halves: the ranking by all of them is "
        "steadier than this says.\n\n"
        + cells.table(
            ["task", "score", "kind", "Spearman (95 % of halves)", "of the first, shared on average (by chance)"], rows
        )
    )


def _behaviour(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        recovered = each.curves.query("mode == 'restoration'").set_index(["order", "k"])["recovery"]
        for row in each.behaviour.to_dict("records"):
            if pd.notna(row["size"]):
                state = percent(recovered[row["order"], int(row["size"])])
            else:
                state = {"base": percent(0.0), "special": percent(1.0)}.get(row["model"], "-")
            rows.append(
                [
                    each.title,
                    row["model"],
                    state,
                    f"{row['strict']} of {row['judged']} ({interval(*cells.counted(row['strict'], row['judged']))})",
                    f"{row['loose']} of {row['judged']}",
                    *(number(row[name]) for name in ("to_special", "to_base", "perplexity")),
                ]
            )
    head = ["task", "model", "state", "answers that follow", "loosely", "KL from special along its answers"]
    head += ["KL from base where not asked", "perplexity of base's answers there"]
    return (
        "By IFEval's strict and loose rules (of the strict ones Wilson's interval, over prompts); KL in nats a token, along "
        "special's answers to the same prompts, and along base's answers to "
        "prompts without the instruction (side effects).\n\n" + cells.table(head, rows)
    )


def _supply(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for target, edges in each.edges.groupby("target", sort=False):
            if target in ("state", "output") or (edges["supplier"] == "state").all():
                continue
            node = next(node for node in each.flow["nodes"] if node["name"] == target)
            for role in ("relay", "source"):
                some = edges[edges["role"].isin(findings.RELAYS if role == "relay" else [role])]
                score = "E_a" if role == "relay" else "E_w"
                rows.append(
                    [
                        each.title,
                        target,
                        cells.share(node["share"]),
                        cells.share(node["own"]),
                        plural(role),
                        ", ".join(f"{row['supplier']} {percent(row[score])}" for row in some.to_dict("records"))
                        or "none stands out",
                        _mostly_through(some) if node["kind"] == "head" else "-",
                    ]
                )
    shared = [
        [each.title, plural(row["kind"]), row["traced"], row["shared"], percent(row["chance"]), number(row["p"])]
        for each in scored
        for row in each.flow["overlap"]
    ]
    rules = scored[0].flow["rules"]
    lines = [
        f"Relays (those that are both among them) that carry at least {percent(rules['least'])} of the state, the first "
        f"{rules['most']} of each kind, and who supplies what they contribute (the first {rules['most']} of each kind and role); "
        f"relays of relays down to level {rules['levels']}, 1 being the state's own. Suppliers of relays are found by the cheap "
        "scores; through which of a head's inputs each acts, the others held at base's, is measured exactly.",
        cells.table(
            [
                "task",
                "relay",
                "share of the state",
                "of its own contribution, by its own weights",
                "its suppliers",
                "share of what it contributes",
                "mostly through its",
            ],
            rows,
        )
        if rows
        else "None was followed.",
    ]
    if ended := [
        [each.title, ", ".join(f"{node['name']} {percent(node['share'])} ({node['end']})" for node in nodes)]
        for each in scored
        if (nodes := [n for n in each.flow["nodes"] if n["end"] and n["share"] >= each.flow["rules"]["least"]])
    ]:
        lines += [
            "Relays that carry as much and are not followed, and why:",
            cells.table(["task", "relays, and their shares of the state"], ended),
        ]
    carried = [
        [each.title, ", ".join(f"{row['supplier']} {percent(row['E_a'])}" for row in some.to_dict("records"))]
        for each in scored
        if len(some := each.edges[each.edges["target"] == "output"].sort_values("E_a", ascending=False))
    ]
    if carried:
        lines += [
            "Executors: components above the anchor that carry a formed state on to the next token, each with the share of what the "
            "formed state does to it that comes back by it alone.",
            cells.table(["task", "executors"], carried),
        ]
    if shared:
        lines += [
            "How many of the traced sources are among as many that E_w ranks first for the state itself:",
            cells.table(["task", "kind", "traced", "shared", "chance", "p"], shared),
        ]
    return "\n\n".join(lines)


def _mostly_through(edges: pd.DataFrame) -> str:
    """Through which input of the target most of each supplier's share comes, and of how many."""
    known = edges[list(READ_BY_HEADS)].clip(lower=0)
    most = known[known.max(axis=1) > 0].idxmax(axis=1).map(READ_BY_HEADS).value_counts()
    return ", ".join(f"{name} ({count})" for name, count in most.items()) or "-"


def _overlaps(scored: Sequence[Result]) -> str:
    if len(scored) < 2:
        return "One task alone was scored."
    parts = []
    for title, side in (("E_w", "weights"), ("E_a", "activations")):
        for kind, count in FIRST.items():
            found = {each.title: getattr(each, side) for each in scored}
            count = min(count, *(int(s.effects[kind].any(axis=0).sum()) for s in found.values()))
            both = jp.overlap(found, kind, count)
            rows = [
                [name, *(int(n) if i != j else "-" for j, n in enumerate(row))]
                for i, (name, row) in enumerate(zip(both.names, both.shared, strict=True))
            ]
            apart = ~np.eye(len(rows), dtype=bool)
            low, high = both.shared[apart].min(), both.shared[apart].max()
            parts.append(
                f"{title}, of the first {count} {plural(kind)} two tasks share {low:.0f} to {high:.0f}; by chance at most "
                f"{both.chance[apart].max():.2g}:"
            )
            parts.append(cells.table(["", *both.names], rows))
    return "\n\n".join(parts)


def _switches(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for row in (each.switches or {"switches": []})["switches"]:
            if "kept" not in row:
                rows.append([each.title, row["switch"], "special is no further along", *["-"] * (2 * len(FIRST) + 1)])
                continue
            line = [each.title, row["switch"], f"{row['kept']} of {row['inputs']}"]
            for kind in FIRST:
                line += [_correlated(row[f"{kind} spearman"]), f"{row[f'{kind} shared']} of {row[f'{kind} of']}"]
            rows.append([*line, f"{row['strongest']} {percent(row['score'])}"])
    head = ["task", "switch", "prompts that count"]
    head += [f"{plural(kind)}: {what}" for kind in FIRST for what in ("Spearman", "of the first shared")]
    return _most_unlike(scored) + (
        "The ranking of each beside that of the defaults (projection on the instruction's direction at the chosen block, mean of "
        f"ratios, gap floor {normalise.SMALLEST_GAP:g} of the median), all by `local_linear`.\n\n"
        + cells.table([*head, "strongest"], rows)
    )


def _most_unlike(scored: Sequence[Result]) -> str:
    """Which choices matter most, and which least, in a sentence."""
    turned = [row for each in scored for row in (each.switches or {"switches": []})["switches"][1:] if "kept" in row]
    if not turned:
        return ""
    frame = pd.DataFrame(
        {
            "choice": [row["switch"].replace("after block", "of the anchor, after block") for row in turned],
            "same": [
                np.nanmean([np.nan if row[f"{kind} spearman"] is None else row[f"{kind} spearman"] for kind in FIRST])
                for row in turned
            ],
        }
    )
    by_choice = frame.groupby("choice")["same"].mean().sort_values()
    most, least = by_choice.index[0], [name for name, same in by_choice.items() if same >= ALIKE]
    told = f"What matters most is {most} (Spearman {correlation(by_choice.iloc[0])} on average)"
    return told + (f"; what hardly matters, {listed(least)} ({correlation(ALIKE)} or more).\n\n" if least else ".\n\n")


def _correlated(value: float | None) -> str:
    return "-" if value is None else correlation(value)


def _together(scored: Sequence[Result]) -> str:
    parts = []
    for each in scored:
        if each.together is None:
            continue
        said, worth = each.together["interactions"], each.together["shapley"]
        clear = [row for row in said["pairs"] if row["is_clear"]]
        strongest = [
            [row["one"], row["other"], cells.exactly(row["interaction"], 2), cells.close(row)]
            for row in said["pairs"][:NUM_PAIRS]
        ]
        parts.append(
            f"{each.title}: of the ranking's first {len(said['names'])}, {len(clear)} of {len(said['pairs'])} pairs interact with an "
            f"interval clear of 0 (some {max(1, round(findings.LEVEL * len(said['pairs'])))} would be by chance), "
            f"{sum(row['interaction'] < 0 for row in clear)} of them below it (they stand for each other). All "
            f"together recover {cells.exactly(said['joint']['value'])}, which is {cells.exactly(said['excess']['value'])} "
            f"({cells.ends(said['excess'])}) more than the sum of what each recovers alone. The strongest:\n\n"
            + cells.table(["one", "other", "interaction", "interval"], strongest)
        )
        rows = [
            [
                row["name"],
                cells.exactly(row["alone"], 2),
                cells.exactly(row["shapley"], 2),
                cells.close(row),
                cells.exactly(row["last"], 2),
            ]
            for row in worth["values"]
        ]
        parts.append(
            f"Shapley values of the first {len(rows)} ({worth['rounds']} rounds of sampled sets, interval over these); they add up to "
            f"{cells.exactly(worth['total']['value'])}, and all together recover {cells.exactly(worth['joint']['value'])}:\n\n"
            + cells.table(["component", "alone (E_w)", "Shapley value", "interval", "beside all the others"], rows)
        )
        rows = [
            [
                "other prompts" if row["is_held_out"] else "the scored prompts",
                row["size"],
                row["name"],
                f"{cells.exactly(row['recovery'])} ({cells.ends(row)})",
                "-"
                if row["name"] == "ranking"
                else f"{cells.exactly(row['gain'])} ({interval(row['gain_low'], row['gain_high'])})",
                cells.exactly(row["miss"]),
                row["shared"],
            ]
            for row in each.together["compared"]
        ]
        asked = each.together["settings"]
        head = [
            "read on",
            "k",
            "set",
            "recovers",
            "more than the ranking",
            "root mean square of what is missing or too much",
            "shared",
        ]
        gains = [row for row in each.together["compared"] if row["name"] != "ranking"]
        most = {
            place: max((row["gain"] for row in gains if row["is_held_out"] == place), default=0.0)
            for place in (False, True)
        }
        parts.append(
            f"So at equal size ranking one by one loses at most {cells.points(most[False])} points to a set on the scored prompts, and "
            f"{cells.points(most[True])} on others."
        )
        parts.append(
            f"Sets of k components, found on the scored prompts: greedily ({asked['at_once']} a step, out of the ranking's first "
            f"{asked['pool']}), by learned gates over all components ({asked['steps']} steps), and by Shapley values of the first "
            f"{len(worth['values'])}:\n\n" + cells.table(head, rows)
        )
    return "\n\n".join(parts)
