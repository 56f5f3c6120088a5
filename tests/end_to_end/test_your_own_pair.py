"""The walk-through, followed to the letter: every block of docs/your_own_pair.md, in order, with the real pair."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = "docs/your_own_pair.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / PAGE).read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.slow
def test_every_block_runs_as_it_stands(tmp_path, monkeypatch):
    for name in ("experiments", "models"):
        (ROOT / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    names: dict = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, PAGE, "exec"), names)
        else:
            subprocess.run(["bash", "-ec", text], check=True)
    for results in ("results", "results_adapter", "results_gguf"):
        assert (tmp_path / results / "report.html").exists()
    assert sum(map(len, names["chosen"].values())) == 20
    assert (tmp_path / "checkpoints" / "patched" / "model.safetensors").exists()
