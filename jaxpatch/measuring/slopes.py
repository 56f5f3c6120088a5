"""Cheap effects of every component of some kinds, from one forward and one backward pass of the host.

Two linearisations at the host: `first_order` in the weights themselves; `linear` in the residual stream, each component's own change of
output being exact. Both are sums of the same products, so both come out of the same pass: what a head or a neuron writes differently,
contracted with the gradient that arrives where it writes. Ours, but for the use of a gradient as a screen.

All of it is float32 or wider: each block's weights are widened as the pass comes to them. Differences of narrow products say little,
and one pass in float32 costs little.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpatch.measuring import contributions, local, read_outs
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.read_outs import Contribution, NextToken
from jaxpatch.models import decoder, experts, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Params


class Run(NamedTuple):
    """What stands in the host's blocks: the stream entering, head vectors before W_O, the stream in the middle, and each neuron's
    inputs, one or two. Of experts' neurons nothing is kept."""

    entering: Float[Array, "A B T D"]
    z: Float[Array, "A B T N H"]
    mid: Float[Array, "A B T D"]
    inputs: tuple[Float[Array, "A B T F"], ...]

    def read_by_mlp(self, config: DecoderConfig) -> jax.Array:
        """The stream that the MLP's norm sees."""
        return self.entering if config.parallel else self.mid


class Slope(NamedTuple):
    """The gradients that arrive in one block: at the stream's end, at what the MLP writes, at neurons and their inputs, at what
    attention adds to the stream, at what it writes, at head vectors, and what they are made of."""

    end: Float[Array, "B T D"]
    computed: Float[Array, "B T D"]
    neurons: Float[Array, "B T F"] | None
    inputs: tuple[Float[Array, "B T F"], ...]
    mid: Float[Array, "B T D"]
    attended: Float[Array, "B T D"]
    z: Float[Array, "B T N H"]
    heads: decoder.Heads


class Cheap(NamedTuple):
    """Effects [A, B, n] of the components of blocks 0, ..., A - 1. linear: local-exact, downstream-linear."""

    linear: Any
    first_order: Any


class Layer(NamedTuple):
    """One block, as the shares see it. run: of this block alone. heads: of the host's run."""

    host: Params
    donor: Params
    run: Run
    heads: decoder.Heads
    slope: Slope


def climb(config: DecoderConfig, models: Models) -> tuple[Float[Array, "B T D"], Run]:
    """The host's run through the blocks that the read-out needs: the stream after them, and what stood in each."""
    depth, stop = read_outs.depth(config, models.read_outs), read_outs.stop(config, models.read_outs)
    x = decoder.embedded(config, models.host, models.inputs.tokens)
    context = decoder.causal_context(config, x.shape[-2], x.dtype)

    def step(x, number):
        weights = decoder.widened(decoder.layer_of(models.host, number))
        block = decoder.block(config, weights)
        z = block.attn.attend(block.heads(x), context.at(number))
        mid = x + block.after_attention(block.attn.write(z))
        read = x if config.parallel else mid
        if config.experts:
            inputs, computed = (), block.mlp(block.mlp_input(read))
        else:
            inputs = block.neuron_inputs(read)
            computed = block.mlp.write(layers.neurons(inputs, config.activation))
        return mid + block.after_mlp(computed), Run(x, z, mid, inputs)

    return jax.lax.scan(read_outs.until(stop, step), x, jnp.arange(depth, dtype=jnp.int32))


