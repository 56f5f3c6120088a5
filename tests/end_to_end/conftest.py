"""A tiny pair on disk, and a behaviour of one's own for it."""

import json

import pytest

from jaxpatch import testing

TOPICS = """owls snow bread rivers trains clouds jokes cats apples boats songs stones maps chairs lamps soup
gloves kites bees wool glass sand ropes clocks""".split()


@pytest.fixture(scope="session")
def checkpoints_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    testing.tiny_checkpoints(folder, seed=6)
    return folder


@pytest.fixture(scope="session")
def task_file(tmp_path_factory):
    lines = [{"with": f"Describe {t}. Answer in capitals.", "without": f"Describe {t}."} for t in TOPICS]
    path = tmp_path_factory.mktemp("task") / "capitals.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def arguments(checkpoints_folder, task_file, tmp_path):
    """The shortest full run on the command line."""
    return [
        "run",
        *("--base", str(checkpoints_folder / "base"), "--special", str(checkpoints_folder / "special")),
        *("--task", str(task_file), "--out", str(tmp_path / "results")),
        *("--top", "5", "--num-random", "1", "--max-new", "4"),
    ]
