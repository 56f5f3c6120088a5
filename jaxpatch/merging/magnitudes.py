"""Which entries are the largest, exactly so many: without sorting.

Floats that are not negative are ordered as their bits are, read as integers; so the k-th largest is found bit by bit, each by counting
how many entries are not below, and 31 such passes over the entries, which run at the speed of memory, find it exactly.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BITS = 31
"""Of a float32 without its sign."""


def order(values: Float[Array, " *shape"]) -> Int[Array, " *shape"]:
    """Integers that are ordered as the magnitudes are.

    >>> order(jnp.array([1.0, -2.0])).tolist() == sorted(order(jnp.array([-2.0, 1.0])).tolist())
    True
    """
    return jax.lax.bitcast_convert_type(jnp.abs(values.astype(jnp.float32)), jnp.int32)


def kth(values: Float[Array, "stack ..."], count: Int[Array, " stack"]) -> Int[Array, " stack"]:
    """The `order` of each tensor's count-th largest magnitude; 0 where it has fewer, one above all where count is 0.

    >>> values = jnp.array([[3.0, -1.0, 2.0]])
    >>> (kth(values, jnp.array([2])) == order(values)[:, 2]).tolist()
    [True]
    """
    ordered = order(values)
    axes = tuple(range(1, values.ndim))

    def step(number: jax.Array, found: jax.Array) -> jax.Array:
        tried = found | (1 << (BITS - 1 - number))
        are_above = (ordered >= jnp.expand_dims(tried, axes)).sum(axes, dtype=jnp.int32)
        return jnp.where(are_above >= count, tried, found)

    return jax.lax.fori_loop(0, BITS, step, jnp.zeros(values.shape[0], jnp.int32))


def largest(values: Float[Array, "stack ..."], count: Int[Array, " stack"]) -> Bool[Array, "stack ..."]:
    """Of each tensor, so many entries as `count` says: the largest by magnitude, and of equal ones the first.

    >>> largest(jnp.array([[3.0, -1.0, 1.0]]), jnp.array([2])).tolist()
    [[True, True, False]]
    """
    axes = tuple(range(1, values.ndim))
    ordered, edge = order(values), jnp.expand_dims(kth(values, count), axes)
    above, equal = ordered > edge, ordered == edge
    room = jnp.expand_dims(count, axes) - above.sum(axes, keepdims=True, dtype=jnp.int32)
    place = jnp.cumsum(equal.reshape(len(values), -1), axis=1, dtype=jnp.int32).reshape(values.shape)
    return above | (equal & (place <= room))


def kth_of_all(pairs: Callable[[], Iterable[tuple[jax.Array, jax.Array]]], count: int) -> float:
    """The count-th largest magnitude of what the second of each pair differs from the first by; infinity where count is 0.

    Args: pairs: gives them, one after the other, as often as it is asked to; so they need not all be there at once.

    >>> kth_of_all(lambda: [(jnp.zeros(2), jnp.array([3.0, 1.0])), (jnp.ones(1), jnp.array([-1.0]))], 2)
    2.0
    """
    if count == 0:
        return float("inf")
    found = 0
    for number in range(BITS):
        tried = found | (1 << (BITS - 1 - number))
        if sum(int(_not_below(base, expert, tried)) for base, expert in pairs()) >= count:
            found = tried
    return float(jax.lax.bitcast_convert_type(jnp.int32(found), jnp.float32))


@jax.jit
def _not_below(base: jax.Array, expert: jax.Array, tried: jax.Array) -> jax.Array:
    return (order(expert.astype(jnp.float32) - base.astype(jnp.float32)) >= tried).sum(dtype=jnp.int32)
