"""What follows a change: the host's run, cached at every depth, and its blocks run on from anywhere for many candidates at once.

Every block is two half-steps, attention (2 l) and MLP (2 l + 1). A candidate is a residual stream and the half-step at which it
enters; until the loop has reached that half-step it waits. So one program serves all layers of all kinds, and candidates of different
layers share a batch. Ours; the contract test holds it to `effect`.

Narrow models run in their own arithmetic, beside the host: it is one more row of the batch, a candidate joins it with what its
component changed, and what meets a matrix is rounded relative to how far the two are apart (`layers.meet`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpatch.measuring import contributions, read_outs
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor, Contribution, NextToken, ReadOut
from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.prefix_tree import PrefixTree
from jaxpatch.shapes import Params


class Models(NamedTuple):
    """The two models and what both read; the pytree that every engine function takes.

    host: the model that is patched; donor: whose weights are put in. Restoration: base and special; knockout: special and base.
    inputs, tree: the same prompts, padded and without repetition.
    """

    host: Params
    donor: Params
    inputs: Inputs
    tree: PrefixTree
    read_outs: tuple[ReadOut, ...]


class Trace(NamedTuple):
    """Some consecutive blocks of the host's run.

    first: number of the first of them. entering: residual stream before each, and after the last. mid: between their halves.
    attended, computed: what attention and MLP wrote, where that passes a norm before it joins the stream.
    """

    first: Int[Array, ""]
    entering: Float[Array, "A1 M D"]
    mid: Float[Array, "A M D"]
    attended: Float[Array, "A M D"] | None = None
    computed: Float[Array, "A M D"] | None = None

    def at(self, half: Int[Array, ""]) -> Float[Array, "M D"]:
        """The stream at a half-step: 2 l before block l, 2 l + 1 in its middle."""
        block = half // 2 - self.first
        return jnp.where(half % 2 == 0, self.entering[block], self.mid[jnp.minimum(block, self.mid.shape[0] - 1)])

    def attended_at(self, block: Int[Array, "*any"]) -> Float[Array, "*any M D"] | None:
        """block: counted from the first here."""
        return None if self.attended is None else self.attended[block]

    def computed_at(self, block: Int[Array, "*any"]) -> Float[Array, "*any M D"] | None:
        return None if self.computed is None else self.computed[block]


def context_of(config: DecoderConfig, models: Models) -> decoder.TreeContext:
    """Of the models' prompts, in the stream's dtype."""
    return decoder.tree_context(config, models.tree, np.promote_types(decoder.dtype_of(models.host), np.float32))


def embedded(config: DecoderConfig, params: Params, tree: PrefixTree) -> Float[Array, "M D"]:
    """The stream entering the first block."""
    return decoder.embedded(config, params, tree.tokens, tree.positions)


def trace(
    config: DecoderConfig, models: Models, x: Float[Array, "M D"], first: Int[Array, ""] | int, length: int
) -> Trace:
    """The host's run through blocks first, ..., first + length - 1. x: the stream entering the first; first: traced."""
    context = context_of(config, models)

    def step(x, layer):
        block = decoder.block(config, decoder.widened(decoder.layer_of(models.host, layer)))
        mid, after, *written = block.halves(x, context.at(layer))
        return after, (x, mid, *(written if config.post_norm else (None, None)))

    after, (entering, *rest) = jax.lax.scan(step, x, first + jnp.arange(length, dtype=jnp.int32))
    return Trace(jnp.asarray(first, jnp.int32), jnp.concatenate([entering, after[None]]), *rest)


def effects(
    config: DecoderConfig,
    models: Models,
    x: Float[Array, "C M D"],
    start: Int[Array, " C"],
    states: Trace,
    unreached: Float[Array, "R B"],
    groups: int = 1,
) -> Float[Array, "C R B"]:
    """``F(patched) - F(host)``, of candidates that enter the host's run.

    Args:
        x: streams; candidate c enters at half-step ``start[c]``: 2 l before block l, 2 l + 1 in its middle.
        unreached: the host's own read-outs.
        groups: of candidates, one a device: each has a host of its own beside it where the model is narrow, and is sent to experts
            apart from the others.
    """
    if not decoder.is_narrow(models.host):
        lead = (groups, -1) if groups > 1 else (-1,)
        found = finish(config, models, x.reshape(*lead, *x.shape[1:]), start.reshape(lead), unreached)
        return (found - unreached).reshape(-1, *unreached.shape)
    first, starts = start.min(), start.reshape(groups, -1)
    x = (x - jax.vmap(states.at)(start)).reshape(groups, -1, *x.shape[1:])
    host = jnp.broadcast_to(states.at(first), (groups, 1, *x.shape[2:]))
    starts = jnp.pad(starts, ((0, 0), (1, 0)), constant_values=-1).at[:, 0].set(first)
    found = finish(config, models, jnp.concatenate([host, x], axis=1), starts, unreached, is_beside_host=True)
    return (found[:, 1:] - found[:, :1]).reshape(-1, *unreached.shape)


