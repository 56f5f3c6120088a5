"""The door for others: planted pairs as files, and predictions about them in, a row of the board out. Of jaxpatch it needs nothing.

    python -m benchmarks.planted.door FOLDER PREDICTIONS.json

A pair is a folder (format `FORMAT`, version `VERSION`, which changes whenever a file would be read otherwise than before):

    base/, special/         two Hugging Face models (config.json, model.safetensors), which transformers loads; no tokenizer: prompts
                            are token numbers
    problem.safetensors     tokens [B, T] (right-padded), lengths [B], direction [D]; more_tokens, more_lengths: further prompts of that
                            sort, not to be scored on; plain_tokens, plain_lengths: these again, not asking for the behaviour
    problem.json            format, version, name, seed, layer (the state is the residual stream after this block, at each prompt's last
                            token, along the direction), kinds: of component -> [blocks, how many in each]
    truth.json              truth: kind -> [blocks][in each], 1 a source, -1 one that takes away, 0 everything else; groups: sources
                            that act as one, kind -> [[block, number]]; of a pair that has no source, what might as well have been
                            one; relays: kind -> [[block, number]], what is known to pass the state on; checks: what was verified

Components are the method's: a head owns its columns of W_Q and W_O (and its query bias), "kv" a group's of W_K and W_V (and their
biases), a neuron its gate, up and down (and their biases, but not the MLP's output bias). Predictions are a JSON object:

    {"method": "name", "cost": forward-equivalents, "values": {kind: [blocks][in each], ...}}

the higher, the more it is a source; null for what has no number.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import numpy as safetensors

from benchmarks.planted import scorers

FORMAT, VERSION = "jaxpatch planted pair", 1


class Problem(NamedTuple):
    """What a method may see. base, special: folders of models. kinds: kind -> shape of its values. The rest as in the files."""

    name: str
    seed: int
    base: Path
    special: Path
    tokens: np.ndarray
    lengths: np.ndarray
    layer: int
    direction: np.ndarray
    kinds: Mapping[str, tuple[int, ...]]


def problem(folder: str | Path) -> Problem:
    """A pair's problem, without its truth. Raises ValueError where this is no such folder, or of another version."""
    folder = Path(folder)
    said = _read(folder / "problem.json")
    arrays = safetensors.load_file(folder / "problem.safetensors")
    kinds = {kind: tuple(shape) for kind, shape in said["kinds"].items()}
    sides = folder / "base", folder / "special"
    return Problem(
        said["name"],
        said["seed"],
        *sides,
        arrays["tokens"],
        arrays["lengths"],
        said["layer"],
        arrays["direction"],
        kinds,
    )


def truth(folder: str | Path) -> dict[str, np.ndarray]:
    """Kind -> int8 of its shape. Raises ValueError as `problem` does."""
    said = _read(Path(folder) / "truth.json")
    return {kind: np.array(each, np.int8) for kind, each in said["truth"].items()}


def marked(folder: str | Path) -> dict[str, np.ndarray]:
    """What predictions are scored by: kind -> bool of its shape. Of a pair that has no source, what might as well have been one: a
    method that says nothing of it ranks that no higher than all else."""
    known = truth(folder)
    if any((each > 0).any() for each in known.values()):
        return {kind: each > 0 for kind, each in known.items()}
    made = {kind: np.zeros(each.shape, bool) for kind, each in known.items()}
    for group in _read(Path(folder) / "truth.json")["groups"]:
        for kind, places in group.items():
            for place in places:
                made[kind][tuple(place)] = True
    return made


def row(folder: str | Path, predictions: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the board: how good predictions about a pair are.

    Raises: ValueError for predictions that are not as this module says, naming all that is wrong.
    """
    asked = problem(folder)
    values = checked(predictions, asked.kinds)
    flat = np.concatenate([values[kind].ravel() for kind in asked.kinds])
    known = marked(folder)
    return {
        "family": asked.name,
        "seed": asked.seed,
        "method": predictions["method"],
        "cost": float(predictions["cost"]),
        **scorers.card(flat, np.concatenate([known[kind].ravel() for kind in asked.kinds]))._asdict(),
    }


def checked(predictions: Mapping[str, Any], kinds: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Values as arrays, NaN for null. Raises ValueError for all that is wrong."""
    faults = []
    if not isinstance(predictions.get("method"), str):
        faults.append(f"method: wanted a name; got {predictions.get('method')!r}")
    cost = predictions.get("cost")
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < np.inf:
        faults.append(f"cost: wanted forward-equivalents, at least 0; got {cost!r}")
    given, values = predictions.get("values"), {}
    if not isinstance(given, Mapping):
        faults.append(f"values: wanted an object with {', '.join(kinds)}; got {type(given).__name__}")
        given = dict.fromkeys(kinds)
    faults += [
        f"values: there is no kind {kind!r}; there are {', '.join(kinds)}" for kind in given if kind not in kinds
    ]
    for kind, shape in kinds.items():
        try:
            values[kind] = np.array(given.get(kind), float)
        except (TypeError, ValueError):
            values[kind] = np.zeros(0)
        if given.get(kind) is None or values[kind].shape != shape:
            got = "nothing" if given.get(kind) is None else f"{values[kind].shape}, or no numbers"
            faults.append(f"values of {kind}: wanted {shape}; got {got}")
    if faults:
        raise ValueError("these predictions cannot be scored:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return values


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of this format and version."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: no file of a planted pair: {error}") from None
    got = (said.get("format"), said.get("version")) if isinstance(said, dict) else (None, None)
    if got != (FORMAT, VERSION):
        raise ValueError(f"{path}: wanted {FORMAT!r}, version {VERSION}; got {got[0]!r}, version {got[1]!r}.")
    return said


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="of a planted pair")
    options.add_argument("predictions", type=Path, help="JSON file")
    chosen = options.parse_args()
    try:
        print(json.dumps(row(chosen.folder, json.loads(chosen.predictions.read_text(encoding="utf-8"))), indent=1))
    except (OSError, ValueError) as error:
        options.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
