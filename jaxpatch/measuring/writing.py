"""What a model writes: prompts in, texts out."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from jaxpatch.measuring.inputs import Inputs, checked
from jaxpatch.models import differences, generate
from jaxpatch.models.checkpoints import Pair
from jaxpatch.shapes import Params

_greedy = functools.partial(jax.jit, static_argnums=0, static_argnames=("max_new", "stops"))(generate.greedy)


def write(
    pair: Pair,
    params: Params,
    inputs: Inputs,
    *,
    max_new: int = 64,
    steer: tuple[int, jax.Array] | None = None,
) -> Sequence[str]:
    """Greedy continuations of the prompts.

    Args:
        params: pair.base, pair.special, or a patched tree.
        inputs: [B, T] prompts.
        max_new: tokens to add at most; a text ends earlier where the model writes one of `pair.ends`.
        steer: (layer, vector [D]) added to the residual stream after that block from the last prompt token on.

    Returns: B texts, without the prompts and without special tokens.

    Raises: ValueError without a tokenizer, or where prompt and answer exceed the context.

    Example:
        >>> texts = write(pair, pair.special, encode(pair, ["Describe owls."]))  # doctest: +SKIP
    """
    _refuse_wordless(pair)
    tokens, counts = answers(pair, params, inputs, max_new=max_new, steer=steer)
    return decoded(pair, [row[:count] for row, count in zip(tokens, counts, strict=True)])


def decoded(pair: Pair, rows: Sequence[np.ndarray]) -> Sequence[str]:
    """Answers' tokens as texts, without special tokens and without what ended them."""
    _refuse_wordless(pair)
    assert pair.tokenizer is not None
    stops = _stops(pair)
    ended = [row[: len(row) - int(np.isin(row[-1:], stops).sum())] for row in rows]
    return pair.tokenizer.batch_decode(ended, skip_special_tokens=True)


def _refuse_wordless(pair: Pair) -> None:
    if pair.tokenizer is None:
        raise ValueError("this pair has no tokenizer, so there is nothing to write with.")


def answers(
    pair: Pair,
    params: Params,
    inputs: Inputs,
    *,
    max_new: int,
    steer: tuple[int, jax.Array] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The same as tokens: int [B, max_new], and how many of them each answer has, [B], the one that ended it included.

    Raises: ValueError where prompt and answer exceed the context.
    """
    inputs = checked(inputs, pair.config)
    if max_new < 1:
        raise ValueError(f"max_new must be at least 1; got {max_new}.")
    if inputs.tokens.shape[1] + max_new > pair.config.context:
        raise ValueError(f"prompt and {max_new} new tokens exceed the context of {pair.config.context}; lower max_new.")
    stops = _stops(pair)
    tokens = np.asarray(_greedy(pair.config, params, *inputs, max_new=max_new, stops=stops, steer=steer))
    is_end = np.isin(tokens, stops)
    return tokens, np.where(is_end.any(axis=1), is_end.argmax(axis=1) + 1, max_new)


def _stops(pair: Pair) -> tuple[int, ...]:
    return tuple(each for each in differences.ends_of(pair.ends, pair.tokenizer) if each < pair.config.vocab)
