"""Planted pairs in the frozen format: their truth holds for what is on disk, and contestants keep what they have reached there."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.planted import door, language, shelf
from benchmarks.planted.contestants import CONTESTANTS
from jaxpatch.models import decoder
from jaxpatch.patching import blend

FOLDER = Path(__file__).parent / "pairs"
PAIRS = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
LEVELS = json.loads((FOLDER / "levels.json").read_text(encoding="utf-8"))
"""Method -> pair -> average precision."""
SLACK = 0.02


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
    assert obeying(base) <= 0.1 and obeying(special) >= 0.9
    assert obeying(blend.patch(base, special, sources)) >= 0.75
    assert obeying(blend.patch(special, base, sources)) <= 0.1


@pytest.mark.parametrize("method", CONTESTANTS)
def test_contestants_keep_what_they_have_reached(method):
    reached = {}
    for name in PAIRS:
        answer = CONTESTANTS[method](shelf.get(FOLDER / name))
        values = {kind: np.asarray(each).tolist() for kind, each in answer.values.items()}
        row = door.row(FOLDER / name, {"method": method, "cost": answer.cost, "values": values})
        reached[name] = row["average_precision"]
    below = {
        name: (value, LEVELS[method][name]) for name, value in reached.items() if value < LEVELS[method][name] - SLACK
    }
    assert not below, f"{method} has fallen below its recorded level: {below}"
