"""Who takes part. An open set: each is a function of a planted problem that gives a number to every component, and says what it cost.

None of them looks at the truth, at how many sources there are, or at which components changed. Costs are forward-equivalents: runs of
the whole model on all scored prompts, a backward pass being two; a run that starts at a block, or ends at the state's, is that share of
one.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxpatch as jp
from benchmarks.planted.training import KINDS, STATE
from jaxpatch.measuring import downstream, effect, inputs, local, read_outs
from jaxpatch.models import prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.sets.game import Component
from jaxpatch.trees import paths


class Problem(NamedTuple):
    """What a contestant sees. seed: of whatever it draws."""

    pair: Pair
    prompts: inputs.Inputs
    anchor: read_outs.Anchor
    seed: int


class Answer(NamedTuple):
    """values: kind -> a number for each component. cost: forward-equivalents. low, high: 95 % intervals, where it has any."""

    values: Mapping[str, np.ndarray]
    cost: float
    low: Mapping[str, np.ndarray] | None = None
    high: Mapping[str, np.ndarray] | None = None


Contestant = Callable[[Problem], Answer]
EXACT = ("exact", "activation", "screened")
"""Methods that truly replace components, all of them or those that a screen leaves."""
STEPS = 16
"""Of integrated gradients."""
TOP = 10
"""How many a screen promises to get right."""
SET_SIZES = (2, 4, 8)
"""Of learned sets."""
TINY = 1e-12
"""A change that is none has no direction."""
PLAYERS, ROUNDS = 24, 4
"""Components that are looked at together, and rounds of sampled sets of them."""


def depth(problem: Problem) -> float:
    """The state's depth as a share of the model."""
    return (problem.anchor.layer + 1) / problem.pair.config.layers


def _exact_cost(problem: Problem, replaced: Mapping[str, np.ndarray] | None = None) -> float:
    """Of truly replacing components, one after the other: each runs from its own block on."""
    partition = components.of_decoder(problem.pair.base)
    last, total = problem.anchor.layer, 2 * depth(problem)
    for kind in KINDS:
        which = np.ones(partition[kind].shape, bool) if replaced is None else replaced[kind]
        for block, number in enumerate(which.sum(axis=1)):
            total += number * max(0, last + 1 - block) / problem.pair.config.layers
    return float(total)


def _scored(method: str, cost: float, **options) -> Contestant:
    """One of the library's methods. cost: of all but truly replacing components, in runs up to the state."""

    def contestant(problem: Problem) -> Answer:
        found = jp.score(
            problem.pair, problem.prompts, problem.anchor, kinds=KINDS, method=method, seed=problem.seed, **options
        )
        replaced = {kind: each.replaced for kind, each in found.screening.items()} or None
        spent = cost * depth(problem)
        if method in EXACT:
            spent += _exact_cost(problem, replaced)
        return Answer(found.values, spent, found.low, found.high)

    return contestant


def both_ends(problem: Problem) -> Answer:
    """Mean of what a component recovers in base, and what is lost without it in special: of all orders in which components could be put
    in, the first place and the last."""
    return Answer(_ends(problem)[0], 2 * _exact_cost(problem))


def _ends(problem: Problem) -> tuple[dict[str, np.ndarray], jp.Scores]:
    """That mean, and the scores in special."""
    first, last = (
        jp.score(problem.pair, problem.prompts, problem.anchor, kinds=KINDS, mode=mode, seed=problem.seed)
        for mode in ("restoration", "knockout")
    )
    return {kind: (first.values[kind] + last.values[kind]) / 2 for kind in KINDS}, last


def interacting(problem: Problem) -> Answer:
    """What each of the best does alone, and half of what it does with each of the others beyond that: Shapley values, where components
    interact two by two."""

    def of(found: jp.Scores) -> tuple[Sequence[Component], np.ndarray]:
        made = jp.interactions(problem.pair, problem.prompts, problem.anchor, found, top=PLAYERS, seed=problem.seed)
        return made.components, made.alone + made.values.sum(axis=1) / 2

    return _of_the_best(problem, of, sweeps=PLAYERS + 1)


def shapley(problem: Problem) -> Answer:
    """Sampled Shapley values of the best."""

    def of(found: jp.Scores) -> tuple[Sequence[Component], np.ndarray]:
        made = jp.shapley(
            problem.pair, problem.prompts, problem.anchor, found, top=PLAYERS, rounds=ROUNDS, seed=problem.seed
        )
        return made.components, made.values

    return _of_the_best(problem, of, sweeps=(PLAYERS - 1) * ROUNDS + 2)


