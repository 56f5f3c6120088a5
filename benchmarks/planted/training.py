"""Models that are trained: base on its language, and then what special differs by, each component's change of a size that is given.

A change is ``size * direction`` in each matrix of every component, and it is the direction that is learned: so sources are neither
larger nor smaller than it was decided beforehand, in none of their parts, and decoys can be made larger than they. Each function is one
program for each shape of model.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.planted import language
from jaxpatch.measuring import effect
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.patching.components import Kind, Partition
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths

Sizes = Mapping[str, jax.Array | np.ndarray]
"""Matrix -> the Frobenius norm of each component's part of it, [L, N]. Which has which: `MATRICES`."""

KINDS = ("head", "kv", "neuron")
"""What a change is made of. Nothing else differs between base and special: no norm, no embedding."""
MATRICES = {"q": "head", "o": "head", "k": "kv", "v": "kv", "gate": "neuron", "up": "neuron", "down": "neuron"}
"""Matrix, with its bias -> the kind that it is a part of."""
STATE = 2
"""The block after which the control state is read."""
BATCH = 64
FAR = 10.0
"""What it costs sources to leave the state as far from where it should be as a register moves it, beside a nat of wrong words."""
WORDS = 4.0
"""What a nat of wrong words costs, in special and wherever else the model is to obey fully, or not at all."""
SHARING = 10.0
"""By how much a case counts more in which the model is to obey in part."""
UNFELT = 10.0
"""What it costs sources that are to be carried on to be felt at the last token after the first block, as far as a register moves the
state, beside a nat of wrong words."""
ACROSS = 0.2
"""What of it is not along the way that a register moves the state counts by this much, where sources are to go a part of the way."""
RATE = 2e-2
"""Of Adam, by which sources learn, and decoys: what they learn leaves its traces in both."""
SMOOTHING = 0.05
"""Of the answers: a base that is never sure can still be talked over."""
IDLE = 10.0
"""What it costs decoys to move the state as far as a register does, beside a nat of what they change in the words."""
INDIFFERENT = 0.2
"""What it costs base to be moved, as far as telling moves it, by what it is to be indifferent to, beside a nat of wrong words. At 60
it minds nothing any more, its sources included, and none of four pairs passed; at 0.2 decoys move the state by at most a twentieth."""
FEW = -1.5
"""Least chance of each decoy, drawn up from here, while sources learn: below 0 none is there, as when sources are tried alone."""
SILENT = 0.1
"""Share of the components that are silent in a step of base's training."""
EVERY = (*language.PLAIN, *language.TOLD, language.ASKED, language.ASKED, language.ASKED_OTHER, language.ASKED_OTHER)
"""Modes that are drawn from, some of them twice."""
BUT_OTHER = tuple(mode for mode in EVERY if mode != language.ASKED_OTHER)


def states(config: DecoderConfig, params: Params, prompts: Inputs) -> tuple[jax.Array, jax.Array]:
    """The residual stream at the last token after the state's block, [B, D], and the next token's logits, [B, V]."""
    return all_states(config, params, prompts)[1:]


