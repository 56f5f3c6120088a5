"""Planted pairs in the frozen format: their truth holds, contestants keep what they have reached, and torch goes through the door."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.planted import door, language, promises, shelf, torch_patching, training
from benchmarks.planted.contestants import CONTESTANTS, Problem
from benchmarks.planted.families import FAMILIES, SPREAD
from jaxpatch import testing
from jaxpatch.measuring import read_outs
from jaxpatch.models import decoder
from jaxpatch.patching import blend, components
from jaxpatch.reporting import manifest
from jaxpatch.trees import paths

FOLDER = Path(__file__).parent / "pairs"
PAIRS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
LEVELS = json.loads((FOLDER / "levels.json").read_text(encoding="utf-8"))
"""Method -> pair -> average precision; not where it is so low that twice the slack is above it."""
SLACK = {"learned gates": 0.15}
"""By how much average precision may be off the recorded one, where not 0.02, but never by more than half of it, or 0.005: what is
learned ends elsewhere on other processors."""
QUIET = "nothing"
COSTLY, FEW = ("interactions", "learned gates", "Shapley values"), ("both-needed", "keys-and-values", "neurons")
"""Contestants that take hundreds of forwards are asked about these pairs alone, where time is short."""


def row(method, name):
    answer = CONTESTANTS[method](problem(name))
    said = {"method": method, "cost": answer.cost, "pair": door.problem(FOLDER / name).digest}
    said["values"] = manifest.plain(answer.values)
    return door.row(FOLDER / name, said), answer


def problem(name):
    return shelf.get(FOLDER / name)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != QUIET])
def test_sources_make_base_obey_and_all_else_does_not(name):
    pair = problem(name).pair
    prompts = language.draw(jax.random.key(7), 200, (language.ASKED,))
    lengths = np.asarray(prompts.inputs.lengths)
    sources = {kind: (each != 0).astype(np.float32) for kind, each in door.truth(FOLDER / name).items()}

    def obeying(params):
        logits = np.asarray(decoder.logits(pair.config, params, prompts.inputs.tokens))
        said = logits[np.arange(len(lengths)), lengths - 1].argmax(-1)
        return (said == np.asarray(language.answers(prompts, True))).mean()

    base, special = pair.base, pair.special
    assert not shelf.failed(FOLDER / name)
    assert shelf.recipe(FOLDER / name) == FAMILIES[door.problem(FOLDER / name).name].recipe
    assert obeying(base) <= 0.1 and obeying(special) >= 0.85
    assert obeying(blend.patch(base, special, sources)) >= 0.85
    assert obeying(blend.patch(special, base, sources)) <= 0.1


@pytest.mark.parametrize("name", PAIRS)
def test_no_part_of_a_component_tells_by_its_size_or_by_what_it_lost(name):
    """Of each matrix a source's part changes by the law of all others', and across what it was."""
    pair, family = problem(name).pair, FAMILIES[door.problem(FOLDER / name).name]
    change = jax.tree.map(np.subtract, pair.special, pair.base)
    together = paths.flatten(jax.tree.map(np.multiply, change, pair.base))
    own, sizes = training.norms(pair.base), training.norms(change)
    for part, kind in training.parts(pair.base).items():
        drawn = sizes[part] / (family.size[part] * own[part].mean())
        assert drawn.min() > 0.999 and drawn.max() < 1.001 * SPREAD
        lost = components.sums(kind, together.__getitem__) / (own[part] * sizes[part])
        np.testing.assert_allclose(lost, 0, atol=1e-4)


def off_level(method, names):
    """Pairs of which a method finds less or more than is recorded -> both."""
    reached = {name: row(method, name)[0]["average_precision"] for name in names}
    return {
        name: (each, level)
        for name, each in reached.items()
        if abs(each - (level := LEVELS[method][name])) > min(SLACK.get(method, 0.02), max(level / 2, 0.005))
    }


@pytest.mark.parametrize("method", CONTESTANTS)
def test_contestants_keep_what_they_have_reached(method):
    """Neither worse, which is a fault, nor better, which is to be recorded."""
    names = [name for name in LEVELS[method] if method not in COSTLY or name in FEW]
    assert names and not off_level(method, names)


@pytest.mark.slow
@pytest.mark.parametrize("method", COSTLY)
def test_costly_contestants_keep_what_they_have_reached_elsewhere(method):
    assert not off_level(method, LEVELS[method].keys() - set(FEW))


def test_what_is_recorded_is_what_is_promised():
    """Where one component after the other is enough, weight patching finds all of them."""
    singles = [name for name in LEVELS["weight patching"] if FAMILIES[door.problem(FOLDER / name).name].is_single]
    assert len(singles) >= 4 and all(LEVELS["weight patching"][name] >= 0.95 for name in singles)
    assert LEVELS.keys() == CONTESTANTS.keys()


def test_promises_beside_a_ranking():
    found = promises.kept(problem("small-changes"), *shelf.beside(FOLDER / "small-changes"))
    assert found["anchor"]["is_trusted"] and found["intervals"]["held"] >= 0.8 * found["intervals"]["all"]
    assert found["findings"]["called"] == found["findings"]["sources"] == 6 and found["findings"]["others"] <= 20
    assert sum(found["screen"]["missed"]) <= promises.ALPHA * promises.TRIALS * found["screen"]["top"]
    passing = found["passing on"]
    assert passing["E_a"] > passing["E_a of a source"] and passing["E_w"] < 0.1, "a relay is above every source"


def test_where_nothing_is_planted_no_anchor_is_trusted():
    beside = shelf.beside(FOLDER / QUIET)
    assert not promises.anchor(problem(QUIET), beside.more, beside.plain)["is_trusted"]
    assert not any(each.any() for each in door.truth(FOLDER / QUIET).values())


def test_torch_says_the_same_through_the_door():
    found, answer = row("weight patching", "neurons")
    theirs = torch_patching.predictions(door.problem(FOLDER / "neurons"))
    for kind, values in answer.values.items():
        np.testing.assert_allclose(theirs["values"][kind], values, atol=2e-6)
    assert door.row(FOLDER / "neurons", theirs)["average_precision"] == pytest.approx(found["average_precision"])


def test_what_lies_in_one_direction_is_concentrated_and_what_lies_along_the_anchor_is_counted():
    pair, along = testing.tiny_pair(), np.eye(16)[3]
    anchor = read_outs.Anchor(layer=1, direction=along)
    base = {path: np.asarray(leaf) for path, leaf in paths.leaves(pair.base).items()}
    special = {path: leaf.copy() for path, leaf in base.items()}
    special["layers/attn/o/kernel"][1, 2] += np.outer([1, 2, 0, 2], along)
    special["layers/attn/o/kernel"][0, 1] += np.eye(4, 16)
    special["layers/mlp/down/kernel"][1, 5] += 2 * along
    asked = Problem(dataclasses.replace(pair, special=paths.unflatten(special)), testing.tiny_inputs(), anchor, 0)
    found, written = (
        CONTESTANTS[name](asked).values for name in ("concentration of change", "change along the anchor")
    )
    np.testing.assert_allclose(found["head"], [[0, 0.25, 0, 0], [0, 0, 1, 0], [np.nan] * 4], atol=1e-6)
    assert np.isnan(found["neuron"]).all() and not found["kv"][:2].any()
    np.testing.assert_allclose(written["head"], [[0, 1, 0, 0], [0, 0, 3, 0], [np.nan] * 4], atol=1e-6)
    assert written["neuron"][1, 5] == pytest.approx(2) and np.nansum(written["neuron"]) == pytest.approx(2)


@pytest.mark.parametrize("name", ["neurons", "tuned-decoys"])
def test_weight_patching_finds_what_size_does_not_tell_and_activation_patching_mixes_with_relays(name):
    """The paper's reason for patching weights: among the highest E_a are heads and values that pass on what neurons of block 0 made."""
    weights, change, relative, passed = (
        row(method, name) for method in ("weight patching", "change", "relative change", "activation patching")
    )
    assert weights[0]["precision"] == 1 and change[1].cost == relative[1].cost == 0
    assert change[0]["precision"] <= 0.2 and relative[0]["precision"] <= 0.4
    assert passed[0]["auroc"] > 0.9 and passed[0]["precision"] < 1
    weakest = min(passed[1].values["neuron"][door.truth(FOLDER / name)["neuron"] > 0])
    assert max(passed[1].values[kind].max() for kind in ("head", "kv")) > weakest
