"""Stability, where what is stable was put there."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.scoring import agreement, stability


@pytest.fixture(scope="module")
def found():
    """Scores of twelve inputs, all of which count."""
    anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
    made = jp.score(testing.tiny_pair(), testing.tiny_inputs(batch=12), anchor)
    return dataclasses.replace(made, gap=np.ones(12), is_kept=np.ones(12, bool), aggregate="mean_of_ratios")


def with_effects(found, effects):
    """Neurons of layers 0 and 1 have an effect, those of layer 2 none."""
    effects[:, 2] = 0
    return dataclasses.replace(found, effects={"neuron": effects}, values={"neuron": effects.mean(axis=0)})


def test_what_every_input_says_is_said_by_every_half(found):
    draw = np.random.default_rng(0)
    same = with_effects(found, np.broadcast_to(draw.normal(size=(3, 24)), (12, 3, 24)).copy())
    [row] = jp.halves(same, count=5).to_dict("records")
    assert (row["kind"], row["inputs"], row["count"], row["shared"]) == ("neuron", 12, 5, 5.0)
    assert row["spearman"] == row["low"] == row["high"] == pytest.approx(1)
    assert row["chance"] == 25 / 48, "of those that can reach the anchor"


def test_noise_is_as_unstable_as_chance(found):
    noise = with_effects(found, np.random.default_rng(1).normal(size=(12, 3, 24)))
    [row] = jp.halves(noise, count=5, draws=400).to_dict("records")
    assert row["low"] < 0 < row["high"] and abs(row["spearman"]) < 0.2
    assert abs(row["shared"] - row["chance"]) < 0.6


def test_a_split_by_hand(found):
    """One draw: the same halves, the same scores, the same rank correlation."""
    table = jp.halves(found, count=3, draws=1, seed=4).set_index("kind")
    one, other = np.array_split(np.random.default_rng(4).permutation(12), 2)
    for kind, effects in found.effects.items():
        below = effects[:, :2].reshape(12, -1)
        a, b = below[one].mean(0), below[other].mean(0)
        assert table.loc[kind, "spearman"] == pytest.approx(agreement.spearman(a, b))
        assert table.loc[kind, "shared"] == len({*np.argsort(-a)[:3]} & {*np.argsort(-b)[:3]})


def test_too_few_inputs_say_nothing(found):
    few = dataclasses.replace(found, is_kept=np.arange(12) < 3)
    with pytest.raises(ValueError, match="at least 4 inputs with a gap; got 3"):
        jp.halves(few)
    with pytest.raises(
        ValueError, match=r"count: wanted a whole number, at least 1; got -1.* draws: .*got 0.* seed: .*got 0.5"
    ):
        jp.halves(found, count=-1, draws=0, seed=0.5)


def test_overlap_counts_against_the_ranking_that_reaches_deeper(found):
    effects = np.ones((12, 3, 24)) * np.arange(72).reshape(3, 24)
    deep = with_effects(found, effects.copy())
    turned = with_effects(found, -effects)
    shallow_effects = effects.copy()
    shallow_effects[:, 1] = 0
    shallow = with_effects(found, -shallow_effects)
    found = jp.overlap({"deep": deep, "turned": turned, "shallow": shallow}, "neuron", 10)
    assert found.shared.tolist() == [[10, 0, 0], [0, 10, 10], [0, 10, 10]]
    np.testing.assert_allclose(
        found.chance, np.array([[100 / 47, 100 / 47, 100 / 47]] * 2 + [[100 / 47, 100 / 47, 100 / 23]])
    )
    assert found.p[0, 1] == 1 and found.p[0, 0] == pytest.approx(1 / math.comb(47, 10))
    frame = found.to_frame()
    assert frame[["one", "other", "shared"]].values.tolist() == [
        ["deep", "turned", 0],
        ["deep", "shallow", 0],
        ["turned", "shallow", 10],
    ]


def test_rankings_that_cannot_be_compared_are_refused(found):
    heads = found.of(["head"])
    with pytest.raises(KeyError, match="'neuron' was not scored in b"):
        jp.overlap({"a": found, "b": heads}, "neuron", 3)
    with pytest.raises(ValueError, match=r"wanted 1 to as many heads as can matter, got 9; a has 8, b has 8"):
        jp.overlap({"a": heads, "b": heads}, "head", 9)
    with pytest.raises(ValueError, match=r"wanted a whole number of heads; got 2\.5"):
        jp.overlap({"a": heads, "b": heads}, "head", 2.5)
    smaller = dataclasses.replace(heads, values={"head": heads.values["head"][:, :2]})
    with pytest.raises(ValueError, match=r"of one architecture; got shapes a \(3, 4\), b \(3, 2\)"):
        jp.overlap({"a": heads, "b": smaller}, "head", 2)


def test_chance_of_sharing():
    assert stability.at_least(2, 3, 5) == pytest.approx(
        sum(math.comb(3, k) * math.comb(2, 3 - k) for k in (2, 3)) / math.comb(5, 3)
    )
