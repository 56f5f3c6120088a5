"""How much does ranking one by one lose? Sets of equal size, found in other ways, against the first of the ranking. Ours."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpatch.measuring import sweep
from jaxpatch.measuring.instrument import Instrument
from jaxpatch.patching import components
from jaxpatch.scoring import normalise
from jaxpatch.validating import curves

RANKING = "ranking"
"""What the others are compared with."""


class Compared(NamedTuple):
    """One set of one size, in shares of the gap; intervals are 95 %, bootstrap over inputs. ``pandas.DataFrame(rows)`` makes a table.

    name: how the set was found. size: its first so many components. is_held_out: on other inputs than those it was found on.
    recovery, low, high: E_w of the set.
    gain, gain_low, gain_high: how much more than the ranking's first so many, on the same inputs, drawn together. Below 0 it is less.
    miss: root mean square, over inputs, of the share that is missing or too much: 0 where every input reads as in special. A set may
        recover more than another by going too far.
    shared: how many components are the ranking's own.
    """

    name: str
    size: int
    is_held_out: bool
    recovery: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float
    miss: float
    shared: int


def faults(sets: Mapping[str, Sequence[tuple]], sizes: Sequence[int] | None) -> list[str]:
    """What is wrong with sets that are to be compared, whatever the models.

    >>> faults({"mine": [("head", (0, 1))]}, [3])
    ['sets: wanted at least 3 components of each; mine has 1.']
    """
    found = [] if sets else ["sets: wanted at least one, name -> components; got none."]
    found += [f"sets: {name!r} is there by itself; give yours another name." for name in sets if name == RANKING]
    for name, each in sets.items():
        if strange := [one for one in each if not _is_component(one)]:
            found.append(
                f"sets: {name}: wanted components as (kind, (layer, index)); got {', '.join(map(repr, strange))}."
            )
            continue
        places = [(kind, tuple(place)) for kind, place, *_ in each]
        twice = sorted(one for one, times in Counter(places).items() if times > 1)
        found += [f"sets: {name} holds {kind} {place} more than once." for kind, place in twice]
    wrong = curves.size_faults(sizes)
    found += wrong
    longest = max(sizes) if sizes is not None and not wrong else 1
    short = [f"{name} has {len(each)}" for name, each in sets.items() if len(each) < longest]
    return found + ([f"sets: wanted at least {longest} components of each; {', '.join(short)}."] if short else [])


def _is_component(given: object) -> bool:
    """Whether something is a kind and a place in it, whatever else stands behind.

    >>> _is_component(("head", (0, 1))), _is_component("head"), _is_component(("head", 1))
    (True, False, False)
    """
    return (
        isinstance(given, Sequence)
        and not isinstance(given, str)
        and len(given) > 1
        and isinstance(given[0], str)
        and isinstance(given[1], Sequence | np.ndarray)
    )


def effects(
    tool: Instrument, sets: Mapping[str, Sequence[tuple]], sizes: Sequence[int], progress: sweep.Progress = sweep.silent
) -> dict[str, np.ndarray]:
    """What the first so many of each set do, ``F(base with them) - F(base)``: name -> [B, K]. A run of the patched model each.

    Raises: KeyError, IndexError for components that there are none of.
    """
    kinds = dict.fromkeys(kind for each in sets.values() for kind, *_ in each)
    gates = {
        (name, size): components.gates(
            tool.partition, {kind: [place for of, place, *_ in each[:size] if of == kind] for kind in kinds}
        )
        for name, each in sets.items()
        for size in sizes
    }
    found = {}
    for number, (key, each) in enumerate(gates.items()):
        found[key] = tool.read(each) - tool.base
        progress(number + 1, len(gates))
    return {name: np.stack([found[name, size] for size in sizes], axis=1) for name in sets}


def compare(
    effects: Mapping[str, np.ndarray],
    sets: Mapping[str, Sequence[tuple]],
    sizes: Sequence[int],
    gap: np.ndarray,
    is_kept: np.ndarray,
    aggregate: str,
    *,
    is_held_out: bool = False,
    seed: int = 0,
) -> tuple[Compared, ...]:
    """Rows by size, and at each the ranking first.

    Args: effects: name -> ``F(base with the first k) - F(base)``, [B, K], k in `sizes`; `RANKING` among them. sets: name -> components.
        gap, is_kept: [B].

    Example:
        >>> effects = {"ranking": np.array([[0.5], [1.0]]), "greedy": np.array([[0.75], [1.5]])}
        >>> sets = {"ranking": [("head", (0, 1))], "greedy": [("head", (0, 2))]}
        >>> rows = compare(effects, sets, [1], np.array([1.0, 2.0]), np.ones(2, bool), "mean_of_ratios")
        >>> [(row.name, row.recovery, row.gain, row.miss, row.shared) for row in rows]
        [('ranking', 0.5, 0.0, 0.5, 1), ('greedy', 0.75, 0.25, 0.25, 0)]
    """
    ratios = {name: each[is_kept] / gap[is_kept, None] for name, each in effects.items()}
    found = {name: _with_ends(each, gap, is_kept, aggregate, seed) for name, each in effects.items()}
    gains = {name: _with_ends(each - effects[RANKING], gap, is_kept, aggregate, seed) for name, each in effects.items()}
    names = [RANKING, *(name for name in effects if name != RANKING)]
    return tuple(
        Compared(
            name,
            size,
            is_held_out,
            *map(float, found[name][:, column]),
            *map(float, gains[name][:, column]),
            miss=float(np.sqrt(np.mean((1 - ratios[name][:, column]) ** 2))),
            shared=len(_first(sets[name], size) & _first(sets[RANKING], size)),
        )
        for column, size in enumerate(sizes)
        for name in names
    )


def _with_ends(effects: np.ndarray, gap: np.ndarray, is_kept: np.ndarray, aggregate: str, seed: int) -> np.ndarray:
    """E_w and its interval: [3, K]."""
    value = normalise.normalised(effects, gap, is_kept, aggregate)
    return np.stack([value, *normalise.intervals(effects, gap, is_kept, aggregate, seed)])


def _first(components_of: Sequence[tuple], size: int) -> set[tuple]:
    return {(kind, tuple(place)) for kind, place, *_ in components_of[:size]}
