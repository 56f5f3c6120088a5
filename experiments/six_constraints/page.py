"""docs/results/six_constraints.md and its figure, out of the files that `run.py` left: every number of it comes from one of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import jaxpatch as jp
from jaxpatch import atomic
from jaxpatch.reporting import drawing
from jaxpatch.reporting.wording import correlation, interval, listed, number, percent, plural
from jaxpatch.scoring import normalise

FIRST = {"head": 10, "neuron": 100}
"""Of each kind, compared across tasks."""
LOOKED = (0.2, 0.8)
"""Recovery between which a ranking is compared with its controls."""
READ_BY_HEADS = {"query": "queries", "key": "keys", "value": "values"}
FEWEST_FOR_MEDIAN = 5
NUM_NAMED = 3
NUM_PAIRS = 5
CLEARLY = 0.25
"""Of the answers: by so many more special must follow than base, for a half way between them to mean something."""


class Result(NamedTuple):
    """One task that was scored. Tables are the run's own; switches and together are None where nobody asked."""

    task: str
    manifest: Mapping[str, Any]
    weights: jp.Scores
    activations: jp.Scores
    roles: pd.DataFrame
    curves: pd.DataFrame
    smallest: pd.DataFrame
    behaviour: pd.DataFrame
    flow: Mapping[str, Any]
    edges: pd.DataFrame
    switches: Mapping[str, Any] | None
    together: Mapping[str, Any] | None

    @property
    def layer(self) -> int:
        """Of the anchor."""
        return self.weights.layer

    @property
    def forced(self) -> bool:
        """Whether its anchor fails its checks."""
        return bool(self.manifest["forced"])

    @property
    def title(self) -> str:
        """The task, and whether it is forced: every row and sentence about it says so."""
        return f"{self.task} (forced)" if self.forced else self.task


class Refused(NamedTuple):
    """One task whose anchor failed. said: why."""

    task: str
    said: str
    anchor: Mapping[str, Any]
    seconds: float


def write(results: Path, docs: Path, names: Sequence[str], command: str, remark: str = "") -> None:
    """The page and its figure.

    Args: results: where `run.py` left its files. names: of the tasks, in the order of the page. command: that made all this. remark: on
        how it was run.
    """
    found = [each for each in (read(results, name) for name in names) if each is not None]
    scored = [each for each in found if isinstance(each, Result)]
    text = page(found, command, [name for name in names if name not in {each.task for each in found}], remark)
    if scored:
        drawn = drawing.svg(figure(scored), "six")
        atomic.text(docs / "six_constraints.svg", f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}', overwrite=True)
    atomic.text(docs / "six_constraints.md", text, overwrite=True)


def read(results: Path, name: str) -> Result | Refused | None:
    """What is there of one task; None of one that has no results yet."""
    refused = results / f"{name}.refused.json"
    if refused.is_file():
        said = json.loads(refused.read_text(encoding="utf-8"))
        return Refused(name, said["said"], said["anchor"], said["seconds"])
    folder = results / name
    if not (folder / "manifest.json").is_file():
        return None
    parts = [results / f"{name}.{part}.json" for part in ("switches", "together")]
    return Result(
        name,
        json.loads((folder / "manifest.json").read_text(encoding="utf-8")),
        jp.load_scores(folder / "scores.safetensors"),
        jp.load_scores(folder / "activations.safetensors"),
        *(pd.read_csv(folder / f"{table}.csv") for table in ("roles", "curves", "smallest", "behaviour")),
        json.loads((folder / "flow.json").read_text(encoding="utf-8")),
        pd.read_csv(folder / "flow.csv"),
        *(json.loads(part.read_text(encoding="utf-8")) if part.is_file() else None for part in parts),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


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
            _findings(scored),
            "## Sources and relays",
            _sources(scored),
            "## Restoration and knockout, against controls of equal size",
            _restoration(scored),
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
            f"{asked['num_scoring']} "
            f"scoring prompts, {asked['num_behaviour']} answered ones, screened for the top {asked['top']} of each kind"
            + _limited(asked)
            + ", seed "
            f"{asked['seed']}, {first['dtype']}; {first['machine']['processors']} {first['machine']['backend'].upper()} cores, Python "
            f"{versions['python']}, jax {versions['jax']}, commit {listed(sorted(source))}. Intervals are 95 % bootstrap intervals "
            "over "
            "prompts."
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
    extra = sum(part["seconds"] for r in scored for part in (r.switches, r.together) if part)
    total = (
        sum(r.manifest["seconds"]["all"] for r in scored)
        + sum(r.seconds for r in found if isinstance(r, Refused))
        + extra
    )
    head = ["task", "what became of it", "minutes", "anchor", "E_w", "E_a", "trace", "curves", "answers"]
    lines += [
        table(head, rows),
        f"{total / 60:.0f} minutes in all, {extra / 60:.1f} of them for the last two sections.",
    ]
    for each in scored[:1]:
        lines.append(f"Each task is one command; the first one's:\n\n```\n{each.manifest['command']}\n```")
    return "\n\n".join(lines)


def _commits(scored: Sequence[Result]) -> set[str]:
    """Of the code that made the results, shortened."""
    made = [part for r in scored for part in (r.manifest, r.switches, r.together) if part]
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
                _share(info["behaviour_before"]),
                _share(info["behaviour_after"]),
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
        "plain answers of base that obey",
        "steered",
    ]
    head += ["KL to special, nats", "steered", "verdict"]
    told = [f"{what}:\n\n" + "\n".join(several) for what, several in reasons.items() if several]
    return "\n\n".join([table(head, rows), *told])


