"""The smallest sets, where the answer can be counted by hand."""

import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import outcomes
from jaxpatch.scoring import normalise
from jaxpatch.validating import controls, smallest
from jaxpatch.validating.smallest import Recovered


def asked_of(values):
    """A recovery by table, what was asked of it, and both ends of the ranking, which are known beforehand."""
    seen = []

    def recover(k):
        seen.append(k)
        return Recovered(values[k], 0.0, 1.0)

    return recover, seen, {k: Recovered(values[k], 0.0, 1.0) for k in (1, len(values) - 1)}


def test_a_share_is_passed_at_the_size_and_not_one_before():
    values = np.sqrt(np.arange(1001) / 1000)
    recover, seen, tried = asked_of(values)
    steps = []
    found = smallest.search(recover, tried, (0.5, 0.8, 0.95), lambda done, total: steps.append((done, total)))
    for (count, recovered), share in zip(found, (0.5, 0.8, 0.95), strict=True):
        assert values[count - 1] < share <= values[count] == recovered.value
    assert len(seen) == len(set(seen)) <= 30, "no size is run twice"
    assert steps[-1] == (30, 30) and steps == sorted(steps)


def test_the_first_component_may_be_enough_and_all_may_be_too_few():
    recover, seen, tried = asked_of(np.array([0.0, 0.6, 0.7, 0.8]))
    assert smallest.search(recover, tried, (0.5, 0.9)) == [(1, tried[1]), None] and not seen


def test_where_recovery_falls_again_the_first_rise_on_the_grid_counts():
    values = np.concatenate([np.linspace(0, 1.2, 11), np.linspace(1.2, 0.4, 10), np.linspace(0.4, 1.0, 10)])
    recover, _, tried = asked_of(values)
    tried[10] = Recovered(values[10], 0.0, 1.0)
    [(count, _)] = smallest.search(recover, tried, (0.9,))
    assert values[count - 1] < 0.9 <= values[count] and count < 10


def test_on_a_pair_one_fewer_does_not_recover_it():
    """By patching the sets, and the ones that lack the last."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    anchor, _ = jp.fit_anchor(pair, prompts, testing.tiny_inputs(seed=1), layer=1, contrast="models")
    found = jp.score(pair, prompts, anchor)
    drawn = jp.validate(pair, prompts, anchor, found, num_random=1)
    half, nothing = jp.smallest_sets(pair, prompts, anchor, found, drawn, shares=(0.5, 50.0))
    assert (nothing.size, nothing.recovered, dict(nothing.counts)) == (None, None, {})
    outcome_fn = outcomes.of_pair(pair, prompts, anchor)
    shapes = {kind: values.shape for kind, values in found.values.items()}
    reach = {kind: np.arange(shape[0])[:, None] * np.ones(shape) <= 1 for kind, shape in shapes.items()}
    order = controls.ranked(found.values, reach)
    base = outcome_fn(controls.mask(order, 0, shapes), "restoration").read

    def recovered(count):
        read = outcome_fn(controls.mask(order, count, shapes), "restoration").read
        return float(normalise.normalised(read - base, found.gap, found.gap > 0, "mean_of_ratios"))

    assert recovered(half.size - 1) < 0.5 <= recovered(half.size) == pytest.approx(half.recovered.value, abs=1e-5)
    assert half.recovered.low <= half.recovered.value <= half.recovered.high
    assert dict(half.counts) == controls.counts(order, half.size) and sum(half.counts.values()) == half.size


def test_curves_of_another_ranking_and_shares_of_nothing_are_refused():
    pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0])
    heads = jp.score(pair, prompts, anchor, kinds=("head",))
    drawn = jp.validate(pair, prompts, anchor, heads, num_random=1)
    layers = jp.score(pair, prompts, anchor, kinds=("layer",))
    with pytest.raises(
        ValueError, match=r"one called top \(restoration\) of 2 components; got top \(restoration\) of 8"
    ):
        jp.smallest_sets(pair, prompts, anchor, layers, drawn)
    with pytest.raises(ValueError, match="got none"):
        jp.smallest_sets(pair, prompts, anchor, heads, ())
    others = testing.tiny_inputs(seed=1)
    with pytest.raises(
        ValueError, match=r"validate drew on these inputs, along this anchor; the first 1 of theirs recover"
    ):
        jp.smallest_sets(pair, others, anchor, heads, drawn)
    with pytest.raises(ValueError, match=r"shares: wanted numbers above 0, of the gap; got 0, -1"):
        jp.smallest_sets(pair, prompts, anchor, heads, drawn, shares=(0, 0.5, -1))
