"""Divergence along answers, against the two models' logits written out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import continuations, inputs
from jaxpatch.measuring.continuations import Continuation
from jaxpatch.models.rope import LongRope, Rope


def by_hand(pair, params, told, reference):
    """Each answer by itself, without padding, in float64."""
    kls, surprises = [], []
    for row, start, end in zip(told.tokens, told.starts, told.ends, strict=True):
        wanted, found = (
            np.asarray(jax.nn.log_softmax(pair.apply(side, row[None, :end])[0].astype(jnp.float32)), np.float64)
            for side in (reference, params)
        )
        at = np.arange(start, end)
        kls.append((np.exp(wanted) * (wanted - found)).sum(-1)[at - 1].mean())
        surprises.append(-found[at - 1, row[at]].mean())
    return np.array(kls), np.array(surprises)


def check(pair, params, told, reference):
    found = jp.divergence(pair, params, told, reference=reference)
    again = continuations.divergence_from(pair, reference, told)(params)
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))
    for mine, wanted in zip(found, by_hand(pair, params, told, reference), strict=True):
        np.testing.assert_allclose(mine, wanted, rtol=1e-4, atol=1e-6)
    return found


@pytest.mark.parametrize("options", [{}, dict(post_norm=True, logit_cap=5.0), dict(rope=None, positions=64)])
def test_it_is_the_mean_over_the_answers_tokens(options):
    pair = testing.tiny_pair(testing.tiny_config(**options))
    prompts = testing.tiny_inputs()
    told = jp.continuation(pair, pair.special, prompts, max_new=5)
    assert told.tokens.shape[1] == told.ends.max() and (told.ends - told.starts == 5).all()
    for row, length, tokens in zip(told.tokens, prompts.lengths, prompts.tokens, strict=True):
        assert row[:length].tolist() == tokens[:length].tolist()
        for end in range(int(length), int(length) + 5):
            assert row[end] == pair.apply(pair.special, row[None, :end])[0, -1].argmax(), "what special would write"
    other = check(pair, pair.base, told, pair.special)
    assert (other.kl > 1e-4).all() and other.perplexity > 1
    none = jp.divergence(pair, pair.special, told, reference=pair.special)
    assert np.abs(none.kl).max() < 1e-6 and (none.surprise < other.surprise).any()


def test_answers_of_different_lengths_end_with_what_ended_them():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    free = jp.continuation(pair, pair.special, prompts, max_new=6)
    stop = int(free.tokens[0, free.starts[0] + 2])
    pair = dataclasses.replace(pair, ends=(stop,))
    told = jp.continuation(pair, pair.special, prompts, max_new=6)
    for row, start, end in zip(told.tokens, told.starts, told.ends, strict=True):
        answer = row[start:end].tolist()
        assert answer.count(stop) == (1 if len(answer) < 6 else answer[-1:].count(stop)) and not row[end:].any()
    assert len(set((told.ends - told.starts).tolist())) > 1, "the case has lost its point"
    check(pair, pair.base, told, pair.special)


def test_answers_on_both_sides_of_where_positions_turn_otherwise():
    """Each is read by the angles of its own length, whatever is beside it."""
    stretch = LongRope(short=(1.0, 1.0), long=(1.0, 4.0), original=6, scale=1.2)
    config = testing.tiny_config(rope=Rope(theta=100.0, stretch=stretch))
    pair = testing.tiny_pair(config)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (3, 9)).astype(np.int32)
    told = Continuation(tokens, np.array([2, 6, 3]), np.array([5, 9, 6]))
    assert inputs.beyond(config) == 6
    check(pair, pair.base, told, pair.special)


def test_other_models_and_too_long_answers_are_refused():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    with pytest.raises(ValueError, match="exceed the context"):
        jp.continuation(pair, pair.special, prompts, max_new=10_000)
    base = {"a": jnp.ones(2)}
    trees = jp.TreePair(base, {"a": jnp.zeros(2)}, jp.partition(base, {"part": {"a": 0}}))
    with pytest.raises(ValueError, match="wanted a Pair of decoders"):
        jp.continuation(trees, trees.base, prompts)
