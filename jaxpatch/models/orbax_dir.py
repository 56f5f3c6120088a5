"""Shell: directories of our own. A model's parameter tree as Orbax keeps it, with config.json and the tokenizer beside."""

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxpatch.models import decoder, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

PARAMS = "params"
"""The folder in it that is Orbax's."""
STORED_AS = ("float64", "float32", "float16", "bfloat16")


def is_one(path: Path) -> bool:
    """Whether a model directory is of our own.

    >>> is_one(Path("no/such/folder"))
    False
    """
    return (path / PARAMS).is_dir()


def files(path: Path) -> tuple[Path, ...]:
    """Everything that is to be hashed: config.json first, then what Orbax wrote, then the tokenizer."""
    kept = sorted(file for file in (path / PARAMS).rglob("*") if file.is_file())
    tokenizer = [path / name for name in sources.TOKENIZER_FILES if (path / name).exists()]
    return (path / "config.json", *kept, *tokenizer)


def write(path: Path, params: Params) -> None:
    """Write a tree; `path` is a directory that has no parameters yet. Arrays that are cut over a mesh go out from each device."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path.absolute() / PARAMS, params)


def read(path: Path, config: DecoderConfig, dtype: np.dtype) -> Params:
    """The tree, as numpy arrays of `dtype`.

    Raises: CheckpointError for what Orbax cannot read, and for leaves that are missing, unknown, or of another shape than the config's.
    """
    folder = path.absolute() / PARAMS
    init = functools.partial(decoder.init, config)
    wanted = {name: leaf.shape for name, leaf in paths.flatten(jax.eval_shape(init, jax.random.key(0))).items()}
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            found = paths.flatten(checkpointer.metadata(folder).item_metadata.tree)
        except Exception as error:  # Orbax raises what its file formats raise
            raise _unreadable(path, error) from error
        if faults := _faults(found, wanted):
            raise sources.CheckpointError(path, faults)
        one = ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
        args = ocp.args.PyTreeRestore(
            item=paths.unflatten(dict.fromkeys(found, 0)), restore_args=paths.unflatten(dict.fromkeys(found, one))
        )
        try:
            return checkpointer.restore(folder, args=args)
        except Exception as error:
            raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> sources.CheckpointError:
    said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return sources.CheckpointError(path, [f"{PARAMS} is truncated or corrupt ({said}); copy or save it again"])


def _faults(found: Mapping, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What keeps these leaves from being the tree."""
    faults = [f"missing leaf {name}" for name in wanted if name not in found]
    for name, leaf in found.items():
        if name not in wanted:
            faults.append(f"unexpected leaf {name} {tuple(leaf.shape)}; {paths.did_you_mean(name, wanted)}")
        elif tuple(leaf.shape) != wanted[name]:
            faults.append(f"leaf {name} has shape {tuple(leaf.shape)}, but the config asks for {wanted[name]}")
        elif str(leaf.dtype) not in STORED_AS:
            faults.append(f"leaf {name} is stored as {leaf.dtype}; wanted {', '.join(STORED_AS)}")
    return faults
