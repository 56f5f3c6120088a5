"""Who owns which slices: kinds of component, and the partition of a decoder's parameters into them.

A kind is a gate array and a list of slots; a slot says along which axes of a leaf the gate runs. Heads and neurons are the
paper's (Sun et al., arXiv 2604.13694); the coarser kinds and `kv` are ours. A bias goes with the slice that owns it alone;
output biases and norms belong to no head and no neuron. Where an MLP is a choice of experts, a neuron is one of an expert's, and
a router belongs to no expert.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths

MATRICES = ("q", "k", "v", "o", "router", "gate", "up", "down")
NORMS = {
    "attention norm": "attn_norm",
    "mlp norm": "mlp_norm",
    "attention post-norm": "attn_post_norm",
    "mlp post-norm": "mlp_post_norm",
    "query norm": "attn/q_norm",
    "key norm": "attn/k_norm",
}
"""Name -> where its parameters are."""
SINGLE = ("final_norm", "embed", "positions", "unembed")
KINDS = ("head", "kv", "neuron", "expert", "router", "attention", "mlp", "layer", "matrix", "norm", *SINGLE)


class Slot(NamedTuple):
    """A piece of one leaf. The dimensions of ``gate[select]`` run along `axes` of the leaf, the other axes share them."""

    leaf: str
    axes: tuple[int, ...]
    select: tuple[int | EllipsisType, ...] = (...,)


class Kind(NamedTuple):
    """Components of one sort.

    shape: of the gate array. axes: what its dimensions are called. slots: what they own. members: of each layer, where they have names.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    slots: tuple[Slot, ...]
    members: tuple[str, ...] = ()


Partition = Mapping[str, Kind]


def of_decoder(params: Params) -> dict[str, Kind]:
    """The partition of our decoder's tree, read off its shapes.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair()
        >>> {name: kind.shape for name, kind in of_decoder(pair.base).items()}["head"]
        (3, 4)
    """
    flat = paths.flatten(params)
    shape = {path: leaf.shape for path, leaf in flat.items()}
    num_layers, _, num_heads, _ = shape["layers/attn/q/kernel"]
    num_groups = shape["layers/attn/k/kernel"][2]
    *experts, _, num_neurons = shape["layers/mlp/up/kernel"][1:]
    inside, last = (
        tuple(range(len(experts) + 1)),
        len(experts) + 2,
    )  # axes of a layer's experts; of a neuron in what it reads

    def slots(axes_of: Mapping[str, tuple[int, ...]]) -> tuple[Slot, ...]:
        return tuple(Slot(f"layers/{leaf}", axes) for leaf, axes in axes_of.items() if f"layers/{leaf}" in flat)

    def whole_layers(*folders: str) -> tuple[Slot, ...]:
        return tuple(Slot(path, (0,)) for path in flat if path.startswith(tuple(f"layers/{f}" for f in folders)))

    def named(folders: Mapping[str, str], axis: str) -> Kind:
        """One component a layer and name: all that lies in its folder."""
        there = {n: f for n, f in folders.items() if any(path.startswith(f"layers/{f}/") for path in flat)}
        slots = tuple(
            Slot(path, (0,), (..., number))
            for number, folder in enumerate(there.values())
            for path in flat
            if path.startswith(f"layers/{folder}/")
        )
        return Kind((num_layers, len(there)), ("layer", axis), slots, tuple(there))

    matrices = {name: f"attn/{name}" if name in "qkvo" else f"mlp/{name}" for name in MATRICES}
    partition = {
        "head": Kind(
            (num_layers, num_heads),
            ("layer", "head"),
            slots({"attn/q/kernel": (0, 2), "attn/q/bias": (0, 1), "attn/o/kernel": (0, 1)}),
        ),
        "kv": Kind(
            (num_layers, num_groups),
            ("layer", "group"),
            slots({"attn/k/kernel": (0, 2), "attn/k/bias": (0, 1), "attn/v/kernel": (0, 2), "attn/v/bias": (0, 1)}),
        ),
        "neuron": Kind(
            (num_layers, *experts, num_neurons),
            ("layer", *["expert"] * len(experts), "neuron"),
            slots(
                {
                    "mlp/gate/kernel": (*inside, last),
                    "mlp/gate/bias": (0, 1),
                    "mlp/up/kernel": (*inside, last),
                    "mlp/up/bias": (0, 1),
                    "mlp/down/kernel": (*inside, last - 1),
                }
            ),
        ),
        "attention": Kind((num_layers,), ("layer",), whole_layers("attn/")),
        "mlp": Kind((num_layers,), ("layer",), whole_layers("mlp/")),
        "layer": Kind((num_layers,), ("layer",), whole_layers("")),
        "matrix": named(matrices, "matrix"),
        "norm": named(NORMS, "norm"),
    }
    if experts:
        owned = slots({f"mlp/{name}/kernel": inside for name in ("gate", "up", "down")})
        partition["expert"] = Kind((num_layers, *experts), ("layer", "expert"), owned)
        partition["router"] = Kind((num_layers,), ("layer",), whole_layers("mlp/router/"))
    for name in SINGLE:
        if whole := tuple(Slot(path, (), (0,)) for path in flat if path.startswith(f"{name}/")):
            partition[name] = Kind((1,), ("index",), whole)
    return partition


