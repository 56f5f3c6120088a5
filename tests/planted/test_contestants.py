"""Planted pairs in the frozen format: their truth holds, contestants keep what they have reached, and torch goes through the door."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.planted import door, language, shelf, torch_patching
from benchmarks.planted.contestants import CONTESTANTS
from jaxpatch.models import decoder
from jaxpatch.patching import blend

FOLDER = Path(__file__).parent / "pairs"
PAIRS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
LEVELS = json.loads((FOLDER / "levels.json").read_text(encoding="utf-8"))
"""Method -> pair -> average precision."""
SLACK = {"learned gates": 0.15}
"""By how much average precision may be below the recorded one, where not 0.02: what is learned ends elsewhere on other processors."""


def row(method, name):
    answer = CONTESTANTS[method](shelf.get(FOLDER / name))
    values = {kind: np.asarray(each).tolist() for kind, each in answer.values.items()}
    said = {"method": method, "cost": answer.cost, "pair": door.problem(FOLDER / name).digest, "values": values}
    return door.row(FOLDER / name, said), answer


@pytest.mark.parametrize("name", PAIRS)
def test_sources_make_base_obey_and_all_else_does_not(name):
    problem = shelf.get(FOLDER / name)
    prompts = language.draw(jax.random.key(7), 200, (language.ASKED,))
    lengths = np.asarray(prompts.inputs.lengths)
    sources = {kind: (each != 0).astype(np.float32) for kind, each in door.truth(FOLDER / name).items()}

    def obeying(params):
        logits = np.asarray(decoder.logits(problem.pair.config, params, prompts.inputs.tokens))
        said = logits[np.arange(len(lengths)), lengths - 1].argmax(-1)
        return (said == np.asarray(language.answers(prompts, True))).mean()

    base, special = problem.pair.base, problem.pair.special
    assert not shelf.failed(FOLDER / name)
    assert obeying(base) <= 0.1 and obeying(special) >= 0.85
    assert obeying(blend.patch(base, special, sources)) >= 0.85
    assert obeying(blend.patch(special, base, sources)) <= 0.1


@pytest.mark.parametrize("method", CONTESTANTS)
def test_contestants_keep_what_they_have_reached(method):
    reached = {name: row(method, name)[0]["average_precision"] for name in PAIRS}
    wanted = {name: level - SLACK.get(method, 0.02) for name, level in LEVELS[method].items()}
    below = {name: (value, wanted[name]) for name, value in reached.items() if value < wanted[name]}
    assert reached.keys() == wanted.keys() and not below, f"{method} has fallen below its recorded level: {below}"


def test_torch_says_the_same_through_the_door():
    found, answer = row("weight patching", "neurons")
    theirs = torch_patching.predictions(door.problem(FOLDER / "neurons"))
    for kind, values in answer.values.items():
        np.testing.assert_allclose(theirs["values"][kind], values, atol=2e-6)
    assert door.row(FOLDER / "neurons", theirs)["average_precision"] == pytest.approx(found["average_precision"])


@pytest.mark.parametrize("name", ["neurons", "tuned-decoys"])
def test_weight_patching_finds_what_size_does_not_tell_and_activation_patching_mixes_with_relays(name):
    """The paper's reason for patching weights: among the highest E_a are heads and values that pass on what neurons of block 0 made."""
    weights, change, passed = (row(method, name) for method in ("weight patching", "change", "activation patching"))
    assert weights[0]["precision"] == 1 and change[0]["precision"] == 0 and change[1].cost == 0
    assert passed[0]["auroc"] > 0.95 and passed[0]["precision"] < 1
    weakest = min(passed[1].values["neuron"][door.truth(FOLDER / name)["neuron"] > 0])
    assert max(passed[1].values[kind].max() for kind in ("head", "kv")) > weakest