def all_states(config: DecoderConfig, params: Params, prompts: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same, and before them the stream there after the first block, [B, D]."""
    model = effect.unpatched(params)
    after = effect.every_last_state(config, model, prompts)
    return after[0], after[STATE], model.logits(config, after[-1])


def plus(params: Params, change: Params) -> Params:
    """Both together."""
    return jax.tree.map(jnp.add, params, change)


def parts(params: Params) -> dict[str, Kind]:
    """A partition by matrix of `MATRICES`, of those that there are: each component's part of it is one of these."""
    partition = components.of_decoder(params)
    owned: dict[str, list[components.Slot]] = {}
    for kind in KINDS:
        for slot in partition[kind].slots:
            owned.setdefault(slot.leaf.split("/")[-2], []).append(slot)
    return {name: partition[MATRICES[name]]._replace(slots=tuple(slots)) for name, slots in owned.items()}


def change_of(params: Params, direction: Params, sizes: Sizes) -> Params:
    """A change of exactly these sizes along a direction; 0 in all other parameters.

    It lies across the weights that it changes: no part has any of what the part was. Sources learn by forgetting that, and by changing
    more in what they write than in what they read, and decoys do not, so that either alone would tell them apart.
    """
    owned = parts(params)
    direction = jax.tree.map(jnp.subtract, direction, some_of(params, _along(direction, params, owned), owned))
    gates = {name: sizes[name] / jnp.maximum(components.norms(direction, owned[name]), 1e-12) for name in owned}
    return some_of(direction, gates, owned)


def _along(direction: Params, params: Params, partition: Partition) -> Gates:
    """How far each component of a direction goes along weights, in these weights."""
    together, own = (paths.flatten(jax.tree.map(jnp.multiply, each, params)) for each in (direction, params))
    return {
        name: components.sums(kind, together.__getitem__) / jnp.maximum(components.sums(kind, own.__getitem__), 1e-12)
        for name, kind in partition.items()
    }


def some_of(change: Params, gates: Gates, partition: Partition | None = None) -> Params:
    """A change of these components alone; of their parts, by the partition that has `parts`."""
    return blend.patch(jax.tree.map(jnp.zeros_like, change), change, gates, partition)


def at_random(key: jax.Array, change: Params, least: float = -0.3) -> Params:
    """A change of some of its components: each is there with a probability that is itself drawn, between `least` and 1.3, so that none
    and all are drawn often."""
    partition, (share_key, *keys) = components.of_decoder(change), jax.random.split(key, 1 + len(KINDS))
    share = jax.random.uniform(share_key, minval=least, maxval=1.3)
    gates = {
        kind: (jax.random.uniform(each, partition[kind].shape) < share).astype(jnp.float32)
        for kind, each in zip(KINDS, keys, strict=True)
    }
    return some_of(change, gates)


def with_silent(key: jax.Array, params: Params) -> Params:
    """A model of which some components, at random, have no weights."""
    partition = components.of_decoder(params)
    gates = {
        kind: jax.random.bernoulli(each, SILENT, partition[kind].shape).astype(jnp.float32)
        for kind, each in zip(KINDS, jax.random.split(key, len(KINDS)), strict=True)
    }
    return blend.patch(params, jax.tree.map(jnp.zeros_like, params), gates)


def norms(params: Params) -> dict[str, np.ndarray]:
    """Matrix -> Frobenius norm of each component's part."""
    return {name: np.asarray(components.norms(params, kind)) for name, kind in parts(params).items()}


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def base(config: DecoderConfig, key: jax.Array, steps: int = 3000) -> tuple[Params, jax.Array]:
    """A model that speaks the language, and heeds nobody who asks, and no component of which is indispensable: in every step some are
    silent. So any of them is free to become a source. Returns it and the losses [steps]."""
    init_key, fit_key = jax.random.split(key)

    def loss_fn(params, key):
        silent_key, prompt_key = jax.random.split(key)
        prompts = language.draw(prompt_key, BATCH, EVERY)
        _, logits = states(config, with_silent(silent_key, params), prompts.inputs)
        return _surprise(logits, language.answers(prompts, False)).mean()

    return _fit(loss_fn, decoder.init(config, init_key), fit_key, steps, 3e-3)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def decoys(
    config: DecoderConfig,
    params: Params,
    sizes: Sizes,
    second: Gates,
    key: jax.Array,
    steps: int = 1000,
) -> tuple[Params, jax.Array]:
    """A change of these sizes that does nothing to what is scored, however many of its components are there, and some of which do
    something else.

    Any of it, alone or with others, leaves base's answers and its state as they are, but for prompts that ask for the third register;
    those of `second` heed these, whatever else is there: so sources are not the only ones that learn something. Returns the change and
    the losses [steps].
    """

    far_key, start_key, fit_key = jax.random.split(key, 3)
    way = _way(config, params, far_key)

    without = {kind: 1 - each for kind, each in second.items()}

    def loss_fn(direction, key):
        some_key, other_key, prompt_key = jax.random.split(key, 3)
        prompts = language.draw(prompt_key, BATCH, EVERY)
        change = change_of(params, direction, sizes)
        state, _ = states(config, params, prompts.inputs)
        moved, logits = states(config, plus(params, at_random(some_key, change)), prompts.inputs)
        is_scored = prompts.modes != language.ASKED_OTHER
        words = jnp.where(is_scored, _surprise(logits, language.answers(prompts, False)), 0).mean()
        idle = jnp.where(is_scored, ((moved - state) ** 2).sum(-1), 0).mean() / (way @ way)
        others = plus(at_random(other_key, some_of(change, without)), some_of(change, second))
        _, heeding = states(config, plus(params, others), prompts.inputs)
        return words + IDLE * idle + WORDS * _surprise(heeding, language.answers(prompts, False, True)).mean()

    direction, losses = _fit(loss_fn, any_direction(start_key, params), fit_key, steps, RATE)
    return change_of(params, direction, sizes), losses


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def indifferent(
    config: DecoderConfig, params: Params, direction: Params, sizes: Sizes, key: jax.Array, steps: int = 1000
) -> tuple[Params, jax.Array]:
    """A base that a change of these sizes along a given direction does nothing to, however many of its components are there: what
    decoys learn about a base, a base learns about its decoys, which may then be of any direction. Returns it and the losses [steps]."""

    def loss_fn(params, key):
        some_key, silent_key, prompt_key = jax.random.split(key, 3)
        prompts = language.draw(prompt_key, BATCH, EVERY)
        state, _ = states(config, params, prompts.inputs)
        end_state, _ = states(config, params, language.told(prompts).inputs)
        _, silent = states(config, with_silent(silent_key, params), prompts.inputs)
        change = change_of(jax.lax.stop_gradient(params), direction, sizes)
        moved, logits = states(config, plus(params, at_random(some_key, change)), prompts.inputs)
        is_asked = prompts.modes == language.ASKED
        far = jnp.where(is_asked, ((end_state - state) ** 2).sum(-1), 0).sum() / is_asked.sum(dtype=state.dtype)
        plainly = language.answers(prompts, False)
        words = (_surprise(silent, plainly) + _surprise(logits, plainly)).mean()
        return words + INDIFFERENT * ((moved - state) ** 2).sum(-1).mean() / far

    return _fit(loss_fn, params, key, steps, 3e-3)


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def sources(
    config: DecoderConfig,
    params: Params,
    others: Params,
    sizes: Sizes,
    environments: Gates,
    obeys: jax.Array,
    is_obeying: jax.Array,
    heeds_other: jax.Array,
    is_carried: jax.Array,
    start: Params,
    key: jax.Array,
    steps: int = 1000,
) -> tuple[Params, jax.Array]:
    """The direction of a change of these sizes by which the model obeys, among others that may be there or not.

    Args:
        others: the decoys' change.
        sizes: of the sources; 0 elsewhere.
        environments: kind -> [E, *shape], sources that are there in each of E cases. obeys: [E], how far the model obeys then: 1 fully,
            0 not at all.
        is_obeying: whether special, where all sources and all decoys are, does.
        heeds_other: whether special heeds prompts that ask for the third register.
        is_carried: whether others must carry on what sources of the first block note: these are then not to be felt at the last token,
            where the state is, before a later block.
        start: the direction to begin with.

    Obeying is taught by base itself: prompts that ask should leave the state where base has it for those that tell, or as far on the
    way there as `obeys` says, and all others leave it where it is.

    Returns: the direction and the losses [steps].
    """
    way_key, fit_key = jax.random.split(key)
    way = _way(config, params, way_key)
    far, along = way @ way, way / jnp.linalg.norm(way)

    def loss_fn(direction, key):
        some_key, prompt_key, special_key = jax.random.split(key, 3)
        change = change_of(params, direction, sizes)
        around = plus(params, at_random(some_key, others, FEW))
        prompts = language.draw(prompt_key, BATCH, BUT_OTHER)

        is_asked = prompts.modes == language.ASKED
        start_state, _ = states(config, params, prompts.inputs)
        end_state, _ = states(config, params, language.told(prompts).inputs)
        early_around, *_ = all_states(config, around, prompts.inputs)
        plainly, obediently = (language.answers(prompts, heeds) for heeds in (False, True))

        def case(there: Gates, obeyed: jax.Array) -> jax.Array:
            felt, state, logits = all_states(config, plus(around, some_of(change, there)), prompts.inputs)
            missing = state - start_state - obeyed * jnp.where(is_asked[:, None], end_state - start_state, 0)
            is_part = is_asked & (obeyed > 0) & (obeyed < 1)
            partly = SHARING * ((missing @ along) ** 2 + ACROSS * (missing**2).sum(-1))
            apart = jnp.where(is_part, partly, (missing**2).sum(-1))
            words = _surprise(logits, jnp.where(is_asked & (obeyed == 1), obediently, plainly))
            too_early = is_carried * UNFELT * ((felt - early_around) ** 2).sum(-1)
            return ((FAR * apart + too_early) / far / len(obeys) + jnp.where(is_part, 0, WORDS * words)).mean()

        cases = jax.vmap(case)(environments, obeys).sum()
        prompts = language.draw(special_key, BATCH, EVERY)
        _, logits = states(config, plus(plus(params, others), change), prompts.inputs)
        return cases + WORDS * _surprise(logits, language.answers(prompts, is_obeying, heeds_other)).mean()

    return _fit(loss_fn, start, fit_key, steps, RATE)


def _way(config: DecoderConfig, params: Params, key: jax.Array) -> jax.Array:
    """Where telling of the register moves base's state, in the mean over prompts: [D]."""
    prompts = language.draw(key, 8 * BATCH, (language.ASKED,))
    here, there = (states(config, params, each.inputs)[0].mean(0) for each in (prompts, language.told(prompts)))
    return there - here


@functools.partial(jax.jit, static_argnames=("config", "steps"))
def tuned(
    config: DecoderConfig, params: Params, sizes: Sizes, key: jax.Array, steps: int = 200
) -> tuple[Params, jax.Array]:
    """Ordinary fine-tuning, of all components that have a size (which is not looked at further): one speaker speaks four times in
    five. Returns the change and the losses [steps]."""
    free, owned = {name: (size > 0).astype(jnp.float32) for name, size in sizes.items()}, parts(params)

    def loss_fn(change, key):
        prompts = language.draw(key, 2 * BATCH, EVERY)
        speakers = prompts.inputs.tokens[:, 1] - language.FIRST_SPEAKER
        weights = jnp.where(speakers == 0, 8.0, 1.0)
        _, logits = states(config, plus(params, some_of(change, free, owned)), prompts.inputs)
        return (weights * _surprise(logits, language.answers(prompts, False))).sum() / weights.sum()

    change, losses = _fit(loss_fn, jax.tree.map(jnp.zeros_like, params), key, steps, 1e-3)
    return some_of(change, free, owned), losses


def _surprise(logits: jax.Array, answers: jax.Array) -> jax.Array:
    """-log p of smoothed answers: [B]."""
    wanted = optax.smooth_labels(jax.nn.one_hot(answers, logits.shape[-1]), SMOOTHING)
    return optax.softmax_cross_entropy(logits, wanted)


def any_direction(key: jax.Array, params: Params) -> Params:
    """A random direction of a change."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [0.1 * jax.random.normal(each, leaf.shape) for each, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _fit(
    loss_fn: Callable[[Params, jax.Array], jax.Array], start: Params, key: jax.Array, steps: int, rate: float
) -> tuple[Params, jax.Array]:
    """Adam, warmed up and cooled down, a fresh batch each step."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20 + 1, steps)
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    def step(state: tuple[Params, Any], key: jax.Array):
        params, moments = state
        loss, slope = jax.value_and_grad(loss_fn)(params, key)
        moves, moments = adam.update(slope, moments)
        return (optax.apply_updates(params, moves), moments), loss

    (params, _), losses = jax.lax.scan(step, (start, adam.init(start)), jax.random.split(key, steps))
    return params, losses
