"""The definition of an effect: patch the whole tree, run the model, read the anchor. Slow, plain, and the oracle of `local`."""

import dataclasses

import jax

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
    states = decoder.Decoder(shallow).apply({"params": up_to(params, layer + 1)}, inputs.tokens, method="hidden")
    return decoder.take(states, inputs.lengths - 1)[:, 0]


def anchor_effect(
    config: DecoderConfig, base: Params, special: Params, gates: Gates, inputs: Inputs, anchor: Anchor
) -> jax.Array:
    """F_a of the patched model on each input: [B]. Layers above the anchor are never touched."""
    depth = anchor.layer + 1
    kinds = components.of_decoder(base)
    shallow = {n: gate[:depth] if components.lookup(kinds, n).axes[0] == "layer" else gate for n, gate in gates.items()}
    patched = blend.patch(up_to(base, depth), up_to(special, depth), shallow)
    return anchor.read(last_states(config, patched, inputs, anchor.layer))


def last_logits(config: DecoderConfig, params: Params, inputs: Inputs) -> jax.Array:
    """Next-token logits after each prompt: [B, V]."""
    model = decoder.Decoder(config)
    return model.apply({"params": params}, last_states(config, params, inputs, config.layers - 1), method="read_out")
