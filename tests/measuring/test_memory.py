"""Room: within the budget, and what a candidate costs held to what XLA says of the compiled program."""

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import memory, read_outs, sweep
from jaxpatch.patching import components

TINY = testing.tiny_config()
MEDIUM = testing.tiny_config(width=128, neurons=512, heads=8, kv_heads=4, head_width=16)
AROUND = testing.tiny_config(
    width=128, neurons=512, heads=8, kv_heads=4, head_width=16, post_norm=True, qk_norm="head", attention_cap=5.0
)
SIDE_BY_SIDE = testing.tiny_config(
    width=128, neurons=512, heads=8, kv_heads=8, head_width=16, parallel=True, gated=False, norm="layer"
)
EXPERTS = testing.tiny_config(width=128, neurons=64, heads=8, kv_heads=4, head_width=16, experts=16, chosen=4)
ROWS = {
    "alone": [[*range(40)]],
    "sharing": [[*range(30), 40 + row, *range(9)] for row in range(6)],
    "apart": [[40 + row, *range(39)] for row in range(6)],
}
MIB = 2**20


def tree(rows="sharing"):
    return engine_cases.tree_of(engine_cases.inputs(ROWS[rows]))


def held(config, prompts, room) -> int:
    return engine_cases.budget(config, prompts, *room)


@pytest.mark.parametrize("config", [TINY, MEDIUM], ids=["tiny", "medium"])
def test_a_plan_is_within_its_budget_and_more_gives_no_less(config):
    prompts = tree()
    least, before = held(config, prompts, (1, 1)), memory.Room(0, 0)
    for budget in np.geomspace(least, held(config, prompts, (400, 30)), 60).astype(int):
        room = memory.plan(config, prompts, 4, 30, int(budget), fill=10**9)
        assert room.candidates >= 1 and 1 <= room.blocks <= 30 and held(config, prompts, room) <= budget
        if room.blocks < 30:
            assert room.candidates <= memory.ENOUGH, "what a few candidates leave goes to blocks"
        assert room.blocks >= before.blocks, "more memory, no fewer blocks"
        before = room
    assert before.blocks == 30 and before.candidates > 300


@pytest.mark.parametrize("room", [(4, 10), (4, 30), (2, 1), (1, 1), (77, 30)])
def test_blocks_give_way_before_a_few_candidates(room):
    assert memory.plan(MEDIUM, tree(), 4, 30, held(MEDIUM, tree(), room), fill=10**9) == room


def test_a_narrow_model_has_room_for_the_host_beside_its_candidates():
    each = memory.IN_FLIGHT * memory.candidate_bytes(MEDIUM, tree(), 2)
    weights = memory.IN_FLIGHT * memory.WEIGHT_COPIES * memory.block_bytes(MEDIUM, 2)
    budget = weights + 31 * memory.states_bytes(MEDIUM, tree(), 2) + 5 * each
    assert memory.plan(MEDIUM, tree(), 2, 30, budget, fill=10**9) == (4, 30)
    assert memory.candidate_bytes(MEDIUM, tree(), 2) > memory.candidate_bytes(MEDIUM, tree(), 4), (
        "states wide, and rounded"
    )


def test_no_more_candidates_than_fill_the_machine():
    nodes = tree().tokens.shape[0]
    assert memory.plan(TINY, tree(), 4, 3, 10**12, fill=5 * nodes + 1) == (5, 3)
    assert memory.plan(TINY, tree(), 4, 3, 10**12, fill=1) == (1, 3)


def test_too_little_memory_says_what_would_do():
    least = held(MEDIUM, tree(), (1, 1))
    said = (
        rf"a sweep over {tree().tokens.shape[0]} distinct token positions needs {least / MIB:.1f} MiB beside the models; "
        r"the budget is 1.0 MiB. Give more memory \(memory=, --memory\), or use fewer or shorter prompts"
    )
    with pytest.raises(MemoryError, match=said):
        memory.plan(MEDIUM, tree(), 4, 30, MIB, fill=10**9)
    assert memory.plan(MEDIUM, tree(), 4, 30, least, fill=10**9) == (1, 1)
    with pytest.raises(MemoryError):
        memory.plan(MEDIUM, tree(), 4, 30, least - 1, fill=10**9)