def _chosen(each: Result | Refused) -> str:
    if isinstance(each, Result):
        return str(each.layer)
    best = max(each.anchor["candidates"], key=lambda c: (_is_sound(c), c["success"] or 0, c["separation"] or 0))
    return f"{best['layer']} (best of {len(each.anchor['candidates'])})"


def _is_sound(candidate: Mapping[str, Any]) -> bool:
    return candidate["split_half"] >= 0.5 and (candidate["signal"] or np.inf) >= 1


def _share(value: float | None) -> str:
    return "-" if value is None else percent(value)


def _lower_half(found: jp.Scores, kind: str) -> tuple[float, float, float]:
    """Share of the positive scores of a kind that lies in the lower half of the blocks up to the anchor, and its interval: of the same
    components' scores on prompts drawn again."""
    values = found.values[kind][: found.layer + 1].reshape(found.layer + 1, -1)
    effects = found.effects[kind][found.is_kept].astype(np.float32)
    effects = effects[:, : found.layer + 1].reshape(len(effects), *values.shape)
    drawn = normalise.drawn_weights(found.gap, found.is_kept, found.aggregate, 0)
    by_layer = np.clip(drawn @ (effects * (values > 0)).sum(axis=2), 0, None)
    own, half = np.clip(values, 0, None).sum(axis=1), (found.layer + 1) // 2
    shares = by_layer[:, :half].sum(1) / by_layer.sum(1)
    return float(own[:half].sum() / own.sum()), *map(float, np.percentile(shares, (2.5, 97.5)))


def _told(share: tuple[float, float, float]) -> str:
    return f"{percent(share[0])} ({interval(*share[1:])})"


def _plain(each: Result) -> str:
    """What was found of one task, in sentences."""
    found, ceilings = each.weights, each.weights.ceilings
    strongest = max((found.top(kind, 1).iloc[0] for kind in found.values), key=lambda row: row["score"])
    relays = each.roles[each.roles["role"].isin(["relay", "both"])]
    kept, asked = int(found.is_kept.sum()), len(found.is_kept)
    on = "" if kept == asked else f" ({kept} of {asked} prompts have a gap)"
    told = [
        f"{each.title}{on}: all neurons together recover {percent(ceilings['all neuron'])} of the state, all heads "
        f"{percent(ceilings['all head'])}, and no single component more than {percent(strongest['score'])} ({strongest['name']})."
    ]
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
    state, behaviour = _half_way(each)
    ends = each.behaviour.set_index("model")["strict"]
    judged = int(each.behaviour["judged"].iloc[0])
    half = f"half way between them takes {_k(behaviour)}" if behaviour else "no beginning of the ranking comes half way"
    if others := _others_there(each, behaviour):
        half += f", and as many components that are {others} come half way as well"
    told.append(
        f"On the grid half of the state is there with the first {_k(state)}; of {judged} answers special gives {ends['special']} that "
        f"follow and base {ends['base']}, and {half if _is_shown(each) else 'nothing can be told of what lies between'}."
    )
    return " ".join(told)


def _first(count: int) -> str:
    """As a sentence begins.

    >>> _first(1), _first(1200)
    ('The first of the ranking recovers', 'The first 1,200 of the ranking recover')
    """
    return "The first of the ranking recovers" if count == 1 else f"The first {count:,} of the ranking recover"


