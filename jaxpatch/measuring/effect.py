"""The definition of an effect: patch the model, run it, read it out. Slow, plain, and the oracle of `local`.

Weights are patched, and in narrow models widened to float32, a block at a time as the run comes to them, and once more as a derivative
goes back: a patched model is never there as a whole.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxpatch.measuring import contributions, read_outs
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor, Contribution, NextToken, ReadOut
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Gates, Params


class Patched(NamedTuple):
    """A model between two others. Without gates it is the host."""

    host: Params
    donor: Params
    gates: Gates

    @property
    def partition(self) -> components.Partition:
        """Who owns what."""
        return components.of_decoder(self.host)

    def embedded(self, config: DecoderConfig, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """The residual stream entering the first block: [*tokens, D]."""
        rows = (decoder.table_rows(config, side, tokens, positions) for side in self[:2])
        return decoder.entering(config, self._between(*rows))

    def block(self, number: jax.Array) -> Params:
        """The parameters of one block, float32 or wider."""
        host, donor = (decoder.widened(decoder.layer_of(side, number)) for side in self[:2])
        partition = components.of_block(host)
        gates = {kind: jnp.asarray(gate)[number] for kind, gate in self.gates.items() if kind in partition}
        return blend.patch(host, donor, gates, partition)

    def logits(self, config: DecoderConfig, x: jax.Array) -> jax.Array:
        """Logits of a residual stream. A product with a blend of two matrices is the blend of two products, which takes less room."""
        norm = self._between(*({"final_norm": side["final_norm"]} for side in self[:2]))
        matrix = "embed" if config.tied else "unembed"
        sides = self[:2] if matrix in self.gates else self[:1]
        ends = [decoder.apply(config, {**side, **norm}, x, method="unembedded") for side in sides]
        logits = blend.blend(*ends, jnp.asarray(self.gates[matrix])[0]) if len(ends) > 1 else ends[0]
        return layers.capped(logits, config.logit_cap)

    def _between(self, host: Params, donor: Params) -> Params:
        """A part of the tree outside of the blocks."""
        return blend.patch(host, donor, {k: g for k, g in self.gates.items() if k in host}, self.partition)


def unpatched(params: Params) -> Patched:
    """A model as it is."""
    return Patched(params, params, {})


def run(
    config: DecoderConfig, model: Patched, inputs: Inputs, x: jax.Array, start: int, depth: int, stop: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Through blocks start, ..., depth - 1: the stream after them [B, T, D], and after each at the last tokens [depth - start, B, D].
    stop: the first that need not run (`read_outs.stop`); all do where None."""
    context = decoder.causal_context(config, x.shape[-2], x.dtype)

    def step(x, number):
        x = decoder.Block(config).apply({"params": model.block(number)}, x, context.at(number))[0]
        return x, decoder.take(x, inputs.lengths - 1)[:, 0]

    passing = jax.checkpoint(read_outs.until(stop, step), prevent_cse=False)
    return jax.lax.scan(passing, x, jnp.arange(start, depth, dtype=jnp.int32))


def every_last_state(config: DecoderConfig, model: Patched, inputs: Inputs, depth: int | None = None) -> jax.Array:
    """Residual stream after each of the first `depth` blocks at the last token of each prompt: [depth, B, D]. All where None."""
    return run(
        config, model, inputs, model.embedded(config, inputs.tokens), 0, config.layers if depth is None else depth
    )[1]


def reads(config: DecoderConfig, model: Patched, inputs: Inputs, wanted: Sequence[ReadOut]) -> jax.Array:
    """F of a model, patched or not: [R, B]. Blocks that none of the read-outs needs are not run.

    Raises: KeyError, ValueError for gates that do not fit the model.
    """
    blend.refuse_misfits(model.gates, model.partition)
    entering = model.embedded(config, inputs.tokens)
    x, states = run(config, model, inputs, entering, 0, read_outs.depth(config, wanted), read_outs.stop(config, wanted))
    return read_states(config, model, x, states, wanted)


def read_states(
    config: DecoderConfig, model: Patched, x: jax.Array, states: jax.Array, wanted: Sequence[ReadOut]
) -> jax.Array:
    """Read-outs of the residual stream after the last block that was run, [B, T, D], and after each at the last tokens, [depth, B, D]:
    [R, B]. model: whose logits, and whose targets, they make."""

    def one(read_out: ReadOut) -> jax.Array:
        if isinstance(read_out, NextToken):
            return read_out.read(model.logits(config, states[-1]))
        if isinstance(read_out, Contribution):
            context = decoder.causal_context(config, x.shape[-2], x.dtype).at(read_out.layer)
            return contributions.read_prompts(config, model.block(read_out.layer), read_out, x, context)
        return read_out.read(states[read_out.layer])

    return jnp.stack([one(read_out) for read_out in wanted])


def last_logits(config: DecoderConfig, model: Patched, inputs: Inputs) -> jax.Array:
    """Next-token logits after each prompt: [B, V]."""
    return model.logits(config, every_last_state(config, model, inputs)[-1])


def outcome(
    config: DecoderConfig, model: Patched, inputs: Inputs, anchor: Anchor, steer: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Both ends of one run: F_a [B], and next-token logits [B, V].

    Args: steer: [D], added to the residual stream after the anchor's block at the last token.
    """
    depth, last = anchor.layer + 1, inputs.lengths - 1
    x, _ = run(config, model, inputs, model.embedded(config, inputs.tokens), 0, depth)
    read = anchor.read(decoder.take(x, last)[:, 0])
    if steer is not None:
        is_last = jnp.arange(x.shape[-2])[None, :] == last[:, None]
        x = x + jnp.where(is_last[..., None], steer.astype(x.dtype), 0)
    x, _ = run(config, model, inputs, x, depth, config.layers)
    return read, model.logits(config, decoder.take(x, last)[:, 0])
