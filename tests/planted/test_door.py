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
    truth = {"head": [[1, 0], [0, 0]], "neuron": [[0], [1]]}
    known = MARKS | {"truth": truth, "groups": [], "is_verified": True}
    (tmp_path / "truth.json").write_text(json.dumps(known), encoding="utf-8")
    arrays = {"tokens": np.zeros((2, 3), np.int32), "lengths": np.array([3, 2], np.int32)}
    save_file(arrays | {"direction": np.eye(4, dtype=np.float32)[0]}, tmp_path / "problem.safetensors")
    for side in ("base", "special"):
        (tmp_path / side).mkdir()
        (tmp_path / side / "config.json").write_text("{}", encoding="utf-8")
        (tmp_path / side / "model.safetensors").write_bytes(side.encode())
    kinds = {"head": [2, 2], "neuron": [2, 1]}
    said = MARKS | {"name": "both", "seed": 3, "layer": 1, "kinds": kinds, "digest": door.digest(tmp_path, 1, kinds)}
    (tmp_path / "problem.json").write_text(json.dumps(said), encoding="utf-8")
    return tmp_path


@pytest.fixture
def predictions(folder):
    asked = door.problem(folder)
    return lambda **changes: {"method": "mine", "cost": 12, "pair": asked.digest, "values": VALUES} | changes


def test_a_row_of_the_board(folder, predictions):
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
        (dict(method=None), "method: wanted a name of .*; got None"),
        (dict(method=" "), "method: wanted a name of .*; got ' '"),
        (dict(cost=-1), "cost: wanted forward-equivalents, at least 0; got -1"),
        (dict(cost=10**400), "cost: wanted forward-equivalents, at least 0; got 1000"),
        (dict(pair="def"), r"pair: wanted the digest in its problem.json, \w{12}\.\.\., of both, seed 3; got 'def'"),
        (dict(method="mine|\n**"), r"method: wanted a name of at most 60 letters"),
        (dict(method="mine "), r"method: wanted a name"),
        (dict(method="\ud800"), r"method: wanted a name"),
        (dict(method="x" * 61), r"method: wanted a name .* got 'xxxxxxxxxxxx\.\.\.x+'$"),
        (dict(notes="mine"), "there is no 'notes'; there are method, cost, pair, values"),
        (dict(values=[]), "values: wanted an object with head, neuron; got list"),
        (dict(values={"head": VALUES["head"]}), "values of neuron: wanted 2 x 1 finite numbers, or null; got NoneType"),
        (dict(values=VALUES | {"heads": []}), "there is no kind 'heads'; there are head, neuron"),
        (dict(values=VALUES | {"neuron": [0, 1]}), "values of neuron: wanted 2 x 1 .*; got int"),
        (dict(values=VALUES | {"neuron": [[0]]}), "values of neuron: .*; got 1 where there should be 2"),
        (dict(values=VALUES | {"neuron": [[True], [1]]}), "values of neuron: .*; got True"),
        (dict(values=VALUES | {"neuron": [[10**400], [1]]}), "values of neuron: .*; got 1000"),
        (dict(values=VALUES | {"neuron": [[float("inf")], [1]]}), "values of neuron: .*; got inf"),
        (dict(values=VALUES | {"neuron": [["0.5"], [1]]}), "values of neuron: .*; got 0.5"),
    ],
)
def test_predictions_that_cannot_be_scored_are_refused(folder, predictions, changes, words):
    with pytest.raises(ValueError, match=words):
        door.row(folder, predictions(**changes))


def test_all_faults_at_once(folder):
    with pytest.raises(ValueError, match=r"(?s)method: .*cost: .*pair: .*values: .*values of head: .*values of neuron"):
        door.row(folder, {})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": "other"}', "got 'other', version None"),
        ('{"format": "jaxpatch planted pair", "version": 1}', "version 3; got 'jaxpatch planted pair', version 1"),
        (json.dumps(MARKS | {"name": "both"}), "it lacks seed, layer, kinds, digest"),
        ("[]", "got None, version None"),
        ("{", "no file of a planted pair"),
    ],
)
def test_files_of_another_format_are_refused(folder, text, words):
    (folder / "problem.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        door.problem(folder)


@pytest.mark.parametrize("predicted", [None, [], 3])
def test_what_is_no_object_is_refused(folder, predicted):
    with pytest.raises(
        ValueError, match=f"wanted an object with method, cost, pair, values; got {type(predicted).__name__}"
    ):
        door.row(folder, predicted)


def test_a_broken_problem_is_refused(folder):
    (folder / "problem.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"problem\.safetensors: wanted tokens, lengths, direction"):
        door.problem(folder)


def test_a_pair_that_failed_its_checks_scores_nothing(folder, predictions):
    said = json.loads((folder / "truth.json").read_text(encoding="utf-8")) | {"is_verified": False}
    (folder / "truth.json").write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(ValueError, match="failed its checks"):
        door.row(folder, predictions())


def test_those_that_take_away_are_to_be_lowest(folder, predictions):
    said = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    said["truth"] = {"head": [[1, 0], [0, -1]], "neuron": [[0], [1]]}
    (folder / "truth.json").write_text(json.dumps(said), encoding="utf-8")
    assert door.row(folder, predictions())["auroc_taking"] == 0.4
    lowest = {"head": [[0.5, 0.1], [0.0, -0.2]], "neuron": [[0.0], [0.9]]}
    assert door.row(folder, predictions(values=lowest))["auroc_taking"] == 1


def test_the_command_needs_nothing_of_jaxpatch(folder, predictions, tmp_path):
    """Run where importing jax or jaxpatch fails."""
    (tmp_path / "mine.json").write_text(json.dumps(predictions()), encoding="utf-8")
    blocked = "import sys; sys.modules.update(jax=None, jaxpatch=None); import runpy; "
    run = f"{blocked}runpy.run_module('benchmarks.planted.door', run_name='__main__')"
    command = [sys.executable, "-W", "ignore", "-c", run, str(folder), str(tmp_path / "mine.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["auroc"] == 1
    (tmp_path / "broken.json").write_text("[", encoding="utf-8")
    for name in ("no.json", "broken.json"):
        wrong = subprocess.run(
            [*command[:-1], str(tmp_path / name)], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert wrong.returncode == 2 and name in wrong.stderr and "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    "name", ["base/config.json", "base/model.safetensors", "special/config.json", "special/model.safetensors"]
)
def test_a_pair_that_has_changed_is_refused(folder, name):
    (folder / name).write_text("other", encoding="utf-8")
    with pytest.raises(ValueError, match="files have changed since the digest"):
        door.problem(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match="no planted pair"):
        door.problem(folder)


def test_another_question_is_another_pair(folder):
    said = json.loads((folder / "problem.json").read_text(encoding="utf-8"))
    (folder / "problem.json").write_text(json.dumps(said | {"layer": 0}), encoding="utf-8")
    with pytest.raises(ValueError, match="files have changed since the digest"):
        door.problem(folder)


def test_files_that_are_no_predictions_are_refused(tmp_path, monkeypatch):
    (tmp_path / "deep.json").write_text("[" * 200_000, encoding="utf-8")
    with pytest.raises(ValueError, match=r"deep\.json: no file of predictions: lists in lists"):
        door.predictions_in(tmp_path / "deep.json")
    monkeypatch.setattr(door, "MOST_BYTES", 1 << 20)
    (tmp_path / "long.json").write_text(" " * (2 << 20), encoding="utf-8")
    with pytest.raises(ValueError, match=r"long\.json: .* wanted at most 1 MiB; got 2\.0"):
        door.predictions_in(tmp_path / "long.json")
