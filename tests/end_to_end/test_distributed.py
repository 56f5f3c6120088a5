"""One command, the same in each of several processes."""

import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from jaxpatch import cli


def started(arguments, **environment):
    here = os.environ | environment
    command = [sys.executable, "-m", "jaxpatch", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=here)


@pytest.mark.slow
def test_two_processes_write_one_report_with_the_scores_of_one(arguments, tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    both = [
        started(
            [*arguments, "--distributed", "--mesh", "2", "2"],
            JAX_NUM_CPU_DEVICES="2",
            JAX_PROCESS_ID=str(number),
            **meeting,
        )
        for number in range(2)
    ]
    said = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert "report:" in said[0][0] and "load the pair" in said[0][0]
    assert not any(words in said[1][0] for words in ("report:", "load the pair")), "the second one is silent"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]
    monkeypatch.setattr(sys, "argv", ["jaxpatch", *arguments, "--out", str(tmp_path / "alone")])
    cli.main()
    together, alone = (pd.read_csv(tmp_path / name / "scores.csv") for name in ("results", "alone"))
    assert np.abs(together["score"] - alone["score"]).max() <= 1e-6


def test_what_one_process_finds_wrong_ends_all(arguments, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free.getsockname()[1]}", "JAX_NUM_PROCESSES": "2"}
    both = [
        started([*arguments, "--distributed", "--top", top], JAX_PROCESS_ID=str(number), **meeting)
        for number, top in enumerate(("5", "0"))
    ]
    for process in both:
        said = " ".join(process.communicate(timeout=100)[1].split())
        assert process.returncode == 1
        assert "process 1: these options cannot be used: - --top 0: wanted at least 1" in said


def test_a_process_of_none_says_how_to_make_several(arguments):
    process = started([*arguments, "--distributed"])
    said = " ".join(process.communicate(timeout=300)[1].split())
    assert process.returncode == 1
    for words in ("several processes:", "JAX_COORDINATOR_ADDRESS=HOST:PORT and JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert words in said
