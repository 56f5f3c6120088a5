"""The arithmetic of one block, as pure functions of weights and states.

Leading axes are free (`*lead`): one prompt, a batch, and candidates x prompts run the same code. The tests check every shape.
Matrix products name their precision (`precision`): on GPU and TPU JAX would otherwise multiply float32 in fewer bits.

The residual stream is float32, or wider where the weights are. In a narrower model what meets a matrix is rounded to the matrix's own
type, in one of two ways. States of that type are multiplied as they are. Wider states stand for runs beside each other, of which the
first is the host's: of the others only what sets them apart from it is rounded (`meet`). A single neuron moves the stream by less than
bfloat16 can tell, but bfloat16 can tell how far it moves it.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

PIECE = 768
"""Longest sum of products taken in one go; see `product`."""
MANY = 512
"""States from which on an MLP's neurons take turns; see `mlp`."""

CosSin = tuple[Float[Array, "*#lead T half"], Float[Array, "*#lead T half"]]
"""Of the rotary angles, one for each pair of a head's numbers; half is H / 2."""
Weights = Mapping[str, jax.Array]
"""``{"kernel": ..., "bias": ...}``, where there is a bias."""


PRECISIONS = ("highest", "high", "default")
"""Of float32 products on an accelerator: float32 throughout, TF32 or three bfloat16 passes, or as fast as it goes."""


def precision() -> str:
    """How matrices are multiplied: as ``jax.default_matmul_precision`` says, and "highest" where nobody has set it.

    It is a part of every compiled program: under another setting JAX compiles anew.
    """
    return jax.config.jax_default_matmul_precision or "highest"  # pyright: ignore[reportAttributeAccessIssue]  # made by jax as it runs


def at_least_float32(x: Num[Array, "*any"]) -> Float[Array, "*any"]:
    """Norms, softmax and read-outs accumulate in float32, or in float64 where the model is float64."""
    return x.astype(np.promote_types(x.dtype, np.float32))


def rms_norm(
    x: Float[Array, "*lead D"], scale: Float[Array, " D"], eps: float, offset: float = 0.0
) -> Float[Array, "*lead D"]:
    """``(offset + scale) * x / sqrt(mean(x^2) + eps)``, in the type of `scale`."""
    wide = at_least_float32(x)
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    if offset:
        return ((offset + at_least_float32(scale)) * normed.astype(at_least_float32(scale).dtype)).astype(scale.dtype)
    return scale * normed.astype(scale.dtype)


def layer_norm(
    x: Float[Array, "*lead D"], scale: Float[Array, " D"], bias: Float[Array, " D"], eps: float
) -> Float[Array, "*lead D"]:
    """``scale * (x - mean(x)) / sqrt(var(x) + eps) + bias``, in the type of `scale`. Ba et al., arXiv 1607.06450."""
    wide = at_least_float32(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return (normed * scale.astype(wide.dtype) + bias.astype(wide.dtype)).astype(scale.dtype)


def rope(
    positions: Int[Array, "*lead T"], frequencies: np.ndarray | jax.Array, dtype: Any, scale: float = 1.0
) -> CosSin:
    """Cosine and sine of the angles that pairs of such frequencies have turned, times `scale`, in `dtype`."""
    wide = np.promote_types(dtype, np.float32)
    angles = positions[..., None].astype(wide) * frequencies.astype(wide)
    return (scale * jnp.cos(angles)).astype(dtype), (scale * jnp.sin(angles)).astype(dtype)


def rotate(x: Float[Array, "*lead T N H"], cos_sin: CosSin | None) -> Float[Array, "*lead T N H"]:
    """Turn each pair (x[i], x[i + r/2]) of the first r numbers by its angle; r is twice the number of angles. None turns nothing."""
    if cos_sin is None:
        return x
    cos, sin = (part[..., None, :] for part in cos_sin)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, [half, 2 * half], axis=-1)
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin, rest), axis=-1)


