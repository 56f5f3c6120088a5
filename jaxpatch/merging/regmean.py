"""The matrices that answer, on each expert's own inputs, most nearly as that expert's do."""

import functools
import operator

import jax.numpy as jnp

from jaxpatch.merging import changes, linear
from jaxpatch.merging.method import Method, Range

RIDGE = 1e-6
"""Of the mean square of an input, added to every one's, so that inputs that never vary can be solved for."""


def merge(base, experts, asked, options):
    """``(sum_i w_i W_i G_i) (sum_i w_i G_i)^-1`` with ``G_i = E[x x^T]`` of the inputs x, off its diagonal times `shrink`; leaves that
    are no matrix with known inputs are averaged."""
    if asked.statistics is None:
        return linear.merge(base, experts, asked, {"normalize": True})
    diagonal = jnp.eye(base.shape[-1])
    shrunk = diagonal + options["shrink"] * (1 - diagonal)
    moments = [weight * known * shrunk for weight, known in zip(asked.weights, asked.statistics, strict=True)]
    total = changes.total(moments)
    size = jnp.trace(total) / len(diagonal)
    ridge = RIDGE * jnp.where(size > 0, size, 1) * diagonal
    middle = linear.merge(base, experts, asked, {"normalize": True})
    apart = changes.total([(expert - middle) @ own for expert, own in zip(experts, moments, strict=True)])
    solved = middle + jnp.linalg.solve((total + ridge).T, apart.T).T
    is_one = functools.reduce(operator.and_, ((expert == experts[0]).all() for expert in experts))
    return changes.alone(jnp.where(is_one, middle, solved), experts, asked.weights)


METHOD = Method(
    merge,
    says="matrices that do to each expert's inputs what it does, by least squares (RegMean: Jin et al., arXiv 2212.09849)",
    options={"shrink": Range(0.9, 0.0, 1.0, "what is left of the moments of two different inputs")},
    needs="moments",
    refuses=linear.refuses,
)
