"""Batching changes nothing but speed: one compilation a kind, any chunk, and progress up to the end."""

import chex
import jax
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import local, read_outs, sweep

PAIR, INPUTS = testing.tiny_pair(), testing.tiny_inputs()
ANCHOR = read_outs.checked(jp.Anchor(layer=2, direction=np.float32(np.eye(16)[0])), PAIR.config)
MODELS = local.Models(PAIR.base, PAIR.special, INPUTS, ANCHOR)
HEADS = np.argwhere(np.ones((3, 4)))


def test_one_trace_for_all_layers(monkeypatch):
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(local.block_effects, n=1), static_argnums=(0, 1))
    monkeypatch.setattr(sweep, "_block_effects", counted)
    assert sweep.exact(PAIR.config, "head", MODELS, HEADS).shape == (12, 4)
    sweep.exact(PAIR.config, "head", MODELS._replace(base=PAIR.special, special=PAIR.base), HEADS)
    assert counted._cache_size() == 1


def test_chunks_and_order_change_nothing():
    tokens = INPUTS.tokens.size
    whole = sweep.exact(PAIR.config, "head", MODELS, HEADS)
    largest = np.abs(whole).max()
    for chunk_tokens in (1, 3 * tokens):
        parts = sweep.exact(PAIR.config, "head", MODELS, HEADS, chunk_tokens=chunk_tokens)
        np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-6 * largest)
    turned = sweep.exact(PAIR.config, "head", MODELS, HEADS[::-1])
    np.testing.assert_allclose(turned[::-1], whole, rtol=0, atol=1e-6 * largest)
    some = sweep.exact(PAIR.config, "head", MODELS, HEADS[[5, 0, 11, 6]])
    np.testing.assert_allclose(some, whole[[5, 0, 11, 6]], rtol=0, atol=1e-6 * largest)


def test_same_call_same_bits():
    first, again = (sweep.exact(PAIR.config, "head", MODELS, HEADS) for _ in "ab")
    assert first.tobytes() == again.tobytes() and first.dtype == np.float32


@pytest.mark.parametrize(("kind", "indices"), [("head", HEADS), ("embed", np.array([[0]]))])
def test_progress_reaches_the_total(kind, indices):
    seen = []
    sweep.exact(
        PAIR.config, kind, MODELS, indices, chunk_tokens=3 * INPUTS.tokens.size, progress=lambda *at: seen.append(at)
    )
    done = [at[0] for at in seen]
    assert done == sorted(set(done)) and seen[-1] == (len(indices), len(indices))
    assert {at[1] for at in seen} == {len(indices)}


def test_linear_is_shaped_by_input_layer_and_component():
    assert sweep.linear(PAIR.config, "head", MODELS).shape == (4, 3, 4)
