"""Room: within the budget, and what a candidate costs held to what XLA says of the compiled program."""

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import memory, read_outs, sweep

TINY = testing.tiny_config()
MEDIUM = testing.tiny_config(width=128, neurons=512, heads=8, kv_heads=4, head_width=16)
ROWS = {
    "alone": [[*range(40)]],
    "sharing": [[*range(30), 40 + row, *range(9)] for row in range(6)],
    "apart": [[40 + row, *range(39)] for row in range(6)],
}
MIB = 2**20


def tree(rows="sharing"):
    return engine_cases.tree_of(engine_cases.inputs(ROWS[rows]))


def held(room, config, tree, itemsize=4) -> int:
    """Bytes of a room: its candidates, and the streams of its blocks and of the one that leads there."""
    block = 2 * tree.tokens.shape[0] * config.width * itemsize
    return room.candidates * memory.candidate_bytes(config, tree, itemsize) + (room.blocks + 1) * block


@pytest.mark.parametrize("config", [TINY, MEDIUM], ids=["tiny", "medium"])
def test_a_plan_is_within_its_budget_and_more_gives_no_less(config):
    prompts = tree()
    each = memory.candidate_bytes(config, prompts, 4)
    block = 2 * prompts.tokens.shape[0] * config.width * 4
    before = memory.Room(0, 0)
    for budget in np.geomspace(each + 2 * block, 400 * each, 60).astype(int):
        room = memory.plan(config, prompts, 4, 30, int(budget), fill=10**9)
        assert room.candidates >= 1 and 1 <= room.blocks <= 30 and held(room, config, prompts) <= budget
        if room.blocks < 30:
            assert held(room._replace(blocks=room.blocks + 1), config, prompts) > budget or (
                room.candidates <= memory.ENOUGH
            ), "room for one more block is used"
        assert room.blocks >= before.blocks, "more memory, no fewer blocks"
        before = room
    assert before.blocks == 30 and before.candidates > 300


def test_blocks_give_way_before_a_few_candidates():
    prompts = tree()
    each, block = memory.candidate_bytes(MEDIUM, prompts, 4), 2 * prompts.tokens.shape[0] * 128 * 4
    assert memory.plan(MEDIUM, prompts, 4, 30, 4 * each + 11 * block, 10**9) == (4, 10)
    assert memory.plan(MEDIUM, prompts, 4, 30, 4 * each + 40 * block, 10**9).blocks == 30
    assert memory.plan(MEDIUM, prompts, 4, 30, 2 * each + 2 * block, 10**9) == (2, 1)


def test_no_more_candidates_than_fill_the_machine():
    nodes = tree().tokens.shape[0]
    assert memory.plan(TINY, tree(), 4, 3, 10**12, fill=5 * nodes + 1) == (5, 3)
    assert memory.plan(TINY, tree(), 4, 3, 10**12, fill=1) == (1, 3)


def test_too_little_memory_says_what_would_do():
    prompts = tree()
    least = memory.candidate_bytes(MEDIUM, prompts, 4) + 4 * prompts.tokens.shape[0] * 128 * 4
    assert memory.plan(MEDIUM, prompts, 4, 30, least, fill=10**9) == (1, 1)
    nodes = prompts.tokens.shape[0]
    said = (
        rf"at least {least / MIB:.0f} MiB beside the models \({nodes} distinct token positions, width 128\); "
        rf"the budget is {(least - 1) / MIB:.0f} MiB. Give more memory, or use fewer or shorter prompts"
    )
    with pytest.raises(MemoryError, match=said):
        memory.plan(MEDIUM, prompts, 4, 30, least - 1, fill=10**9)


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
                sweep.exact(config, kind, models, np.zeros((size, 2), int), budget=2**40)
            set_aside.append(caught.value.args[0])
        return (set_aside[1] - set_aside[0]) / 12

    return measure


@pytest.mark.parametrize(
    ("config", "kind", "rows"),
    [
        (TINY, "head", "apart"),
        (MEDIUM, "neuron", "apart"),
        (MEDIUM, "kv", "sharing"),
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
