"""The change that a component makes in its own block: exactly, in closed form where there is one, and without copying weights.

A head writes ``z W_O`` into the stream and a neuron ``act(x g, x u) d``, times its expert's share where it has one; the difference of
the two models' writes is all that a patch changes there. It is computed in float32 or wider, whatever the weights are: in bfloat16 a
small difference drowns in the rounding of what is subtracted. Kinds with few members a layer run their patched block whole. The local
forms are ours.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpatch.measuring import downstream
from jaxpatch.measuring.downstream import Models, Trace, context_of
from jaxpatch.models import decoder, experts, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Params


class Local(NamedTuple):
    """How one kind changes its own block.

    stream: (config, models, states, layers [C], indices [C]) -> [C, M, D], the stream right after what the component wrote. An
        index counts through all that a layer has of the kind.
    is_mid: that is the middle of the block, so its MLP still follows; otherwise its end.
    """

    stream: Callable[..., jax.Array]
    is_mid: bool


def einsum(spec: str, *operands: jax.Array) -> jax.Array:
    return jnp.einsum(spec, *map(layers.at_least_float32, operands), precision=layers.precision())


def _with_norm(config: DecoderConfig, norm: Params, layer: jax.Array, x: jax.Array) -> jax.Array:
    """x: [C, ..., D], each through the norm of its own layer."""
    own = jax.tree.map(lambda leaf: leaf[layer], norm)
    return jax.vmap(functools.partial(decoder.normed_as_wide, config))(x, own)


def read_by_attention(config: DecoderConfig, models: Models, states: Trace, layer: jax.Array) -> jax.Array:
    """What the host's queries, keys and values are made of: [C, M, D]."""
    x = states.entering[layer - states.first]
    return _with_norm(config, models.host["layers"]["attn_norm"], layer, x) if config.pre_norm else x


def read_by_mlp(config: DecoderConfig, models: Models, states: Trace, layer: jax.Array) -> jax.Array:
    x = (states.entering if config.parallel else states.mid)[layer - states.first]
    return _with_norm(config, models.host["layers"]["mlp_norm"], layer, x) if config.pre_norm else x


def movement(
    config: DecoderConfig, norm: str, models: Models, written: jax.Array | None, layer: jax.Array, change: jax.Array
) -> jax.Array:
    """By how much a change of what the host's attention or MLP has written moves the stream. norm: the one it passes, if any."""
    if written is not None:
        after = functools.partial(_with_norm, config, models.host["layers"][norm], layer)
        change = after(written + change) - after(written)
    return change if config.residual_scale == 1 else change * config.residual_scale


def _heads(x: jax.Array, weights: Params, layer: jax.Array, heads: jax.Array) -> jax.Array:
    """Queries, keys or values of chosen heads. x: [C, M, D]; heads: [C, n] -> [C, M, n, H]."""
    out = einsum("cmd,cndh->cmnh", x, weights["kernel"][layer[:, None], :, heads])
    return out + weights["bias"][layer[:, None], heads][:, None].astype(out.dtype) if "bias" in weights else out


def _turned(config: DecoderConfig, models: Models, name: str, x: jax.Array, layer: jax.Array, cos_sin) -> jax.Array:
    """Queries ("q") or keys ("k") as they meet, [C, M, n, H], by the host's norms."""
    if config.qk_norm:
        x = _with_norm(config, models.host["layers"]["attn"][f"{name}_norm"], layer, x)
    return layers.rotate(x, cos_sin)


def head_vectors(
    config: DecoderConfig, models: Models, states: Trace, layer: jax.Array, indices: jax.Array
) -> Callable[[Params], jax.Array]:
    """Of chosen heads before W_O, [C, M, H], in the host's run: their queries by the attention that is asked, the rest by the host."""
    context, x = context_of(config, models).at(layer), read_by_attention(config, models, states, layer)
    attn, groups = models.host["layers"]["attn"], indices[:, None] // (config.heads // config.kv_heads)
    k = _turned(config, models, "k", _heads(x, attn["k"], layer, groups), layer, context.cos_sin)
    v = _heads(x, attn["v"], layer, groups)

    def vectors(attn: Params) -> jax.Array:
        q = _turned(config, models, "q", _heads(x, attn["q"], layer, indices[:, None]), layer, context.cos_sin)
        return context.attend(config, q, k, v)[:, :, 0]

    return vectors


