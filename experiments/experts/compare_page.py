"""docs/results/experts.md, out of the comparison's files alone."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpatch import atomic
from jaxpatch.reporting.wording import listed

DRAWS = 4000
FIRST = {"head": 30, "kv": 15, "neuron": 1000}
"""Components of each expert that are looked at for conflicts."""
SORTS = {"baseline": "looks at no component", "scores": "by scores", "learned": "by gradient", "control": "control"}
WAYS = {"scores": "go by scores", "learned": "learn gates of components"}
"""What is compared with all that looks at no component."""


class Entry(NamedTuple):
    """A contender's results on one team."""

    method: str
    said: Mapping[str, Any]

    @property
    def validated(self) -> float:
        """By which its settings were chosen: what is left of base's distance from the experts, the mean over them, of its best try."""
        return min(each["left"] for each in self.said["tries"])

    def verdicts(self, name: str) -> np.ndarray:
        """Of one task: [seeds, prompts]."""
        return np.array([test["verdicts"][name] for test in self.said["tests"]], float)

    def mean_of(self, what: str) -> float:
        """Over seeds."""
        return float(np.mean([test[what] for test in self.said["tests"]]))


class Drawn(NamedTuple):
    """Prompts drawn again, the same for all contenders: task -> [draws, prompts]; and each expert's own score on them."""

    rows: Mapping[str, np.ndarray]
    own: Mapping[str, np.ndarray]


def drawn(alone: Mapping[str, Any], names: Sequence[str], seed: int = 0) -> Drawn:
    """The first row is the prompts as they are."""
    rng, rows, own = np.random.default_rng(seed), {}, {}
    for name in names:
        verdicts = np.array(alone[name]["verdicts"][name], float)
        count = len(verdicts)
        rows[name] = np.concatenate([np.arange(count)[None], rng.integers(0, count, (DRAWS, count))])
        own[name] = verdicts[rows[name]].mean(axis=1)
    return Drawn(rows, own)


def normalised(entry: Entry, again: Drawn) -> np.ndarray:
    """The mean over tasks of the score as a share of the expert's own, on all draws; its seeds are drawn again, too."""
    return np.mean([_reached(entry, name, again) / np.maximum(again.own[name], 1e-9) for name in again.rows], axis=0)


def _reached(entry: Entry, name: str, again: Drawn) -> np.ndarray:
    """The share of right answers to one task, on all draws; of seeds the same are drawn for all tasks."""
    num_seeds, rng = len(entry.said["tests"]), np.random.default_rng(list(entry.method.encode()))
    seeds = np.concatenate([np.arange(num_seeds)[None], rng.integers(0, num_seeds, (DRAWS, num_seeds))])
    return entry.verdicts(name)[seeds[:, :, None], again.rows[name][:, None]].mean(axis=(1, 2))


def _setting(entry: Entry, name: str) -> str:
    """One that was chosen, and whether it is the first or the last of its grid."""
    values, value = entry.said["grid"][name], entry.said["settings"][name]
    return f"{name} {value:g}" + (" (at the edge)" if value in (values[0], values[-1]) else "")


def interval(values: np.ndarray) -> str:
    """The first, and 95 % of the others."""
    low, high = np.percentile(values[1:], (2.5, 97.5))
    return f"{values[0]:.2f} ({low:.2f} to {high:.2f})"


def place(names: Sequence[str], method: str) -> str:
    """Where a contender's results on a team are, but for the folder and .json.

    >>> place(("sums", "records"), "mask, then TIES")
    'sums-records/mask-then-TIES'
    """
    return f"{'-'.join(names)}/{method.replace(', ', '-').replace(' ', '-')}"


