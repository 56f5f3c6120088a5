"""Prompts as arrays: tokens, and how long each prompt is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxpatch.models import checkpoints, templates
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.rope import LongRope


class Inputs(NamedTuple):
    """A fixed set of prompts. tokens: right-padded with any id. lengths: at least 1."""

    tokens: Int[Array, "B T"]
    lengths: Int[Array, " B"]

    def rows(self, which: Any) -> "Inputs":
        """Some of the prompts."""
        return Inputs(self.tokens[which], self.lengths[which])


def checked(inputs: Inputs, config: DecoderConfig) -> Inputs:
    """The inputs as int32. Raises ValueError for bad tokens or lengths, naming the first."""
    tokens = checkpoints.checked_tokens(inputs.tokens, config)
    lengths = np.asarray(inputs.lengths)
    if lengths.shape != tokens.shape[:1] or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            f"lengths: wanted integers [{tokens.shape[0]}], one a prompt; got {lengths.dtype} {lengths.shape}."
        )
    bad = np.flatnonzero((lengths < 1) | (lengths > tokens.shape[1]))
    if bad.size:
        what = "an empty prompt" if lengths[bad[0]] == 0 else f"length {lengths[bad[0]]}"
        raise ValueError(f"prompt {bad[0]} has {what}; wanted 1 to {tokens.shape[1]} tokens. {bad.size} such prompts.")
    if (shorter := beyond(config)) and tokens.shape[1] > shorter >= lengths.min():
        raise ValueError(
            f"prompts of at most {shorter} tokens (the shortest: {lengths.min()}) in an array of {tokens.shape[1]}: beyond {shorter} "
            "this model's positions turn otherwise (LongRoPE), for all that is read together. Give short and long prompts apart."
        )
    return Inputs(tokens, jnp.asarray(lengths, jnp.int32))


def beyond(config: DecoderConfig) -> int | None:
    """Tokens beyond which positions turn otherwise; None where they never do."""
    stretch = config.rope and config.rope.stretch
    return stretch.original if isinstance(stretch, LongRope) and stretch.short != stretch.long else None


def encode(pair: checkpoints.Pair, texts: Sequence[str], *, chat: bool = True) -> Inputs:
    """Texts to tokens, right-padded; both models of a pair read the same tokens.

    Args:
        pair: its tokenizer and chat template read the texts, for both models.
        texts: user requests; with ``chat=False``, the prompts as they are.
        chat: put each text into the pair's chat template, up to where the answer begins; no effect where it has none.

    Returns: `Inputs` of [B, T], T the longest.

    Raises: ValueError for a pair that is not of decoders, no tokenizer, an empty text, a prompt longer than the context, or tokens
        that the models do not both have; all such prompts or tokens at once. And for a template that fails.

    Example:
        >>> inputs = encode(pair, ["Describe owls."])  # doctest: +SKIP
    """
    checkpoints.refuse_others(pair, "encode", "Models of your own take inputs as they are: arrays [B, ...].")
    tokenizer = pair.tokenizer
    if tokenizer is None:
        raise ValueError(
            "this pair has no tokenizer; make Inputs(tokens, lengths) yourself, or load models one of which has one."
        )
    if isinstance(texts, str):
        raise ValueError(f"texts: wanted a list of prompts, got one string; write [{texts[:20]!r}].")
    if not texts:
        raise ValueError("no prompts.")
    empty = [str(number) for number, text in enumerate(texts) if not text.strip()]
    if empty:
        raise ValueError(f"empty prompts: number {', '.join(empty)}.")
    if chat and pair.template:
        texts = [templates.filled(tokenizer, pair.template, text) for text in texts]
        encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    else:
        encoded = [tokenizer(text)["input_ids"] for text in texts]
    too_long = [f"number {n} ({len(ids)})" for n, ids in enumerate(encoded) if len(ids) > pair.config.context]
    if too_long:
        raise ValueError(f"prompts longer than the context of {pair.config.context} tokens: {', '.join(too_long)}.")
    unknown = sorted({number for ids in encoded for number in ids if number >= pair.config.vocab})
    if unknown:
        named = ", ".join(map(repr, tokenizer.convert_ids_to_tokens(unknown)))
        raise ValueError(f"prompts hold tokens that base and special do not both have: {named}. Leave them out.")
    tokens = np.zeros((len(encoded), max(map(len, encoded))), np.int32)
    for row, ids in enumerate(encoded):
        tokens[row, : len(ids)] = ids
    return checked(Inputs(jnp.asarray(tokens), jnp.asarray([len(ids) for ids in encoded])), pair.config)