def _findings(scored: Sequence[Result]) -> str:
    """A row a finding, a column a task: the number that decides, and whether it holds by a rule that is stated."""
    made: dict[str, list[str]] = {}

    def note(finding: str, value: str, holds: bool | None, words: tuple[str, str] = ("holds", "does not hold")) -> None:
        verdict = "" if holds is None else f": {words[0]}" if holds else f": **{words[1]}**"
        made.setdefault(finding, []).append(value + verdict)

    for each in scored:
        ceilings, half = each.weights.ceilings, _lower_half(each.weights, "neuron")
        note(
            "MLP neurons carry more of the state than heads: recovered by all neurons / all heads",
            f"{percent(ceilings['all neuron'])} / {percent(ceilings['all head'])}",
            ceilings["all neuron"] > ceilings["all head"],
        )
        note(
            "sources are shallow: more than half of the neurons' positive E_w in the lower half of the blocks",
            _told(half),
            half[1] > 0.5 if half[0] > 0.5 else False,
        )
        layers = {
            role: each.roles.loc[each.roles["role"].isin(names), "layer"]
            for role, names in (("source", ["source"]), ("relay", ["relay", "both"]))
        }
        relay, source = layers["relay"], layers["source"]
        are_heads = (each.roles.loc[relay.index, "kind"] == "head").sum()
        note(
            "relays are heads: those that are, of all relays",
            f"{are_heads} of {len(relay)}",
            None if len(relay) < FEWEST_FOR_MEDIAN else bool(are_heads > len(relay) / 2),
        )
        note(
            "relays stand above sources: median block of relays / of sources (and how many there are)",
            f"{relay.median():.3g} ({len(relay)}) / {source.median():.3g} ({len(source)})",
            None if min(len(relay), len(source)) < FEWEST_FOR_MEDIAN else bool(relay.median() > source.median()),
        )
        if each.switches:
            forming, total = each.switches["forming"], len(each.switches["forming"])
            at = next(n for n, share in enumerate(forming) if share >= 0.5 * forming[each.layer])
            note(
                "the state forms in the middle: block after which half of it is there, in the middle third of all",
                f"{at} of {total}",
                1 / 3 <= (at + 1) / total <= 2 / 3,
            )
        else:
            note(
                "the state forms in the middle: block after which half of it is there, in the middle third of all",
                "-",
                None,
            )
        few = each.smallest.set_index("share").loc[0.8]
        total = int(each.curves["k"].max())
        note(
            "few components recover the state: those that recover 80 %, of all that can; fewer than 5 %",
            "no size does" if pd.isna(few["size"]) else f"{int(few['size']):,} of {total:,}",
            bool(few["size"] < 0.05 * total) if pd.notna(few["size"]) else False,
        )
        state, behaviour = _half_way(each)
        note(
            "inner recovery is not behaviour: first k on the grid with half of the state / half of the answers",
            f"{_k(state)} / {_k(behaviour) if _is_shown(each) else 'special shows it hardly more than base'}"
            + (f"; so do {_others_there(each, behaviour)}" if _others_there(each, behaviour) else ""),
            _is_later(each, state, behaviour),
        )
        shared = [row for row in each.flow["overlap"] if row["kind"] == "neuron"]
        note(
            "traced suppliers are ranked sources: neurons shared (the paper: 75 %) / by chance",
            f"{shared[0]['shared']} of {shared[0]['traced']} ({percent(shared[0]['share'])}) / {percent(shared[0]['chance'])}"
            if shared
            else "none traced",
            shared[0]["p"] < 0.05 if shared else None,
            ("above chance", "not above chance"),
        )
    rows = [[finding, *cells] for finding, cells in made.items()]
    return (
        table(["finding", *(each.title for each in scored)], rows)
        + "\n\nA finding holds where the number is as said; of shares with an interval, where the whole interval is. An overlap is "
        "above chance where as many, each drawn from all below the highest target that it supplies, would share as much in less than "
        "5 % of draws. Nothing is said "
        f"where there is too little to tell: fewer than {FEWEST_FOR_MEDIAN} relays or sources; answers that come half way with the "
        "smallest set that wrote any, or with as many random components as well."
    )


def _is_later(each: Result, state: int | None, behaviour: int | None) -> bool | None:
    """Whether the answers come half way with more components than the state. None where nobody can tell."""
    if state is None or not _is_shown(each):
        return None
    smallest = each.behaviour.loc[each.behaviour["order"] == "top", "size"].min()
    if behaviour is not None and ((behaviour <= smallest and state < smallest) or _others_there(each, behaviour)):
        return None
    return behaviour is None or behaviour > state


