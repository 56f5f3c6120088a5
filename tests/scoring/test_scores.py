"""From effects to scores: by hand."""

import dataclasses

import jax
import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import pipeline, testing
from jaxpatch.measuring import effect, instrument
from jaxpatch.patching import components
from jaxpatch.scoring import scores


@pytest.fixture(scope="module")
def toy():
    return pipeline.score_with(scoring_toys.linear(), kinds=("part", "head"))


def test_scores_of_a_toy_by_hand(toy):
    """All gates together move ``2 - 1 + 1 + 0.5 + 3 = 5.5`` an x; p2 recovers -1 of it."""
    assert toy.gap.tolist() == [5.5, 11] and toy.is_kept.all() and toy.num_dropped == 0
    np.testing.assert_allclose(toy.values["part"], np.array([2, 0, -1]) / 5.5, rtol=1e-6)
    np.testing.assert_allclose(toy.values["head"], np.array([[1, 0.5], [0, 3]]) / 5.5, rtol=1e-6)
    assert toy.ceilings == pytest.approx(
        {"all part": 1 / 5.5, "all head": 4.5 / 5.5, "part + head": 1, "everything": 1}
    )
    assert (toy.method, toy.aggregate, toy.layer, toy.screening) == ("exact", "mean_of_ratios", -1, {})


def test_one_row_a_component(toy):
    frame = toy.to_frame()
    assert list(frame) == ["kind", "layer", "index", "name", "score", "low", "high", "effect", "is_exact"]
    assert frame.kind.tolist() == ["part"] * 3 + ["head"] * 4
    assert frame.layer.tolist() == [-1] * 3 + [0, 0, 1, 1] and frame["index"].tolist() == [0, 1, 2, 0, 1, 0, 1]
    assert frame.name.tolist() == ["part 0", "part 1", "part 2", "head 0.0", "head 0.1", "head 1.0", "head 1.1"]
    np.testing.assert_allclose(frame.score, np.r_[toy.values["part"], toy.values["head"].ravel()])
    np.testing.assert_allclose(frame.effect, [3, 0, -1.5, 1.5, 0.75, 0, 4.5], rtol=1e-6)
    assert frame.is_exact.all()


def test_top_is_best_first(toy):
    best = toy.top("head", 2)
    assert best.name.tolist() == ["head 1.1", "head 0.0"] and best.index.tolist() == [0, 1]
    assert toy.top("part", 99).name.tolist() == ["part 0", "part 1", "part 2"]
    with pytest.raises(KeyError, match="'neuron' was not scored; scored: part, head"):
        toy.top("neuron", 3)


def test_names():
    for kind, shape, axes, members, last in (
        ("neuron", (4, 18), ("layer", "neuron"), (), "neuron 3.17"),
        ("neuron", (2, 3, 5), ("layer", "expert", "neuron"), (), "neuron 1.2.4"),
        ("expert", (2, 3), ("layer", "expert"), (), "expert 1.2"),
        ("layer", (3,), ("layer",), (), "layer 2"),
        ("matrix", (2, 2), ("layer", "matrix"), ("up", "down"), "down 1"),
        ("embed", (1,), ("index",), (), "embed"),
        ("part", (5,), ("index",), (), "part 4"),
    ):
        names = scores.component_names(kind, components.Kind(shape, axes, (), members))
        assert names[-1] == last and len(set(names)) == len(names) == np.prod(shape)


def test_every_component_of_a_decoder_has_its_own_name():
    """No matter how many dimensions a kind has."""
    tool = scoring_toys.linear()
    partition = components.of_decoder(testing.tiny_pair(testing.tiny_config(kv_heads=1)).base)
    partition |= {
        "expert": components.Kind((2, 3), ("group", "expert"), ()),
        "deep": components.Kind((3, 2, 2), ("layer", "a", "b"), ()),
    }
    arrays = {kind: np.random.default_rng(0).random(p.shape).astype(np.float32) for kind, p in partition.items()}
    made = scores.Scores(
        values=arrays,
        effects={kind: array[None] for kind, array in arrays.items()},
        low=arrays,
        high=arrays,
        gap=tool.gap,
        is_kept=np.array([True]),
        ceilings={},
        noise={},
        method="first_order",
        aggregate="mean_of_ratios",
        layer=1,
        partition=partition,
    )
    frame = made.to_frame()
    assert len(frame) == sum(array.size for array in arrays.values()) and frame.name.is_unique
    assert not frame.is_exact.any()
    for row in frame[frame.kind == "head"].itertuples():
        assert row.score == arrays["head"][row.layer, int(frame.loc[row.Index, "index"])]


