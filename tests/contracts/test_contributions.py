"""What suppliers change of a target's contribution: the engine and the definition against a loop in PyTorch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch_contributions
import torch_oracle
from torch_contributions import Target

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument, sweep, targets
from jaxpatch.patching import components
from jaxpatch.patching.exchange import Exchange

PADDED, PROMPTS, U = jp.Inputs(*torch_oracle.padded()), torch_oracle.PROMPTS, torch_oracle.direction()
ANCHOR = jp.Anchor(layer=2, direction=U)
TOLERANCE = parity.LIMITS["exact"]
"""Of the largest effect of the kind."""
LLAMA = "GQA tied biases"
QUICK = (LLAMA, "Gemma 2", "NeoX", "Qwen3-MoE")
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in parity.ROWS if "untied" not in name
]
EXPERTS = "Qwen3-MoE"
"""Whose neurons are no targets."""
OTHERS = [
    pytest.param(name, kind, index, marks=() if name == LLAMA else pytest.mark.slow)
    for name in QUICK
    for kind, index in (("neuron", (2, 3)), ("attention", (1,)), ("mlp", (2,)))
    if not (name == EXPERTS and kind == "neuron")
]


def check(torch_pair, pair, kind, index, *, path="total", through="all", kinds=("head",)):
    target = Target(kind, index, ANCHOR.layer)
    wanted = jp.contribution(pair, PADDED, ANCHOR, kind, index, path=path, through=through)
    listened = [torch_contributions.along(torch_pair.base, prompt, target, U, path) for prompt in PROMPTS]
    for row, true in zip(np.asarray(wanted.along), listened, strict=True):
        assert parity.apart(row[: len(true)], true.numpy()) <= parity.LIMITS["gradient"]
        assert not row[len(true) :].any()
    tool = instrument.of_pair(pair, PADDED, wanted)
    for supplier in kinds:
        true = torch_contributions.effects(torch_pair, target, supplier, PROMPTS, U, path=path, through=through)
        places = np.argwhere(np.ones(true.shape[1:]))
        found = np.zeros_like(true)
        low = places[places[:, 0] < index[0]] if supplier != "embed" else places
        found[(slice(None), *low.T)] = tool.exact(supplier, low, sweep.silent).T
        assert np.abs(true).max() > 1e-4, "the pair is too much alike to test anything"
        assert parity.apart(found, true) <= 2 * TOLERANCE, supplier
        first = low[-1]
        gate = components.gates(tool.partition, {supplier: [first]})
        slow = tool.read(gate) - tool.base
        assert np.abs(slow - true[(slice(None), *first)]).max() <= 2 * TOLERANCE * np.abs(true).max(), supplier


@pytest.mark.parametrize("name", FAMILIES)
def test_suppliers_of_a_head_are_the_torch_loop(pairs, name):
    check(*pairs(name), "head", (2, 1), kinds=("head", "mlp"))


@pytest.mark.parametrize(("name", "kind", "index"), OTHERS)
@pytest.mark.parametrize("path", targets.PATHS)
def test_suppliers_of_other_targets_are_the_torch_loop(pairs, name, path, kind, index):
    check(*pairs(name), kind, index, path=path)


@pytest.mark.parametrize("through", ["query", "key", "value"])
@pytest.mark.parametrize("name", [LLAMA, *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK[1:])])
def test_suppliers_through_one_input_are_the_torch_loop(pairs, name, through):
    check(
        *pairs(name), "head", (2, 1), path="direct", through=through, kinds=("neuron",) if name == LLAMA else ("mlp",)
    )


def test_table_of_embeddings_is_a_supplier(pairs):
    check(*pairs(LLAMA), "head", (1, 2), kinds=("embed",))


@pytest.mark.parametrize(
    ("through", "mode"),
    [
        ("all", "restoration"),
        ("value", "knockout"),
        pytest.param("all", "knockout", marks=pytest.mark.slow),
        pytest.param("value", "restoration", marks=pytest.mark.slow),
    ],
)
def test_engine_is_the_definition_for_activations_and_both_modes(mode, through):
    """Two targets in one pass; prompts that share their first tokens, and one that is the beginning of another."""
    pair = testing.tiny_pair()
    prompts = jp.Inputs(jnp.array([[3, 1, 4, 8, 9], [3, 1, 4, 0, 0], [3, 1, 7, 0, 0]]), jnp.array([5, 3, 3]))
    anchor = jp.Anchor(layer=2, direction=U)
    wanted = [jp.contribution(pair, prompts, anchor, "head", (2, n), through=through) for n in (0, 3)]
    for exchange in (None, Exchange()):
        tool = instrument.of_pair(pair, prompts, wanted, mode=mode, exchange=exchange)
        zeros = {kind: jnp.zeros(sort.shape) for kind, sort in tool.partition.items()}
        for kind in ("head", "layer"):
            places = np.array([index for index in np.ndindex(tool.partition[kind].shape) if index[0] < 2])
            found = tool.exact(kind, places, sweep.silent)
            for index, own in zip(places, found, strict=True):
                gates = {**zeros, kind: zeros[kind].at[tuple(index)].set(1)}
                slow = np.asarray(tool.effect(gates, np.arange(6))) - tool.base
                assert np.abs(slow - own).max() <= 2 * TOLERANCE * np.abs(found).max(), (kind, index)


def test_cheap_scores_are_the_slope_of_the_definition():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    tool = instrument.of_pair(
        pair, prompts, jp.contribution(pair, prompts, jp.Anchor(layer=2, direction=U), "head", (2, 1))
    )
    slopes = tool.slopes({kind: jnp.zeros(tool.partition[kind].shape) for kind in ("head", "neuron")}, sweep.silent)
    found = tool.cheap(("head", "neuron"), sweep.silent)
    for kind, slope in slopes.items():
        assert parity.apart(found[kind].first_order[:, :2], slope[:, :2]) <= parity.LIMITS["gradient"]


def test_contributions_of_all_heads_add_up_to_attention():
    """Gradients stay as they are in base, so what parts contribute is what the whole does; an output bias belongs to nobody."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    anchor = jp.Anchor(layer=2, direction=U)
    whole = instrument.of_pair(pair, prompts, jp.contribution(pair, prompts, anchor, "attention", (1,)))
    each = [jp.contribution(pair, prompts, anchor, "head", (1, n)) for n in range(pair.config.heads)]
    apart = instrument.of_pair(pair, prompts, each)
    np.testing.assert_allclose(apart.gap.reshape(pair.config.heads, -1).sum(axis=0), whole.gap, rtol=1e-4, atol=1e-5)


