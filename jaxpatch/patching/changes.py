"""How much special changed, component by component; and how two specials' changes of one base lie to each other."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.patching import components
from jaxpatch.patching.components import Kind, Partition
from jaxpatch.shapes import Params
from jaxpatch.trees import paths


class Change(NamedTuple):
    """What special changed in the components of one kind.

    relative: ``|W_special - W_base| / |W_base|`` of each component, in Frobenius norms; NaN where base has nothing but zeros and
        special has not. overall: the same of all of them together.
    """

    relative: np.ndarray
    overall: float

    @property
    def number(self) -> int:
        """Components of the kind."""
        return self.relative.size

    @property
    def changed(self) -> int:
        """Components that differ."""
        return int((self.relative != 0).sum())


def by_kind(base: Params, special: Params, partition: Partition) -> dict[str, Change]:
    """What special changed in each kind of component of a partition.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair(change=0.1)
        >>> found = by_kind(pair.base, pair.special, components.of_decoder(pair.base))["head"]
        >>> found.number, found.changed, 0.2 < found.overall < 0.5
        (12, 12, True)
    """
    made = {}
    for name, kind in partition.items():
        moved, own = (
            np.asarray(part, np.float64)
            for part in (components.delta_norms(base, special, kind), components.norms(base, kind))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(moved == 0, 0, np.where(own == 0, np.nan, moved / own))
        made[name] = Change(relative, float(np.linalg.norm(moved) / np.linalg.norm(own)))
    return made


class Between(NamedTuple):
    """How what two specials changed of each component lies to each other. All of the kind's shape.

    cosine: of ``W_one - W_base`` with ``W_other - W_base``, over all parameters of the component; NaN where one of the two is 0. both:
        parameters that both changed. opposed: those of them that one raised and the other lowered.
    """

    cosine: np.ndarray
    both: np.ndarray
    opposed: np.ndarray


def between(base: Params, one: Params, other: Params, kind: Kind) -> Between:
    """Do two specials pull the same components the same way?

    Opposed signs are what TIES merging elects between (Yadav et al., arXiv 2306.01708), for each parameter by itself; to count them,
    and to take cosines, by component is ours.

    Args: base, one, other: parameters of one structure. Arithmetic is float32.

    Example:
        >>> import jax.numpy as jnp
        >>> column = Kind((2,), ("column",), (components.Slot("w", (1,)),))
        >>> sides = [{"w": jnp.array(rows)} for rows in ([[1.0, 1.0], [1.0, 1.0]], [[2.0, 3.0], [1.0, 1.0]], [[0.0, 3.0], [1.0, 3.0]])]
        >>> found = between(*sides, column)
        >>> found.cosine.round(3).tolist(), found.both.tolist(), found.opposed.tolist()
        ([-1.0, 0.707], [1.0, 1.0], [1.0, 0.0])
    """
    flat = [paths.leaves(tree) for tree in (base, one, other)]
    owned = {slot.leaf: tuple(each[slot.leaf] for each in flat) for slot in kind.slots}
    inner, own, others, both, opposed = (np.asarray(part, np.float64) for part in _sums(owned, kind))
    size = np.sqrt(own * others)
    cosine = np.where(size > 0, np.clip(inner / np.where(size > 0, size, 1), -1, 1), np.nan)
    return Between(cosine, both, opposed)


@functools.partial(jax.jit, static_argnames="kind")
def _sums(owned: dict[str, tuple[jax.Array, jax.Array, jax.Array]], kind: Kind) -> tuple[jax.Array, ...]:
    """Inner product, both squares, and the counts. owned: leaf -> base's, one's and the other's. One program, so that no change of a
    whole leaf is ever held."""

    def summed(of: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        def numbers(leaf: str) -> jax.Array:
            start, x, y = (part.astype(jnp.float32) for part in owned[leaf])
            return of(x - start, y - start).astype(jnp.float32)

        return components.sums(kind, numbers)

    return (
        summed(lambda x, y: x * y),
        summed(lambda x, y: x * x),
        summed(lambda x, y: y * y),
        summed(lambda x, y: (x != 0) & (y != 0)),
        summed(lambda x, y: ((x > 0) & (y < 0)) | ((x < 0) & (y > 0))),
    )
