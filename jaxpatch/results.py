"""Shell: the folder that a run leaves."""

import os
from pathlib import Path

from jaxpatch import atomic
from jaxpatch.measuring import anchor_file
from jaxpatch.reporting import figures, findings, manifest, report, tables
from jaxpatch.scoring import archive

RESULTS = {
    "report.html",
    "scores.csv",
    "roles.csv",
    "flow.csv",
    "flow.json",
    "flow.graphml",
    "scores.safetensors",
    "activations.safetensors",
    "curves.csv",
    "smallest.csv",
    "answers.csv",
    "behaviour.csv",
    "anchor.safetensors",
    "manifest.json",
    "figures",
}
"""What a run writes; a folder that holds anything else is not ours to replace."""
ROOM_NEEDED = 50_000_000
"""Free bytes the results need at most."""


def write(made: findings.Findings, out: Path, *, overwrite: bool) -> None:
    """All of `RESULTS` that there is something to say in, or nothing."""
    with atomic.directory(out, overwrite=overwrite) as folder:
        tables.write_scores(made, folder / "scores.csv")
        note = f"forced: {'; '.join(made.forced)}" if made.forced else ""
        archive.save_scores(made.scores, folder / "scores.safetensors", note=note)
        tables.write_roles(made, folder / "roles.csv")
        if made.roles is not None:
            archive.save_scores(made.roles.activations, folder / "activations.safetensors", note=note)
        tables.write_flow(made, folder)
        tables.write_curves(made, folder / "curves.csv")
        tables.write_smallest(made, folder / "smallest.csv")
        tables.write_answers(made, folder)
        about = {"task": made.task} | ({"forced": "; ".join(made.forced)} if made.forced else {})
        anchor_file.save_anchor(made.anchor, folder / "anchor.safetensors", **about)
        manifest.write({**made.manifest, "forced": made.forced}, folder / "manifest.json")
        drawn = figures.save_all(made, folder / "figures")
        (folder / "report.html").write_text(report.render(made, drawn), encoding="utf-8")


def place_faults(out: Path, *, overwrite: bool) -> list[str]:
    """What keeps results from being written; nothing but an earlier run's results is ever replaced."""
    out = out.expanduser()
    if os.path.lexists(out) and not overwrite:
        return ["it exists and is not overwritten; name another, or say --overwrite"]
    names = {path.name for path in out.iterdir()} if out.is_dir() else None
    if os.path.lexists(out) and (names is None or not names <= RESULTS or (names and "report.html" not in names)):
        return ["it exists and holds other things than results of an earlier run, so --overwrite does not replace it"]
    return atomic.place_faults(out, ROOM_NEEDED)