def test_screened_rows_say_who_was_replaced():
    exact = np.linspace(1, 0, 300)
    tool = scoring_toys.ladder(exact, exact)
    made = pipeline.score_with(tool, kinds=("part",), method="screened", options=scoring_toys.options(top=1))
    frame = made.to_frame()
    assert 200 <= frame.is_exact.sum() < 300 and frame.is_exact[0]
    assert (frame.is_exact.to_numpy() == made.screening["part"].replaced).all()


def test_dropped_inputs_are_counted_and_left_out():
    tool = scoring_toys.linear()
    tool = tool._replace(special=tool.base + np.array([5.5, -1.0], np.float32))
    made = pipeline.score_with(tool, kinds=("part",))
    assert made.num_dropped == 1 and made.is_kept.tolist() == [True, False]
    np.testing.assert_allclose(made.values["part"], np.array([2, 0, -1]) / 5.5, rtol=1e-6)
    assert np.isnan(made.low["part"]).all()


def test_ceilings_are_the_definition():
    """Patch whole kinds by hand, run the whole model, read the anchor."""
    pair, inputs = testing.tiny_pair(), testing.tiny_inputs()
    anchor = jp.Anchor(layer=1, direction=np.float32(np.eye(16)[0]))
    made = jp.score(pair, inputs, anchor, kinds=("layer", "embed"))
    run = jax.jit(effect.every_last_state, static_argnums=0)
    assert set(made.ceilings) == {"all layer", "all embed", "layer + embed", "head + neuron", "everything"}
    assert made.ceilings["everything"] == pytest.approx(1)
    for name in made.ceilings.keys() - {"everything"}:
        kinds = name.removeprefix("all ").split(" + ")
        patched = jp.patch(pair.base, pair.special, jp.gates(pair, dict.fromkeys(kinds, "all")))
        states = [run(pair.config, effect.unpatched(params), inputs)[1] for params in (pair.base, patched)]
        reads = [np.asarray(anchor.read(state)) for state in states]
        by_hand = np.mean(((reads[1] - reads[0]) / made.gap)[made.is_kept])
        assert made.ceilings[name] == pytest.approx(by_hand, abs=1e-4)
        np.testing.assert_allclose(made.whole[name], reads[1] - reads[0], atol=1e-4)
        low, high = made.ceiling_ends(name)
        ratios = (made.whole[name] / made.gap)[made.is_kept]
        assert (
            ratios.min() - 1e-6 <= low <= made.ceilings[name] + 1e-6
            and made.ceilings[name] - 1e-6 <= high <= ratios.max() + 1e-6
        )
        assert high > low or np.ptp(ratios) < 1e-6
    assert np.isnan(dataclasses.replace(made, whole={}).ceiling_ends("all layer")).all(), "an older archive has none"
    with pytest.raises(KeyError, match="'all head' is no ceiling of these scores; they have all layer"):
        made.ceiling_ends("all head")


def test_ceiling_of_everything_there_is():
    """Layers and embedding together are all that an anchor sees of a model."""
    pair, inputs = testing.tiny_pair(), testing.tiny_inputs()
    tool = instrument.of_pair(pair, inputs, jp.Anchor(layer=1, direction=np.eye(16)[0]))
    gates = jp.gates(pair, {"layer": "all", "embed": "all"})
    np.testing.assert_allclose(np.asarray(tool.effect(gates, np.arange(4))), tool.special, rtol=1e-5, atol=1e-5)
