"""Host memory that XLA takes over as it is: on the CPU an array that begins where XLA wants it is not copied to become a parameter."""

import math
from collections.abc import Sequence

import numpy as np

ALIGNED = 64
"""Bytes of which the address of XLA's own buffers is a multiple."""


def zeros(shape: Sequence[int], dtype: np.dtype | type) -> np.ndarray:
    """As numpy's, at such an address.

    >>> zeros((3, 5), np.dtype("float32")).ctypes.data % ALIGNED
    0
    """
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    room = np.zeros(size + ALIGNED, np.uint8)
    start = -room.ctypes.data % ALIGNED
    return room[start : start + size].view(dtype).reshape(shape)


def held(array: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """An array as it is where it is contiguous, of this type and at such an address; else a copy that is. One that cannot be written to
    may be a map of a file, and is copied."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNED == 0:
        return array
    made = zeros(array.shape, dtype)
    made[...] = array
    return made
