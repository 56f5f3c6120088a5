"""Sources and relays: on a hierarchy made by hand, and on scores made by hand."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.patching.components import Kind
from jaxpatch.tracing.roles import ROLES

STATE = jp.Anchor(layer=1, direction=jnp.eye(8)[testing.STATE])
KINDS = ("head", "neuron", "attention", "mlp")


def placed(written, **criteria):
    asked = testing.relay_pair(written), testing.tiny_inputs(), STATE
    found = [jp.score(*asked, kinds=KINDS, method=method) for method in ("exact", "activation")]
    return jp.place(*found, jp.Criteria(**criteria)), *found


def named(roles, kind):
    return np.array(ROLES)[roles.roles[kind]].tolist()


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ((1.0,), ["both"]),
        pytest.param((1.0, 3.0), ["both", "both"], marks=pytest.mark.slow),
        ((4.0, -1.0), ["both", "neither"]),
        ((1.0, 0.0), ["both", "neither"]),
    ],
)
def test_neurons_that_write_are_sources_and_the_head_that_copies_is_a_relay(written, wanted):
    """One source; two that add up; one that works against the other; one that is idle. All of it shows in the head's activation."""
    roles, weights, activations = placed(written)
    share = np.array(written) / sum(written)
    np.testing.assert_allclose(weights.values["neuron"][0], share, atol=0.02)
    np.testing.assert_allclose(activations.values["neuron"][0], share, atol=0.02)
    np.testing.assert_allclose(weights.values["head"], 0, atol=1e-6)
    np.testing.assert_allclose(activations.values["head"], [[0, 0], [1, 0]], atol=1e-5)
    assert named(roles, "neuron") == [wanted, ["neither"] * len(written)]
    assert named(roles, "head") == [["neither", "neither"], ["relay", "neither"]]
    assert named(roles, "attention") == ["neither", "relay"] and named(roles, "mlp") == ["both", "neither"]


def test_source_index_by_layer():
    roles, *_ = placed((1.0, 3.0))
    frame = roles.by_layer().set_index(["kind", "layer"])
    assert frame.loc[("head", 1), "source_index"] == 0 and np.isnan(frame.loc[("head", 0), "source_index"])
    assert frame.loc[("neuron", 0), "source_index"] == pytest.approx(0.5, abs=0.01)
    assert (
        frame.loc[("neuron", 0), "low"] <= frame.loc[("neuron", 0), "source_index"] <= frame.loc[("neuron", 0), "high"]
    )
    np.testing.assert_allclose(frame.loc[("head", 1), ["E_w", "E_a"]].to_numpy(float), [0, 1], atol=1e-5)


def test_layers_above_the_anchor_have_no_source_index_and_that_is_no_warning():
    asked = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=jnp.eye(16)[0])
    found = (jp.score(*asked, kinds=("head",), method=method) for method in ("exact", "activation"))
    frame = jp.place(*found).by_layer()
    assert frame[["source_index", "low", "high"]].isna().all(axis=1).tolist() == [False, False, True]


def by_hand(method, values, gap=(2.0, 2.0, 2.0)):
    """Scores of one layer of parts, the same on every prompt but for those named "unsure", which change sign."""
    values = np.array([values], np.float32)
    spread = np.abs(values) * 0.1
    return jp.Scores(
        values={"part": values},
        effects={"part": np.stack([values * 2, values * 2, values * 2])},
        low={"part": values - spread},
        high={"part": values + spread},
        gap=np.array(gap),
        is_kept=np.ones(3, bool),
        ceilings={},
        noise={},
        method=method,
        aggregate="mean_of_ratios",
        layer=1,
        partition={"part": Kind((1, 6), ("layer", "part"), ())},
    )


WEIGHTS, ACTIVATIONS = [1.0, 0.5, 0.05, 0.1, 0.0, -0.5], [0.05, 0.8, 1.0, 0.5, 0.01, 0.9]


def test_roles_by_hand():
    roles = jp.place(by_hand("exact", WEIGHTS), by_hand("activation", ACTIVATIONS))
    assert named(roles, "part") == [["source", "both", "relay", "relay", "neither", "relay"]]
    strict = jp.place(by_hand("exact", WEIGHTS), by_hand("activation", ACTIVATIONS), jp.Criteria(share=0.6))
    assert named(strict, "part") == [["source", "relay", "relay", "neither", "neither", "relay"]]
    lenient = jp.place(by_hand("exact", WEIGHTS), by_hand("activation", ACTIVATIONS), jp.Criteria(own=0.2))
    assert named(lenient, "part") == [["source", "both", "relay", "both", "neither", "relay"]]