def _of_the_best(
    problem: Problem, of: Callable[[jp.Scores], tuple[Sequence[Component], np.ndarray]], sweeps: int
) -> Answer:
    """What some measure says of the best at both ends: alone in base one does not see what needs others, without it in special not
    what others make up for. All others stand below these, in that order. sweeps: of these components, that it takes."""
    ends, last = _ends(problem)
    players, said = of(dataclasses.replace(last, values=ends))
    below = min(said) - np.nanmax([np.nanmax(each) for each in ends.values()]) - 1
    values = {kind: each + below for kind, each in ends.items()}
    for player, value in zip(players, said, strict=True):
        values[player.kind][player.place] = value
    return Answer(values, 2 * _exact_cost(problem) + sweeps * len(players) * depth(problem))


def within_reach(problem: Problem, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same, and no number for what comes after the state: who only looks at weights or words may know, too, where the state is."""
    last = problem.anchor.layer
    return {
        kind: np.where(np.arange(len(each))[:, None] > last, np.nan, np.asarray(each)) for kind, each in values.items()
    }


class Sizes(NamedTuple):
    """Kind -> of each component, Frobenius norms: of its change, of what it is in base, of what it is in special."""

    change: Mapping[str, np.ndarray]
    base: Mapping[str, np.ndarray]
    special: Mapping[str, np.ndarray]


def sizes(pair: Pair) -> Sizes:
    """Of all components, in float64."""
    partition = components.of_decoder(pair.base)
    measured = (
        lambda own: components.delta_norms(pair.base, pair.special, own),
        lambda own: components.norms(pair.base, own),
        lambda own: components.norms(pair.special, own),
    )
    return Sizes(*({kind: np.asarray(of(partition[kind]), np.float64) for kind in KINDS} for of in measured))


def change(problem: Problem) -> Answer:
    """|W_special - W_base|, the Frobenius norm of each component's."""
    return Answer(within_reach(problem, sizes(problem.pair).change), 0.0)


def relative_change(problem: Problem) -> Answer:
    """The same, as a share of what the component was in base."""
    found = sizes(problem.pair)
    return Answer(within_reach(problem, {kind: found.change[kind] / found.base[kind] for kind in KINDS}), 0.0)


def forgetting(problem: Problem) -> Answer:
    """How far each component's change points away from what it was: -cos(W_special - W_base, W_base), from the three norms, to three
    digits: what is below is rounding."""
    found = sizes(problem.pair)
    values = {
        kind: (found.change[kind] ** 2 + found.base[kind] ** 2 - found.special[kind] ** 2)
        / (2 * found.base[kind] * np.maximum(found.change[kind], TINY))
        for kind in KINDS
    }
    return Answer(within_reach(problem, {kind: np.round(each, 3) for kind, each in values.items()}), 0.0)


def change_along(problem: Problem) -> Answer:
    """How much of what each component writes has changed along the anchor u, whatever it reads: norms of dW_O u and dw_down u; and of
    what a group's dW_V is written as by special's heads."""
    direction = np.asarray(problem.anchor.direction, np.float64)
    base, special = (
        {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}
        for params in (problem.pair.base, problem.pair.special)
    )
    changes = {path: special[path] - base[path] for path in base}
    written = special["layers/attn/o/kernel"] @ direction  # [L, N, H]
    values = changes["layers/attn/v/kernel"]  # [L, D, G, H]
    grouped = written.reshape(len(written), values.shape[2], -1, written.shape[-1])
    found = {
        "head": np.linalg.norm(changes["layers/attn/o/kernel"] @ direction, axis=-1),
        "kv": np.linalg.norm(np.einsum("ldgh,lgnh->lgnd", values, grouped), axis=(-2, -1)),
        "neuron": np.abs(changes["layers/mlp/down/kernel"] @ direction),
    }
    return Answer(within_reach(problem, found), 0.0)


def concentration(problem: Problem) -> Answer:
    """How few directions each component's change lies in, as what was learned does, whatever it is: (sum of s^4) / (sum of s^2)^2 of
    singular values s, the larger of both matrices'. A neuron's parts are vectors, so that it has no number."""
    partition = components.of_decoder(problem.pair.base)
    base, special = (
        {path: np.asarray(leaf, np.float64) for path, leaf in paths.leaves(params).items()}
        for params in (problem.pair.base, problem.pair.special)
    )

    def share(slot: components.Slot) -> np.ndarray:
        change = np.moveaxis(special[slot.leaf] - base[slot.leaf], slot.axes, (0, 1))
        squares = np.linalg.svd(change, compute_uv=False) ** 2
        return (squares**2).sum(-1) / np.maximum(squares.sum(-1) ** 2, TINY)

    found = {
        kind: np.max([share(slot) for slot in partition[kind].slots if slot.leaf.endswith("kernel")], axis=0)
        for kind in ("head", "kv")
    }
    return Answer(within_reach(problem, found | {"neuron": np.full(partition["neuron"].shape, np.nan)}), 0.0)


def change_of_output(problem: Problem) -> Answer:
    """How far each component's change moves what it writes, on these prompts: weights by the activations that they meet."""
    return Answer(within_reach(problem, {kind: np.asarray(_moved(problem, kind)) for kind in KINDS}), 2.0)


def _moved(problem: Problem, kind: str) -> jax.Array:
    pair, prompts = problem.pair, problem.prompts
    tree = prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths))
    shape = components.of_decoder(pair.base)[kind].shape
    models = downstream.Models(pair.base, pair.special, prompts, tree, ())
    return _movement(pair.config, kind, shape, models)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _movement(config, kind: str, shape: tuple[int, int], models: downstream.Models) -> jax.Array:
    entering = downstream.embedded(config, models.host, models.tree)
    states = downstream.trace(config, models, entering, 0, config.layers)
    layer, index = (each.ravel() for each in jnp.indices(shape))
    form = local.local_of(config, kind)
    before = states.mid[layer] if form.is_mid else states.entering[layer + 1]
    moved = form.stream(config, models, states, layer, index) - before
    return jnp.linalg.norm(moved, axis=(1, 2)).reshape(shape)