def descend(
    config: DecoderConfig, context: decoder.Context, weights: Params, run: Run, end: Float[Array, "B T D"]
) -> tuple[Float[Array, "B T D"], Slope, decoder.Heads]:
    """From the gradient that arrives at a block's end: the one that leaves at its beginning, and those between.

    Each step goes back from what stood there in the host's run, so nothing but queries, keys and values, returned as well, and what
    experts do, is computed again.
    """

    def back(function: Callable[..., Any], *at_and_slope: Any) -> Any:
        *at, slope = at_and_slope
        return jax.vjp(function, *at)[1](slope)

    def block() -> decoder.Block:
        return decoder.block(config, weights)

    read = run.read_by_mlp(config)
    if config.experts:
        written, into_mlp = jax.vjp(lambda x: block().mlp(block().mlp_input(x)), read)
        (computed,) = back(lambda written: block().after_mlp(written), written, end)
        (through_mlp,), neurons, inputs = into_mlp(computed), None, ()
    else:
        activations = layers.neurons(run.inputs, config.activation)
        (computed,) = back(lambda written: block().after_mlp(written), block().mlp.write(activations), end)
        (neurons,) = back(lambda neurons: block().mlp.write(neurons), activations, computed)
        (inputs,) = back(lambda inputs: layers.neurons(inputs, config.activation), run.inputs, neurons)
        (through_mlp,) = back(lambda x: block().neuron_inputs(x), read, inputs)
    mid = end if config.parallel else end + through_mlp
    (attended,) = back(lambda written: block().after_attention(written), block().attn.write(run.z), mid)
    (z,) = back(lambda z: block().attn.write(z), run.z, attended)
    heads, pull = jax.vjp(lambda x: block().heads(x), run.entering)
    (arriving,) = back(lambda heads: block().attn.attend(heads, context), heads, z)
    slope = Slope(end, computed, neurons, inputs, mid, attended, z, arriving)
    return end + through_mlp + pull(arriving)[0], slope, heads


Share = Callable[[DecoderConfig, decoder.Context, Layer], Cheap]
"""One block's components of one kind: [B, n] each."""


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision=layers.precision())


def _donors_heads(config: DecoderConfig, layer: Layer) -> decoder.Heads:
    """What the donor's matrices make of the host's stream."""
    return decoder.block(config, {**layer.host, "attn": layer.donor["attn"]}).heads(layer.run.entering)


def _head_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    q = _donors_heads(config, layer).q
    own = layer.run.z
    change = decoder.block(config, layer.host).attn.attend(layer.heads._replace(q=q), context) - own
    arriving = _einsum("btd,nhd->btnh", layer.slope.attended, layer.donor["attn"]["o"]["kernel"])
    by_matrix = own * (arriving - layer.slope.z)
    moved = (q - layer.heads.q) * layer.slope.heads.q
    return Cheap((change * arriving + by_matrix).sum((1, 3)), (moved + by_matrix).sum((1, 3)))


def _neuron_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    del context
    run, slope = layer.run, layer.slope
    block = decoder.block(config, {**layer.host, "mlp": layer.donor["mlp"]})
    inputs = block.neuron_inputs(run.read_by_mlp(config))
    arriving = _einsum("btd,fd->btf", slope.computed, layer.donor["mlp"]["down"]["kernel"])
    assert slope.neurons is not None
    each = _of_neurons(config, run.inputs, inputs, slope.inputs, slope.neurons, arriving)
    return Cheap(*(part.sum(1) for part in each))


def _of_neurons(
    config: DecoderConfig,
    host: Sequence[jax.Array],
    donor: Sequence[jax.Array],
    slopes: Sequence[jax.Array],
    arriving: jax.Array,
    through_donor: jax.Array,
) -> Cheap:
    """What neurons change, at each state: [..., F].

    Args: host, donor: the neurons' inputs by each model's matrices. slopes: the gradients there. arriving: at what the neurons make,
        through the host's W_down; through_donor: through the donor's.
    """
    own, donors = (layers.neurons(each, config.activation) for each in (host, donor))
    by_matrix = own * (through_donor - arriving)
    moved = sum((new - old) * each for new, old, each in zip(donor, host, slopes, strict=True))
    return Cheap((donors - own) * through_donor + by_matrix, moved + by_matrix)