def _head_stream(config: DecoderConfig, models: Models, states: Trace, layer, indices):
    at, vectors = layer - states.first, head_vectors(config, models, states, layer, indices)

    def written(attn: Params) -> jax.Array:
        return einsum("cmh,chd->cmd", vectors(attn), attn["o"]["kernel"][layer, indices])

    change = written(models.donor["layers"]["attn"]) - written(models.host["layers"]["attn"])
    return states.mid[at] + movement(config, "attn_post_norm", models, states.attended_at(at), layer, change)


def _kv_stream(config: DecoderConfig, models: Models, states: Trace, layer, indices):
    context, at = context_of(config, models).at(layer), layer - states.first
    attn, size = models.host["layers"]["attn"], config.heads // config.kv_heads
    heads = indices[:, None] * size + jnp.arange(size, dtype=indices.dtype)
    x = read_by_attention(config, models, states, layer)
    q = _turned(config, models, "q", _heads(x, attn["q"], layer, heads), layer, context.cos_sin)

    def vectors(attn: Params) -> jax.Array:
        k = _turned(config, models, "k", _heads(x, attn["k"], layer, indices[:, None]), layer, context.cos_sin)
        return context.attend(config, q, k, _heads(x, attn["v"], layer, indices[:, None]))

    change = vectors(models.donor["layers"]["attn"]) - vectors(attn)
    written = einsum("cmnh,cnhd->cmd", change, attn["o"]["kernel"][layer[:, None], heads])
    return states.mid[at] + movement(config, "attn_post_norm", models, states.attended_at(at), layer, written)


def _share(config: DecoderConfig, models: Models, layer: jax.Array, x: jax.Array, expert: jax.Array) -> jax.Array:
    """How much one expert counts for each state, by the host's router: [C, M]. x: [C, M, D]."""
    router = layers.at_least_float32(models.host["layers"]["mlp"]["router"]["kernel"][layer])

    def one(x: jax.Array, router: jax.Array, expert: jax.Array) -> jax.Array:
        return experts.share_of(decoder.routes(config, x, router), expert)

    return jax.vmap(one)(layers.at_least_float32(x), router, expert)


def _places(config: DecoderConfig, indices: jax.Array) -> tuple[jax.Array, ...]:
    """Expert, where there are any, and neuron."""
    return tuple(jnp.divmod(indices, config.neurons)) if config.experts else (indices,)


def neuron_activations(
    config: DecoderConfig, models: Models, states: Trace, layer: jax.Array, indices: jax.Array
) -> Callable[[Params], jax.Array]:
    """Of chosen neurons, [C, M], in the host's run: by the MLP that is asked, times the share that the host's router gives them."""
    x, (*expert, neuron) = read_by_mlp(config, models, states, layer), _places(config, indices)
    share = _share(config, models, layer, x, *expert) if expert else None

    def into(weights: Params) -> jax.Array:
        pre = einsum("cmd,cd->cm", x, weights["kernel"][layer, *expert, :, neuron])
        return pre + weights["bias"][layer, neuron][:, None].astype(pre.dtype) if "bias" in weights else pre

    def activations(mlp: Params) -> jax.Array:
        made = layers.neurons([into(mlp[name]) for name in decoder.inputs(config)], config.activation)
        return made if share is None else made * share

    return activations


def neuron_rows(config: DecoderConfig, mlp: Params, layer: jax.Array, indices: jax.Array) -> jax.Array:
    """What chosen neurons write, times their activation: [C, 1, D]."""
    return layers.at_least_float32(mlp["down"]["kernel"][layer, *_places(config, indices)])[:, None]


