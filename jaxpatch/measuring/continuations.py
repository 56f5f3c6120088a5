"""How far two models are apart along an answer, token by token, and not only at its beginning. All read the same answer."""

import functools
from collections.abc import Callable, Iterable, Sequence
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


def texts(pair: checkpoints.Pair, told: Continuation) -> Sequence[str]:
    """The answers as texts, without special tokens; ValueError where there is no tokenizer."""
    rows = zip(told.tokens, told.starts, told.ends, strict=True)
    return writing.decoded(pair, [row[start:end] for row, start, end in rows])


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
    return _divergence(pair, params, told, (_said(pair, reference, told, row) for row in range(len(told.starts))))


def divergence_from(pair: checkpoints.Pair, reference: Params, told: Continuation) -> Callable[[Params], Divergence]:
    """`divergence` of one model after the other from one reference, which is run once.

    What it says stays in the host's memory: a float for each token of an answer and each of the vocabulary.
    """
    said = [np.asarray(_said(pair, reference, told, row)) for row in range(len(told.starts))]
    return lambda params: _divergence(pair, params, told, said)


def _divergence(pair: checkpoints.Pair, params: Params, told: Continuation, wanted: Iterable) -> Divergence:
    found = []
    for row, said in enumerate(wanted):
        length = told.ends[row] - told.starts[row]
        found.append(_apart(said, _said(pair, params, told, row), _answer(told, row), length))
    return Divergence(*np.asarray(found, np.float64).T)


def _said(pair: checkpoints.Pair, params: Params, told: Continuation, row: int) -> jax.Array:
    """log p of the next token before each token of one answer: [most, V], of which the answer's own come first."""
    turn, end = inputs.beyond(pair.config), told.ends[row]
    # positions that turn otherwise beyond some length do so for all that is read together, padding too
    is_short = turn is not None and end <= turn
    tokens = told.tokens[row, : turn if is_short else None]
    at = np.minimum(told.starts[row] + np.arange(_most(told)), end - 1) - 1
    return _log_probs(pair.config, params, jnp.asarray(tokens), jnp.asarray(end), jnp.asarray(at))


def _answer(told: Continuation, row: int) -> np.ndarray:
    """Tokens of one answer, filled up: [most]."""
    out = np.zeros(_most(told), np.int32)
    answer = told.tokens[row, told.starts[row] : told.ends[row]]
    out[: len(answer)] = answer
    return out


def _most(told: Continuation) -> int:
    return int((told.ends - told.starts).max())


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(config, params: Params, tokens, end, at) -> jax.Array:
    model, row = effect.unpatched(params), inputs.Inputs(tokens[None], end[None])
    x, _ = effect.run(config, model, row, model.embedded(config, row.tokens), 0, config.layers)
    return jax.nn.log_softmax(model.logits(config, x[0, at]))


@jax.jit
def _apart(wanted, found, answer, length) -> jax.Array:
    """Mean KL and surprise along one answer: [2]."""
    own = jnp.take_along_axis(found, answer[:, None], axis=-1)[:, 0]
    both = jnp.stack([read_outs.kl(wanted, found), -own])
    return jnp.where(jnp.arange(len(answer)) < length, both, 0).sum(-1) / length.astype(both.dtype)
