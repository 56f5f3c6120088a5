"""Batching changes nothing but speed and memory: one compilation a kind, any budget, and progress up to the end."""

import dataclasses
import warnings

import chex
import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import local, memory, sweep
from jaxpatch.measuring.read_outs import NextToken

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
CONFIG = PAIR.config
READ_OUTS = (engine_cases.anchor(2), engine_cases.anchor(0, 1), NextToken("kl"))
MODELS = engine_cases.models(PAIR, INPUTS, READ_OUTS)
HEADS = np.argwhere(np.ones((3, 4)))
NEURONS = np.argwhere(np.ones((3, 24)))
FILL = memory.FILL_CPU // MODELS.tree.tokens.shape[0]


def budget(candidates: int, blocks: int) -> int:
    return engine_cases.budget(CONFIG, MODELS.tree, candidates, blocks)


@pytest.fixture(scope="module")
def whole():
    return sweep.exact(CONFIG, "head", MODELS, HEADS)


def assert_same(found, wanted):
    """To 1e-6 of what is read: an effect is the difference of two readings, and each piece size has its own float32 sums. That it
    is rounding and no more is seen in float64, below."""
    largest = np.abs(np.asarray(sweep._host_reads(CONFIG, MODELS))).max()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6 * largest)


def test_one_trace_for_all_layers_and_both_directions(monkeypatch):
    chex.clear_trace_counter()
    monkeypatch.setattr(local, "effects", chex.assert_max_traces(local.effects, n=1))
    config = testing.tiny_config(context=63)  # another key for jit: nothing is compiled yet
    before = sweep._piece._cache_size()
    assert sweep.exact(config, "head", MODELS, HEADS).shape == (12, 3, 4)
    sweep.exact(config, "head", MODELS._replace(host=PAIR.special, donor=PAIR.base), HEADS)
    assert sweep._piece._cache_size() == before + 1


def test_one_trace_for_all_segments_and_pieces():
    config = testing.tiny_config(context=62)
    before = sweep._piece._cache_size(), sweep._trace._cache_size()
    sweep.exact(config, "head", MODELS, HEADS, budget=budget(2, 1))
    assert (sweep._piece._cache_size(), sweep._trace._cache_size()) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("room", [(1, 1), (3, 1), (4, 2), (FILL, 3)])
def test_any_budget_gives_the_same_numbers(whole, room):
    """Candidates one by one with one block at a time, and all at once with every block, and between."""
    assert memory.plan(CONFIG, MODELS.tree, 4, 3, budget(*room), memory.FILL_CPU) == room
    seen = []
    parts = sweep.exact(CONFIG, "head", MODELS, HEADS, budget=budget(*room), progress=lambda *at: seen.append(at))
    assert_same(parts, whole)
    done = [at[0] for at in seen]
    assert done == sorted(set(done)) and seen[-1] == (12, 12) and {at[1] for at in seen} == {12}


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_any_budget_gives_the_same_numbers_in_float64(kind):
    with jax.enable_x64(True):
        sides = (jax.tree.map(lambda leaf: leaf.astype(jnp.float64), side) for side in (PAIR.base, PAIR.special))
        pair = dataclasses.replace(PAIR, **dict(zip(("base", "special"), sides, strict=True)))
        models = engine_cases.models(pair, INPUTS, READ_OUTS)
        indices = HEADS[::-1]
        rooms = [engine_cases.budget(CONFIG, models.tree, *room, itemsize=8) for room in ((1, 1), (3, 3))]
        found = [sweep.exact(CONFIG, kind, models, indices, budget=room) for room in rooms]
        wanted = sweep.exact(CONFIG, kind, models, indices)
    assert wanted.dtype == np.float64
    for parts in found:
        np.testing.assert_allclose(parts, wanted, rtol=0, atol=1e-13 * np.abs(wanted).max())


def test_too_little_memory_for_one_candidate_is_refused():
    with pytest.raises(MemoryError, match="use fewer or shorter prompts"):
        sweep.exact(CONFIG, "head", MODELS, HEADS, budget=budget(1, 1) - 1)


@pytest.mark.parametrize("most", [None, budget(2, 1)])
def test_order_and_repetition_change_nothing(whole, most):
    for rows in (slice(None, None, -1), [5, 0, 11, 6], [7, 7, 0, 7], [10]):
        assert_same(sweep.exact(CONFIG, "head", MODELS, HEADS[rows], budget=most), whole[rows])