def finish(
    config: DecoderConfig,
    models: Models,
    x: Float[Array, "*lead C M D"],
    start: Int[Array, "*lead C"],
    unreached: Float[Array, "R B"],
    is_beside_host: bool = False,
) -> Float[Array, "*lead C R B"]:
    """Read-outs after running the host's blocks from given states on.

    Args:
        x: streams; candidate c enters at half-step ``start[c]``: 2 l before block l, 2 l + 1 in its middle. start: traced.
        unreached: the host's own read-outs, for those that lie below a candidate's start.
        is_beside_host: the first of the candidates is the host itself, which starts before all others, and theirs are not streams but
            what is added to the host's when they enter.

    Only the last tokens go through the last block that any read-out needs; but contributions listen to all of them.
    """
    context, reads = context_of(config, models), models.read_outs
    depth, targets = read_outs.depth(config, reads), [each for each in reads if isinstance(each, Contribution)]
    top = read_outs.stop(config, reads) if targets else depth - 1
    waits = start[..., None, None]

    def block(layer):
        weights = decoder.widened(decoder.layer_of(models.host, layer), kernels=False)
        return decoder.block(config, weights)

    def enter(half, x):
        """Who begins here, beside the host."""
        if not is_beside_host:
            return x
        begins = (waits == half) & (jnp.arange(x.shape[-3]) > 0)[:, None, None]
        return jnp.where(begins, x + x[..., :1, :, :], x)

    def mlp(layer, x):
        x = enter(2 * layer + 1, x)
        return jnp.where(waits <= 2 * layer + 1, block(layer).mlp_half(x), x)

    def note(found, x, layer):
        """The read-outs of the stream entering a block."""
        last = x[..., context.last, :]
        for row, read_out in enumerate(reads):
            if isinstance(read_out, Anchor) and read_out.layer < top:
                read, old = read_out.read(last), found[..., row, :]
                unchanged = read[..., :1, :] if is_beside_host else old
                now = jnp.where((start <= 2 * layer)[..., None], read, unchanged)
                found = found.at[..., row, :].set(jnp.where(read_out.layer == layer - 1, now, old))
        return found

    def step(layer, carry):
        x, found = carry
        x = enter(2 * layer, x)
        found = note(found, x, layer)
        attended = jnp.where(waits <= 2 * layer, block(layer).attention_half(x, context.at(layer))[0], x)
        return mlp(layer, attended), found

    first = start.min()
    begins_in_middle = (first % 2 == 1) & (first // 2 < top)
    x = jax.lax.cond(begins_in_middle, lambda x: mlp(first // 2, x), lambda x: x, x)
    found = jnp.broadcast_to(unreached, (*x.shape[:-2], *unreached.shape))
    x, found = jax.lax.fori_loop((first + 1) // 2, top, step, (x, found))
    x = enter(2 * top, x)
    if targets:
        return _contributions(config, models, targets, x, context.at(top))
    found = note(found, x, top)
    highest, last = block(top), x[..., context.last, :]
    last = jnp.where(waits <= 2 * top, highest.attention_at_ends(x, context.at(top)), last)
    last = enter(2 * top + 1, last)
    last = jnp.where(waits <= 2 * top + 1, highest.mlp_half(last), last)
    last = enter(2 * top + 2, last)
    for row, read_out in enumerate(reads):
        if isinstance(read_out, NextToken):
            logits = decoder.apply(config, models.host, last, method="read_out")
            found = found.at[..., row, :].set(read_out.read(logits))
        elif isinstance(read_out, Anchor) and read_out.layer == top:
            found = found.at[..., row, :].set(read_out.read(last))
    return found


def _contributions(
    config: DecoderConfig,
    models: Models,
    targets: Sequence[Contribution],
    x: Float[Array, "*lead C M D"],
    context: decoder.TreeContext,
) -> Float[Array, "*lead C R B"]:
    """Of targets in one block. x: the streams that enter it."""
    weights = decoder.layer_of(models.host, targets[0].layer)
    each = [contributions.read_nodes(config, weights, target, x, models.tree, context) for target in targets]
    return jnp.stack(each, axis=-2)


def host_reads(config: DecoderConfig, models: Models) -> Float[Array, "R B"]:
    """The read-outs of the unpatched host."""
    shape = len(models.read_outs), models.tree.last.shape[0]
    x = embedded(config, models.host, models.tree)
    return finish(config, models, x[None], jnp.zeros(1, jnp.int32), jnp.zeros(shape, x.dtype))[0]
