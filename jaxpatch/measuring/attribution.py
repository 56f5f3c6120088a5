"""Attribution patching: activation patching to first order, every component of some kinds from one backward pass of the host.

``< dF/da at the host's run, a(donor's run) - a(host's run) >`` (Nanda 2023; Syed et al., arXiv 2310.10348), and AtP*'s two repairs of
what that is blind to (Kramár et al., arXiv 2403.00745), each a switch:

* "qk_fix": queries and keys go through the softmax, whose slope says nothing where it is saturated. Their attention is computed anew,
  and what it changes of the head's vector is contracted with the gradient there.
* "grad_drop": what reaches the read-out through one block may cancel what reaches it through another. The gradient is taken once for
  each block with that block left out on the way back, and the sizes of the effects are averaged:
  ``1 / (A - 1) sum_l |effect without block l|`` over the A blocks that are read but a component's own. Such scores have no sign.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpatch.measuring import crossed, read_outs, slopes
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.local_crossed import turned_round
from jaxpatch.measuring.slopes import Run, Slope
from jaxpatch.models import decoder, experts, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching.exchange import Exchange
from jaxpatch.shapes import Params

REPAIRS = ("qk_fix", "grad_drop")


class Side(NamedTuple):
    """One model in one block: its parameters, what stood there in its own run, and its stream after it."""

    params: Params
    run: Run
    end: Float[Array, "B T D"]


class Layer(NamedTuple):
    """One block, as the shares see it. heads: the host's. where: 1 at positions that are exchanged."""

    own: Side
    other: Side
    heads: decoder.Heads
    slope: Slope
    context: decoder.Context
    where: Float[Array, "B T"]


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision=layers.precision())


def _matrices(exchange: Exchange, layer: Layer, part: str, name: str) -> tuple[jax.Array, jax.Array]:
    """By which the two models' activations are written."""
    own, other = (side.params[part][name]["kernel"] for side in (layer.own, layer.other))
    return own, own if exchange.site == "vector" else other


def _head_share(config: DecoderConfig, exchange: Exchange, layer: Layer) -> jax.Array:
    slope = layer.slope.attended * layer.where[..., None]
    ends = zip(_matrices(exchange, layer, "attn", "o"), (layer.own.run.z, layer.other.run.z), strict=True)
    before, after = (_einsum("btnh,btnh->bn", z, _einsum("btd,nhd->btnh", slope, matrix)) for matrix, z in ends)
    return after - before


def _neuron_share(config: DecoderConfig, exchange: Exchange, layer: Layer) -> jax.Array:
    slope = layer.slope.computed * layer.where[..., None]
    matrices = _matrices(exchange, layer, "mlp", "down")
    if config.experts:
        sides = zip((layer.own, layer.other), matrices, strict=True)
        before, after = (_experts_writes(config, side, slope, matrix) for side, matrix in sides)
        return (after - before).reshape(len(slope), -1)
    made = (layers.neurons(side.run.inputs, config.activation) for side in (layer.own, layer.other))
    ends = zip(matrices, made, strict=True)
    before, after = (_einsum("btf,btf->bf", each, _einsum("btd,fd->btf", slope, matrix)) for matrix, each in ends)
    return after - before


