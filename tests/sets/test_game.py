"""What sets of a real pair do, by the engine, against whole runs of the patched model."""

import jax.numpy as jnp
import numpy as np
import pytest
from set_games import ANCHOR, PAIR, played

import jaxpatch as jp
from jaxpatch.measuring import hosts, sweep, tree_pairs
from jaxpatch.patching import components
from jaxpatch.sets import game
from jaxpatch.validating import controls


@pytest.mark.parametrize("kinds", [("head", "neuron"), ("kv", "mlp", "embed"), ("layer",)])
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_one_sweep_says_what_each_is_worth_beside_the_others(kinds, seed):
    """Both directions: components of the set are taken out, others are put in."""
    engine, definition = played(kinds, 2 if kinds == ("layer",) else 5)
    num = len(engine.components)
    chosen = np.zeros(num, bool) if seed is None else np.random.default_rng(seed).random(num) < 0.5
    steps = []
    found = engine.marginals(chosen, lambda done, total: steps.append((done, total)))
    expected = definition.marginals(chosen, sweep.silent)
    by_value = game.of_value(engine.value, num, engine.gap).marginals(chosen, sweep.silent)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)
    np.testing.assert_allclose(by_value, expected, rtol=1e-5, atol=1e-5 * scale)
    assert steps[-1] == (num, num) and steps == sorted(steps)


def test_components_are_named_as_gates_and_tables_name_them():
    engine, _ = played(("head", "neuron"), 5)
    assert {kind for kind, *_ in engine.components} == {"head", "neuron"}
    gates = jp.gates(PAIR, {"head": [each.place for each in engine.components if each.kind == "head"]})
    assert gates["head"].sum() == sum(each.kind == "head" for each in engine.components)
    kind, place, name = engine.components[0]
    assert name == f"{kind} {place[0]}.{place[1]}"
    assert all(place[0] <= ANCHOR.layer for _, place, _ in engine.components)


def test_no_set_changes_the_models():
    before = np.array(PAIR.base["layers"]["mlp"]["up"]["kernel"])
    engine, _ = played(("head", "neuron"), 5)
    engine.marginals(np.ones(5, bool), sweep.silent)
    assert (np.asarray(PAIR.base["layers"]["mlp"]["up"]["kernel"]) == before).all()


def test_a_pair_of_trees_goes_by_the_definition():
    base, special = ({"w": jnp.asarray(w, jnp.float32)} for w in ([1.0, 1, 1], [2.0, 3, 4]))
    pair = jp.TreePair(base, special, jp.partition(base, {"weight": {"w": 0}}))
    xs = jnp.array([[1.0], [2.0]])
    tool = hosts.compiled(tree_pairs.instrument_of(pair, xs, lambda params, x: x[:, 0] * params["w"].prod()))
    order = controls.ranked({"weight": np.array([1.0, 2, 3])}, tool.reach)
    played = game.of_order(tool, order, {"weight": (3,)}, hosts.by_definition(tool), "mean_of_ratios")
    assert [each.place for each in played.components] == [(2,), (1,), (0,)]
    assert played.value(np.array([True, False, True])).tolist() == [7, 14]
    assert played.marginals(np.array([True, False, True]), sweep.silent)[0].tolist() == [6, 16, 4]
    assert components.disjoint(pair.partition, ("weight",)) == ("weight",)
