"""Cheap effects of every component of some kinds, from one forward and one backward pass of the host.

Two linearisations at the host: `first_order` in the weights themselves; `linear` in the residual stream, each component's own change of
output being exact. Both are sums of the same products, so both come out of the same pass: what a head or a neuron writes differently,
contracted with the gradient that arrives where it writes. Ours, but for the use of a gradient as a screen.

All of it is float32 or wider: each block's weights are widened as the pass comes to them. Differences of narrow products say little,
and one pass in float32 costs little.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpatch.measuring import read_outs
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Params


class Run(NamedTuple):
    """What stands in the host's blocks: the stream entering, head vectors before W_O, the stream in the middle, and the two inputs of
    each neuron."""

    entering: Float[Array, "A B T D"]
    z: Float[Array, "A B T N H"]
    mid: Float[Array, "A B T D"]
    gate: Float[Array, "A B T F"]
    up: Float[Array, "A B T F"]


class Slope(NamedTuple):
    """The gradients that arrive in one block where things are written: at the stream's end, neurons' activations, the stream in the
    middle, and head vectors."""

    end: Float[Array, "B T D"]
    neurons: Float[Array, "B T F"]
    mid: Float[Array, "B T D"]
    z: Float[Array, "B T N H"]


class Cheap(NamedTuple):
    """Effects [A, B, n] of the components of blocks 0, ..., A - 1. linear: local-exact, downstream-linear."""

    linear: Any
    first_order: Any


class Layer(NamedTuple):
    """One block, as the shares see it. run: of this block alone."""

    host: Params
    donor: Params
    run: Run
    slope: Slope


def climb(config: DecoderConfig, models: Models, depth: int) -> tuple[Float[Array, "B T D"], Run]:
    """The host's run through the first blocks: the stream after them, and what stood in each."""
    x = decoder.embedded(models.host, models.inputs.tokens)
    context = decoder.causal_context(config, x.shape[-2], x.dtype)

    def step(x, number):
        weights = decoder.widened(decoder.layer_of(models.host, number))
        block = decoder.Block(config).bind({"params": weights})
        z = block.head_vectors(x, context)
        mid = x + block.attn.write(z)
        gate, up = _neuron_inputs(config, weights, mid)
        return mid + block.mlp.write(layers.gated(gate, up)), Run(x, z, mid, gate, up)

    return jax.lax.scan(step, x, jnp.arange(depth, dtype=jnp.int32))


def descend(
    config: DecoderConfig, context: decoder.Context, weights: Params, run: Run, end: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], Slope]:
    """From the gradient that arrives at a block's end: the one that leaves at its beginning, and those between.

    Each step goes back from what stood there in the host's run, so nothing but the queries, keys and values is computed again.
    """

    def back(function: Callable[..., Any], *at_and_slope: Any) -> Any:
        *at, slope = at_and_slope
        return jax.vjp(function, *at)[1](slope)

    def block() -> decoder.Block:
        return decoder.Block(config).bind({"params": weights})

    (neurons,) = back(lambda neurons: block().mlp.write(neurons), layers.gated(run.gate, run.up), end)
    inputs = back(layers.gated, run.gate, run.up, neurons)
    mid = end + back(lambda mid: _neuron_inputs(config, weights, mid), run.mid, inputs)[0]
    (z,) = back(lambda z: block().attn.write(z), run.z, mid)
    entering = mid + back(lambda x: block().head_vectors(x, context), run.entering, z)[0]
    return entering, Slope(end, neurons, mid, z)


def _neuron_inputs(config: DecoderConfig, weights: Params, mid: jax.Array) -> tuple[jax.Array, jax.Array]:
    normed = layers.rms_norm(mid, weights["mlp_norm"]["scale"], config.norm_eps)
    return layers.dense(normed, weights["mlp"]["gate"]), layers.dense(normed, weights["mlp"]["up"])


Share = Callable[[DecoderConfig, decoder.Context, Layer], Cheap]
"""One block's components of one kind: [B, n] each."""


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision=layers.precision())


def _head_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    x = layers.rms_norm(layer.run.entering, layer.host["attn_norm"]["scale"], config.norm_eps)
    attn = decoder.Attention(config).bind({"params": layer.host["attn"]})
    k, v = attn.keys(x, context.cos_sin), attn.values(x)
    q = [layers.rotate(layers.to_heads(x, side["attn"]["q"]), context.cos_sin) for side in (layer.host, layer.donor)]
    donors_z = context.attend(q[1], k, v)
    moved_z = jax.jvp(lambda q: context.attend(q, k, v), (q[0],), (q[1] - q[0],))[1]
    arriving = _einsum("btd,nhd->btnh", layer.slope.mid, layer.donor["attn"]["o"]["kernel"])
    return _cheap(layer.run.z, layer.slope.z, donors_z, arriving, moved_z, "btnh,btnh->bn")


