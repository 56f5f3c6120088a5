"""What an exchanged activation changes in its own block: exactly, from both models' cached runs.

As with weights (`local`) the difference of two writes is all that is changed there: a head's and a neuron's in closed form, for many
candidates at once; other kinds run the definition's block (`crossed.block`), one candidate at a time. What follows is the host's own
blocks (`downstream`).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpatch.measuring import crossed, downstream, local
from jaxpatch.measuring.downstream import Models, Trace, context_of
from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import exchange as exchanges
from jaxpatch.patching.exchange import Exchange


class Runs(NamedTuple):
    """The same consecutive blocks of both models' own runs."""

    host: Trace
    donor: Trace


def turned_round(models: Models) -> Models:
    """The donor as the host."""
    return models._replace(host=models.donor, donor=models.host)


def where(exchange: Exchange, models: Models) -> Float[Array, " M"]:
    """1 at the nodes whose activations are exchanged. Last tokens are nodes of their own (`prefix_tree.of_prompts`, own_ends)."""
    number = models.tree.tokens.shape[0]
    return jnp.ones(number) if exchange.positions == "all" else jnp.zeros(number).at[models.tree.last].set(1)


def _head_stream(config: DecoderConfig, exchange: Exchange, models: Models, runs: Runs, layer, indices):
    attn, others = models.host["layers"]["attn"], models.donor["layers"]["attn"]
    own = local.head_vectors(config, models, runs.host, layer, indices)(attn)
    other = local.head_vectors(config, turned_round(models), runs.donor, layer, indices)(others)
    matrices = [side["o"]["kernel"][layer, indices] for side in (attn, attn if exchange.site == "vector" else others)]
    before, after = (local.einsum("cmh,chd->cmd", *each) for each in zip((own, other), matrices, strict=True))
    change, at = (after - before) * where(exchange, models).astype(own.dtype)[:, None], layer - runs.host.first
    attended = runs.host.attended_at(at)
    return runs.host.mid[at] + local.movement(config, "attn_post_norm", models, attended, layer, change)


def _neuron_stream(config: DecoderConfig, exchange: Exchange, models: Models, runs: Runs, layer, indices):
    mlp, others = models.host["layers"]["mlp"], models.donor["layers"]["mlp"]
    own = local.neuron_activations(config, models, runs.host, layer, indices)(mlp)
    other = local.neuron_activations(config, turned_round(models), runs.donor, layer, indices)(others)
    row, others_row = (
        local.neuron_rows(config, side, layer, indices) for side in (mlp, mlp if exchange.site == "vector" else others)
    )
    change = other[:, :, None] * others_row - own[:, :, None] * row
    change, at = change * where(exchange, models).astype(own.dtype)[:, None], layer - runs.host.first
    computed = runs.host.computed_at(at)
    return runs.host.entering[at + 1] + local.movement(config, "mlp_post_norm", models, computed, layer, change)


def _whole_block(config: DecoderConfig, kind: str, exchange: Exchange, models: Models, runs: Runs, layer, indices):
    context, places = context_of(config, models), where(exchange, models)
    shape = exchanges.of_decoder(models.host)[kind].shape[1:]

    def one(at):
        layer, index = at
        x, y = (run.entering[layer - run.first] for run in runs)
        ours, theirs = (decoder.widened(decoder.layer_of(side, layer)) for side in (models.host, models.donor))
        gates = {kind: jnp.zeros(shape, x.dtype).at[index].set(1) if shape else jnp.ones((), x.dtype)}
        own = context.at(layer)
        return crossed.block(config, exchange, ours, theirs, gates, x, y, own, places.astype(x.dtype))[0]

    return jax.lax.map(one, (layer, indices))


def effects(
    config: DecoderConfig,
    kind: str,
    exchange: Exchange,
    models: Models,
    runs: Runs,
    layer: Int[Array, " C"],
    indices: Int[Array, " C"],
    unreached: Float[Array, "R B"],
    groups: int = 1,
) -> Float[Array, "C R B"]:
    """``F(host with one of the donor's activations) - F(host)``, for each of some candidates. layer: traced, within `runs`. An index
    counts through all that a layer has of the kind. groups: of candidates that run apart from each other (`downstream.effects`)."""
    if kind == "head" and local.is_closed(config, kind):
        stream, start = _head_stream(config, exchange, models, runs, layer, indices), 2 * layer + 1
    elif kind == "neuron":
        stream, start = _neuron_stream(config, exchange, models, runs, layer, indices), 2 * layer + 2
    else:
        stream, start = _whole_block(config, kind, exchange, models, runs, layer, indices), 2 * layer + 2
    return downstream.effects(config, models, stream, start, runs.host, unreached, groups)
