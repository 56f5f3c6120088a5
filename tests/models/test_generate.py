"""Greedy continuation of a batch, against transformers' own generation of each prompt by itself."""

import functools

import hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxpatch.models import checkpoints, generate

PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [42], [7, 7, 7, 7, 7])
NEVER = 43
"""A stop token that no model of these can write: their ids end at 42."""


@pytest.fixture(scope="module", params=["GQA tied", "GQA untied biases", "Qwen3, biases, local layers"])
def folder(request, tmp_path_factory):
    return hf.save(tmp_path_factory.mktemp("model"), **hf.VARIANTS[request.param])


@functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new", "stop", "others"))
def greedy(config, params, tokens, lengths, *, max_new, stop, others=(), steer=None):
    return generate.greedy(config, params, tokens, lengths, max_new=max_new, stops=(stop, *others), steer=steer)


def ours(folder, *, prompts=PROMPTS, fill=0, dtype="float32", **options):
    made = checkpoints.load(folder, dtype)
    tokens, lengths = jnp.asarray(hf.padded(prompts, fill)), jnp.asarray([len(prompt) for prompt in prompts])
    params = jax.tree.map(jnp.asarray, made.params)
    return np.asarray(greedy(made.config, params, tokens, lengths, **options))


def theirs(folder, **options):
    model = hf.load(folder)
    return [hf.continuation(model, prompt, **options) for prompt in PROMPTS]


def test_64_tokens_are_those_of_transformers(folder):
    got = ours(folder, max_new=64, stop=NEVER)
    assert got.dtype == np.int32
    assert got.tolist() == theirs(folder, max_new=64, stop=NEVER)


def test_padding_does_not_matter(folder):
    np.testing.assert_array_equal(
        ours(folder, max_new=64, stop=NEVER, fill=0), ours(folder, max_new=64, stop=NEVER, fill=31)
    )


def test_a_stop_token_ends_each_sequence_by_itself(folder):
    free = ours(folder, max_new=64, stop=NEVER)
    stop = int(free[0, 5])  # a token that some write early, some late or never
    ends = [row.tolist().index(stop) if stop in row else None for row in free]
    assert len(set(ends)) > 1
    got = ours(folder, max_new=64, stop=stop)
    for row, unstopped, end in zip(got, free, ends, strict=True):
        length = 64 if end is None else end + 1
        assert row[:length].tolist() == unstopped[:length].tolist()
        assert (row[length:] == stop).all()
    for row, reference in zip(got.tolist(), theirs(folder, max_new=64, stop=stop), strict=True):
        assert row[: len(reference)] == reference


def test_any_of_several_stop_tokens_ends_a_sequence(folder):
    free = ours(folder, max_new=64, stop=NEVER)
    stop, other = int(free[0, 5]), int(free[1, 3])
    got = ours(folder, max_new=64, stop=stop, others=(other,))
    model = hf.load(folder)
    for row, prompt in zip(got.tolist(), PROMPTS, strict=True):
        ids = torch.tensor([prompt])
        written = model.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=[stop, other], pad_token_id=stop)
        wanted = written[0, len(prompt) :].tolist()
        assert row == wanted + [stop] * (64 - len(wanted))


def test_where_nothing_stops_all_is_written(folder):
    made = checkpoints.load(folder, "float32")
    tokens, lengths = jnp.asarray(hf.padded(PROMPTS)), jnp.asarray([len(prompt) for prompt in PROMPTS])
    got = generate.greedy(made.config, made.params, tokens, lengths, max_new=9, stops=())
    np.testing.assert_array_equal(got, ours(folder, max_new=9, stop=NEVER))


def test_a_first_token_may_be_the_stop_token(folder):
    stop = int(ours(folder, max_new=64, stop=NEVER)[2, 0])
    assert ours(folder, prompts=PROMPTS[2:3], max_new=9, stop=stop).tolist() == [[stop] * 9]


