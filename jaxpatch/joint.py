"""What components do together: the conductor of `sets`. Each call takes up where `score` left off, with its ranking. No arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxpatch.measuring import hosts, read_outs, sweep, tree_pairs
from jaxpatch.measuring.memory import cheap_prompts, default_budget, itemsize_of
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.measuring.tree_pairs import Read, TreePair
from jaxpatch.models.checkpoints import Pair
from jaxpatch.pipeline import Ranking, number_faults, partition_of, ranking, shape_faults
from jaxpatch.scoring import normalise, scores
from jaxpatch.sets import comparison, game, learned
from jaxpatch.sets import greedy as grown
from jaxpatch.sets import interactions as pairwise
from jaxpatch.sets import shapley as fair
from jaxpatch.validating import controls, curves

COUNTING = ("top", "size", "pool")
"""Options that say how many components."""
POOL = 5
"""Components to choose from, for each that is to be chosen."""


def interactions(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    *,
    top: int = 20,
    seed: int = 0,
    memory: int | None = None,
    progress: sweep.Progress = sweep.silent,
) -> pairwise.Interactions:
    """Do the effects of the best components add up? Exact interactions of every two of them, and of all together.

    ``I(i, j) = E(i and j) - E(i) - E(j)``, shares of the gap: below 0 they stand for each other, above 0 they need each other. Costs
    `top` + 1 sweeps of `top` components each; beside the two models it holds two that are patched.

    Args:
        pair, inputs, anchor: as for `score`; the inputs of the scores, or better, others.
        found: what `score` returned; the best of all its kinds together take part, of overlapping kinds only the finer.
        top: how many. seed: of the bootstrap over inputs.
        memory: bytes that the engine may hold beside the models. Of a `TreePair` each set is a run of the whole model.

    Returns: `Interactions`. Raises: ValueError for bad options, all at once, and for more components than can reach the anchor.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
        >>> interactions(pair, prompts, anchor, jp.score(pair, prompts, anchor), top=3).values.shape
        (3, 3)
    """
    asked = {"top": (top, 2), "seed": (seed, 0)}
    started = _started("interactions", pair, inputs, anchor, found, memory, asked)
    return pairwise.pairs(_game(pair, inputs, anchor, found, started, top, memory), seed=seed, progress=progress)


def shapley(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    *,
    top: int = 20,
    rounds: int = 8,
    seed: int = 0,
    memory: int | None = None,
    progress: sweep.Progress = sweep.silent,
) -> fair.Shapley:
    """What is each of the best components worth, whichever of the others are there? Shapley values of the game of the first `top`.

    The mean, over sizes and over sets of each size, of what a component adds to a set of the others, all else base's. They add up to
    what all do together. Costs `top` - 1 sweeps a round (`top` where it is even), of `top` components each, and 2 more.

    Args:
        top: how many take part. rounds: of sampled sets, at least 2; where all sets take no more sweeps, all are taken (of up to six
            components, in eight rounds).
        seed: of the sets, and of the bootstrap over inputs. The rest as for `interactions`.

    Returns: `Shapley`. Raises: as `interactions`.

    References: Shapley (1953); the estimator is ours (`sets.shapley`).

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
        >>> made = shapley(pair, prompts, anchor, jp.score(pair, prompts, anchor), top=3)
        >>> made.is_exact, bool(abs(made.total.value - made.joint.value) < 1e-5)
        (True, True)
    """
    asked = {"top": (top, 2), "rounds": (rounds, 2), "seed": (seed, 0)}
    started = _started("shapley", pair, inputs, anchor, found, memory, asked)
    played = _game(pair, inputs, anchor, found, started, top, memory)
    return fair.values(played, rounds=rounds, seed=seed, progress=progress)


def greedy(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    *,
    size: int = 20,
    pool: int | None = None,
    at_once: int = 1,
    seed: int = 0,
    memory: int | None = None,
    progress: sweep.Progress = sweep.silent,
) -> grown.Greedy:
    """A set of components grown one by one, each time by the one that adds most to those already chosen.

    Costs a sweep of the pool for each step.

    Args:
        size: how many to choose. pool: from so many of the best by `found`; five times as many where None, or all there are.
        at_once: how many each step takes, for large sets.
        seed: of the bootstrap over inputs. The rest as for `interactions`.

    Returns: `Greedy`, with what is recovered after each step. Raises: as `interactions`.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
        >>> greedy(pair, prompts, anchor, jp.score(pair, prompts, anchor), size=2, pool=6).sizes.tolist()
        [1, 2]
    """
    asked = {"size": (size, 1), "at_once": (at_once, 1), "seed": (seed, 0)}
    asked |= {} if pool is None else {"pool": (pool, 1)}
    is_small = pool is not None and not number_faults(asked) and pool < size
    small = [f"pool: wanted no fewer than size={size}; got {pool}."] if is_small else []
    started = _started("greedy", pair, inputs, anchor, found, memory, asked, small)
    pool = min(POOL * size, len(started.order.places)) if pool is None else pool
    played = _game(pair, inputs, anchor, found, started, pool, memory)
    return grown.select(played, size, at_once=at_once, seed=seed, progress=progress)


def learned_gates(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    *,
    size: int = 20,
    steps: int = 200,
    rate: float = 0.1,
    seed: int = 0,
    memory: int | None = None,
    progress: sweep.Progress = sweep.silent,
) -> learned.Learned:
    """A set of components found by gradient: relaxed gates on all of them that add up to `size`, cool to 0 and 1, and are truly put in.

    Scores are not looked at: `found` says which components take part. Each step costs one forward and one backward pass of the
    definition, whatever their number. It sees components that need each other, as no choice one by one does; with more gates than
    inputs it may also learn these inputs by heart, so judge it on others (`compare_sets`, held_out).

    Args:
        size: how many to choose, fewer than there are.
        steps, rate: of Adam; the temperature falls from the first step to the last.
        seed: of the gates' noise, and of the bootstrap over inputs. The rest as for `interactions`.

    Returns: `Learned`. Raises: as `interactions`.

    References: after Louizos et al., arXiv 1712.01312; a fixed sum and cooling are ours (`sets.learned`).

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
        >>> made = learned_gates(pair, prompts, anchor, jp.score(pair, prompts, anchor, kinds=("head",)), size=2, steps=20)
        >>> len(made.components), round(float(made.gates["head"].sum()), 3)
        (2, 2.0)
    """
    asked = {"size": (size, 1), "steps": (steps, 1), "seed": (seed, 0)}
    wrong = (
        [] if isinstance(rate, int | float) and 0 < rate < np.inf else [f"rate: wanted a number above 0; got {rate!r}."]
    )
    started = _started("learned_gates", pair, inputs, anchor, found, memory, asked, wrong)
    tool, order, shapes = started
    if size == len(order.places):
        raise ValueError(
            f"learned_gates: wanted fewer components than there are, or nothing is left to choose; got size={size}."
        )
    at_once = _backward_at_once(pair, inputs, anchor, started, memory)
    fitted = learned.fit(
        tool,
        order,
        shapes,
        size,
        at_once=at_once,
        aggregate=found.aggregate,
        steps=steps,
        rate=rate,
        seed=seed,
        progress=progress,
    )
    played = _game(pair, inputs, anchor, found, started._replace(order=fitted.order), size, memory)
    return learned.measured(fitted, played, tool, seed)


def compare_sets(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    sets: Mapping[str, Sequence[tuple]],
    *,
    sizes: Sequence[int] | None = None,
    held_out: Any = None,
    seed: int = 0,
    memory: int | None = None,
    progress: sweep.Progress = sweep.silent,
) -> tuple[comparison.Compared, ...]:
    """How much does ranking one by one lose? Sets found in other ways against as many of the ranking's first.

    Each set is truly put into base, by a run of the patched model, on the inputs it was found on and on others.

    Args:
        pair, inputs, anchor, found: as they were given to what found the sets; `found` is the ranking.
        sets: name -> components, best first, as (kind, (layer, index)): `Greedy.components`, `Learned.components`, `Shapley.ranked`, or
            a list of your own. "ranking" is there by itself. What was learned for one size is at smaller ones an order of gates.
        sizes: how many of the first to compare; on a log grid up to the shortest set where None.
        held_out: inputs on which no set was found. Choices of many components by few inputs are partly about these inputs.
        seed: of the bootstrap over inputs. memory: as for `score`.

    Returns: a `Compared` for each inputs, size and set, with the gain over the ranking; ``pandas.DataFrame`` makes a table of them.

    Raises: ValueError for bad options, and for sets that are too short or hold a component twice; KeyError, IndexError for components
        that there are none of.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
        >>> found = jp.score(pair, prompts, anchor, kinds=("head",))
        >>> sets = {"greedy": greedy(pair, prompts, anchor, found, size=2).components}
        >>> rows = compare_sets(pair, prompts, anchor, found, sets)
        >>> [(row.name, row.size) for row in rows]
        [('ranking', 1), ('greedy', 1), ('ranking', 2), ('greedy', 2)]
    """
    wrong = comparison.faults(sets, sizes)
    shortest = min(map(len, sets.values()), default=0)
    compared = list(sizes) if sizes is not None else curves.sizes(max(1, shortest)).tolist()
    asked = {"seed": (seed, 0)} | ({} if wrong else {"size": (max(compared), 1)})
    started = {False: _started("compare_sets", pair, inputs, anchor, found, memory, asked, wrong)}
    if held_out is not None:
        started[True] = _started("compare_sets", pair, held_out, anchor, found, memory, asked)
    _, order, shapes = started[False]
    first = game.named(controls.some(order, np.arange(max(compared))), shapes, partition_of(pair))
    sets, rows = {comparison.RANKING: first, **sets}, []
    for is_held_out, (tool, *_) in started.items():
        effects = comparison.effects(tool, sets, compared, sweep.part(progress, int(is_held_out), len(started)))
        rows += comparison.compare(
            effects,
            sets,
            compared,
            tool.gap,
            normalise.kept_inputs(tool.gap, tool.base),
            found.aggregate,
            is_held_out=is_held_out,
            seed=seed,
        )
    return tuple(rows)


def _started(
    asker: str,
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    memory: int | None,
    whole: Mapping[str, tuple[Any, int]],
    faults: Sequence[str] = (),
) -> Ranking:
    """The ranking to go by. whole: name -> an option that is a whole number, and the least it may be; those of `COUNTING` count
    components. faults: other ones, found already. Raises before any sweep."""
    wrong = [*faults, *number_faults(whole, memory)]
    partition = partition_of(pair)
    wrong += shape_faults("found", found, partition)
    if wrong:
        raise ValueError(f"{asker}:\n" + "\n".join(wrong))
    started = ranking(asker, pair, inputs, anchor, found, None if memory is None else int(memory))
    there = len(started.order.places)
    if few := [f"{name}={whole[name][0]:,}" for name in COUNTING if name in whole and whole[name][0] > there]:
        raise ValueError(
            f"{asker}: wanted no more components than were scored and can reach the anchor, {there:,}; got {', '.join(few)}."
        )
    return started._replace(tool=hosts.compiled(started.tool))


def _game(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    started: Ranking,
    count: int,
    memory: int | None,
) -> game.Game:
    """The game of the first `count` of a ranking."""
    tool, order, shapes = started
    marginals = hosts.by_definition(tool)
    if isinstance(pair, Pair) and isinstance(anchor, Anchor):
        marginals = hosts.of_pair(pair, inputs, anchor, tool, budget=None if memory is None else int(memory))
    return game.of_order(tool, controls.some(order, np.arange(count)), shapes, marginals, found.aggregate)


def _backward_at_once(
    pair: Pair | TreePair, inputs: Any, anchor: Anchor | Read, started: Ranking, memory: int | None
) -> int:
    """Inputs that a backward pass of the definition may take together."""
    budget = None if memory is None else int(memory)
    if not isinstance(pair, TreePair):
        assert isinstance(anchor, Anchor)
        budget = default_budget(pair.base) if budget is None else budget
        tokens, itemsize = np.shape(inputs.tokens)[1], itemsize_of(pair.base)
        return cheap_prompts(pair.config, tokens, itemsize, read_outs.depth(pair.config, [anchor]), budget)
    gates = {name: np.zeros(shape) for name, shape in started.shapes.items()}

    def args(size: int) -> tuple:
        return learned.of_some(started.tool, gates, np.zeros(size, np.int32), np.zeros(size))

    return tree_pairs.at_once_of(pair, learned.missing, args, len(started.tool.base), budget)