def test_a_contribution_listened_to_by_another_is_the_chain_rule():
    """A neuron's contribution to a head's contribution to the anchor, where nothing else listens to the neuron: all of it."""
    pair, prompts = testing.relay_pair((2.0, -1.0)), testing.tiny_inputs()
    anchor = jp.Anchor(layer=1, direction=jnp.eye(8)[testing.STATE])
    head = jp.contribution(pair, prompts, anchor, "head", (1, 0))
    found = jp.score(pair, prompts, head, kinds=("head", "neuron"))
    np.testing.assert_allclose(found.values["neuron"], [[2, -1], [0, 0]], atol=1e-4)
    assert not found.values["head"].any()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(kind="layer", index=(1,)), "kind 'layer'; wanted one of head, neuron, attention, mlp"),
        (dict(kind="head", index=(1, 9)), "wanted 2 whole numbers: 0 to 2, 0 to 3"),
        (dict(kind="head", index=(1,)), "wanted 2 whole numbers"),
        (dict(kind="head", index=(0, 1)), "nothing but embeddings stands below block 0"),
        (dict(kind="mlp", index=(2,)), "block 2 stands no lower"),
        (dict(kind="mlp", index=(1,), through="query"), "only heads and attention have such inputs"),
        (dict(kind="head", index=(1, 1), through="gate"), "through 'gate'; wanted one of all, query, key, value"),
        (dict(kind="head", index=(1, 1), path="long"), "path 'long'; wanted one of total, direct"),
    ],
)
def test_bad_targets_are_named(asked, words):
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    with pytest.raises(ValueError, match=words):
        jp.contribution(pair, prompts, jp.Anchor(layer=1, direction=U), **asked)