def test_a_score_whose_interval_holds_zero_is_not_high():
    unsure = by_hand("activation", ACTIVATIONS)
    unsure = dataclasses.replace(unsure, low={"part": -np.ones((1, 6))})
    assert named(jp.place(by_hand("exact", WEIGHTS), unsure), "part") == [
        ["source", "source", "neither", "source", "neither", "neither"]
    ]


def test_a_score_that_is_no_number_takes_no_other_s_role():
    unknown = [float("nan"), *WEIGHTS[1:]]
    roles = jp.place(by_hand("exact", unknown), by_hand("activation", ACTIVATIONS))
    assert named(roles, "part") == [["neither", "both", "relay", "relay", "neither", "relay"]]
    assert roles.by_layer().loc[0, "E_w"] == pytest.approx(0.65)


def test_what_its_own_weights_do_not_tell_is_no_relay():
    unknown = [*WEIGHTS[:2], float("nan"), *WEIGHTS[3:]]
    roles = jp.place(by_hand("exact", unknown), by_hand("activation", ACTIVATIONS))
    assert named(roles, "part") == [["source", "both", "neither", "relay", "neither", "relay"]]


def test_layers_that_some_prompts_speak_against_have_an_index_between_nothing_and_all():
    weights = by_hand("exact", [0.2, 0, 0, 0, 0, 0])
    signs = np.array([4.0, -0.5, -0.5])[:, None, None]
    weights = dataclasses.replace(weights, effects={"part": signs * weights.effects["part"]})
    index = jp.place(weights, by_hand("activation", ACTIVATIONS)).by_layer().loc[0]
    assert 0 == index["low"] < index["source_index"] < index["high"] < 1


def test_scores_without_a_sign_are_not_placed():
    sizes = dataclasses.replace(by_hand("attribution", ACTIVATIONS), repairs=("qk_fix", "grad_drop"))
    with pytest.raises(ValueError, match="activations: repaired by grad_drop, such scores have no sign"):
        jp.place(by_hand("exact", WEIGHTS), sizes)


def test_one_prompt_has_no_interval():
    asked = testing.tiny_pair(), testing.tiny_inputs(batch=1), jp.Anchor(layer=1, direction=-jnp.eye(16)[0])
    sides = (jp.score(*asked, kinds=("head",), method=method) for method in ("exact", "activation"))
    frame = jp.place(*sides).by_layer()
    assert frame["source_index"].notna().any() and frame[["low", "high"]].isna().all(axis=None)


def test_frame_has_both_scores_and_the_role():
    frame = jp.place(by_hand("first_order", WEIGHTS), by_hand("activation", ACTIVATIONS)).to_frame()
    assert frame["name"].tolist() == [f"part 0.{number}" for number in range(6)]
    np.testing.assert_allclose(frame["E_w"], WEIGHTS, rtol=1e-6)
    np.testing.assert_allclose(frame["E_a"], ACTIVATIONS, rtol=1e-6)
    assert frame["role"].tolist() == ["source", "both", "relay", "relay", "neither", "relay"]
    assert not frame["E_w is exact"].any() and frame["E_a is exact"].all()


def test_scores_that_do_not_belong_together_are_refused_all_at_once():
    other = dataclasses.replace(by_hand("exact", ACTIVATIONS, gap=(1.0, 2.0, 3.0)), layer=2, mode="knockout")
    with pytest.raises(ValueError) as refusal:
        jp.place(by_hand("activation", WEIGHTS), other, jp.Criteria(share=2))
    said = str(refusal.value)
    for part in (
        "weights: method 'activation'",
        "activations: method 'exact'",
        "the gaps",
        "mode",
        "layer: 1",
        "criteria.share",
    ):
        assert part in said
    with pytest.raises(ValueError, match="no kind was scored by both: weights have part; activations head"):
        renamed = dataclasses.replace(by_hand("activation", ACTIVATIONS), values={"head": np.ones((1, 6))})
        jp.place(by_hand("exact", WEIGHTS), renamed)
