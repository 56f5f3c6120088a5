"""The definition of an effect: patch the whole tree, run the model, read the anchor. Slow, plain, and the oracle of `local`."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxpatch.measuring import read_outs
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor, NextToken, ReadOut
from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Gates, Params


def up_to(params: Params, num_layers: int) -> Params:
    """The parameters of the first blocks alone, and of what comes before them."""
    return {**params, "layers": jax.tree.map(lambda leaf: leaf[:num_layers], params["layers"])}


def every_last_state(config: DecoderConfig, params: Params, inputs: Inputs) -> jax.Array:
    """Residual stream after every block at the last token of each prompt: [L, B, D]. The layers that `params` holds."""
    x = decoder.embedded(params, inputs.tokens)
    context = decoder.causal_context(config, x.shape[-2], decoder.dtype_of(params))

    def step(x, weights):
        x = decoder.Block(config).apply({"params": weights}, x, context)[0]
        return x, decoder.take(x, inputs.lengths - 1)[:, 0]

    return jax.lax.scan(step, x, params["layers"])[1]


def reads(config: DecoderConfig, params: Params, inputs: Inputs, wanted: Sequence[ReadOut]) -> jax.Array:
    """Read-outs of one model: [R, B]. Blocks that none of them needs are not run."""
    states = every_last_state(config, up_to(params, read_outs.depth(config, wanted)), inputs)

    def one(read_out: ReadOut) -> jax.Array:
        if isinstance(read_out, NextToken):
            return read_out.read(decoder.apply(config, params, states[-1], method="read_out"))
        return read_out.read(states[read_out.layer])

    return jnp.stack([one(read_out) for read_out in wanted])


def last_logits(config: DecoderConfig, params: Params, inputs: Inputs) -> jax.Array:
    """Next-token logits after each prompt: [B, V]."""
    return decoder.apply(config, params, every_last_state(config, params, inputs)[-1], method="read_out")


def patched_reads(
    config: DecoderConfig, host: Params, donor: Params, gates: Gates, inputs: Inputs, wanted: Sequence[ReadOut]
) -> jax.Array:
    """F of the patched model: [R, B]. Layers above what the read-outs need are never touched."""
    depth = read_outs.depth(config, wanted)
    kinds = components.of_decoder(host)
    shallow = {n: gate[:depth] if components.lookup(kinds, n).axes[0] == "layer" else gate for n, gate in gates.items()}
    return reads(config, blend.patch(up_to(host, depth), up_to(donor, depth), shallow), inputs, wanted)


def outcome(
    config: DecoderConfig, params: Params, inputs: Inputs, anchor: Anchor, steer: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Both ends of one run: F_a [B], and next-token logits [B, V].

    Args: steer: [D], added to the residual stream after the anchor's block at the last token.
    """
    x = decoder.embedded(params, inputs.tokens)
    context = decoder.causal_context(config, x.shape[-2], decoder.dtype_of(params))
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
