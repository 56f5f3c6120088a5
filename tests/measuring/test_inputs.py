"""Prompts as arrays: what is taken, and what is refused with which words."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import inputs
from jaxpatch.models.rope import LongRope, Rope

CONFIG = testing.tiny_config(context=6)


@pytest.mark.parametrize(
    "make", [list, np.array, lambda x: np.array(x, np.uint8), jnp.array, lambda x: np.array(x, np.int64)]
)
def test_any_integers_will_do(make):
    taken = inputs.checked(jp.Inputs(make([[1, 2, 3], [4, 5, 0]]), make([3, 2])), CONFIG)
    assert isinstance(taken.tokens, jax.Array) and taken.tokens.dtype == taken.lengths.dtype == jnp.int32
    assert taken.tokens.tolist() == [[1, 2, 3], [4, 5, 0]] and taken.lengths.tolist() == [3, 2]
    assert taken.rows(np.array([1])).tokens.tolist() == [[4, 5, 0]]


@pytest.mark.parametrize(
    ("tokens", "lengths", "message"),
    [
        ([[1, 2]], [0], "prompt 0 has an empty prompt; wanted 1 to 2 tokens"),
        ([[1, 2], [3, 4], [5, 6]], [2, 3, 9], "prompt 1 has length 3; wanted 1 to 2 tokens. 2 such prompts"),
        ([[1, 2]], [-1], "prompt 0 has length -1"),
        ([[1, 2]], [2, 2], r"lengths: wanted integers \[1\], one a prompt; got int64 \(2,\)"),
        ([[1, 2]], [2.0], r"lengths: wanted integers.*float64"),
        (
            [[1, 61]],
            [2],
            r"tokens\[0, 1\] = 61 is out of range; this model's ids are 0 to 60.*another model's tokenizer",
        ),
        ([[-1, 1]], [2], r"tokens\[0, 0\] = -1 is out of range"),
        ([[1.0, 2.0]], [2], r"tokens: wanted integers \[B, T\], got float64"),
        ([1, 2], [2], r"tokens: wanted integers \[B, T\], got int64 \(2,\)"),
        (np.zeros((0, 3), int), [], "tokens: wanted integers"),
        ([[1, 2], [3]], [2, 1], "tokens: the prompts differ in length; pad them on the right"),
        ([[1] * 7], [7], "7 tokens are more than the model's context of 6"),
    ],
)
def test_what_cannot_be_read_is_refused(tokens, lengths, message):
    with pytest.raises(ValueError, match=message):
        inputs.checked(jp.Inputs(tokens, lengths), CONFIG)


class WordTokenizer:
    """A word is a token, its length; a chat template stands around the request."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": ([9] if add_special_tokens else []) + [len(word) for word in text.split()]}

    def apply_chat_template(self, turns, chat_template, tokenize, add_generation_prompt):
        assert not tokenize and add_generation_prompt
        return chat_template.format(turns[0]["content"])

    def convert_ids_to_tokens(self, ids):
        return [number * "x" for number in ids]


def with_tokenizer(tokenizer, context=16, template=None):
    pair = testing.tiny_pair(testing.tiny_config(context=context))
    return dataclasses.replace(pair, tokenizer=tokenizer, template=template)


def test_encode_pads_on_the_right():
    read = jp.encode(with_tokenizer(WordTokenizer()), ["one three", "seventh"])
    assert read.tokens.tolist() == [[9, 3, 5], [9, 7, 0]] and read.lengths.tolist() == [3, 2]


def test_encode_uses_the_chat_template_once_and_only_if_asked():
    pair = with_tokenizer(WordTokenizer(), template="u {} aa")
    assert jp.encode(pair, ["one three"]).tokens.tolist() == [[1, 3, 5, 2]]
    assert jp.encode(pair, ["one three"], chat=False).tokens.tolist() == [[9, 3, 5]]


def test_encode_refuses():
    with pytest.raises(ValueError, match="this pair has no tokenizer; make Inputs"):
        jp.encode(testing.tiny_pair(), ["x"])
    pair = with_tokenizer(WordTokenizer(), context=4)
    with pytest.raises(ValueError, match=r"wanted a list of prompts, got one string; write \['a b'\]"):
        jp.encode(pair, "a b")
    with pytest.raises(ValueError, match="no prompts"):
        jp.encode(pair, [])
    with pytest.raises(ValueError, match=f"tokens that base and special do not both have: '{61 * 'x'}', '{62 * 'x'}'"):
        jp.encode(pair, ["a " + 62 * "b", 61 * "c"])
    with pytest.raises(ValueError, match="empty prompts: number 1, 2"):
        jp.encode(pair, ["a", "", "  \n"])
    with pytest.raises(ValueError, match=r"longer than the context of 4 tokens: number 0 \(5\), number 2 \(6\)"):
        jp.encode(pair, ["a b c d", "a", "a b c d e"])


def test_prompts_on_both_sides_of_a_longrope_are_refused_together():
    """What is read together is as long as the longest, so the short ones would not be read as by themselves."""
    rope = Rope(stretch=LongRope(short=(1.0, 1.0), long=(2.0, 3.0), original=4, scale=1.0))
    config = testing.tiny_config(rope=rope)
    tokens = jnp.zeros((2, 6), jnp.int32)
    with pytest.raises(ValueError, match=r"at most 4 tokens .the shortest: 3. in an array of 6: beyond 4"):
        inputs.checked(jp.Inputs(tokens, jnp.array([6, 3])), config)
    inputs.checked(jp.Inputs(tokens, jnp.array([6, 5])), config)
    inputs.checked(jp.Inputs(tokens[:, :4], jnp.array([4, 3])), config)
