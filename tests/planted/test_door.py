"""The door: files in the frozen format, predictions in, a row of the board out; and it needs nothing of jaxpatch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.planted import door

ROOT = Path(__file__).parents[2]
MARKS = {"format": door.FORMAT, "version": door.VERSION}
VALUES = {"head": [[0.5, 0.1], [0.0, 0.2]], "neuron": [[0.0], [0.9]]}


@pytest.fixture
def folder(tmp_path):
    kinds = {"head": [2, 2], "neuron": [2, 1]}
    said = MARKS | {"name": "both", "seed": 3, "layer": 1, "kinds": kinds}
    (tmp_path / "problem.json").write_text(json.dumps(said), encoding="utf-8")
    truth = {"head": [[1, 0], [0, 0]], "neuron": [[0], [1]]}
    (tmp_path / "truth.json").write_text(json.dumps(MARKS | {"truth": truth}), encoding="utf-8")
    arrays = {"tokens": np.zeros((2, 3), np.int32), "lengths": np.array([3, 2], np.int32)}
    save_file(arrays | {"direction": np.eye(4, dtype=np.float32)[0]}, tmp_path / "problem.safetensors")
    return tmp_path


def predictions(**changes):
    return {"method": "mine", "cost": 12, "values": VALUES} | changes


def test_a_row_of_the_board(folder):
    row = door.row(folder, predictions())
    assert (row["family"], row["seed"], row["method"], row["cost"]) == ("both", 3, "mine", 12.0)
    assert row["auroc"] == row["precision"] == 1 and row["first_miss"] == 3
    unknown = door.row(folder, predictions(values=VALUES | {"head": [[None, 0.1], [0.0, 0.2]]}))
    assert unknown["not_numbers"] == 1 and unknown["precision"] == 0.5


def test_a_problem_says_nothing_of_the_truth(folder):
    asked = door.problem(folder)
    assert asked.kinds == {"head": (2, 2), "neuron": (2, 1)} and asked.layer == 1 and asked.base == folder / "base"
    (folder / "truth.json").unlink()
    assert door.problem(folder).name == "both"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(method=None), "method: wanted a name; got None"),
        (dict(cost=-1), "cost: wanted forward-equivalents, at least 0; got -1"),
        (dict(values=[]), "values: wanted an object with head, neuron; got list"),
        (dict(values={"head": VALUES["head"]}), r"values of neuron: wanted \(2, 1\); got nothing"),
        (dict(values=VALUES | {"heads": []}), "there is no kind 'heads'; there are head, neuron"),
        (dict(values=VALUES | {"neuron": [0, 1]}), r"values of neuron: wanted \(2, 1\); got \(2,\)"),
        (
            dict(values=VALUES | {"neuron": [["a"], [1]]}),
            r"values of neuron: wanted \(2, 1\); got \(0,\), or no numbers",
        ),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(folder, changes, words):
    with pytest.raises(ValueError, match=words):
        door.row(folder, predictions(**changes))


def test_all_faults_at_once(folder):
    with pytest.raises(ValueError, match=r"(?s)method: .*cost: .*values: .*values of head: .*values of neuron"):
        door.row(folder, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "other"}', "got 'other', version None"),
        ('{"format": "jaxpatch planted pair", "version": 2}', "version 1; got 'jaxpatch planted pair', version 2"),
        ("[]", "got None, version None"),
        ("{", "no file of a planted pair"),
    ],
)
def test_files_of_another_format_are_refused(folder, text, words):
    (folder / "problem.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        door.problem(folder)


def test_the_command_needs_nothing_of_jaxpatch(folder, tmp_path):
    """Run where importing jax or jaxpatch fails."""
    (tmp_path / "mine.json").write_text(json.dumps(predictions()), encoding="utf-8")
    blocked = "import sys; sys.modules.update(jax=None, jaxpatch=None); import runpy; "
    run = f"{blocked}runpy.run_module('benchmarks.planted.door', run_name='__main__')"
    command = [sys.executable, "-W", "ignore", "-c", run, str(folder), str(tmp_path / "mine.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["auroc"] == 1
    wrong = subprocess.run(
        [*command[:-1], str(tmp_path / "no.json")], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert wrong.returncode == 2 and "no.json" in wrong.stderr and "Traceback" not in wrong.stderr
