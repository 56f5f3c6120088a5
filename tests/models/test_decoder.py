"""The decoder against transformers, every family: the same logits in float32 and float64, whatever the variant, padded too."""

import hf
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from jaxpatch.models import checkpoints, decoder, prefix_tree

PROMPTS = parity.PROMPTS
FILL = 7
"""What stands behind the shorter prompts; it must not matter what."""


@pytest.fixture(scope="module", params=hf.VARIANTS)
def folder(request, tmp_path_factory):
    seed = parity.seed_of(request.param)
    return hf.save(tmp_path_factory.mktemp("model"), seed=seed, **hf.VARIANTS[request.param])


def ours(folder, dtype, fill=FILL):
    made = checkpoints.load(folder, dtype)
    tokens = checkpoints.checked_tokens(hf.padded(PROMPTS, fill), made.config)
    return np.asarray(jax.jit(decoder.logits, static_argnums=0)(made.config, made.params, tokens))


def assert_same(got, wanted, tolerance):
    for row, reference in zip(got, wanted, strict=True):
        np.testing.assert_allclose(row[: len(reference)], reference, rtol=0, atol=tolerance * np.abs(reference).max())


def test_logits_and_states_are_those_of_transformers_in_float32(folder):
    assert parity.logits(folder) <= parity.LIMITS["logits"]
    assert parity.states(folder) <= parity.LIMITS["every block's output"]


def test_logits_are_those_of_transformers_in_float64(folder):
    assert parity.logits(folder, "float64") <= parity.LIMITS["logits in float64"]


def test_greedy_continuations_are_those_of_transformers(folder):
    got, wanted = parity.greedy(folder, 12)
    assert got == wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", hf.VARIANTS)
def test_every_draw_is_as_near(name, tmp_path):
    for column, worst in parity.of_variant(name, tmp_path):
        assert worst <= parity.LIMITS.get(column, 0), column
    jax.clear_caches()


def test_padding_changes_nothing_bit_for_bit(tmp_path):
    folder = hf.save(tmp_path)
    one, other = ours(folder, "float32", fill=0), ours(folder, "float32", fill=42)
    for row, prompt in enumerate(PROMPTS):
        np.testing.assert_array_equal(one[row, : len(prompt)], other[row, : len(prompt)])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_models_answer_in_float32(tmp_path, dtype):
    got = ours(hf.save(tmp_path), dtype)
    assert got.dtype == jnp.float32
    assert_same(got, hf.logits(tmp_path, PROMPTS), 10 * float(jnp.finfo(dtype).eps))


def test_init_has_the_shapes_that_a_checkpoint_fills(folder):
    made = checkpoints.load(folder, "float32")
    shapes = jax.eval_shape(lambda key: decoder.init(made.config, key), jax.random.key(0))
    assert jax.tree.map(np.shape, made.params) == jax.tree.map(np.shape, dict(shapes))


def test_block_at_the_ends_is_the_block_there(tmp_path):
    made = checkpoints.load(hf.save(tmp_path), "float32")
    tokens, lengths = hf.padded(PROMPTS), np.array([len(p) for p in PROMPTS])
    tree = prefix_tree.of_prompts(tokens, lengths)
    on_tree = decoder.tree_context(made.config, tree, jnp.float32)
    padded = decoder.causal_context(made.config, tokens.shape[1], jnp.float32)
    weights = {"params": jax.tree.map(lambda leaf: leaf[0], made.params["layers"])}
    embed = jnp.asarray(made.params["embed"]["kernel"])

    @jax.jit
    def both_ways(weights):
        block = decoder.Block(made.config).bind(weights)
        mid = block.attention_at_ends(embed[tree.tokens], on_tree)
        return block(embed[tokens], padded)[0], block.mlp_half(mid)

    whole, alone = both_ways(weights)
    np.testing.assert_allclose(alone, decoder.take(whole, jnp.asarray(lengths - 1))[:, 0], atol=1e-5)
