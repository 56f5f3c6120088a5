"""The waist: what scoring may ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument, sweep
from jaxpatch.measuring.read_outs import NextToken

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
    cheap = tool.cheap(("unembed", "final_norm"), sweep.silent)
    for both in cheap.values():
        assert not np.any(both.linear) and not np.any(both.first_order)
        assert both.linear.shape == both.first_order.shape == (4, 1)
    everywhere = instrument.of_pair(PAIR, INPUTS, [jp.Anchor(layer=0, direction=np.eye(16)[0]), NextToken()])
    assert all(reach.all() for reach in everywhere.reach.values()), "the next token is behind everything"


def test_kinds_out_of_reach_do_nothing_by_the_definition_either(tool):
    gates = {"final_norm": jnp.ones(1), "unembed": jnp.ones(1), "layer": jnp.array([0.0, 0.0, 1.0])}
    np.testing.assert_allclose(tool.effect(gates, np.arange(4)), tool.base, rtol=1e-6, atol=1e-6)


def test_bad_prompts_and_anchors_are_refused():
    with pytest.raises(ValueError, match="empty prompt"):
        instrument.of_pair(PAIR, jp.Inputs([[1]], [0]), jp.Anchor(layer=0, direction=np.eye(16)[0]))
    with pytest.raises(ValueError, match="anchor: layer 3"):
        instrument.of_pair(PAIR, INPUTS, jp.Anchor(layer=3, direction=np.eye(16)[0]))

    with pytest.raises(ValueError, match="mode 'ablation'; wanted one of restoration, knockout"):
        instrument.of_pair(PAIR, INPUTS, jp.Anchor(layer=0, direction=np.eye(16)[0]), mode="ablation")
    for nothing in ((), (3,), None):
        with pytest.raises((ValueError, TypeError)):
            instrument.of_pair(PAIR, INPUTS, nothing)


def test_readings_are_prompts_under_each_read_out_in_turn():
    anchors = [jp.Anchor(layer=layer, direction=np.eye(16)[axis]) for layer, axis in ((1, 0), (0, 3))]
    both = instrument.of_pair(PAIR, INPUTS, anchors)
    alone = [instrument.of_pair(PAIR, INPUTS, anchor) for anchor in anchors]
    for name in ("base", "special", "gap"):
        wanted = np.concatenate([getattr(tool, name) for tool in alone])
        np.testing.assert_allclose(getattr(both, name), wanted, rtol=1e-5, atol=1e-6)
    gates = jp.gates(PAIR, {"head": [(0, 1)]})
    rows = np.array([6, 1, 0, 4])
    wanted = np.concatenate([np.asarray(tool.effect(gates, np.arange(4))) for tool in alone])[rows]
    np.testing.assert_allclose(both.effect(gates, rows), wanted, rtol=1e-5, atol=1e-6)


def test_next_token_refers_to_special():
    """Special is no distance from itself, and its own most likely token is the target; a given target is kept."""
    given = np.array([5, 6, 7, 8])
    wanted = [NextToken("kl"), NextToken("log_prob"), NextToken("log_prob", given)]
    tool = instrument.of_pair(PAIR, INPUTS, wanted)
    base, special = (read.reshape(3, 4) for read in (tool.base, tool.special))
    last = np.asarray(INPUTS.lengths) - 1
    p, q = (
        np.asarray(jax.nn.log_softmax(PAIR.apply(side, INPUTS.tokens)[np.arange(4), last]))
        for side in (PAIR.special, PAIR.base)
    )
    np.testing.assert_allclose(special[0], 0, atol=1e-6)
    np.testing.assert_allclose(base[0], -(np.exp(p) * (p - q)).sum(-1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(special[1], p.max(-1), rtol=1e-4)
    np.testing.assert_allclose(base[1], q[np.arange(4), p.argmax(-1)], rtol=1e-4)
    np.testing.assert_allclose(base[2], q[np.arange(4), given], rtol=1e-4)


@pytest.mark.parametrize(("kind", "number"), [("head", 8), ("embed", 1)])
def test_progress_reaches_the_total(tool, kind, number):
    seen = []
    tool.exact(kind, np.argwhere(tool.reach[kind]), lambda *at: seen.append(at))
    done = [at[0] for at in seen]
    assert done == sorted(set(done)) and seen[-1] == (number, number) and {at[1] for at in seen} == {number}


@pytest.mark.parametrize("kinds", [("head",), ("embed",), ("head", "embed")])
def test_progress_of_cheap_effects_reaches_its_total(tool, kinds):
    seen = []
    tool.cheap(kinds, lambda *at: seen.append(at))
    assert seen and seen[-1][0] == seen[-1][1]


def test_of_effect_by_hand():
    toy = scoring_toys.product()
    assert toy.base.tolist() == [0, 0] and toy.gap.tolist() == [5, 10]
    seen = []
    assert toy.exact("part", np.array([[1], [0]]), lambda *at: seen.append(at)).tolist() == [[0, 0], [2, 4]]
    assert seen == [(2, 2)]
    cheap = toy.cheap(("part",), sweep.silent)["part"]
    assert cheap.linear.tolist() == cheap.first_order.tolist() == [[2, 0, 0], [4, 0, 0]], "the slopes of its gates"


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