def test_a_contribution_is_read_on_its_own_prompts_alone():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    head = jp.contribution(pair, prompts, jp.Anchor(layer=2, direction=U), "head", (1, 1))
    order = np.array([1, 0, *range(2, len(prompts.lengths))])
    turned = type(prompts)(*(part[order] for part in prompts))
    with pytest.raises(
        ValueError, match=r"head 1\.1: it was made of other prompts \(rows 0, 1\); make it anew of these"
    ):
        jp.score(pair, turned, head, kinds=("neuron",))
    found = jp.score(pair, turned, head.rows(order), kinds=("neuron",)).effects["neuron"]
    np.testing.assert_array_equal(found, jp.score(pair, prompts, head, kinds=("neuron",)).effects["neuron"][order])


def test_contributions_are_read_with_their_like_alone():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    anchor = jp.Anchor(layer=2, direction=U)
    one, other = (jp.contribution(pair, prompts, anchor, "head", (layer, 1)) for layer in (1, 2))
    for wanted in ((one, anchor), (one, other)):
        with pytest.raises(ValueError, match="contributions are read together with others of their own layer"):
            jp.score_each(pair, prompts, wanted)


@pytest.mark.parametrize("layer", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("exchange", [None, Exchange()])
def test_programs_with_room_for_higher_targets_say_the_same(layer, exchange):
    """One compilation serves targets of several layers: blocks from a target's own on are passed by, in every way of reading."""
    pair, prompts = testing.tiny_pair(testing.tiny_config(layers=5)), testing.tiny_inputs()
    target = jp.contribution(pair, prompts, jp.Anchor(layer=4, direction=U), "head", (layer, 1), through="value")
    assert target.depth == 4
    tools = [
        instrument.of_pair(pair, prompts, each, exchange=exchange)
        for each in (target, dataclasses.replace(target, depth=None))
    ]
    shape, places = (5, pair.config.heads), np.argwhere(np.ones((layer, pair.config.heads)))
    gates = {"head": np.linspace(0, 1, num=np.prod(shape)).reshape(shape)}
    roomy, tight = (
        {
            "ends": np.stack([tool.base, tool.special]),
            "definition": tool.read(gates),
            "engine": tool.exact("head", places, sweep.silent),
            "slopes": tool.slopes(gates, sweep.silent)["head"],
            "cheap": np.stack(tool.cheap(("head",), sweep.silent)["head"]),
        }
        for tool in tools
    )
    for name, found in tight.items():
        np.testing.assert_allclose(roomy[name], found, rtol=1e-5, atol=1e-6 * np.abs(found).max(), err_msg=name)
        if name == "cheap":
            assert not roomy[name][..., layer:, :].any() and found[..., :layer, :].any()


@pytest.mark.parametrize("layer", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_gradients_that_are_dropped_are_those_below_the_target(layer):
    pair, prompts = testing.tiny_pair(testing.tiny_config(layers=5)), testing.tiny_inputs()
    target = jp.contribution(pair, prompts, jp.Anchor(layer=4, direction=U), "mlp", (layer,))
    each = [
        jp.score(
            pair,
            prompts,
            read,
            kinds=("head",),
            method="attribution",
            repairs=("grad_drop",),
            aggregate="ratio_of_means",
        )
        for read in (target, dataclasses.replace(target, depth=None))
    ]
    np.testing.assert_allclose(each[0].effects["head"], each[1].effects["head"], rtol=1e-5, atol=1e-7)
    assert each[0].effects["head"].any()


def test_a_depth_below_the_target_is_refused():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    target = jp.contribution(pair, prompts, jp.Anchor(layer=2, direction=U), "head", (2, 1))
    with pytest.raises(ValueError, match="depth 1; wanted one from the target's own block, 2, to 3"):
        instrument.of_pair(pair, prompts, dataclasses.replace(target, depth=1))
