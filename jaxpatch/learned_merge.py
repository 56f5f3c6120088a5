"""The conductor of merging by gradient: gates of several experts that are learned on what these answer."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpatch.measuring import effect, mixtures, sweep
from jaxpatch.measuring.continuations import Continuation
from jaxpatch.models.checkpoints import Pair, refuse_others
from jaxpatch.models.config import DecoderConfig
from jaxpatch.numbers import is_number, is_whole
from jaxpatch.patching import components
from jaxpatch.patching.components import Partition
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths

OBJECTIVES = ("kl", "log_kl", "entropy")
FLOOR = 1e-3
"""Nats a token below which an expert's answers are as good as its own, where logarithms are looked at."""


class LearnedMerge(NamedTuple):
    """gates: of each expert, for `merge` by task_arithmetic. rest: as it was asked, for that, too.
    losses: [steps], before each step, without the penalty. taken: [steps + 1, experts], what gates take, as a share of the parameters
    that they own, before each step and at the end.
    """

    gates: list[Gates]
    rest: float
    losses: np.ndarray
    taken: np.ndarray


class Answers(NamedTuple):
    """Of one expert: tokens [B, T], prompt and answer; starts, ends [B], where the answer is."""

    tokens: jax.Array
    starts: jax.Array
    ends: jax.Array


