"""What a run found, as a table on disk and as a summary on the terminal."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxpatch.reporting import wording
from jaxpatch.reporting.findings import Findings

ROUND_TRIP = "%.9g"
"""Digits that give every float32 back bit for bit."""
NUM_TOP = 10


def write_scores(findings: Findings, path: str | Path) -> Path:
    """All scores as CSV: a row a component, with kind, layer, index, name, score, low, high, effect, is_exact.

    Scores are shares (1 is the whole gap); -1 stands for no layer or no index, an empty cell for no interval.
    """
    _write(findings.scores.to_frame(), findings, path)
    return Path(path)


def write_flow(findings: Findings, folder: Path) -> None:
    """flow.csv, one row an edge; flow.json, all of the graph; flow.graphml, for programs that draw graphs. None where not traced."""
    if (flow := findings.flow) is not None:
        note = f"forced: {'; '.join(findings.forced)}" if findings.forced else ""
        _write(flow.to_frame(), findings, folder / "flow.csv")
        (folder / "flow.json").write_text(flow.to_json(note), encoding="utf-8")
        (folder / "flow.graphml").write_text(flow.to_graphml(note), encoding="utf-8")


def write_roles(findings: Findings, path: str | Path) -> None:
    """E_w, E_a and role as CSV: a row a component that both methods scored; otherwise as `write_scores`. None where not placed."""
    if findings.roles is not None:
        frame = findings.roles.to_frame().rename(columns=lambda name: name.replace(" ", "_"))
        _write(frame, findings, path)


def write_curves(findings: Findings, path: str | Path) -> None:
    """Restoration and knockout as CSV: a row an order, mode and k: recovery, its interval, KL in nats, how far it lags behind
    the ranking, and that interval. None where not drawn."""
    if findings.curves:
        _write(wording.curves_frame(findings), findings, path)


def write_smallest(findings: Findings, path: str | Path) -> None:
    """The smallest beginnings of the ranking as CSV: share, size (empty where none recovers it), value (what it recovers), its
    interval, and how many of each kind it has. None where nobody looked."""
    if findings.smallest:
        rows = [
            {"share": s.share, "size": s.size, **(s.recovered._asdict() if s.recovered else {}), **s.counts}
            for s in findings.smallest
        ]
        _write(pd.DataFrame(rows).astype({"size": "Int64"}), findings, path)


def write_answers(findings: Findings, folder: Path) -> None:
    """answers.csv: a row a model and prompt, with the text and both verdicts (empty where unjudged); behaviour.csv: a row a model, with
    how many follow and how far its next tokens are from special's and base's along whole answers. None where nothing was written."""
    if findings.samples:
        _write(pd.DataFrame(findings.samples), findings, folder / "answers.csv")
        _write(wording.behaviour(findings), findings, folder / "behaviour.csv")


def _write(frame: pd.DataFrame, findings: Findings, path: str | Path) -> None:
    """Of a forced run with one column more, which says in what the anchor fails."""
    marked = frame.assign(forced="; ".join(findings.forced)) if findings.forced else frame
    marked.to_csv(path, index=False, float_format=ROUND_TRIP, lineterminator="\n")


def terminal(findings: Findings) -> RenderableType:
    """A compact summary for rich's console: the finding, the anchor's checks, ceilings, top components, trust, drops.

    Nothing in it is read as markup, whatever the prompts, paths and names hold.
    """
    found = findings.scores
    parts: list[RenderableType] = [
        Text(f"Weight patching: {findings.task}", style="bold"),
        Text(wording.headline(findings)),
        Text(),
        _facts(_asked(findings)),
    ]
    if findings.anchor_info is not None:
        parts += [Text(), _checks(findings)]
    parts += [Text(), Text("What patching many recovers", style="bold")]
    parts.append(_facts({wording.ceiling_name(name): wording.percent(share) for name, share in found.ceilings.items()}))
    parts += [Text(), _top(findings), Text()]
    parts += [Text(f"Cheap score: {line}") for line in wording.trust(findings)]
    parts += [Text(wording.promise(kind, screening)) for kind, screening in found.screening.items()]
    if found.noise:
        parts.append(Text(f"Noise floor: {wording.noise(findings)}"))
    parts += [Text(line) for line in wording.halves(findings)]
    if findings.roles is not None:
        parts += [Text(), Text("Sources and relays", style="bold")]
        parts += [Text(wording.sorted_out(findings.roles, kind)) for kind in findings.roles.roles]
        parts.append(Text())
    if findings.flow is not None:
        parts += [Text("Who supplies whom", style="bold"), *map(Text, wording.supplied(findings.flow)), Text()]
    parts += [Text(line) for mode in ("restoration", "knockout") if (line := wording.stands(findings, mode))]
    parts += [Text(line)] if (line := wording.smallest(findings)) else []
    if findings.samples:
        parts += [
            Text(),
            Text("Answers that follow the instruction (strictly, loosely)", style="bold"),
            _facts(_told(findings)),
        ]
    if found.num_dropped:
        parts.append(Text(wording.dropped(findings), style="yellow"))
    return Padding(Group(*parts), (1, 0))


def _asked(findings: Findings) -> dict[str, str]:
    found = findings.scores
    return {
        "components": wording.listed(
            [f"{values.size:,} {wording.plural(kind)}" for kind, values in found.values.items()]
        ),
        "method": f"{found.method} ({wording.METHODS.get(found.method, 'ours')})",
        "anchor": f"after block {findings.anchor.layer}, {findings.anchor.read_out}",
        "prompts": wording.prompts_used(findings),
    }


def _facts(facts: Mapping[str, str]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _told(findings: Findings) -> dict[str, str]:
    return {
        row["model"]: f"{row['strict']}, {row['loose']} of {row['judged']}" if row["judged"] else "not judged"
        for row in wording.behaviour(findings).to_dict("records")
    }


def _grid(title: str, *columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=Text(title, style="bold"), title_justify="left", padding=(0, 1), pad_edge=False
    )
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=number > 0)
    return table


def _checks(findings: Findings) -> Table:
    assert findings.anchor_info is not None
    table = _grid("The anchor's checks", "check", "value", "wanted", "")
    for check in findings.anchor_info.checks:
        verdict = Text("passed", style="green") if check.is_passed else Text("FAILED", style="bold red")
        table.add_row(Text(check.name), Text(wording.number(check.value)), Text(check.wanted), verdict)
    return table


def _top(findings: Findings) -> Table:
    table = _grid("Highest scores", "component", "E_w", f"95{wording.SPACE}% interval", "exact")
    for row in wording.ranking(findings).head(NUM_TOP).to_dict("records"):
        ends = wording.interval(row["low"], row["high"])
        is_exact = "yes" if row["is_exact"] else "no"
        table.add_row(Text(row["name"]), Text(wording.percent(row["score"])), Text(ends), Text(is_exact))
    return table
