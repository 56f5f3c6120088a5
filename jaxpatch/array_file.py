"""Shell: arrays on disk and what is said of them: one safetensors file."""

from pathlib import Path

import numpy as np


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