def test_more_pieces_than_are_fetched_at_once(monkeypatch):
    """72 neurons one by one, many of them between two fetches; and heads in spans of two pieces of three."""
    alone = sweep.exact(CONFIG, "neuron", MODELS, NEURONS, budget=budget(1, 3))
    assert len(NEURONS) > sweep.SPAN
    assert_same(alone, sweep.exact(CONFIG, "neuron", MODELS, NEURONS))
    heads = sweep.exact(CONFIG, "head", MODELS, HEADS)
    monkeypatch.setattr(sweep, "SPAN", 2)
    seen = []
    found = sweep.exact(CONFIG, "head", MODELS, HEADS[1:], budget=budget(3, 1), progress=lambda *at: seen.append(at))
    assert_same(found, heads[1:])
    assert [at[0] for at in seen] == sorted({at[0] for at in seen}) and seen[-1] == (11, 11)


def test_same_call_same_bits():
    first, again = (sweep.exact(CONFIG, "head", MODELS, HEADS) for _ in "ab")
    assert first.tobytes() == again.tobytes() and first.dtype == np.float32


def test_cheap_is_shaped_by_reading_layer_and_component():
    found = sweep.cheap(CONFIG, ("head",), MODELS._replace(read_outs=READ_OUTS[:2]))
    assert found["head"].linear.shape == found["head"].first_order.shape == (8, 3, 4)


def out_of_memory(monkeypatch, largest: int, words="RESOURCE_EXHAUSTED: Out of memory allocating 1 byte", first=0):
    """A device on which pieces of more than `largest` fail, from the first one or a later one on. Returns the sizes tried."""
    real, sizes = sweep._piece, []

    def piece(*args):
        sizes.append(size := args[9])
        if size > largest and len(sizes) > first:
            raise jax.errors.JaxRuntimeError(words)
        return real(*args)

    monkeypatch.setattr(sweep, "_piece", piece)
    return sizes


def test_a_device_out_of_memory_takes_fewer_at_once(monkeypatch, whole):
    sizes = out_of_memory(monkeypatch, 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = sweep.exact(CONFIG, "head", MODELS, HEADS)
    assert_same(found, whole)
    assert [str(warning.message) for warning in said] == [
        f"the device ran out of memory with {size} candidates at once; going on with {size // 2}."
        for size in (16, 8, 4)
    ]
    assert sizes == [16, 8, 4] + [2] * 6


def test_a_device_that_runs_out_later_does_that_span_again(monkeypatch, whole):
    """Two pieces of four are done and thrown away; the third one fails."""
    sizes = out_of_memory(monkeypatch, 2, first=2)
    seen = []
    with pytest.warns(UserWarning, match="with 4 candidates at once; going on with 2"):
        found = sweep.exact(CONFIG, "head", MODELS, HEADS, budget=budget(4, 3), progress=lambda *at: seen.append(at))
    assert_same(found, whole)
    assert sizes == [4] * 3 + [2] * 6 and seen[-1] == (12, 12)


def test_a_device_out_of_memory_with_one_candidate_says_what_to_do(monkeypatch):
    out_of_memory(monkeypatch, 0)
    said = "runs out of memory with a single candidate; use fewer or shorter prompts, a narrower dtype"
    with pytest.warns(UserWarning, match="ran out of memory"), pytest.raises(MemoryError, match=said) as caught:
        sweep.exact(CONFIG, "head", MODELS, HEADS)
    assert "RESOURCE_EXHAUSTED" in str(caught.value.__cause__)


def test_cheap_scores_of_a_device_out_of_memory_take_fewer_prompts(monkeypatch):
    models = MODELS._replace(read_outs=READ_OUTS[:2])
    whole, real, sizes, seen = sweep.cheap(CONFIG, ("head",), models), sweep._cheap, [], []

    def cheap(config, kinds, some):
        sizes.append(len(some.inputs.tokens))
        if sizes[-1] > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 byte")
        return real(config, kinds, some)

    monkeypatch.setattr(sweep, "_cheap", cheap)
    with pytest.warns(UserWarning, match="ran out of memory with . prompts at once; going on with"):
        found = sweep.cheap(CONFIG, ("head",), models, progress=lambda *at: seen.append(at))
    assert sizes == [4, 2] + [1] * 8 and seen == [(done, 8) for done in range(1, 9)]
    for mine, wanted in zip(found["head"], whole["head"], strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_other_errors_of_the_device_are_not_swallowed(monkeypatch):
    sizes = out_of_memory(monkeypatch, 0, "INTERNAL: the device fell off the bus")
    with pytest.raises(jax.errors.JaxRuntimeError, match="fell off the bus"):
        sweep.exact(CONFIG, "head", MODELS, HEADS)
    assert sizes == [16], "no second try"
