"""The public calls about sets, on pairs whose structure was put there, and what they refuse."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import joint, testing
from jaxpatch.patching import components

PAIR, INPUTS = testing.tiny_pair(change=0.3), testing.tiny_inputs()
ANCHOR = jp.Anchor(layer=1, direction=np.eye(16)[0])
STATE = jp.Anchor(layer=1, direction=np.eye(8)[testing.STATE])
SUM, EITHER = (2.0, 1.0, -1.0), (3000.0, 3000.0, 0.0)
"""What neurons write: shares of a sum; or so much that the norm lets no more than one of them through."""


@functools.cache
def relayed(written):
    """A pair in which the first neurons write, and its scores."""
    pair = testing.relay_pair(written)
    return pair, jp.score(pair, INPUTS, STATE, kinds=("neuron",))


def scored():
    """Scores of the tiny pair, of kinds that overlap, as a drawn ranking."""
    partition, draw = components.of_decoder(PAIR.base), np.random.default_rng(0)
    values = {kind: draw.random(partition[kind].shape) for kind in ("head", "neuron", "layer")}
    return jp.Scores(
        values=values,
        effects={kind: np.stack([each] * 4) for kind, each in values.items()},
        low=values,
        high=values,
        gap=np.ones(4),
        is_kept=np.ones(4, bool),
        ceilings={},
        noise={},
        method="exact",
        aggregate="mean_of_ratios",
        layer=1,
        partition=partition,
    )


def trees():
    """``x w0 w1 + x w2``: two weights that need each other, and one that does not."""
    base, special = ({"w": jnp.asarray(w, jnp.float32)} for w in ([0.0, 0, 0], [1.0, 1, 0.5]))
    pair = jp.TreePair(base, special, jp.partition(base, {"weight": {"w": 0}}))
    return pair, jnp.array([1.0, 2.0, 3.0]), lambda params, x: x * (params["w"][0] * params["w"][1] + params["w"][2])


CALLS = {
    "interactions": (jp.interactions, "top", 2),
    "shapley": (jp.shapley, "top", 2),
    "greedy": (jp.greedy, "size", 1),
}
"""Each, the option that says how many components, and the fewest."""


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(count=2.5, seed=-1), r"{count}: wanted .*; got 2.5.*seed: wanted a whole number, at least 0; got -1"),
        (dict(count=0), "{count}: wanted a whole number, at least {fewest}; got 0"),
        (dict(memory="much"), "memory: wanted a number of bytes; got 'much'"),
        (dict(pair=testing.tiny_pair(testing.tiny_config(neurons=5))), r"'neuron' has shape \(3, 24\); .* \(3, 5\)"),
        (dict(anchor=jp.NextToken()), "wanted an Anchor, .*; got NextToken"),
    ],
)
def test_bad_options_are_refused_before_any_work(monkeypatch, name, changes, message):
    monkeypatch.setattr(joint.hosts, "of_pair", lambda *args, **kw: pytest.fail("work was done"))
    call, count, fewest = CALLS[name]
    asked = {"pair": PAIR, "inputs": INPUTS, "anchor": ANCHOR, "found": scored()} | changes
    asked |= {count: asked.pop("count")} if "count" in asked else {}
    message = message.replace("{count}", count).replace("{fewest}", str(fewest))
    with pytest.raises(ValueError, match=f"(?s)^{name}.*{message}"):
        call(**asked)


@pytest.mark.parametrize("name", CALLS)
def test_more_components_than_there_are_are_refused(name):
    pair, found = relayed(SUM)
    call, count, _ = CALLS[name]
    with pytest.raises(ValueError, match=f"{name}: wanted no more components than .* the anchor, 6; got {count}=7"):
        call(pair, INPUTS, STATE, found, **{count: 7})


def test_of_overlapping_kinds_the_finer_take_part():
    found = scored()
    made = jp.interactions(PAIR, INPUTS, ANCHOR, found, top=4)
    assert {each.kind for each in made.components} <= {"head", "neuron"}
    best = found.to_frame().query("kind != 'layer' and layer <= 1").nlargest(4, "score")
    assert [each.name for each in made.components] == best["name"].tolist()


def test_redundant_neurons_stand_for_each_other():
    pair, found = relayed(EITHER)
    made = jp.interactions(pair, INPUTS, STATE, found, top=2)
    assert [each.name for each in made.components] == ["neuron 0.0", "neuron 0.1"]
    assert (made.alone > 0.7).all() and made.values[0, 1] < -0.5 and made.is_clear[0, 1]
    assert made.excess.value == pytest.approx(made.values[0, 1], abs=1e-5)


def test_neurons_whose_shares_add_up_do_not_interact():
    pair, found = relayed(SUM)
    made = jp.interactions(pair, INPUTS, STATE, found, top=6)
    np.testing.assert_allclose(made.values, 0, atol=0.01)
    np.testing.assert_allclose(made.alone, [1, 0.5, 0, 0, 0, -0.5], atol=0.01)


def test_interactions_of_a_pair_of_trees():
    pair, inputs, read = trees()
    found = jp.score(pair, inputs, read, kinds=("weight",))
    made = jp.interactions(pair, inputs, read, found, top=3)
    assert [each.place for each in made.components] == [(2,), (0,), (1,)]
    np.testing.assert_allclose(made.values, np.array([[0, 0, 0], [0, 0, 2], [0, 2, 0]]) / 3, atol=1e-6)


def test_redundant_neurons_share_what_either_is_enough_for():
    pair, found = relayed(EITHER)
    made = jp.shapley(pair, INPUTS, STATE, found, top=2)
    np.testing.assert_allclose(made.values, made.joint.value / 2, atol=1e-5)
    assert (made.alone > 0.7).all() and (made.last < 0.3).all(), "one by one both count, and neither is needed"


def test_shapley_values_of_a_pair_of_trees():
    pair, inputs, read = trees()
    made = jp.shapley(pair, inputs, read, jp.score(pair, inputs, read, kinds=("weight",)), top=3)
    assert [each.place for each in made.components] == [(2,), (0,), (1,)]
    np.testing.assert_allclose(made.values, [1 / 3] * 3, atol=1e-6)


def test_too_few_rounds_are_refused():
    pair, found = relayed(SUM)
    with pytest.raises(ValueError, match="rounds: wanted a whole number, at least 2; got 1"):
        jp.shapley(pair, INPUTS, STATE, found, top=3, rounds=1)


def test_a_set_grown_one_by_one_leaves_out_what_stands_for_another():
    pair, found = relayed((3000.0, 2900.0, 1.0))
    made = jp.greedy(pair, INPUTS, STATE, found, size=1, pool=3)
    assert [each.name for each in made.components] == ["neuron 0.0"] and made.pool == 3
    assert jp.greedy(pair, INPUTS, STATE, found, size=2).pool == 6
    with pytest.raises(ValueError, match="pool: wanted no fewer than size=3; got 2"):
        jp.greedy(pair, INPUTS, STATE, found, size=3, pool=2)


def test_greedy_choice_from_a_pair_of_trees():
    pair, inputs, read = trees()
    made = jp.greedy(pair, inputs, read, jp.score(pair, inputs, read, kinds=("weight",)), size=3)
    assert [each.place for each in made.components] == [(2,), (0,), (1,)]
    np.testing.assert_allclose(made.recovery, [1 / 3, 1 / 3, 1], atol=1e-6)


def test_gates_learned_of_a_pair_of_trees_find_what_needs_each_other():
    """Two of three weights: those two, of which the ranking sees nothing, recover more than the one that it sees."""
    pair, inputs, read = trees()
    found = jp.score(pair, inputs, read, kinds=("weight",))
    made = jp.learned_gates(pair, inputs, read, found, size=2)
    assert {each.place for each in made.components} == {(0,), (1,)}
    assert made.recovered.value == pytest.approx(2 / 3, abs=1e-5) and made.relaxed.value == pytest.approx(
        2 / 3, abs=0.01
    )
    assert len(made.losses) == 200 and (made.to_frame()["gate"].to_numpy() > 0.9).all()


def test_gates_learned_of_a_pair():
    pair, found = relayed(SUM)
    steps = []
    made = jp.learned_gates(
        pair, INPUTS, STATE, found, size=2, steps=60, progress=lambda done, total: steps.append((done, total))
    )
    assert "neuron 0.0" in {each.name for each in made.components}
    assert made.recovered.value == pytest.approx(1, abs=0.01), (
        "with one that does nothing; the ranking's two recover half too much"
    )
    assert steps[-1] == (60, 60)


def test_learning_refuses_to_choose_all_and_rates_that_are_none():
    pair, found = relayed(SUM)
    with pytest.raises(ValueError, match=r"wanted fewer components than there are, .*; got size=6"):
        jp.learned_gates(pair, INPUTS, STATE, found, size=6)
    with pytest.raises(ValueError, match="rate: wanted a number above 0; got 0"):
        jp.learned_gates(pair, INPUTS, STATE, found, size=2, rate=0)
    with pytest.raises(MemoryError, match="a run of one prompt"):
        jp.learned_gates(pair, INPUTS, STATE, found, size=2, memory=1000)


def test_how_much_ranking_one_by_one_loses():
    """Where two weights need each other, the first two of the ranking are worth half of what the learned two are."""
    pair, inputs, read = trees()
    found = jp.score(pair, inputs, read, kinds=("weight",))
    sets = {
        "learned": jp.learned_gates(pair, inputs, read, found, size=2).components,
        "Shapley": jp.shapley(pair, inputs, read, found, top=3).ranked,
        "my own": [("weight", (0,)), ("weight", (2,))],
    }
    steps = []
    rows = jp.compare_sets(
        pair, inputs, read, found, sets, sizes=[2], held_out=2 * inputs, progress=lambda *done: steps.append(done)
    )
    by_name = {(row.name, row.is_held_out): row for row in rows}
    assert len(rows) == 8 and steps[-1] == (8, 8)
    for is_held_out in (False, True):
        assert by_name["ranking", is_held_out].recovery == pytest.approx(1 / 3, abs=1e-5)
        assert by_name["learned", is_held_out].gain == pytest.approx(1 / 3, abs=1e-5)
        assert by_name["my own", is_held_out][3:] == pytest.approx(by_name["ranking", is_held_out][3:])
    assert by_name["learned", False].shared == 1


def test_comparison_of_a_pair_is_by_whole_runs():
    pair, found = relayed(SUM)
    sets = {"greedy": jp.greedy(pair, INPUTS, STATE, found, size=3).components}
    rows = jp.compare_sets(pair, INPUTS, STATE, found, sets, held_out=testing.tiny_inputs(seed=5))
    assert [(row.name, row.size, row.is_held_out) for row in rows[:3]] == [
        ("ranking", 1, False),
        ("greedy", 1, False),
        ("ranking", 3, False),
    ]
    assert len(rows) == 8
    np.testing.assert_allclose([row.recovery for row in rows], [1, 1, 1.5, 1.5] * 2, atol=0.01)
    assert all(row.gain == 0 and row.shared == row.size for row in rows)


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({}, {}, "sets: wanted at least one"),
        ({"ranking": [("neuron", (0, 0))]}, {}, "sets: 'ranking' is there by itself"),
        ({"mine": [("neuron", (0, 0))] * 2}, {}, r"sets: mine holds neuron \(0, 0\) more than once"),
        ({"mine": [("neuron", (0, 0))]}, dict(sizes=[2]), "sets: wanted at least 2 components of each; mine has 1"),
        (
            {"mine": [("neuron", (0, 0))]},
            dict(sizes=[0.5], seed=-1),
            "(?s)sizes: wanted whole numbers.*; got 0.5.*seed:",
        ),
        ({"mine": [("neuron", (0, 7))]}, {}, r"no neuron \(0, 7\): this model has"),
        ({"mine": [("nose", (0, 0))]}, {}, "unknown component 'nose'"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(sets, options, message):
    pair, found = relayed(SUM)
    with pytest.raises((ValueError, IndexError, KeyError), match=message):
        jp.compare_sets(pair, INPUTS, STATE, found, sets, **options)
