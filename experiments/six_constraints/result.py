"""What a run left of each task, read again; and where half of its state and of its answers is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import jaxpatch as jp
from jaxpatch.validating import controls

CLEARLY = 0.25
"""Of the answers: by so many more special must follow than base, for a half way between them to mean something."""


class Result(NamedTuple):
    """One task that was scored. Tables are the run's own; fresh, switches and together are None where nobody asked."""

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
    answers: pd.DataFrame
    fresh: Mapping[str, Any] | None
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


def read(results: Path, name: str) -> Result | Refused | None:
    """What is there of one task; None of one that has no results yet."""
    refused = results / f"{name}.refused.json"
    if refused.is_file():
        said = json.loads(refused.read_text(encoding="utf-8"))
        return Refused(name, said["said"], said["anchor"], said["seconds"])
    folder = results / name
    if not (folder / "manifest.json").is_file():
        return None
    parts = [results / f"{name}.{part}.json" for part in ("fresh", "switches", "together")]
    return Result(
        name,
        json.loads((folder / "manifest.json").read_text(encoding="utf-8")),
        jp.load_scores(folder / "scores.safetensors"),
        jp.load_scores(folder / "activations.safetensors"),
        *(pd.read_csv(folder / f"{table}.csv") for table in ("roles", "curves", "smallest", "behaviour")),
        json.loads((folder / "flow.json").read_text(encoding="utf-8")),
        pd.read_csv(folder / "flow.csv"),
        pd.read_csv(folder / "answers.csv"),
        *(json.loads(part.read_text(encoding="utf-8")) if part.is_file() else None for part in parts),
    )


def half_way(each: Result) -> tuple[int | None, int | None]:
    """The first k at which half of the state is recovered, and at which half as many answers follow as of special's."""
    top = each.curves.query("order == 'top' and mode == 'restoration'")
    state = top.loc[top["recovery"] >= 0.5, "k"]
    ends = each.behaviour.set_index("model")["strict"]
    if not is_shown(each):
        return (int(state.iloc[0]) if len(state) else None), None
    sets = each.behaviour[each.behaviour["order"] == "top"]
    enough = sets.loc[sets["strict"] >= (ends["special"] + ends["base"]) / 2, "size"]
    return (int(state.iloc[0]) if len(state) else None), (int(enough.iloc[0]) if len(enough) else None)


def is_shown(each: Result) -> bool:
    """Whether special's answers show the behaviour clearly more often than base's, so that something can lie between them."""
    ends = each.behaviour.set_index("model")["strict"]
    return bool(ends["special"] - ends["base"] >= CLEARLY * each.behaviour["judged"].iloc[0])


def others_there(each: Result, size: int | None) -> str:
    """Sets of so many components that no score chose and whose answers come half way, too: then it is no merit of the ranking's."""
    sets, ends = each.behaviour[each.behaviour["size"] == size], each.behaviour.set_index("model")["strict"]
    is_there = sets["order"].isin(controls.NAMES) & (sets["strict"] >= (ends["special"] + ends["base"]) / 2)
    return "; ".join(sets.loc[is_there, "order"])
