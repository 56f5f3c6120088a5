"""Tracing: on hierarchies made by hand, whose graph is known, and on scores made by hand."""

import dataclasses
import json
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.patching.components import Kind
from jaxpatch.tracing import flow


def traced(written, hops=1, **asked):
    anchor = jp.Anchor(layer=hops, direction=jnp.eye(8)[hops])
    return jp.trace(testing.relay_pair(written, hops=hops), testing.tiny_inputs(), anchor, method="exact", **asked)


def ends(found):
    return {(row.supplier, row.target): row for row in found.to_frame().itertuples()}


def test_two_relays_in_a_row_come_out_as_built():
    found = traced((3.0, 1.0), hops=2)
    edges = ends(found)
    heads = {("head 2.0", "state"), ("head 1.0", "state"), ("head 1.0", "head 2.0")}
    targets = ("state", "head 2.0", "head 1.0")
    assert edges.keys() == heads | {(f"neuron 0.{n}", target) for n in (0, 1) for target in targets}
    assert {node.name: node.role for node in found.nodes} == {
        "state": "state",
        "head 2.0": "relay",
        "head 1.0": "relay",
        "neuron 0.0": "both",
        "neuron 0.1": "both",
    }
    for ends_of, edge in edges.items():
        shares = {"neuron 0.0": 0.75, "neuron 0.1": 0.25}
        if edge.supplier in shares:
            assert edge.role == "both", "what its parameters make passes through its activation"
            assert edge.E_w == pytest.approx(shares[edge.supplier], abs=0.02) == edge.E_a
        else:
            assert edge.E_a == pytest.approx(1, abs=0.02) and edge.E_w == pytest.approx(0, abs=1e-5)
        is_built = ends_of in {("head 2.0", "state"), ("head 1.0", "head 2.0")} or edge.target == "head 1.0"
        assert edge.direct == pytest.approx(edge.E_a if is_built else 0, abs=0.03)
    for node in found.nodes:
        if node.kind == "head":
            assert node.own == pytest.approx(0, abs=1e-5) and node.end == ""
        elif node.kind == "neuron":
            assert node.end == "no neuron is followed"


def test_a_source_that_works_against_the_others_is_no_supplier():
    found = traced((4.0, -1.0))
    assert ends(found).keys() == {
        ("head 1.0", "state"),
        ("neuron 0.0", "state"),
        ("neuron 0.0", "head 1.0"),
    }
    assert ends(found)["neuron 0.0", "head 1.0"].E_w == pytest.approx(4 / 3, abs=0.05)


def test_of_redundant_sources_each_is_enough_and_none_is_needed():
    """Restoration finds both, and says of each that it is nearly all; knockout by single components misses both."""
    edges = ends(traced((1e5, 1e5)))
    for n in (0, 1):
        assert edges[f"neuron 0.{n}", "head 1.0"].E_w > 0.99
        assert edges[f"neuron 0.{n}", "state"].role == "both", "what it writes is seen in its activation, too"
    assert edges["head 1.0", "state"].role == "relay"
    pair, anchor = testing.relay_pair((1e5, 1e5)), jp.Anchor(layer=1, direction=jnp.eye(8)[1])
    lost = jp.score(pair, testing.tiny_inputs(), anchor, kinds=("neuron",), mode="knockout")
    assert np.abs(lost.values["neuron"]).max() < 0.01 and lost.ceilings["all neuron"] == pytest.approx(1, abs=1e-3)


def test_rounding_supplies_nothing():
    """A target's suppliers of one kind have no effect at all, and the largest of them is no supplier: a tenth of its kind's largest
    score, with an interval above 0, is not enough."""
    planted = testing.planted_pair()
    asked = planted.pair, planted.prompts, planted.anchor
    found = jp.trace(*asked, sources=("head", "neuron"), relays=("head",), method="exact").to_frame()
    carrier = np.argwhere(planted.relays["head"])[0].tolist()
    wanted = {(f"head {carrier[0]}.{carrier[1]}", "state")}
    for kind in ("head", "neuron"):
        for block, number in np.argwhere(planted.sources[kind]).tolist():
            wanted |= {(f"{kind} {block}.{number}", "state")}
            wanted |= {(f"{kind} {block}.{number}", f"head {carrier[0]}.{carrier[1]}")} if block < carrier[0] else set()
    assert set(zip(found["supplier"], found["target"], strict=True)) == wanted