def _experts_neurons(config: DecoderConfig, layer: Layer) -> Cheap:
    """Of every neuron of every expert, [B, E, F]: expert by expert, from the states that the host sends there."""
    block = decoder.block(config, layer.host)
    batch, tokens, width = layer.run.entering.shape
    x = block.mlp_input(layer.run.read_by_mlp(config)).reshape(-1, width)
    arriving, routes = layer.slope.computed.reshape(-1, width), block.mlp.routes(x)
    number, shares = routes.chosen.shape[-1], routes.shares.reshape(-1)

    def step(found: Cheap, pairs: jax.Array, expert: jax.Array) -> Cheap:
        own, slope = (experts.rows(each, pairs // number) for each in (x, arriving))
        slope = slope * experts.rows(shares, pairs)[:, None]

        def inputs(side: Params) -> list[jax.Array]:
            return [_einsum("sd,df->sf", own, side["mlp"][name]["kernel"][expert]) for name in decoder.inputs(config)]

        host, donor = inputs(layer.host), inputs(layer.donor)
        ends = (
            _einsum("sd,fd->sf", slope, side["mlp"]["down"]["kernel"][expert]) for side in (layer.host, layer.donor)
        )
        at_host, at_donor = ends
        (slopes,) = jax.vjp(lambda inputs: layers.neurons(inputs, config.activation), host)[1](at_host)
        each = _of_neurons(config, host, donor, slopes, at_host, at_donor)
        is_of = (pairs // (number * tokens))[:, None] == jnp.arange(batch)
        summed = (_einsum("sb,sf->bf", is_of.astype(part.dtype), part) for part in each)
        return Cheap(*(total.at[:, expert].add(part) for total, part in zip(found, summed, strict=True)))

    nothing = jnp.zeros((batch, config.experts, config.neurons), x.dtype)
    tiles = experts.tiles_of(routes.chosen, config.experts)
    return experts.each(tiles, routes.chosen.size, step, Cheap(nothing, nothing))


def _experts_neuron_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    del context
    return Cheap(*(part.reshape(len(part), -1) for part in _experts_neurons(config, layer)))


def _expert_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    """What an expert writes is the sum of what its neurons write, and so is every linearisation of it."""
    del context
    return Cheap(*(part.sum(axis=-1) for part in _experts_neurons(config, layer)))


def _kv_share(config: DecoderConfig, context: decoder.Context, layer: Layer) -> Cheap:
    _, k, v = _donors_heads(config, layer)
    z = decoder.block(config, layer.host).attn.attend(layer.heads._replace(k=k, v=v), context)
    change = (z - layer.run.z) * layer.slope.z
    moved = (k - layer.heads.k) * layer.slope.heads.k + (v - layer.heads.v) * layer.slope.heads.v
    by_head = change.sum((1, 3))
    return Cheap(by_head.reshape(len(by_head), config.kv_heads, -1).sum(axis=-1), moved.sum((1, 3)))


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


_CLOSED: dict[str, Share] = {"head": _head_share, "kv": _kv_share, "neuron": _neuron_share, "expert": _expert_share}


def share_of(config: DecoderConfig, kind: str) -> Share:
    """The cheap effects of a kind in models of this config."""
    if config.experts and kind == "neuron":
        return _experts_neuron_share
    return _CLOSED[kind] if local.is_closed(config, kind) else _whole_block(kind)


def at_the_top(config: DecoderConfig, models: Models, after: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The gradient of the one read-out in the stream after the blocks that it needs."""
    (read_out,) = models.read_outs

    def read(x: jax.Array) -> jax.Array:
        if isinstance(read_out, Contribution):
            context = decoder.causal_context(config, x.shape[-2], x.dtype).at(read_out.layer)
            weights = decoder.layer_of(models.host, read_out.layer)
            return contributions.read_prompts(config, weights, read_out, x, context).sum()
        state = decoder.take(x, models.inputs.lengths - 1)[:, 0]
        if isinstance(read_out, NextToken):
            state = decoder.apply(config, models.host, state, method="read_out")
        return read_out.read(state).sum()

    return jax.grad(read)(after)


def cheap(config: DecoderConfig, kinds: tuple[str, ...], models: Models) -> dict[str, Cheap]:
    """Cheap effects on one read-out of every component of some kinds."""
    depth, stop = read_outs.depth(config, models.read_outs), read_outs.stop(config, models.read_outs)
    after, run = climb(config, models)
    context = decoder.causal_context(config, after.shape[-2], after.dtype)

    def step(end, at):
        number, run = at
        host, donor = (decoder.widened(decoder.layer_of(side, number)) for side in (models.host, models.donor))
        own = context.at(number)
        entering, slope, heads = descend(config, own, host, run, end)
        layer = Layer(host, donor, run, heads, slope)
        return entering, {kind: share_of(config, kind)(config, own, layer) for kind in kinds}

    numbers = jnp.arange(depth, dtype=jnp.int32)
    passing = read_outs.until(stop, step)
    return jax.lax.scan(passing, at_the_top(config, models, after), (numbers, run), reverse=True)[1]