def _neuron_stream(config: DecoderConfig, models: Models, states: Trace, layer, indices):
    at, activations = layer - states.first, neuron_activations(config, models, states, layer, indices)

    def written(mlp: Params) -> jax.Array:
        return activations(mlp)[:, :, None] * neuron_rows(config, mlp, layer, indices)

    change = written(models.donor["layers"]["mlp"]) - written(models.host["layers"]["mlp"])
    return states.entering[at + 1] + movement(config, "mlp_post_norm", models, states.computed_at(at), layer, change)


def _expert_stream(config: DecoderConfig, models: Models, states: Trace, layer, indices):
    """One candidate at a time: an expert's matrices are large, and a copy of each candidate's would be larger."""

    def one(place: tuple[jax.Array, jax.Array]) -> jax.Array:
        layer, expert = (each[None] for each in place)
        x, at = read_by_mlp(config, models, states, layer), layer - states.first

        def written(mlp: Params) -> jax.Array:
            own = {name: mlp[name]["kernel"][layer, expert] for name in (*decoder.inputs(config), "down")}
            inputs = [einsum("cmd,cdf->cmf", x, own[name]) for name in decoder.inputs(config)]
            return einsum("cmf,cfd->cmd", layers.neurons(inputs, config.activation), own["down"])

        change = written(models.donor["layers"]["mlp"]) - written(models.host["layers"]["mlp"])
        change = change * _share(config, models, layer, x, expert)[:, :, None]
        moved = movement(config, "mlp_post_norm", models, states.computed_at(at), layer, change)
        return (states.entering[at + 1] + moved)[0]

    return jax.lax.map(one, (layer, indices))


def _whole_block(kind: str) -> Local:
    """Kinds with few members a layer: run the patched block itself, one candidate at a time."""

    def stream(config: DecoderConfig, models: Models, states: Trace, layer, indices):
        context = context_of(config, models)

        def one(at):
            layer, index = at
            slices = decoder.layer_of(models.host, layer), decoder.layer_of(models.donor, layer)
            partition = components.of_block(slices[0])
            shape = partition[kind].shape
            gate = jnp.zeros(shape).at[index].set(1) if shape else jnp.ones(())
            weights = decoder.widened(blend.patch(*slices, {kind: gate}, partition))
            entering = states.entering[layer - states.first]
            return decoder.Block(config).apply({"params": weights}, entering, context.at(layer))[0]

        return jax.lax.map(one, (layer, indices))

    return Local(stream, is_mid=False)


KINDS = ("head", "kv", "neuron", "expert", "router", "attention", "mlp", "layer", "matrix", "norm")
"""Kinds that live inside one block."""
_CLOSED = {
    "head": Local(_head_stream, is_mid=True),
    "kv": Local(_kv_stream, is_mid=True),
    "neuron": Local(_neuron_stream, is_mid=False),
    "expert": Local(_expert_stream, is_mid=False),
}


def is_closed(config: DecoderConfig, kind: str) -> bool:
    """Whether there is a closed form: a head's own, unless its queries and keys are normalised together with those of other heads."""
    return kind in _CLOSED and not (config.qk_norm == "whole" and kind in ("head", "kv"))


def local_of(config: DecoderConfig, kind: str) -> Local:
    """How a kind changes its own block in models of this config."""
    return _CLOSED[kind] if is_closed(config, kind) else _whole_block(kind)


def effects(
    config: DecoderConfig,
    kind: str,
    models: Models,
    states: Trace,
    layer: Int[Array, " C"],
    indices: Int[Array, " C"],
    unreached: Float[Array, "R B"],
    groups: int = 1,
) -> Float[Array, "C R B"]:
    """``F(patched) - F(host)`` with one component patched, for each of some candidates. layer: traced, within `states`.

    groups: of candidates that run apart from each other (`downstream.effects`).
    """
    local = local_of(config, kind)
    stream = local.stream(config, models, states, layer, indices)
    start = 2 * layer + (1 if local.is_mid else 2)
    return downstream.effects(config, models, stream, start, states, unreached, groups)
