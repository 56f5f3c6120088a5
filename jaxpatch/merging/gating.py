"""How far each component of each expert goes into the merged model, by what the experts' scores say. An open set of rules.

Mechanism-aware merging is the paper's (Sun et al., arXiv 2604.13694); how its scores decide was not published, and these three readings
are ours. A gate is 0 where base stays, 1 where the expert's change is taken whole; what has no score is NaN here.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxpatch.shapes import Gates

Rule = Callable[[Sequence[Gates], Mapping[str, np.ndarray], float], list[Gates]]
"""(scores of each expert, NaN where there is none; parameters of each component; share of them that may be taken) -> gates of each."""


def hard(scores: Sequence[Gates], sizes: Mapping[str, np.ndarray], budget: float) -> list[Gates]:
    """Each component from the expert whose score of it is the highest; those that score highest of all, until the budget is spent.

    >>> one, two = {"head": np.array([0.5, 0.1])}, {"head": np.array([0.2, 0.3])}
    >>> [gates["head"].tolist() for gates in hard([one, two], {"head": np.array([4, 4])}, 1.0)]
    [[1.0, 0.0], [0.0, 1.0]]
    """
    best = _highest(scores)
    taken = _best(best, sizes, budget)
    left = {kind: np.ones(each.shape, bool) for kind, each in best.items()}
    made = []
    for own in scores:
        wins = {kind: left[kind] & (own[kind] == best[kind]) for kind in best}
        left = {kind: left[kind] & ~wins[kind] for kind in best}  # of two that are equal the first
        made.append({kind: np.where(wins[kind] & taken[kind], 1.0, 0.0) for kind in best})
    return _with_unscored(made, scores)


def soft(scores: Sequence[Gates], sizes: Mapping[str, np.ndarray], budget: float) -> list[Gates]:
    """Each component from all experts, by their shares of its scores above 0; components as with `hard`.

    >>> one, two = {"head": np.array([0.6, 0.1])}, {"head": np.array([0.2, -0.3])}
    >>> [gates["head"].round(2).tolist() for gates in soft([one, two], {"head": np.array([4, 4])}, 1.0)]
    [[0.75, 1.0], [0.25, 0.0]]
    """
    taken = _best(_highest(scores), sizes, budget)
    clipped = [{kind: np.maximum(np.nan_to_num(own[kind]), 0) for kind in own} for own in scores]
    made = []
    for own in clipped:
        total = {kind: sum(each[kind] for each in clipped) for kind in own}
        shares = {
            kind: np.divide(own[kind], total[kind], out=np.zeros_like(own[kind]), where=total[kind] > 0) for kind in own
        }
        made.append({kind: np.where(taken[kind], shares[kind], 0.0) for kind in own})
    return _with_unscored(made, scores)


def mask(scores: Sequence[Gates], sizes: Mapping[str, np.ndarray], budget: float) -> list[Gates]:
    """Of each expert its own best components, until the budget is spent; what several take is left to the method that merges.

    >>> one, two = {"head": np.array([0.5, 0.1])}, {"head": np.array([0.4, -0.3])}
    >>> [gates["head"].tolist() for gates in mask([one, two], {"head": np.array([4, 4])}, 0.5)]
    [[1.0, 0.0], [1.0, 0.0]]
    """
    taken = [_best(own, sizes, budget) for own in scores]
    return _with_unscored([{kind: each.astype(float) for kind, each in own.items()} for own in taken], scores)


RULES: dict[str, Rule] = {"hard": hard, "soft": soft, "mask": mask}


def shared(gates: Sequence[Gates]) -> list[Gates]:
    """What several experts take, each in equal parts: the mean of their changes.

    >>> [each["head"].tolist() for each in shared([{"head": np.array([1.0, 1.0])}, {"head": np.array([1.0, 0.0])}])]
    [[0.5, 1.0], [0.5, 0.0]]
    """
    counts = {kind: np.maximum(sum((each[kind] > 0).astype(float) for each in gates), 1) for kind in gates[0]}
    return [{kind: each[kind] / counts[kind] for kind in each} for each in gates]


def _highest(scores: Sequence[Gates]) -> dict[str, np.ndarray]:
    """Of each component the highest score that any expert gives it; NaN where none does."""
    return {kind: np.fmax.reduce([np.asarray(own[kind], float) for own in scores]) for kind in scores[0]}


def _best(scores: Gates, sizes: Mapping[str, np.ndarray], budget: float) -> dict[str, np.ndarray]:
    """Kind -> bool: the components that score highest, above 0, kinds together, while they have no more parameters than the budget
    allows of all that have a score."""
    kinds = list(scores)
    values = np.concatenate([np.ravel(scores[kind]) for kind in kinds])
    numbers = np.concatenate([np.ravel(sizes[kind]) for kind in kinds])
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    room = budget * numbers[~np.isnan(values)].sum()
    fits = np.cumsum(numbers[order]) <= room * (1 + 1e-12)
    taken = np.zeros(len(values), bool)
    taken[order[fits & (values[order] > 0)]] = True
    ends = np.cumsum([np.size(scores[kind]) for kind in kinds])[:-1]
    return {kind: part.reshape(np.shape(scores[kind])) for kind, part in zip(kinds, np.split(taken, ends), strict=True)}


def _with_unscored(made: Sequence[Gates], scores: Sequence[Gates]) -> list[Gates]:
    """NaN again where an expert has no score."""
    return [
        {kind: np.where(np.isnan(own[kind]), np.nan, gates[kind]) for kind in gates}
        for gates, own in zip(made, scores, strict=True)
    ]
