"""Outcomes: both modes of a patched set against plain surgery."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import effect, inputs, outcomes, read_outs
from jaxpatch.patching import blend, components


@pytest.mark.parametrize(
    "options",
    [
        {},
        dict(rope=None, positions=64, norm="layer", parallel=True),
        dict(post_norm=True, window=3, tied=True),
        dict(experts=4, chosen=2, neurons=6),
    ],
    ids=["llama", "learned positions", "norms around, window", "experts"],
)
def test_restoration_and_knockout_swap_the_sides(options):
    """The prompts begin alike: what they share is run once, and surgery knows nothing of that."""
    pair = testing.tiny_pair(testing.tiny_config(**options))
    prompts = inputs.Inputs(
        jnp.array([[3, 1, 4, 1, 5], [3, 1, 4, 0, 0], [3, 1, 5, 9, 0], [2, 0, 0, 0, 0]]), jnp.array([5, 3, 4, 1])
    )
    anchor = read_outs.Anchor(layer=1, direction=jnp.eye(16)[3])
    gates = components.gates(components.of_decoder(pair.base), {"head": [(0, 1)], "mlp": [1], "layer": [2]})
    outcome_fn = outcomes.of_pair(pair, prompts, anchor)
    last = np.asarray(prompts.lengths) - 1
    special = jax.nn.log_softmax(pair.apply(pair.special, prompts.tokens)[np.arange(4), last])
    for mode, host, donor in (("restoration", pair.base, pair.special), ("knockout", pair.special, pair.base)):
        patched = blend.patch(host, donor, gates)
        found = outcome_fn(gates, mode)
        state = effect.every_last_state(pair.config, effect.unpatched(patched), prompts)[1]
        np.testing.assert_allclose(found.read, anchor.read(state), rtol=1e-5, atol=1e-5)
        other = jax.nn.log_softmax(pair.apply(patched, prompts.tokens)[np.arange(4), last])
        np.testing.assert_allclose(found.kl, (jnp.exp(special) * (special - other)).sum(-1), rtol=1e-3, atol=1e-5)
    nothing = components.gates(components.of_decoder(pair.base), {"head": []})
    np.testing.assert_allclose(outcome_fn(nothing, "knockout").kl, 0, atol=1e-5)