def test_sources_that_cancel_leave_nothing_to_trace():
    with pytest.raises(ValueError, match="no input has a positive gap"):
        traced((1.0, -1.0))


def test_overlap_is_counted_against_chance():
    overlap = traced((3.0, 1.0)).overlap().set_index("kind").loc["neuron"]
    assert (overlap.traced, overlap.candidates, overlap["shared"]) == (2, 2, 2)
    assert overlap.share == overlap.chance == overlap.p == 1


def test_one_input_of_a_relay_is_named_by_path_patching():
    pair, prompts = testing.relay_pair((2.0, 1.0)), testing.tiny_inputs()
    anchor = jp.Anchor(layer=1, direction=jnp.eye(8)[1])
    through = {
        name: jp.score(
            pair, prompts, jp.contribution(pair, prompts, anchor, "head", (1, 0), through=name), kinds=("neuron",)
        ).values["neuron"][0]
        for name in ("all", "query", "key", "value")
    }
    np.testing.assert_allclose(through["value"], through["all"], atol=1e-5)
    assert not np.abs([through["query"], through["key"]]).max() > 1e-6


def test_a_supplier_has_a_role_for_each_of_its_targets():
    """A relay of the state that is a source to another relay, and a source of the state that another relay passes on."""
    top, low = ("head", (2, 0)), ("head", (1, 0))
    said = {
        (): measured([[0, 0.5], [0, 0], [0, 0]], [[0, 0], [0.5, 0], [0.9, 0]]),
        (top,): measured([[0, 0], [0.6, 0], [0, 0]], [[0, 0.8], [-0.1, 0], [0, 0]]),
        (low,): measured(NOTHING, NOTHING),
    }
    found = flow.follow(said.__getitem__)
    edges = {(found.nodes[e.supplier].name, found.nodes[e.target].name): e for e in found.edges}
    assert {ends: edge.role for ends, edge in edges.items()} == {
        ("head 2.0", "state"): "relay",
        ("head 1.0", "state"): "relay",
        ("head 0.1", "state"): "source",
        ("head 1.0", "head 2.0"): "source",
        ("head 0.1", "head 2.0"): "relay",
    }
    nodes = {node.name: node for node in found.nodes}
    assert nodes["head 1.0"].role == nodes["head 0.1"].role == "both"
    assert nodes["head 0.1"].end == "nothing but embeddings stands below block 0", "no source, that it should end with"
    direct = dict(zip(edges, found.direct.tolist(), strict=True))
    assert direct["head 1.0", "head 2.0"] == pytest.approx(0.6)
    assert found.overlap()["traced"].tolist() == [1]


def test_a_source_that_turns_out_a_relay_is_followed():
    top, low = ("head", (2, 0)), ("head", (1, 0))
    said = {
        (): measured([[0, 0], [0.5, 0], [0, 0]], [[0, 0], [0, 0], [0.9, 0]]),
        (top,): measured(NOTHING, [[0, 0], [0.8, 0], [0, 0]]),
        (top, low): measured([[0, 0.7], [0, 0], [0, 0]], NOTHING),
    }
    found = flow.follow(said.__getitem__)
    node = next(node for node in found.nodes if node.name == "head 1.0")
    assert (node.role, node.level, node.end) == ("both", 2, "") and node.share == pytest.approx(0.9 * 0.8)
    assert [found.nodes[e.supplier].name for e in found.edges if found.nodes[e.target].name == "head 1.0"] == [
        "head 0.1"
    ]


def test_what_passes_through_a_relay_is_taken_off_by_one_measure():
    """A source of head 2.0 that head 1.0 passes half of: its E_w on head 1.0 counts there, and not all that passes through it."""
    top, low = ("head", (2, 0)), ("head", (1, 0))
    said = {
        (): measured(NOTHING, [[0, 0], [0, 0], [0.9, 0]]),
        (top,): measured([[0.5, 0], [0, 0], [0, 0]], [[0, 0], [0.5, 0], [0, 0]]),
        (top, low): measured([[0.5, 0], [0, 0], [0, 0]], [[1.0, 0], [0, 0], [0, 0]]),
    }
    found = flow.follow(said.__getitem__)
    direct = dict(zip(ends(found), found.direct.tolist(), strict=True))
    assert [ends(found)["head 0.0", target].role for target in ("head 2.0", "head 1.0")] == ["source", "both"]
    assert direct["head 0.0", "head 2.0"] == pytest.approx(0.5 - 0.5 * 0.5)
    assert direct["head 0.0", "head 1.0"] == pytest.approx(1.0)


