"""The definition of activation patching: both models run side by side, and at chosen components the host goes on with what the
donor's made. Slow, plain, and the oracle of `local_crossed`.

A gate slides from the host's own activation (0) to the donor's (1), so effects of many components together, slopes and curves come
out of the same function, as with weights. What other components write is what they make of the changed stream.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpatch.measuring import effect, read_outs
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import ReadOut
from jaxpatch.models import decoder, experts, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend
from jaxpatch.patching import exchange as exchanges
from jaxpatch.patching.exchange import Exchange
from jaxpatch.shapes import Gates, Params

Gate = jax.Array | None
"""How far some activations are exchanged, [..., T, *shape of the kind]; None where none is."""


def block(
    config: DecoderConfig,
    exchange: Exchange,
    host: Params,
    donor: Params,
    gates: Gates,
    x: Float[Array, "*lead T D"],
    y: Float[Array, "*lead T D"],
    context: decoder.Context | decoder.TreeContext,
    where: Float[Array, "*lead T"],
) -> tuple[Float[Array, "*lead T D"], Float[Array, "*lead T D"]]:
    """One block of both runs.

    Args: host, donor: its parameters, as wide as the streams. gates: kind -> gates of this block. x, y: the streams that enter.
        where: 1 at positions whose activations are exchanged, 0 elsewhere.

    Returns: the streams that leave.
    """
    ours, theirs = decoder.block(config, host), decoder.block(config, donor)
    is_vector = exchange.site == "vector"

    def gate(*kinds: str) -> Gate:
        return _joint([jnp.asarray(gates[kind]) for kind in kinds if kind in gates], where)

    def whole(kind: str) -> tuple[str, ...]:
        """All of a half-step's vectors are exchanged with it."""
        return (kind,) if is_vector else ()

    own, other = ours.heads(x), theirs.heads(y)
    mixed = decoder.Heads(
        _mixed(gate("query"), own.q, other.q),
        _mixed(gate("key", "kv"), own.k, other.k),
        _mixed(gate("value", "kv"), own.v, other.v),
    )
    vectors, others = ours.attn.attend(mixed, context), theirs.attn.attend(other, context)
    through = functools.partial(_through, is_vector, layers.from_heads)
    attended = through(gate("head", *whole("attention")), host["attn"]["o"], donor["attn"]["o"], vectors, others)
    added, others_added = (
        ours.after_attention(attended),
        theirs.after_attention(layers.from_heads(others, donor["attn"]["o"])),
    )
    if not is_vector:
        added = _mixed(gate("attention"), added, others_added)
    mid, others_mid = x + added, y + others_added
    read, others_read = (x, y) if config.parallel else (mid, others_mid)
    own, other = ours.mlp_input(read), theirs.mlp_input(others_read)
    neurons = gate("neuron", "expert", *whole("mlp"))
    others_computed = theirs.mlp(other)
    if neurons is None:
        computed = ours.mlp(own)
    elif config.experts:
        computed = _of_experts(config, is_vector, neurons, host["mlp"], donor["mlp"], own, other)
    else:
        activations, others = (
            layers.neurons(side.neuron_inputs(stream), config.activation)
            for side, stream in ((ours, read), (theirs, others_read))
        )
        through = functools.partial(_through, is_vector, layers.written)
        computed = through(neurons, host["mlp"]["down"], donor["mlp"]["down"], activations, others)
    added, others_added = ours.after_mlp(computed), theirs.after_mlp(others_computed)
    if not is_vector:
        added = _mixed(gate("mlp"), added, others_added)
    end, others_end = mid + added, others_mid + others_added
    return _mixed(gate("layer"), end, others_end), others_end


def _joint(gates: Sequence[jax.Array], where: jax.Array) -> Gate:
    """Activations that several gates exchange go as far as any of them: ``1 - (1 - g1)(1 - g2)``."""
    if not gates:
        return None
    most = max(each.ndim for each in gates)
    wide = [each.reshape(*each.shape, *(1,) * (most - each.ndim)).astype(where.dtype) for each in gates]
    first, *rest = wide
    joint = functools.reduce(lambda a, b: 1 - (1 - a) * (1 - b), rest, first)
    return where.reshape(*where.shape, *(1,) * most) * joint


def _mixed(gate: Gate, own: jax.Array, other: jax.Array) -> jax.Array:
    """Every component's own number, or row of numbers."""
    return own if gate is None else blend.blend(own, other, gate[..., None])