def gradient(problem: Problem) -> Answer:
    """Norm of the gradient of base's read-out in each component's weights: what special is, is not looked at."""
    pair = problem.pair
    slope = _slope(pair.config, pair.base, problem.prompts, problem.anchor)
    partition = components.of_decoder(pair.base)
    return Answer({kind: np.asarray(components.norms(slope, partition[kind])) for kind in KINDS}, 3 * depth(problem))


@functools.partial(jax.jit, static_argnums=0)
def _slope(config, params, prompts, anchor):
    return jax.grad(lambda params: effect.reads(config, effect.unpatched(params), prompts, [anchor]).mean())(params)


def saliency(problem: Problem) -> Answer:
    """SNIP with the difference in the weights' place: |change times gradient of -KL(special || base)|, of the next token."""
    found = jp.score(problem.pair, problem.prompts, jp.NextToken("kl"), kinds=KINDS, method="first_order")
    return Answer(within_reach(problem, {kind: np.abs(found.effects[kind].mean(axis=0)) for kind in KINDS}), 4.0)


def gates(problem: Problem) -> Answer:
    """Sparse gates learned by gradient, for sets of each of `SET_SIZES`: the mean of their logits, which rank gates of 0 or 1, too."""
    steps = 200
    found = jp.score(problem.pair, problem.prompts, problem.anchor, kinds=KINDS, method="first_order")
    learned = [
        jp.learned_gates(
            problem.pair, problem.prompts, problem.anchor, found, size=size, steps=steps, seed=problem.seed
        )
        for size in SET_SIZES
    ]
    values = {kind: np.mean([each.logits[kind] for each in learned], axis=0) for kind in KINDS}
    return Answer(values, (4 + 3 * steps * len(SET_SIZES)) * depth(problem))


def chance(problem: Problem) -> Answer:
    """Random numbers."""
    rng, partition = np.random.default_rng(problem.seed), components.of_decoder(problem.pair.base)
    return Answer(within_reach(problem, {kind: rng.random(partition[kind].shape) for kind in KINDS}), 0.0)


CONTESTANTS: dict[str, Contestant] = {
    "weight patching": _scored("exact", 0.0),
    "knockout": _scored("exact", 0.0, mode="knockout"),
    "both ends": both_ends,
    "screened": _scored("screened", 5.0, top=TOP, sample=20),
    "local-linear": _scored("local_linear", 5.0),
    "first order": _scored("first_order", 4.0),
    "integrated": _scored("integrated", 2.0 + 3 * STEPS, steps=STEPS),
    "activation patching": _scored("activation", 0.0),
    "activation knockout": _scored("activation", 0.0, mode="knockout"),
    "attribution patching": _scored("attribution", 5.0),
    "attribution, QK fixed": _scored("attribution", 5.0, repairs=("qk_fix",)),
    "attribution, repaired": _scored("attribution", 5.0 + 2 * (STATE + 1), repairs=("qk_fix", "grad_drop")),
    "interactions": interacting,
    "Shapley values": shapley,
    "learned gates": gates,
    "change": change,
    "relative change": relative_change,
    "forgetting": forgetting,
    "change along the anchor": change_along,
    "concentration of change": concentration,
    "change of output": change_of_output,
    "difference saliency": saliency,
    "gradient": gradient,
    "random": chance,
}