def test_a_relay_is_followed_by_the_path_along_which_it_counts():
    top, low = ("head", (2, 0)), ("head", (1, 0))
    said = {
        (): measured(NOTHING, [[0, 0], [0.1, 0], [0.9, 0]]),
        (top,): measured(NOTHING, [[0, 0], [0.8, 0], [0, 0]]),
        (top, low): measured([[0.9, 0], [0, 0], [0, 0]], NOTHING),
    }
    found = flow.follow(said.__getitem__, flow.Rules(least=0.2))
    nodes = {node.name: node for node in found.nodes}
    assert (nodes["head 1.0"].level, nodes["head 1.0"].end) == (2, "")
    assert nodes["head 1.0"].share == pytest.approx(0.9 * 0.8)
    assert nodes["head 0.0"].level == 3 and nodes["head 0.0"].share == pytest.approx(0.9 * 0.8 * 0.9)


@pytest.mark.filterwarnings("ignore:head. rounding alone moves scores")  # in knockout heads do nothing at all
def test_a_state_of_another_question_is_refused():
    pair, prompts, anchor = (
        testing.relay_pair((2.0, 1.0)),
        testing.tiny_inputs(),
        jp.Anchor(layer=1, direction=jnp.eye(8)[1]),
    )

    def placed(pair, **options):
        return jp.place(*(jp.score(pair, prompts, anchor, method=m, **options) for m in ("exact", "activation")))

    own = placed(pair)
    known = jp.trace(pair, prompts, anchor, state=own, method="exact", sources=["head", "neuron"], relays=["head"])
    assert known.to_json() == traced((2.0, 1.0)).to_json()
    with pytest.raises(ValueError, match="state: its gaps between base and special are not those along this anchor"):
        jp.trace(pair, prompts, anchor, state=placed(testing.relay_pair((2.0, 2.0))))
    other = placed(pair, aggregate="ratio_of_means", mode="knockout")
    with pytest.raises(
        ValueError, match=r"(?s)mode is 'knockout'; wanted 'restoration'.*aggregate is 'ratio_of_means'"
    ):
        jp.trace(pair, prompts, anchor, state=other)
    with pytest.raises(ValueError, match=r"exchanged by Exchange\(site='contribution'.*wanted Exchange\(site='vector'"):
        jp.trace(pair, prompts, anchor, state=own, site="vector")


def test_kinds_that_were_scored_on_one_side_alone_are_suppliers_too():
    relay = jp.trace(
        testing.relay_pair((2.0, 1.0)),
        testing.tiny_inputs(),
        jp.Anchor(layer=1, direction=jnp.eye(8)[1]),
        sources=("neuron",),
        relays=("head",),
        method="exact",
    )
    edge = ends(relay)["head 1.0", "state"]
    assert edge.role == "relay" and np.isnan(edge.E_w) and edge.E_a == pytest.approx(1, abs=0.02)
    assert ("neuron 0.0", "head 1.0") in ends(relay)


def test_chance_is_that_of_blocks_below_each_target():
    """A source found below block 2, of four heads of which the two ranked first are one; another below block 1, of two."""
    top, low = ("head", (2, 0)), ("head", (1, 0))
    said = {
        (): measured([[0.1, 0.5], [0, 0.7], [0, 0]], [[0, 0], [0.5, 0], [0.9, 0]]),
        (top,): measured([[0, 0], [0, 0.6], [0, 0]], NOTHING),
        (low,): measured([[0.8, 0], [0, 0], [0, 0]], NOTHING),
    }
    (row,) = flow.follow(said.__getitem__).overlap().to_dict("records")
    assert (row["traced"], row["candidates"], row["shared"]) == (2, 4, 1)
    assert row["chance"] == pytest.approx((2 / 4 + 1 / 2) / 2) and row["p"] == pytest.approx(0.75)


