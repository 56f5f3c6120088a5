"""The only batching: many candidates through the engine in bounded pieces, one compilation a kind."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import local
from jaxpatch.models.config import DecoderConfig

Progress = Callable[[int, int], None]
"""Called with (done, total) after each piece."""

TOKENS_PER_CHUNK = 4096
"""Candidates x prompts x tokens that run together; enough to fill the matrix units of a few CPU cores."""

_block_effects = jax.jit(local.block_effects, static_argnums=(0, 1))
_embed_effects = jax.jit(local.embed_effects, static_argnums=0)
_linear_effects = jax.jit(local.linear_effects, static_argnums=(0, 1))
_trace = jax.jit(local.trace, static_argnums=0)


def silent(done: int, total: int) -> None:
    """The progress that shows nothing."""
    del done, total


def exact(
    config: DecoderConfig,
    kind: str,
    models: local.Models,
    indices: np.ndarray,
    *,
    chunk_tokens: int = TOKENS_PER_CHUNK,
    progress: Progress = silent,
) -> np.ndarray:
    """Effects of single-component patches, ``F_a(patched) - F_a(base)``.

    Args:
        kind: a key of `local.LOCALS`, or "embed".
        indices: int [n, 1 or 2], rows (layer,) or (layer, index), no layer above the anchor.
        chunk_tokens: memory bound, in tokens of activations held at once.

    Returns: float32 (float64 for float64 models) [n, B], in the order of `indices`.
    """
    base, states = _trace(config, models)
    if kind == "embed":
        effects = np.asarray(_embed_effects(config, models) - base)
        progress(1, 1)
        return effects
    batch, tokens = models.inputs.tokens.shape
    widest = int(np.bincount(indices[:, 0]).max())
    size = max(1, min(widest, chunk_tokens // (batch * tokens)))
    size = -(-widest // -(-widest // size))
    out = np.zeros((len(indices), batch), base.dtype)
    done = 0
    for layer in np.unique(indices[:, 0]):
        rows = np.flatnonzero(indices[:, 0] == layer)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            inside = indices[part, 1] if indices.shape[1] > 1 else np.zeros(len(part), int)
            padded = jnp.asarray(np.resize(inside, size))
            effects = _block_effects(config, kind, models, states, jnp.int32(layer), padded) - base
            out[part] = np.asarray(effects)[: len(part)]
            done += len(part)
            progress(done, len(indices))
    return out


@functools.wraps(local.linear_effects)
def linear(config: DecoderConfig, kind: str, models: local.Models) -> np.ndarray:
    return np.asarray(_linear_effects(config, kind, models))
