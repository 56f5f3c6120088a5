"""The arithmetic of one block, as pure functions of weights and states.

Leading axes are free: a state is [..., T, D], so one prompt, a batch, and candidates x prompts run the same code.
Matrix products name their precision: on GPU and TPU JAX would otherwise multiply float32 in fewer bits.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PRECISION = jax.lax.Precision.HIGHEST
PIECE = 256
"""Longest sum of products taken in one go; see `product`."""


def at_least_float32(x: jax.Array) -> jax.Array:
    """Norms, softmax and read-outs accumulate in float32, or in float64 where the model is float64."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """``scale * x / sqrt(mean(x^2) + eps)``. x: [..., D]; scale: [D]."""
    wide = at_least_float32(x)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return scale * normed.astype(x.dtype)


def rope(positions: jax.Array, width: int, theta: float, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles. positions: int [..., T]; returns two [..., T, H/2] of `dtype`."""
    wide = np.promote_types(dtype, np.float32)
    frequencies = theta ** (-np.arange(0, width, 2) / width)
    angles = positions[..., None].astype(wide) * frequencies.astype(wide)
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x: jax.Array, cos_sin: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn each pair (x[i], x[i + H/2]) by its angle. x: [..., T, heads, H]; cos, sin: [..., T, H/2]."""
    cos, sin = (part[..., None, :] for part in cos_sin)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


def _plus_bias(x: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    return x + weights["bias"] if "bias" in weights else x


def to_heads(x: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    """x: [..., T, D], kernel: [D, N, H] -> [..., T, N, H]."""
    return _plus_bias(jnp.einsum("...td,dnh->...tnh", x, weights["kernel"], precision=PRECISION), weights)


def from_heads(z: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    """z: [..., T, N, H], kernel: [N, H, D] -> [..., T, D]: the sum of what the heads write."""
    return _plus_bias(jnp.einsum("...tnh,nhd->...td", z, weights["kernel"], precision=PRECISION), weights)


@jax.custom_jvp
def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x: [..., i], kernel: [i, o] -> [..., o], summed over i in pieces.

    A float32 sum loses digits with its length, and the first token's huge activations show it: in one go, the logits of
    SmolLM2 there were twice as far from float64 as PyTorch's. Derivatives need no such care, and are plain products.
    """
    wide = np.promote_types(x.dtype, np.float32)
    pieces = [slice(start, start + PIECE) for start in range(0, kernel.shape[0], PIECE)]
    parts = (_matmul(x[..., piece], kernel[piece], wide) for piece in pieces)
    return functools.reduce(jnp.add, parts).astype(x.dtype)


def _matmul(x: jax.Array, kernel: jax.Array, dtype: Any = None) -> jax.Array:
    return jnp.einsum("...i,io->...o", x, kernel, precision=PRECISION, preferred_element_type=dtype)


product.defjvps(lambda dx, _, x, kernel: _matmul(dx, kernel), lambda dkernel, _, x, kernel: _matmul(x, dkernel))


def dense(x: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    """x: [..., T, i], kernel: [i, o] -> [..., T, o]."""
    return _plus_bias(product(x, weights["kernel"]), weights)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Head vectors before W_O: ``softmax(q k / sqrt(H)) v``, query heads sharing their group's keys and values.

    Args:
        q: [..., T, N, H].
        k, v: [..., S, K, H].
        mask: bool [..., T, S], True where a query may look.
    Returns: [..., T, N, H].
    """
    *lead, num_tokens, num_heads, width = q.shape
    num_groups = k.shape[-2]
    q = q.reshape(*lead, num_tokens, num_groups, num_heads // num_groups, width)
    logits = jnp.einsum("...tkgh,...skh->...kgts", q, k, precision=PRECISION) * width**-0.5
    logits = jnp.where(mask[..., None, None, :, :], at_least_float32(logits), -jnp.inf)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    z = jnp.einsum("...kgts,...skh->...tkgh", weights, v, precision=PRECISION)
    return z.reshape(*lead, num_tokens, num_heads, width)


def neurons(x: jax.Array, weights: Mapping[str, Mapping[str, jax.Array]]) -> jax.Array:
    """Activations of a gated MLP: ``silu(x W_gate) * (x W_up)``. x: [..., T, D] -> [..., T, F]."""
    return jax.nn.silu(dense(x, weights["gate"])) * dense(x, weights["up"])
