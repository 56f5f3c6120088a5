"""The waist: all that scoring may ask of two models. Above this line nothing knows what a model is."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxpatch.measuring import crossed, devices, effect, inputs, local, memory, read_outs, sweep
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.read_outs import Contribution, ReadOut
from jaxpatch.measuring.slopes import Cheap
from jaxpatch.models import layout, prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.patching import exchange as exchanges
from jaxpatch.patching.exchange import Exchange
from jaxpatch.shapes import Gates, Params

MODES = ("restoration", "knockout")

Marginals = Callable[[Gates, Mapping[str, np.ndarray], sweep.Progress], Mapping[str, np.ndarray]]
"""(gates of a set, 0 or 1; kind -> indices [n, dims]; progress) -> kind -> ``F(set with c) - F(set without c)`` of each, [n, X]."""


class Instrument(NamedTuple):
    """What can be read off a pair. X are the readings: every prompt under every read-out, read-outs first.

    Attributes:
        partition: the kinds of component.
        base, special: F of the two models, float [X].
        effect: (gates, rows int [x]) -> F of the patched model for those readings, [x]; differentiable. The definition. A
            `Partial`, so that jit takes the models as arguments and not as constants of its program.
        at_once: readings for which the definition may run together, where memory bounds it.
        exact: (kind, indices [n, dims], progress) -> effects of single components, [n, X].
        cheap: (kinds, progress) -> kind -> both linearisations, [X, *shape] each.
        slopes: (gates, progress) -> kind -> gradient of each reading in the gates, by the definition, [X, *shape].
        seen: for each read-out, kind -> bool array, True for components that it can see (no higher than where it reads).
        mode: what an effect is of, one of `MODES`.
        exchange, repairs: of activations, where they are patched and not weights.
    """

    partition: components.Partition
    base: np.ndarray
    special: np.ndarray
    effect: jax.tree_util.Partial
    exact: Callable[[str, np.ndarray, sweep.Progress], np.ndarray]
    cheap: Callable[[tuple[str, ...], sweep.Progress], Mapping[str, Cheap]]
    slopes: Callable[[Gates, sweep.Progress], Mapping[str, np.ndarray]]
    seen: tuple[Mapping[str, np.ndarray], ...]
    mode: str = "restoration"
    at_once: int | None = None
    exchange: Exchange | None = None
    repairs: tuple[str, ...] = ()

    @property
    def num_read_outs(self) -> int:
        """Of how many blocks of prompts X is made."""
        return len(self.seen)

    @property
    def reach(self) -> dict[str, np.ndarray]:
        """What any of the read-outs can see: kind -> bool array."""
        return {kind: np.any([each[kind] for each in self.seen], axis=0) for kind in self.seen[0]}

    @property
    def gap(self) -> np.ndarray:
        """G = F(special) - F(base): [X]."""
        return self.special - self.base

    def read(self, gates: Gates) -> np.ndarray:
        """F of the patched model for every reading, by the definition: [X]."""
        return in_groups(lambda rows: self.effect(gates, rows), len(self.base), self.at_once)


def of_pair(
    pair: Pair,
    prompts: inputs.Inputs,
    wanted: ReadOut | Sequence[ReadOut],
    *,
    mode: str = "restoration",
    exchange: Exchange | None = None,
    repairs: tuple[str, ...] = (),
    ends: tuple[np.ndarray, np.ndarray] | None = None,
    budget: int | None = None,
    mesh: Mesh | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
) -> Instrument:
    """The instrument of two decoders, by the fast engine.

    Args:
        wanted: an anchor, a `NextToken`, or several of them, read in the same pass.
        mode: "restoration" puts special's components into base; an effect is ``F(patched) - F(base)``. "knockout" puts base's into
            special; an effect is what is lost, ``F(special) - F(patched)``, so that gates keep their meaning.
        exchange: activation patching in place of weight patching: gates, and all effects, are of what components make in the other
            model's own run. repairs: of `attribution.REPAIRS`, for its cheap effects.
        ends: F(base) and F(special), [X] each, where another instrument of the same read-outs has them; both models are run where None.
        budget: bytes that a sweep may hold beside the models; half of what is free where None.
        mesh: devices that share exact sweeps, with axes "candidates", "model" or both.
        journal: of its sweeps, so that they can be gone on with.

    Raises: ValueError for bad inputs, a bad read-out or mode; MemoryError where a run of one prompt does not fit in the budget.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}; wanted one of {', '.join(MODES)}.")
    config, prompts = pair.config, inputs.checked(prompts, pair.config)
    asked = tuple(read_outs.checked_for(prompts, each, config) for each in read_outs.several(wanted))
    budget = memory.default_budget(pair.base) if budget is None else budget
    at_once = memory.prompts_at_once(config, prompts.tokens.shape[1], memory.itemsize_of(pair.base), budget)
    host, donor = (pair.base, pair.special) if mode == "restoration" else (pair.special, pair.base)
    asked = _referring(pair, prompts, asked, at_once)
    asked = _holding(config, host, prompts, asked, at_once)
    sign = 1 if mode == "restoration" else -1
    own_ends = exchange is not None and exchange.positions == "last"
    tree = prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths), own_ends=own_ends)
    models = Models(host, donor, prompts, tree, asked)
    mesh = None if mesh is None else layout.checked(mesh)
    placed = models if mesh is None else devices.spread(models, mesh)
    partition = components.of_decoder(pair.base) if exchange is None else exchanges.of_decoder(pair.base)

    def reads(side: Params) -> np.ndarray:
        whole = tuple(read_outs.unheld(each) for each in asked)

        def of_some(rows: np.ndarray) -> jax.Array:
            return _reads(config, side, prompts.rows(rows), tuple(each.rows(rows) for each in whole))

        return in_groups(of_some, prompts.tokens.shape[0], at_once).reshape(-1)

    base, special = map(reads, (pair.base, pair.special)) if ends is None else ends
    effect_fn = jax.tree_util.Partial(
        _effect_of(config, mode, exchange), models, jnp.asarray(base), jnp.asarray(special)
    )

    def exact(kind: str, indices: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        if exchange is not None or kind in local.KINDS:
            found = sweep.exact(
                config,
                kind,
                placed,
                indices,
                exchange=exchange,
                budget=budget,
                mesh=mesh,
                journal=journal,
                progress=progress,
            )
            return sign * found.reshape(len(indices), -1)
        found = []
        for index in indices:
            gate = components.gates(partition, {kind: [index]})
            found.append(in_groups(functools.partial(effect_fn, gate), len(base), at_once) - base)
            progress(len(found), len(indices))
        return np.stack(found)

    def cheap(kinds: tuple[str, ...], progress: sweep.Progress) -> dict[str, Cheap]:
        if exchange is not None:
            each = sweep.attributed(config, kinds, models, exchange, repairs, budget=budget, progress=progress)
            shaped = {kind: sign * _whole(found, partition[kind].shape) for kind, found in each.items()}
            return {kind: Cheap(found, found) for kind, found in shaped.items()}
        found = {}
        inside = tuple(kind for kind in kinds if kind in local.KINDS)
        if inside:
            passes = sweep.cheap(config, inside, models, budget=budget, progress=progress)
            found = {kind: Cheap(*(sign * each for each in both)) for kind, both in passes.items()}
        outside = {kind: jnp.zeros(partition[kind].shape) for kind in kinds if kind not in found}
        rest = slopes(outside, progress) if outside else {}
        shaped = {kind: Cheap(*(_whole(each, partition[kind].shape) for each in both)) for kind, both in found.items()}
        return shaped | {kind: Cheap(slope, slope) for kind, slope in rest.items()}

    def slopes(at: Gates, progress: sweep.Progress) -> dict[str, np.ndarray]:
        depth, tokens = read_outs.depth(config, asked), prompts.tokens.shape[1]
        memory.cheap_prompts(config, tokens, memory.itemsize_of(pair.base), depth, budget)
        return gate_slopes(effect_fn, at, base.shape[0], progress)

    return Instrument(
        partition=partition,
        base=base,
        special=special,
        effect=effect_fn,
        exact=exact,
        cheap=cheap,
        slopes=slopes,
        seen=tuple({name: _seen(name, kind, config, each) for name, kind in partition.items()} for each in asked),
        mode=mode,
        at_once=at_once,
        exchange=exchange,
        repairs=repairs,
    )


def of_effect(
    effect_fn: Callable[[Gates, jax.Array], jax.Array], partition: components.Partition, num_inputs: int
) -> Instrument:
    """The instrument of anything that has an effect: a toy, or a Flax parameter tree of your own.

    Args: effect_fn: (gates, rows int [b]) -> [b], differentiable, at 0 for all gates the base and at 1 the special model.

    Exact effects come from one-hot gates, one by one; there is no local form, so both linearisations are the gates' slopes.

    Example:
        >>> partition = {"part": components.Kind((3,), ("part",), ())}
        >>> toy = of_effect(lambda g, rows: jnp.full(rows.shape, g["part"] @ jnp.array([1.0, 0.0, 3.0])), partition, 2)
        >>> toy.gap.tolist(), toy.exact("part", np.array([[2]]), sweep.silent).tolist()
        ([4.0, 4.0], [[3.0, 3.0]])
    """
    rows = jnp.arange(num_inputs)
    zeros = {name: jnp.zeros(kind.shape) for name, kind in partition.items()}
    base = effect_fn(zeros, rows)

    def exact(kind: str, indices: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        def one(index):
            return effect_fn({**zeros, kind: zeros[kind].at[tuple(index)].set(1)}, rows) - base

        out = np.asarray(jax.lax.map(one, jnp.asarray(indices)))
        progress(len(indices), len(indices))
        return out

    partial = jax.tree_util.Partial(effect_fn)

    def slopes(at: Gates, progress: sweep.Progress) -> dict[str, np.ndarray]:
        return gate_slopes(partial, at, num_inputs, progress)

    def cheap(kinds: tuple[str, ...], progress: sweep.Progress) -> dict[str, Cheap]:
        at_zero = slopes({kind: zeros[kind] for kind in kinds}, progress)
        return {kind: Cheap(slope, slope) for kind, slope in at_zero.items()}

    return Instrument(
        partition=partition,
        base=np.asarray(base),
        special=np.asarray(effect_fn(jax.tree.map(jnp.ones_like, zeros), rows)),
        effect=partial,
        exact=exact,
        cheap=cheap,
        slopes=slopes,
        seen=({name: np.ones(kind.shape, bool) for name, kind in partition.items()},),
    )


def in_groups(read: Callable[[np.ndarray], jax.Array], total: int, most: int | None) -> np.ndarray:
    """What `read` says of all rows (its last axis), some at a time. The last group is filled up, so that one program serves all."""
    size = memory.even(total, total if most is None else most)
    starts = range(0, total, size)
    found = [np.asarray(read(np.minimum(np.arange(start, start + size), total - 1))) for start in starts]
    return np.concatenate(found, axis=-1)[..., :total]


def gate_slopes(
    effect_fn: jax.tree_util.Partial, at: Gates, num_readings: int, progress: sweep.Progress = sweep.silent
) -> dict[str, np.ndarray]:
    """Gradient of each reading in the gates, by the definition: kind -> [X, *shape]. One reading at a time, which bounds memory."""
    found = []
    for row in range(num_readings):
        found.append(_slope(effect_fn, at, jnp.int32(row)))
        progress(row + 1, num_readings)
    return {kind: np.stack([np.asarray(slope[kind]) for slope in found]) for kind in at}


@jax.jit
def _slope(effect_fn: jax.tree_util.Partial, at: Gates, row: jax.Array) -> Gates:
    return jax.grad(lambda gates: effect_fn(gates, row[None])[0])(at)


def _referring(pair: Pair, prompts: inputs.Inputs, asked: tuple[ReadOut, ...], at_once: int) -> tuple[ReadOut, ...]:
    """Read-outs of the next token with special's own as what they refer to."""
    if not any(isinstance(each, read_outs.NextToken) for each in asked):
        return asked
    logits = in_groups(
        lambda rows: _logits(pair.config, pair.special, prompts.rows(rows)).T, prompts.tokens.shape[0], at_once
    ).T
    return tuple(
        each.referring_to(jnp.asarray(logits)) if isinstance(each, read_outs.NextToken) else each for each in asked
    )


def _holding(
    config, host: Params, prompts: inputs.Inputs, asked: tuple[ReadOut, ...], at_once: int
) -> tuple[ReadOut, ...]:
    """Contributions through one input alone, with the host's own stream for the others; of one block it is found once."""

    @functools.cache
    def entering(layer: int, depth: int) -> jax.Array:
        def of_some(rows: np.ndarray) -> jax.Array:
            return jnp.moveaxis(_entering(config, host, prompts.rows(rows), jnp.int32(layer), depth), 0, -1)

        return jnp.asarray(np.moveaxis(in_groups(of_some, prompts.tokens.shape[0], at_once), -1, 0))

    return tuple(
        dataclasses.replace(each, held=entering(int(each.layer), read_outs.depth(config, [each])))
        if isinstance(each, Contribution) and each.through != "all"
        else each
        for each in asked
    )


def _seen(name: str, kind: components.Kind, config, read_out: ReadOut) -> np.ndarray:
    seen = np.zeros(kind.shape, bool)
    if kind.axes[0] == "layer":
        seen[: int(read_outs.stop(config, [read_out]))] = True
    elif name in ("embed", "positions") or isinstance(read_out, read_outs.NextToken):
        seen[:] = True
    return seen


def _whole(effects: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Effects [X, A, n] of the lower blocks as [X, *shape] of all of them."""
    out = np.zeros((effects.shape[0], *shape), effects.dtype)
    out[:, : effects.shape[1]] = effects.reshape(*effects.shape[:2], *shape[1:])
    return out


@functools.partial(jax.jit, static_argnums=0)
def _reads(config, params, prompts: inputs.Inputs, asked: tuple[ReadOut, ...]) -> jax.Array:
    return effect.reads(config, effect.unpatched(params), prompts, asked)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _entering(config, params, prompts: inputs.Inputs, layer: jax.Array, depth: int) -> jax.Array:
    model = effect.unpatched(params)
    return effect.run(config, model, prompts, model.embedded(config, prompts.tokens), 0, depth, layer)[0]


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, prompts: inputs.Inputs) -> jax.Array:
    return effect.last_logits(config, effect.unpatched(params), prompts)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _effect(
    config, mode: str, exchange: Exchange | None, models: Models, base, special, gates: Gates, rows: jax.Array
) -> jax.Array:
    batch = models.tree.last.shape[0]
    prompts, own = rows % batch, jnp.arange(rows.shape[0])
    asked = tuple(each.rows(prompts) for each in models.read_outs)
    some = models.inputs.rows(prompts)
    if exchange is None:
        found = effect.reads(config, effect.Patched(models.host, models.donor, gates), some, asked)
    else:
        found = crossed.reads(config, exchange, models.host, models.donor, gates, some, asked)
    read = found[rows // batch, own]
    return read if mode == "restoration" else base[rows] + special[rows] - read


@functools.cache
def _effect_of(config, mode: str, exchange: Exchange | None) -> Callable[..., jax.Array]:
    """One function a config, mode and exchange, for jit to recognise."""
    return functools.partial(_effect, config, mode, exchange)