def _others_there(each: Result, size: int | None) -> str:
    """Random sets of so many components whose answers come half way, too: then it is no merit of the ranking's."""
    sets, ends = each.behaviour[each.behaviour["size"] == size], each.behaviour.set_index("model")["strict"]
    is_there = sets["order"].str.startswith("random") & (sets["strict"] >= (ends["special"] + ends["base"]) / 2)
    return listed(sets.loc[is_there, "order"].tolist())


def _k(value: int | None) -> str:
    return "never" if value is None else f"{value:,}"


def _is_shown(each: Result) -> bool:
    """Whether special's answers show the behaviour clearly more often than base's, so that something can lie between them."""
    ends = each.behaviour.set_index("model")["strict"]
    return bool(ends["special"] - ends["base"] >= CLEARLY * each.behaviour["judged"].iloc[0])


def _half_way(each: Result) -> tuple[int | None, int | None]:
    """The first k at which half of the state is recovered, and at which half as many answers follow as of special's."""
    top = each.curves.query("order == 'top' and mode == 'restoration'")
    state = top.loc[top["recovery"] >= 0.5, "k"]
    ends = each.behaviour.set_index("model")["strict"]
    if not _is_shown(each):
        return (int(state.iloc[0]) if len(state) else None), None
    sets = each.behaviour[each.behaviour["order"] == "top"]
    enough = sets.loc[sets["strict"] >= (ends["special"] + ends["base"]) / 2, "size"]
    return (int(state.iloc[0]) if len(state) else None), (int(enough.iloc[0]) if len(enough) else None)


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
                    percent(each.weights.ceilings[f"all {kind}"]),
                    *(int(counts.get(role, 0)) for role in ("source", "relay", "both")),
                    _replaced(frame),
                    _left(each, kind),
                    _named(frame, "E_w"),
                    _named(frame, "E_a"),
                    correlation(reach["E_w"].corr(reach["E_a"], method="spearman")),
                    _told(_lower_half(each.weights, kind)),
                    _told(_lower_half(each.activations, kind)),
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
    head += ["E_w+ in the lower half of the blocks", "E_a+ there"]
    return table(head, rows)


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
            top = curves[curves["order"] == "top"].set_index("k")
            for k, own in top[top["recovery"].between(*LOOKED) & (top.index < top.index.max())].iterrows():
                others = curves[(curves["order"] != "top") & (curves["k"] == k)].set_index("order")
                cells = [exactly(others.loc[name, "recovery"]) for name in others.index]
                better = (
                    own["recovery"] > others["recovery"]
                    if mode == "restoration"
                    else own["recovery"] < others["recovery"]
                )
                beaten = [name for name, is_better in better.items() if not is_better]
                close = [
                    n
                    for n, value in others["recovery"].items()
                    if own["low"] <= value <= own["high"] and n not in beaten
                ]
                verdict = "above all" if mode == "restoration" else "below all"
                verdict += f"; {listed(close)} within its interval" if close else ""
                rows.append(
                    [
                        each.title,
                        mode,
                        f"{k:,}",
                        f"{exactly(own['recovery'])} ({interval(own['low'], own['high'])})",
                        *cells,
                        verdict if not beaten else f"not: {', '.join(beaten)}",
                    ]
                )
    names = [name for name in scored[0].curves["order"].unique() if name != "top"]
    smallest = []
    for each in scored:
        for row in each.smallest.to_dict("records"):
            size = row["size"]
            kinds = [f"{int(row[k])} {plural(k)}" for k in each.weights.values if k in row and pd.notna(row[k])]
            smallest.append(
                [
                    each.title,
                    percent(row["share"]),
                    "none" if pd.isna(size) else f"{int(size):,}: {' and '.join(kinds)}",
                    "-" if pd.isna(size) else f"{percent(row['value'])} ({_ends(row)})",
                ]
            )
    return "\n\n".join(
        [
            f"Wherever the ranking's curve lies between {percent(LOOKED[0])} and {percent(LOOKED[1])}: the share of the state that "
            "the first "
            "k recover in base (restoration), or that is left in special without them (knockout).",
            table(["task", "mode", "k", "ranking", *names, "ranking is"], rows),
            "The smallest beginnings of the ranking that recover so much:",
            table(["task", "at least", "the first", "they recover"], smallest),
        ]
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
                    f"{row['strict']} of {row['judged']}",
                    f"{row['loose']} of {row['judged']}",
                    *(number(row[name]) for name in ("to_special", "to_base", "perplexity")),
                ]
            )
    head = ["task", "model", "state", "answers that follow", "loosely", "KL from special along its answers"]
    head += ["KL from base where not asked", "perplexity of base's answers there"]
    return (
        "By IFEval's strict and loose rules; KL in nats a token, along special's answers to the same prompts, and along base's "
        "answers to "
        "prompts without the instruction (side effects).\n\n" + table(head, rows)
    )


