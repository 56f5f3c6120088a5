"""A partition of any parameter tree, from patterns of its leaves' paths and axes."""

import difflib
import itertools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxpatch.patching.components import Kind, Slot
from jaxpatch.trees import paths

NEAREST = 3
"""Leaves that are named where a pattern matches none."""
_NAMED = re.compile(r"\{(\w*)\}")


class Match(NamedTuple):
    """A leaf that a pattern found. places: what stands for its {names}, numbers. sizes: along the axes."""

    pattern: str
    leaf: str
    names: tuple[str, ...]
    places: tuple[int, ...]
    axes: tuple[int, ...]
    sizes: tuple[int, ...]


def partition(params: Any, kinds: Mapping[str, Mapping[str, int | Sequence[int]]]) -> dict[str, Kind]:
    """Who owns which slices of a parameter tree of your own.

    A kind is a number of leaves, and the axes of each along which its components are counted; a component owns its slice of all of
    them. A pattern is a leaf's path in which

    * ``*`` stands for any part of a name, ``**`` for one name or more: all leaves that match share the kind's components;
    * ``{layer}`` stands for a number, and is a dimension of its own: ``block_0``, ``block_1``, ... are then rows of one gate array,
      in the order of their numbers.

    So ``{"head": {"block_{layer}/attn/query/kernel": 1}}`` makes gates [layer, head] of kernels [D, N, H], one a layer, and
    ``{"head": {"blocks/attn/query/kernel": (0, 2)}}`` the same gates of one kernel [L, D, N, H], as `nn.scan` stacks them. With no
    axes, ``()``, a component owns leaves whole: ``{"block": {"block_{layer}/**": ()}}``. Kinds may share entries, as a head and its
    block do. Ours.

    Args:
        params: any pytree of arrays: a nested dict (linen), a state (nnx), a list. Only paths, shapes and dtypes are looked at.
        kinds: kind -> leaf pattern -> axis, or axes, in the order of the gates' dimensions; negative ones count from the end.

    Returns: kind -> `Kind`, for `patch` and `TreePair`. Of two or more dimensions the first is the layer of tables.

    Raises: ValueError naming every pattern that matches no leaf (and the nearest leaves), axis that a leaf lacks, size that disagrees,
        leaf that one kind owns twice, and leaf that is not of floats.

    Example:
        >>> params = {f"block_{n}": {"up": jnp.ones((2, 5)), "down": jnp.ones((5, 2))} for n in range(3)}
        >>> made = partition(params, {"neuron": {"block_{layer}/up": 1, "block_{layer}/down": 0}, "block": {"block_{layer}/*": ()}})
        >>> made["neuron"].shape, made["neuron"].axes, made["block"].shape
        ((3, 5), ('layer', 'neuron'), (3,))
    """
    leaves = paths.leaves(params)
    made, faults = {}, [] if kinds else ["no kinds: wanted {kind: {leaf pattern: axis or axes}}"]
    for name, patterns in kinds.items():
        found, wrong = _matches(leaves, patterns)
        wrong = wrong or _disagreements(found)
        faults += [f"{name}: {fault}" for fault in wrong]
        if not wrong:
            made[name] = _kind(name, found)
    if faults:
        raise ValueError("partition:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return made


def misfits(params: Any, partition: Mapping[str, Kind]) -> list[str]:
    """What of a partition does not fit a tree, a sentence each.

    >>> misfits({"w": jnp.ones((2, 3))}, {"unit": Kind((4,), ("unit",), (Slot("w", (1,)), Slot("v", (0,))))})
    ['unit: w has shape (2, 3); wanted (4,) along axes (1,)', 'unit: the tree has no leaf v']
    """
    leaves, faults = paths.leaves(params), []
    for name, kind in partition.items():
        for slot in kind.slots:
            wanted = np.empty(kind.shape)[slot.select].shape
            shape = leaves[slot.leaf].shape if slot.leaf in leaves else None
            if shape is None:
                faults.append(f"{name}: the tree has no leaf {slot.leaf}")
            elif tuple(shape[axis] for axis in slot.axes if axis < len(shape)) != wanted:
                faults.append(f"{name}: {slot.leaf} has shape {shape}; wanted {wanted} along axes {slot.axes}")
    return faults


def _matches(leaves: Mapping[str, Any], patterns: Mapping[str, Any]) -> tuple[list[Match], list[str]]:
    """The leaves of one kind, and what is wrong with its patterns."""
    if not isinstance(patterns, Mapping) or not patterns:
        return [], [f"wanted {{leaf pattern: axis or axes}}, at least one; got {patterns!r}"]
    found, faults = [], []
    for pattern, asked in patterns.items():
        names = tuple(_NAMED.findall(pattern))
        axes = _axes(asked)
        if axes is None:
            faults.append(f"{pattern!r}: wanted an axis, a tuple of axes, or () for whole leaves; got {asked!r}")
        if not all(name.isidentifier() for name in names) or len(set(names)) < len(names):
            faults.append(f"{pattern!r}: wanted a name of its own in each pair of braces, such as {{layer}}")
            continue
        matched = [(leaf, match) for leaf in leaves if (match := re.fullmatch(_expression(pattern), leaf))]
        if not matched:
            faults.append(f"{pattern!r} matches no leaf; {_nearest(pattern, leaves)}")
        for leaf, match in matched:
            array = leaves[leaf]
            kept = array.dtype if hasattr(array, "dtype") else type(array).__name__
            if not hasattr(array, "dtype") or not jnp.issubdtype(kept, jnp.floating):
                faults.append(f"{leaf} is {kept}; only arrays of floats can be between two models, so leave it out")
            elif bad := [axis for axis in axes or () if not -array.ndim <= axis < array.ndim]:
                faults.append(f"{leaf} has shape {array.shape}, and no axis {', '.join(map(str, bad))}")
            elif axes is not None:
                own = tuple(axis % array.ndim for axis in axes)
                places = tuple(int(number) for number in match.groups())
                found.append(Match(pattern, leaf, names, places, own, tuple(array.shape[axis] for axis in own)))
                if len(set(own)) < len(own):
                    faults.append(f"{leaf}: axes {axes} name one of its axes twice")
    return found, faults


def _disagreements(found: Sequence[Match]) -> list[str]:
    """What of some matches cannot be one kind."""
    faults = []
    owners: dict[str, list[str]] = {}
    for match in found:
        owners.setdefault(match.leaf, []).append(match.pattern)
    faults += [f"{leaf} is owned twice, by {_listed(by)}; match it once" for leaf, by in owners.items() if len(by) > 1]
    if len({match.names for match in found}) > 1:
        by = _firsts(found, lambda match: match.names)
        faults.append("patterns differ in what they number: " + "; ".join(f"{m.pattern!r} {m.names}" for m in by))
    elif missing := _missing(found):
        faults.append(f"no leaf has {found[0].names} = {_listed(missing)}; a gate array has no holes")
    if len({match.sizes for match in found}) > 1:
        by = _firsts(found, lambda match: match.sizes)
        sizes = "; ".join(f"{m.leaf} has {m.sizes} along axes {m.axes}" for m in by)
        faults.append(f"sizes disagree: {sizes}. A kind has one; give leaves of another size a kind of their own")
    return faults


def _missing(found: Sequence[Match]) -> list[tuple[int, ...]]:
    """Places of the grid of numbers at which there is no leaf."""
    there = {match.places for match in found}
    return [
        place for place in itertools.product(*map(sorted, map(set, zip(*there, strict=True)))) if place not in there
    ]


def _kind(name: str, found: Sequence[Match]) -> Kind:
    names, sizes = found[0].names, found[0].sizes
    numbers = [sorted(set(along)) for along in zip(*(match.places for match in found), strict=True)]
    shape = (*map(len, numbers), *sizes) or (1,)

    def select(match: Match) -> tuple[Any, ...]:
        inside = tuple(along.index(place) for along, place in zip(numbers, match.places, strict=True))
        return inside or ((...,) if sizes else (0,))

    slots = tuple(Slot(match.leaf, match.axes, select(match)) for match in found)
    between = ["layer" if place == 0 else f"axis {place}" for place in range(len(names), len(shape) - 1)]
    own = (name,) if sizes else () if names else ("index",)
    return Kind(shape, (*names, *between, *own), slots)


def _axes(asked: Any) -> tuple[int, ...] | None:
    """An axis or some as a tuple; None where it is neither."""
    try:
        return tuple(operator.index(axis) for axis in (asked if isinstance(asked, Iterable) else (asked,)))
    except TypeError:
        return None


def _expression(pattern: str) -> str:
    """The regular expression of a pattern.

    >>> bool(re.fullmatch(_expression("**/block_{layer}/*/kernel"), "vit/encoder/block_12/query/kernel"))
    True
    >>> bool(re.fullmatch(_expression("block_{layer}/**"), "block_x/up")), bool(re.fullmatch(_expression("*/up"), "a/b/up"))
    (False, False)
    """
    pieces = []
    for part in pattern.split("/"):
        if part == "**":
            pieces.append(r"[^/]+(?:/[^/]+)*?")
        else:
            words = re.split(r"(\*|\{\w*\})", part)
            pieces.append(
                "".join("[^/]*" if w == "*" else r"(\d+)" if _NAMED.fullmatch(w) else re.escape(w) for w in words)
            )
    return "/".join(pieces)


def _nearest(pattern: str, leaves: Iterable[str]) -> str:
    """The leaves that a pattern may have meant."""
    plain: dict[str, str] = {}
    for leaf in leaves:
        plain.setdefault(re.sub(r"\d+", "0", leaf), leaf)
    near = difflib.get_close_matches(_NAMED.sub("0", pattern).replace("*", ""), plain, n=NEAREST, cutoff=0.3)
    return (
        f"nearest: {_listed([plain[each] for each in near])}" if near else f"there are {_listed(list(plain.values()))}"
    )


def _firsts(found: Sequence[Match], key: Any) -> list[Match]:
    """The first match of each sort."""
    sorts: dict[Any, Match] = {}
    for match in found:
        sorts.setdefault(key(match), match)
    return list(sorts.values())


def _listed(these: Sequence[Any], most: int = 8) -> str:
    """Some of them, and how many more."""
    shown = ", ".join(map(str, these[:most]))
    return shown if len(these) <= most else f"{shown} and {len(these) - most} more"