def _through(
    is_vector: bool,
    write: Callable[[jax.Array, layers.Weights], jax.Array],
    gate: Gate,
    own_matrix: layers.Weights,
    other_matrix: layers.Weights,
    own: jax.Array,
    other: jax.Array,
) -> jax.Array:
    """What activations write: by the host's matrix, or each model's by its own. An output bias is nobody's, and stays."""
    if gate is None:
        return write(own, own_matrix)
    gate = gate.reshape(*gate.shape, *(1,) * (own.ndim - gate.ndim))
    if is_vector:
        return write(blend.blend(own, other, gate), own_matrix)
    return write((1 - gate) * own, own_matrix) + write(gate * other, {"kernel": other_matrix["kernel"]})


def _of_experts(
    config: DecoderConfig,
    is_vector: bool,
    gate: jax.Array,
    host: Params,
    donor: Params,
    own: Float[Array, "*lead T D"],
    other: Float[Array, "*lead T D"],
) -> Float[Array, "*lead T D"]:
    """The same where a neuron is one of an expert's: its activation counts as much as its own model's router says. gate: one for each
    expert, and for each of its neurons or for all of them at once. Expert by expert, for every state."""
    lead = own.shape[:-1]
    gate = gate.reshape(*gate.shape, *(1,) * (len(lead) + 2 - gate.ndim))
    gate = jnp.broadcast_to(gate, (*lead, config.experts, gate.shape[-1]))

    def activations(mlp: Params, x: jax.Array, expert: jax.Array) -> jax.Array:
        routes = decoder.routes(config, x.reshape(-1, x.shape[-1]), mlp["router"]["kernel"])
        share = experts.share_of(routes, expert).reshape(lead).astype(x.dtype)
        inputs = [layers.dense(x, {"kernel": mlp[name]["kernel"][expert]}) for name in decoder.inputs(config)]
        return share[..., None] * layers.neurons(inputs, config.activation)

    def add(total: jax.Array, expert: jax.Array) -> tuple[jax.Array, None]:
        ours, theirs = ({"kernel": mlp["down"]["kernel"][expert]} for mlp in (host, donor))
        before, after = activations(host, own, expert), activations(donor, other, expert)
        return total + _through(is_vector, layers.written, gate[..., expert, :], ours, theirs, before, after), None

    return jax.lax.scan(add, jnp.zeros_like(own), jnp.arange(config.experts, dtype=jnp.int32))[0]


def where(exchange: Exchange, inputs: Inputs, dtype: jnp.dtype) -> Float[Array, "B T"]:
    """1 at the positions of padded prompts whose activations are exchanged."""
    if exchange.positions == "all":
        return jnp.ones(inputs.tokens.shape, dtype)
    return (jnp.arange(inputs.tokens.shape[1]) == inputs.lengths[:, None] - 1).astype(dtype)


def reads(
    config: DecoderConfig,
    exchange: Exchange,
    host: Params,
    donor: Params,
    gates: Gates,
    inputs: Inputs,
    wanted: Sequence[ReadOut],
) -> Float[Array, "R B"]:
    """F of the host's run with activations of the donor's in it. Blocks that none of the read-outs needs are not run.

    Raises: KeyError, ValueError for gates that do not fit.
    """
    blend.refuse_misfits(gates, exchanges.of_decoder(host))
    models = tuple(map(effect.unpatched, (host, donor)))
    ours, theirs = (model.embedded(config, inputs.tokens) for model in models)
    context = decoder.causal_context(config, inputs.tokens.shape[1], ours.dtype)
    places = where(exchange, inputs, ours.dtype)

    def step(streams: tuple[jax.Array, jax.Array], number: jax.Array):
        ours, theirs = (model.block(number) for model in models)
        own = {kind: jnp.asarray(gate)[number] for kind, gate in gates.items()}
        x, y = block(config, exchange, ours, theirs, own, *streams, context.at(number), places)
        return (x, y), decoder.take(x, inputs.lengths - 1)[:, 0]

    depth = jnp.arange(read_outs.depth(config, wanted), dtype=jnp.int32)
    passing = jax.checkpoint(read_outs.until(read_outs.stop(config, wanted), step), prevent_cse=False)
    (x, _), states = jax.lax.scan(passing, (ours, theirs), depth)
    return effect.read_states(config, models[0], x, states, wanted)