def _experts_writes(config: DecoderConfig, side: Side, slope: jax.Array, down: jax.Array) -> jax.Array:
    """What each neuron of each expert writes in a model's own run, contracted with a gradient: [B, E, F]. down: [E, F, D]."""
    block = decoder.block(config, side.params)
    batch, tokens, width = slope.shape
    x = block.mlp_input(side.run.read_by_mlp(config)).reshape(-1, width)
    routes, arriving = block.mlp.routes(x), slope.reshape(-1, width)
    number, shares = routes.chosen.shape[-1], routes.shares.reshape(-1)

    def step(found: jax.Array, pairs: jax.Array, expert: jax.Array) -> jax.Array:
        own, end = (experts.rows(each, pairs // number) for each in (x, arriving))
        end = end * experts.rows(shares, pairs)[:, None]
        inputs = [
            _einsum("sd,df->sf", own, side.params["mlp"][name]["kernel"][expert]) for name in decoder.inputs(config)
        ]
        written = layers.neurons(inputs, config.activation) * _einsum("sd,fd->sf", end, down[expert])
        is_of = (pairs // (number * tokens))[:, None] == jnp.arange(batch)
        return found.at[:, expert].add(_einsum("sb,sf->bf", is_of.astype(written.dtype), written))

    nothing = jnp.zeros((batch, config.experts, config.neurons), x.dtype)
    return experts.each(experts.tiles_of(routes.chosen, config.experts), routes.chosen.size, step, nothing)


def _expert_share(config: DecoderConfig, exchange: Exchange, layer: Layer) -> jax.Array:
    """The sum of what its neurons write."""
    found = _neuron_share(config, exchange, layer)
    return found.reshape(len(found), config.experts, config.neurons).sum(axis=-1)


def _half_share(config: DecoderConfig, exchange: Exchange, layer: Layer, kind: str) -> jax.Array:
    """All of attention or MLP: the sum of what its components write, or what it adds to the stream, output bias and norm and all."""
    if exchange.site == "vector":
        return {"attention": _head_share, "mlp": _neuron_share}[kind](config, exchange, layer).sum(1, keepdims=True)

    def added(side: Side) -> jax.Array:
        block = decoder.block(config, side.params)
        if kind == "attention":
            return block.after_attention(block.attn.write(side.run.z))
        return block.after_mlp(block.mlp(block.mlp_input(side.run.read_by_mlp(config))))

    slope = layer.slope.mid if kind == "attention" else layer.slope.end
    return _along(layer, added(layer.other) - added(layer.own), slope)


def _layer_share(config: DecoderConfig, exchange: Exchange, layer: Layer) -> jax.Array:
    return _along(layer, layer.other.end - layer.own.end, layer.slope.end)


def _along(layer: Layer, change: jax.Array, slope: jax.Array) -> jax.Array:
    return _einsum("btd,btd,bt->b", change, slope, layer.where)[:, None]


def _read_share(
    config: DecoderConfig, exchange: Exchange, layer: Layer, names: tuple[str, ...], is_repaired: bool
) -> jax.Array:
    """Queries of heads, or keys and values of groups: [B, n]. names: which of `decoder.Heads`."""
    other = decoder.block(config, layer.other.params).heads(layer.other.run.entering)
    where = layer.where[..., None, None]
    moved = {name: (getattr(other, name) - getattr(layer.heads, name)) * where for name in names}
    if not is_repaired:
        slope = {name: getattr(layer.slope.heads, name) for name in names}
        return sum(_einsum("btnh,btnh->bn", moved[name], slope[name]) for name in names)  # pyright: ignore[reportReturnType]  # of arrays
    attn, own = decoder.block(config, layer.own.params).attn, layer.heads
    count = moved[names[0]].shape[-2]

    def change(which: jax.Array) -> jax.Array:
        """Of every head's vector along its gradient, with some exchanged: [B, n]."""
        heads = own._replace(**{name: getattr(own, name) + moved[name] * which[:, None] for name in names})
        by_head = ((attn.attend(heads, layer.context) - layer.own.run.z) * layer.slope.z).sum((1, 3))
        return by_head.reshape(len(by_head), count, -1).sum(axis=-1)

    if config.qk_norm == "whole":  # the heads meet in the norm, so each is exchanged by itself
        return jax.lax.map(lambda which: change(which).sum(axis=1), jnp.eye(count, dtype=where.dtype)).T
    return change(jnp.ones(count, where.dtype))


def share_of(kind: str, repairs: tuple[str, ...]) -> Callable[[DecoderConfig, Exchange, Layer], jax.Array]:
    """The first-order effects of a kind's components in one block, [B, n]."""
    writes = {"head": _head_share, "neuron": _neuron_share, "expert": _expert_share, "layer": _layer_share}
    if kind in writes:
        return writes[kind]
    if kind in ("attention", "mlp"):
        return functools.partial(_half_share, kind=kind)
    names = {"query": ("q",), "key": ("k",), "value": ("v",), "kv": ("k", "v")}[kind]
    return functools.partial(_read_share, names=names, is_repaired="qk_fix" in repairs)


def effects(
    config: DecoderConfig, kinds: tuple[str, ...], exchange: Exchange, repairs: tuple[str, ...], models: Models
) -> dict[str, Float[Array, "A B n"]]:
    """First-order effects on one read-out of every component of some kinds, in the A blocks that are read."""
    depth, stop = read_outs.depth(config, models.read_outs), read_outs.stop(config, models.read_outs)
    (after, run), (others_after, others) = (slopes.climb(config, side) for side in (models, turned_round(models)))
    context = decoder.causal_context(config, after.shape[-2], after.dtype)
    where = crossed.where(exchange, models.inputs, after.dtype)
    numbers = jnp.arange(depth, dtype=jnp.int32)
    top = slopes.at_the_top(config, models, after)
    ends = (
        jnp.concatenate([run.entering[1:], after[None]]),
        jnp.concatenate([others.entering[1:], others_after[None]]),
    )

    def descend(dropped: jax.Array) -> dict[str, jax.Array]:
        """dropped: a block that gradients pass by, and not through."""

        def step(end: jax.Array, at):
            number, runs, ends = at
            weights = (decoder.widened(decoder.layer_of(side, number)) for side in (models.host, models.donor))
            own, other = map(Side, weights, runs, ends)
            here = context.at(number)
            entering, slope, heads = slopes.descend(config, here, own.params, own.run, end)
            layer = Layer(own, other, heads, slope, here, where)
            found = {kind: share_of(kind, repairs)(config, exchange, layer) for kind in kinds}
            return jnp.where(number == dropped, end, entering), found

        return jax.lax.scan(read_outs.until(stop, step), top, (numbers, (run, others), ends), reverse=True)[1]

    if "grad_drop" not in repairs:
        return descend(jnp.int32(-1))
    if depth == 1:  # there is no other block to leave out
        return jax.tree.map(jnp.abs, descend(jnp.int32(-1)))

    def add(dropped: jax.Array, total: dict[str, jax.Array]) -> dict[str, jax.Array]:
        is_other = (numbers != dropped)[:, None, None]
        found = descend(dropped)
        return {kind: total[kind] + jnp.where(is_other, jnp.abs(each), 0) for kind, each in found.items()}

    shapes = jax.eval_shape(descend, jnp.int32(0))
    nothing = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), shapes)
    blocks = jnp.maximum(
        stop, 2
    )  # below a target in block 1 there is one alone; block 1 is not run, and leaves nothing out
    total = jax.lax.fori_loop(jnp.int32(0), blocks, add, nothing)
    return jax.tree.map(lambda each: each / (blocks - 1).astype(each.dtype), total)
