"""Contestants, on one pair in the frozen format: what each has been seen to reach, and a method of others through the door."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.planted import door, shelf, torch_patching
from benchmarks.planted.contestants import CONTESTANTS

PAIR = Path(__file__).parent / "pair"


def row(method):
    answer = CONTESTANTS[method](shelf.get(PAIR))
    values = {kind: np.asarray(each).tolist() for kind, each in answer.values.items()}
    return door.row(PAIR, {"method": method, "cost": answer.cost, "values": values}), answer


def test_the_pair_was_verified():
    assert shelf.is_verified(PAIR) and {kind: int(each.sum()) for kind, each in door.truth(PAIR).items()} == {
        "head": 0,
        "kv": 0,
        "neuron": 3,
    }


def test_weight_patching_finds_the_sources_and_torch_says_the_same_through_the_door():
    found, answer = row("weight patching")
    assert found["auroc"] > 0.99 and found["precision"] >= 2 / 3 and found["first_miss"] >= 3
    theirs = torch_patching.predictions(door.problem(PAIR))
    for kind, values in answer.values.items():
        np.testing.assert_allclose(theirs["values"][kind], values, atol=2e-6)
    assert door.row(PAIR, theirs)["average_precision"] == pytest.approx(found["average_precision"])


def test_the_size_of_a_change_says_nothing():
    """Decoys change by as much and more."""
    found, answer = row("change")
    assert found["auroc"] < 0.3 and answer.cost == 0


def test_activation_patching_puts_relays_first():
    """The paper's reason for patching weights: the highest E_a are heads that pass on what neurons of block 0 made."""
    found, answer = row("activation patching")
    assert found["auroc"] > 0.9 and found["first_miss"] == 1
    best = max(answer.values, key=lambda kind: answer.values[kind].max())
    assert best in ("head", "kv") and not door.truth(PAIR)[best].any()
