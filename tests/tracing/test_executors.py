"""From a formed state to the output: on a hierarchy made by hand, and held to what the call says that it does."""

import dataclasses
import json
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.tracing import flow

ANCHOR = jp.Anchor(layer=1, direction=jnp.eye(8)[1])


def executing_pair():
    """A neuron writes, head 1.0 makes the state of it, head 2.0 reads the state, and one token's logit is what that head writes."""
    pair = testing.relay_pair((3.0,), hops=2)
    sides = []
    for side in (pair.base, pair.special):
        matrix = side["unembed"]["kernel"]
        assert not matrix.any()
        sides.append({**side, "unembed": {"kernel": matrix.at[2, 5].set(3e6)}})
    return dataclasses.replace(pair, base=sides[0], special=sides[1])


@pytest.fixture(scope="module")
def built():
    """(pair, prompts, what `executors` finds there)."""
    pair, prompts = executing_pair(), testing.tiny_inputs()
    return pair, prompts, jp.executors(pair, prompts, ANCHOR)


def test_the_one_executor_comes_out_as_built(built):
    pair, prompts, found = built
    wanted = np.zeros((3, 2))
    wanted[2, 0] = 1
    np.testing.assert_allclose(found.values["head"], wanted, atol=1e-4)
    assert not found.values["neuron"].any()
    assert found.ceilings["all head"] == pytest.approx(1, abs=1e-4) and found.ceilings["all neuron"] == pytest.approx(0)
    relays = jp.score(pair, prompts, jp.NextToken("kl"), kinds=("head",), method="activation")
    assert relays.values["head"][1, 0] == pytest.approx(1, abs=1e-4), "below the anchor it would be seen as well"


def test_the_graph_goes_on_to_the_output(built):
    pair, prompts, executed = built
    traced = jp.trace(pair, prompts, ANCHOR, method="local_linear")
    whole = flow.with_executors(traced, executed)
    edges = {(row["supplier"], row["target"]): row for row in whole.to_frame().to_dict("records")}
    assert edges.keys() == {
        ("head 1.0", "state"),
        ("neuron 0.0", "state"),
        ("neuron 0.0", "head 1.0"),
        ("state", "head 2.0"),
        ("head 2.0", "output"),
    }
    assert edges["head 2.0", "output"]["E_a"] == pytest.approx(1, abs=1e-4)
    assert edges["head 2.0", "output"]["direct"] == pytest.approx(1, abs=1e-4)
    assert np.isnan([edges["state", "head 2.0"][name] for name in ("E_w", "E_a", "direct")]).all()
    assert {node.name: (node.role, node.level) for node in whole.nodes}["head 2.0"] == ("executor", -1)
    assert whole.nodes[: len(traced.nodes)] == traced.nodes and whole.overlap().equals(traced.overlap())
    told = json.loads(whole.to_json())
    assert told["nodes"][-2]["name"] == "output" and told["edges"][-2]["direct"] is None
    graph = ElementTree.fromstring(whole.to_graphml())
    assert len(list(graph.iter("{http://graphml.graphdrawing.org/xmlns}edge"))) == 5
    arrays = whole.arrays()
    assert arrays["layer"].tolist()[-2:] == [-1, 2] and len(arrays["direct"]) == 5


@pytest.mark.parametrize(
    "read_out", [jp.NextToken("kl"), pytest.param(jp.NextToken("log_prob"), marks=pytest.mark.slow)]
)
def test_the_state_is_formed_by_all_up_to_the_anchor_and_by_nothing_above(read_out):
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
    found = jp.executors(pair, prompts, anchor, kinds=("head", "mlp"), read_out=read_out)
    gates = jp.gates(pair, {"layer": [(0,), (1,)], "embed": "all"})
    formed = dataclasses.replace(pair, special=jp.patch(pair.base, pair.special, gates))
    wanted = jp.score(formed, prompts, read_out, kinds=("head", "mlp"), method="activation")
    np.testing.assert_array_equal(found.gap, wanted.gap)
    for kind, values in found.values.items():
        assert not values[:2].any() and values[2].any()
        np.testing.assert_allclose(values[2], wanted.values[kind][2], rtol=1e-4, atol=1e-6)


def test_an_embedding_that_is_the_unembedding_stays_base_s():
    """Or the run in which the state is formed would have special's unembedding, above the anchor."""
    pair, prompts = testing.tiny_pair(testing.tiny_config(tied=True)), testing.tiny_inputs()
    anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
    found = jp.executors(pair, prompts, anchor, kinds=["mlp"])
    formed = dataclasses.replace(
        pair, special=jp.patch(pair.base, pair.special, jp.gates(pair, {"layer": [(0,), (1,)]}))
    )
    wanted = jp.score(formed, prompts, jp.NextToken("kl"), kinds=("mlp",), method="activation")
    np.testing.assert_array_equal(found.gap, wanted.gap)
    np.testing.assert_allclose(found.values["mlp"][2], wanted.values["mlp"][2], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_asked_is_refused_at_once():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    top = jp.Anchor(layer=2, direction=jnp.eye(16)[0])
    with pytest.raises(
        ValueError, match=r"(?s)method 'exact'; wanted one of activation.*nothing stands above block 2 of 3"
    ):
        jp.executors(pair, prompts, top, method="exact")
    with pytest.raises(ValueError, match="executors:\nanchor: layer -1: this model has blocks 0 to 2"):
        jp.executors(pair, prompts, jp.Anchor(layer=-1, direction=jnp.eye(16)[0]))
    with pytest.raises(ValueError, match="wanted a Pair of decoders and an Anchor"):
        jp.executors(pair, prompts, jp.NextToken("kl"))
