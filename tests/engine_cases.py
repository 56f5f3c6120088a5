"""What the tests of the engine share: prompts that overlap in every way, and both models with what both read."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

import jaxpatch as jp
from jaxpatch.measuring import effect, memory, read_outs
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.read_outs import Anchor, NextToken, ReadOut
from jaxpatch.models import prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params


@functools.partial(jax.jit, static_argnums=0)
def reads(config: DecoderConfig, params: Params, prompts: jp.Inputs, wanted: Sequence[ReadOut]) -> jax.Array:
    """Of an unpatched model, by the definition."""
    return effect.reads(config, effect.unpatched(params), prompts, wanted)


STEM = [7, 3, 9, 1, 4]
PROMPTS = {
    "nothing in common": [[3, 1, 4, 1, 5], [2, 7], [5, 8, 2]],
    "a common prefix": [[*STEM, 2, 8], [*STEM, 6], [*STEM, 2, 5, 5], [*STEM, 0, 2]],
    "duplicates": [[3, 1, 4], [3, 1, 4], [2], [3, 1, 4]],
    "one a prefix of another": [STEM[:2], STEM, STEM[:4], [*STEM, 2]],
    "longest first": [STEM, STEM[:3], STEM[:1]],
    "one prompt": [[3, 1, 4, 1, 5, 9]],
    "one-token prompts": [[3], [1], [3]],
    "one token": [[5]],
    "a token again and again": [[2, 2, 2, 2], [2, 2, 3], [2]],
}
"""Ways in which prompts overlap."""


def inputs(rows: Sequence[Sequence[int]], fill: int = 0) -> jp.Inputs:
    """Right-padded with any id."""
    tokens = np.full((len(rows), max(map(len, rows))), fill, np.int32)
    for line, row in zip(tokens, rows, strict=True):
        line[: len(row)] = row
    return jp.Inputs(jnp.asarray(tokens), jnp.asarray([len(row) for row in rows], jnp.int32))


def tree_of(prompts: jp.Inputs) -> prefix_tree.PrefixTree:
    return prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths))


def anchor(layer: int, axis: int = 0, width: int = 16, **fields) -> Anchor:
    """Reads one number of the stream."""
    return Anchor(layer=layer, direction=jnp.eye(width, dtype=jnp.float32)[axis], **fields)


def models(pair: Pair, prompts: jp.Inputs, wanted: ReadOut | Sequence[ReadOut], mode: str = "restoration") -> Models:
    """As an instrument puts them together; next tokens refer to special."""
    logits = jax.jit(effect.last_logits, static_argnums=0)(pair.config, effect.unpatched(pair.special), prompts)
    asked = tuple(r.referring_to(logits) if isinstance(r, NextToken) else r for r in read_outs.several(wanted))
    host, donor = (pair.base, pair.special) if mode == "restoration" else (pair.special, pair.base)
    return Models(host, donor, prompts, tree_of(prompts), asked)


def budget(config: DecoderConfig, tree: prefix_tree.PrefixTree, candidates: int, blocks: int, itemsize: int = 4) -> int:
    """Bytes of so many candidates in each piece in flight, of the weights that pieces cut out, and of so many blocks' streams beside
    the one that leads to them."""
    block = 2 * tree.tokens.shape[0] * config.width * itemsize
    weights = memory.WEIGHT_COPIES * memory.block_bytes(config, itemsize)
    piece = candidates * memory.candidate_bytes(config, tree, itemsize) + weights
    return memory.IN_FLIGHT * piece + (blocks + 1) * block