def test_each_edge_says_through_which_input_of_its_target_it_comes():
    found = traced((3.0, 1.0), hops=2, by_input=True)
    edges = {(found.nodes[edge.supplier].name, found.nodes[edge.target].name): edge for edge in found.edges}
    for (supplier, target), edge in edges.items():
        if target == "state":
            assert np.isnan(edge.inputs).all() and edge.through == ""
            continue
        whole = edge.activations[0] if supplier.startswith("head") else edge.weights[0]
        np.testing.assert_allclose(edge.inputs, (0, 0, whole, np.nan), atol=1e-5)
        assert edge.through == "value"
    assert ("head 1.0", "head 2.0") in edges and ("neuron 0.1", "head 1.0") in edges


def two_targets():
    """A random pair whose state, on one prompt, has two relays with suppliers of their own."""
    prompts = testing.tiny_inputs().rows(slice(0, 1))
    return testing.tiny_pair(seed=2), prompts, jp.Anchor(layer=2, direction=jnp.eye(16)[2])


def test_inputs_of_edges_are_what_path_patching_says_of_each_by_itself():
    pair, prompts, anchor = two_targets()
    rules = flow.Rules(most=2, levels=1, least=0.0)
    found = jp.trace(pair, prompts, anchor, method="exact", rules=rules, by_input=True)
    inputs, compared = ("query", "key", "value"), 0
    for number in {edge.target for edge in found.edges} - {0}:
        target = found.nodes[number]
        reads = [jp.contribution(pair, prompts, anchor, target.kind, target.index, through=name) for name in inputs]
        for method in ("exact", "activation"):
            each = jp.score_each(pair, prompts, reads, kinds=("head", "neuron"), method=method)
            for edge in found.edges:
                if edge.target == number and (edge.role == "source") == (method == "exact"):
                    supplier = found.nodes[edge.supplier]
                    said = [scores.values[supplier.kind][supplier.index] for scores in each]
                    np.testing.assert_allclose(edge.inputs[:3], said, rtol=0, atol=1e-5)
                    compared += 3
    assert compared == 42


def test_a_target_with_one_input_is_reached_through_it():
    head = (("head", (2, 0)),)
    said = {(): measured(NOTHING, [[0, 0], [0, 0], [0.9, 0]]), head: measured([[0.6, 0], [0, 0], [0, 0]], NOTHING)}
    asked = []

    def through(chain, suppliers, is_passed):
        asked.append((chain, tuple(suppliers), is_passed))
        return np.array([[0.1, 0.2, 0.3]])

    found = flow.follow(said.__getitem__, through=through)
    assert asked == [(head, (("head", (0, 0)),), False)], "of the state nothing is asked"
    assert found.edges[-1].inputs[:3] == (0.1, 0.2, 0.3)
    neuron = (("neuron", (2, 0)),)

    def of_neurons(scores):
        named = {
            name: {"neuron": each["head"]} for name, each in vars(scores).items() if isinstance(each, dict) and each
        }
        return dataclasses.replace(scores, **named)

    alone = {
        chain: flow.Measured(*map(of_neurons, each[:2]), 0.1)
        for chain, each in zip(((), neuron), said.values(), strict=True)
    }
    found = flow.follow(alone.__getitem__, through=through)
    assert len(asked) == 1 and found.edges[-1].through == "mlp"
    assert found.edges[-1].inputs[3] == pytest.approx(0.6)


def test_tracing_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    pair, prompts, anchor = two_targets()
    asked = dict(method="exact", rules=flow.Rules(most=2, levels=1, least=0.0), by_input=True)
    whole = jp.trace(pair, prompts, anchor, **asked)

    class Stopped(Exception):
        pass

    targets = []

    def stop_at_the_second(name):
        targets.append(name)
        if len(targets) == 3:  # the state is the first
            raise Stopped

    with pytest.raises(Stopped), jp.Journal(tmp_path / "kept", period=0) as journal:
        jp.trace(pair, prompts, anchor, **asked, journal=journal, started=stop_at_the_second)
    with jp.Journal(tmp_path / "kept") as journal:
        again = jp.trace(pair, prompts, anchor, **asked, journal=journal)
        assert journal.num_resumed > 0
    assert again.to_json() == whole.to_json()
    with jp.Journal(tmp_path / "kept") as journal, pytest.raises(jp.DifferentRunError, match="other by_input"):
        jp.trace(pair, prompts, anchor, **asked | {"by_input": False}, journal=journal)


