"""The waist: what scoring may ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument, sweep

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()


@pytest.fixture(scope="module")
def tool():
    return instrument.of_pair(PAIR, INPUTS, jp.Anchor(layer=1, direction=np.eye(16)[0]))


def test_effect_begins_at_base_and_ends_at_special(tool):
    zeros, ones = ({"layer": jnp.full(3, x), "embed": jnp.full(1, x)} for x in (0.0, 1.0))
    np.testing.assert_allclose(tool.effect(zeros, np.arange(4)), tool.base, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(tool.effect(ones, np.arange(4)), tool.special, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(tool.gap, tool.special - tool.base)
    some = tool.effect(ones, np.array([2, 0]))
    np.testing.assert_allclose(some, tool.special[[2, 0]], rtol=1e-5, atol=1e-5)


def test_reach_is_all_that_an_anchor_sees(tool):
    assert tool.reach["head"].tolist() == [[True] * 4] * 2 + [[False] * 4]
    assert tool.reach["layer"].tolist() == [True, True, False]
    assert {kind: bool(tool.reach[kind].all()) for kind in ("embed", "unembed", "final_norm")} == {
        "embed": True,
        "unembed": False,
        "final_norm": False,
    }
    for kind in ("unembed", "final_norm"):
        assert not tool.linear(kind).any() and tool.linear(kind).shape == (4, 1)


def test_kinds_out_of_reach_do_nothing_by_the_definition_either(tool):
    gates = {"final_norm": jnp.ones(1), "unembed": jnp.ones(1), "layer": jnp.array([0.0, 0.0, 1.0])}
    np.testing.assert_allclose(tool.effect(gates, np.arange(4)), tool.base, rtol=1e-6, atol=1e-6)


def test_bad_prompts_and_anchors_are_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        instrument.of_pair(PAIR, jp.Inputs([[1]], [0]), jp.Anchor(layer=0, direction=np.eye(16)[0]))
    with pytest.raises(ValueError, match="anchor: layer 3"):
        instrument.of_pair(PAIR, INPUTS, jp.Anchor(layer=3, direction=np.eye(16)[0]))


def test_of_effect_by_hand():
    toy = scoring_toys.product()
    assert toy.base.tolist() == [0, 0] and toy.gap.tolist() == [5, 10]
    seen = []
    assert toy.exact("part", np.array([[1], [0]]), lambda *at: seen.append(at)).tolist() == [[0, 0], [2, 4]]
    assert seen == [(2, 2)]
    with pytest.raises(ValueError, match="no local form for 'part' here; use first_order, integrated or exact"):
        toy.linear("part")


def test_of_effect_serves_any_flax_parameters():
    """A little linear network: patch its hidden units, read its output."""
    import flax.linen as nn

    from jaxpatch.patching.blend import patch
    from jaxpatch.patching.components import Kind, Slot

    net = nn.Sequential([nn.Dense(3, use_bias=False), nn.Dense(1, use_bias=False)])
    xs = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    base, special = (net.init(jax.random.key(k), xs)["params"] for k in (0, 1))
    units = {"unit": Kind((3,), ("unit",), (Slot("layers_0/kernel", (1,)), Slot("layers_1/kernel", (0,))))}

    def effect(gates, rows):
        return net.apply({"params": patch(base, special, gates, units)}, xs[rows])[:, 0]

    tool = instrument.of_effect(effect, units, 2)
    first, second = ([tree["layers_0"]["kernel"], tree["layers_1"]["kernel"]] for tree in (base, special))
    by_hand = [xs @ second[0][:, u] * second[1][u, 0] - xs @ first[0][:, u] * first[1][u, 0] for u in range(3)]
    np.testing.assert_allclose(tool.exact("unit", np.arange(3)[:, None], sweep.silent), by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tool.gap, sum(by_hand), rtol=1e-4, atol=1e-5)
