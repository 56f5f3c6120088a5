"""How two trees differ: in structure, in shape, in content."""

from collections.abc import Mapping
from typing import Any

import jax
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
    return tuple(path for path in a if not is_same(a[path], b[path]))


PIECES = 16
"""In which a leaf is looked through, so that what is found of each number takes little room."""


def is_same(one: Any, two: Any) -> bool:
    """Whether two leaves hold the same numbers. Arrays on an accelerator are compared there, and no copy of them stays on the host.

    >>> is_same(np.ones((2, 3)), np.ones((2, 3))), is_same(np.ones(2), np.ones(3))
    (True, False)
    """
    if one is two:
        return True
    if one.shape != two.shape:
        return False
    if not (_is_on_host(one) or _is_on_host(two)):
        return bool(_equal(one, two))
    pieces = (np.array_split(np.atleast_1d(leaf), PIECES) for leaf in (one, two))
    return all(_is_same(own, other) for own, other in zip(*pieces, strict=True))


def is_finite(leaf: Any) -> bool:
    """Whether a leaf holds neither NaN nor infinity.

    >>> is_finite(np.zeros(2)), is_finite(np.array([1.0, np.inf]))
    (True, False)
    """
    return all(_is_finite(piece) for piece in np.array_split(np.atleast_1d(leaf), PIECES))


def _is_same(one: np.ndarray, two: np.ndarray) -> bool:
    """Bits first: numbers of two bytes numpy compares one by one. Zeros of both signs are the same number."""
    has_same_bits = one.dtype == two.dtype and np.array_equal(_bits(one), _bits(two))
    return has_same_bits or np.array_equal(one, two)


def _is_finite(piece: np.ndarray) -> bool:
    """Of two bytes by the bits, for the same reason: what is no finite number has every bit of an infinity's."""
    if piece.dtype.itemsize != 2:
        return bool(np.isfinite(piece).all())
    infinity = _bits(np.array(np.inf, piece.dtype))
    return bool((_bits(piece) & infinity != infinity).all())


def _bits(piece: np.ndarray) -> np.ndarray:
    return piece.view(np.uint16) if piece.dtype.itemsize == 2 else piece


def _is_on_host(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or {device.platform for device in leaf.devices()} == {"cpu"}


@jax.jit
def _equal(one: jax.Array, two: jax.Array) -> jax.Array:
    return (one == two).all()