def of_block(layer: Params) -> dict[str, Kind]:
    """The partition of one block's parameters: the kinds that live inside blocks, without their layer axis."""
    inside = {}
    for name, kind in of_decoder({"layers": jax.tree.map(lambda leaf: leaf[None], layer)}).items():
        if kind.axes[0] == "layer":
            slots = tuple(
                Slot(slot.leaf.removeprefix("layers/"), tuple(a - 1 for a in slot.axes[1:]), slot.select[1:] or (...,))
                for slot in kind.slots
            )
            inside[name] = Kind(kind.shape[1:], kind.axes[1:], slots, kind.members)
    return inside


def lookup(partition: Partition, kind: str) -> Kind:
    """A kind by name. Raises KeyError that says what there is instead."""
    if kind in partition:
        return partition[kind]
    is_decoder = {"head", "kv", "embed"} <= partition.keys()
    if is_decoder and kind == "unembed":
        raise KeyError("this model ties its unembedding to its embedding: there is no 'unembed' apart from 'embed'.")
    if is_decoder and kind == "positions":
        raise KeyError("this model has no table of positions: there is no 'positions'.")
    if is_decoder and kind in ("expert", "router"):
        raise KeyError(f"this model's MLPs are not made of experts: there is no {kind!r}; ask for 'neuron' or 'mlp'.")
    if is_decoder and is_per_head_key(kind):
        raise KeyError(_no_keys_per_head(partition, f"component {kind!r}"))
    raise KeyError(f"unknown component {kind!r}; {paths.did_you_mean(kind, partition)}")


def refuse_unknown(partition: Partition, kinds: Sequence[str]) -> None:
    """Raises KeyError for all kinds that the partition lacks."""
    faults = []
    for kind in kinds:
        try:
            lookup(partition, kind)
        except KeyError as error:
            faults.append(error.args[0])
    if faults:
        raise KeyError(" ".join(faults))


def repeated(kinds: Sequence[str]) -> list[str]:
    """Kinds that are named more than once.

    >>> repeated(("head", "mlp", "head"))
    ['head']
    """
    return sorted({kind for kind in kinds if list(kinds).count(kind) > 1})


def is_per_head_key(kind: str) -> bool:
    """Whether a name asks for keys or values of single heads, as "head_k" or "qkv" would.

    >>> is_per_head_key("head_v"), is_per_head_key("kv")
    (True, False)
    """
    return any(part in ("k", "v", "key", "value", "qkv") for part in kind.replace("-", "_").split("_"))


def _no_keys_per_head(partition: Partition, what: str) -> str:
    groups, heads = partition["kv"].shape[1], partition["head"].shape[1]
    return (
        f"{what}: keys and values belong to a group of query heads, not to one. This model has {groups} groups for "
        f"{heads} query heads a layer; ask for 'kv' with (layer, group), group 0 to {groups - 1}."
    )


def gates(partition: Partition, chosen: Mapping[str, Sequence[Any] | np.ndarray | str], value: float = 1.0) -> Gates:
    """Gates that are `value` at the chosen components and 0 elsewhere.

    Args:
        partition: the kinds there are.
        chosen: kind -> indices, (layer, index) or layer, in a list or an integer array; or "all"; or an array of floats or
            bools of the kind's shape, which are the gates.

    Raises: KeyError for unknown kinds, IndexError for components that do not exist, ValueError for anything else, or more than one
        of these; every fault is named.

    Example:
        >>> from jaxpatch import testing
        >>> made = gates(of_decoder(testing.tiny_pair().base), {"head": [(2, 1)], "mlp": "all"})
        >>> made["head"].sum().item(), made["mlp"].tolist()
        (1.0, [1.0, 1.0, 1.0])
    """
    made, faults = {}, []
    for name, wanted in chosen.items():
        try:
            made[name] = jnp.asarray(_gate(partition, name, wanted, value), jnp.float32)
        except (KeyError, ValueError, IndexError) as fault:
            faults.append(fault)
    if faults:
        sorts = {type(fault) for fault in faults}
        error = sorts.pop() if len(sorts) == 1 else ValueError
        raise error("; ".join(fault.args[0].rstrip(".") for fault in faults))
    return made


