"""The disjoint sets of prompts that one run needs: for the anchor, for choosing its layer, for scoring, for behaviour."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxpatch.measuring import prompts, tasks

SPLITS = ("anchor", "layer", "scoring", "behaviour")
TEXTS = ("asked", "plain", "steered", "scoring", "behaviour")
NUM_LAYER = 8
"""Prompts of a run on which base is steered to choose the layer. Which wording a prompt gets depends on how many come before it."""


class PromptSets(NamedTuple):
    """Texts of one run; no request is in two of the sets.

    asked, plain: for the anchor, the same requests with and without the instruction. steered: plain requests to steer on.
    scoring: with the instruction. behaviour: with the instruction, to be answered in full. verdicts: for each of `behaviour`, says
    whether an answer obeys; by IFEval's strict rule, and loosely by its loose one. sign: whether the beginning of an answer shows the
    behaviour. All None where nobody can judge.
    """

    name: str
    asked: tuple[str, ...]
    plain: tuple[str, ...]
    steered: tuple[str, ...]
    scoring: tuple[str, ...]
    behaviour: tuple[str, ...]
    verdicts: tuple[Callable[[str], bool], ...] | None = None
    loosely: tuple[Callable[[str], bool], ...] | None = None
    sign: Callable[[str], bool] | None = None

    def beyond(self, used: Mapping[str, int], wanted: Mapping[str, int]) -> "PromptSets":
        """The same with other scoring and behaviour prompts: as many as wanted, or as are left, after those that were used.

        >>> sets = of_task("no_comma", {"anchor": 4, "layer": 1, "scoring": 5, "behaviour": 2})
        >>> sets.beyond({"scoring": 3, "behaviour": 1}, {"scoring": 9, "behaviour": 1}).scoring == sets.scoring[3:]
        True
        """
        parts = {name: slice(used[name], used[name] + wanted[name]) for name in ("scoring", "behaviour")}
        answered = ("behaviour", "verdicts", "loosely")
        cut = {name: None if (each := getattr(self, name)) is None else each[parts["behaviour"]] for name in answered}
        return self._replace(scoring=self.scoring[parts["scoring"]], **cut)

    def hashes(self, counts: Mapping[str, int] | None = None) -> dict[str, dict[str, int | str]]:
        """Of each set how many texts it has, and their hash: whether another run would have the same. counts: of so many of the first.

        >>> sets = of_task("no_comma", {"anchor": 4, "layer": 1, "scoring": 5, "behaviour": 2})
        >>> fewer = sets._replace(scoring=sets.scoring[:3])
        >>> sets.hashes({"scoring": 3})["scoring"] == fewer.hashes()["scoring"] != sets.hashes()["scoring"]
        True
        """
        made = {}
        for name in TEXTS:
            texts = getattr(self, name)[: (counts or {}).get(name)]
            made[name] = {"count": len(texts), "sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}
        return made


def of_task(name: str, counts: Mapping[str, int], *, seed: int = 0) -> PromptSets:
    """The sets of one of the six tasks, from the prompts and held-out wordings of the package.

    Args: counts: split -> how many.

    Raises: KeyError for an unknown task, ValueError for more prompts than there are.

    Example:
        >>> sets = of_task("no_comma", {"anchor": 4, "layer": 2, "scoring": 3, "behaviour": 2})
        >>> len(sets.asked), len(sets.scoring), sets.asked[0] != sets.plain[0]
        (4, 3, True)
    """
    task = tasks.task(name)
    requests = {split: prompts.prompts(split, counts[split], seed=seed) for split in SPLITS}
    asked, first = {}, 0
    for split in SPLITS:
        asked[split] = [
            tasks.instruct(task, text, index=first + number, split="held_out")
            for number, text in enumerate(requests[split])
        ]
        first += len(requests[split])
    return PromptSets(
        name=name,
        asked=tuple(text for text, _ in asked["anchor"]),
        plain=requests["anchor"],
        steered=requests["layer"],
        scoring=tuple(text for text, _ in asked["scoring"]),
        behaviour=tuple(text for text, _ in asked["behaviour"]),
        verdicts=tuple(_judge(tasks.follows, task, instruction) for _, instruction in asked["behaviour"]),
        loosely=tuple(_judge(tasks.follows_loosely, task, instruction) for _, instruction in asked["behaviour"]),
        sign=task.sign_fn,
    )


def _judge(rule: Callable[..., bool], task: tasks.Task, instruction: tasks.Instruction) -> Callable[[str], bool]:
    return lambda text: rule(task, text, instruction)


def of_file(path: str | Path, counts: Mapping[str, int] | None = None) -> PromptSets:
    """The sets of a behaviour of your own.

    Each line of the JSONL file is ``{"with": request with the instruction, "without": the same request without it}``, and may say
    which set it belongs to: ``"split": "anchor" | "layer" | "scoring" | "behaviour"``. Where no line says so, lines are dealt out in
    turn: half to the anchor, a quarter to scoring, an eighth each to layer and behaviour.

    Args: counts: split -> how many at most; the first lines are taken.

    Raises: ValueError with every line that cannot be used, FileNotFoundError.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such task, and no such file. Tasks: {', '.join(tasks.TASKS)}.")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8.") from None
    if not content.strip():
        raise ValueError(f'{path} is empty; wanted a line {{"with": "...", "without": "..."}} for each request.')
    lines, faults = [], []
    for number, text in enumerate(content.split("\n"), 1):  # splitlines would cut at U+2028, which JSON may hold
        if text.strip():
            line, fault = _read_line(text)
            if fault:
                faults.append(f"line {number}: {fault}")
            else:
                lines.append(line)
    splits = {line.get("split") for line in lines}
    if None in splits and len(splits) > 1:
        faults.append("some lines have a split and some have none; give it to all or to none")
    texts = [line["with"] for line in lines]
    if twice := [text for text, times in Counter(texts).items() if times > 1]:
        faults.append(
            f"the same request with the instruction stands in more than one line: {', '.join(map(repr, twice))}"
        )
    dealt = _dealt(lines)
    faults += _shared(dealt)
    if not faults:
        faults += [
            f"{len(dealt[s])} prompts for {s}; wanted at least {n}" for s, n in _FEWEST.items() if len(dealt[s]) < n
        ]
    if faults:
        raise ValueError(f"{path}:\n" + "\n".join(f"  - {fault}" for fault in faults))
    if counts is not None:
        dealt = {split: several[: counts[split]] for split, several in dealt.items()}
    return PromptSets(
        name=path.stem,
        asked=_column(dealt["anchor"], "with"),
        plain=_column(dealt["anchor"], "without"),
        steered=_column(dealt["layer"], "without"),
        scoring=_column(dealt["scoring"], "with"),
        behaviour=_column(dealt["behaviour"], "with"),
    )


