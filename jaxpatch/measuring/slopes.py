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
import numpy as np
from jaxtyping import Array, Float

from jaxpatch.measuring import read_outs
from jaxpatch.measuring.downstream import Models, layer_of
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Params


class Places(NamedTuple):
    """Where things are written in the host's blocks: head vectors before W_O, the stream in the middle of a block, neurons'
    activations, the stream at its end. States, or the gradients that arrive there."""

    z: Float[Array, "A B T N H"]
    mid: Float[Array, "A B T D"]
    neurons: Float[Array, "A B T F"]
    end: Float[Array, "A B T D"]


class Run(NamedTuple):
    """What else the shares need of the host's run: the stream entering each block, and the two inputs of each neuron."""

    entering: Float[Array, "A B T D"]
    gate: Float[Array, "A B T F"]
    up: Float[Array, "A B T F"]


class Cheap(NamedTuple):
    """Effects [A, B, n] of the components of blocks 0, ..., A - 1. linear: local-exact, downstream-linear."""

    linear: Any
    first_order: Any


def tapped(config: DecoderConfig, models: Models, taps: Places) -> tuple[Float[Array, "R B"], tuple[Places, Run]]:
    """The host's run, with something added at every place. Returns the read-outs, and what stood at each place."""
    reads = models.read_outs
    depth = read_outs.depth(config, reads)
    x = decoder.embedded(models.host, models.inputs.tokens)
    context = decoder.causal_context(config, x.shape[-2], x.dtype)

    def step(x, layer):
        weights, tap = _wide(layer[0]), layer[1]
        mlp = weights["mlp"]
        block = decoder.Block(config).bind({"params": weights})
        z = block.head_vectors(x, context) + tap.z
        mid = x + block.attn.write(z) + tap.mid
        normed = block.mlp_input(mid)
        gate, up = layers.dense(normed, mlp["gate"]), layers.dense(normed, mlp["up"])
        neurons = layers.gated(gate, up) + tap.neurons
        end = mid + block.mlp.write(neurons) + tap.end
        return end, (Places(z, mid, neurons, end), Run(x, gate, up))

    shallow = jax.tree.map(lambda leaf: leaf[:depth], models.host["layers"])
    x, (places, run) = jax.lax.scan(step, x, (shallow, taps))
    last = models.inputs.lengths - 1
    found = []
    for read_out in reads:
        if isinstance(read_out, NextToken):
            logits = decoder.apply(config, models.host, decoder.take(x, last)[:, 0], method="read_out")
            found.append(read_out.read(logits))
        else:
            found.append(read_out.read(decoder.take(places.end[read_out.layer], last)[:, 0]))
    return jnp.stack(found), (places, run)


class Layer(NamedTuple):
    """One block, as the shares see it."""

    host: Params
    donor: Params
    places: Places
    run: Run
    slope: Places


Share = Callable[[DecoderConfig, decoder.Context, Layer], Cheap]
"""One block's components of one kind: [B, n] each."""


def _wide(params: Params) -> Params:
    return jax.tree.map(layers.at_least_float32, params)


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
    return _cheap(layer.places.z, layer.slope.z, donors_z, arriving, moved_z, "btnh,btnh->bn")


def _neuron_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    del context
    x = layers.rms_norm(layer.places.mid, layer.host["mlp_norm"]["scale"], config.norm_eps)
    ours = layer.run.gate, layer.run.up
    theirs = tuple(layers.dense(x, layer.donor["mlp"][half]) for half in ("gate", "up"))
    moves = tuple(b - a for a, b in zip(ours, theirs, strict=True))
    arriving = _einsum("btd,fd->btf", layer.slope.end, layer.donor["mlp"]["down"]["kernel"])
    moved = jax.jvp(layers.gated, ours, moves)[1]
    return _cheap(layer.places.neurons, layer.slope.neurons, layers.gated(*theirs), arriving, moved, "btf,btf->bf")


def _cheap(own, slope, donors, donors_slope, moved, spec) -> Cheap:
    """Of components that write `own` through a matrix: own and what the donor's own weights make of the same input, each with the
    gradient that arrives through its own matrix. moved: the derivative of own towards the donor."""
    return Cheap(
        linear=_einsum(spec, donors, donors_slope) - _einsum(spec, own, slope),
        first_order=_einsum(spec, moved, slope) + _einsum(spec, own, donors_slope - slope),
    )


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

    return Cheap(by_group(context.attend(q, *sides[1]) - layer.places.z), by_group(moved))


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
    batch, tokens = models.inputs.tokens.shape
    dtype, depth = (
        np.promote_types(decoder.dtype_of(models.host), np.float32),
        read_outs.depth(config, models.read_outs),
    )
    like = {"z": (config.heads, config.head_width), "mid": (config.width,), "neurons": (config.neurons,)}
    like["end"] = like["mid"]
    zeros = Places(**{name: jnp.zeros((depth, batch, tokens, *shape), dtype) for name, shape in like.items()})

    def total(taps: Places) -> tuple[jax.Array, tuple[Places, Run]]:
        reads, states = tapped(config, models, taps)
        return reads.sum(), states

    slope, (places, run) = jax.grad(total, has_aux=True)(zeros)
    context = decoder.causal_context(config, tokens, dtype)

    def one(at):
        number, states = at
        host, donor = (_wide(layer_of(side, number)) for side in (models.host, models.donor))
        layer = Layer(host, donor, *states)
        return {kind: SHARES[kind](config, context, layer) for kind in kinds}

    return jax.lax.map(one, (jnp.arange(depth), (places, run, slope)))