@pytest.mark.parametrize(
    ("ask", "what"),
    [
        (lambda budget: memory.prompts_at_once(MEDIUM, 9, 4, budget), "a run of one prompt of 9 tokens"),
        (lambda budget: memory.cheap_prompts(MEDIUM, 9, 4, 30, budget), "a backward pass of one prompt of 9 tokens"),
    ],
)
def test_one_prompt_must_fit(ask, what):
    with pytest.raises(
        MemoryError, match=f"{what} needs .* MiB beside the models; the budget is 1,000 bytes. .*use shorter prompts"
    ):
        ask(1000)
    assert ask(10**9) > 1


def test_default_budget_is_a_share_of_what_is_free(monkeypatch):
    params = testing.tiny_pair().base
    monkeypatch.setattr(memory, "free_bytes", lambda params: 10**10)
    assert memory.default_budget(params) == 5 * 10**9
    monkeypatch.setattr(memory, "free_bytes", lambda params: 0)
    assert memory.default_budget(params) == memory.SMALLEST_BUDGET


def test_what_is_free_is_asked_of_the_machine():
    params = testing.tiny_pair().base
    assert MIB < memory.free_bytes(params) < 2**50
    assert memory.fill_of(params) == memory.FILL_CPU and memory.itemsize_of(params) == 4
    assert memory.itemsize_of(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)) == 2


@pytest.fixture
def compiled_as_users_have_it():
    kept = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", kept)


class Compiled(Exception):
    """Raised in place of the first piece, with what XLA sets aside for it."""


@pytest.fixture
def bytes_of_candidate(compiled_as_users_have_it, monkeypatch):
    """What XLA sets aside for each further candidate of a batch."""
    monkeypatch.setattr(memory, "FILL_CPU", 10**9)
    real = sweep._piece

    def compiled(*args):
        raise Compiled(real.lower(*args).compile().memory_analysis().temp_size_in_bytes)

    monkeypatch.setattr(sweep, "_piece", compiled)

    def measure(kind, config, rows, read_out):
        models = engine_cases.models(testing.tiny_pair(config), engine_cases.inputs(ROWS[rows]), read_out)
        set_aside = []
        for size in (4, 16):
            with pytest.raises(Compiled) as caught:
                dims = len(components.of_decoder(models.host)[kind].shape)
                sweep.exact(config, kind, models, np.zeros((size, dims), int), budget=2**40)
            set_aside.append(caught.value.args[0])
        return (set_aside[1] - set_aside[0]) / 12

    return measure


@pytest.mark.parametrize(
    ("config", "kind", "rows"),
    [
        (TINY, "head", "apart"),
        pytest.param(MEDIUM, "neuron", "apart", marks=pytest.mark.slow),
        pytest.param(MEDIUM, "kv", "sharing", marks=pytest.mark.slow),
        (AROUND, "head", "sharing"),
        pytest.param(AROUND, "neuron", "apart", marks=pytest.mark.slow),
        pytest.param(SIDE_BY_SIDE, "head", "apart", marks=pytest.mark.slow),
        pytest.param(EXPERTS, "neuron", "apart", marks=pytest.mark.slow),
        pytest.param(EXPERTS, "head", "sharing", marks=pytest.mark.slow),
    ],
)
def test_a_candidate_costs_what_xla_says(bytes_of_candidate, config, kind, rows):
    """Never more than was said, and not so little that a batch is a quarter of what it could be."""
    said = memory.candidate_bytes(config, tree(rows), 4)
    found = bytes_of_candidate(kind, config, rows, engine_cases.anchor(2, width=config.width))
    assert said / 4 <= found <= said, f"XLA {found:.0f}, said {said}: {found / said:.2f}"


def test_a_read_out_of_a_large_vocabulary_is_counted_too(bytes_of_candidate):
    """Six prompts of 20000 logits each are more than the six prompts' streams."""
    config = testing.tiny_config(vocab=20_000)
    said = memory.candidate_bytes(config, tree("sharing"), 4)
    found = bytes_of_candidate("head", config, "sharing", read_outs.NextToken("kl"))
    assert said / 4 <= found <= said, f"XLA {found:.0f}, said {said}: {found / said:.2f}"
