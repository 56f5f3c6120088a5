"""The calibration: it runs every part there is, and its two unknowns come out of two sweeps. How long anything takes is not tested."""

import engine_cases
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.planning import calibration, cost
from jaxpatch.planning.cost import Work


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    monkeypatch.setattr(calibration, "FEWEST_ROUNDS", 1)


@pytest.mark.parametrize("kinds", [("head", "neuron", "layer", "embed"), ("embed",)])
def test_every_part_of_a_bill_has_a_pace(quick, kinds):
    config = testing.tiny_config(layers=2)
    prompts = testing.tiny_inputs(config)
    job = cost.Job(config, engine_cases.tree_of(prompts), 7, 2, 4)
    found = calibration.calibrate(job, prompts, kinds, "float32", 10**9)
    room = calibration.memory.plan(config, job.tree, 4, 2, 10**9, 1000)
    parts = {
        part for bill in cost.bills(job, kinds, room, top=5, alpha=0.05, sample=200, steps=2).values() for part in bill
    }
    assert found.paces.keys() == found.compiling.keys() == parts
    assert all(0 < pace.flops < np.inf and pace.piece >= 0 for pace in found.paces.values())


def test_two_sweeps_tell_arithmetic_from_the_rest():
    long, short = Work(flops=100.0, moved=0, pieces=2), Work(flops=20.0, moved=0, pieces=2)
    pace = calibration._pace(long, short, 100 / 10 + 2 * 3, 20 / 10 + 2 * 3)
    assert pace.flops == pytest.approx(10) and pace.piece == pytest.approx(3)
    assert pace.seconds(long) == pytest.approx(16)


def test_noise_gives_no_endless_rate():
    long, short = Work(flops=100.0, moved=0, pieces=1), Work(flops=90.0, moved=0, pieces=1)
    pace = calibration._pace(long, short, 1.0, 1.1)
    assert pace.flops == pytest.approx(10 / calibration.NOISE) and pace.piece > 0


def test_blocks_of_a_model_with_local_layers_take_turns_as_its_own_do():
    prompts = testing.tiny_inputs(testing.tiny_config())
    for local in ((True, False), ()):
        config = testing.tiny_config(layers=2, window=2, local=local)
        job = cost.Job(config, engine_cases.tree_of(prompts), 7, 2, 4)
        pair, _ = calibration._random_pair(job, prompts, "float32", 0)
        assert pair.config.local == (local * 3)[: pair.config.layers]


def test_prompts_keep_what_they_share():
    prompts = engine_cases.inputs([[50, 60, 7], [50, 60, 8], [50, 9]])
    job = cost.Job(testing.tiny_config(), engine_cases.tree_of(prompts), 3, 2, 4)
    pair, relabelled = calibration._random_pair(job, prompts, "float32", 0)
    assert engine_cases.tree_of(relabelled).positions.tolist() == job.tree.positions.tolist()
    assert np.asarray(relabelled.tokens).max() < pair.config.vocab == 6
