"""Shell: arrays on disk and what is said of them: one safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxpatch import atomic


def write(path: str | Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> Path:
    """One file, whole or not at all, in the place of one that may be there. Raises OSError where it cannot be written."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return atomic.binary(path, save(whole, metadata=dict(about)), overwrite=True)


def read(path: str | Path, wanted: str) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and arrays of a file. wanted: which file, in words.

    Raises: FileNotFoundError; ValueError for a file of another sort.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; wanted {wanted}.")
    try:
        with safe_open(path, "numpy") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from None
