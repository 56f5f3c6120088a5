"""Parts of the engine by themselves; the whole of it is held to PyTorch in contracts/test_engine.py."""

import math

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import downstream, effect, local, sweep
from jaxpatch.models import decoder
from jaxpatch.patching import blend, components

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
CONFIG = PAIR.config
EXPERTS = testing.tiny_pair(testing.tiny_config(neurons=4, experts=3, chosen=2))


@pytest.mark.parametrize(
    ("kind", "pair"),
    [(kind, pair) for pair in (PAIR, EXPERTS) for kind in local.KINDS if kind in components.of_decoder(pair.base)],
    ids=lambda case: case if isinstance(case, str) else "experts" if case.config.experts else "one MLP",
)
def test_the_stream_is_that_of_the_patched_block(kind, pair):
    """Patch the block's parameters, run its halves: one component of each of two layers, in states that begin at layer 1."""
    config = pair.config
    models = engine_cases.models(pair, INPUTS, engine_cases.anchor(2))
    x = downstream.embedded(config, models.host, models.tree)
    x = jax.jit(downstream.trace, static_argnums=(0, 4))(config, models, x, 0, 1).entering[-1]
    states = jax.jit(downstream.trace, static_argnums=(0, 4))(config, models, x, 1, 2)
    form = local.local_of(config, kind)
    shape = components.of_decoder(pair.base)[kind].shape[1:]
    last = math.prod(shape) - 1
    asked = jnp.array([2, 1]), jnp.array([last, last])
    found = jax.jit(form.stream, static_argnums=0)(config, models, states, *asked)

    @jax.jit
    def by_hand(layer, entering):
        host, donor = (decoder.layer_of(side, layer) for side in (pair.base, pair.special))
        gate = jnp.zeros(math.prod(shape)).at[last].set(1).reshape(shape)
        weights = blend.patch(host, donor, {kind: gate}, components.of_block(host))
        block = decoder.Block(config).bind({"params": weights})
        mid = block.attention_half(entering, downstream.context_of(config, models))[0]
        return mid if form.is_mid else block.mlp_half(mid)

    for stream, layer in zip(found, (2, 1), strict=True):
        wanted = np.asarray(by_hand(layer, states.entering[layer - 1]))
        np.testing.assert_allclose(stream, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        unpatched = (states.mid[layer - 1] if form.is_mid else states.entering[layer]) - wanted
        assert np.abs(unpatched).max() > 1e-3, "the patch does something"


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_ids_of_padding_do_not_matter_to_a_bit(kind):
    indices = np.argwhere(np.ones((2, 4)))
    tokens = np.asarray(INPUTS.tokens)
    padding = np.arange(7)[None] >= np.asarray(INPUTS.lengths)[:, None]
    assert padding.any()
    filled = [INPUTS._replace(tokens=jnp.asarray(np.where(padding, fill, tokens))) for fill in (0, 60)]
    found = [
        sweep.exact(CONFIG, kind, engine_cases.models(PAIR, some, engine_cases.anchor(1)), indices) for some in filled
    ]
    assert found[0].tobytes() == found[1].tobytes()
    cheap = [
        sweep.cheap(CONFIG, (kind,), engine_cases.models(PAIR, some, engine_cases.anchor(1)))[kind] for some in filled
    ]
    assert cheap[0].linear.tobytes() == cheap[1].linear.tobytes()
    assert cheap[0].first_order.tobytes() == cheap[1].first_order.tobytes()


@pytest.mark.parametrize("read_out", ["cosine", "centred"])
def test_other_read_outs_are_the_definition(read_out):
    centre = jnp.full(16, 0.5) if read_out == "centred" else None
    models = engine_cases.models(PAIR, INPUTS, engine_cases.anchor(1, read_out=read_out, centre=centre))
    found = sweep.exact(CONFIG, "head", models, np.array([[0, 1], [1, 3]]))[:, 0]
    run = jax.jit(
        lambda gates: effect.reads(CONFIG, effect.Patched(PAIR.base, PAIR.special, gates), INPUTS, models.read_outs)
    )
    base = run(jp.gates(PAIR, {"head": []}))
    for row, index in zip(found, [(0, 1), (1, 3)], strict=True):
        wanted = np.asarray(run(jp.gates(PAIR, {"head": [index]})) - base)[0]
        np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))