def capped(x: Float[Array, "*any"], cap: float | None) -> Float[Array, "*any"]:
    """``cap tanh(x / cap)``: never beyond the cap. As it is where there is none."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def _plus_bias(x: jax.Array, weights: Weights) -> jax.Array:
    return x + weights["bias"].astype(x.dtype) if "bias" in weights else x


def meet(spec: str, x: Float[Array, "*x"], kernel: Float[Array, "*w"], inner: int = 1) -> Float[Array, "*y"]:
    """The product of states and a matrix, not rounded: ``einsum(spec, x, kernel)`` in float32 or wider.

    Args:
        x: [*lead, T, ...], the last `inner` axes summed over. Of the matrix's type; or wider, and then the last of the leading axes
            counts runs, the first of them the host's: ``W x = W x_host + W (x - x_host)``, where only ``x_host`` and the difference
            are rounded. Rounding is then relative to how far a run is from the host's. Ours.
        kernel: ``spec`` is ``"...ti,io->...to"`` or the like.

    Example:
        >>> x, kernel = jnp.array([[[1.0]], [[1.001]]]), jnp.ones((1, 1), jnp.bfloat16)
        >>> host, other = meet("...ti,io->...to", x, kernel).ravel().tolist()
        >>> round(other - host, 5), float(jnp.bfloat16(1.001)) - 1
        (0.001, 0.0)
    """
    wide = np.promote_types(x.dtype, np.float32)
    multiply = functools.partial(jnp.einsum, spec, precision=precision(), preferred_element_type=wide)
    if x.dtype == kernel.dtype:
        return multiply(x, kernel)
    runs = x.ndim - inner - 2
    if runs < 0:
        raise ValueError(
            f"{x.dtype} states {x.shape} meet a {kernel.dtype} matrix: wanted runs, the host's first, on an axis before."
        )
    apart = _apart_from_first(x, runs)
    size = _size(apart, kernel.dtype, inner)
    y = multiply((apart / size.reshape(*size.shape, *(1,) * inner)).astype(kernel.dtype), kernel)
    return _beside_first(y * size.reshape(*size.shape, *(1,) * (y.ndim - size.ndim)), runs)


def _size(apart: Float[Array, "*any"], dtype: Any, inner: int) -> Float[Array, "*#lead"]:
    """What rows are divided by before they are rounded. The smallest number of float16 is not small enough for differences."""
    narrow, wide = jnp.finfo(dtype), jnp.finfo(apart.dtype)
    if narrow.minexp == wide.minexp:
        return jnp.ones((1,) * (apart.ndim - inner), apart.dtype)
    largest = jnp.abs(apart).max(axis=tuple(range(apart.ndim - inner, apart.ndim)))
    return jnp.maximum(largest / (float(narrow.max) / 2), wide.tiny)


def in_full(x: Float[Array, "*lead i"], kernel: Float[Array, "i o"]) -> Float[Array, "*lead o"]:
    """``x @ kernel`` of wide states and a matrix of any type, nothing rounded: not the states, nor the gradient that comes back."""
    if x.dtype == kernel.dtype:
        return jnp.einsum("...i,io->...o", x, kernel, precision=precision())
    return _in_full(x, kernel)


@jax.custom_vjp
def _in_full(x: jax.Array, kernel: jax.Array) -> jax.Array:
    parts, sizes = in_parts(x, kernel.dtype)
    products = jnp.einsum("...i,io->...o", parts, kernel, precision=precision(), preferred_element_type=x.dtype)
    return jnp.einsum("p...,p->...", products, sizes, precision=precision())


def _in_full_back(operands: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    rows = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    return _in_full(slope, kernel.T), jnp.einsum("ni,no->io", *rows, precision=precision()).astype(kernel.dtype)


_in_full.defvjp(lambda x, kernel: (_in_full(x, kernel), (x, kernel)), _in_full_back)


def in_parts(x: Float[Array, "*any"], dtype: Any) -> tuple[Float[Array, "P ..."], Float[Array, " P"]]:
    """Narrow numbers, each as large as the wide ones, and the powers of two by which they add up to them.

    >>> parts, sizes = in_parts(jnp.array([1 + 2.0**-10]), jnp.bfloat16)
    >>> parts.ravel().tolist(), sizes.tolist()
    ([1.0, 0.25, 0.0], [1.0, 0.00390625, 1.52587890625e-05])
    """
    narrow = jnp.finfo(dtype)
    sizes = 2.0 ** -np.arange(0, jnp.finfo(x.dtype).nmant + 1, narrow.nmant + 1)
    parts = []
    for size in sizes.tolist():
        parts.append(jax.lax.reduce_precision(x / size, narrow.nexp, narrow.nmant))
        x = x - parts[-1] * size
    return jnp.stack(parts).astype(dtype), jnp.asarray(sizes, x.dtype)


def _is_first(x: jax.Array, axis: int) -> jax.Array:
    """Where an array belongs to the first of its runs."""
    return jax.lax.broadcasted_iota(np.int32, (x.shape[axis], *(1,) * (x.ndim - axis - 1)), 0) == 0


def _apart_from_first(x: jax.Array, axis: int) -> jax.Array:
    """The first of the runs, and by how much each of the others differs from it."""
    return jnp.where(_is_first(x, axis), x, x - jax.lax.slice_in_dim(x, 0, 1, axis=axis))


def _beside_first(x: jax.Array, axis: int) -> jax.Array:
    """The inverse."""
    return jnp.where(_is_first(x, axis), x, x + jax.lax.slice_in_dim(x, 0, 1, axis=axis))


def to_heads(x: Float[Array, "*lead T D"], weights: Weights) -> Float[Array, "*lead T N H"]:
    """Queries, keys or values. kernel: [D, N, H]."""
    return _plus_bias(meet("...td,dnh->...tnh", x, weights["kernel"]).astype(x.dtype), weights)


def from_heads(z: Float[Array, "*lead T N H"], weights: Weights) -> Float[Array, "*lead T D"]:
    """The sum of what the heads write, not rounded. kernel: [N, H, D]."""
    return _plus_bias(meet("...tnh,nhd->...td", z, weights["kernel"], inner=2), weights)


@jax.custom_jvp
def product(x: Float[Array, "*lead i"], kernel: Float[Array, "i o"]) -> Float[Array, "*lead o"]:
    """``x @ kernel``, not rounded: float32 or wider. Summed over i in pieces where the operands are that as well.

    A float32 sum loses digits with its length, and the first token's huge activations show it: with W_down in one go, the logits
    of SmolLM2 were three times as far from float64 as PyTorch's. Shorter pieces gain nothing more, and cost speed. Derivatives
    need no such care, and are plain products.
    """
    piece_length = PIECE if _is_wide(kernel) else kernel.shape[0]
    pieces = [slice(start, start + piece_length) for start in range(0, kernel.shape[0], piece_length)]
    return functools.reduce(jnp.add, (_matmul(x[..., piece], kernel[piece]) for piece in pieces))


_matmul = functools.partial(meet, "...i,io->...o")


def _is_wide(x: jax.Array) -> bool:
    return np.promote_types(x.dtype, np.float32) == x.dtype


product.defjvps(lambda dx, _, x, kernel: _matmul(dx, kernel), lambda dkernel, _, x, kernel: _matmul(x, dkernel))


def written(x: Float[Array, "*lead i"], weights: Weights) -> Float[Array, "*lead o"]:
    """``x @ kernel``, and the bias where there is one, as it goes into the stream: not rounded. kernel: [i, o]."""
    return _plus_bias(product(x, weights["kernel"]), weights)


def dense(x: Float[Array, "*lead i"], weights: Weights) -> Float[Array, "*lead o"]:
    """The same, in the type of x."""
    return written(x, weights).astype(x.dtype)


def attend(
    q: Float[Array, "*lead T N H"],
    k: Float[Array, "*lead S K H"],
    v: Float[Array, "*lead S K H"],
    mask: Bool[Array, "*#lead T S"],
    scale: float | None = None,
    cap: float | None = None,
) -> Float[Array, "*lead T N H"]:
    """Head vectors before W_O: ``softmax(scale q k) v``, query heads sharing their group's keys and values.

    The queries of a group stand in one matrix, and the softmax is divided by its sum only after it has met the values: the same
    numbers from larger products and a third of the elementwise work.

    Args: mask: True where a query may look; each may look somewhere. scale: one over the root of H where None. cap: see `capped`.
    """
    *lead, num_tokens, num_heads, width = q.shape
    num_groups = k.shape[-2]
    group = num_heads // num_groups
    grouped = jnp.moveaxis(q.reshape(*lead, num_tokens, num_groups, group, width), -4, -3)
    rows = grouped.reshape(*lead, num_groups, num_tokens * group, width) * (width**-0.5 if scale is None else scale)
    logits = jnp.einsum("...kqh,...ksh->...kqs", rows, jnp.swapaxes(k, -2, -3), precision=precision())
    may_look = jnp.repeat(mask, group, axis=-2)[..., None, :, :]
    logits = jnp.where(may_look, capped(at_least_float32(logits), cap), -jnp.inf)
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    z = jnp.einsum(
        "...kqs,...ksh->...kqh",
        weights.astype(v.dtype),
        jnp.swapaxes(v, -2, -3),
        precision=precision(),
        preferred_element_type=weights.dtype,
    )
    z = (z / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)
    z = z.reshape(*lead, num_groups, num_tokens, group, width)
    return jnp.moveaxis(z, -3, -4).reshape(*lead, num_tokens, num_heads, width)


def mlp(
    x: Float[Array, "*lead D"], into: Sequence[Weights], down: Weights, activation: str = "silu"
) -> Float[Array, "*lead D"]:
    """What the neurons write, not rounded: ``neurons(x W_1, x W_2) W_down``, some neurons after the others.

    Of many states as many neurons at once as `product` would sum: nothing is summed in another way, and their activations stay in a
    CPU's cache. Of few states all at once, since cutting up the weights would cost more.

    Args: into: of the neurons' inputs, one or two. down: [F, D].
    """
    num_neurons, num_states = down["kernel"].shape[0], math.prod(x.shape[:-1])
    is_cut = num_states > MANY and _is_wide(down["kernel"])
    length = PIECE if is_cut else num_neurons

    def write(piece: slice) -> jax.Array:
        own = ({name: leaf[..., piece] for name, leaf in weights.items()} for weights in into)
        return product(neurons([dense(x, weights) for weights in own], activation), down["kernel"][piece])

    pieces = (slice(start, start + length) for start in range(0, num_neurons, length))
    return _plus_bias(functools.reduce(jnp.add, map(write, pieces)), down)


ACTIVATIONS: Mapping[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def neurons(inputs: Sequence[Float[Array, "*lead F"]], activation: str = "silu") -> Float[Array, "*lead F"]:
    """What neurons make of their inputs: the first activated, times the second where there are two."""
    first, *second = inputs
    active = ACTIVATIONS[activation](first)
    return active * second[0] if second else active
