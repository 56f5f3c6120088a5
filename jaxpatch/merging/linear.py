"""The weighted average of the experts' weights. Base is not looked at."""

import jax.numpy as jnp

from jaxpatch.merging import changes
from jaxpatch.merging.method import Method


def merge(base, experts, asked, options):
    """``sum_i w_i theta_i / sum_i w_i``; where experts hold one number, or all weight is one expert's, exactly that."""
    del base
    weights = asked.weights
    total = (experts * changes.per_expert(weights)).sum(0)
    if options["normalize"]:
        total = jnp.where((experts == experts[0]).all(0), experts[0], total / weights.sum())
    for number, expert in enumerate(experts):
        is_alone = jnp.delete(weights == 0, number).all() & (options["normalize"] | (weights[number] == 1))
        total = jnp.where(is_alone, expert, total)
    return total


def refuses(weights, density, options) -> list[str]:
    """A sum of nothing, by which nothing can be divided."""
    del density
    is_none = options["normalize"] and abs(sum(weights)) < changes.NO_WEIGHT
    return (
        ["weights: they add up to 0, by which nothing can be divided; change them, or normalize=False."]
        if is_none
        else []
    )


METHOD = Method(
    merge,
    says="weighted average of the experts (model soups: Wortsman et al., arXiv 2203.05482)",
    options={"normalize": changes.normalize(True)},
    refuses=refuses,
)
