"""Anchors: the direction by hand, the checks, and the refusal."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import anchors, effect


@pytest.fixture(scope="module")
def pair():
    return testing.tiny_pair()


@pytest.fixture(scope="module")
def asked():
    return testing.tiny_inputs(batch=8, tokens=9)


@pytest.fixture(scope="module")
def plain():
    return testing.tiny_inputs(seed=1, batch=8, tokens=9)


def states(pair, params, inputs, layer):
    return np.asarray(effect.every_last_state(pair.config, effect.unpatched(params), inputs)[layer], np.float64)


def test_direction_is_the_normalised_mean_difference(pair, asked, plain):
    anchor, info = anchors.fit_anchor(pair, asked, plain, layer=1)
    difference = states(pair, pair.special, asked, 1).mean(0) - states(pair, pair.special, plain, 1).mean(0)
    np.testing.assert_allclose(anchor.direction, difference / np.linalg.norm(difference), atol=1e-5)
    assert info.strength == pytest.approx(np.linalg.norm(difference), rel=1e-5)
    gap = (states(pair, pair.special, asked, 1) - states(pair, pair.base, asked, 1)) @ np.asarray(anchor.direction)
    np.testing.assert_allclose(info.gap, gap, rtol=1e-4, atol=1e-4)


def test_contrast_between_models(pair, asked, plain):
    anchor, _ = anchors.fit_anchor(pair, asked, plain, layer=2, contrast="models")
    difference = (states(pair, pair.special, asked, 2) - states(pair, pair.base, asked, 2)).mean(0)
    np.testing.assert_allclose(anchor.direction, difference / np.linalg.norm(difference), atol=1e-5)


def test_centred_read_out_is_zero_in_the_middle(pair, asked, plain):
    anchor, _ = anchors.fit_anchor(pair, asked, plain, layer=1, read_out="centred")
    reads = [anchor.read(jnp.asarray(states(pair, params, asked, 1))).mean() for params in (pair.base, pair.special)]
    assert float(reads[0] + reads[1]) == pytest.approx(0, abs=1e-3)


def test_split_half_is_the_cosine_of_even_and_odd_prompts(pair, asked, plain):
    _, info = anchors.fit_anchor(pair, asked, plain, layer=1)
    high, low = states(pair, pair.special, asked, 1), states(pair, pair.special, plain, 1)
    halves = [high[i::2].mean(0) - low[i::2].mean(0) for i in (0, 1)]
    cosine = halves[0] @ halves[1] / np.linalg.norm(halves[0]) / np.linalg.norm(halves[1])
    assert info.candidates[0].split_half == pytest.approx(cosine, abs=1e-5)
    check = next(c for c in info.checks if c.name == "split-half cosine")
    assert check.is_passed == (cosine >= anchors.SMALLEST_COSINE)


def test_steering_adds_the_direction_before_the_next_block(pair, asked):
    push = jnp.linspace(-1, 1, pair.config.width)
    anchor = anchor_at(1)
    read, logits = effect.outcome(pair.config, effect.unpatched(pair.base), asked, anchor, push)
    read_0, logits_0 = effect.outcome(pair.config, effect.unpatched(pair.base), asked, anchor)
    np.testing.assert_allclose(read, read_0)
    assert float(jnp.abs(logits - logits_0).max()) > 0.1
    last = anchor_at(pair.config.layers - 1)
    state = effect.every_last_state(pair.config, effect.unpatched(pair.base), asked)[last.layer]
    by_hand = np.asarray(state + push)
    _, pushed = effect.outcome(pair.config, effect.unpatched(pair.base), asked, last, push)
    scale = np.asarray(pair.base["final_norm"]["scale"])
    normed = by_hand / np.sqrt((by_hand**2).mean(-1, keepdims=True) + pair.config.norm_eps) * scale
    np.testing.assert_allclose(pushed, normed @ np.asarray(pair.base["unembed"]["kernel"]), rtol=1e-3, atol=1e-3)


def anchor_at(layer):
    return anchors.Anchor(layer=layer, direction=jnp.eye(16)[0])


def test_a_layer_is_chosen_by_steering_success_then_separation(pair, asked, plain, monkeypatch):
    wins = {1: 0.25, 2: 0.75}
    monkeypatch.setattr(
        anchors, "_success", lambda pair, plain, verdict, steer, max_new: wins[steer[0]] if steer else 0.5
    )
    anchor, info = anchors.fit_anchor(pair, asked, plain, verdict=str.isupper)
    assert [c.layer for c in info.candidates] == [1, 2] and anchor.layer == 2
    assert info.behaviour_before == 0.5 and info.behaviour_after == 0.75
    monkeypatch.setattr(anchors, "_success", lambda *_: 0.5)
    anchor, info = anchors.fit_anchor(pair, asked, plain, verdict=str.isupper)
    assert anchor.layer == max(info.candidates, key=lambda c: c.separation).layer
    assert not info.is_trusted
    with pytest.raises(ValueError, match="behaviour of base steered - not is 0, wanted above 0"):
        anchors.refuse_untrusted(info)


def test_a_layer_where_base_stands_further_is_chosen_only_where_no_other_is():
    ahead = anchors.Candidate(1, split_half=0.9, separation=2.0, signal=3.0, success=np.nan)
    behind = ahead._replace(layer=2, separation=9.0, signal=-3.0, success=1.0)
    shaky = ahead._replace(layer=3, split_half=0.1, separation=5.0)
    assert anchors.best_of([behind, shaky, ahead]) == ahead
    assert anchors.best_of([ahead, ahead._replace(layer=4, separation=3.0)]).layer == 4
    assert anchors.best_of([behind, shaky]) == behind


def test_a_candidates_signal_is_that_of_the_gap(pair, asked, plain):
    _, info = anchors.fit_anchor(pair, asked, plain, layer=1)
    assert info.candidates[0].signal == pytest.approx(info.gap.mean() / info.gap.std(ddof=1), rel=1e-4)


def test_all_failed_checks_are_named():
    failed = [anchors.Check(name, -1.0, "above 0", False) for name in ("one", "two")]
    info = anchors.AnchorInfo((*failed, anchors.Check("three", 1.0, "above 0", True)), (), np.zeros(1), 0, 0, 0, 0, 0)
    tried = [anchors.Candidate(layer, 0.9, 2.0, signal, np.nan) for layer, signal in ((4, 3.0), (6, -1.0))]
    with pytest.raises(ValueError, match=r"(?s)one is -1.*two is -1") as error:
        anchors.refuse_untrusted(info._replace(candidates=tuple(tried)))
    assert "three" not in str(error.value)
    assert "Blocks tried: 4, 6;" in str(error.value) and "along it than base, after 4.\n" in str(error.value)
    assert "--force" in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": 3}, "blocks 0 to 2"),
        ({"contrast": "both"}, "instruction, models"),
        ({"read_out": "dot"}, "projection, cosine, centred"),
    ],
)
def test_bad_options(pair, asked, plain, change, said):
    with pytest.raises(ValueError, match=said):
        anchors.fit_anchor(pair, asked, plain, **change)


def test_too_few_prompts_and_no_difference(pair, asked):
    with pytest.raises(ValueError, match="at least 4"):
        anchors.fit_anchor(pair, asked.rows(slice(0, 3)), asked)
    with pytest.raises(ValueError, match="no direction"):
        anchors.fit_anchor(pair, asked, asked, layer=1)
