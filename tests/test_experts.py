"""Several experts of one base, whose common sources and conflicts were put there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import experts, testing
from jaxpatch.scoring import conflict
from jaxpatch.trees import paths

ANCHOR = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
PROMPTS = testing.tiny_inputs()
LEAVES = {name: f"layers/mlp/{name}/kernel" for name in ("gate", "up", "down")}
ALIKE, OPPOSED, ASIDE = (0, 3), (0, 7), (1, 2)
"""Neurons that two experts changed: the same way, the opposite way, and in other matrices."""
OWN = {"one": (1, 5), "other": (1, 9)}


def moved(base, changed):
    """Base with changes. changed: neuron -> matrix -> what is added, of its length."""
    flat = {path: np.array(leaf) for path, leaf in paths.flatten(base).items()}
    for (layer, neuron), parts in changed.items():
        for name, change in parts.items():
            place = (layer, neuron) if name == "down" else (layer, slice(None), neuron)
            flat[LEAVES[name]][place] += change
    return paths.unflatten(jax.tree.map(jnp.asarray, flat))


@pytest.fixture(scope="module")
def pairs():
    """one and other share three neurons of the four that each has."""
    plain, draw = testing.tiny_pair(), np.random.default_rng(0)
    alike, opposed, own = ({name: draw.normal(size=16).astype(np.float32) for name in LEAVES} for _ in range(3))
    turned = {name: -2 * change for name, change in opposed.items()}
    half = {name: 0.5 * change for name, change in alike.items()}
    changed = {
        "one": {ALIKE: alike, OPPOSED: opposed, ASIDE: {"up": own["up"]}, OWN["one"]: own},
        "other": {ALIKE: half, OPPOSED: turned, ASIDE: {"down": own["down"]}, OWN["other"]: own},
    }
    return {
        name: jp.Pair(base=plain.base, special=moved(plain.base, each), config=plain.config)
        for name, each in changed.items()
    }


@pytest.fixture(scope="module")
def found(pairs):
    return jp.score_experts({name: (pair, PROMPTS, ANCHOR) for name, pair in pairs.items()}, kinds=("neuron",))


def test_scores_are_those_of_each_by_itself(pairs, found):
    for name, pair in pairs.items():
        alone = jp.score(pair, PROMPTS, ANCHOR, kinds=("neuron",))
        np.testing.assert_array_equal(found[name].values["neuron"], alone.values["neuron"])
        np.testing.assert_array_equal(found[name].effects["neuron"], alone.effects["neuron"])


def test_planted_overlap_and_conflict_are_found(pairs, found):
    made = jp.conflicts(pairs, found, "neuron", 4)
    rows = {each.name: each for each in made.of("other", "one")}
    assert set(rows) == {f"neuron {layer}.{index}" for layer, index in (ALIKE, OPPOSED, ASIDE)}
    cosines = [rows[f"neuron {layer}.{index}"].cosine for layer, index in (ALIKE, OPPOSED, ASIDE)]
    np.testing.assert_allclose(cosines, [1, -1, 0], atol=1e-5)
    counts = [rows[f"neuron {layer}.{index}"][-2:] for layer, index in (ALIKE, OPPOSED, ASIDE)]
    assert counts == [(48, 0), (48, 48), (0, 0)]
    row = made.to_frame().iloc[0]
    assert (row["one"], row["other"], row["shared"], row["pulled_apart"]) == ("one", "other", 3, 1)
    assert row["signs_opposed"] == 0.5 and row["cosine"] == pytest.approx(0, abs=1e-5)
    table = made.components().set_index("name")
    assert np.isnan(table.loc["neuron 1.2", "signs_opposed"]) and table.loc["neuron 0.7", "signs_opposed"] == 1
    assert row["chance"] == jp.overlap(found, "neuron", 4).chance[0, 1]


def test_where_nothing_is_shared_nothing_is_said():
    overlap = jp.Overlap("head", 1, ("a", "b"), np.eye(2, dtype=int), np.ones((2, 2)), np.ones((2, 2)))
    made = conflict.Conflicts(overlap, ())
    row = made.to_frame().iloc[0]
    assert row["shared"] == row["pulled_apart"] == 0 and np.isnan([row["cosine"], row["signs_opposed"]]).all()
    assert made.of("a", "b") == [] and made.components().empty


def test_three_experts_are_compared_two_by_two(pairs, found):
    three = pairs | {"third": pairs["one"]}
    made = jp.conflicts(three, found | {"third": found["one"]}, "neuron", 4)
    frame = made.to_frame().set_index(["one", "other"])
    assert frame["shared"].tolist() == [3, 4, 3] and frame.loc[("one", "third"), "cosine"] == pytest.approx(1)


def test_equal_bases_become_one_and_what_special_shared_with_its_own_goes_along(pairs):
    copied = jax.tree.map(jnp.array, pairs["other"].base)
    flat, own = paths.flatten(copied), paths.flatten(pairs["other"].special)
    special = paths.unflatten({path: flat[path] if "attn" in path else leaf for path, leaf in own.items()})
    other = dataclasses.replace(pairs["other"], base=copied, special=special)
    made = experts.with_one_base({"one": pairs["one"], "other": other})
    assert made["other"].base is pairs["one"].base and made["one"] is pairs["one"]
    kept, base = paths.flatten(made["other"].special), paths.flatten(pairs["one"].base)
    assert all((kept[path] is base[path]) == ("attn" in path) for path in kept)


def test_other_bases_are_refused_before_anything_is_scored(pairs, monkeypatch):
    monkeypatch.setattr(experts.pipeline, "score", lambda *_, **__: pytest.fail("scored"))
    nudged = jax.tree.map(lambda leaf: leaf, pairs["one"].base) | {"final_norm": {"scale": jnp.ones(16)}}
    wrong = {
        "one": pairs["one"],
        "nudged": dataclasses.replace(pairs["one"], base=nudged),
        "turned": dataclasses.replace(pairs["one"], config=dataclasses.replace(pairs["one"].config, norm_eps=0.1)),
    }
    with pytest.raises(ValueError) as refused:
        jp.score_experts({name: (pair, PROMPTS, ANCHOR) for name, pair in wrong.items()})
    said = str(refused.value)
    assert (
        "nudged and one: other numbers in final_norm/scale" in said and "turned and one: their configs differ" in said
    )
    assert "Load all of them with the same base" in said


def test_an_expert_that_cannot_be_scored_is_named(pairs):
    same = dataclasses.replace(pairs["one"], special=pairs["one"].base)
    with pytest.raises(ValueError, match=r"^same: no input has a positive gap"):
        jp.score_experts({"same": (same, PROMPTS, ANCHOR)})


def test_what_cannot_be_compared_is_refused(pairs, found):
    with pytest.raises(ValueError, match=r"at least two experts; got 1\n.*only in one of them: other"):
        jp.conflicts({"one": pairs["one"]}, found, "neuron", 4)
    with pytest.raises(ValueError, match="at least one pair, by name; got none"):
        jp.score_experts({})
    with pytest.raises(KeyError, match="'head' was not scored in one, other"):
        jp.conflicts(pairs, found, "head", 1)


def test_models_of_your_own(pairs):
    """Any Flax model: rows of one matrix, pulled apart."""
    base = {"w": jnp.ones((3, 4)), "out": jnp.ones(3)}
    partition = jp.partition(base, {"row": {"w": 0}})
    change = jnp.eye(3, 4)
    trees = {
        name: jp.TreePair(base, {**base, "w": base["w"] + sign * change}, partition)
        for name, sign in (("up", 1.0), ("down", -1.0))
    }

    def read(sign):
        return lambda params, inputs: sign * (inputs @ params["w"].T).sum(1)

    inputs = jnp.ones((3, 4))
    asked = {"up": (trees["up"], inputs, read(1.0)), "down": (trees["down"], inputs, read(-1.0))}
    found = jp.score_experts(asked, kinds=("row",))
    row = jp.conflicts(trees, found, "row", 2).to_frame().iloc[0]
    assert row["shared"] == 2 and row["cosine"] == -1 and row["signs_opposed"] == 1
    other = dataclasses.replace(trees["down"], partition=jp.partition(base, {"row": {"w": 1}}))
    with pytest.raises(ValueError, match="their partitions differ"):
        experts.with_one_base({"up": trees["up"], "down": other})
    with pytest.raises(ValueError, match="one is a Pair, the other a TreePair"):
        experts.with_one_base({"up": trees["up"], "pair": pairs["one"]})
