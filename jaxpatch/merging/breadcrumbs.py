"""Differences without their smallest entries, and without the very largest."""

import jax.numpy as jnp

from jaxpatch.merging import changes, magnitudes
from jaxpatch.merging.method import Method, Range


def merge(base, experts, asked, options):
    """Of n entries of a tensor ``gamma n`` are dropped as outliers, and of the others the largest are kept, `density` n of them."""
    own = changes.of(base, experts)
    kept = jnp.where(keep(own, asked, options["gamma"]), own, 0)
    if options["rescale"] == "norm":
        kept = changes.to_own_norm(kept, own)
    by_sign, is_normalized = options["agree"], options["normalize"]
    return changes.merged(base, experts, kept, asked, by_sign=by_sign, is_normalized=is_normalized)


def keep(own, asked, gamma: float):
    """The band below the outliers; where so many are to be kept that there is no room for it, fewer are outliers."""
    size = own.shape[2] * own.shape[3]
    counts = jnp.broadcast_to(asked.counts[:, None], own.shape[:2]).ravel()
    outliers = jnp.minimum(int(gamma * size), size - counts)
    flat = own.reshape(-1, *own.shape[2:])
    band = magnitudes.largest(flat, outliers + counts) & ~magnitudes.largest(flat, outliers)
    return band.reshape(own.shape)


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
    )


LINEAR, TIES = method(agree=False), method(agree=True)
