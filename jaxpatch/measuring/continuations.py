"""How far two models are apart along an answer, token by token, and not only at its beginning. All read the same answer."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import effect, inputs, read_outs, writing
from jaxpatch.models import checkpoints
from jaxpatch.shapes import Params


class Continuation(NamedTuple):
    """Prompts, and an answer to each.

    tokens: int [B, T], prompt and answer one after the other, right-padded. starts: [B], tokens of each prompt. ends: [B], tokens of
    both together; what ended an answer belongs to it.
    """

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Divergence(NamedTuple):
    """Means over the tokens of each answer, in nats.

    kl: [B], KL(reference || model) of next tokens. surprise: [B], -log p that the model gives the answer's own tokens.
    """

    kl: np.ndarray
    surprise: np.ndarray

    @property
    def perplexity(self) -> float:
        """Of the answers: exp of the mean surprise; 1 for a model that is sure of every token.

        >>> Divergence(np.zeros(2), np.log([2.0, 8.0])).perplexity.__round__(6)
        4.0
        """
        return float(np.exp(self.surprise.mean()))


def continuation(pair: checkpoints.Pair, params: Params, prompts: inputs.Inputs, *, max_new: int = 64) -> Continuation:
    """What a model answers greedily, as tokens behind the prompts.

    Args:
        params: whose answers: pair.base, pair.special, or a patched tree.
        prompts: [B, T]. max_new: tokens of an answer at most; it ends earlier with one of `pair.ends`.

    Raises: ValueError for a pair that is not of decoders, and where prompt and answer exceed the context.

    Example:
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> told = continuation(pair, pair.special, prompts, max_new=3)
        >>> (told.ends - told.starts).tolist()
        [3, 3, 3, 3]
    """
    checkpoints.refuse_others(pair, "continuation", "Answers are of models that write.")
    prompts = inputs.checked(prompts, pair.config)
    answers, counts = writing.answers(pair, params, prompts, max_new=max_new)
    starts = np.asarray(prompts.lengths)
    tokens = np.zeros((len(starts), int((starts + counts).max())), np.int32)
    for row, (prompt, start, answer, count) in enumerate(
        zip(np.asarray(prompts.tokens), starts, answers, counts, strict=True)
    ):
        tokens[row, : start + count] = [*prompt[:start], *answer[:count]]
    return Continuation(tokens, starts, starts + counts)


def divergence(pair: checkpoints.Pair, params: Params, told: Continuation, *, reference: Params) -> Divergence:
    """How far a model's next-token distributions are from another's along answers.

    Along special's answers, with special as the reference: what of the behaviour is missing. Along base's answers to prompts that do
    not ask for it, with base: side effects.

    Args: params: the model, a tree like pair.base. reference: that from which it is told apart.

    Returns: means over each answer, [B]. One prompt at a time, so that memory does not grow with them.

    Example:
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> told = continuation(pair, pair.special, prompts, max_new=3)
        >>> same = divergence(pair, pair.special, told, reference=pair.special)
        >>> other = divergence(pair, pair.base, told, reference=pair.special)
        >>> bool(np.abs(same.kl).max() < 1e-6), bool((other.kl > 0).all())
        (True, True)
    """
    checkpoints.refuse_others(pair, "divergence", "Answers are of models that write.")
    found = np.zeros((2, len(told.starts)), np.float64)
    turn = inputs.beyond(pair.config)
    is_long = np.zeros(len(told.ends), bool) if turn is None else told.ends > turn
    most = int((told.ends - told.starts).max())
    for side in np.unique(
        is_long
    ):  # positions that turn otherwise beyond some length do so for all that is read together
        rows = np.flatnonzero(is_long == side)
        cut = told.tokens[rows, : told.ends[rows].max()], told.starts[rows], told.ends[rows]
        found[:, rows] = np.asarray(_apart(pair.config, most, reference, params, *map(jnp.asarray, cut)))
    return Divergence(*found)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apart(config, most: int, reference: Params, params: Params, tokens, starts, ends):
    """Mean KL and surprise of each row: [2, B]. most: tokens of the longest answer."""

    def logits(side: Params, row: inputs.Inputs, at: jax.Array) -> jax.Array:
        model = effect.unpatched(side)
        x, _ = effect.run(config, model, row, model.embedded(config, row.tokens), 0, config.layers)
        return jax.nn.log_softmax(model.logits(config, x[0, at]))

    def one(row):
        sequence, start, end = row
        targets = start + jnp.arange(most)
        at = jnp.minimum(targets, end - 1) - 1
        prompt = inputs.Inputs(sequence[None], end[None])
        wanted, found = (logits(side, prompt, at) for side in (reference, params))
        own = jnp.take_along_axis(found, sequence[at + 1][:, None], axis=-1)[:, 0]
        both = jnp.stack([read_outs.kl(wanted, found), -own])
        return jnp.where(targets < end, both, 0).sum(-1) / (end - start).astype(both.dtype)

    return jax.lax.map(one, (tokens, starts, ends)).T
