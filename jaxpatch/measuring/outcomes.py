"""What a patched model does, at both ends: the anchor, and the next token. By the definition, for sets of any size."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxpatch.measuring import effect, inputs, read_outs
from jaxpatch.models.checkpoints import Pair
from jaxpatch.shapes import Gates


class Outcome(NamedTuple):
    """read: F_a, [B]. kl: KL(special || patched) of next tokens, nats, [B]."""

    read: np.ndarray
    kl: np.ndarray


def of_pair(pair: Pair, prompts: inputs.Inputs, anchor: read_outs.Anchor) -> Callable[[Gates, str], Outcome]:
    """A function (gates, mode) -> outcome: "restoration" puts special's components into base, "knockout" base's into special."""
    prompts, anchor = inputs.checked(prompts, pair.config), read_outs.checked(anchor, pair.config)
    _, special_logits = _outcome(pair.config, pair.special, prompts, anchor)

    def outcome_fn(gates: Gates, mode: str) -> Outcome:
        sides = {"restoration": (pair.base, pair.special), "knockout": (pair.special, pair.base)}[mode]
        read, logits = _patched_outcome(pair.config, *sides, gates, prompts, anchor)
        return Outcome(np.asarray(read), np.asarray(read_outs.next_token_kl(special_logits, logits)))

    return outcome_fn


@functools.partial(jax.jit, static_argnums=0)
def _outcome(config, params, prompts, anchor):
    return effect.outcome(config, effect.unpatched(params), prompts, anchor)


@functools.partial(jax.jit, static_argnums=0)
def _patched_outcome(config, host, donor, gates, prompts, anchor):
    return effect.outcome(config, effect.Patched(host, donor, gates), prompts, anchor)
