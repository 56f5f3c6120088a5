"""Differences of which each entry is dropped at random, and the rest made larger for it."""

import jax
import jax.numpy as jnp

from jaxpatch.merging import changes
from jaxpatch.merging.method import Choice, Method

RESCALE = Choice(
    ("norm", "chance", "none"),
    "what is kept makes up for what is not: up to the tensor's own L1 norm (mergekit), or by 1 / its chance (published)",
)


def merge(base, experts, asked, options):
    """Each entry is kept with a chance of `density`."""
    own = changes.of(base, experts)
    chance = jnp.broadcast_to(changes.per_expert(asked.density), own.shape)
    kept = dropped(own, chance, asked.key, options["rescale"])
    by_sign, is_normalized = options["agree"], options["normalize"]
    return changes.merged(base, experts, kept, asked, by_sign=by_sign, is_normalized=is_normalized)


def dropped(own, chance, key, rescale: str):
    """Changes whose entries are kept by chance, [N, S, rows, inside]; all where it is 1."""
    keep = jax.random.uniform(key, own.shape) < chance
    kept = jnp.where(keep, own, 0)
    if rescale == "norm":
        kept = changes.to_own_norm(kept, own)
    elif rescale == "chance":
        kept = kept / jnp.where(chance > 0, chance, 1)
    return jnp.where(chance >= 1, own, kept)


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