def write(
    out: Path,
    docs: Path,
    asked_for: Mapping[Sequence[str], Sequence[str]],
    done: Mapping[Sequence[str], Sequence[str]],
    command: str,
) -> None:
    """The page. asked_for, done: of each team the contenders that are to take part, and those whose results are there."""
    alone = read(out / "alone.json")
    parts = [
        "# Merging experts",
        f"```\n{command}\n```",
        "Three experts of SmolLM2-135M-Instruct (Q4_1, dequantised): answers in capitals or quotation marks "
        "(`experiments/six_constraints`), sums with their working, and records out of sentences (`experiments/experts`). Every "
        "contender is tried by three settings, where it has any, and all that go from one model to another by parts of that way, on "
        f"{alone['asked']['validation']} prompts of each task to validate by (KL to each expert along its own answers, as a share of "
        f"base's), and the best of these is tested once, on {alone['asked']['test']} prompts of each task; random ones with "
        f"{alone['asked']['seeds']} seeds. All that is learned by gradient takes as many steps, and is learned once; these are few "
        "for the mask of Localize-and-Stitch, which is of a hundred million numbers.",
        "Scores are shares of right answers; normalised, shares of the expert's own. Intervals are 95 %, over prompts drawn again, the "
        "same for all, and over the seeds of random ones. Where all answers are right they have no width, though of "
        f"{alone['asked']['test']} right ones out of as many one may only conclude that {_at_least(alone['asked']['test']):.0%} or "
        "more are (Wilson). Each is of one comparison: of several baselines one is passed by chance more often, all of them are not. "
        "A setting is *at the edge* where the best of the tries was the smallest or the largest, so another might be better.",
        "What else became of a model is seen in answers of base's to prompts that ask for nothing: their perplexity, which a model "
        "that is surer of itself may lower; and the distance from base along them, KL in nats a token, which only base has at 0.",
        "Controls are of the way of their sort that validated best, and are tried by all its settings: shuffled, components of a kind "
        "and layer have each other's gates; by change, a component's score is by how much its expert changed it, or the largest of the "
        "gates that were learned go to those that it changed most.",
        "## Base and experts alone",
        _alone(alone),
    ]
    minutes, sources = 0.0, {commit(alone)}
    for names, methods in asked_for.items():
        found = [read(out / f"{place(names, method)}.json") for method in done[names]]
        entries = [Entry(each["method"], each) for each in found]
        missing = [method for method in methods if method not in done[names]]
        if missing:
            parts.append(f"Not run yet, of {listed(list(names))}: {'; '.join(missing) if entries else 'all'}.")
        if entries:
            minutes += sum(each["seconds"] for each in found) / 60
            sources |= {commit(each) for each in found}
            parts += [f"## {' and '.join(names) if len(names) == 2 else 'All three'}", *_team(entries, alone, names)]
    parts += ["## Where experts meet", _conflicts(read(out / "conflicts.json"))]
    parts.append(
        f"Contenders took {minutes:.0f} minutes, beside answers of the experts, scores, and statistics of their data"
        + (f", which took {alone['before']['seconds'] / 60:.0f}" if "before" in alone else "")
        + f"; commit {', '.join(sorted(sources))}. What each made and was judged by stands in [experts](experts), a file each."
    )
    atomic.text(docs / "experts.md", "\n\n".join(parts) + "\n", overwrite=True)


def _alone(alone: Mapping[str, Any]) -> str:
    names = [name for name in alone if name in alone.get(name, {}).get("verdicts", {})]
    rows = []
    for who, said in alone.items():
        if "verdicts" in said:
            shares = [f"{np.mean(said['verdicts'][name]):.0%}" if name in said["verdicts"] else "" for name in names]
            rows.append([who, *shares, f"{said['neutral perplexity']:.2f}"])
    return table(["model", *names, "perplexity of base's neutral answers"], rows)