def _neuron_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    del context
    ours = layer.run.gate, layer.run.up
    theirs = _neuron_inputs(config, {**layer.host, "mlp": layer.donor["mlp"]}, layer.run.mid)
    moves = tuple(b - a for a, b in zip(ours, theirs, strict=True))
    arriving = _einsum("btd,fd->btf", layer.slope.end, layer.donor["mlp"]["down"]["kernel"])
    moved = jax.jvp(layers.gated, ours, moves)[1]
    return _cheap(layers.gated(*ours), layer.slope.neurons, layers.gated(*theirs), arriving, moved, "btf,btf->bf")


def _cheap(own, slope, donors, donors_slope, moved, spec) -> Cheap:
    """Of components that write `own` through a matrix: own and what the donor's own weights make of the same input, each with the
    gradient that arrives through its own matrix. moved: the derivative of own towards the donor."""
    by_matrix = _einsum(spec, own, donors_slope - slope)
    return Cheap(_einsum(spec, donors - own, donors_slope) + by_matrix, _einsum(spec, moved, slope) + by_matrix)


def _kv_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    x = layers.rms_norm(layer.run.entering, layer.host["attn_norm"]["scale"], config.norm_eps)
    q = layers.rotate(layers.to_heads(x, layer.host["attn"]["q"]), context.cos_sin)
    sides = []
    for side in (layer.host, layer.donor):
        attn = decoder.Attention(config).bind({"params": side["attn"]})
        sides.append((attn.keys(x, context.cos_sin), attn.values(x)))
    moves = tuple(b - a for a, b in zip(*sides, strict=True))
    moved = jax.jvp(lambda k, v: context.attend(q, k, v), sides[0], moves)[1]

    def by_group(change: jax.Array) -> jax.Array:
        along = _einsum("btnh,btnh->bn", change, layer.slope.z)
        return along.reshape(along.shape[0], config.kv_heads, -1).sum(axis=-1)

    return Cheap(by_group(context.attend(q, *sides[1]) - layer.run.z), by_group(moved))


def _whole_block(kind: str) -> Share:
    """Kinds with few members a layer: run the patched block itself for each, and its derivative in the gate."""

    def share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
        partition = components.of_block(layer.host)
        shape = partition[kind].shape
        number = jnp.zeros(shape).size

        def ends(gates: jax.Array) -> jax.Array:
            weights = blend.patch(layer.host, layer.donor, {kind: gates.reshape(shape)}, partition)
            return decoder.Block(config).apply({"params": weights}, layer.run.entering, context)[0]

        def one(hot):
            before, moved = jax.jvp(ends, (jnp.zeros(number),), (hot,))
            change = ends(hot) - before
            return Cheap(*(_einsum("btd,btd->b", each, layer.slope.end) for each in (change, moved)))

        return jax.tree.map(lambda part: part.T, jax.lax.map(one, jnp.eye(number)))

    return share


SHARES: dict[str, Share] = {"head": _head_share, "kv": _kv_share, "neuron": _neuron_share} | {
    kind: _whole_block(kind) for kind in ("attention", "mlp", "layer", "matrix", "norm")
}
"""Kinds that live inside one block. An open set."""


def cheap(config: DecoderConfig, kinds: tuple[str, ...], models: Models) -> dict[str, Cheap]:
    """Cheap effects on one read-out of every component of some kinds."""
    (read_out,) = models.read_outs
    last, depth = models.inputs.lengths - 1, read_outs.depth(config, models.read_outs)
    after, run = climb(config, models, depth)
    context = decoder.causal_context(config, after.shape[-2], after.dtype)

    def read(x: jax.Array) -> jax.Array:
        state = decoder.take(x, last)[:, 0]
        if isinstance(read_out, NextToken):
            state = decoder.apply(config, models.host, state, method="read_out")
        return read_out.read(state).sum()

    def step(end, at):
        number, run = at
        host, donor = (decoder.widened(decoder.layer_of(side, number)) for side in (models.host, models.donor))
        entering, slope = descend(config, context, host, run, end)
        layer = Layer(host, donor, run, slope)
        return entering, {kind: SHARES[kind](config, context, layer) for kind in kinds}

    numbers = jnp.arange(depth, dtype=jnp.int32)
    return jax.lax.scan(step, jax.grad(read)(after), (numbers, run), reverse=True)[1]
