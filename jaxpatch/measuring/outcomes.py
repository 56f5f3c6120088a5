"""What a patched model does, at both ends: the anchor, and the next token. Of sets of any size, by whole runs of the patched model, in
which what prompts share at their beginning is run once."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import effect, inputs, read_outs
from jaxpatch.models import decoder, prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.shapes import Gates


class Outcome(NamedTuple):
    """read: F_a, [B]. kl: KL(special || patched) of next tokens, nats, [B]."""

    read: np.ndarray
    kl: np.ndarray


def of_pair(pair: Pair, prompts: inputs.Inputs, anchor: read_outs.Anchor) -> Callable[[Gates, str], Outcome]:
    """A function (gates, mode) -> outcome: "restoration" puts special's components into base, "knockout" base's into special."""
    prompts, anchor = inputs.checked(prompts, pair.config), read_outs.checked(anchor, pair.config)
    tree = prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths))
    _, special_logits = _outcome(pair.config, effect.unpatched(pair.special), tree, anchor)

    def outcome_fn(gates: Gates, mode: str) -> Outcome:
        sides = {"restoration": (pair.base, pair.special), "knockout": (pair.special, pair.base)}[mode]
        read, logits = _outcome(pair.config, effect.Patched(*sides, gates), tree, anchor)
        return Outcome(np.asarray(read), np.asarray(read_outs.next_token_kl(special_logits, logits)))

    return outcome_fn


@functools.partial(jax.jit, static_argnums=0)
def _outcome(config, model: effect.Patched, tree: prefix_tree.PrefixTree, anchor: read_outs.Anchor):
    """Read-outs [B] and next-token logits [B, V] of one run."""
    x = model.embedded(config, tree.tokens, tree.positions)
    context = decoder.tree_context(config, tree, x.dtype)

    def step(x, number):
        after = decoder.block(config, model.block(number)).halves(x, context.at(number))[1]
        return after, after[tree.last]

    _, states = jax.lax.scan(step, x, jnp.arange(config.layers, dtype=jnp.int32))
    return anchor.read(states[anchor.layer]), model.logits(config, states[-1])