@pytest.mark.parametrize("layer", [0, 1])
def test_steering_is_adding_a_vector_after_a_block_from_the_last_prompt_token_on(folder, layer):
    vector = 2 * np.random.default_rng(layer).standard_normal(16).astype(np.float32)
    model = hf.load(folder)
    wanted = []
    for prompt in PROMPTS:
        with hf.steered(model, layer, vector, first=len(prompt) - 1):
            wanted.append(hf.continuation(model, prompt, max_new=64, stop=NEVER))
    got = ours(folder, max_new=64, stop=NEVER, steer=(jnp.asarray(layer), jnp.asarray(vector)))
    assert got.tolist() == wanted
    assert got.tolist() != theirs(folder, max_new=64, stop=NEVER)


def test_a_zero_vector_steers_nowhere(folder):
    steer = (jnp.asarray(1), jnp.zeros(16))
    np.testing.assert_array_equal(
        ours(folder, max_new=64, stop=NEVER, steer=steer), ours(folder, max_new=64, stop=NEVER)
    )


def test_one_new_token_is_the_argmax_of_the_logits(folder):
    got = ours(folder, max_new=1, stop=NEVER)
    wanted = [logits[-1].argmax() for logits in hf.logits(folder, PROMPTS)]
    assert got[:, 0].tolist() == wanted


def test_narrow_models_generate_too(tmp_path):
    got = ours(hf.save(tmp_path), max_new=4, stop=NEVER, dtype="bfloat16")
    assert got.shape == (4, 4) and got.min() >= 0 and got.max() < 43


@pytest.mark.parametrize("prompt", [PROMPTS[0], [7, 7, 7, 3, 1, 4, 1, 5, 9, 2, 6]])
@pytest.mark.parametrize("steps", [3, 12])
def test_keys_that_were_kept_turn_otherwise_once_a_sequence_is_beyond_the_original_context(tmp_path, prompt, steps):
    """From 8 tokens on across 11; and from 11, so that the first token written crosses it."""
    options = dict(model_type="phi3", rope_parameters=hf.LONG_ROPE, original_max_position_embeddings=11)
    folder = hf.save(tmp_path, **options)
    got = ours(folder, prompts=[prompt], max_new=steps, stop=NEVER)
    assert got.tolist() == [hf.continuation(hf.load(folder), prompt, max_new=steps, stop=NEVER)]


def test_each_of_a_batch_crosses_the_original_context_by_itself(tmp_path):
    options = dict(model_type="phi3", rope_parameters=hf.LONG_ROPE, original_max_position_embeddings=11)
    folder = hf.save(tmp_path, **options)
    assert ours(folder, max_new=16, stop=NEVER).tolist() == theirs(folder, max_new=16, stop=NEVER)


def test_steering_goes_on_across_the_original_context(tmp_path):
    """With a cache as without: each token is the best of the whole sequence read anew."""
    folder = hf.save(tmp_path, model_type="phi3", rope_parameters=hf.LONG_ROPE, original_max_position_embeddings=11)
    made, vector = checkpoints.load(folder, "float32"), np.random.default_rng(0).standard_normal(16).astype(np.float32)
    steer = (1, jnp.asarray(vector))
    whole = ours(folder, prompts=PROMPTS[:1], max_new=8, stop=NEVER, steer=steer)[0]
    model = hf.load(folder)
    sequence, start = list(PROMPTS[0]), len(PROMPTS[0]) - 1

    def add(module, args, output):
        output[0, start:] += torch.as_tensor(vector) if output.ndim == 3 else 0
        return output

    handle = hf.blocks(model)[1].register_forward_hook(add)
    with torch.no_grad():
        for _ in range(8):
            logits = model(torch.tensor([sequence]), use_cache=False).logits
            sequence.append(int(logits[0, -1].argmax()))
    handle.remove()
    assert whole.tolist() == sequence[len(PROMPTS[0]) :] and made.config.rope.stretch.original == 11
