"""Every code block of the README runs."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jaxpatch import cli, testing

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)

MORE = {"run": ("--max-new", "4"), "validate": ("--no-fresh", "--max-new", "4", "--num-random", "1")}
"""For a shorter test."""


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


@pytest.fixture
def at_home(tmp_path, monkeypatch, task_file):
    """A folder in which the README's paths exist."""
    testing.tiny_checkpoints(tmp_path / "checkpoints", seed=6)
    (tmp_path / "prompts.jsonl").write_bytes(task_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_block_is_forgotten():
    assert {kind for kind, _ in BLOCKS} == {"bash", "json", "python"}


def test_python_blocks(at_home):
    names: dict = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    assert names["scores"].values["head"].shape == (3, 4)
    assert (at_home / "checkpoints" / "patched" / "model.safetensors").exists()
    assert {curve.mode for curve in names["curves"]} == {"restoration", "knockout"}


def test_json_blocks():
    for block in blocks("json"):
        assert {"with", "without"} == set(json.loads(block))


def test_bash_blocks(at_home, monkeypatch):
    for line in "".join(blocks("bash")).splitlines():
        if line.startswith("make"):
            dry = subprocess.run(
                ["make", "-n", *line.split()[1:]], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert dry.returncode == 0, dry.stderr
        else:
            program, *arguments = line.split()
            assert program == "jaxpatch"
            monkeypatch.setattr(sys, "argv", [program, *arguments, *MORE.get(arguments[0], ())])
            with pytest.raises(SystemExit, match=r"^0$") if arguments[0] == "check" else contextlib.nullcontext():
                cli.main()
    assert (at_home / "results" / "report.html").exists()
