"""How two trees differ: in structure, in shape, in content."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxpatch.trees import paths


def structure_faults(base: Any, special: Any) -> list[str]:
    """Every way in which two trees are not of one architecture, a sentence each; empty when they match.

    >>> structure_faults({"w": np.ones((2, 3))}, {"w": np.ones((2, 4))})
    ['w: base has shape (2, 3), special has (2, 4)']
    """
    a, b = paths.leaves(base), paths.leaves(special)
    faults = [f"{path}: only in base" for path in a.keys() - b.keys()]
    faults += [f"{path}: only in special" for path in b.keys() - a.keys()]
    for path in a.keys() & b.keys():
        if a[path].shape != b[path].shape:
            faults.append(f"{path}: base has shape {a[path].shape}, special has {b[path].shape}")
        elif a[path].dtype != b[path].dtype:
            faults.append(f"{path}: base is {a[path].dtype}, special is {b[path].dtype}")
    return sorted(faults)


def changed_leaves(base: Mapping[str, Any], special: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the leaves whose values differ anywhere.

    >>> changed_leaves({"a": np.zeros(2), "b": np.zeros(2)}, {"a": np.zeros(2), "b": np.ones(2)})
    ('b',)
    """
    a, b = paths.flatten(base), paths.flatten(special)
    return tuple(
        path for path in a if a[path] is not b[path] and not np.array_equal(np.asarray(a[path]), np.asarray(b[path]))
    )


def non_finite_leaves(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Paths of the leaves that hold a NaN or an infinity.

    >>> non_finite_leaves({"a": np.zeros(2), "b": np.array([1.0, np.nan])})
    ('b',)
    """
    flat = paths.flatten(tree)
    return tuple(path for path in flat if not np.isfinite(np.asarray(flat[path])).all())