def scores(method, values, low=0.5):
    """Scores of one kind in three layers. values: [3, n]. low: end of the interval, times the score."""
    values = np.array(values, np.float32)
    return jp.Scores(
        values={"head": values},
        effects={"head": np.stack([values, values])},
        low={"head": values * low},
        high={"head": values * 1.5},
        gap=np.ones(2),
        is_kept=np.ones(2, bool),
        ceilings={},
        noise={},
        method=method,
        aggregate="mean_of_ratios",
        layer=2,
        partition={"head": Kind((3, 2), ("layer", "head"), ())},
    )


def measured(own, passed, **options):
    return flow.Measured(scores("exact", own, **options), scores("activation", passed, **options), 0.1)


NOTHING = [[0, 0], [0, 0], [0, 0]]


def test_each_relay_is_followed_once_for_what_it_was_first_found_to_supply():
    asked = []
    said = {
        (): measured([[0, 0], [0, 0], [0, 0]], [[0, 0], [0.5, 0], [0.9, 0]]),
        (("head", (2, 0)),): measured([[0.6, 0], [0, 0], [0, 0]], [[0.6, 0], [0.5, 0.4], [0, 0]]),
        (("head", (1, 0)),): "its contribution is no larger in special than in base",
        (("head", (2, 0)), ("head", (1, 1))): measured(NOTHING, NOTHING),
    }

    def measure(chain):
        asked.append(chain)
        return said[chain]

    found = flow.follow(measure)
    assert asked == list(said)
    by_name = {node.name: node for node in found.nodes}
    assert by_name["head 1.0"].end == "its contribution is no larger in special than in base"
    assert by_name["head 1.1"].end == "no supplier stands out" and by_name["head 1.1"].level == 2
    assert by_name["head 1.1"].share == pytest.approx(0.9 * 0.4)
    assert by_name["head 0.0"].role == "both"
    assert by_name["head 0.0"].end == "nothing but embeddings stands below block 0"


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        (dict(levels=0), "the deepest level"),
        (dict(least=0.6), "its share of the state is below 0.6"),
        (dict(targets=("mlp",)), "no head is followed"),
    ],
)
def test_what_is_not_followed_says_why(rules, end):
    targets = {name: rules.pop(name) for name in ("targets",) if name in rules}
    first = measured(NOTHING, [[0, 0], [0, 0], [0.9, 0]])
    second = measured(NOTHING, [[0, 0], [0.65, 0], [0, 0]])

    def measure(chain):
        return second if chain else first

    found = flow.follow(measure, flow.Rules(**rules), **targets)
    assert found.nodes[-1].end == end


def of_both(heads, neurons):
    """Activations of a head and of a neuron, each in the second of three layers."""
    made = [scores("activation", [[0, 0], [one, 0], [0, 0]]) for one in (heads, neurons)]
    both = {
        name: {"head": getattr(made[0], name)["head"], "neuron": getattr(made[1], name)["head"]}
        for name in ("values", "effects", "low", "high")
    }
    kind = made[0].partition["head"]
    passed = dataclasses.replace(
        made[0], partition={"head": kind, "neuron": kind._replace(axes=("layer", "neuron"))}, **both
    )
    return flow.Measured(scores("exact", NOTHING), passed, 0.1)


def test_of_what_a_neuron_passes_on_from_heads_of_its_own_block_nothing_is_known():
    """The whole of the head's share may pass through the neuron, which was followed, and of which its own block is not asked."""
    said = {
        (): of_both(0.9, 0.9),
        (("head", (1, 0)),): measured(NOTHING, NOTHING),
        (("neuron", (1, 0)),): measured(NOTHING, NOTHING),
    }
    found = flow.follow(said.__getitem__)
    direct = {
        found.nodes[edge.supplier].name: own for edge, own in zip(found.edges, found.direct.tolist(), strict=True)
    }
    assert np.isnan(direct["head 1.0"]) and direct["neuron 1.0"] == pytest.approx(0.9)
    told = {node.name: node.end for node in found.nodes}
    assert told["neuron 1.0"] == "no supplier stands out below its block; its own block's heads are not asked"
    assert told["head 1.0"] == "no supplier stands out"
    alone = flow.follow(said.__getitem__, targets=("head",))
    known = {alone.nodes[edge.supplier].name: own for edge, own in zip(alone.edges, alone.direct.tolist(), strict=True)}
    assert known["head 1.0"] == pytest.approx(0.9), "a neuron that is not followed takes nothing off"


