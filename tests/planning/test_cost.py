"""The cost model against XLA's own counts, the components there are, and sums made by hand."""

import math

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import downstream, instrument, local, memory, slopes
from jaxpatch.models import decoder, experts
from jaxpatch.patching import components
from jaxpatch.planning import cost
from jaxpatch.scoring import METHODS

ROWS = [[*range(30), 40 + row, *range(9)] for row in range(6)]
WIDE = {"width": 128, "neurons": 512, "heads": 8, "head_width": 16}
CONFIGS = {
    "every head its own keys": testing.tiny_config(**WIDE, kv_heads=8),
    "groups": testing.tiny_config(**WIDE, kv_heads=2),
    "one group": testing.tiny_config(**WIDE, kv_heads=1),
    "plain neurons beside attention": testing.tiny_config(
        **WIDE, kv_heads=8, parallel=True, gated=False, norm="layer", rope=None, positions=64
    ),
    "norms after, over all heads": testing.tiny_config(
        **WIDE, kv_heads=2, pre_norm=False, post_norm=True, qk_norm="whole"
    ),
}
ELEMENTWISE = 0.05
"""Share of operations that are no products at these widths."""
ROOM = memory.Room(candidates=4, blocks=3)


def job(config, rows=ROWS, depth=3) -> cost.Job:
    return cost.Job(config, engine_cases.tree_of(engine_cases.inputs(rows)), max(map(len, rows)), depth, 4)


def xla_flops(function, *args) -> float:
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_block_costs_what_xla_counts(config):
    work, pair = job(config), testing.tiny_pair(config)
    x = jnp.zeros((work.num_nodes, config.width))

    def block(x):
        context = decoder.tree_context(config, work.tree, x.dtype)
        return decoder.Block(config).bind({"params": decoder.layer_of(pair.base, 0)})(x, context)[0]

    looks = work.tree.inside.mask.size
    said = cost.block_flops(config, work.num_nodes, work.num_nodes, looks)
    assert said <= xla_flops(block, x) <= said * (1 + ELEMENTWISE)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_last_tokens_alone_cost_what_xla_counts(config):
    work, pair = job(config), testing.tiny_pair(config)

    def top(x):
        context = decoder.tree_context(config, work.tree, x.dtype)
        block = decoder.Block(config).bind({"params": decoder.layer_of(pair.base, 0)})
        return block.mlp_half(block.attention_at_ends(x, context))

    said = cost.block_flops(config, work.num_prompts, work.num_nodes, work.tree.ends.mask.size)
    found = xla_flops(top, jnp.zeros((work.num_nodes, config.width)))
    assert said <= found <= said * (1 + 2 * ELEMENTWISE)


@pytest.mark.parametrize("kind", ["head", "kv"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_what_a_component_writes_costs_what_xla_counts(config, kind):
    work, pair = job(config), testing.tiny_pair(config)
    models = engine_cases.models(pair, engine_cases.inputs(ROWS), engine_cases.anchor(2, width=config.width))
    entering = jnp.zeros((4, work.num_nodes, config.width))
    states = downstream.Trace(jnp.int32(0), entering, *(entering[1:] for _ in range(3 if config.post_norm else 1)))

    def stream(layer, index):
        return local.local_of(config, kind).stream(config, models, states, layer, index)

    own = (
        cost.candidate_flops(work, kind)[2]
        - cost.candidate_flops(work, "neuron")[2]
        + 4 * (config.mlp_matrices - 1) * work.num_nodes * config.width
    )
    found = xla_flops(stream, jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    assert own <= found <= own * (1 + 3 * ELEMENTWISE)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        pytest.param(config, kind, id=f"{name}-{kind}")
        for name, config in CONFIGS.items()
        for kind in ("head", "kv", "neuron")
        if local.is_closed(config, kind)
    ],
)
def test_a_cheap_pass_costs_about_what_xla_counts(config, kind):
    """One block, because XLA counts a loop's body once; and for that reason no kind whose members take turns."""
    models = engine_cases.models(
        testing.tiny_pair(config), engine_cases.inputs(ROWS), engine_cases.anchor(0, width=config.width)
    )
    found = xla_flops(lambda models: slopes.cheap(config, (kind,), models), models)
    assert found == pytest.approx(cost.cheap(job(config, depth=1), (kind,)).flops, rel=3 * ELEMENTWISE)


def test_experts_cost_what_their_tiles_hold():
    """XLA counts a loop's body once, so the tiles are counted here, of tokens that are sent to experts at random."""
    config = testing.tiny_config(width=32, neurons=16, experts=16, chosen=4)
    each, choosing = 2 * 3 * config.width * config.neurons, 2 * config.width * config.experts
    for tokens in (10, 300, 3000):
        keys = jax.random.split(jax.random.key(tokens), 20)
        drawn = [
            jax.random.permutation(key, jnp.tile(jnp.arange(16), (tokens, 1)), 1, independent=True) for key in keys
        ]
        tiles = [experts.tiles_of(chosen[:, :4], 16) for chosen in drawn]
        taken = np.mean([(tile.pairs[:, 0] < 4 * tokens).sum() * tile.pairs.shape[1] for tile in tiles])
        found = taken * each + tokens * choosing
        assert cost.mlp_flops(config, tokens) == pytest.approx(found, rel=0.15)


@pytest.mark.parametrize("more", [{"tied": True}, {"tied": False}, {"experts": 3, "chosen": 2}])
@pytest.mark.parametrize("layer", [0, 2])
def test_candidates_are_the_components_that_reach_the_anchor(more, layer):
    pair, prompts = testing.tiny_pair(testing.tiny_config(**more)), testing.tiny_inputs()
    partition = components.of_decoder(pair.base)
    tool = instrument.of_pair(pair, prompts, engine_cases.anchor(layer))
    said = cost.candidates(job(pair.config, depth=layer + 1), tuple(partition))
    assert said == {kind: int(tool.reach[kind].sum()) for kind in partition}
    assert cost.partition_of(pair.config) == partition


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tied": True},
        {"attention_bias": True, "output_bias": True, "mlp_bias": True},
        {"experts": 3, "chosen": 1},
    ],
)
def test_parameters_are_counted_to_the_byte(fields):
    pair = testing.tiny_pair(testing.tiny_config(**fields))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves((pair.base, pair.special)))
    assert job(pair.config).parameter_bytes == held
    assert job(pair.config)._replace(itemsize=2).parameter_bytes == held // 2


