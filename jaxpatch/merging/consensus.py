"""Masks of what each task needs of the sum of all differences, and the entries that several tasks need."""

import jax.numpy as jnp

from jaxpatch.merging import changes
from jaxpatch.merging.method import Method, Range


def merge(base, experts, asked, options):
    """``base + lambda m tau``, tau the sum of the weighted differences; m where so many experts as are `needed` have the entry."""
    own = [weight * each for weight, each in zip(asked.weights, changes.of(base, experts), strict=True)]
    total = changes.total(own)
    in_mask = [mask(each, total, options["threshold"]).astype(jnp.int32) for each in own]
    is_needed = changes.total(in_mask) >= options["needed"]
    return changes.added(base, experts, asked.scale * jnp.where(is_needed, total, 0))


def mask(own, total, threshold: float):
    """A TALL mask: where an expert's own change is much beside others': ``|tau_i| >= t |tau - tau_i|``."""
    return jnp.abs(own) >= threshold * jnp.abs(total - own)


METHOD = Method(
    merge,
    says="the sum of the differences where several experts need it (Consensus by TALL masks: Wang et al., arXiv 2405.07813)",
    takes=("scale",),
    options={
        "threshold": Range(
            0.4, 0.0, float("inf"), "of a TALL mask: how large an expert's own change is beside all others'"
        ),
        "needed": Range(2, 1, float("inf"), "how many experts must have an entry in their mask"),
    },
    by_entry=True,
)
