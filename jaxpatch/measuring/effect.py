"""The definition of an effect: patch the whole tree, run the model, read the anchor. Slow, plain, and the oracle of `local`."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Gates, Params


def up_to(params: Params, num_layers: int) -> Params:
    """The parameters of the first blocks alone, and of what comes before them."""
    return {**params, "layers": jax.tree.map(lambda leaf: leaf[:num_layers], params["layers"])}


def last_states(config: DecoderConfig, params: Params, inputs: Inputs, layer: int) -> jax.Array:
    """Residual stream after block `layer` at the last token of each prompt: [B, D]."""
    shallow = dataclasses.replace(config, layers=layer + 1)
    states = decoder.apply(shallow, up_to(params, layer + 1), inputs.tokens, method="hidden")
    return decoder.take(states, inputs.lengths - 1)[:, 0]


def every_last_state(config: DecoderConfig, params: Params, inputs: Inputs) -> jax.Array:
    """Residual stream after every block at the last token of each prompt: [L, B, D]."""
    x = params["embed"]["kernel"][inputs.tokens]
    context = decoder.causal_context(config, x.shape[-2], x.dtype)

    def step(x, weights):
        x = decoder.Block(config).apply({"params": weights}, x, context)[0]
        return x, decoder.take(x, inputs.lengths - 1)[:, 0]

    return jax.lax.scan(step, x, params["layers"])[1]


def anchor_effect(
    config: DecoderConfig, base: Params, special: Params, gates: Gates, inputs: Inputs, anchor: Anchor
) -> jax.Array:
    """F_a of the patched model on each input: [B]. Layers above the anchor are never touched."""
    depth = anchor.layer + 1
    kinds = components.of_decoder(base)
    shallow = {n: gate[:depth] if components.lookup(kinds, n).axes[0] == "layer" else gate for n, gate in gates.items()}
    patched = blend.patch(up_to(base, depth), up_to(special, depth), shallow)
    return anchor.read(last_states(config, patched, inputs, anchor.layer))


def outcome(
    config: DecoderConfig, params: Params, inputs: Inputs, anchor: Anchor, steer: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Both ends of one run: F_a [B], and next-token logits [B, V].

    Args: steer: [D], added to the residual stream after the anchor's block at the last token.
    """
    x = params["embed"]["kernel"][inputs.tokens]
    context = decoder.causal_context(config, x.shape[-2], x.dtype)
    last = inputs.lengths - 1

    def run(x, weights):
        return decoder.Block(config).apply({"params": weights}, x, context)[0], None

    depth = anchor.layer + 1
    x, _ = jax.lax.scan(run, x, jax.tree.map(lambda leaf: leaf[:depth], params["layers"]))
    read = anchor.read(decoder.take(x, last)[:, 0])
    if steer is not None:
        is_last = jnp.arange(x.shape[-2])[None, :] == last[:, None]
        x = x + jnp.where(is_last[..., None], steer.astype(x.dtype), 0)
    x, _ = jax.lax.scan(run, x, jax.tree.map(lambda leaf: leaf[depth:], params["layers"]))
    logits = decoder.apply(config, params, decoder.take(x, last)[:, 0], method="read_out")
    return read, logits