def learn_merge(
    pairs: Sequence[Pair],
    answers: Sequence[Continuation],
    *,
    objective: str = "kl",
    kinds: Sequence[str] = ("head", "neuron"),
    sparsity: float = 0.0,
    start: float = 0.3,
    rest: float = 0.3,
    steps: int = 100,
    rate: float = 0.02,
    batch: int = 8,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> LearnedMerge:
    """Gates of several experts, learned by gradient, with which one model answers as each of them does on its own prompts.

    The merged model is ``base + sum_i g_i (expert_i - base)``. A step runs it, forward and backward, on some of each expert's answers.

    Args:
        pairs: of each expert with base, which all share (`experts.with_one_base`).
        answers: of each expert to prompts of its own task (`continuation`).
        objective: "kl": KL(expert || merged) of next tokens along the expert's answers, nats a token; "log_kl": the logarithm of each
            expert's, and of `FLOOR`, so that experts count alike of whom one bears a tenth of a nat and one a hundredth (both ours);
            "entropy": of the merged model's next tokens there, which looks at no expert (AdaMerging; with kinds=("layer",) its
            layer-wise form).
        kinds: of component that have gates; none may own what another does.
        sparsity: what it costs, in nats, to take all of an expert: the mean over experts of the share of parameters that gates take.
        start: of every gate. rest: the gate of all that these kinds do not own; it is not learned.
        steps, rate: of Adam, whose rate falls to 0 as a cosine, for the answers of a step are few; after each gates are put back into
            0 to 1.
        batch: answers of each expert in a step, drawn by `seed`; memory grows with them.
        progress: called with (steps done, steps).

    Returns: `LearnedMerge`. Raises: ValueError for all that is wrong at once.

    References: Yang et al., AdaMerging, arXiv 2310.02575, section 3.2; gates of heads and neurons, KL and the penalty: ours.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> told = jp.continuation(pair, pair.special, prompts, max_new=3)
        >>> made = learn_merge([pair], [told], steps=10, rate=0.1, rest=1.0)
        >>> bool(made.losses[-1] < made.losses[0])
        True
    """
    if faults := _faults(pairs, answers, objective, kinds, sparsity, start, rest, steps, rate, batch, seed):
        raise ValueError("no merge can be learned:\n" + "\n".join(f"  - {fault}" for fault in faults))
    config, base = pairs[0].config, pairs[0].base
    partition = components.of_decoder(base)
    shapes = {path: np.shape(leaf) for path, leaf in paths.leaves(base).items()}
    sizes = {kind: jnp.asarray(components.sizes(partition[kind], shapes), jnp.float32) for kind in kinds}
    total = sum(float(size.sum()) for size in sizes.values())
    costs = {kind: size * (sparsity / len(pairs) / total) for kind, size in sizes.items()}
    width = max(each.tokens.shape[1] for each in answers)
    told = tuple(
        Answers(
            jnp.pad(jnp.asarray(each.tokens, jnp.int32), ((0, 0), (0, width - each.tokens.shape[1]))),
            jnp.asarray(each.starts, jnp.int32),
            jnp.asarray(each.ends, jnp.int32),
        )
        for each in answers
    )
    models = base, tuple(pair.special for pair in pairs)
    most = max(int((each.ends - each.starts).max()) for each in answers)
    wanted = [
        None if objective == "entropy" else _states_of(config, most, pair.special, own, batch)
        for pair, own in zip(pairs, told, strict=True)
    ]
    gates = tuple({kind: jnp.full(partition[kind].shape, start, jnp.float32) for kind in kinds} for _ in pairs)
    draw, adam = np.random.default_rng(seed), optax.adam(optax.cosine_decay_schedule(rate, steps))
    with jax.numpy_dtype_promotion("standard"):
        moments = adam.init(gates)
    losses, taken = [], [_taken(gates, sizes)]
    for number in range(steps):
        rows = [draw.choice(len(each.starts), min(batch, len(each.starts)), replace=False) for each in told]
        chosen = tuple(Answers(*(part[some] for part in each)) for each, some in zip(told, rows, strict=True))
        theirs = tuple(None if each is None else each[some] for each, some in zip(wanted, rows, strict=True))
        loss, slope = _slope(config, objective, most, models, gates, jnp.float32(rest), chosen, theirs)
        gates, moments = _step(adam, gates, moments, slope, costs)
        losses.append(float(loss))
        taken.append(_taken(gates, sizes))
        progress(number + 1, steps)
    found: list[Gates] = [{kind: np.asarray(gate) for kind, gate in each.items()} for each in gates]
    return LearnedMerge(found, rest, np.array(losses), np.array(taken))


def _placed(some: Answers, most: int) -> jax.Array:
    """Where the next token is one of the answer's: [B, most]."""
    return jnp.minimum(some.starts[:, None] + jnp.arange(most, dtype=jnp.int32), some.ends[:, None] - 1) - 1


def _states_of(config: DecoderConfig, most: int, expert: Params, told: Answers, batch: int) -> np.ndarray:
    """What an expert is about to say, once for all steps: the residual stream along all its answers, [B, most, D]. batch: at a time."""
    made = [
        np.asarray(_answering(config, most, expert, Answers(*(part[first : first + batch] for part in told))))
        for first in range(0, len(told.starts), batch)
    ]
    return np.concatenate(made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _answering(config: DecoderConfig, most: int, params: Params, some: Answers) -> jax.Array:
    return mixtures.answering(config, effect.unpatched(params), some.tokens, some.ends, _placed(some, most))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _slope(
    config: DecoderConfig,
    objective: str,
    most: int,
    models: tuple[Params, tuple[Params, ...]],
    gates: tuple[Gates, ...],
    rest: jax.Array,
    answers: tuple[Answers, ...],
    theirs: tuple[jax.Array | None, ...],
) -> tuple[jax.Array, tuple[Gates, ...]]:
    """The mean over experts of the loss on their answers, and its gradient in the gates. theirs: of each expert its own states there;
    None where the loss looks at no expert."""
    base, experts = models
    steps = jnp.arange(most, dtype=jnp.int32)
    together = Answers(*(jnp.concatenate(part) for part in zip(*answers, strict=True)))
    lengths, counts = together.ends - together.starts, np.array([len(each.starts) for each in answers])
    whose = np.repeat(np.arange(len(experts), dtype=np.int32), counts)

    known = [each for each in theirs if each is not None]
    wanted = jnp.concatenate(known) if known else jnp.zeros(len(whose))

    def loss_of(gates: tuple[Gates, ...]) -> jax.Array:
        mixture = mixtures.Mixture(base, experts, gates, rest)
        read_out = mixture.read_out(config)

        def apart(row: tuple[jax.Array, ...]) -> jax.Array:
            """The loss on one answer; logits are large, so one after the other, and once more on the way back."""
            own, other, length, expert = row
            own = jax.nn.log_softmax(read_out(own))
            if objective == "entropy":
                each = -(jnp.exp(own) * own).sum(-1)
            else:
                branches = [functools.partial(_log_probs, config, effect.unpatched(params)) for params in experts]
                log_p = jax.lax.switch(expert, branches, other)
                each = (jnp.exp(log_p) * (log_p - own)).sum(-1)
            return jnp.where(steps < length, each, 0).sum() / length.astype(each.dtype)

        states = mixtures.answering(config, mixture, together.tokens, together.ends, _placed(together, most))
        rows = states, wanted, lengths, whose
        each = jnp.split(jax.lax.map(jax.checkpoint(apart), rows), np.cumsum(counts)[:-1])
        of_experts = jnp.stack([own.mean() for own in each])
        return (jnp.log(of_experts + FLOOR) if objective == "log_kl" else of_experts).mean()

    return jax.value_and_grad(loss_of)(gates)


def _log_probs(config: DecoderConfig, model: effect.Patched, x: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(model.logits(config, x))


def _step(
    adam: optax.GradientTransformation,
    gates: tuple[Gates, ...],
    moments: Any,
    slope: tuple[Gates, ...],
    costs: Mapping[str, jax.Array],
) -> tuple[tuple[Gates, ...], Any]:
    """A step of Adam's, back into 0 to 1. costs: kind -> what it costs to take each component."""
    with jax.numpy_dtype_promotion("standard"):
        slope = tuple({kind: each[kind] + costs[kind] for kind in each} for each in slope)
        moves, moments = adam.update(slope, moments)
        return jax.tree.map(lambda gate, move: jnp.clip(gate + move, 0, 1), gates, moves), moments


def _taken(gates: Sequence[Gates], sizes: Mapping[str, jax.Array]) -> list[float]:
    total = sum(float(size.sum()) for size in sizes.values())
    return [sum(float((each[kind] * sizes[kind]).sum()) for kind in sizes) / total for each in gates]


def _faults(
    pairs: Sequence[Pair],
    answers: Sequence[Continuation],
    objective: str,
    kinds: Sequence[str],
    sparsity: float,
    start: float,
    rest: float,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
) -> list[str]:
    faults = [] if objective in OBJECTIVES else [f"objective: wanted {' or '.join(OBJECTIVES)}; got {objective!r}."]
    if not len(pairs):
        return [*faults, "pairs: wanted at least one expert with its base; got none."]
    for pair in pairs:
        refuse_others(pair, "learn_merge", "Learn gates of your own models by jax.grad of a Mixture's like.")
    if len(answers) != len(pairs):
        faults.append(f"answers: wanted those of each of {len(pairs)} experts; got {len(answers)}.")
    if any(pair.base is not pairs[0].base for pair in pairs):
        faults.append("pairs: wanted one base, held once; experts.with_one_base makes them so.")
    partition: Partition = components.of_decoder(pairs[0].base)
    inside = [kind for kind in partition if partition[kind].shape[0] == pairs[0].config.layers]
    if unknown := [kind for kind in kinds if kind not in inside]:
        faults.append(f"kinds: {', '.join(unknown)} are none of a block's; there are {', '.join(inside)}.")
    elif not kinds or len(components.disjoint(partition, tuple(kinds))) < len(kinds):
        faults.append(f"kinds: wanted at least one, and none that owns what another does; got {', '.join(kinds)}.")
    shares = {"sparsity": (sparsity, math.inf), "start": (start, 1), "rest": (rest, 1), "rate": (rate, math.inf)}
    return faults + number_faults(shares, steps=steps, batch=batch, seed=seed)


def number_faults(shares: Mapping[str, tuple[Any, float]], *, steps: Any, batch: Any, seed: Any) -> list[str]:
    """What is wrong with numbers that learning is told. shares: name -> (from 0 on, to)."""
    faults = []
    for name, (value, high) in shares.items():
        if not is_number(value) or not 0 <= value <= high:
            faults.append(f"{name}: wanted a number from 0 to {high:g}; got {value!r}.")
    for name, value, low in (("steps", steps, 1), ("batch", batch, 1), ("seed", seed, 0)):
        if not is_whole(value, low):
            faults.append(f"{name}: wanted a whole number of at least {low}; got {value!r}.")
    return faults
