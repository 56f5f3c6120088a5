"""A tree of prefixes: by hand, as a structure, and as the same run of the decoder as the padded one."""

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.models import decoder, prefix_tree

CONFIG = testing.tiny_config(attention_bias=True, output_bias=True, mlp_bias=True)
PARAMS = testing.tiny_pair(CONFIG).base
OVERLAPS = engine_cases.PROMPTS


def prefix_of(tree: prefix_tree.PrefixTree, node: int) -> tuple[int, ...]:
    """The tokens that a node sees, through its tile, in the order of their positions."""
    tree = jax.tree.map(np.asarray, tree)
    tiles = tree.inside
    row, place = divmod(int(tiles.home[node]), tiles.queries.shape[1])
    assert tiles.queries[row, place] == node
    seen = tiles.keys[row][tiles.mask[row, place]]
    assert tree.positions[seen].tolist() == list(range(len(seen))), "each ancestor once"
    assert seen[-1] == node and (seen[:-1] < node).all()
    return tuple(tree.tokens[seen].tolist())


def distinct(rows) -> set[tuple[int, ...]]:
    return {tuple(row[: end + 1]) for row in rows for end in range(len(row))}


def nodes_of(tree: prefix_tree.PrefixTree) -> dict[tuple[int, ...], int]:
    return {prefix_of(tree, node): node for node in range(tree.tokens.shape[0])}


def random_rows(draw: np.random.Generator) -> list[list[int]]:
    """Prompts of few different tokens, which share a lot."""
    stem = draw.integers(0, 3, draw.integers(0, 6)).tolist()
    rows = [draw.integers(0, 3, draw.integers(1, 6)).tolist() for _ in range(draw.integers(1, 8))]
    return [stem + row if draw.random() < 0.7 else row for row in rows]


def assert_is_the_tree_of(rows):
    tree = jax.tree.map(np.asarray, engine_cases.tree_of(engine_cases.inputs(rows)))
    nodes = nodes_of(tree)
    assert set(nodes) == distinct(rows) and tree.tokens.shape == (len(distinct(rows)),), "a node for each prefix"
    for prefix, node in nodes.items():
        assert (tree.tokens[node], tree.positions[node]) == (prefix[-1], len(prefix) - 1)
    assert tree.last.tolist() == [nodes[tuple(row)] for row in rows]
    assert sorted(np.unique(tree.inside.queries).tolist()) == sorted(nodes.values())
    assert tree.inside.home.shape == tree.tokens.shape
    for prompt, row in enumerate(rows):
        assert tree.ends.queries[prompt].tolist() == [prompt] and tree.ends.home[prompt] == prompt
        seen = np.asarray(tree.ends.keys[prompt])[np.asarray(tree.ends.mask[prompt, 0])]
        assert seen.tolist() == [nodes[tuple(row[: end + 1])] for end in range(len(row))]


def test_by_hand():
    """5, 5 6, its two ends 5 6 7 and 5 6 8, and 5 9: five nodes."""
    tree = engine_cases.tree_of(engine_cases.inputs([[5, 6, 7], [5, 6, 8], [5, 9]]))
    assert tree.tokens.tolist() == [5, 6, 7, 8, 9] and tree.positions.tolist() == [0, 1, 2, 2, 1]
    assert tree.last.tolist() == [2, 3, 4]
    assert nodes_of(tree) == {(5,): 0, (5, 6): 1, (5, 6, 7): 2, (5, 6, 8): 3, (5, 9): 4}


@pytest.mark.parametrize("rows", OVERLAPS.values(), ids=OVERLAPS)
def test_every_prefix_is_one_node_that_sees_its_ancestors_and_itself(rows):
    assert_is_the_tree_of(rows)


def test_random_prompts_too():
    draw = np.random.default_rng(0)
    for _ in range(15):
        assert_is_the_tree_of(random_rows(draw))


def test_tiles_waste_no_more_than_one_row_a_prompt():
    """A long common stem would stand in every row, were it not cut to the size of what the prompts have of their own."""
    rows = [[*range(30), 40 + last] for last in range(10)]
    tree = engine_cases.tree_of(engine_cases.inputs(rows))
    assert tree.tokens.shape == (40,) and tree.inside.queries.size < 2 * 40


@pytest.mark.parametrize("rows", OVERLAPS.values(), ids=OVERLAPS)
def test_ids_of_padding_do_not_matter_to_a_bit(rows):
    one, other = (engine_cases.tree_of(engine_cases.inputs(rows, fill)) for fill in (0, 60))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype and np.array_equal(a, b)


@jax.jit
def run_on_tree(params, tree):
    """States after each block, logits, and each block at the last tokens alone."""
    context = decoder.tree_context(CONFIG, tree, params["embed"]["kernel"].dtype)

    def step(x, weights):
        block = decoder.Block(CONFIG).bind({"params": weights})
        after = block(x, context)[0]
        return after, (after, block.mlp_half(block.attention_at_ends(x, context)))

    x, (states, ends) = jax.lax.scan(step, params["embed"]["kernel"][tree.tokens], params["layers"])
    return states, decoder.apply(CONFIG, params, x, method="read_out"), ends


@jax.jit
def run_padded(params, tokens):
    context = decoder.causal_context(CONFIG, tokens.shape[1], params["embed"]["kernel"].dtype)

    def step(x, weights):
        after = decoder.Block(CONFIG).apply({"params": weights}, x, context)[0]
        return after, after

    return jax.lax.scan(step, params["embed"]["kernel"][tokens], params["layers"])[1], decoder.logits(
        CONFIG, params, tokens
    )


@pytest.mark.parametrize("name", list(OVERLAPS)[:7])
def test_the_decoder_computes_the_same_on_the_tree_as_on_padded_prompts(name):
    rows = OVERLAPS[name]
    prompts = engine_cases.inputs(rows, fill=13)
    tree = engine_cases.tree_of(prompts)
    nodes = nodes_of(tree)
    states, logits, ends = map(np.asarray, run_on_tree(PARAMS, tree))
    padded_states, padded_logits = map(np.asarray, run_padded(PARAMS, prompts.tokens))
    for prompt, row in enumerate(rows):
        path = [nodes[tuple(row[: end + 1])] for end in range(len(row))]
        for found, wanted in ((states[:, path], padded_states[:, prompt]), (logits[path], padded_logits[prompt])):
            wanted = wanted[..., : len(row), :]
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        last = padded_states[:, prompt, len(row) - 1]
        np.testing.assert_allclose(ends[:, prompt], last, rtol=0, atol=1e-5 * np.abs(last).max())


def test_free_leading_axes_are_candidates():
    tree = engine_cases.tree_of(engine_cases.inputs(OVERLAPS["a common prefix"]))
    q, k, v = (
        jnp.asarray(np.random.default_rng(seed).standard_normal((2, tree.tokens.shape[0], heads, 4)), jnp.float32)
        for seed, heads in enumerate((4, 2, 2))
    )
    both = tree.inside.attend(q, k, v)
    for candidate in range(2):
        alone = tree.inside.attend(q[candidate], k[candidate], v[candidate])
        np.testing.assert_allclose(both[candidate], alone, rtol=1e-5, atol=1e-6)
