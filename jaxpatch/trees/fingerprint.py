"""Whether two trees hold the same numbers, told from a few bytes: for recognising a model again, not against malice."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.trees import paths

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
    """Two sums of a leaf's bits, each bit pattern weighed by its place, modulo 2^32."""
    flat = leaf.reshape(-1)
    if flat.dtype == jnp.bool_:
        flat = flat.astype(jnp.uint8)
    words = jax.lax.bitcast_convert_type(flat, _WORDS[min(flat.dtype.itemsize, 4)]).astype(jnp.uint32).reshape(-1)
    place = jnp.arange(words.size, dtype=jnp.uint32)
    mixed = (words ^ (words >> 15)) * jnp.uint32(0x85EBCA6B)
    return jnp.stack(
        [
            (words * (2 * place + 1)).sum(dtype=jnp.uint32),
            (mixed ^ (place * jnp.uint32(0x9E3779B1))).sum(dtype=jnp.uint32),
        ]
    )
