"""The engine: the effect of many single-component patches, without copying weights.

A patch in layer l changes nothing below l, and what it changes in layer l is known in closed form (a neuron's or a head's own
write). So: take the cached residual stream of the base at layer l, add the component's own change, run the shared-weight layers
above it on a batch of candidates x prompts, stop at the anchor. The local form is ours; the contract test holds it to `effect`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Params


class Trace(NamedTuple):
    """The base's run. entering: residual stream before each block up to the anchor; mid: between its two halves."""

    entering: Float[Array, "A B T D"]
    mid: Float[Array, "A B T D"]


class Models(NamedTuple):
    """The two models and what both read; the pytree that every engine function takes."""

    base: Params
    special: Params
    inputs: Inputs
    anchor: Anchor


Slices = tuple[Params, Params]


def layer_of(params: Params, layer: jax.Array | int) -> Params:
    """The parameters of one block."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), params["layers"])


def _context(config: DecoderConfig, x: jax.Array) -> decoder.Context:
    return decoder.causal_context(config, x.shape[-2], x.dtype)


def trace(config: DecoderConfig, models: Models, taps: Trace | None = None) -> tuple[Float[Array, " B"], Trace]:
    """Run the base up to the anchor.

    Args: taps: added to the residual stream before each block and in its middle; zeros whose gradient is the one that arrives
        there.
    Returns: the read-out, and the trace.
    """
    depth = models.anchor.layer + 1
    x = models.base["embed"]["kernel"][models.inputs.tokens]
    if taps is None:
        taps = Trace(*(jnp.zeros((depth, *[1] * x.ndim), x.dtype),) * 2)
    context = _context(config, x)

    def step(x, layer):
        weights, tap = layer
        block = decoder.Block(config).bind({"params": weights})
        entering = x + tap.entering
        mid = block.attention_half(entering, context)[0] + tap.mid
        return block.mlp_half(mid), Trace(entering, mid)

    shallow = jax.tree.map(lambda leaf: leaf[:depth], models.base["layers"])
    x, states = jax.lax.scan(step, x, (shallow, taps))
    return models.anchor.read(decoder.take(x, models.inputs.lengths - 1)[..., 0, :]), states


def finish(
    config: DecoderConfig, models: Models, x: Float[Array, "C B T D"], start: Int[Array, ""] | int
) -> Float[Array, "C B"]:
    """Read-outs after running the base's blocks start, ..., anchor on given states.

    Args: x: the stream entering block `start`; start: traced, so that one compilation serves all layers.
    """
    context, anchor, last = _context(config, x), models.anchor, models.inputs.lengths - 1

    def step(layer, x):
        return decoder.Block(config).apply({"params": layer_of(models.base, layer)}, x, context)[0]

    def top(x):
        weights = {"params": layer_of(models.base, anchor.layer)}
        return decoder.Block(config).apply(weights, x, context, last, method="at")

    x = jax.lax.fori_loop(start, anchor.layer, step, x)
    x = jax.lax.cond(start <= anchor.layer, top, lambda x: decoder.take(x, last), x)
    return anchor.read(x[..., 0, :])


class Local(NamedTuple):
    """How one kind changes its own layer.

    change: (config, (base, special) weights of the layer, entering [B, T, D], mid [B, T, D], indices [C]) ->
        [C, B, T, D], what the components write differently.
    share: (config, layer weights, entering, mid, cotangent [B, T, D]) -> [B, n], the change of every component of the layer
        contracted with a gradient, at the cost of one more forward pass.
    is_mid: the change is added in the middle of the block, so its MLP still follows; otherwise at its end.
    """

    change: Callable[..., jax.Array]
    share: Callable[..., jax.Array]
    is_mid: bool


def _einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *operands, precision=layers.PRECISION)


def _picked(weights: Params, indices: jax.Array) -> Params:
    """The in-slices (last kernel axis but head width) of some heads: kernel [D, C, H], bias [C, H]."""
    return {name: jnp.take(leaf, indices, axis=-2) for name, leaf in weights.items()}


def _head_vectors(config: DecoderConfig, layer: Params, q_weights: Params, entering: jax.Array, groups: jax.Array):
    """Vectors before W_O of chosen heads, each with its group's own keys and values: [B, T, C, H]."""
    x = layers.rms_norm(entering, layer["attn_norm"]["scale"], config.norm_eps)
    context = _context(config, entering)
    q = layers.rotate(layers.to_heads(x, q_weights), context.cos_sin)
    k = layers.rotate(layers.to_heads(x, layer["attn"]["k"]), context.cos_sin)
    v = layers.to_heads(x, layer["attn"]["v"])
    return layers.attend(q, jnp.take(k, groups, axis=-2), jnp.take(v, groups, axis=-2), context.mask)


