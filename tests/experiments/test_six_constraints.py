"""The experiment of six constraints, on tiny models: every file, a page whose numbers are the files', and going on."""

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import findings
import numpy as np
import page
import page_curves
import page_words
import pandas as pd
import pytest
import run as six

from jaxpatch import testing
from jaxpatch.reporting import manifest as manifests
from jaxpatch.reporting.wording import interval, percent

ROOT = Path(__file__).parents[2]
SHORT = [
    "--num-anchor",
    "4",
    "--num-scoring",
    "3",
    "--num-behaviour",
    "1",
    "--num-random",
    "1",
    "--max-new",
    "2",
    "--top",
    "5",
]
TASKS = ("english_capital", "no_comma")
SETS = [
    ("base", None, None),
    ("special", None, None),
    ("base + top 10", "top", 10),
    ("base + top 100", "top", 100),
]


def experiment(folder: Path, *more: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "experiments/six_constraints/run.py"), "--out", str(folder / "results")]
    command += ["--base", str(folder / "base"), "--special", str(folder / "special"), "--docs", str(folder / "docs")]
    command += [*SHORT, "--tasks", *TASKS, *more]
    paths = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False, env=paths, cwd=folder)


@pytest.mark.slow
def test_the_whole_chain_ends_in_a_page_that_says_what_the_files_say(tmp_path):
    testing.tiny_checkpoints(tmp_path, seed=6)
    done = experiment(tmp_path, "--force")
    assert done.returncode == 0, done.stderr[-3000:]
    results, docs = tmp_path / "results", tmp_path / "docs"
    assert {path.name for path in results.iterdir()} == {
        *TASKS,
        *(f"english_capital.{n}.json" for n in ("fresh", "switches", "together")),
        "no_comma.fresh.json",
    }
    text = (docs / "six_constraints.md").read_text(encoding="utf-8")
    assert (docs / "six_constraints.svg").read_text(encoding="utf-8").startswith("<?xml")
    manifest = json.loads((results / "english_capital" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["command"] in text and manifest["forced"] and text.count("**failed**") == len(TASKS)
    assert "Scored all the same (--force):" in text and "not scored" not in text
    assert f"--tasks {' '.join(TASKS)} --force" in text, "the command that was typed"
    for part in ("What the paper finds", "Sources and relays", "Restoration", "Inner recovery", "Who supplies whom"):
        assert f"\n## {part}" in text
    for row in pd.read_csv(results / "no_comma" / "behaviour.csv").to_dict("records"):
        assert re.search(
            rf"\| no_comma \(forced\) \| {re.escape(row['model'])} \| .* \| {row['strict']} of 1 \([^|]*%\) \| {row['loose']} of 1 \|",
            text,
        )
    switches = json.loads((results / "english_capital.switches.json").read_text(encoding="utf-8"))
    assert switches["switches"][0]["head spearman"] == pytest.approx(1)
    fresh = json.loads((results / "english_capital.fresh.json").read_text(encoding="utf-8"))
    assert {row["order"] for row in fresh["fresh"]} > {"top", "first order", "largest E_a", "random"}
    assert fresh["forced"] == manifest["forced"]
    assert {row["lag"] for row in fresh["fresh"] if row["order"] == "top"} == {0}
    centred = next(row for row in switches["switches"] if row["switch"] == "read-out: centred")
    assert centred["head spearman"] == pytest.approx(1), "a centre moves nothing"
    together = json.loads((results / "english_capital.together.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in together["compared"]} == {"ranking", "greedy", "learned gates", "Shapley values"}
    assert switches["forced"] == together["forced"] == manifest["forced"]
    told = text[text.index("\n## In plain words") :]
    for task in TASKS:
        assert told.count(task) == told.count(f"{task} (forced)") > 10, "wherever it is named, it is said to be forced"
    assert {row["is_held_out"] for row in together["compared"]} == {False, True}

    beside = docs / "six_constraints"
    assert (beside / "no_comma.curves.csv").read_bytes() == (results / "no_comma" / "curves.csv").read_bytes()
    assert {file.name for file in beside.iterdir()} == {
        *(f"{task}.{table}.csv" for task in TASKS for table in page.TABLES),
        *(file.name for file in results.glob("*.json")),
    }

    again = experiment(tmp_path, "--force")
    assert again.returncode == 0 and again.stdout.count("is there already") == len(TASKS)
    assert (docs / "six_constraints.md").read_text(encoding="utf-8") == text
    other = experiment(tmp_path, "--force", "--seed", "1", "--tasks", "no_comma")
    assert other.returncode == 0 and "is there already" not in other.stdout, "other options are another run"


@pytest.mark.parametrize(("forced", "is_same"), [([], True), (["mean gap G"], False)])
def test_force_is_another_question_only_where_an_anchor_fails(tmp_path, forced, is_same):
    chosen = argparse.Namespace(base="base", special="special", out=tmp_path, force=False, **six.SETTINGS)
    asked = six.settings("no_comma", chosen)
    said = {"options": manifests.plain(six.run.asked(asked)), "forced": forced}
    (tmp_path / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    other = dataclasses.replace(asked, seed=1)
    same = dataclasses.replace(asked, force=True)
    done = [six.is_done(tmp_path / "manifest.json", each) for each in (asked, same, other)]
    assert done == [True, is_same, False]


@pytest.mark.slow
def test_tasks_whose_anchor_fails_are_reported_and_not_scored(tmp_path):
    testing.tiny_checkpoints(tmp_path, seed=6)
    done = experiment(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    text = (tmp_path / "docs" / "six_constraints.md").read_text(encoding="utf-8")
    assert "Reported, and not scored" in text and "## Restoration" not in text
    for task in TASKS:
        said = json.loads((tmp_path / "results" / f"{task}.refused.json").read_text(encoding="utf-8"))
        assert "the anchor fails its checks" in said["said"] and f"* {task}: " in text
    assert experiment(tmp_path).stdout.count("is there already") == len(TASKS)


@pytest.mark.parametrize(
    ("special", "written", "verdict"),
    [
        ("11111111", "00000000", "holds"),
        ("11111111", "10000000", "holds"),  # 7 of 7 one way: p 0.016
        ("11111111", "11100000", "cannot be told"),  # 5 of 5: p 0.063
        ("00000000", "11111111", "**does not hold**"),
        ("11110000", "00001111", "cannot be told"),  # as many, on other prompts
        ("00000000", "00000000", "cannot be told"),
    ],
)
def test_state_is_not_behaviour_by_a_sign_test_of_the_first_set_with_all_of_the_state(special, written, verdict):
    """Of the sets that wrote, that of 100 is the first with all of the state."""
    models = {"base": "00000000", "special": special, "base + top 10": special, "base + top 100": written}
    answers = pd.DataFrame(
        [(str(n), model, mark == "1") for model, marks in models.items() for n, mark in enumerate(marks)],
        columns=["prompt", "model", "follows"],
    )
    rows = [(model, order, size, models[model].count("1")) for model, order, size in SETS]
    behaviour = pd.DataFrame(rows, columns=["model", "order", "size", "strict"]).assign(judged=8)
    curves = pd.DataFrame({"order": "top", "mode": "restoration", "k": [10, 30, 100], "recovery": [0.1, 1.2, 1.1]})
    told = findings.state_is_not_behaviour(SimpleNamespace(behaviour=behaviour, curves=curves, answers=answers))
    assert told.verdict == verdict
    assert told.value.startswith(
        f"with 100, {percent(1.1)} of the state and {written.count('1')} of 8 answers; special "
    )


def restored(**others):
    """Restoration at 3 and 30 of 1,000 by the ranking, 0.3 and 0.9, and by others."""
    rows = [
        (name, "restoration", k, value, value - 0.05, value + 0.05)
        for name, values in {"top": (0.3, 0.9), **others}.items()
        for k, value in zip((3, 30, 1000), (*values, 1.0), strict=True)
    ]
    return pd.DataFrame(rows, columns=["order", "mode", "k", "recovery", "low", "high"])


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ({"random": (0.1, 0.2), "largest E_a": (0.2, 0.9)}, "holds"),
        ({"random": (0.1, 0.85)}, "cannot be told"),
        ({"largest change": (0.9, 0.2)}, "cannot be told"),
    ],
)
def test_few_are_no_finding_where_as_few_that_no_score_chose_do_as_well(others, verdict):
    smallest = pd.DataFrame({"share": [0.8], "size": [20.0]})
    assert findings.few_recover_it(SimpleNamespace(curves=restored(**others), smallest=smallest)).verdict == verdict


def test_a_lead_is_clear_where_its_interval_on_the_same_prompts_is():
    frame = pd.DataFrame(
        [
            ("top", 30, 0.5, 0.3, 0.7, 0.0, 0.0, 0.0),
            ("one", 30, 0.49, 0.3, 0.7, 0.01, 0.005, 0.02),
            ("other", 30, 0.4, 0.1, 0.7, 0.1, -0.1, 0.3),
            ("third", 30, 0.6, 0.5, 0.7, -0.1, -0.2, 0.1),
            ("same", 30, 0.5, 0.3, 0.7, 0.0, 0.0, 0.0),
            ("better", 30, 0.6, 0.5, 0.7, -0.1, -0.2, -0.05),
            ("top", 100, 0.9, 0.8, 1.0, 0.0, 0.0, 0.0),
        ],
        columns=["order", "k", "recovery", "low", "high", "lag", "lag_low", "lag_high"],
    )
    told = page_curves._against(frame, 1000)
    assert told == [
        [
            "30",
            f"50.0 % ({interval(0.3, 0.7)})",
            *("49.0 % (0.5 to 2.0)", "40.0 % (−10.0 to 30.0)", "60.0 % (−20.0 to 10.0)"),
            *("50.0 % (0.0 to 0.0)", "60.0 % (−20.0 to −5.0)"),
            "clearly ahead of one; ahead, not clearly, of other; level with same; not ahead of third; clearly behind better",
        ]
    ]


def told_of(**counts):
    """Relays and sources, as many as is said, of each role and kind."""
    rows = [
        (kind, role, layer, high)
        for name, (number, layer, high) in counts.items()
        for role, kind in [name.split("_")]
        for _ in range(number)
    ]
    roles = pd.DataFrame(rows, columns=["kind", "role", "layer", "E_a"])
    weights = SimpleNamespace(values={"neuron": np.zeros((30, 10))})
    return SimpleNamespace(layer=20, roles=roles, weights=weights, flow={"rules": {"least": 0.05}})


@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        ({"relay_head": (6, 10, 0.2), "neither_head": (50, 10, 0.0), "neither_neuron": (900, 10, 0.0)}, "holds"),
        (
            {"relay_head": (4, 10, 0.2), "neither_head": (50, 10, 0.0), "neither_neuron": (900, 10, 0.0)},
            "cannot be told",
        ),
        (
            {"relay_head": (6, 10, 0.04), "neither_head": (50, 10, 0.0), "relay_neuron": (900, 10, 0.1)},
            "**does not hold**",
        ),
        ({"both_head": (6, 10, 0.2), "neither_head": (50, 10, 0.0), "relay_neuron": (900, 10, 0.01)}, "holds"),
    ],
)
def test_heads_and_neurons_are_relays_by_the_same_share_of_the_state(counts, verdict):
    assert findings.relays_are_heads(told_of(**counts)).verdict == verdict


def test_what_is_both_is_on_neither_side_of_relays_and_sources():
    told = findings.relays_stand_above(
        told_of(relay_head=(9, 18, 0.2), source_head=(9, 4, 0.0), both_head=(50, 2, 0.2))
    )
    assert told.verdict == "holds" and "9 relays" in told.value and "9 sources" in told.value


def test_suppliers_are_counted_over_all_kinds():
    overlap = [
        {"kind": "head", "shared": 8, "traced": 10, "chance": 0.1, "p": 1e-9},
        {"kind": "neuron", "shared": 1, "traced": 20, "chance": 0.001, "p": 0.2},
    ]
    told = findings.suppliers_are_sources(SimpleNamespace(flow={"overlap": overlap}))
    assert told.verdict == "not above chance, fewer than the paper's"
    assert told.value.startswith("9 of 30 (") and "8 of 10 heads, 1 of 20 neurons" in told.value


@pytest.mark.parametrize(
    ("strict", "said"),
    [((1, 5, 1), "; with all 300 that can reach the anchor 1 follow"), ((1, 5, 6), ""), ((5, 5, 5), "")],
)
def test_answers_that_are_lost_again_are_said(strict, said):
    sets = [("top", size, own) for size, own in zip((10, 100, 300), strict, strict=True)]
    frame = pd.DataFrame([("end", np.nan, 0), ("end", np.nan, 8), *sets], columns=["order", "size", "strict"])
    frame["model"] = ["base", "special", *(f"base + top {size}" for _, size, _ in sets)]
    assert page_words._and_back(SimpleNamespace(behaviour=frame), 100) == said