def test_what_is_held_is_what_the_room_was_planned_from():
    work = job(CONFIGS["groups"])
    each = memory.candidate_bytes(work.config, work.tree, 4)
    block = 2 * work.num_nodes * work.config.width * 4
    held = cost.held(work, ROOM, budget=10**12)
    assert held.states == 4 * block and held.batch == 4 * each
    least, two, six = (memory.cheap_bytes(work.config, work.tokens, 4, work.depth, prompts) for prompts in (1, 2, 6))
    assert held.cheap == six
    assert cost.held(work, ROOM, budget=two).cheap == two
    assert cost.held(work, ROOM, budget=two - 1).cheap == cost.held(work, ROOM, budget=1).cheap == least


def test_a_patch_runs_the_blocks_above_it():
    work = job(testing.tiny_config(layers=6, **WIDE, kv_heads=2), depth=5)
    config, nodes = work.config, work.num_nodes
    whole = cost.block_flops(config, nodes, nodes, work.tree.inside.mask.size)
    head, neuron = cost.candidate_flops(work, "head"), cost.candidate_flops(work, "neuron")
    assert np.diff(neuron).tolist() == [-whole] * 3 + [0], "at the anchor's block nothing is left but the last tokens"
    assert np.diff(head).tolist() == [-whole] * 3 + [-cost.mlp_flops(config, nodes)], "a head's own MLP follows it"
    assert np.diff(cost.candidate_flops(work, "layer")).tolist() == np.diff(neuron).tolist()


def test_pieces_begin_at_their_lowest_layer_and_are_full():
    work = job(testing.tiny_config(**WIDE, kv_heads=2))
    each = cost.candidate_flops(work, "neuron")
    host = cost.exact(work, "neuron", np.array([2]), ROOM).flops - each[2]
    for layers, wanted in (
        ([0, 0, 1, 2], 4 * each[0]),
        ([0, 0, 1, 2, 2], 4 * each[0] + 4 * each[2]),
        ([1, 2], 2 * each[1]),
        ([1, 1, 2], 4 * each[1]),
    ):
        found = cost.exact(work, "neuron", np.array(layers), ROOM)
        assert math.isclose(found.flops - host, wanted) and found.pieces == -(-len(layers) // 4)


def test_every_method_has_a_bill_and_screening_saves():
    work, kinds = job(testing.tiny_config(layers=6, **WIDE, kv_heads=2), depth=5), ("head", "neuron")
    bills = cost.bills(work, kinds, ROOM, top=100, alpha=0.05, sample=200, steps=16)
    assert bills.keys() == METHODS.keys()
    assert bills["screened"]["head"] == bills["exact"]["head"], "40 heads are fewer than a sample"
    assert bills["screened"]["neuron"].pieces == 300 / 4 and bills["exact"]["neuron"].pieces == 5 * 512 / 4
    assert bills["local_linear"] == bills["first_order"] == {cost.CHEAP: bills["screened"][cost.CHEAP]}
    assert bills["integrated"][cost.SLOPES].pieces == 16 * 6
    assert cost.smallest_sample(0.01, 200) == 300 and cost.smallest_sample(0.05, 500) == 500


def test_the_embedding_is_patched_by_the_plain_model():
    bills = cost.bills(
        job(testing.tiny_config()), ("embed", "final_norm"), ROOM, top=1, alpha=0.05, sample=200, steps=1
    )
    assert bills["exact"][cost.SLOPES].pieces == 1, "the last norm does not reach an anchor"
    assert bills["screened"][cost.SLOPES].pieces == 1 + 6
    assert cost.CHEAP not in bills["local_linear"]