def _head_change(config, slices: Slices, entering, mid, indices):
    del mid
    groups = indices // (config.heads // config.kv_heads)

    def written(weights: Params) -> jax.Array:
        z = _head_vectors(config, slices[0], _picked(weights["attn"]["q"], indices), entering, groups)
        return _einsum("btch,chd->cbtd", z, jnp.take(weights["attn"]["o"]["kernel"], indices, axis=0))

    return written(slices[1]) - written(slices[0])


def _head_share(config, slices: Slices, entering, mid, cotangent):
    del mid
    groups = jnp.arange(config.heads) // (config.heads // config.kv_heads)

    def along(weights: Params) -> jax.Array:
        z = _head_vectors(config, slices[0], weights["attn"]["q"], entering, groups)
        return _einsum("btnh,btnh->bn", z, _einsum("btd,nhd->btnh", cotangent, weights["attn"]["o"]["kernel"]))

    return along(slices[1]) - along(slices[0])


def _group_vectors(config: DecoderConfig, layer: Params, kv: Params, entering: jax.Array, groups: jax.Array):
    """Vectors before W_O of all heads of chosen groups, keys and values out of `kv`: [B, T, C, G, H]."""
    x = layers.rms_norm(entering, layer["attn_norm"]["scale"], config.norm_eps)
    context, size = _context(config, entering), config.heads // config.kv_heads
    heads = (groups[:, None] * size + jnp.arange(size)).reshape(-1)
    q = layers.rotate(layers.to_heads(x, _picked(layer["attn"]["q"], heads)), context.cos_sin)
    k = layers.rotate(layers.to_heads(x, _picked(kv["attn"]["k"], groups)), context.cos_sin)
    v = layers.to_heads(x, _picked(kv["attn"]["v"], groups))
    z = layers.attend(q, k, v, context.mask)
    return z.reshape(*z.shape[:-2], groups.shape[0], size, config.head_width)


def _group_outputs(config: DecoderConfig, layer: Params, groups: jax.Array) -> jax.Array:
    """W_O of all heads of chosen groups: [C, G, H, D]."""
    grouped = layer["attn"]["o"]["kernel"].reshape(config.kv_heads, -1, config.head_width, config.width)
    return jnp.take(grouped, groups, axis=0)


def _kv_change(config, slices: Slices, entering, mid, indices):
    del mid
    z = [_group_vectors(config, slices[0], kv, entering, indices) for kv in slices]
    return _einsum("btcgh,cghd->cbtd", z[1] - z[0], _group_outputs(config, slices[0], indices))


def _kv_share(config, slices: Slices, entering, mid, cotangent):
    del mid
    groups = jnp.arange(config.kv_heads)
    z = [_group_vectors(config, slices[0], kv, entering, groups) for kv in slices]
    arriving = _einsum("btd,cghd->btcgh", cotangent, _group_outputs(config, slices[0], groups))
    return _einsum("btcgh,btcgh->bc", z[1] - z[0], arriving)


def _neuron_change(config, slices: Slices, entering, mid, indices):
    del entering
    x = layers.rms_norm(mid, slices[0]["mlp_norm"]["scale"], config.norm_eps)

    def written(mlp: Params) -> jax.Array:
        chosen = {
            half: {name: jnp.take(leaf, indices, axis=-1) for name, leaf in mlp[half].items()}
            for half in ("gate", "up")
        }
        return _einsum("btc,cd->cbtd", layers.neurons(x, chosen), jnp.take(mlp["down"]["kernel"], indices, axis=0))

    return written(slices[1]["mlp"]) - written(slices[0]["mlp"])


