"""The entries of each difference that masks keep, or its largest; where several experts have one, their mean."""

import jax.numpy as jnp

from jaxpatch.merging import changes, ties
from jaxpatch.merging.method import Method


def merge(base, experts, asked, options):
    """``base + sum_i gamma_i m_i tau_i``, with masks m_i and ``gamma_i = w_i / sum_j w_j m_j``: published with equal weights."""
    own = changes.of(base, experts)
    known = asked.statistics
    masks = ties.kept(own, asked, options["trim"]) if known is None else [each > 0 for each in known]
    weights = [jnp.where(mask, weight, 0) for mask, weight in zip(masks, asked.weights, strict=True)]
    divisor = changes.total(weights)
    taken = changes.total([weight * each for weight, each in zip(weights, own, strict=True)])
    change = taken / jnp.where(divisor == 0, 1, divisor)
    return changes.added(base, experts, asked.scale * change)


METHOD = Method(
    merge,
    says="the largest entries of each difference, their mean where they overlap (Localize-and-Stitch: He et al., arXiv 2408.13656)",
    takes=("density", "scale"),
    options={"trim": ties.TRIM._replace(values=("all", "tensor"))},
    needs="learn_mask",
    is_needed=False,
    looks_at_all=lambda options: options["trim"] == "all",
)
