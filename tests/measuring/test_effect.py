"""The definition: shallow runs are the deep run, read part way; no gate is the base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import effect, inputs, read_outs
from jaxpatch.models import decoder

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
CONFIG = PAIR.config


def anchor(layer=1) -> jp.Anchor:
    return read_outs.checked(jp.Anchor(layer=layer, direction=np.float32(np.eye(16)[0])), CONFIG)


@pytest.fixture(scope="module")
def states():
    return jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, PAIR.base, INPUTS)


@pytest.mark.parametrize("layer", [0, 2])
def test_last_states_after_any_block(states, layer):
    shallow = jax.jit(effect.last_states, static_argnums=(0, 3))(CONFIG, PAIR.base, INPUTS, layer)
    assert states.shape == (3, 4, 16) and shallow.shape == (4, 16)
    np.testing.assert_allclose(shallow, states[layer], rtol=1e-5, atol=1e-5)


def test_last_state_leads_to_the_logits(states):
    """Norm and unembedding of the state after the last block are the model's next-token logits."""
    everywhere = PAIR.apply(PAIR.base, INPUTS.tokens)
    last = jnp.take_along_axis(everywhere, (INPUTS.lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = decoder.Decoder(CONFIG).apply({"params": PAIR.base}, states[-1], method="read_out")
    np.testing.assert_allclose(logits, last, rtol=1e-4, atol=1e-4)


def test_up_to_keeps_the_first_blocks():
    shallow = effect.up_to(PAIR.base, 2)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shallow["layers"])} == {2}
    assert shallow["embed"] is PAIR.base["embed"]


def test_anchor_effect_at_both_ends(states):
    run = jax.jit(lambda gates: effect.anchor_effect(CONFIG, PAIR.base, PAIR.special, gates, INPUTS, anchor()))
    np.testing.assert_allclose(run({}), states[1, :, 0], rtol=1e-5, atol=1e-5)
    everything = jp.gates(PAIR, {"layer": "all", "embed": "all"})
    special = jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, PAIR.special, INPUTS)
    np.testing.assert_allclose(run(everything), special[1, :, 0], rtol=1e-5, atol=1e-5)


def test_outcome_reads_both_ends_of_one_run(states):
    run = jax.jit(effect.outcome, static_argnums=0)
    read, logits = run(CONFIG, PAIR.base, INPUTS, anchor())
    np.testing.assert_allclose(read, states[1, :, 0], rtol=1e-5, atol=1e-5)
    wanted = decoder.Decoder(CONFIG).apply({"params": PAIR.base}, states[-1], method="read_out")
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    steered_read, steered = run(CONFIG, PAIR.base, INPUTS, anchor(), jnp.zeros(16))
    np.testing.assert_allclose(steered, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(steered_read, read, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(CONFIG, PAIR.base, INPUTS, anchor(), jnp.ones(16))[1], logits, atol=1e-2)


def test_rows_are_inputs():
    some = inputs.Inputs(*map(np.asarray, INPUTS)).rows([2, 0])
    assert some.tokens.shape == (2, 7) and some.lengths.tolist() == INPUTS.lengths[jnp.array([2, 0])].tolist()
