"""The plan on the command line: what it prints, what it counts, and what it refuses. How long things take is not tested."""

import json
import sys

import numpy as np
import pytest

from jaxpatch import cli, plan, testing
from jaxpatch.measuring import memory
from jaxpatch.planning import calibration, cost, machines


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pair without weights."""
    made = testing.tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))
    for folder in made:
        (folder / "model.safetensors").unlink()
    return made


@pytest.fixture
def task_file(tmp_path):
    lines = [{"with": f"Say {n}. In capitals.", "without": f"Say {n}."} for n in range(40)]
    path = tmp_path / "capitals.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def call(folders, monkeypatch):
    """Runs the command line here; gives the exit status."""

    def run(*more) -> int:
        base, special = map(str, folders)
        monkeypatch.setattr(sys, "argv", ["jaxpatch", "plan", "--base", base, "--special", special, *more])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


def options(folders, **fields) -> plan.Plan:
    return plan.Plan(base=str(folders[0]), special=str(folders[1]), **fields)


@pytest.mark.parametrize("device", ["here", *machines.MACHINES])
def test_it_prints_every_method_and_kind(call, capsys, monkeypatch, device):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    monkeypatch.setattr(calibration, "FEWEST_ROUNDS", 1)
    assert call("--device", device, "--num-prompts", "3", "--tokens", "9") == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("27 distinct token positions", "head", "neuron", "exact", "screened", "integrated", "at least"):
        assert words in said
    assert ("assumed: 40% of the peak" in said) == (device != "here")
    assert ("compiling comes once" in said) == (device == "here")


def test_real_prompts_are_counted_where_there_is_a_task(folders, task_file):
    planned = plan.plan(options(folders, task=str(task_file), num_prompts=4, device="h100"))
    assert planned.job.num_prompts == 4 and planned.job.num_nodes < 4 * planned.job.tokens, "they begin alike"
    assert planned.job.depth == 3 and planned.room == memory.plan(
        planned.job.config,
        planned.job.tree,
        4,
        3,
        int(memory.SHARE * (80e9 - planned.job.parameter_bytes)),
        memory.FILL_ACCELERATOR,
    )


def test_together_is_no_dearer_than_one_after_the_other(folders):
    planned = plan.plan(options(folders, device="tpu-v5e", dtype="bfloat16", layer=1))
    assert planned.job.depth == 2 and planned.job.itemsize == 2
    for method, times in planned.seconds.items():
        assert 0 < times["together"] <= times["head"] + times["neuron"], method
    assert np.isclose(
        planned.seconds["exact"]["together"], sum(planned.seconds["exact"][k] for k in ("head", "neuron"))
    )
    assert planned.bills["exact"]["head"].keys() == {"head"} and planned.compiling == {}
    in_float32 = {cost.CHEAP: machines.MACHINES["tpu-v5e"].pace("float32", "highest")}
    bill = planned.bills["local_linear"]["together"]
    assert planned.seconds["local_linear"]["together"] == machines.seconds(bill, in_float32), (
        "as slopes.py computes them"
    )


def test_all_bad_options_are_named_at_once(call, capsys):
    wrong = (
        "--device",
        "h10",
        "--kinds",
        "heads",
        "--tokens",
        "0",
        "--alpha",
        "2",
        "--dtype",
        "float23",
        "--memory",
        "0",
    )
    assert call(*wrong, "--task", "none", "--precision", "hi", "--top", "0", "--layer", "-1") == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in ("did you mean 'h100'", "did you mean 'head'", "--tokens 0", "--alpha 2", "did you mean 'float32'"):
        assert words in said
    for words in ("--memory 0", "--task 'none'", "did you mean 'high'", "--top 0", "--layer -1"):
        assert words in said


def test_what_does_not_fit_this_pair(call, capsys):
    assert call("--layer", "3", "--tokens", "513", "--kinds", "head_k") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "blocks 0 to 2" in said and "the context of this model is 512" in said and "ask for 'kv'" in said


def test_models_larger_than_the_machine_are_refused(call, capsys, monkeypatch):
    monkeypatch.setitem(machines.MACHINES, "h100", machines.MACHINES["h100"]._replace(memory=1000.0))
    assert call("--device", "h100") == 1
    assert "both models take" in " ".join(capsys.readouterr().err.split())


def test_a_budget_too_small_says_what_would_do(call, capsys):
    assert call("--device", "h100", "--memory", "0.000001") == 1
    assert "Give more memory (memory=, --memory), or use fewer or shorter prompts" in " ".join(
        capsys.readouterr().err.split()
    )


def test_float64_is_for_the_machine_at_hand(folders):
    with pytest.raises(ValueError, match="wanted --device here"):
        plan.plan(options(folders, dtype="float64", device="a100"))


def test_a_kind_that_does_not_reach_the_anchor_costs_nothing(folders):
    planned = plan.plan(options(folders, kinds=("final_norm", "embed"), device="h100"))
    assert planned.seconds["exact"]["final_norm"] == 0 < planned.seconds["exact"]["embed"]
    assert cost.candidates(planned.job, ("final_norm", "embed")) == {"final_norm": 0, "embed": 1}