def _neuron_share(config, slices: Slices, entering, mid, cotangent):
    del entering
    x = layers.rms_norm(mid, slices[0]["mlp_norm"]["scale"], config.norm_eps)

    def along(mlp: Params) -> jax.Array:
        arriving = _einsum("btd,fd->btf", cotangent, mlp["down"]["kernel"])
        return _einsum("btf,btf->bf", layers.neurons(x, mlp), arriving)

    return along(slices[1]["mlp"]) - along(slices[0]["mlp"])


def _whole_block(kind: str) -> Local:
    """Kinds with few members a layer: run the patched block itself, one candidate at a time, and take the difference."""

    def change(config, slices: Slices, entering, mid, indices):
        partition = components.of_block(slices[0])
        block, context, shape = decoder.Block(config), _context(config, entering), partition[kind].shape
        before = block.bind({"params": slices[0]}).mlp_half(mid)

        def one(index):
            gate = jnp.zeros(shape).at[index].set(1) if shape else jnp.ones(())
            weights = blend.patch(*slices, {kind: gate}, partition)
            return block.apply({"params": weights}, entering, context)[0] - before

        return jax.lax.map(one, indices)

    def share(config, slices: Slices, entering, mid, cotangent):
        number = math.prod(components.of_block(slices[0])[kind].shape)
        return _einsum("cbtd,btd->bc", change(config, slices, entering, mid, jnp.arange(number)), cotangent)

    return Local(change, share, is_mid=False)


LOCALS: dict[str, Local] = {
    "head": Local(_head_change, _head_share, is_mid=True),
    "kv": Local(_kv_change, _kv_share, is_mid=True),
    "neuron": Local(_neuron_change, _neuron_share, is_mid=False),
} | {kind: _whole_block(kind) for kind in ("attention", "mlp", "layer", "matrix", "norm")}
"""Kinds that live inside one block. An open set."""


def block_effects(
    config: DecoderConfig, kind: str, models: Models, states: Trace, layer: Int[Array, ""], indices: Int[Array, " C"]
) -> Float[Array, "C B"]:
    """F_a with one component of `layer` patched, for each of `indices`. layer: traced."""
    local = LOCALS[kind]
    slices = layer_of(models.base, layer), layer_of(models.special, layer)
    entering, mid = (jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in states)
    change = local.change(config, slices, entering, mid, indices)
    block = decoder.Block(config).bind({"params": slices[0]})
    x = block.mlp_half(mid + change) if local.is_mid else block.mlp_half(mid) + change
    return finish(config, models, x, layer + 1)


def embed_effects(config: DecoderConfig, models: Models) -> Float[Array, "1 B"]:
    """F_a with the whole embedding patched."""
    return finish(config, models, models.special["embed"]["kernel"][models.inputs.tokens][None], 0)


def linear_effects(config: DecoderConfig, kind: str, models: Models) -> Float[Array, "B A n"]:
    """Local-exact, downstream-linear effects of every component of a kind in blocks 0 to the anchor's, from one backward pass.

    Each component's own change of output is exact; what follows it is linearised at the base.
    """
    local, depth = LOCALS[kind], models.anchor.layer + 1
    states = trace(config, models)[1]
    zeros = jax.tree.map(jnp.zeros_like, states)
    slope = jax.grad(lambda taps: trace(config, models, taps)[0].sum())(zeros)
    at_end = jnp.concatenate([slope.entering[1:], _top_slope(config, models, states)[None]])

    def one(layer):
        slices = layer_of(models.base, layer), layer_of(models.special, layer)
        cotangent = slope.mid[layer] if local.is_mid else at_end[layer]
        return local.share(config, slices, states.entering[layer], states.mid[layer], cotangent)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(depth)), 0, 1)


def _top_slope(config: DecoderConfig, models: Models, states: Trace) -> Float[Array, "B T D"]:
    """Gradient of the read-out in the residual stream right after the anchor's block."""
    block = decoder.Block(config).bind({"params": layer_of(models.base, models.anchor.layer)})
    last = models.inputs.lengths - 1
    end = block.mlp_half(states.mid[-1])
    return jax.grad(lambda x: models.anchor.read(decoder.take(x, last)[:, 0]).sum())(end)
