"""Orders of components: the ranking itself, and the controls it must beat. Each control takes, at every size, as many components
of each kind as the ranking does."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

ALIKE = 10
"""Components whose changes count as alike in size: neighbours in their order."""


RANDOM_ALIKE, RANDOM_IN_LAYERS, RANDOM = "random, same changes", "random, same layers", "random"
CHANGE = "largest change"
NAMES = (CHANGE, RANDOM_ALIKE, RANDOM_IN_LAYERS, RANDOM)
"""Of the controls that are always there."""


class Order(NamedTuple):
    """Components, most important first. kinds: which kind each is, [n] numbers into `names`; places: flat index in its kind, [n]."""

    names: tuple[str, ...]
    kinds: np.ndarray
    places: np.ndarray


def ranked(values: Mapping[str, np.ndarray], reach: Mapping[str, np.ndarray]) -> Order:
    """All components that can matter, by falling score, kinds together.

    >>> order = ranked({"a": np.array([1.0, 3.0]), "b": np.array([2.0])}, {"a": np.ones(2, bool), "b": np.ones(1, bool)})
    >>> order.kinds.tolist(), order.places.tolist()
    ([0, 1, 0], [1, 0, 0])
    """
    names = tuple(values)
    places = [np.flatnonzero(reach[name]) for name in names]
    kinds = np.repeat(np.arange(len(names)), [len(p) for p in places])
    scores = np.concatenate([values[name].ravel()[p] for name, p in zip(names, places, strict=True)])
    order = np.argsort(-scores, kind="stable")
    return Order(names, kinds[order], np.concatenate(places)[order])


def matched(order: Order, values: Mapping[str, np.ndarray]) -> Order:
    """Other components in the places of an order, kind for kind, by falling `values`."""
    places = np.empty_like(order.places)
    for number, name in enumerate(order.names):
        mine = order.kinds == number
        pool = np.sort(order.places[mine])
        places[mine] = pool[np.argsort(-values[name].ravel()[pool], kind="stable")]
    return order._replace(places=places)


def shuffled(order: Order, seed: int) -> Order:
    """A random order with the kinds in the same places."""
    draw = np.random.default_rng(seed)
    shapes = {name: order.places[order.kinds == number].max(initial=-1) + 1 for number, name in enumerate(order.names)}
    return matched(order, {name: draw.random(size) for name, size in shapes.items()})


def shuffled_in_layers(order: Order, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Order:
    """A random order in which every component gives way to one of its own kind and layer: what depth alone explains.

    Args: shapes: of each kind, layers first where it has them.
    """
    draw = np.random.default_rng(seed)
    places = np.empty_like(order.places)
    for number, name in enumerate(order.names):
        mine = np.flatnonzero(order.kinds == number)
        width = int(np.prod(shapes[name][1:], dtype=int))
        layers = order.places[mine] // width
        for layer in np.unique(layers):
            here = mine[layers == layer]
            places[here] = draw.permutation(order.places[here])
    return order._replace(places=places)


def shuffled_among_alike(order: Order, changes: Mapping[str, np.ndarray], seed: int) -> Order:
    """A random order in which every component gives way to one of its own kind that special changed about as much: what the size of a
    change alone explains.

    Components of a kind are put in the order of their changes, cut into runs of `ALIKE` or some more, and shuffled within each run; of
    fewer than twice as many any gives way to any.
    """
    draw = np.random.default_rng(seed)
    places = np.empty_like(order.places)
    for number, name in enumerate(order.names):
        mine = np.flatnonzero(order.kinds == number)
        by_change = mine[np.argsort(changes[name].ravel()[order.places[mine]], kind="stable")]
        for run in np.array_split(by_change, max(1, len(mine) // ALIKE)):
            places[run] = draw.permutation(order.places[run])
    return order._replace(places=places)


def of_equal_size(
    order: Order,
    shapes: Mapping[str, tuple[int, ...]],
    changes: Mapping[str, np.ndarray],
    others: Mapping[str, Mapping[str, np.ndarray]],
    seeds: Iterable[int],
) -> dict[str, list[Order]]:
    """What a ranking must beat, by name: other rankings, the largest changes of weights, and random orders, one for each seed, drawn
    from those that changed as much, from each layer, or from all.

    Args: changes: kind -> norm of what special's parameters changed. others: name -> values by kind, by names that none of `NAMES` is.
    """
    seeds, in_layers = tuple(seeds), {}
    if all(np.prod(shape[1:]) > 1 for shape in shapes.values()):  # otherwise there is nothing else in a layer
        in_layers = {RANDOM_IN_LAYERS: [shuffled_in_layers(order, shapes, seed) for seed in seeds]}
    return {
        **{name: [matched(order, values)] for name, values in others.items()},
        CHANGE: [matched(order, changes)],
        RANDOM_ALIKE: [shuffled_among_alike(order, changes, seed) for seed in seeds],
        **in_layers,
        RANDOM: [shuffled(order, seed) for seed in seeds],
    }


def some(order: Order, which: np.ndarray) -> Order:
    """Some of an order's components. which: bool [n], or their numbers in the sequence that is wanted.

    >>> some(ranked({"a": np.array([1.0, 3.0, 2.0])}, {"a": np.ones(3, bool)}), np.array([2, 0])).places.tolist()
    [0, 1]
    """
    return order._replace(kinds=order.kinds[which], places=order.places[which])


def counts(order: Order, count: int) -> dict[str, int]:
    """How many of each kind are among the first `count`, kinds without any left out.

    >>> counts(ranked({"a": np.array([1.0, 3.0])}, {"a": np.ones(2, bool)}), 1)
    {'a': 1}
    """
    each = np.bincount(order.kinds[:count], minlength=len(order.names))
    return {name: int(number) for name, number in zip(order.names, each, strict=True) if number}


def mask(order: Order, count: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Gates at 1 for the first `count` components.

    >>> order = ranked({"a": np.array([1.0, 3.0])}, {"a": np.ones(2, bool)})
    >>> mask(order, 1, {"a": (2,)})["a"].tolist()
    [0.0, 1.0]
    """
    gates = {name: np.zeros(shapes[name], np.float32) for name in order.names}
    for number, name in enumerate(order.names):
        gates[name].flat[order.places[:count][order.kinds[:count] == number]] = 1
    return gates
