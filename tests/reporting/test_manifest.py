"""The manifest says what is needed to do a run again, in values that JSON has."""

import hashlib
import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from jaxpatch.reporting import manifest


@pytest.fixture
def arguments(tmp_path):
    file = tmp_path / "secret place" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    return {
        "command": ["jaxpatch", "run", "--task", "two words"],
        "seed": 7,
        "dtype": "float32",
        "precision": "HIGHEST",
        "files": {"base": (file,), "special": ()},
        "times": {"load": 1.5, "score": 2.0},
        "options": {"base": "owner/model", "out": Path("a/b"), "layer": None, "kinds": ("head",), "top": np.int64(3)},
        "pair": {"differences": [], "template": None, "changes": {}},
    }


def test_it_names_versions_devices_seed_precision_and_times(arguments):
    made = manifest.build(**arguments, started=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert made["command"] == "jaxpatch run --task 'two words'"
    assert made["started"] == "2026-01-02T03:04:05+00:00"
    assert (made["seed"], made["dtype"], made["matmul_precision"]) == (7, "float32", "HIGHEST")
    assert made["seconds"] == {"load": 1.5, "score": 2.0, "all": 3.5}
    assert all(
        made["versions"][name] for name in ("jaxpatch", "python", "jax", "jaxlib", "flax", "numpy", "transformers")
    )
    assert made["machine"]["devices"] and made["machine"]["processors"] >= 1


def test_it_says_which_activations_were_exchanged_and_when_a_role_was_given(arguments, exact):
    made = manifest.build(**arguments, exchanged=exact.roles)
    assert made["exchanged"] == {
        "kinds": ["head", "neuron"],
        "method": "activation",
        "site": "contribution",
        "positions": "all",
        "criteria": {"share": 0.1, "own": 0.25},
    }
    assert manifest.build(**arguments)["exchanged"] is None


def test_files_are_hashed_and_their_folder_is_not_told(arguments):
    made = manifest.build(**arguments)
    wanted = {"name": "model.safetensors", "bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert made["files"]["base"] == {"given": "owner/model", "read": [wanted]}
    assert "secret place" not in json.dumps(made)


def test_the_start_is_counted_back_from_now_where_it_is_not_given(arguments):
    start = datetime.fromisoformat(manifest.build(**arguments)["started"])
    assert 2 <= (datetime.now(UTC) - start).total_seconds() < 60


def test_written_and_read_it_is_the_same_sorted_and_without_nan(arguments, tmp_path):
    made = manifest.build(**arguments)
    path = manifest.write({**made, "zeta": float("nan"), "set": {"b", "a"}, "array": np.eye(1)}, tmp_path / "m.json")
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == {**made, "zeta": None, "set": ["a", "b"], "array": [[1.0]]}
    assert list(read) == sorted(read) and read["options"] == {
        **read["options"],
        "out": "a/b",
        "kinds": ["head"],
        "top": 3,
    }


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_source_is_the_commit_of_our_own_checkout_and_says_when_it_was_changed(tmp_path):
    package = tmp_path / "jaxpatch" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    assert manifest.source(tmp_path) is None
    git(tmp_path, "init")
    assert manifest.source(tmp_path) is None, "an installed copy inside somebody else's repository"
    git(tmp_path, "add", "jaxpatch")
    git(tmp_path, "commit", "-m", "one")
    clean = manifest.source(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["is_dirty"] is False
    package.write_text("changed = True\n")
    assert manifest.source(tmp_path) == {**clean, "is_dirty": True}


def test_source_is_none_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert manifest.source(Path(manifest.__file__).parents[2]) is None
