"""The public calls: what a notebook does, and what is refused before any work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patching_bits import snapshot

import jaxpatch as jp
from jaxpatch import pipeline, testing
from jaxpatch.measuring import effect, instrument
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.patching import components
from jaxpatch.patching.exchange import POSITIONS, Exchange
from jaxpatch.scoring import ACTIVATION_METHODS, METHODS, scores

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
ANCHOR = jp.Anchor(layer=1, direction=np.eye(16)[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(kinds="head"), ValueError, r"kinds: wanted a tuple of names such as \('head', 'kv'\); got 'head'"),
        (dict(kinds=()), ValueError, "kinds: wanted a tuple"),
        (dict(kinds=("head", "neurons")), KeyError, "unknown component 'neurons'; did you mean 'neuron'"),
        (dict(kinds=("k",)), KeyError, "keys and values belong to a group of query heads"),
        (dict(method="exactly"), ValueError, "unknown method 'exactly'; did you mean 'exact'"),
        (
            dict(method="shapley"),
            ValueError,
            "Known: exact, first_order, local_linear, integrated, screened, activation",
        ),
        (dict(aggregate="mean"), ValueError, "unknown aggregate 'mean'.*mean_of_ratios, ratio_of_means"),
        (dict(top=0), ValueError, "top: wanted a whole number, at least 1; got 0"),
        (dict(steps=-1), ValueError, "steps: wanted a whole number, at least 1; got -1"),
        (dict(alpha=0.0), ValueError, "alpha: wanted a number between 0 and 1; got 0.0"),
        (dict(alpha=1), ValueError, "alpha: wanted a number between 0 and 1; got 1"),
        (dict(mode="knock-out"), ValueError, "unknown mode 'knock-out'; did you mean 'knockout'"),
        (dict(mode="ablation"), ValueError, "restoration, knockout"),
        (dict(seed=-1), ValueError, "seed: wanted a whole number, at least 0; got -1"),
        (dict(memory="4GB"), ValueError, "memory: wanted a number of bytes; got '4GB'"),
        (dict(memory=float("inf")), ValueError, "memory: wanted a number of bytes; got inf"),
        (dict(kinds=("head", "head")), ValueError, "kinds: head named more than once"),
        (dict(kinds=(3,)), ValueError, r"kinds: wanted a tuple of names .*; got \(3,\)"),
        (dict(kinds=None), ValueError, "kinds: wanted a tuple of names .*; got None"),
        (dict(alpha="x"), ValueError, "alpha: wanted a number between 0 and 1; got 'x'"),
        (dict(seed=None), ValueError, "seed: wanted a whole number, at least 0; got None"),
        (dict(top=2.5), ValueError, "top: wanted a whole number, at least 1; got 2.5"),
        (dict(sample=2.0), ValueError, "sample: wanted a whole number, at least 1; got 2.0"),
        (dict(memory=True), ValueError, "memory: wanted a number of bytes; got True"),
        (dict(mesh=(4, 2)), ValueError, r"mesh: wanted a jax.sharding.Mesh, as jax.make_mesh makes it; got \(4, 2\)"),
        (dict(journal="here"), ValueError, r"journal: wanted a Journal, as in Journal\('here'\); got str"),
        (dict(inputs=np.ones((2, 3), int)), ValueError, r"inputs: wanted Inputs\(tokens, lengths\), .*; got ndarray"),
        (dict(site="vector"), ValueError, "site='vector' is for 'activation' and .*; method 'exact' exchanges weights"),
        (dict(method="activation", site="z"), ValueError, "site: wanted 'contribution' or 'vector'; got 'z'"),
        (dict(method="activation", positions=3), ValueError, "positions: wanted 'all' or 'last'; got 3"),
        (dict(method="activation", repairs=("qk_fix",)), ValueError, "are for 'attribution', and not for 'activation'"),
        (dict(method="attribution", repairs="qkfix"), ValueError, "repairs: unknown 'qkfix'; did you mean 'qk_fix'"),
        (
            dict(method="activation", kinds=("head", "embed", "norm")),
            KeyError,
            "nothing to exchange for 'embed', 'norm'",
        ),
        (
            dict(anchor=None),
            ValueError,
            r"read-outs: wanted an Anchor, a NextToken, a Contribution, or several; got \(None,\)",
        ),
    ],
)
def test_bad_options_are_refused_before_any_work(monkeypatch, options, error, message):
    monkeypatch.setattr(pipeline.instrument, "of_pair", lambda *args, **kw: pytest.fail("work was done"))
    with pytest.raises(error, match=message):
        jp.score(**({"pair": PAIR, "inputs": INPUTS, "anchor": ANCHOR} | options))


def test_whatever_can_be_gone_through_once_serves():
    once = jp.score(PAIR, INPUTS, ANCHOR, kinds=(kind for kind in ("layer", "head")))
    assert list(once.values) == ["layer", "head"]
    both = jp.score_each(PAIR, INPUTS, (each for each in (ANCHOR, NextToken())), kinds=["layer"])
    assert len(both) == 2
    np.testing.assert_allclose(both[0].values["layer"], once.values["layer"], rtol=0, atol=1e-6)


def test_what_an_anchor_cannot_see_scores_nothing_beside_a_read_out_that_can():
    low, high = jp.score_each(PAIR, INPUTS, (ANCHOR, NextToken()), kinds=("final_norm", "layer"))
    assert not low.effects["final_norm"].any() and high.effects["final_norm"].all()
    assert not low.effects["layer"][:, ANCHOR.layer + 1 :].any() and low.effects["layer"][:, ANCHOR.layer].all()
    assert low.drowned == ()


@pytest.mark.parametrize(
    "asked", [dict(kinds=("embed",)), dict(kinds=("head",), method="integrated"), dict(kinds=("head",))]
)
def test_a_budget_in_which_nothing_fits_is_refused(asked):
    with pytest.raises(MemoryError, match=r"the budget is 1 bytes. Give more memory \(memory=, --memory\), or use "):
        jp.score(PAIR, INPUTS, ANCHOR, memory=1, **asked)


def test_all_faults_of_a_call_are_named_at_once():
    inputs, anchor = jp.Inputs([[1, 99]], [2]), jp.Anchor(layer=7, direction=np.eye(16)[0])
    with pytest.raises(ValueError) as caught:
        jp.score(PAIR, inputs, anchor, kinds=("heads", "mpl"), method="exactly", mode="on", alpha=2, seed=-1)
    for words in (
        "'heads'",
        "'mpl'",
        "out of range",
        "blocks 0 to 2",
        "'exactly'",
        "'on'",
        "alpha: wanted",
        "seed: wanted",
    ):
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
    monkeypatch.setattr(pipeline.instrument, "_reads", lambda *args: pytest.fail("a model ran"))
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


def test_only_decoders_have_anchors_texts_and_checkpoints(tmp_path):
    """Of models of one's own, and of parameters where the pair was meant."""
    base, special = ({"up": jnp.full((2, 3), value)} for value in (1.0, 2.0))
    own = jp.TreePair(base, special, jp.partition(base, {"unit": {"up": 1}}))
    for pair, got in ((own, "TreePair"), (PAIR.base, "dict")):
        for name, call, instead in (
            (
                "fit_anchor",
                lambda pair=pair: jp.fit_anchor(pair, INPUTS, INPUTS),
                "need no anchor: give score a function",
            ),
            ("generate", lambda pair=pair: jp.generate(pair, base, INPUTS), "write by your own code"),
            ("encode", lambda pair=pair: jp.encode(pair, ["owl"]), r"take inputs as they are: arrays \[B, ...\]"),
            (
                "saving",
                lambda pair=pair: jp.save_checkpoint(pair, base, tmp_path / "new"),
                "orbax.checkpoint takes any",
            ),
        ):
            with pytest.raises(ValueError, match=f"{name}: wanted a Pair of decoders.*; got a {got}.*{instead}"):
                call()


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
    run = jax.jit(effect.every_last_state, static_argnums=0)
    states = [run(PAIR.config, effect.unpatched(params), INPUTS)[1, :, 0] for params in (PAIR.base, patched)]
    ratio = np.asarray(states[1] - states[0]) / found.gap
    assert found.values["head"][1, 1] == pytest.approx(ratio[found.is_kept].mean(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_no_call_changes_the_models(method):
    before = snapshot(PAIR.base), snapshot(PAIR.special)
    made = jp.score(PAIR, INPUTS, ANCHOR, kinds=("neuron",), method=method, top=3, steps=2)
    assert set(made.values) == {"neuron"} and np.isfinite(made.values["neuron"]).all()
    assert ("neuron" in made.screening) == (method == "screened")
    assert (snapshot(PAIR.base), snapshot(PAIR.special)) == before


EXCHANGED = ("head", "neuron", "layer", "query")


@pytest.mark.parametrize("method", ACTIVATION_METHODS)
def test_activations_are_scored_as_weights_are(method):
    """The same type, normaliser and read-outs; nothing above the anchor, and nothing of the models is changed."""
    before = snapshot(PAIR.base), snapshot(PAIR.special)
    found, last = jp.score_each(PAIR, INPUTS, (ANCHOR, NextToken("log_prob")), kinds=EXCHANGED, method=method, top=3)
    weights = jp.score(PAIR, INPUTS, ANCHOR, kinds=("head",))
    np.testing.assert_allclose(found.gap, weights.gap, rtol=1e-5)
    assert found.method == method and found.exchange == Exchange() and weights.exchange is None
    for kind, values in found.values.items():
        assert values[:2].all() and not values[2:].any() and last.values[kind][2:].any()
    frame = found.to_frame()
    assert frame[frame["layer"] < 2]["is_exact"].all() == (
        method != "attribution"
    )  # a screen's sample is larger than these
    assert ("neuron" in found.screening) == (method == "screened_activation")
    assert ("head" in found.noise) == (method != "attribution") and all(each < 1e-4 for each in found.noise.values())
    assert (snapshot(PAIR.base), snapshot(PAIR.special)) == before


def test_denoising_and_noising_by_hand():
    """All of a layer exchanged at once recovers everything, and loses everything."""
    for mode in instrument.MODES:
        found = jp.score(PAIR, INPUTS, ANCHOR, kinds=("layer",), method="activation", mode=mode)
        np.testing.assert_allclose(found.values["layer"], [*found.values["layer"][:1], 1, 0], atol=1e-5)
        assert found.mode == mode and found.ceilings["all layer"] == pytest.approx(1, abs=1e-5)


def test_last_positions_are_a_part_of_all():
    every, last = (
        jp.score(PAIR, INPUTS, ANCHOR, kinds=("head",), method="activation", positions=positions)
        for positions in POSITIONS
    )
    np.testing.assert_allclose(every.values["head"][1], last.values["head"][1], atol=1e-5)  # read there, right above
    assert np.abs(every.values["head"][0] - last.values["head"][0]).max() > 1e-3


def test_repaired_attribution_has_no_sign_where_blocks_are_dropped():
    asked = dict(kinds=("query", "head"), method="attribution")
    plain, fixed = (jp.score(PAIR, INPUTS, ANCHOR, repairs=each, **asked) for each in ((), ("qk_fix", "grad_drop")))
    assert (plain.effects["head"] < 0).any() and (fixed.effects["head"] >= 0).all()
    assert fixed.repairs == ("qk_fix", "grad_drop") and plain.repairs == ()


def test_activations_of_a_tree_of_ones_own_are_refused():
    trees = jp.TreePair(PAIR.base, PAIR.special, components.of_decoder(PAIR.base))
    with pytest.raises(ValueError, match="of a TreePair's only the parameters are known; take 'exact'"):
        jp.score(trees, INPUTS, lambda params, inputs: inputs[0], kinds=("head",), method="activation")


def test_progress_names_the_kind():
    seen = []
    jp.score(PAIR, INPUTS, ANCHOR, kinds=("head", "neuron"), progress=lambda kind: lambda *at: seen.append((kind, *at)))
    assert [row for row in seen if row[1] == row[2]] == [("head", 8, 8), ("neuron", 48, 48)]


def test_scores_that_overflow_are_told_and_end_a_screen():
    partition = {"part": components.Kind((3,), ("part",), ())}

    def at(gates, rows):
        return jnp.full(rows.shape, gates["part"].sum())

    tool = instrument.of_effect(at, partition, 2)
    bad = tool._replace(exact=lambda kind, indices, progress: np.where(indices == 1, np.nan, 1) * np.ones((1, 2)))
    with pytest.warns(UserWarning, match="part: 1 of 3 scores are not numbers: their patched runs overflow"):
        assert np.isnan(pipeline.score_with(bad, kinds=("part",)).values["part"]).sum() == 1
    with pytest.raises(ValueError, match=r"part \(1,\): its patched run gives no number, nor do 0 others"):
        pipeline.score_with(bad, kinds=("part",), method="screened")


def test_a_screen_draws_from_what_the_first_read_out_sees():
    found = jp.score_each(PAIR, INPUTS, (ANCHOR, NextToken("kl")), kinds=("neuron",), method="screened", top=3)
    alone = jp.score(PAIR, INPUTS, ANCHOR, kinds=("neuron",), method="screened", top=3)
    np.testing.assert_array_equal(found[0].screening["neuron"].replaced, alone.screening["neuron"].replaced)
    assert not found[0].screening["neuron"].replaced[2].any() and found[1].effects["neuron"][:, 2].any()


def test_one_read_out_needs_no_tuple_and_validation_wants_an_anchor():
    found = jp.score_each(PAIR, INPUTS, ANCHOR, kinds=("layer",), memory=2e9)
    assert len(found) == 1
    with pytest.raises(ValueError, match=r"validate: wanted an Anchor, .*; got NextToken"):
        jp.validate(PAIR, INPUTS, NextToken("kl"), found[0])


def test_curves_want_controls_that_were_drawn_and_scores_of_weights():
    found = jp.score(PAIR, INPUTS, ANCHOR, kinds=("head",))
    with pytest.raises(
        ValueError, match=r"validate: num_random: wanted a whole number, at least 1; got 0\. seed: wanted"
    ):
        jp.validate(PAIR, INPUTS, ANCHOR, found, num_random=0, seed=-1)
    for sizes, told in (
        ([0, 2.5, True], "at least 1; got 0, 2.5, True"),
        ([], "at least 1; got none"),
        (5, "wanted a list of whole numbers; got 5"),
        ([4, 3], "before; got"),
    ):
        with pytest.raises(
            ValueError, match=rf"validate: sizes: .*{told}.* modes: wanted some of restoration, knockout; got 'both'"
        ):
            jp.validate(PAIR, INPUTS, ANCHOR, found, sizes=sizes, modes=("both",))
    with pytest.raises(ValueError, match="sizes: wanted no more than were scored and can reach the anchor, 8; got 9"):
        jp.validate(PAIR, INPUTS, ANCHOR, found, sizes=[2, 9])
    for name in ("top", "random", "largest change", "random, same layers"):
        with pytest.raises(
            ValueError, match=f"validate: modes: wanted .*; got 'knockout', 'knockout'. others: '{name}' is there by"
        ):
            jp.validate(PAIR, INPUTS, ANCHOR, found, others={name: found}, modes=("knockout", "knockout"))
    with pytest.raises(ValueError, match="modes: wanted some of restoration, knockout; got 'both'"):
        jp.validate(PAIR, INPUTS, ANCHOR, found, modes="both")
    fewer = dataclasses.replace(found, values={"head": found.values["head"][:, :2]})
    with pytest.raises(ValueError, match=r"validate: found: 'head' has shape \(3, 2\); this pair's has \(3, 4\)"):
        jp.validate(PAIR, INPUTS, ANCHOR, fewer)
    with pytest.raises(ValueError, match=r"validate: others: E_a: 'head' has shape \(3, 2\); this pair's has \(3, 4\)"):
        jp.validate(PAIR, INPUTS, ANCHOR, found, others={"E_a": fewer})
    queries = jp.score(PAIR, INPUTS, ANCHOR, kinds=("query",), method="activation")
    with pytest.raises(ValueError, match="validate: found: its 'query' is no kind of this pair's weights"):
        jp.validate(PAIR, INPUTS, ANCHOR, queries)


@pytest.mark.parametrize("kinds", [("head", "neuron"), ("layer", "embed", "final_norm", "unembed")])
def test_scores_know_what_can_reach_the_anchor_though_it_did_not_change(kinds):
    """Curves, answers and reports go by one order: that of the components that could matter."""
    same = dataclasses.replace(
        PAIR, special=jp.patch(PAIR.base, PAIR.special, jp.gates(PAIR, {"head": [(0, 1)], "neuron": [(1, 2)]}))
    )
    found = jp.score(same, INPUTS, ANCHOR, kinds=kinds)
    tool = instrument.of_pair(same, INPUTS, ANCHOR)
    for kind in kinds:
        np.testing.assert_array_equal(found.reach[kind], tool.reach[kind])


def test_the_noise_floor_is_the_largest_distance_between_two_computations():
    """A device that does not repeat itself shows in it, and so does an engine that is off."""
    partition = {"part": components.Kind((3,), ("part",), ())}
    calls = []

    def unsteady(gates, rows):
        calls.append(1)
        return jnp.full(rows.shape, gates["part"].sum() * (1 + 0.01 * (len(calls) % 2)))

    def at(gates, rows):
        return jnp.full(rows.shape, gates["part"].sum())

    steady = instrument.of_effect(at, partition, 2)
    assert pipeline.score_with(steady, kinds=("part",)).noise == {"part": 0}
    shaky = steady._replace(effect=unsteady)
    assert pipeline.score_with(shaky, kinds=("part",)).noise["part"] == pytest.approx(0.01 / 3, rel=1e-3)
    off = steady._replace(exact=lambda *asked: steady.exact(*asked) * 1.5)
    with pytest.warns(
        UserWarning, match=r"part: rounding alone moves scores by up to 0.17, and the largest is 0.5\. Compute in"
    ):
        found = pipeline.score_with(off, kinds=("part",))
    assert found.noise["part"] == pytest.approx(0.5 / 3) and found.drowned == ("part",)
    assert pipeline.score_with(steady, kinds=("part",), method="local_linear").noise == {}


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
    some = jp.validate(PAIR, INPUTS, ANCHOR, found, num_random=1, sizes=[3, 10], modes=("knockout",))
    at = [curves[0].ks.tolist().index(k) for k in (3, 10)]
    for one in some:
        same = next(curve for curve in curves if (curve.name, curve.mode) == (one.name, "knockout"))
        np.testing.assert_array_equal(one.recovery, same.recovery[at])
        np.testing.assert_array_equal(one.lag_low, same.lag_low[at])
    assert (snapshot(PAIR.base), snapshot(PAIR.special)) == before


WANTED = (NextToken("log_prob"), ANCHOR, NextToken("kl"))


@pytest.mark.parametrize(
    ("method", "mode"),
    [
        ("exact", "restoration"),
        pytest.param("exact", "knockout", marks=pytest.mark.slow),
        ("local_linear", "restoration"),
    ],
)
def test_score_each_is_score_of_each(method, mode):
    """Read in one pass or in several: the same numbers, and the same words beside them."""
    kinds = ("head", "embed")
    together = jp.score_each(PAIR, INPUTS, WANTED, kinds=kinds, method=method, mode=mode)
    assert [each.layer for each in together] == [2, 1, 2]
    for read_out, mine in zip(WANTED, together, strict=True):
        alone = jp.score(PAIR, INPUTS, read_out, kinds=kinds, method=method, mode=mode)
        assert (mine.layer, mine.method, mine.aggregate) == (alone.layer, alone.method, alone.aggregate)
        assert (mine.is_kept == alone.is_kept).all()
        np.testing.assert_allclose(mine.gap, alone.gap, rtol=1e-5, atol=1e-6)
        reading = np.abs(alone.gap).max() + max(np.abs(effects).max() for effects in alone.effects.values())
        for kind in kinds:
            for field in ("effects", "values", "low", "high"):
                found, there = getattr(mine, field)[kind], getattr(alone, field)[kind]
                scale = reading if field == "effects" else reading / np.abs(alone.gap[alone.is_kept]).min()
                np.testing.assert_allclose(found, there, rtol=0, atol=1e-6 * scale, err_msg=f"{kind} {field}")
        assert mine.ceilings == pytest.approx(alone.ceilings, abs=1e-4)


def test_several_read_outs_are_refused_like_one(monkeypatch):
    monkeypatch.setattr(pipeline.instrument, "of_pair", lambda *args, **kw: pytest.fail("work was done"))
    with pytest.raises(ValueError, match="read-outs: wanted an Anchor, a NextToken, a Contribution, or several"):
        jp.score_each(PAIR, INPUTS, ())
    with pytest.raises(ValueError) as caught:
        jp.score_each(PAIR, INPUTS, (ANCHOR.replace(layer=7), NextToken("logits")))
    for words in ("layer 7", "read_out 'logits'"):
        assert words in str(caught.value)


def test_knockout_of_all_that_special_is():
    """Every block and the embedding of base in special: all is lost at once. Each block alone: by the definition."""
    made = jp.score(PAIR, INPUTS, ANCHOR, kinds=("layer", "embed"), mode="knockout")
    assert made.ceilings["layer + embed"] == pytest.approx(1, abs=1e-4)
    assert made.ceilings["everything"] == pytest.approx(1)
    run = jax.jit(effect.every_last_state, static_argnums=0)
    special = run(PAIR.config, effect.unpatched(PAIR.special), INPUTS)[1, :, 0]
    for layer in range(3):
        without = jp.patch(PAIR.special, PAIR.base, jp.gates(PAIR, {"layer": [layer]}))
        lost = np.asarray(special - run(PAIR.config, effect.unpatched(without), INPUTS)[1, :, 0])
        by_hand = np.mean((lost / made.gap)[made.is_kept])
        assert made.values["layer"][layer] == pytest.approx(by_hand, rel=1e-3, abs=1e-4)
    assert made.values["layer"][2] == 0 and made.values["layer"][:2].any()
    restored = jp.score(PAIR, INPUTS, ANCHOR, kinds=("layer",))
    assert not np.allclose(restored.values["layer"], made.values["layer"], atol=1e-3), "the two modes are two questions"


def test_next_token_scores_begin_at_base_and_end_at_special():
    made = jp.score(PAIR, INPUTS, NextToken(), kinds=("layer", "embed", "final_norm", "unembed"))
    assert made.ceilings["everything"] == pytest.approx(1)
    assert made.ceilings["layer + embed + final_norm + unembed"] == pytest.approx(1, abs=1e-4)
    assert (made.gap > 0).all() and made.is_kept.all(), "no distribution is nearer to special than special"


def test_little_memory_gives_the_same_scores(found):
    """Enough for a few candidates and one block at a time; and a sentence where it is not."""
    again = jp.score(PAIR, INPUTS, ANCHOR, kinds=("head", "neuron"), memory=100_000)
    for kind in ("head", "neuron"):
        largest = np.abs(found.effects[kind]).max()
        np.testing.assert_allclose(again.effects[kind], found.effects[kind], rtol=0, atol=2e-6 * largest)
    with pytest.raises(MemoryError, match=r"Give more memory \(memory=, --memory\), or use shorter prompts"):
        jp.score(PAIR, INPUTS, ANCHOR, memory=1000)


def test_aggregate_is_an_option_of_the_screen_too():
    made = jp.score(PAIR, INPUTS, ANCHOR, kinds=("head",), method="screened", aggregate="ratio_of_means")
    said = made.screening["head"]
    np.testing.assert_allclose(said.exact, made.values["head"][said.replaced], rtol=1e-4, atol=1e-6)
