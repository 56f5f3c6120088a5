"""Each component's own change exactly, the rest to first order: exact where the rest is linear, first order where all is small."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument
from jaxpatch.scoring import exact, first_order, local_linear

AT_THE_END = ("neuron", "norm")
"""Some kinds whose change is taken at the end of their block: in the anchor's own block nothing follows it but the read-out."""


def test_exact_in_the_anchors_own_block():
    tool = instrument.of_pair(testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0]))
    cheap = local_linear.effects(tool, AT_THE_END, scoring_toys.options())
    true = exact.effects(tool, AT_THE_END, scoring_toys.options())
    for kind in AT_THE_END:
        largest = np.abs(true[kind].effects).max()
        mine, wanted = cheap[kind].effects[:, 1], true[kind].effects[:, 1]
        np.testing.assert_allclose(mine, wanted, atol=2e-6 * largest, rtol=0, err_msg=kind)
        assert not np.allclose(cheap[kind].effects[:, 0], true[kind].effects[:, 0], atol=1e-4 * largest, rtol=0)


def test_first_order_in_the_limit_of_a_small_difference():
    """Both are wrong by the square of the difference: a tenth of it leaves a tenth of the disagreement, relative to the effect."""
    kinds = ("head", "embed")
    with jax.enable_x64(True):
        pair = testing.tiny_pair()
        base = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), pair.base)
        disagreement = {kind: [] for kind in kinds}
        for size in (1e-2, 1e-3):
            special = jax.tree.map(
                lambda b, s, k=size: b + k * (jnp.asarray(np.asarray(s), jnp.float64) - b), base, pair.special
            )
            tool = instrument.of_pair(
                dataclasses.replace(pair, base=base, special=special),
                testing.tiny_inputs(),
                jp.Anchor(layer=1, direction=jnp.eye(16, dtype=jnp.float64)[0]),
            )
            a = local_linear.effects(tool, kinds, scoring_toys.options())
            b = first_order.effects(tool, kinds, scoring_toys.options())
            for kind in kinds:
                assert a[kind].effects.dtype == np.float64
                gap = np.abs(a[kind].effects - b[kind].effects).max() / np.abs(b[kind].effects).max()
                disagreement[kind].append(gap)
    for kind in kinds:
        near, nearer = disagreement[kind]
        assert near < 0.01, kind
        assert nearer < 0.11 * near + 1e-12, kind