_FEWEST = {"anchor": 4, "layer": 1, "scoring": 2, "behaviour": 1}
_TURNS = ("anchor", "scoring", "anchor", "layer", "anchor", "scoring", "anchor", "behaviour")


def _read_line(text: str) -> tuple[dict[str, str], str | None]:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error}"
    if not isinstance(line, dict) or not all(
        isinstance(line.get(k), str) and line[k].strip() for k in ("with", "without")
    ):
        return {}, 'wanted {"with": "...", "without": "..."}, both non-empty text'
    if line["with"] == line["without"]:
        return {}, "the same with and without the instruction; wanted two texts that differ by it"
    if line.get("split", "anchor") not in SPLITS:
        return {}, f"split {line['split']!r}; wanted one of {', '.join(SPLITS)}"
    return line, None


def _dealt(lines: Sequence[Mapping[str, str]]) -> dict[str, list[Mapping[str, str]]]:
    dealt: dict[str, list[Mapping[str, str]]] = {split: [] for split in SPLITS}
    for number, line in enumerate(lines):
        dealt[line.get("split", _TURNS[number % len(_TURNS)])].append(line)
    return dealt


def _shared(dealt: Mapping[str, Sequence[Mapping[str, str]]]) -> list[str]:
    """Requests that stand in more than one set, by their text without the instruction."""
    places: dict[str, list[str]] = {}
    for split, lines in dealt.items():
        for text in dict.fromkeys(_column(lines, "without")):
            places.setdefault(text, []).append(split)
    return [
        f"the request {text!r} is dealt to {' and '.join(splits)}; give all its lines the same split, or keep one of them"
        for text, splits in places.items()
        if len(splits) > 1
    ]


def _column(lines: Sequence[Mapping[str, str]], name: str) -> tuple[str, ...]:
    return tuple(line[name] for line in lines)
