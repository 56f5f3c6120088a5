"""The definition: shallow runs are the deep run, read part way; no gate is the base."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import effect, inputs, read_outs
from jaxpatch.models import decoder
from jaxpatch.patching import blend, components

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
CONFIG = PAIR.config
BASE = effect.unpatched(PAIR.base)


def anchor(layer=1) -> jp.Anchor:
    return read_outs.checked(jp.Anchor(layer=layer, direction=np.float32(np.eye(16)[0])), CONFIG)


@pytest.fixture(scope="module")
def states():
    return jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, BASE, INPUTS)


@pytest.mark.parametrize("layer", [0, 2])
def test_last_states_after_any_block(states, layer):
    shallow = jax.jit(effect.every_last_state, static_argnums=(0, 3))(CONFIG, BASE, INPUTS, layer + 1)
    assert states.shape == (3, 4, 16) and shallow.shape == (layer + 1, 4, 16)
    np.testing.assert_allclose(shallow, states[: layer + 1], rtol=1e-5, atol=1e-5)


def test_last_state_leads_to_the_logits(states):
    """Norm and unembedding of the state after the last block are the model's next-token logits."""
    everywhere = PAIR.apply(PAIR.base, INPUTS.tokens)
    last = jnp.take_along_axis(everywhere, (INPUTS.lengths - 1)[:, None, None], axis=1)[:, 0]
    logits = decoder.Decoder(CONFIG).apply({"params": PAIR.base}, states[-1], method="read_out")
    np.testing.assert_allclose(logits, last, rtol=1e-4, atol=1e-4)
    alone = jax.jit(effect.last_logits, static_argnums=0)(CONFIG, BASE, INPUTS)
    np.testing.assert_allclose(alone, last, rtol=1e-4, atol=1e-4)


def test_reads_are_those_of_each_read_out_alone(states):
    """Anchors at any depth and next tokens, in the order asked for."""
    targets = jnp.array([3, 1, 4, 1])
    wanted = (anchor(2), read_outs.NextToken("log_prob", targets), anchor(0))
    found = jax.jit(effect.reads, static_argnums=0)(CONFIG, BASE, INPUTS, wanted)
    logits = decoder.Decoder(CONFIG).apply({"params": PAIR.base}, states[-1], method="read_out")
    log_probs = jax.nn.log_softmax(logits)[jnp.arange(4), targets]
    np.testing.assert_allclose(found, [states[2, :, 0], log_probs, states[0, :, 0]], rtol=1e-4, atol=1e-5)


def test_reads_never_run_a_block_that_nothing_reads():
    """Not a number above the anchor changes nothing below it."""
    layers = jax.tree.map(lambda leaf: leaf.at[1:].set(np.nan), PAIR.base["layers"])
    broken = effect.unpatched({**PAIR.base, "layers": layers})
    run = jax.jit(effect.reads, static_argnums=0)
    np.testing.assert_array_equal(run(CONFIG, broken, INPUTS, (anchor(0),)), run(CONFIG, BASE, INPUTS, (anchor(0),)))
    assert np.isnan(run(CONFIG, broken, INPUTS, (anchor(1),))).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_patched_block_by_block_is_the_patched_tree(tied):
    """Every kind at once, gates between 0 and 1: next-token logits of the tree that `blend.patch` makes."""
    pair = testing.tiny_pair(testing.tiny_config(tied=tied, attention_bias=True))
    partition = components.of_decoder(pair.base)
    keys = dict(zip(partition, jax.random.split(jax.random.key(0), len(partition)), strict=True))
    gates = {kind: jax.random.uniform(keys[kind], partition[kind].shape) for kind in partition}
    found = jax.jit(effect.last_logits, static_argnums=0)(
        pair.config, effect.Patched(pair.base, pair.special, gates), INPUTS
    )
    whole = effect.unpatched(blend.patch(pair.base, pair.special, gates))
    wanted = jax.jit(effect.last_logits, static_argnums=0)(pair.config, whole, INPUTS)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert not np.allclose(
        wanted,
        jax.jit(effect.last_logits, static_argnums=0)(pair.config, effect.unpatched(pair.base), INPUTS),
        atol=0.1,
    )


def test_gates_that_do_not_fit_are_refused():
    wanted = (anchor(),)
    with pytest.raises(ValueError, match=r"gates\['head'\] has shape \(2,\); this model's has \(3, 4\)"):
        effect.reads(CONFIG, effect.Patched(PAIR.base, PAIR.special, {"head": jnp.ones(2)}), INPUTS, wanted)
    with pytest.raises(KeyError, match="unknown component 'heads'"):
        effect.reads(CONFIG, effect.Patched(PAIR.base, PAIR.special, {"heads": jnp.ones(2)}), INPUTS, wanted)


def test_patched_reads_at_both_ends(states):
    def run(gates):
        return effect.reads(CONFIG, effect.Patched(PAIR.base, PAIR.special, gates), INPUTS, (anchor(),))[0]

    run = jax.jit(run)
    np.testing.assert_allclose(run({}), states[1, :, 0], rtol=1e-5, atol=1e-5)
    everything = jp.gates(PAIR, {"layer": "all", "embed": "all"})
    special = jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, effect.unpatched(PAIR.special), INPUTS)
    np.testing.assert_allclose(run(everything), special[1, :, 0], rtol=1e-5, atol=1e-5)


def test_outcome_reads_both_ends_of_one_run(states):
    run = jax.jit(effect.outcome, static_argnums=0)
    read, logits = run(CONFIG, BASE, INPUTS, anchor())
    np.testing.assert_allclose(read, states[1, :, 0], rtol=1e-5, atol=1e-5)
    wanted = decoder.Decoder(CONFIG).apply({"params": PAIR.base}, states[-1], method="read_out")
    np.testing.assert_allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    steered_read, steered = run(CONFIG, BASE, INPUTS, anchor(), jnp.zeros(16))
    np.testing.assert_allclose(steered, logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(steered_read, read, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(CONFIG, BASE, INPUTS, anchor(), jnp.ones(16))[1], logits, atol=1e-2)


def test_rows_are_inputs():
    some = inputs.Inputs(*map(np.asarray, INPUTS)).rows([2, 0])
    assert some.tokens.shape == (2, 7) and some.lengths.tolist() == INPUTS.lengths[jnp.array([2, 0])].tolist()