def test_suppliers_that_may_be_chance_or_are_too_weak_are_left_out():
    unsure = measured([[0.5, 0], [0, 0], [0, 0]], [[0, 0], [0, 0], [0.9, 0]], low=-0.1)
    assert not flow.follow(lambda chain: unsure).edges
    weak = measured([[0.04, 0.003], [0, 0], [0, 0]], NOTHING)
    assert [node.name for node in flow.follow(lambda chain: weak).nodes] == ["state", "head 0.0"]


def test_no_more_than_were_asked_for_of_each_sort():
    many = measured([[0.5, 0.4], [0.3, 0.2], [0, 0]], [[0, 0], [0, 0], [0.9, 0.8]])
    found = flow.follow(lambda chain: many, flow.Rules(most=1, levels=0))
    assert [node.name for node in found.nodes] == ["state", "head 2.0", "head 0.0"]


def test_graph_in_every_form():
    found = traced((3.0, 1.0))
    arrays = found.arrays()
    assert arrays["E_w"].shape == arrays["E_a"].shape == (len(found.edges), 3)
    assert arrays["layer"].tolist() == [-1, 1, 0, 0]
    assert arrays["name"].tolist() == ["state", "head 1.0", "neuron 0.0", "neuron 0.1"]
    assert arrays["end"].tolist() == [node.end for node in found.nodes]
    told = json.loads(found.to_json())
    assert [node["name"] for node in told["nodes"]] == [node.name for node in found.nodes]
    assert told["nodes"][0]["own"] is None and told["rules"]["most"] == 5
    names = {"g": "http://graphml.graphdrawing.org/xmlns"}
    root = ElementTree.fromstring(found.to_graphml())
    drawn = root.findall("g:graph/g:edge", names)
    assert [(edge.get("source"), edge.get("target")) for edge in drawn] == [
        (f"n{edge.supplier}", f"n{edge.target}") for edge in found.edges
    ]
    keys = {key.get("id") for key in root.findall("g:key", names)}
    assert {data.get("key") for data in root.iter("{http://graphml.graphdrawing.org/xmlns}data")} <= keys
    head = {data.get("key"): data.text for data in root.findall("g:graph/g:node", names)[1]}
    assert (head["name"], head["layer"], head["kind"]) == ("head 1.0", "1", "head")
    first = {data.get("key"): data.text for data in drawn[0]}
    assert float(first["E_a"]) == pytest.approx(found.edges[0].activations[0])
    neuron = {data.get("key") for data in drawn[1]}
    assert {"E_a", "E_w"} <= neuron and first["as"] == "relay"
    assert arrays["inputs"].shape == (len(found.edges), 4) and told["edges"][0]["inputs"]["query"] is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (dict(method="best"), "unknown method 'best'"),
        (dict(method="activation"), "method 'activation' is of activations; wanted one of exact"),
        (dict(sources=("heads",)), "heads"),
        (dict(relays=("embed",)), "nothing to exchange for 'embed'"),
        (dict(sources="head"), "sources: wanted a tuple of names such as"),
        (dict(rules=None), "rules: wanted Rules; got None"),
        (dict(path="long"), "path 'long'; wanted one of total, direct"),
        (
            dict(rules=flow.Rules(most=0, least=2.0)),
            "most: wanted a whole number, at least 1; got 0.*\n.*least: wanted a share",
        ),
    ],
)
def test_bad_options_are_named(asked, words):
    anchor = jp.Anchor(layer=1, direction=jnp.eye(8)[1])
    with pytest.raises((KeyError, ValueError), match=f"(?s){words}"):
        jp.trace(testing.relay_pair(), testing.tiny_inputs(), anchor, **asked)


def test_trees_of_ones_own_have_no_contributions():
    with pytest.raises(ValueError, match="a TreePair has none"):
        jp.trace(object(), None, None)
