"""What experts differ from base by, and the steps that most methods share: rescaled, agreed upon, added up, added to base."""

import functools
import operator
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxpatch.merging.method import Asked, Choice, Experts, Tensor

EMPTY = 1e-7
"""L1 norms below are of nothing, and nothing is not rescaled."""
NO_WEIGHT = 1e-8
"""Sums of weights below, by magnitude, divide nothing."""
STRETCH = Choice(("none", "norm"), "whether what is kept is stretched to the tensor's own L1 norm")
"""The option of methods that trim."""

Keep = Bool[Array, "rows inside"]


def normalize(default: bool) -> Choice:
    """An option of most methods."""
    return Choice((default, not default), "whether the sum is divided by the sum of the weights that went into it")


def agree(default: bool) -> Choice:
    """An option of methods that have a name with, and a name without it."""
    return Choice(
        (default, not default), "whether entries are left out whose sign is not that of the sum (as TIES does)"
    )


def of(base: Tensor, experts: Experts) -> Experts:
    """The differences."""
    return [expert - base for expert in experts]


def total(each: Sequence[jnp.ndarray]) -> jnp.ndarray:
    """The sum over experts, in one pass over the entries.

    A choice stands before each addition, lest compilers add a product before it is rounded: the order of experts would matter.

    >>> total([jnp.array([[1.0]]), jnp.array([[2.0]])]).tolist()
    [[3.0]]
    """
    return functools.reduce(operator.add, (jnp.where(one == 0, 0, one) for one in each))


def to_own_norm(kept: Tensor, whole: Tensor) -> Tensor:
    """A tensor stretched to the L1 norm that it had before some of its entries were dropped.

    >>> to_own_norm(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 2.0]])).tolist()
    [[0.0, 3.0]]
    """
    before, after = (jnp.abs(each).sum() for each in (whole, kept))
    is_something = (before >= EMPTY) & (after >= EMPTY)
    return jnp.where(is_something, kept * (before / jnp.where(is_something, after, 1)), kept)


def elected(weighted: Experts) -> list[Keep]:
    """Entries whose sign is that of the sum over experts; a sum of 0 counts as above it, an entry of 0 has no sign.

    References: Yadav et al., TIES-Merging, arXiv 2306.01708, section 3.

    >>> [each.tolist() for each in elected([jnp.array([[1.0, -1.0]]), jnp.array([[-2.0, 1.0]])])]
    [[[False, False]], [[True, True]]]
    """
    majority = jnp.where(total(weighted) >= 0, 1.0, -1.0)
    return [jnp.sign(each) == majority for each in weighted]


def summed(changes: Experts, weights: Float[Array, " experts"], *, by_sign: bool, is_normalized: bool) -> Tensor:
    """The weighted sum of changes, by_sign of those alone that agree with it; divided by the sum of their weights, or not."""
    weighted = [each * weight for each, weight in zip(changes, weights, strict=True)]
    if by_sign:
        agree = elected(weighted)
        change, divisor = (
            total([jnp.where(own, each, 0) for own, each in zip(agree, some, strict=True)])
            for some in (weighted, weights)
        )
        is_none = divisor == 0
    else:
        change, divisor = total(weighted), weights.sum()
        is_none = jnp.abs(divisor) < NO_WEIGHT
    return change / jnp.where(is_none, 1, divisor) if is_normalized else change


def added(base: Tensor, experts: Experts, change: Tensor) -> Tensor:
    """Base with a change; and where that is nothing, or all of an expert's, base or the expert to the last bit.

    >>> base, expert = jnp.full((1, 1), 0.1), jnp.full((1, 1), 1e-9)
    >>> bool((added(base, [expert], expert - base) == expert).all())
    True
    """
    merged = jnp.where(change == 0, base, base + change)
    for expert in experts:
        merged = jnp.where((change == expert - base) & (change != 0), expert, merged)
    return merged


def settled(average: Tensor, experts: Experts, weights: Float[Array, " experts"]) -> Tensor:
    """An average of experts entry by entry: to the last bit what they agree on, or the one expert that has all the weight."""
    first, *others = experts
    is_one = functools.reduce(operator.and_, (each == first for each in others), jnp.ones_like(first, bool))
    return alone(jnp.where(is_one, first, average), experts, weights)


def alone(average: Tensor, experts: Experts, weights: Float[Array, " experts"]) -> Tensor:
    """An average, and where one expert has all the weight, that expert to the last bit."""
    for number, expert in enumerate(experts):
        average = jnp.where(jnp.delete(weights == 0, number).all(), expert, average)
    return average


def merged(
    base: Tensor, experts: Experts, changes: Experts, asked: Asked, *, by_sign: bool, is_normalized: bool
) -> Tensor:
    """Base with `scale` times the sum of changes: what task arithmetic and all that grew out of it end in."""
    change = summed(changes, asked.weights, by_sign=by_sign, is_normalized=is_normalized)
    return added(base, experts, asked.scale * change)
