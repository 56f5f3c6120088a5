"""Planted pairs on disk, as `door` describes them: written whole or not at all, and read again as what a contestant sees."""

import json
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from benchmarks.planted import door, promises
from benchmarks.planted.contestants import Problem
from benchmarks.planted.families import FAMILIES
from benchmarks.planted.pairs import Planted
from benchmarks.planted.training import KINDS
from jaxpatch import atomic
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models import checkpoints, saving


def put(planted: Planted, folder: Path) -> Path:
    """Write a pair. Raises FileExistsError where there is one."""
    marks = {"format": door.FORMAT, "version": door.VERSION}
    direction = np.asarray(planted.anchor.direction, np.float32)
    with atomic.directory(folder) as place:
        for name, params in (("base", planted.pair.base), ("special", planted.pair.special)):
            saving.save_checkpoint(planted.pair, params, place / name)
        arrays = {"direction": direction}
        for prefix, prompts in (("", planted.prompts), ("more_", planted.more), ("plain_", planted.plain)):
            for name, part in prompts._asdict().items():
                arrays[prefix + name] = np.asarray(part, np.int32)
        safetensors.save_file(arrays, place / "problem.safetensors")
        kinds = {kind: list(planted.truth[kind].shape) for kind in KINDS}
        asked = marks | {
            "name": planted.family,
            "seed": planted.seed,
            "recipe": FAMILIES[planted.family].recipe,
            "digest": door.digest(place, int(planted.anchor.layer), kinds),
            "layer": int(planted.anchor.layer),
            "kinds": kinds,
        }
        known = marks | {
            "truth": {kind: planted.truth[kind].tolist() for kind in KINDS},
            "groups": [{kind: np.argwhere(group[kind]).tolist() for kind in KINDS} for group in planted.groups],
            "relays": {kind: np.argwhere(planted.relays[kind]).tolist() for kind in KINDS},
            "is_verified": bool(planted.is_verified),
            "checks": [check._asdict() | {"is_passed": bool(check.is_passed)} for check in planted.checks],
        }
        for name, said in (("problem", asked), ("truth", known)):
            (place / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    return folder


def get(folder: Path) -> Problem:
    """A pair as contestants see it. What they draw, they draw by a seed out of its digest, which has nothing to do with the seed that
    its sources were drawn by."""
    asked = door.problem(folder)
    pair = checkpoints.load_pair(asked.base, asked.special)
    prompts = Inputs(jnp.asarray(asked.tokens), jnp.asarray(asked.lengths))
    return Problem(
        pair, prompts, Anchor(layer=asked.layer, direction=jnp.asarray(asked.direction)), int(asked.digest[:7], 16)
    )


class Beside(NamedTuple):
    """What else is on the shelf, and is nothing for contestants. more, plain: prompts. known: what is true."""

    more: Inputs
    plain: Inputs
    known: promises.Known


def beside(folder: Path) -> Beside:
    """What promises are held against."""
    arrays = safetensors.load_file(folder / "problem.safetensors")
    more, plain = (
        Inputs(*(jnp.asarray(arrays[f"{prefix}_{name}"]) for name in Inputs._fields)) for prefix in ("more", "plain")
    )
    truth = door.truth(folder)
    relays = {kind: np.zeros(each.shape, bool) for kind, each in truth.items()}
    for kind, places in json.loads((folder / "truth.json").read_text(encoding="utf-8"))["relays"].items():
        for place in places:
            relays[kind][tuple(place)] = True
    return Beside(more, plain, promises.Known({kind: each > 0 for kind, each in truth.items()}, relays))


def recipe(folder: Path) -> int:
    """By which a pair was planted."""
    return json.loads((folder / "problem.json").read_text(encoding="utf-8"))["recipe"]


def failed(folder: Path) -> tuple[str, ...]:
    """The checks that a pair did not pass, in words."""
    checks = json.loads((folder / "truth.json").read_text(encoding="utf-8"))["checks"]
    return tuple(
        f"{check['name']} {check['value']:.3f} ({check['wanted']})" for check in checks if not check["is_passed"]
    )
