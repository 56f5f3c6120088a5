"""Shell: where tensors come from. A Source answers for names, shapes and contents before anything is converted."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxpatch import atomic
from jaxpatch.models import buffers

STORED_AS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
"""Types of weights in safetensors that can be read."""
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
)
"""What decides which tokens a text becomes."""
BESIDE = ("generation_config.json",)
MOST_TOKENS = 2**31
"""No id is as large as this."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: which one, and everything that is wrong with it."""

    def __init__(self, path: Path | str, faults: list[str]):
        shown = faults[:20] + ([f"... and {len(faults) - 20} more"] if len(faults) > 20 else [])
        super().__init__(f"{path}:\n" + "\n".join(f"  - {fault}" for fault in shown))
        self.faults = faults


class Source(NamedTuple):
    """A checkpoint, opened but not yet read.

    raw_config: config.json. shapes: tensor name -> shape. read: tensor name -> array, as on disk.
    files: what is to be hashed. tokenizer: makes the tokenizer, or None where the checkpoint has none.
    beside: files that belong to the model and change no logits, name -> text.
    """

    raw_config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    files: tuple[Path, ...]
    tokenizer: Callable[[], Any] | None
    beside: Mapping[str, str] = {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises CheckpointError where it is none, or is no file."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except RecursionError:
        raise CheckpointError(path, ["objects stand in each other too deep to be read; download it again"]) from None
    except ValueError as error:  # JSONDecodeError, and numbers of thousands of digits
        raise CheckpointError(path, [f"not readable as JSON: {error}; download it again"]) from None
    if not isinstance(content, dict):
        raise CheckpointError(path, [f"wanted a JSON object, got a {type(content).__name__}"])
    return content


def read_text(path: Path) -> str:
    """A text file. Raises CheckpointError where it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise CheckpointError(path, [f"not readable as text: {error}; download it again"]) from None


class Tensors(NamedTuple):
    """What several files hold.

    shapes: tensor name -> shape. read: name -> array, as on disk. home: name -> its file. some: (name, number) -> about so many of its
    entries, evenly spread.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    home: dict[str, Path]
    some: Callable[[str, int], np.ndarray]


def safetensors_of(files: tuple[Path, ...]) -> Tensors:
    """All tensors of several files. Raises CheckpointError for unreadable files and for names in two."""
    from safetensors import SafetensorError, safe_open

    home, shapes = {}, {}
    faults: list[str] = []
    for file in files:
        if not file.is_file():
            what = "is no file" if file.exists() else "is missing, but the index names it"
            faults.append(f"{file.name} {what}; download it")
            continue
        try:
            opened, starts = safe_open(file, "np"), _starts(file)
        except (SafetensorError, OSError, ValueError) as error:
            size = file.stat().st_size
            faults.append(f"{file.name} ({size} bytes) is truncated or corrupt: {error}; download it again")
            continue
        for name in opened.keys():  # noqa: SIM118  # not a dict
            if name in home:
                faults.append(f"tensor {name} stands in both {home[name].file.name} and {file.name}")
            piece = opened.get_slice(name)
            shapes[name] = tuple(piece.get_shape())
            home[name] = _Stored(file, starts[name], str(piece.get_dtype()))
            if piece.get_dtype() not in STORED_AS:
                faults.append(
                    f"tensor {name} is stored as {piece.get_dtype()}; wanted {', '.join(STORED_AS)}: save the model unquantised"
                )
    if faults:
        raise CheckpointError(files[0].parent, faults)

    def read(name: str) -> np.ndarray:
        stored = home[name]
        tensor = buffers.zeros(shapes[name], STORED_AS[stored.dtype])
        with stored.file.open("rb") as stream:
            stream.seek(stored.start)
            stream.readinto(tensor.reshape(-1).view(np.uint8).data)
        return tensor if sys.byteorder == "little" else tensor.byteswap()

    def some(name: str, number: int) -> np.ndarray:
        stored, size = home[name], math.prod(shapes[name])
        if not size:
            return np.empty(0, STORED_AS[stored.dtype])
        entries = np.memmap(stored.file, STORED_AS[stored.dtype], "r", stored.start, (size,))
        found = np.array(entries[:: max(size // number, 1)])
        return found if sys.byteorder == "little" else found.byteswap()

    return Tensors(shapes, read, {name: stored.file for name, stored in home.items()}, some)


class _Stored(NamedTuple):
    """Where a tensor lies: its first byte in a file."""

    file: Path
    start: int
    dtype: str


def _starts(file: Path) -> dict[str, int]:
    """First byte of each tensor of a file whose header safetensors has accepted.

    Tensors are read from there rather than through its map of the file, whose pages would count as ours until all is read.
    """
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length), object_pairs_hook=_once)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names stand in it once: of two, one reader takes the first and another the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = sorted({name for name, _ in pairs if sum(name == other for other, _ in pairs) > 1})
        raise ValueError(f"{', '.join(twice)} stands twice in its header")
    return found


def directory(path: Path) -> Source:
    """A Hugging Face model directory: config.json and safetensors, single or sharded with an index."""
    config = path / "config.json"
    if not config.exists():
        raise CheckpointError(
            path, ["no config.json; wanted a Hugging Face model directory, an adapter, or a .gguf file"]
        )
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    listed: Any = {}
    if single.exists():
        files = (single,)
    elif index.exists():
        listed = read_json(index).get("weight_map")
        if not listed or not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise CheckpointError(index, ["no weight_map: wanted tensor name -> file name; download it again"])
        outside = [name for name in sorted(set(listed.values())) if Path(name).name != name or name == ".."]
        if outside:
            raise CheckpointError(
                index,
                [f"{name!r} is no file beside the index; shards are read from its own folder only" for name in outside],
            )
        if too_long := [name for name in set(listed.values()) if len(os.fsencode(name)) > atomic.LONGEST_NAME]:
            raise CheckpointError(
                index,
                [
                    f"{name[:40]!r}... has {len(name):,} characters, as no file has; download it again"
                    for name in too_long
                ],
            )
        files = tuple(path / name for name in sorted(set(listed.values())))
    else:
        pickles = sorted(p.name for p in path.glob("*.bin")) + sorted(p.name for p in path.glob("*.pt*"))
        why = f"only pickle files ({', '.join(pickles)}), which can run code when opened" if pickles else "no weights"
        raise CheckpointError(path, [f"{why}; wanted model.safetensors: save the model with safe_serialization=True"])
    shapes, read, home, _ = safetensors_of(files)
    faults = [f"{index.name} lists {name}, which no shard holds" for name in listed if name not in shapes]
    faults += [
        f"{index.name} says that {name} is in {file}, and it is in {home[name].name}"
        for name, file in listed.items()
        if name in home and home[name].name != file
    ]
    if faults:
        raise CheckpointError(path, faults)
    used = (config, *files, *tokenizer_files(path))
    return Source(read_json(config), shapes, read, used, tokenizer_fn(path), beside(path))


def beside(path: Path) -> dict[str, str]:
    """Files of a model directory that change no logits: name -> text. Raises CheckpointError for one that is no JSON."""
    found = [path / name for name in BESIDE if (path / name).exists()]
    for file in found:
        read_json(file)
    return {file.name: read_text(file) for file in found}


def ends(path: Path, raw_config: Mapping[str, Any], beside: Mapping[str, str]) -> tuple[int, ...]:
    """The ids that end an answer: eos_token_id of generation_config.json or, where that names none, of config.json.

    Returns: in order; none where neither names any. Raises CheckpointError where they are no ids.
    """
    told = {name: json.loads(text) for name, text in beside.items()} | {"config.json": raw_config}
    for file, settings in told.items():
        named = settings.get("eos_token_id")
        ids = named if isinstance(named, list) else [] if named is None else [named]
        if not all(isinstance(each, int) and not isinstance(each, bool) and each < MOST_TOKENS for each in ids):
            raise CheckpointError(
                path, [f"{file}: eos_token_id: wanted an id or a list of them, got {named!r}; download the file again"]
            )
        if known := sorted({each for each in ids if each >= 0}):  # -1 stands for none
            return tuple(known)
    return ()


def tokenizer_files(path: Path) -> tuple[Path, ...]:
    """Those that are there."""
    return tuple(filter(Path.is_file, (path / name for name in TOKENIZER_FILES)))


@dataclass(frozen=True)
class TokenizerMaker:
    """Makes the tokenizer of a model directory; equal to another of the same files, wherever they lie. model: see `tokenizer_of`."""

    path: Path = field(compare=False)
    files: Mapping[str, bytes] = field(repr=False)
    model: Path | None = field(default=None, compare=False)

    def __call__(self) -> Any:
        return tokenizer_of(self.path, self.model)


def tokenizer_fn(path: Path, model: Path | None = None) -> Callable[[], Any] | None:
    """What makes the tokenizer of a model directory, or None where it has none. model: as `tokenizer_of` has it."""
    has_tokenizer = any((path / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    hashes = {file.name: hashlib.sha256(file.read_bytes()).digest() for file in tokenizer_files(path)}
    return TokenizerMaker(path, hashes, model) if has_tokenizer else None


def tokenizer_of(path: Path, model: Path | None = None) -> Any:
    """The tokenizer of a model directory. Raises CheckpointError where transformers cannot read it.

    Args: model: the directory of the model whose tokenizer it is, where that lies elsewhere: an adapter's. transformers chooses the
        class by its config.json, and of the same files without one may make another tokenizer.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        known = {} if model is None else {"config": AutoConfig.from_pretrained(model, trust_remote_code=False)}
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False, **known)
    except Exception as error:  # transformers raises what its parsers raise
        said = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            path, [f"its tokenizer cannot be read ({said}); download tokenizer.json again"]
        ) from error
