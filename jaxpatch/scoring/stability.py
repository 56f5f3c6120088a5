"""Would the ranking be the same with other prompts, another wording, another seed, another task? Ours."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.numbers import is_whole
from jaxpatch.scoring import normalise
from jaxpatch.scoring.agreement import spearman
from jaxpatch.scoring.scores import Scores

LEVEL = 0.95


class Overlap(NamedTuple):
    """How many of the first components several rankings share.

    kind, size: the first so many of a kind. names: of the rankings. shared: int [N, N], both rankings' first have in common.
    chance: [N, N], how many two random draws would share. p: [N, N], the probability that these share so many or more.
    """

    kind: str
    size: int
    names: tuple[str, ...]
    shared: np.ndarray
    chance: np.ndarray
    p: np.ndarray

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of rankings: one, other, shared, chance, p."""
        rows = [
            (one, other, int(self.shared[i, j]), float(self.chance[i, j]), float(self.p[i, j]))
            for i, one in enumerate(self.names)
            for j, other in enumerate(self.names)
            if i < j
        ]
        return pd.DataFrame(rows, columns=["one", "other", "shared", "chance", "p"])


def overlap(found: Mapping[str, Scores], kind: str, count: int) -> Overlap:
    """The first `count` components of one kind in several rankings: of other tasks, wordings, prompts, seeds, methods or experts.

    Chance is that of two draws from the components that can matter in the ranking that reaches deeper; those of the other are among
    them.

    Args: found: name -> scores of models of one architecture.

    Raises: KeyError where a kind was not scored; ValueError for scores of different shapes, and for more components than there are.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> anchors = {name: jp.Anchor(layer=1, direction=jnp.eye(16)[n]) for n, name in enumerate(("one", "other"))}
        >>> both = overlap({name: jp.score(pair, prompts, each) for name, each in anchors.items()}, "neuron", 5)
        >>> both.shared.tolist()[0][0], both.to_frame().columns.tolist()
        (5, ['one', 'other', 'shared', 'chance', 'p'])
    """
    if missing := [name for name, each in found.items() if kind not in each.values]:
        raise KeyError(f"{kind!r} was not scored in {', '.join(missing)}.")
    shapes = {name: each.values[kind].shape for name, each in found.items()}
    if len(set(shapes.values())) > 1:
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"overlap: wanted {kind} scores of one architecture; got shapes {told}.")
    reach = {name: num_that_matter(each, kind) for name, each in found.items()}
    if not is_whole(count):
        raise ValueError(f"overlap: wanted a whole number of {kind}s; got {count!r}.")
    if few := [f"{name} has {number}" for name, number in reach.items() if not 1 <= count <= number]:
        raise ValueError(f"overlap: wanted 1 to as many {kind}s as can matter, got {count}; {', '.join(few)}.")
    first = {name: set(first_places(each, kind, count)) for name, each in found.items()}
    pairs = [[(one, other) for other in found] for one in found]
    shared = np.array([[len(first[one] & first[other]) for one, other in row] for row in pairs])
    pools = np.array([[max(reach[one], reach[other]) for one, other in row] for row in pairs])
    p = [
        [at_least(int(s), count, int(n)) for s, n in zip(*row, strict=True)] for row in zip(shared, pools, strict=True)
    ]
    return Overlap(kind, count, tuple(found), shared, count * count / pools, np.array(p))


def halves(found: Scores, *, count: int = 10, draws: int = 100, seed: int = 0) -> pd.DataFrame:
    """Scores by one half of the inputs against scores by the other, over random halves.

    Args: count: how many of the first are compared. draws: of halves.

    Returns: one row a kind: kind, inputs (that count), spearman (mean over draws), low, high (of 95 % of them), shared (of the first
        `count`, mean), count, chance (how many two random draws would share). A half is less than the whole: the ranking by all inputs
        is steadier than this says.

    Raises: ValueError with fewer than four inputs that count, for which halves say nothing, and for bad numbers, all at once.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = jp.score(testing.tiny_pair(), testing.tiny_inputs(batch=12), anchor)
        >>> halves(found, count=3)["kind"].tolist()
        ['head', 'neuron']
    """
    kept = np.flatnonzero(found.is_kept)
    faults = [f"wanted at least 4 inputs with a gap; got {len(kept)}."] if len(kept) < 4 else []
    for name, value, fewest in (("count", count, 1), ("draws", draws, 1), ("seed", seed, 0)):
        if not is_whole(value, fewest):
            faults.append(f"{name}: wanted a whole number, at least {fewest}; got {value!r}.")
    if faults:
        raise ValueError("halves: " + " ".join(faults))
    draw, rows = np.random.default_rng(seed), []
    splits = [np.array_split(draw.permutation(kept), 2) for _ in range(draws)]
    for kind in found.values:
        can_matter = _can_matter(found, kind)
        number, likeness, shared = int(can_matter.sum()), [], []
        most = min(count, number)
        for split in splits:
            one, other = (_of_some(found, kind, half) for half in split)
            likeness.append(spearman(one[can_matter], other[can_matter]))
            shared.append(len({*_first(one, can_matter, most)} & {*_first(other, can_matter, most)}))
        low, high = np.quantile(likeness, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        rows.append(
            {
                "kind": kind,
                "inputs": len(kept),
                "spearman": float(np.mean(likeness)),
                "low": float(low),
                "high": float(high),
                "shared": float(np.mean(shared)),
                "count": most,
                "chance": most * most / number if number else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def first_places(found: Scores, kind: str, count: int) -> list[int]:
    """Flat places of the components with the highest scores, best first; of those that can matter."""
    return _first(found.values[kind], _can_matter(found, kind), count)


def num_that_matter(found: Scores, kind: str) -> int:
    """How many components have an effect on some input."""
    return int(_can_matter(found, kind).sum())


def _of_some(found: Scores, kind: str, inputs: np.ndarray) -> np.ndarray:
    """E_w by some of the inputs alone."""
    some = np.isin(np.arange(len(found.gap)), inputs)
    return normalise.normalised(found.effects[kind], found.gap, some, found.aggregate)


def _can_matter(found: Scores, kind: str) -> np.ndarray:
    """Components with an effect on some input."""
    return np.asarray(found.effects[kind].any(axis=0))


def _first(values: np.ndarray, can_matter: np.ndarray, count: int) -> list[int]:
    """Flat places of the highest among those that can matter."""
    places = np.flatnonzero(can_matter)
    return places[np.argsort(-values.ravel()[places], kind="stable")[:count]].tolist()


def at_least(shared: int, drawn: int, number: int) -> float:
    """The probability that two draws of so many out of a number share so many or more.

    >>> at_least(0, 3, 10), round(at_least(2, 2, 4), 4)
    (1.0, 0.1667)
    """
    ways = sum(math.comb(drawn, k) * math.comb(number - drawn, drawn - k) for k in range(shared, drawn + 1))
    return ways / math.comb(number, drawn)
