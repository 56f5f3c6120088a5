"""Trees as raw bytes: a zero keeps its sign, and a change of one bit is a change."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpatch.trees import paths


def bits(array: Any) -> bytes:
    return np.asarray(array).tobytes()


def snapshot(tree: Mapping[str, Any]) -> dict[str, bytes]:
    """Every leaf's bytes, by path."""
    return {path: bits(leaf) for path, leaf in paths.flatten(tree).items()}
