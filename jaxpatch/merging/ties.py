"""Differences trimmed to their largest entries, of which those that agree in sign are added up."""

import jax.numpy as jnp

from jaxpatch.merging import changes, magnitudes
from jaxpatch.merging.method import Choice, Method


def merge(base, experts, asked, options):
    """Trim, elect, merge."""
    own = changes.of(base, experts)
    trimmed = jnp.where(keep(own, asked, options["trim"]), own, 0)
    if options["rescale"] == "norm":
        trimmed = changes.to_own_norm(trimmed, own)
    return changes.merged(base, experts, trimmed, asked, by_sign=True, is_normalized=options["normalize"])


def keep(own, asked, trim: str):
    """Which entries are among the largest: of each tensor exactly so many, or of the whole difference."""
    if trim == "all":
        return jnp.abs(own) >= changes.per_expert(asked.cutoffs)
    counts = jnp.broadcast_to(asked.counts[:, None], own.shape[:2])
    flat = own.reshape(-1, *own.shape[2:])
    return magnitudes.largest(flat, counts.ravel()).reshape(own.shape)


TRIM = Choice(
    ("tensor", "all"), "whether each tensor keeps its largest entries (mergekit), or the whole difference (published)"
)

METHOD = Method(
    merge,
    says="the largest entries of each difference, where their signs agree (TIES: Yadav et al., arXiv 2306.01708)",
    takes=("density", "scale"),
    options={
        "normalize": changes.normalize(True),
        "trim": TRIM,
        "rescale": changes.STRETCH,
    },
    looks_at_all=lambda options: options["trim"] == "all",
)
