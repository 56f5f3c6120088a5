"""docs/results/six_constraints.md and its figure, out of the files that `run.py` left: every number of it comes from one of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cells
import findings
import page_anchors
import page_beside
import page_components
import page_curves
import page_words
import picture
import result
from result import Refused, Result

from jaxpatch import atomic
from jaxpatch.reporting import drawing
from jaxpatch.reporting.wording import listed

TABLES = ("curves", "smallest", "behaviour", "answers", "flow")
PARTS = ("refused", "fresh", "switches", "together")
"""Files of a task's results that stand beside the page: all but the scores, which are megabytes."""


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
        page_anchors.anchors(found),
    ]
    if scored:
        parts += [
            "![For each task: E_w of neurons and E_a of heads by block; restoration against its controls](six_constraints.svg)",
            "## In plain words",
            "\n".join(f"* {page_words.plain(each)}" for each in scored),
            "## What the paper finds, and what is found here",
            findings.of_tasks(scored),
            "## Sources and relays",
            page_components.sources(scored),
            "## Restoration and knockout, against controls of equal size",
            page_curves.restoration(scored),
            "## The same on prompts that no score saw",
            page_curves.fresh(scored),
            "## Would other prompts rank alike?",
            page_curves.halves(scored),
            "## Inner recovery and behaviour",
            page_curves.behaviour(scored),
            "## Who supplies whom",
            page_components.supply(scored),
            "## Do the tasks share their components?",
            page_components.overlaps(scored),
        ]
        parts += (
            ["## Every choice, turned by itself", page_beside.switches(scored)]
            if any(r.switches for r in scored)
            else []
        )
        parts += (
            ["## What ranking one by one loses", page_beside.together(scored)]
            if any(r.together for r in scored)
            else []
        )
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
