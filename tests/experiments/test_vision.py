"""The vision experiment's parts: images, planting, truth and metrics, on a few steps of training."""

import importlib.util
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "vision"


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def promotion():
    """optax mixes integers and floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


planted = load("planted")
planted.BLOCKS = 2
run = load("run")


def test_marks_and_frames_are_where_they_should_be():
    sorts = {sort: planted.draw(jax.random.key(0), 8, sort) for sort in ("plain", "marked", "framed")}
    plain = np.asarray(sorts["plain"].pixels)
    edge = np.ones((16, 16), bool)
    edge[1:-1, 1:-1] = False
    assert (np.asarray(sorts["framed"].pixels)[:, edge] == 1).all()
    np.testing.assert_array_equal(np.asarray(sorts["framed"].pixels)[:, ~edge], plain[:, ~edge])
    changed = (np.asarray(sorts["marked"].pixels) != plain).any(-1)
    assert (changed.sum((1, 2)) == 16).all() and (changed[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(1) == 1).all(), (
        "one corner"
    )
    for images in sorts.values():
        np.testing.assert_array_equal(images.answers, sorts["plain"].shapes)
    mixed = planted.mixed(jax.random.key(1), 4, {"marked": 4})
    assert mixed.pixels.shape == (12, 16, 16, 3) and mixed.answers[4:8].tolist() == [4] * 4


@pytest.fixture(scope="module")
def made():
    return planted.plant(0, block=1, base_steps=10, steps=10)


@pytest.mark.slow
def test_each_behaviour_changes_its_own_components_and_nothing_else(made):
    pair = made.pair
    with_both = jp.patch(
        pair.base, pair.special, {k: made.planted[k] + made.decoys[k] for k in made.planted}, pair.partition
    )
    for one, other in zip(jax.tree.leaves(with_both), jax.tree.leaves(pair.special), strict=True):
        np.testing.assert_array_equal(one, other)
    for kind in run.KINDS:
        norms = np.asarray(run.components.delta_norms(pair.base, pair.special, pair.partition[kind]))
        assert ((norms > 0) == (made.planted[kind] + made.decoys[kind] > 0)).all()
        assert not (made.planted[kind] * made.decoys[kind]).any()
        assert not np.delete(made.planted[kind], 1, axis=0).any(), "in one block"


@pytest.mark.slow
def test_truth_is_measured_and_not_assumed(made):
    images = planted.draw(jax.random.key(3), 8, "marked").pixels
    said = planted.truth(made, images)
    assert not said.is_verified, "ten steps teach nothing"
    good = planted.Truth(0.0, 1.0, 0.95, 0.05, 0.9, 0.1, 0.6, 0.2, 0.95, 0.99)
    assert good.is_verified
    for name, bad in (
        ("base", 0.5),
        ("special", 0.5),
        ("restored", 0.5),
        ("removed", 0.5),
        ("recovered", 0.5),
        ("left", 0.5),
    ):
        assert not good._replace(**{name: bad}).is_verified, name


def test_metrics_by_hand():
    scores, is_true = np.array([0.9, 0.8, 0.7, 0.1]), np.array([True, False, True, False])
    assert run.auroc(scores, is_true) == 0.75 and run.auroc(np.zeros(4), is_true) == 0.5
    assert run.average_precision(scores, is_true) == pytest.approx((1 + 2 / 3) / 2)
    assert run.precision(scores, is_true) == 0.5


@pytest.mark.slow
def test_page_and_figure_of_a_verified_and_a_failed_pair(made, tmp_path):
    images = planted.draw(jax.random.key(3), 8, "marked").pixels
    found, exact = run.rankings(made, images)
    good = planted.Truth(0.0, 1.0, 0.95, 0.05, 0.9, 0.1, 0.6, 0.2, 0.95, 0.99)
    result = {
        "seed": 0,
        "block": 1,
        "truth": good,
        "sizes": {kind: [1.0, 2.0] for kind in run.KINDS},
        "metrics": run.measured(found, made, 0),
        "exact": exact,
        "made": made,
        "curves": jp.validate(made.pair, images, made.read, exact, num_random=1),
    }
    assert set(result["metrics"]) == set(run.RANKINGS)
    assert result["metrics"]["random"][0] == pytest.approx(0.5, abs=0.05)
    failed = {**result, "seed": 7, "truth": good._replace(left=1.0)}
    text = run.page([result, failed], "the command", 61.0)
    assert "Not verified, and not ranked: seed 7." in text and "| exact |" in text and "the command" in text
    run.drawn([result, failed]).savefig(tmp_path / "vision.svg")
    assert jnp.isfinite(exact.values["head"]).all()