def _team(entries: Sequence[Entry], alone: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    again = drawn(alone, names)
    reached = {entry.method: normalised(entry, again) for entry in entries}
    ordered = sorted(entries, key=lambda entry: -reached[entry.method][0])
    rows = []
    for entry in ordered:
        shares = []
        for name in names:
            score, base = _reached(entry, name, again), np.mean(alone["base"]["verdicts"][name])
            low, high = np.percentile(score[1:], (2.5, 97.5))
            shares.append(f"{score[0]:.0%} ({low:.0%} to {high:.0%})" + (", below base" if score[0] < base else ""))
        settings = ", ".join(_setting(entry, key) for key in entry.said["settings"])
        rows.append(
            [
                entry.method,
                SORTS[entry.said["sort"]],
                *shares,
                interval(reached[entry.method]),
                f"{entry.mean_of('neutral perplexity'):.2f}",
                f"{entry.mean_of('neutral KL'):.2f}",
                f"{entry.said['differs']:.0%}",
                f"{entry.said['size']:.2f}",
                "" if entry.said["gates"] is None else f"{np.mean(entry.said['gates']):.0%}",
                f"{entry.validated:.3f}",
                settings,
            ]
        )
    head = [
        "method",
        "",
        *names,
        "normalised, mean",
        "neutral perplexity",
        "neutral KL from base",
        "parameters changed",
        "size of the change",
        "gates take",
        "left of the distance to the experts, validated",
        "chosen",
    ]
    return [table(head, rows), *_verdict(ordered, reached, alone, names)]


def _verdict(
    ordered: Sequence[Entry], reached: Mapping[str, np.ndarray], alone: Mapping[str, Any], names: Sequence[str]
) -> list[str]:
    """Of each sort of way that which validated best, against all that looks at no component and against its controls; task by task."""
    baselines, parts = [entry for entry in ordered if entry.said["sort"] == "baseline"], []
    for sort, says in WAYS.items():
        ours = [entry for entry in ordered if entry.said["sort"] == sort]
        if not ours or not baselines:
            continue
        chosen = min(ours, key=lambda entry: entry.validated)
        controls = [entry for entry in ordered if entry.said["of"] == chosen.method]
        lines, ahead = [], 0
        for entry in (*baselines, *controls):
            apart = reached[chosen.method] - reached[entry.method]
            is_ahead = bool(np.percentile(apart[1:], 2.5) > 0)
            ahead += is_ahead and entry in baselines
            lines.append((entry.method, interval(apart), "ahead" if is_ahead else _behind(apart)))
        strongest = baselines[0]
        all_of_them = (
            "so it wins over every baseline" if ahead == len(baselines) else "so it does not win over every baseline"
        )
        parts += [
            f"Of those that {says}, {chosen.method} validated best. It is ahead of {ahead} of {len(baselines)} baselines outside the "
            f"interval, {all_of_them}. Of its sort {ours[0].method} tested best, and of the baselines {strongest.method}.",
            table(["beside", f"{chosen.method} less this, normalised", "outside the interval"], lines),
            _by_task(chosen, strongest, alone, names),
        ]
    return parts


def _behind(apart: np.ndarray) -> str:
    return "behind" if np.percentile(apart[1:], 97.5) < 0 else "neither"


def _at_least(count: int, z: float = 1.96) -> float:
    """The lower end of Wilson's interval where all of so many are right."""
    return count / (count + z**2)


def _by_task(chosen: Entry, strongest: Entry, alone: Mapping[str, Any], names: Sequence[str]) -> str:
    """What was lost of each expert, and to whom: prompts that only one of the two answers right."""
    rows = []
    for name in names:
        own = np.array(alone[name]["verdicts"][name], bool)
        one, other = (entry.verdicts(name)[0] > 0 for entry in (chosen, strongest))
        rows.append(
            [
                name,
                int(own.sum()),
                int(np.sum(alone["base"]["verdicts"][name])),
                int(one.sum()),
                int(other.sum()),
                int((one & ~other).sum()),
                int((other & ~one).sum()),
                int((own & ~one).sum()),
            ]
        )
    head = [
        f"right of {alone['asked']['test']}",
        "expert",
        "base",
        chosen.method,
        strongest.method,
        "the first alone",
        "the second alone",
        "the expert, not the first",
    ]
    return table(head, rows)


def _conflicts(said: Mapping[str, Any]) -> str:
    rows = [
        [
            kind,
            FIRST[kind],
            f"{each['one']}, {each['other']}",
            each["shared"],
            f"{each['chance']:.1f}",
            _number(each["cosine"]),
            _number(each["signs_opposed"]),
        ]
        for kind in FIRST
        for each in said[kind]
    ]
    head = ["kind", "first", "experts", "shared", "by chance", "cosine of what both changed", "parameters pulled apart"]
    return (
        "Of the components that an expert's own task needs most, those that another's needs, too; and whether the two change them the "
        "same way.\n\n" + table(head, rows)
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def commit(said: Mapping[str, Any]) -> str:
    """Of the code that made a result, shortened."""
    return (said.get("source") or {}).get("commit", "unknown")[:7]


def read(file: Path) -> dict[str, Any]:
    """A result."""
    return json.loads(file.read_text(encoding="utf-8"))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *rows))
