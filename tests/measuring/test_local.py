"""Parts of the engine by themselves; the whole of it is held to PyTorch in contracts/test_engine.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import effect, local, read_outs, sweep

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
CONFIG = PAIR.config


def models(layer=1, inputs=INPUTS, **anchor) -> local.Models:
    made = jp.Anchor(layer=layer, direction=np.float32(np.eye(16)[0]), **anchor)
    return local.Models(PAIR.base, PAIR.special, inputs, read_outs.checked(made, CONFIG))


trace = jax.jit(local.trace, static_argnums=0)
finish = jax.jit(local.finish, static_argnums=0)


def test_trace_is_the_bases_run():
    read, states = trace(CONFIG, models(2))
    every = jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, PAIR.base, INPUTS)
    np.testing.assert_allclose(read, every[2, :, 0], rtol=1e-5, atol=1e-5)
    assert states.entering.shape == states.mid.shape == (3, 4, 7, 16)
    np.testing.assert_array_equal(states.entering[0], PAIR.base["embed"]["kernel"][INPUTS.tokens])
    last = np.asarray(INPUTS.lengths) - 1
    for layer in (1, 2):
        np.testing.assert_allclose(states.entering[layer][np.arange(4), last], every[layer - 1], rtol=1e-5, atol=1e-5)


def test_finish_from_any_block_is_the_same_run_and_one_program():
    m = models(2)
    read, states = trace(CONFIG, m)
    before = finish._cache_size()
    for start in range(3):
        both = jnp.stack([states.entering[start], states.entering[start]])
        np.testing.assert_allclose(finish(CONFIG, m, both, start), [read, read], rtol=1e-5, atol=1e-5)
    top = jnp.stack([states.entering[0]] * 2)
    last = np.asarray(INPUTS.lengths) - 1
    np.testing.assert_allclose(
        finish(CONFIG, m, top, 3)[0], np.asarray(states.entering[0])[np.arange(4), last, 0], rtol=1e-6
    )
    assert finish._cache_size() == before + 1


def test_taps_give_the_gradient_that_arrives():
    """A nudge of the stream at one place moves the read-out by slope times nudge."""
    m = models()
    zeros = jax.tree.map(jnp.zeros_like, trace(CONFIG, m)[1])
    slope = jax.jit(jax.grad(lambda taps: local.trace(CONFIG, m, taps)[0].sum()))(zeros)
    run = jax.jit(lambda taps: local.trace(CONFIG, m, taps)[0].sum())
    for place, name in (((1, 2, 1, 5), "entering"), ((0, 0, 3, 2), "mid")):
        ends = [run(zeros._replace(**{name: getattr(zeros, name).at[place].set(way * 1e-2)})) for way in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-2, getattr(slope, name)[place], rtol=1e-2, atol=1e-3)
    after = np.arange(7)[None] >= np.asarray(INPUTS.lengths)[:, None]
    assert not np.asarray(slope.mid)[:, after].any(), "padding moves nothing"


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_ids_of_padding_do_not_matter_to_a_bit(kind):
    indices = np.argwhere(np.ones((2, 4)))
    tokens = np.asarray(INPUTS.tokens)
    padding = np.arange(7)[None] >= np.asarray(INPUTS.lengths)[:, None]
    assert padding.any()
    found = [
        sweep.exact(
            CONFIG, kind, models(inputs=INPUTS._replace(tokens=jnp.asarray(np.where(padding, fill, tokens)))), indices
        )
        for fill in (0, 60)
    ]
    assert found[0].tobytes() == found[1].tobytes()


@pytest.mark.parametrize("read_out", ["cosine", "centred"])
def test_other_read_outs_are_the_definition(read_out):
    centre = jnp.full(16, 0.5) if read_out == "centred" else None
    m = models(read_out=read_out, centre=centre)
    found = sweep.exact(CONFIG, "head", m, np.array([[0, 1], [1, 3]]))
    run = jax.jit(lambda gates: effect.anchor_effect(CONFIG, PAIR.base, PAIR.special, gates, INPUTS, m.anchor))
    base = run(jp.gates(PAIR, {"head": []}))
    for row, index in zip(found, [(0, 1), (1, 3)], strict=True):
        wanted = np.asarray(run(jp.gates(PAIR, {"head": [index]})) - base)
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))