def _supply(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for target, edges in each.edges.groupby("target", sort=False):
            if target in ("state", "output") or (edges["supplier"] == "state").all():
                continue
            node = next(node for node in each.flow["nodes"] if node["name"] == target)
            for role in ("relay", "source"):
                some = edges[edges["role"].isin([role, "both"] if role == "relay" else [role])]
                score = "E_a" if role == "relay" else "E_w"
                rows.append(
                    [
                        each.title,
                        target,
                        _share(node["share"]),
                        _share(node["own"]),
                        plural(role),
                        ", ".join(f"{row['supplier']} {percent(row[score])}" for row in some.to_dict("records"))
                        or "none stands out",
                        _mostly_through(some),
                    ]
                )
    shared = [
        [each.title, plural(row["kind"]), row["traced"], row["shared"], percent(row["chance"]), number(row["p"])]
        for each in scored
        for row in each.flow["overlap"]
    ]
    lines = [
        "Relays of the state that carry enough of it to be followed, and who supplies what they contribute. Suppliers of relays are "
        "found by the cheap scores; through which of a relay's inputs each acts, the others held at base's, is measured exactly.",
        table(
            [
                "task",
                "relay",
                "share of the state",
                "by its own weights",
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
            table(["task", "relays, and their shares of the state"], ended),
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
            table(["task", "executors"], carried),
        ]
    if shared:
        lines += [
            "How many of the traced sources are among as many that E_w ranks first for the state itself:",
            table(["task", "kind", "traced", "shared", "chance", "p"], shared),
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
            parts.append(
                f"{title}, the first {count} {plural(kind)}; by chance at most {both.chance[~np.eye(len(rows), dtype=bool)].max():.2g}:"
            )
            parts.append(table(["", *both.names], rows))
    return "\n\n".join(parts)


def _switches(scored: Sequence[Result]) -> str:
    rows = []
    for each in scored:
        for row in (each.switches or {"switches": []})["switches"]:
            if "kept" not in row:
                rows.append([each.title, row["switch"], "special is no further along", *["-"] * (2 * len(FIRST) + 1)])
                continue
            cells = [each.title, row["switch"], f"{row['kept']} of {row['inputs']}"]
            for kind in FIRST:
                cells += [_correlated(row[f"{kind} spearman"]), f"{row[f'{kind} shared']} of {row[f'{kind} of']}"]
            rows.append([*cells, f"{row['strongest']} {percent(row['score'])}"])
    head = ["task", "switch", "prompts that count"]
    head += [f"{plural(kind)}: {what}" for kind in FIRST for what in ("Spearman", "of the first shared")]
    return (
        "The ranking of each beside that of the defaults (projection on the instruction's direction at the chosen block, mean of "
        f"ratios, gap floor {normalise.SMALLEST_GAP:g} of the median), all by `local_linear`.\n\n"
        + table([*head, "strongest"], rows)
    )


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
            [row["one"], row["other"], exactly(row["interaction"], 2), _close(row)] for row in said["pairs"][:NUM_PAIRS]
        ]
        parts.append(
            f"{each.title}: of the ranking's first {len(said['names'])}, {len(clear)} of {len(said['pairs'])} pairs interact with an "
            f"interval clear of 0, {sum(row['interaction'] < 0 for row in clear)} of them below it (they stand for each other). All "
            f"together recover {exactly(said['joint']['value'])}, which is {exactly(said['excess']['value'])} "
            f"({_ends(said['excess'])}) more than the sum of what each recovers alone. The strongest:\n\n"
            + table(["one", "other", "interaction", "interval"], strongest)
        )
        rows = [
            [row["name"], exactly(row["alone"], 2), exactly(row["shapley"], 2), _close(row), exactly(row["last"], 2)]
            for row in worth["values"]
        ]
        parts.append(
            f"Shapley values of the first {len(rows)} ({worth['rounds']} rounds of sampled sets, interval over these); they add up to "
            f"{exactly(worth['total']['value'])}, and all together recover {exactly(worth['joint']['value'])}:\n\n"
            + table(["component", "alone (E_w)", "Shapley value", "interval", "beside all the others"], rows)
        )
        rows = [
            [
                "other prompts" if row["is_held_out"] else "the scored prompts",
                row["size"],
                row["name"],
                f"{exactly(row['recovery'])} ({_ends(row)})",
                "-"
                if row["name"] == "ranking"
                else f"{exactly(row['gain'])} ({interval(row['gain_low'], row['gain_high'])})",
                exactly(row["miss"]),
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
        parts.append(
            f"Sets of k components, found on the scored prompts: greedily ({asked['at_once']} a step, out of the ranking's first "
            f"{asked['pool']}), by learned gates over all components ({asked['steps']} steps), and by Shapley values of the first "
            f"{len(worth['values'])}:\n\n" + table(head, rows)
        )
    return "\n\n".join(parts)


def exactly(share: float, decimals: int = 1) -> str:
    """A share in per cent with so many decimals: where small differences count.

    >>> exactly(0.2249)
    '22.5 %'
    """
    return f"{100 * share:.{decimals}f} %".replace("-", "−")


def _close(row: Mapping[str, float]) -> str:
    """An interval whose ends are near each other."""
    return f"{exactly(row['low'], 3)[:-2]} to {exactly(row['high'], 3)}"


def _ends(row: Mapping[str, float]) -> str:
    return interval(row["low"], row["high"])


@drawing.styled
def figure(scored: Sequence[Result]) -> Figure:
    """A row a task: by block, what neurons recover by their weights and heads by what they write; and restoration."""
    made = drawing.sheet(2.1 * len(scored) + 0.5)
    rows = made.subplots(len(scored), 2, squeeze=False)
    for each, (depth, curves) in zip(scored, rows, strict=True):
        _depth(depth, each)
        _curves(curves, each)
    rows[-1, 0].set_xlabel("block")
    rows[-1, 1].set_xlabel("k, components put into base")
    return made


def _depth(axes: Axes, each: Result) -> None:
    layers = np.arange(len(each.weights.values["neuron"]))
    for n, (side, kind, label) in enumerate(
        (
            ("weights", "neuron", "E_w+ of neurons"),
            ("weights", "head", "E_w+ of heads"),
            ("activations", "head", "E_a+ of heads"),
        )
    ):
        sums = np.clip(getattr(each, side).values[kind], 0, None).sum(axis=1)
        colour = (drawing.KIND_COLOURS["neuron"], drawing.KIND_COLOURS["head"], drawing.ROLE_LOOKS["relay"]["color"])[n]
        axes.step(layers, 100 * sums, where="mid", color=colour, label=label)
    drawing.mark_anchor(axes, each.layer, len(layers))
    drawing.layer_ticks(axes, len(layers))
    drawing.grid(axes)
    axes.set_title(each.title, pad=16)
    axes.set_ylabel("% of the gap, summed")
    axes.legend(loc="upper left")


def _curves(axes: Axes, each: Result) -> None:
    frame = each.curves[each.curves["mode"] == "restoration"]
    names = [name for name in frame["order"].unique() if name != "top"]
    for n, name in enumerate(names):
        part = frame[frame["order"] == name]
        axes.plot(
            part["k"],
            100 * part["recovery"],
            color=drawing.CONTROL_GREYS[n],
            linestyle=drawing.CONTROL_DASHES[n],
            linewidth=1.2,
            label=name,
        )
    top = frame[frame["order"] == "top"]
    axes.fill_between(top["k"], 100 * top["low"], 100 * top["high"], color=drawing.POSITIVE, alpha=0.16, linewidth=0)
    axes.plot(top["k"], 100 * top["recovery"], color=drawing.POSITIVE, linewidth=2, label="ranking (E_w)")
    sets = each.behaviour[each.behaviour["order"] == "top"]
    axes.plot(
        sets["size"],
        100 * sets["strict"] / sets["judged"],
        color=drawing.NEGATIVE,
        marker="o",
        linestyle="none",
        label="answers that follow",
    )
    drawing.log_sizes(axes)
    axes.set_ylabel("% of the gap, of answers")
    axes.legend(loc="upper left", fontsize=7)
    drawing.grid(axes)
