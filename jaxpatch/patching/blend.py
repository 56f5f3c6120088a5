"""THE definition of a patch: ``theta(g) = (1 - g) * base + g * special``, broadcast over each component's slices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.patching import components
from jaxpatch.patching.components import Partition, Slot
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import compare, paths


@jax.custom_jvp
def blend(base: jax.Array, special: jax.Array, gate: jax.Array) -> jax.Array:
    """Slide an array from base to special.

    ``(1 - gate) * base + gate * special``, and exactly `base` at 0 and `special` at 1, to the sign of a zero; the slope in
    `gate` is ``special - base`` everywhere.

    Args: base, special: one shape and dtype. gate: broadcasts against them.

    Example:
        >>> float(blend(jnp.float32(2), jnp.float32(6), jnp.float32(0.25)))
        3.0
    """
    wide = np.promote_types(base.dtype, gate.dtype)
    mixed = (1 - gate).astype(wide) * base.astype(wide) + gate.astype(wide) * special.astype(wide)
    return jnp.where(gate == 0, base, jnp.where(gate == 1, special, mixed.astype(base.dtype)))


@blend.defjvp
def _blend_jvp(primals, tangents):
    base, special, gate = primals
    base_dot, special_dot, gate_dot = tangents
    weight = gate.astype(base.dtype)
    slope = gate_dot.astype(base.dtype) * (special - base) + (1 - weight) * base_dot + weight * special_dot
    return blend(base, special, gate), slope


def patch(base: Params, special: Params, gates: Gates, partition: Partition | None = None) -> Params:
    """The base with each component moved towards special as far as its gate says. Pure: nothing is changed in place.

    Where two kinds own one entry (a head and its layer), the entry moves by ``1 - (1 - g1)(1 - g2)``: as far as either.

    Args:
        base, special: nested dicts of arrays, or any other pytrees, of one structure.
        gates: kind -> array; kinds that are absent stay at base. `components.gates` makes them.
        partition: who owns what, such as `partition` makes; read off a decoder's shapes where it is not given.

    Returns: a new tree; leaves that no gate touches are base's own.

    Raises: KeyError for an unknown kind or leaf; ValueError for a gate of the wrong shape, trees that do not match, or no partition
        of what is no decoder.

    References: Sun et al., arXiv 2604.13694, Replace(base, special; Theta(c)); the continuous gate is ours.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair()
        >>> gates = components.gates(components.of_decoder(pair.base), {"neuron": [(1, 5)]})
        >>> patched = patch(pair.base, pair.special, gates)
        >>> same = patched["layers"]["mlp"]["up"]["kernel"] == pair.special["layers"]["mlp"]["up"]["kernel"]
        >>> bool(same[1, :, 5].all()), bool(same[1, :, 4].all())
        (True, False)
    """
    if faults := compare.structure_faults(base, special):
        raise ValueError("base and special do not match:\n" + "\n".join(f"  - {fault}" for fault in faults))
    a, b = paths.leaves(base), paths.leaves(special)
    if partition is None and "layers/attn/q/kernel" not in a:
        raise ValueError(
            "these are no decoder's parameters: give the partition too, which says who owns what of them; "
            "patch(base, special, gates, partition), with that of your TreePair or what jp.partition made."
        )
    partition = components.of_decoder(base) if partition is None else partition
    for leaf, gate in leaf_gates(gates, partition, {path: each.ndim for path, each in a.items()}).items():
        if a[leaf] is not b[leaf]:
            a[leaf] = blend(a[leaf], b[leaf], gate)
    return paths.with_leaves(base, a)


def leaf_gates(gates: Gates, partition: Partition, ndims: Mapping[str, int]) -> dict[str, jax.Array]:
    """Leaf -> one gate for every entry, in a shape that broadcasts against it; leaves that no gate touches are absent.

    Args: ndims: of all leaves, by path. Raises: as `patch` does.
    """
    owners = _owners(gates, partition)
    if unknown := [leaf for leaf in owners if leaf not in ndims]:
        raise KeyError(f"the partition names leaves that the tree lacks: {', '.join(sorted(unknown))}.")
    return {leaf: _leaf_gate(slots, ndims[leaf]) for leaf, slots in owners.items()}


def refuse_misfits(gates: Gates, partition: Partition) -> None:
    """Raises: KeyError for an unknown kind; ValueError for a gate of the wrong shape."""
    for name, gate in gates.items():
        kind = components.lookup(partition, name)
        if jnp.shape(gate) != kind.shape:
            raise ValueError(f"gates[{name!r}] has shape {jnp.shape(gate)}; this model's has {kind.shape}.")


def _owners(gates: Gates, partition: Partition) -> dict[str, list[tuple[Slot, jax.Array]]]:
    """Leaf -> the slots of the given gates in it."""
    refuse_misfits(gates, partition)
    owners: dict[str, list[tuple[Slot, jax.Array]]] = {}
    for name, gate in gates.items():
        for slot in partition[name].slots:
            owners.setdefault(slot.leaf, []).append((slot, _floating(gate)))
    return owners


def _floating(gate: Any) -> jax.Array:
    """Masks and counts are gates, too."""
    gate = jnp.asarray(gate)
    return gate if jnp.issubdtype(gate.dtype, jnp.floating) else gate.astype(jnp.float32)


def _leaf_gate(slots: list[tuple[Slot, jax.Array]], ndim: int) -> jax.Array:
    """One gate for every entry of a leaf, in a shape that broadcasts against it."""
    spread = [_spread(gate[slot.select], slot.axes, ndim) for slot, gate in slots]
    if len(spread) == 1:
        return spread[0]
    stays = jnp.prod(jnp.stack(jnp.broadcast_arrays(*[1 - gate for gate in spread])), axis=0)
    return 1 - stays


def _spread(gate: jax.Array, axes: tuple[int, ...], ndim: int) -> jax.Array:
    shape = [1] * ndim
    for axis, length in zip(axes, gate.shape, strict=True):
        shape[axis] = length
    return gate.transpose(sorted(range(gate.ndim), key=axes.__getitem__)).reshape(shape)
