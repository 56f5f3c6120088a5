"""Whether two trees hold the same numbers, told from a few bytes: for recognising a model again, not against malice."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.trees import paths

SLAB = 2**20
"""Numbers that are summed together."""
_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(tree: Mapping[str, Any]) -> str:
    """Of paths, shapes, dtypes and every bit of every leaf; the sums run where the leaves lie.

    >>> one, two = ({"a": jnp.array([0.0, x])} for x in (1.0, 2.0))
    >>> fingerprint(one) == fingerprint(dict(one)), fingerprint(one) == fingerprint(two)
    (True, False)
    """
    digest = hashlib.sha256()
    for path, leaf in sorted(paths.flatten(tree).items()):
        leaf = jnp.asarray(leaf)
        digest.update(f"{path} {leaf.shape} {leaf.dtype} {np.asarray(_sums(leaf)).tolist()}\n".encode())
    return digest.hexdigest()[:16]


@jax.jit
def _sums(leaf: jax.Array) -> jax.Array:
    """Two sums of a leaf's bits, each pattern weighed by its place, modulo 2^32. A slab of rows at a time, so that it is not copied."""
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    rows = leaf.reshape(max(1, leaf.shape[0] if leaf.ndim else 1), -1)
    height = max(1, min(len(rows), SLAB // max(1, rows.shape[1])))

    def add(number: jax.Array, sums: jax.Array) -> jax.Array:
        first = jnp.minimum(number * height, len(rows) - height)
        slab = jax.lax.dynamic_slice_in_dim(rows, first, height)
        words = jax.lax.bitcast_convert_type(slab, _WORDS[min(slab.dtype.itemsize, 4)]).astype(jnp.uint32)
        words = words.reshape(height, -1)
        row = (first + jnp.arange(height, dtype=jnp.int32))[:, None]
        is_new = row >= number * height
        place = row.astype(jnp.uint32) * jnp.uint32(words.shape[1]) + jnp.arange(words.shape[1], dtype=jnp.uint32)
        mixed = (words ^ (words >> 15)) * jnp.uint32(0x85EBCA6B)
        weighed = words * (2 * place + 1), mixed ^ (place * jnp.uint32(0x9E3779B1))
        return sums + jnp.stack([jnp.where(is_new, each, 0).sum(dtype=jnp.uint32) for each in weighed])

    return jax.lax.fori_loop(0, -(-len(rows) // height), add, jnp.zeros(2, jnp.uint32))
