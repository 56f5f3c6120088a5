"""The mean slope along the path: complete."""

import jax.numpy as jnp
import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument
from jaxpatch.scoring import integrated


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_by_hand(steps):
    """``d/dp1 3 p1 p2`` along p1 = p2 = t is 3t, whose mean is 1.5; midpoints are exact for a straight line."""
    found = integrated.effects(scoring_toys.product(), ("part",), scoring_toys.options(steps=steps))["part"].effects
    np.testing.assert_allclose(found, [[2, 1.5, 1.5], [4, 3, 3]], rtol=1e-6)


def test_sums_to_the_joint_effect():
    kinds = ("head", "neuron")
    pair, inputs = testing.tiny_pair(), testing.tiny_inputs()
    tool = instrument.of_pair(pair, inputs, jp.Anchor(layer=1, direction=np.eye(16)[0]))
    seen = []
    options = scoring_toys.options(steps=16, progress=lambda kind: lambda *at: seen.append((kind, *at)))
    found = integrated.effects(tool, kinds, options)
    total = sum(found[kind].effects.reshape(4, -1).sum(1) for kind in kinds)
    ones = {kind: jnp.ones(tool.partition[kind].shape) for kind in kinds}
    joint = np.asarray(tool.effect(ones, np.arange(4))) - tool.base
    np.testing.assert_allclose(total, joint, rtol=0.01, atol=0.01 * np.abs(joint).max())
    assert seen == [("integrated", done + 1, 16 * 4) for done in range(16 * 4)]
    assert all(not found[kind].effects[:, 2:].any() for kind in kinds)
