"""The door for others: planted pairs as files, and predictions about them in, a row of the board out. Of jaxpatch it needs nothing.

    python -m benchmarks.planted.door FOLDER PREDICTIONS.json

A pair is a folder (format `FORMAT`, version `VERSION`, which changes whenever a file would be read otherwise than before):

    base/, special/         two Hugging Face models (config.json, model.safetensors), which transformers loads; no tokenizer: prompts
                            are token numbers
    problem.safetensors     tokens [B, T] (right-padded), lengths [B], direction [D]; more_tokens, more_lengths: further prompts of that
                            sort, not to be scored on; plain_tokens, plain_lengths: these again, not asking for the behaviour
    problem.json            format, version, name, seed, layer (the state is the residual stream after this block, at each prompt's last
                            token, along the direction), kinds: of component -> [blocks, how many in each]; digest: of all that a
                            method may see, to be repeated in predictions; recipe: of the code that planted it
    truth.json              truth: kind -> [blocks][in each], 1 a source, -1 one that takes away, 0 everything else; groups: sources
                            that act as one, kind -> [[block, number]]; of a pair that has no source, some components at random;
                            relays: kind -> [[block, number]], what is known to pass the state on; checks: what was verified

Blocks and all else count from 0: the state after block `layer` is transformers' ``hidden_states[layer + 1]`` (not of the last block,
whose norm comes before). Components are the method's: a head owns its queries' part of W_Q (and of its bias) and its output's of W_O,
"kv" a group's of W_K and W_V (and their biases), a neuron its gate, up and down (and their biases, but not the MLP's output bias).
Predictions are a JSON object:

    {"method": "name", "cost": forward-equivalents, "pair": digest, "values": {kind: [blocks][in each], ...}}

the higher, the more it is a source; null for what has no number. A method's name is at most 60 letters, digits, spaces and
``,.()'+/-``. Signs count: what takes the behaviour away is to be below all that
does nothing, so magnitudes alone mix the two. A cost is counted in runs of the whole model on all scored prompts; a backward pass is
two, and a run that starts at a block, or ends at the state's, is that share of one.

Nothing hides the truth from who wants to know it: it lies beside the problem, and name and seed are enough to draw the sources again.
So a row is worth what its author's word is.

It needs numpy, scipy, safetensors and jaxtyping.
"""

import argparse
import hashlib
import json
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from benchmarks.planted import scorers

FORMAT, VERSION = "jaxpatch planted pair", 3
DIGESTED = (
    "base/config.json",
    "base/model.safetensors",
    "special/config.json",
    "special/model.safetensors",
    "problem.safetensors",
)
PREDICTED = ("method", "cost", "pair", "values")
BESIDE = ("seconds", "source")
"""What the board says of its own predictions."""
MOST_BYTES = 16 << 20
"""Of a file of predictions."""
NAME = re.compile(r"\w[\w ,.()'+/-]{0,59}")


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
    digest: str


def digest(folder: str | Path, layer: int, kinds: Mapping[str, Sequence[int]]) -> str:
    """SHA-256 of a pair's models and prompts, and of what is asked about them. Raises OSError for a file that is not there."""
    made = hashlib.sha256(json.dumps([layer, {kind: list(shape) for kind, shape in kinds.items()}]).encode())
    for name in DIGESTED:
        made.update(hashlib.sha256((Path(folder) / name).read_bytes()).digest())
    return made.hexdigest()


def problem(folder: str | Path) -> Problem:
    """A pair's problem, without its truth. Raises ValueError where this is no such folder, or of another version, or where files are no
    more what its digest is of."""
    folder = Path(folder)
    said = _read(folder / "problem.json", ("name", "seed", "layer", "kinds", "digest"))
    file = folder / "problem.safetensors"
    try:
        arrays = safetensors.load_file(file)
        parts = [arrays[name] for name in ("tokens", "lengths", "direction")]
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(f"{file}: wanted tokens, lengths, direction of a planted pair: {error}") from None
    try:
        is_whole = digest(folder, said["layer"], said["kinds"]) == said["digest"]
    except OSError as error:
        raise ValueError(f"{folder}: no planted pair: {error}") from None
    if not is_whole:
        raise ValueError(
            f"{folder}: files have changed since the digest in problem.json was made: no predictions are of this pair; plant it anew."
        )
    return Problem(
        name=said["name"],
        seed=said["seed"],
        base=folder / "base",
        special=folder / "special",
        tokens=parts[0],
        lengths=parts[1],
        layer=said["layer"],
        direction=parts[2],
        kinds={kind: tuple(shape) for kind, shape in said["kinds"].items()},
        digest=said["digest"],
    )


def truth(folder: str | Path) -> dict[str, np.ndarray]:
    """Kind -> int8 of its shape. Raises ValueError as `problem` does."""
    said = _read(Path(folder) / "truth.json", ("truth", "groups", "is_verified"))
    return {kind: np.array(each, np.int8) for kind, each in said["truth"].items()}


def marked(folder: str | Path) -> dict[str, np.ndarray]:
    """What predictions are scored by: kind -> bool of its shape. Of a pair that has no source, some components at random: a method that
    says nothing ranks these no higher than all else."""
    known = truth(folder)
    if any((each > 0).any() for each in known.values()):
        return {kind: each > 0 for kind, each in known.items()}
    made = {kind: np.zeros(each.shape, bool) for kind, each in known.items()}
    for group in _read(Path(folder) / "truth.json", ("groups",))["groups"]:
        for kind, places in group.items():
            for place in places:
                made[kind][tuple(place)] = True
    return made


