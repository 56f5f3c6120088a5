"""Which components go where: by hand on a few numbers, and on a pair against the definition of a patch."""

import jax
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.merging import gating
from jaxpatch.patching import components
from jaxpatch.trees import paths

NAN = np.nan
ONE = {"head": np.array([0.5, 0.2, -0.1, NAN]), "neuron": np.array([0.3, 0.1])}
TWO = {"head": np.array([0.4, 0.6, -0.2, 0.9]), "neuron": np.array([0.3, -0.4])}
SIZES = {"head": np.array([10, 10, 10, 10]), "neuron": np.array([2, 2])}


def rounded(gates):
    return [{kind: np.round(each, 3).tolist() for kind, each in own.items()} for own in gates]


def test_hard_gives_each_component_to_one():
    """Of two that are equal to the first; what no expert scores above 0 to nobody."""
    assert str(rounded(gating.hard([ONE, TWO], SIZES, 1.0))) == str(
        [
            {"head": [1.0, 0.0, 0.0, NAN], "neuron": [1.0, 1.0]},
            {"head": [0.0, 1.0, 0.0, 1.0], "neuron": [0.0, 0.0]},
        ]
    )


def test_the_budget_goes_to_the_highest_scores_of_all_kinds():
    """44 parameters have a score: 24 of them are room for two heads, and the third ends it, though neurons would fit."""
    one, two = gating.hard([ONE, TWO], SIZES, 24 / 44)
    assert np.nansum(one["head"]) + np.nansum(one["neuron"]) == 0 and np.nansum(two["head"]) == 2
    assert np.nansum(gating.hard([ONE, TWO], SIZES, 30 / 44)[0]["head"]) == 1
    own = gating.mask([ONE, TWO], SIZES, 0.4)  # 34 parameters of expert 0 have a score
    assert str(rounded(own)) == str(
        [
            {"head": [1.0, 0.0, 0.0, NAN], "neuron": [1.0, 0.0]},
            {"head": [0.0, 0.0, 0.0, 1.0], "neuron": [0.0, 0.0]},
        ]
    )
    for rule in gating.RULES.values():
        assert all(np.nansum(gate) == 0 for own in rule([ONE, TWO], SIZES, 0.0) for gate in own.values())


def test_soft_gives_shares_of_what_is_above_nothing():
    one, two = gating.soft([ONE, TWO], SIZES, 1.0)
    np.testing.assert_allclose(one["head"], [5 / 9, 1 / 4, 0, NAN])
    np.testing.assert_allclose(two["head"], [4 / 9, 3 / 4, 0, 1])
    np.testing.assert_allclose(one["neuron"] + two["neuron"], [1, 1])


def test_shared_parts_are_averaged():
    assert rounded(gating.shared(gating.mask([ONE, TWO], SIZES, 1.0)))[1]["neuron"] == [0.5, 0.0]


@pytest.fixture(scope="module")
def scored():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    return pair, [jp.score(pair, prompts, jp.Anchor(layer=1, direction=np.eye(16)[axis])) for axis in (0, 1)]


@pytest.mark.parametrize("rule", gating.RULES)
@pytest.mark.parametrize("budget", [0.0, 0.13, 1.0])
def test_what_is_taken_is_within_the_budget_and_no_more_would_fit(scored, rule, budget):
    pair, scores = scored
    gates = jp.apportion(rule, scores, pair.base, budget=budget)
    shapes = {path: leaf.shape for path, leaf in paths.leaves(pair.base).items()}
    sizes = {kind: components.sizes(scores[0].partition[kind], shapes) for kind in ("head", "neuron")}
    total = sum(int(sizes[kind][~np.isnan(gates[0][kind])].sum()) for kind in sizes)
    above = [{kind: np.where(np.isnan(own[kind]), 0, own[kind]) > 0 for kind in own} for own in gates]
    either = {kind: above[0][kind] | above[1][kind] for kind in sizes}
    for taken, own in ((each, [scores[n]]) for n, each in enumerate(above)) if rule == "mask" else ((either, scores),):
        spent = sum(int(sizes[kind][taken[kind]].sum()) for kind in sizes)
        assert spent <= budget * total
        best = {kind: np.max([each.values[kind] for each in own], axis=0) for kind in sizes}
        left = [
            (best[kind][place], sizes[kind][place])
            for kind in sizes
            for place in zip(*np.nonzero(~taken[kind] & scores[0].reach[kind] & (best[kind] > 0)), strict=True)
        ]
        assert not left or spent + max(left)[1] > budget * total


def test_a_merge_of_one_gated_expert_is_a_patch(scored):
    pair, scores = scored
    gates = jp.apportion("mask", scores[:1], pair.base, budget=0.3)[0]
    patched = jp.patch(pair.base, pair.special, {kind: np.nan_to_num(gate) for kind, gate in gates.items()})
    merged = jp.merge("task_arithmetic", pair.base, [pair.special], gates=[gates])
    assert all(map(np.array_equal, jax.tree.leaves(merged), jax.tree.leaves(patched)))


def test_the_rest_goes_as_far_as_it_is_told(scored):
    """Beside heads and neurons below the anchor: all else, keys and values and later blocks among it."""
    pair, scores = scored
    gates = jp.apportion("mask", scores[:1], pair.base, budget=0.0)
    merged = jp.merge("linear", pair.base, [pair.special], gates=gates, rest=1.0)
    for path, leaf in paths.leaves(merged).items():
        base, special = (np.asarray(paths.leaves(tree)[path]) for tree in (pair.base, pair.special))
        owned = any(slot.leaf == path for kind in gates[0] for slot in scores[0].partition[kind].slots)
        if owned:
            assert np.array_equal(leaf[:2], base[:2]) and np.array_equal(leaf[2:], special[2:])
        else:
            assert np.array_equal(leaf, special)


def test_gated_differences_are_trimmed_as_gated(scored):
    """A tenth of all is of what the gates leave, which is little."""
    pair, scores = scored
    gates = jp.apportion("mask", scores[:1], pair.base, budget=0.3)
    kept = jp.merge("ties", pair.base, [pair.special], gates=gates, density=0.05, trim="all")
    whole = jp.merge("linear", pair.base, [pair.special], gates=gates)
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (pair.base, kept, whole)]
    count, change = int(0.05 * len(flat[0])), np.abs(flat[2] - flat[0])
    assert set(np.flatnonzero(flat[1] != flat[0])) == set(np.argsort(-change)[:count])


def test_what_cannot_be_apportioned(scored):
    pair, scores = scored
    fewer = jp.score(pair, testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0]), kinds=("head",))
    with pytest.raises(ValueError) as caught:
        jp.apportion("hart", [scores[0], fewer], pair.base, budget=2, conflict="none", kinds={"heads": 1.0})
    said = str(caught.value)
    assert "there is no rule 'hart'; did you mean 'hard'?" in said
    assert "budget: wanted a share from 0 to 1; got 2." in said
    assert "conflict: wanted 'all' or 'share'; got 'none'." in said
    assert (
        "scores of expert 1: wanted {'head': (3, 4), 'neuron': (3, 24)}, as expert 0 has; got {'head': (3, 4)}" in said
    )
    assert "no expert has scores of 'heads'; did you mean 'head'?" in said
    with pytest.raises(ValueError, match="wanted those of at least one expert; got none"):
        jp.apportion("hard", [], pair.base)
    with pytest.raises(ValueError, match="gates: wanted those of each of 1 experts; got 2"):
        jp.merge("linear", pair.base, [pair.special], gates=[{}, {}])