def _gate(partition: Partition, name: str, wanted: Any, value: float) -> np.ndarray | jax.Array:
    """The gates of one kind. Raises as `gates` does."""
    kind = lookup(partition, name)
    if isinstance(wanted, str) and wanted == "all":
        return np.full(kind.shape, value)
    dense = wanted if isinstance(wanted, np.ndarray | jax.Array) else None
    if dense is not None and np.issubdtype(dense.dtype, np.integer):
        dense = None
    if isinstance(wanted, str) or not np.iterable(wanted) or (dense is not None and dense.shape != kind.shape):
        got = repr(wanted) if dense is None else f"an array {dense.shape}"
        indices = f"[({', '.join(kind.axes)}), ...]" if len(kind.axes) > 1 else f"[{', '.join(kind.axes)}, ...]"
        raise ValueError(f"gates for {name!r}: wanted {indices}, an array {kind.shape} or 'all'; got {got}.")
    if dense is not None:
        return dense
    array, faults = np.zeros(kind.shape), []
    for index in wanted:
        place = np.atleast_1d(index)
        is_place = np.issubdtype(place.dtype, np.integer) and place.shape == (len(kind.shape),)
        if is_place and (place >= 0).all() and (place < kind.shape).all():
            array[tuple(place)] = value
        elif is_place and name == "kv" and place[1] >= kind.shape[1]:
            faults.append(_no_keys_per_head(partition, f"kv {tuple(place.tolist())}"))
        else:
            shown = tuple(place.tolist()) if place.size > 1 else index
            faults.append(f"no {name} {shown}: this model has ({', '.join(kind.axes)}) in {kind.shape}")
    if faults:
        raise IndexError("; ".join(faults))
    return array


def disjoint(partition: Partition, kinds: Sequence[str]) -> tuple[str, ...]:
    """Of some kinds, those that can be ranked together because no parameter is owned twice: finer ones before coarser ones.

    Example:
        >>> from jaxpatch import testing
        >>> disjoint(of_decoder(testing.tiny_pair().base), ("layer", "head", "neuron", "embed"))
        ('head', 'neuron', 'embed')
    """
    taken: set[str] = set()
    chosen = set()
    for name in sorted(kinds, key=lambda name: -math.prod(partition[name].shape)):
        leaves = {slot.leaf for slot in partition[name].slots}
        if not leaves & taken:
            chosen.add(name)
            taken |= leaves
    return tuple(name for name in kinds if name in chosen)


def delta_norms(base: Params, special: Params, kind: Kind) -> jax.Array:
    """Frobenius norm of what special changed in each component, ``|W_special - W_base|``. Returns the kind's shape."""
    a, b = paths.leaves(base), paths.leaves(special)
    return _norms(kind, lambda leaf: b[leaf].astype(jnp.float32) - a[leaf].astype(jnp.float32))


def norms(params: Params, kind: Kind) -> jax.Array:
    """Frobenius norm of each component's weights. Returns the kind's shape.

    >>> norms({"w": jnp.array([[3.0, 0.0], [4.0, 1.0]])}, Kind((2,), ("column",), (Slot("w", (1,)),))).tolist()
    [5.0, 1.0]
    """
    flat = paths.leaves(params)
    return _norms(kind, lambda leaf: flat[leaf].astype(jnp.float32))


def sums(kind: Kind, of: Callable[[str], jax.Array]) -> jax.Array:
    """What each component's parameters add up to. of: leaf's path -> a number for each of its parameters. Returns the kind's shape.

    >>> sums(Kind((2,), ("column",), (Slot("w", (1,)),)), lambda leaf: jnp.array([[3.0, 0.0], [4.0, 1.0]])).tolist()
    [7.0, 1.0]
    """
    total = jnp.zeros(kind.shape, jnp.float32)
    for slot in kind.slots:
        numbers = of(slot.leaf)
        gate_first = jnp.moveaxis(numbers, slot.axes, range(len(slot.axes)))
        total = total.at[slot.select].add(gate_first.sum(tuple(range(len(slot.axes), numbers.ndim))))
    return total


def sizes(kind: Kind, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """How many parameters each component has. shapes: of leaves, by path. Returns the kind's shape.

    >>> sizes(Kind((2,), ("column",), (Slot("w", (1,)),)), {"w": (3, 2)}).tolist()
    [3, 3]
    """
    total = np.zeros(kind.shape, np.int64)
    for slot in kind.slots:
        shape = shapes[slot.leaf]
        total[slot.select] += math.prod(length for axis, length in enumerate(shape) if axis not in slot.axes)
    return total


def _norms(kind: Kind, of: Callable[[str], jax.Array]) -> jax.Array:
    return jnp.sqrt(sums(kind, lambda leaf: of(leaf) ** 2))
