"""The average of the experts' weights, each entry weighted by how much its expert's answers depend on it."""

import jax.numpy as jnp

from jaxpatch.merging import changes, linear
from jaxpatch.merging.method import Method, Range


def merge(base, experts, asked, options):
    """``sum_i w_i F_i theta_i / sum_i w_i F_i``, F_i no smaller than `floor`; leaves whose F is not known are averaged."""
    if asked.statistics is None:
        return linear.merge(base, experts, asked, {"normalize": True})
    weights = [
        weight * jnp.maximum(known, options["floor"])
        for weight, known in zip(asked.weights, asked.statistics, strict=True)
    ]
    weighted = [weight * expert for weight, expert in zip(weights, experts, strict=True)]
    return changes.settled(changes.total(weighted) / changes.total(weights), experts, asked.weights)


METHOD = Method(
    merge,
    says="average of the experts, weighted by their diagonal Fisher information (Matena and Raffel, arXiv 2111.09832)",
    options={
        "floor": Range(
            1e-6, 1e-30, float("inf"), "the smallest Fisher information that counts, so that nothing is divided by 0"
        )
    },
    needs="fisher",
    refuses=linear.refuses,
    by_entry=True,
)
