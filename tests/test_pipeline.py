"""The public calls: what a notebook does, and what is refused before any work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patching_bits import snapshot

import jaxpatch as jp
from jaxpatch import pipeline, testing
from jaxpatch.measuring import effect
from jaxpatch.scoring import METHODS, scores

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
ANCHOR = jp.Anchor(layer=1, direction=np.eye(16)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(kinds="head"), ValueError, r"kinds: wanted a tuple of names such as \('head', 'neuron'\); got 'head'"),
        (dict(kinds=()), ValueError, "kinds: wanted a tuple"),
        (dict(kinds=("head", "neurons")), KeyError, "unknown component 'neurons'; did you mean 'neuron'"),
        (dict(kinds=("k",)), KeyError, "keys and values belong to a group of query heads"),
        (dict(method="exactly"), ValueError, "unknown method 'exactly'; did you mean 'exact'"),
        (dict(method="shapley"), ValueError, "Known: exact, first_order, local_linear, integrated, screened"),
        (dict(aggregate="mean"), ValueError, "unknown aggregate 'mean'.*mean_of_ratios, ratio_of_means"),
        (dict(top=0), ValueError, "top and steps must be at least 1; got top=0, steps=16"),
        (dict(steps=-1), ValueError, "top and steps must be at least 1; got top=150, steps=-1"),
        (dict(seed=-1), ValueError, "seed must not be negative; got -1"),
    ],
)
def test_bad_options_are_refused_before_any_work(monkeypatch, options, error, message):
    monkeypatch.setattr(pipeline.instrument, "of_pair", lambda *args: pytest.fail("work was done"))
    with pytest.raises(error, match=message):
        jp.score(PAIR, INPUTS, ANCHOR, **options)


def test_all_faults_of_a_call_are_named_at_once():
    inputs, anchor = jp.Inputs([[1, 99]], [2]), jp.Anchor(layer=7, direction=np.eye(16)[0])
    with pytest.raises(ValueError) as caught:
        jp.score(PAIR, inputs, anchor, kinds=("heads", "mpl"), method="exactly", seed=-1)
    for words in ("'heads'", "'mpl'", "out of range", "blocks 0 to 2", "'exactly'", "seed must not"):
        assert words in str(caught.value)


def test_kinds_that_cannot_reach_the_anchor_make_no_curves():
    found = jp.score(PAIR, INPUTS, ANCHOR, kinds=("final_norm", "unembed"))
    assert jp.validate(PAIR, INPUTS, ANCHOR, found) == ()


def test_kinds_that_share_no_parameter_are_validated_together():
    found = jp.score(PAIR, INPUTS, ANCHOR, kinds=("layer", "embed"))
    assert found.ceilings["layer + embed"] == pytest.approx(1, abs=1e-5)
    assert jp.validate(PAIR, INPUTS, ANCHOR, found, num_random=1)[0].ks[-1] == 3


@pytest.mark.parametrize(
    ("inputs", "anchor", "message"),
    [
        (jp.Inputs([[1, 99]], [2]), ANCHOR, "out of range"),
        (jp.Inputs([[1, 2]], [0]), ANCHOR, "empty prompt"),
        (INPUTS, jp.Anchor(layer=7, direction=np.eye(16)[0]), "blocks 0 to 2"),
        (INPUTS, jp.Anchor(layer=1, direction=np.ones(16)), "unit vector"),
    ],
)
def test_bad_inputs_and_anchors_are_refused_before_any_run(monkeypatch, inputs, anchor, message):
    monkeypatch.setattr(pipeline.instrument, "_read", lambda *args: pytest.fail("a model ran"))
    with pytest.raises(ValueError, match=message):
        jp.score(PAIR, inputs, anchor)


def test_an_anchor_that_separates_nothing_is_refused_before_the_sweep(monkeypatch):
    """Special differs above the anchor alone, so nothing at it can."""
    layers = {**PAIR.base["layers"], "mlp_norm": {"scale": PAIR.base["layers"]["mlp_norm"]["scale"].at[2].add(1.0)}}
    pair = dataclasses.replace(PAIR, special={**PAIR.base, "layers": layers})
    monkeypatch.setattr(pipeline.instrument.sweep, "exact", lambda *args, **kw: pytest.fail("the sweep began"))
    with pytest.raises(ValueError, match=r"no input has a positive gap.*the two models read alike"):
        jp.score(pair, INPUTS, ANCHOR)


def test_gates_of_a_pair():
    gates = jp.gates(PAIR, {"head": [(1, 1)], "neuron": [(2, 7)]})
    assert {kind: np.argwhere(np.asarray(gate)).tolist() for kind, gate in gates.items()} == {
        "head": [[1, 1]],
        "neuron": [[2, 7]],
    }
    with pytest.raises(IndexError, match=r"no head \(9, 9\).*no neuron \(0, 99\)"):
        jp.gates(PAIR, {"head": [(9, 9)], "neuron": [(0, 99)]})


@pytest.fixture(scope="module")
def found():
    return jp.score(PAIR, INPUTS, ANCHOR, kinds=("head", "neuron"))


def test_scores_are_ratios_of_effects(found):
    ratios = found.effects["head"] / found.gap[:, None, None]
    np.testing.assert_allclose(found.values["head"], ratios[found.is_kept].mean(0), rtol=1e-4, atol=1e-6)
    assert found.layer == 1 and found.method == "exact" and len(found.to_frame()) == 12 + 72
    assert found.low["head"].shape == (3, 4) and (found.low["head"] <= found.high["head"]).all()
    assert not found.values["head"][2].any() and not found.values["neuron"][2].any()


@pytest.mark.parametrize("make", [np.asarray, lambda x: np.asarray(x).tolist()])
def test_plain_arrays_and_lists_will_do(found, make):
    anchor = jp.Anchor(layer=np.int64(1), direction=make(np.eye(16)[0]))
    again = jp.score(PAIR, jp.Inputs(make(INPUTS.tokens), make(INPUTS.lengths)), anchor, kinds=["head", "neuron"])
    assert again.effects["head"].tobytes() == found.effects["head"].tobytes()
    assert again.values["neuron"].tobytes() == found.values["neuron"].tobytes()


def test_ratio_of_means(found):
    other = jp.score(PAIR, INPUTS, ANCHOR, kinds=("head", "neuron"), aggregate="ratio_of_means")
    kept = found.is_kept
    by_hand = found.effects["head"][kept].mean(0) / found.gap[kept].mean()
    np.testing.assert_allclose(other.values["head"], by_hand, rtol=1e-4, atol=1e-6)
    assert other.aggregate == "ratio_of_means" and other.ceilings["everything"] == pytest.approx(1)


def test_one_component_by_hand(found):
    """The definition in a notebook: patch, run, read, divide."""
    patched = jp.patch(PAIR.base, PAIR.special, jp.gates(PAIR, {"head": [(1, 1)]}))
    run = jax.jit(effect.last_states, static_argnums=(0, 3))
    states = [run(PAIR.config, params, INPUTS, 1)[:, 0] for params in (PAIR.base, patched)]
    ratio = np.asarray(states[1] - states[0]) / found.gap
    assert found.values["head"][1, 1] == pytest.approx(ratio[found.is_kept].mean(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_call_changes_the_models(method):
    before = snapshot(PAIR.base), snapshot(PAIR.special)
    made = jp.score(PAIR, INPUTS, ANCHOR, kinds=("neuron",), method=method, top=3, steps=2)
    assert set(made.values) == {"neuron"} and np.isfinite(made.values["neuron"]).all()
    assert ("neuron" in made.screening) == (method == "screened")
    assert (snapshot(PAIR.base), snapshot(PAIR.special)) == before


def test_progress_names_the_kind():
    seen = []
    jp.score(PAIR, INPUTS, ANCHOR, kinds=("head", "neuron"), progress=lambda kind: lambda *at: seen.append((kind, *at)))
    assert [row for row in seen if row[1] == row[2]] == [("head", 8, 8), ("neuron", 48, 48)]


def test_notebook_from_files_to_file(tmp_path):
    """Load, encode, score, patch, run, save, load again: nothing on the way changes the two models."""
    pair = jp.load_pair(*testing.tiny_checkpoints(tmp_path / "models"))
    before = snapshot(pair.base), snapshot(pair.special)
    inputs = jp.encode(pair, ["owl", "a fox"])
    anchor = jp.Anchor(layer=2, direction=jnp.eye(16)[3])
    try:
        made = jp.score(pair, inputs, anchor, kinds=("layer",))
    except ValueError as error:
        assert "gap" in str(error)
        made = jp.score(pair, inputs, anchor.replace(direction=-anchor.direction), kinds=("layer",))
    assert isinstance(made, scores.Scores)
    patched = jp.patch(pair.base, pair.special, jp.gates(pair, {"head": [(1, 1)], "neuron": [(2, 7)]}))
    logits = pair.apply(patched, inputs.tokens)
    assert logits.shape == (*inputs.tokens.shape, pair.config.vocab)
    assert not np.array_equal(logits, pair.apply(pair.base, inputs.tokens))
    saved = jp.save_checkpoint(pair, patched, tmp_path / "patched")
    again = jp.load_pair(tmp_path / "models" / "base", saved)
    assert snapshot(again.special) == snapshot(patched)
    assert len(jp.generate(pair, patched, inputs, max_new=2)) == 2
    assert (snapshot(pair.base), snapshot(pair.special)) == before


def test_validate_leaves_the_models_alone(found):
    before = snapshot(PAIR.base), snapshot(PAIR.special)
    curves = jp.validate(PAIR, INPUTS, ANCHOR, found, num_random=1)
    assert {curve.mode for curve in curves} == {"restoration", "knockout"}
    assert (snapshot(PAIR.base), snapshot(PAIR.special)) == before
