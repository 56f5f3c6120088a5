"""Differences trimmed to their largest entries, of which those that agree in sign are added up."""

import jax.numpy as jnp

from jaxpatch.merging import changes, magnitudes
from jaxpatch.merging.method import Choice, Method


def merge(base, experts, asked, options):
    """Trim, elect, merge."""
    own = changes.of(base, experts)
    trimmed = [jnp.where(mask, each, 0) for mask, each in zip(kept(own, asked, options["trim"]), own, strict=True)]
    if options["rescale"] == "norm":
        trimmed = [changes.to_own_norm(some, each) for some, each in zip(trimmed, own, strict=True)]
    return changes.merged(base, experts, trimmed, asked, by_sign=True, is_normalized=options["normalize"])


def kept(own, asked, trim: str):
    """Of each expert, which entries are among the largest: of the tensor exactly so many, or of the whole difference."""
    if trim == "all":
        return [jnp.abs(each) >= cutoff for each, cutoff in zip(own, asked.cutoffs, strict=True)]
    return [magnitudes.largest(each, count) for each, count in zip(own, asked.counts, strict=True)]


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
