"""Differences of which each entry is dropped at random, and the rest made larger for it."""

import jax
import jax.numpy as jnp

from jaxpatch.merging import changes
from jaxpatch.merging.method import Choice, Method

RESCALE = Choice(
    ("norm", "chance", "none"),
    "what is kept makes up for what is not: up to the tensor's own L1 norm (mergekit), or by 1 / its chance (published)",
)

AT_ONCE = 1 << 18
"""Entries of an expert for which random numbers are drawn together."""


def merge(base, experts, asked, options):
    """Each entry is kept with a chance of `density`."""
    own = changes.of(base, experts)
    kept = dropped(own, list(asked.density), asked.key, options["rescale"])
    by_sign, is_normalized = options["agree"], options["normalize"]
    return changes.merged(base, experts, kept, asked, by_sign=by_sign, is_normalized=is_normalized)


def dropped(own, chances, key, rescale: str):
    """Changes whose entries are kept by chance; all where it is 1. chances: of each expert one number, or one for each entry."""
    made = []
    for number, (change, chance) in enumerate(zip(own, chances, strict=True)):
        kept = jnp.where(drawn(jax.random.fold_in(key, number), chance, change.shape), change, 0)
        if rescale == "norm":
            kept = changes.to_own_norm(kept, change)
        elif rescale == "chance":
            kept = kept / jnp.where(chance > 0, chance, 1)
        made.append(jnp.where(chance >= 1, change, kept))
    return made


def drawn(key, chance, shape: tuple[int, int]):
    """Which entries are kept. Some rows at a time: random numbers of all, which are many times as large as what comes of them, would
    leave the cache, and are never there together.

    >>> drawn(jax.random.key(0), jnp.array([[0.0, 1.0, 1.0]]), (1, 3)).tolist()
    [[False, True, True]]
    """
    rows, inside = shape
    by_row = jnp.broadcast_to(chance, (rows, chance.shape[-1] if chance.ndim else 1))

    def row(asked: tuple[jax.Array, jax.Array]) -> jax.Array:
        number, own = asked
        return jax.random.uniform(jax.random.fold_in(key, number), (inside,)) < own

    return jax.lax.map(row, (jnp.arange(rows, dtype=jnp.int32), by_row), batch_size=max(1, AT_ONCE // inside))


def method(agree: bool) -> Method:
    """With or without the election of a sign."""
    return Method(
        merge,
        says="differences of which entries are dropped at random"
        + (", where their signs agree" if agree else "")
        + " (DARE: Yu et al., arXiv 2311.03099)",
        takes=("density", "scale", "seed"),
        options={
            "normalize": changes.normalize(False),
            "rescale": RESCALE,
            "agree": changes.agree(agree),
        },
    )


LINEAR, TIES = method(agree=False), method(agree=True)
