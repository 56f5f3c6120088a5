"""Shell: a safetensors file written a tensor at a time, so that no more than one of them is held twice."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

STORED_AS = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Type of numpy -> its name in safetensors."""
ALIGNED = 8
"""Bytes of which the header is a multiple."""


class Outline(NamedTuple):
    """A tensor that is not there yet. dtype: a key of `STORED_AS`."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """
        >>> Outline((2, 3), np.dtype("float16")).nbytes
        12
        """
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write(file: Path, tensors: Mapping[str, Outline], read: Callable[[str], np.ndarray]) -> None:
    """Write a file that any reader of safetensors reads.

    Args:
        tensors: name -> what `read` will give, in the order in which they come to lie.
        read: name -> the tensor; called once for each.

    Raises: OSError, as the file system does.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in tensors.items():
        ends = [at, at := at + tensor.nbytes]
        header[name] = {"dtype": STORED_AS[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": ends}
    words = json.dumps(header).encode()
    words += b" " * (-len(words) % ALIGNED)
    with file.open("wb") as stream:
        stream.write(len(words).to_bytes(8, "little") + words)
        for name, tensor in tensors.items():
            array = np.ascontiguousarray(read(name))
            assert array.shape == tensor.shape and array.dtype == tensor.dtype, name
            stream.write(array.reshape(-1).view(np.uint8).data)
