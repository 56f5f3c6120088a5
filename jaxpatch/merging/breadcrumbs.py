"""Differences without their smallest entries, and without the very largest."""

import jax.numpy as jnp

from jaxpatch.merging import changes, magnitudes
from jaxpatch.merging.method import Method, Range


def merge(base, experts, asked, options):
    """Of n entries of a tensor ``gamma n`` are dropped as outliers, and of the others the largest are kept, `density` n of them, which
    of a small tensor may be none."""
    own = changes.of(base, experts)
    kept = [
        jnp.where(band(each, count, options["gamma"]), each, 0) for each, count in zip(own, asked.counts, strict=True)
    ]
    if options["rescale"] == "norm":
        kept = [changes.to_own_norm(some, each) for some, each in zip(kept, own, strict=True)]
    by_sign, is_normalized = options["agree"], options["normalize"]
    return changes.merged(base, experts, kept, asked, by_sign=by_sign, is_normalized=is_normalized)


def band(own, count, gamma: float):
    """So many entries below the outliers; where there is no room for them, fewer are outliers."""
    outliers = jnp.minimum(int(gamma * own.size), own.size - count)
    return magnitudes.largest(own, outliers + count) & ~magnitudes.largest(own, outliers)


def method(agree: bool) -> Method:
    """With or without the election of a sign."""
    return Method(
        merge,
        says="differences without their smallest entries and without outliers"
        + (", where their signs agree" if agree else "")
        + " (Breadcrumbs: Davari and Belilovsky, arXiv 2312.06795)",
        takes=("density", "scale"),
        options={
            "normalize": changes.normalize(False),
            "rescale": changes.STRETCH,
            "agree": changes.agree(agree),
            "gamma": Range(0.01, 0.0, 1.0, "share of a tensor's entries that are outliers"),
        },
        least=0,
    )


LINEAR, TIES = method(agree=False), method(agree=True)
