"""Differences of which smaller entries are dropped more often: by chance, the rank in their row deciding it."""

import jax.numpy as jnp

from jaxpatch.merging import changes, dare, magnitudes
from jaxpatch.merging.method import Method, Range


def merge(base, experts, asked, options):
    """An entry's chance to be kept is `density`, and up to `epsilon` less or more, by its rank in its row."""
    own = changes.of(base, experts)
    each_chance = [chances(each, density, options["epsilon"]) for each, density in zip(own, asked.density, strict=True)]
    kept = dare.dropped(own, each_chance, asked.key, options["rescale"])
    by_sign, is_normalized = options["agree"], options["normalize"]
    return changes.merged(base, experts, kept, asked, by_sign=by_sign, is_normalized=is_normalized)


def chances(own, density, epsilon: float):
    """From ``density - epsilon`` for the smallest of a row to ``density + epsilon`` for the largest, evenly by rank; a row of one has
    `density`, and at a density of 0 or 1 all have that."""
    ranks = magnitudes.ranks(own).astype(jnp.float32)
    last = max(own.shape[-1] - 1, 1)
    spread = jnp.where((density <= 0) | (density >= 1) | (own.shape[-1] == 1), 0.0, epsilon)
    return density + spread * (2 * ranks / last - 1)


def refuses(weights, density, options) -> list[str]:
    """Chances that are not between 0 and 1: of all others, what is kept is stretched for what is not."""
    del weights
    epsilon = options["epsilon"]
    return [
        f"epsilon: at a density of {share:g} it must be less than {min(share, 1 - share):g}; got {epsilon:g}."
        for share in sorted(set(density))
        if 0 < share < 1 and not epsilon < min(share, 1 - share)
    ]


def method(agree: bool) -> Method:
    """With or without the election of a sign."""
    return Method(
        merge,
        says="differences of which small entries are dropped more often"
        + (", where their signs agree" if agree else "")
        + " (DELLA: Deep et al., arXiv 2406.11617)",
        takes=("density", "scale", "seed"),
        options={
            "normalize": changes.normalize(agree),
            "rescale": dare.RESCALE,
            "agree": changes.agree(agree),
            "epsilon": Range(0.15, 0.0, 0.5, "how far chances lie around the density, at both ends; between 0 and 1"),
        },
        refuses=refuses,
    )


LINEAR, TIES = method(agree=False), method(agree=True)
