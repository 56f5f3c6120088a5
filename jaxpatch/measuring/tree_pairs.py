"""Two models of your own: any parameter trees, a function that reads them, and their instrument. By the definition alone.

There is no engine for a model of which nothing is known: a patch is surgery on the tree, and many candidates are a `vmap` over it. Of a
piece of candidates only those leaves are there once for each that the piece can change, so what the model does before them is done once
for all. How many fit is read off the compiled programs, which say what memory they take.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import memory, sweep
from jaxpatch.measuring.instrument import MODES, Instrument, in_groups
from jaxpatch.measuring.outcomes import Outcome
from jaxpatch.measuring.slopes import Cheap
from jaxpatch.models import layers
from jaxpatch.patching import blend, components, patterns
from jaxpatch.patching.components import Kind
from jaxpatch.shapes import Gates
from jaxpatch.trees import compare, paths

Read = Callable[[Any, Any], jax.Array]
"""(params, inputs) -> one number for each input, [B]. Pure, and each input by itself."""
Kinds = tuple[tuple[str, Kind], ...]
"""A partition that jit can take as static."""
FILL = 2**25
"""Bytes of arrays that fill a CPU with candidates; more of them leave its caches and run slower."""
LARGEST_MIXING = 0.01
"""Of the largest gap: how much an input may read differently alone and among others."""


@dataclass(frozen=True)
class TreePair:
    """A base model of your own, and the same architecture after it was specialised.

    Attributes:
        base, special: parameters, any pytrees of arrays of one structure.
        partition: who owns what, as `partition` makes it.

    Raises: ValueError naming every leaf in which the trees differ in structure, shape or dtype, or that JAX cannot hold as it is, or
        that does not fit the partition.

    Example:
        >>> base, special = ({"up": jnp.full((2, 3), x), "down": jnp.ones((3, 1))} for x in (1.0, 2.0))
        >>> pair = TreePair(base, special, patterns.partition(base, {"unit": {"up": 1, "down": 0}}))
        >>> pair.partition["unit"].shape
        (3,)
    """

    base: Any = field(repr=False)
    special: Any = field(repr=False)
    partition: components.Partition = field(repr=False)

    def __post_init__(self):
        faults = [fault for name in ("base", "special") for fault in _leaf_faults(name, getattr(self, name))]
        faults = faults or compare.structure_faults(self.base, self.special)
        faults = faults or patterns.misfits(self.base, self.partition)
        if faults:
            raise ValueError("tree pair:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _leaf_faults(name: str, tree: Any) -> Iterator[str]:
    for path, leaf in paths.leaves(tree).items():
        if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
            yield f"{path} of {name} is a {type(leaf).__name__}; wanted an array"
        elif isinstance(leaf, np.ndarray) and (narrow := jax.dtypes.canonicalize_dtype(leaf.dtype)) != leaf.dtype:
            yield f"{path} of {name} is {leaf.dtype}, of which JAX makes {narrow}; cast both, or set jax_enable_x64"


class Models(NamedTuple):
    """What the programs take as arguments. inputs: a pytree of arrays, [B, ...] each."""

    host: Any
    donor: Any
    inputs: Any


def several(wanted: Any) -> tuple[Read, ...]:
    """One read-out or some, as a tuple. Raises ValueError where there is none, or something else."""
    asked = tuple(wanted) if isinstance(wanted, Iterable) else (wanted,)
    if not asked or not all(map(callable, asked)):
        got = ", ".join(type(each).__name__ for each in asked) or "none"
        raise ValueError(
            f"read-outs: a pair of trees is read by a function (params, inputs) -> [B], or several; got {got}."
        )
    return asked


def faults(pair: TreePair, inputs: Any, reads: Sequence[Read]) -> list[str]:
    """What can be known to be wrong with inputs and read-outs before any of them runs, a sentence each."""
    leaves = paths.leaves(inputs)
    lengths = {path or "inputs": np.shape(leaf)[:1] for path, leaf in leaves.items()}
    if len(set(lengths.values())) != 1 or set(lengths.values()) & {(), (0,)}:
        shown = ", ".join(f"{path or 'inputs'} {np.shape(leaf)}" for path, leaf in leaves.items()) or "none"
        return [f"inputs: wanted arrays whose first axes count the same inputs, at least one; got {shown}."]
    batch = num_inputs(inputs)
    wrong = []
    for number, read in enumerate(reads):
        made = jax.eval_shape(read, pair.base, inputs)
        if getattr(made, "shape", None) != (batch,) or not jnp.issubdtype(made.dtype, jnp.floating):
            got = f"{made.dtype} {made.shape}" if hasattr(made, "shape") else type(made).__name__
            wrong.append(
                f"read-out {number}: wanted floats ({batch},), one for each input, such as states @ direction or "
                f"logits[:, 3]; got {got}."
            )
    return wrong


def num_inputs(inputs: Any) -> int:
    """B."""
    return jax.tree.leaves(inputs)[0].shape[0]


def instrument_of(
    pair: TreePair, inputs: Any, wanted: Read | Sequence[Read], *, mode: str = "restoration", budget: int | None = None
) -> Instrument:
    """The instrument of two parameter trees.

    Args:
        inputs: a pytree of arrays whose first axes count the inputs, B of them.
        wanted: what reads a model, (params, inputs) -> [B], or several such functions.
        mode, budget: as for `instrument.of_pair`.

    There is no local form of a component, so both linearisations are the gates' slopes.

    Raises: ValueError for inputs or read-outs that do not fit together, that give no numbers, or that do not treat each input by
        itself; MemoryError where a run of one input does not fit in the budget.
    """
    reads = several(wanted)
    if wrong := faults(pair, inputs, reads):
        raise ValueError("\n".join(wrong))
    base, special, inputs = jax.tree.map(jnp.asarray, (pair.base, pair.special, inputs))
    budget = memory.default_budget(base) if budget is None else budget
    partition, batch = pair.partition, num_inputs(inputs)
    total, zeros = batch * len(reads), _zeros(partition)
    define = _effect_of(reads, tuple(partition.items()))
    unread = jnp.zeros(total, jax.eval_shape(functools.partial(_reads, reads), base, inputs).dtype)

    def of_side(side: Any) -> jax.tree_util.Partial:
        return jax.tree_util.Partial(define, Models(side, side, inputs), jnp.bool(False), unread, unread)

    at_once, _ = _fitting(lambda size: _bytes(_read, of_side(base), zeros, _first(size)), total, budget, "a run")
    ends = [in_groups(functools.partial(_read, of_side(side), zeros), total, at_once) for side in (base, special)]
    firsts = (np.full(at_once, number * batch, np.int32) for number in range(len(reads)))
    alone = np.stack([np.asarray(_read(of_side(base), zeros, first)) for first in firsts])
    _refuse_bad_reads(ends[0].reshape(-1, batch), ends[1].reshape(-1, batch), alone)
    models = Models(*((base, special) if mode == "restoration" else (special, base)), inputs)
    is_knockout = jnp.bool(mode == "knockout")
    effect_fn = jax.tree_util.Partial(define, models, is_knockout, jnp.asarray(ends[0]), jnp.asarray(ends[1]))
    host, sign = (ends[1], -1) if mode == "knockout" else (ends[0], 1)

    @functools.cache
    def room_of(kind: str) -> tuple[int, int]:
        """Inputs, and candidates, that may run together."""
        first = np.zeros((1, len(partition[kind].shape)), np.int32)
        ((part, _, inside),) = _by_leaves(partition[kind], first)
        rows, each = _fitting(
            lambda size: _bytes(_piece, reads, part, models, inside, _first(size)), batch, budget, "a patched run"
        )
        return rows, _room(each, base, budget)

    def exact(kind: str, indices: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        found, done = np.zeros((len(indices), total), host.dtype), 0
        rows, room = room_of(kind)
        for part, which, inside in _by_leaves(partition[kind], indices):
            size = memory.even(math.prod(part.shape), room)
            for start in range(0, len(which), size):
                some = np.minimum(np.arange(start, start + size), len(which) - 1)
                run = functools.partial(_piece, reads, part, models, inside[some])
                found[which[some]] = in_groups(run, batch, rows).reshape(size, total)
                done += len(set(some))
                progress(done, len(indices))
        return sign * (found - host)

    def slopes(at: Gates, progress: sweep.Progress) -> dict[str, np.ndarray]:
        at = {kind: jnp.asarray(gate) for kind, gate in at.items()}
        each = _bytes(_slopes, effect_fn, at, _first(1))
        if each > budget:
            raise _too_large("a backward pass", each, budget)
        size, parts = memory.even(total, _room(each, base, budget)), []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size, dtype=np.int32), total - 1)
            parts.append(jax.tree.map(np.asarray, _slopes(effect_fn, at, rows)))
            progress(min(start + size, total), total)
        return {kind: np.concatenate([part[kind] for part in parts])[:total] for kind in at}

    def cheap(kinds: tuple[str, ...], progress: sweep.Progress) -> dict[str, Cheap]:
        return {kind: Cheap(slope, slope) for kind, slope in slopes({k: zeros[k] for k in kinds}, progress).items()}

    return Instrument(
        partition=partition,
        base=ends[0],
        special=ends[1],
        effect=effect_fn,
        exact=exact,
        cheap=cheap,
        slopes=slopes,
        seen=tuple({name: np.ones(kind.shape, bool) for name, kind in partition.items()} for _ in reads),
        mode=mode,
        at_once=at_once,
    )


def outcome_of(pair: TreePair, inputs: Any, wanted: Read) -> Callable[[Gates, str], Outcome]:
    """A function (gates, mode) -> outcome, as `outcomes.of_pair` makes it; there is no next token, so `kl` is NaN."""
    tools = {mode: instrument_of(pair, inputs, wanted, mode=mode) for mode in MODES}

    def outcome_fn(gates: Gates, mode: str) -> Outcome:
        tool = tools[mode]
        read = tool.read(gates) if mode == "restoration" else tool.base + tool.special - tool.read(gates)
        return Outcome(read, np.full(len(read), np.nan))

    return outcome_fn


def at_once_of(pair: TreePair, program: Any, args: Callable[[int], tuple], total: int, budget: int | None) -> int:
    """How many of all inputs a compiled program may take together. args: how many -> its arguments for so many.

    Raises: MemoryError where one input does not fit in the budget; half of what is free where None.
    """
    budget = memory.default_budget(jax.tree.map(jnp.asarray, pair.base)) if budget is None else budget
    return _fitting(lambda size: _bytes(program, *args(size)), total, budget, "a backward pass")[0]


def _zeros(partition: components.Partition) -> dict[str, jax.Array]:
    return {name: jnp.zeros(kind.shape) for name, kind in partition.items()}


def _reads(reads: tuple[Read, ...], params: Any, inputs: Any) -> jax.Array:
    """F of one model: [R, B], float32 or wider."""
    with jax.default_matmul_precision(layers.precision()):
        return jnp.stack([layers.at_least_float32(read(params, inputs)) for read in reads])


def _effect(
    reads: tuple[Read, ...],
    kinds: Kinds,
    models: Models,
    is_knockout: jax.Array,
    base: jax.Array,
    special: jax.Array,
    gates: Gates,
    rows: jax.Array,
) -> jax.Array:
    """The definition. Kinds without a gate stay, and have one all the same: so one program serves all sets of kinds."""
    batch, rows = num_inputs(models.inputs), jnp.asarray(rows)
    patched = blend.patch(models.host, models.donor, {**_zeros(dict(kinds)), **gates}, dict(kinds))
    found = _reads(reads, patched, jax.tree.map(lambda leaf: leaf[rows % batch], models.inputs))
    read = found[rows // batch, jnp.arange(rows.shape[0])]
    return jnp.where(is_knockout, base[rows] + special[rows] - read, read)


@functools.cache
def _effect_of(reads: tuple[Read, ...], kinds: Kinds) -> Callable[..., jax.Array]:
    """One function for the same read-outs and kinds, for jit to recognise."""
    return functools.partial(_effect, reads, kinds)


@jax.jit
def _read(effect_fn: jax.tree_util.Partial, gates: Gates, rows: jax.Array) -> jax.Array:
    return effect_fn(gates, rows)


@jax.jit
def _slopes(effect_fn: jax.tree_util.Partial, at: Gates, rows: jax.Array) -> Gates:
    """The gradient of each of some readings in the gates: [x, *shape]."""
    return jax.vmap(lambda row: jax.grad(lambda gates: effect_fn(gates, row[None])[0])(at))(rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _piece(reads: tuple[Read, ...], part: Kind, models: Models, indices: jax.Array, rows: jax.Array) -> jax.Array:
    """F with each of some components patched, for some inputs: [C, R, b]."""
    inputs = jax.tree.map(lambda leaf: leaf[rows], models.inputs)

    def one(index: jax.Array) -> jax.Array:
        gate = jnp.zeros(part.shape).at[tuple(index)].set(1)
        return _reads(reads, blend.patch(models.host, models.donor, {"one": gate}, {"one": part}), inputs)

    return jax.vmap(one)(indices)


def _by_leaves(kind: Kind, indices: np.ndarray) -> Iterator[tuple[Kind, np.ndarray, np.ndarray]]:
    """Components that own slices of the same leaves, together: those leaves as a kind, which components, and their places in it."""
    numbered = min(_numbered(slot.select) for slot in kind.slots)
    for place in np.unique(indices[:, :numbered], axis=0):
        slots = tuple(
            slot._replace(select=slot.select[numbered:] or (...,))
            for slot in kind.slots
            if slot.select[:numbered] == tuple(place)
        )
        which = np.flatnonzero((indices[:, :numbered] == place).all(1))
        yield Kind(kind.shape[numbered:], kind.axes[numbered:], slots), which, indices[which, numbered:]


def _numbered(select: Sequence[Any]) -> int:
    """Dimensions that a slot selects by number, at its beginning.

    >>> _numbered((3, ...)), _numbered((..., 1))
    (1, 0)
    """
    return next((place for place, part in enumerate(select) if part is ...), len(select))


def _refuse_bad_reads(base: np.ndarray, special: np.ndarray, alone: np.ndarray) -> None:
    """base, special: [R, B]. alone: of base, the first reading of each read-out, among copies of its input, [R, copies]."""
    wrong = []
    for name, end in (("base", base), ("special", special)):
        for number in range(len(end)):
            if bad := np.flatnonzero(~np.isfinite(end[number])).tolist():
                wrong.append(f"read-out {number} of {name} is no finite number for inputs {bad}.")
    offs, rounding = np.abs(alone - base[:, :1]).max(axis=1), 1e-5 * np.abs(base).max(axis=1)
    most = np.maximum(LARGEST_MIXING * np.abs(special - base).max(axis=1), rounding)
    for number in range(len(base)) if not wrong else ():
        if not offs[number] <= most[number]:
            wrong.append(
                f"read-out {number}: input 0 reads differently among copies of itself and among the others, by {offs[number]:.3g}. "
                "Each must be read by itself: no statistics over the batch (running averages in BatchNorm), no dropout."
            )
    if wrong:
        raise ValueError("\n".join(wrong))


def _first(number: int) -> np.ndarray:
    return np.zeros(number, np.int32)


def _bytes(program: Any, *args: Any) -> int:
    """What XLA says that a compiled program holds beside its arguments."""
    analysis = program.lower(*args).compile().memory_analysis()
    return analysis.temp_size_in_bytes + analysis.output_size_in_bytes


def _fitting(bytes_of: Callable[[int], int], total: int, budget: int, what: str) -> tuple[int, int]:
    """How many inputs may run together, all, or half of them, or half of those; and how many bytes they take."""
    size = total
    while (needed := bytes_of(size)) > budget:
        if size == 1:
            raise _too_large(what, needed, budget)
        size = -(-size // 2)
    return size, needed


def _room(each: int, params: Any, budget: int) -> int:
    """How many of something may be there at once."""
    is_cpu = next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu"
    return max(1, (min(budget, FILL) if is_cpu else budget) // max(1, each))


def _too_large(what: str, needed: int, budget: int) -> MemoryError:
    return MemoryError(
        f"{what} on one input needs {needed:,} bytes beside the models; the budget is {budget:,}. Give more memory (memory=), or use "
        "smaller inputs."
    )