def row(folder: str | Path, predictions: Any) -> dict[str, Any]:
    """A row of the board: how good predictions about a pair are. Where components take the behaviour away, `auroc_taking` says how well
    these are told from all others by the lowest values.

    Raises: ValueError for predictions that are not as this module says, naming all that is wrong; and for a pair that is not used,
        since it failed its checks.
    """
    asked = problem(folder)
    if not _read(Path(folder) / "truth.json", ("is_verified",))["is_verified"]:
        raise ValueError(f"{folder}: this pair failed its checks (truth.json says which), and nothing is scored by it.")
    values = checked(predictions, asked)
    flat = np.concatenate([values[kind].ravel() for kind in asked.kinds])
    known, signs = marked(folder), truth(folder)
    made = {
        "family": asked.name,
        "seed": asked.seed,
        "method": predictions["method"],
        "cost": float(predictions["cost"]),
        **scorers.card(flat, np.concatenate([known[kind].ravel() for kind in asked.kinds]))._asdict(),
        "auroc_within": scorers.auroc_within(values, known),
    }
    takes = np.concatenate([signs[kind].ravel() < 0 for kind in asked.kinds])
    return made | ({"auroc_taking": scorers.auroc(-flat, takes)} if takes.any() else {})


def checked(predictions: Any, asked: Problem) -> dict[str, np.ndarray]:
    """Values as arrays, NaN for null. Raises ValueError for all that is wrong."""
    faults, kinds = [], asked.kinds
    if not isinstance(predictions, Mapping):
        raise ValueError(
            f"these predictions cannot be scored: wanted an object with {', '.join(PREDICTED)}; got {type(predictions).__name__}."
        )
    faults += [
        f"there is no {reprlib.repr(name)}; there are {', '.join(PREDICTED)}"
        for name in predictions.keys() - {*PREDICTED, *BESIDE}
    ]
    method, cost, given = (predictions.get(name) for name in ("method", "cost", "values"))
    if not isinstance(method, str) or not NAME.fullmatch(method) or method != method.strip():
        faults.append(
            f"method: wanted a name of at most 60 letters, digits, spaces and ,.()'+/-; got {reprlib.repr(method)}"
        )
    if not _is_number(cost) or cost < 0:
        faults.append(f"cost: wanted forward-equivalents, at least 0; got {reprlib.repr(cost)}")
    if predictions.get("pair") != asked.digest:
        faults.append(
            f"pair: wanted the digest in its problem.json, {asked.digest[:12]}..., of {asked.name}, seed {asked.seed}; "
            f"got {reprlib.repr(predictions.get('pair'))}"
        )
    if not isinstance(given, Mapping):
        faults.append(f"values: wanted an object with {', '.join(kinds)}; got {type(given).__name__}")
        given = dict.fromkeys(kinds)
    faults += [
        f"values: there is no kind {reprlib.repr(kind)}; there are {', '.join(kinds)}"
        for kind in given
        if kind not in kinds
    ]
    values = {}
    for kind, shape in kinds.items():
        wrong = [each for each in _cells(given.get(kind), shape) if each is not None and not _is_number(each)]
        if wrong:
            faults.append(
                f"values of {kind}: wanted {' x '.join(map(str, shape))} finite numbers, or null; got {_short(wrong[0])}"
            )
        else:
            values[kind] = np.array(given[kind], float)
    if faults:
        raise ValueError("these predictions cannot be scored:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return values


def _cells(given: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """What stands in nested lists of a shape; and words where they are none.

    >>> list(_cells([[1, None]], (1, 2))), list(_cells([1], (2,)))
    ([1, None], ['1 where there should be 2'])
    """
    if not shape:
        yield given
    elif not isinstance(given, list) or len(given) != shape[0]:
        yield f"{len(given)} where there should be {shape[0]}" if isinstance(given, list) else type(given).__name__
    else:
        for part in given:
            yield from _cells(part, shape[1:])


def _short(value: Any) -> str:
    """As it is, but not at any length."""
    return reprlib.repr(value) if not isinstance(value, str) else value[:60]


def _is_number(value: Any) -> bool:
    """Finite, and neither a truth value nor a text; nor beyond what a float can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _read(path: Path, wanted: tuple[str, ...]) -> dict[str, Any]:
    """A JSON file of this format and version, and of these parts."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: no file of a planted pair: {error}") from None
    got = (said.get("format"), said.get("version")) if isinstance(said, dict) else (None, None)
    if got != (FORMAT, VERSION):
        raise ValueError(f"{path}: wanted {FORMAT!r}, version {VERSION}; got {got[0]!r}, version {got[1]!r}.")
    if missing := [name for name in wanted if name not in said]:
        raise ValueError(f"{path}: it lacks {', '.join(missing)}.")
    return said


def predictions_in(file: str | Path) -> Any:
    """What a file of predictions holds. Raises ValueError where it is no JSON, or too long, naming it."""
    try:
        if (size := Path(file).stat().st_size) > MOST_BYTES:
            raise ValueError(f"wanted at most {MOST_BYTES >> 20} MiB; got {size / 2**20:.1f}")
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no file of predictions: {error}") from None
    except RecursionError:
        raise ValueError(f"{file}: no file of predictions: lists in lists, without end") from None


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="of a planted pair")
    options.add_argument("predictions", type=Path, help="JSON file")
    chosen = options.parse_args()
    try:
        print(json.dumps(row(chosen.folder, predictions_in(chosen.predictions)), indent=1))
    except ValueError as error:
        options.exit(2, f"{chosen.predictions}, of {chosen.folder}: {error}\n")


if __name__ == "__main__":
    main()
