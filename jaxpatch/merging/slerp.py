"""From base to an expert along the sphere, tensor by tensor."""

import jax.numpy as jnp

from jaxpatch.merging.method import Method

PARALLEL = 0.9995
"""Cosines beyond, of either sign: there the way is straight."""
NO_NORM = 1e-8


def merge(base, experts, asked, options):
    """The way's part that the expert's weight says: 0 is base, 1 the expert. The tensor is one vector."""
    del options
    (expert,), (part,) = experts, asked.weights
    lengths = [jnp.sqrt((each**2).sum()) for each in (base, expert)]
    one, other = (
        each / jnp.where(length > NO_NORM, length, 1) for each, length in zip((base, expert), lengths, strict=True)
    )
    cosine = jnp.clip((one * other).sum(), -1, 1)
    is_straight = jnp.abs(cosine) > PARALLEL
    angle = jnp.arccos(jnp.where(is_straight, 0, cosine))
    of_base = jnp.where(is_straight, 1 - part, jnp.sin((1 - part) * angle) / jnp.sin(angle))
    of_expert = jnp.where(is_straight, part, jnp.sin(part * angle) / jnp.sin(angle))
    between = jnp.where(is_straight & (base == expert), base, of_base * base + of_expert * expert)
    return jnp.where(part == 0, base, jnp.where(part == 1, expert, between))


METHOD = Method(
    merge,
    says="along the sphere from base to one expert (Shoemake 1985); its weight is the part of the way",
    experts=1,
    by_entry=True,
)
