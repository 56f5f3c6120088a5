"""Shell: directories of our own. A model's parameter tree as Orbax keeps it, with config.json and the tokenizer beside."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from jaxpatch.models import sources
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

PARAMS = "params"
"""The folder in it that is Orbax's."""
DESCRIPTIONS = (b"/.zarray", b"/zarr.json")
"""How the key ends under which a leaf's shape and type stand, by the version of zarr."""
STORED_AS = ("float64", "float32", "float16", "bfloat16")


def is_one(path: Path) -> bool:
    """Whether a model directory is of our own.

    >>> is_one(Path("no/such/folder"))
    False
    """
    return (path / PARAMS).is_dir()


def write(path: Path, params: Params) -> None:
    """Write a tree; `path` is a directory that has no parameters yet. Arrays that are cut over a mesh go out from each device."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute() / PARAMS, params)


def source(path: Path) -> sources.Source:
    """What `write` wrote: names are the tree's own leaves. Raises CheckpointError for what Orbax cannot read, here or in `read`."""
    config = path / "config.json"
    if not config.exists():
        raise sources.CheckpointError(
            path, ["no config.json beside the parameters; copy it from the model they are of"]
        )
    kept = sorted(file for file in (path / PARAMS).rglob("*") if file.is_file())
    return sources.Source(
        raw_config=sources.read_json(config),
        shapes={name: tuple(leaf.shape) for name, leaf in _outlines(path).items()},
        read=lambda name: _leaf(path, name),
        files=(config, *kept, *sources.tokenizer_files(path)),
        tokenizer=sources.tokenizer_fn(path),
        beside=sources.beside(path),
    )


def faults(path: Path, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Everything that keeps what is there from being a tree of these leaves. Raises CheckpointError for what Orbax cannot read."""
    outlines = _outlines(path)
    found = [f"missing leaf {name}" for name in wanted if name not in outlines]
    for name, leaf in outlines.items():
        if name not in wanted:
            found.append(f"unexpected leaf {name} {tuple(leaf.shape)}; {paths.did_you_mean(name, wanted)}")
        elif tuple(leaf.shape) != wanted[name]:
            found.append(f"leaf {name} has shape {tuple(leaf.shape)}, but the config asks for {wanted[name]}")
        elif str(leaf.dtype) not in STORED_AS:
            found.append(f"leaf {name} is stored as {leaf.dtype}; wanted {', '.join(STORED_AS)}")
    return found


def _outlines(path: Path) -> Mapping[str, Any]:
    place = path.absolute() / PARAMS
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            _read_descriptions(place)
            found = checkpointer.metadata(place).item_metadata
            if found is None:  # it logs why, and goes on
                raise ValueError("no tree is in it; _METADATA or manifest.ocdbt is cut short")
            return paths.flatten(found.tree)
        except Exception as error:  # Orbax raises what its file formats raise
            raise _unreadable(path, error) from error


def _read_descriptions(place: Path) -> None:
    """What is said of each leaf, one by one, so that what is broken is found here. Orbax asks for all at once, and with the first that
    fails leaves the others under way, whose ends nobody awaits any more."""
    base = {"driver": "file", "path": f"{place}/"}
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": base}).result()
    keys = [key for key in store.list().result() if key.endswith(DESCRIPTIONS)]
    if not keys:
        raise ValueError("it describes no leaf")
    for key in keys:
        store.read(key).result()


def _leaf(path: Path, name: str) -> np.ndarray:
    as_stored = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
        item=paths.unflatten({name: 0}), restore_args=paths.unflatten({name: as_stored}), partial_restore=True
    )
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            return paths.flatten(checkpointer.restore(path.absolute() / PARAMS, args=args))[name]
        except Exception as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> sources.CheckpointError:
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return sources.CheckpointError(path, [f"{PARAMS} is truncated or corrupt ({said}); copy or save it again"])
