"""What a method of merging is: a function of one tensor of base and each expert, and what it must be told."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

Tensor = Float[Array, "rows inside"]
"""One tensor's rows (`tensors.split`), in float32."""
Experts = Sequence[Tensor]
"""Of each expert that tensor, or what is made of it: they are not one array, which would have to be made first."""


class Asked(NamedTuple):
    """What one merge is asked for.

    weights, density: [N], one of each expert. counts: [N], how many of this tensor's entries the density is.
    cutoffs: [N], the smallest magnitude that is among that share of the whole difference, where the method looks at all of it.
    scale: lambda. key: this tensor's, for whatever is random.
    statistics: what is known of this tensor from data, of each expert: its Fisher information, [rows, inside], or the second moments of
        its inputs, [inside, inside], or its mask, [rows, inside]; None where nothing is.
    """

    weights: jax.Array
    density: jax.Array
    counts: jax.Array
    cutoffs: jax.Array
    scale: jax.Array
    key: jax.Array
    statistics: Sequence[jax.Array] | None = None


class Choice(NamedTuple):
    """An option of a method that is one of some words or values, the first where nothing is said."""

    values: tuple[Any, ...]
    says: str

    @property
    def default(self) -> Any:
        """The first."""
        return self.values[0]


class Range(NamedTuple):
    """An option that is a number. low, high: it lies between them, or at them."""

    default: float
    low: float
    high: float
    says: str


class Method(NamedTuple):
    """How to merge.

    merge: (base's tensor, experts', what is asked, options) -> the merged tensor. A pure function of arrays; options are static.
    takes: which of "density", "scale" and "seed" mean something to it. options: its own, by name.
    needs: what of data, "fisher" or "moments" (`measuring.statistics`), or "learn_mask" (`learned_mask`). is_needed: whether it
    cannot do without.
    experts: how many there must be, where not any number. looks_at_all: whether, by its options, it needs `Asked.cutoffs`.
    least: how many entries of a tensor are kept where a density above 0 asks for less than one.
    by_entry: whether each entry is merged by itself, or the order of entries says nothing to it; such leaves are not turned to rows.
    refuses: (weights, densities, options) -> what of them it cannot do, a sentence each.
    says: in a sentence, with the source.
    """

    merge: Callable[[Tensor, Experts, Asked, Mapping[str, Any]], Tensor]
    says: str
    takes: tuple[str, ...] = ()
    options: Mapping[str, Choice | Range] = {}
    needs: str | None = None
    is_needed: bool = True
    experts: int | None = None
    looks_at_all: Callable[[Mapping[str, Any]], bool] = lambda options: False
    least: int = 1
    by_entry: bool = False
    refuses: Callable[[Sequence[float], Sequence[float], Mapping[str, Any]], list[str]] = lambda *asked: []
