"""Small things with known answers, shipped with the library: a tiny pair to try every call on."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import checkpoints, decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import compare


def tiny_config(**changes) -> DecoderConfig:
    """Three layers, four heads in two groups; any field can be changed.

    >>> tiny_config(layers=2).layers
    2
    """
    fields = dict(
        family="llama", vocab=61, layers=3, width=16, heads=4, kv_heads=2, head_width=4, neurons=24, context=64
    )
    return DecoderConfig(**(fields | changes))


def tiny_pair(config: DecoderConfig | None = None, *, seed: int = 0, scale: float = 0.3, change: float = 0.1):
    """Two random models of one architecture.

    Args:
        config: `tiny_config()` where none is given.
        seed: of both models.
        scale: standard deviation of base's kernels. change: of what special adds to every parameter.

    Returns: a `Pair` without a tokenizer.

    Example:
        >>> tiny_pair().apply(tiny_pair().base, [[1, 2, 3]]).shape
        (1, 3, 61)
    """
    config = tiny_config() if config is None else config
    shapes, treedef = jax.tree.flatten(decoder.init(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(seed), 2 * len(shapes))
    base = [
        leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(shapes, keys[: len(shapes)], strict=True)
    ]
    special = [
        leaf + change * jax.random.normal(key, leaf.shape) for leaf, key in zip(base, keys[len(shapes) :], strict=True)
    ]
    base, special = jax.tree.unflatten(treedef, base), jax.tree.unflatten(treedef, special)
    assert not compare.structure_faults(base, special)
    return checkpoints.Pair(base=base, special=special, config=config)


def tiny_inputs(config: DecoderConfig | None = None, *, seed: int = 0, batch: int = 4, tokens: int = 7) -> Inputs:
    """Random right-padded prompts of different lengths.

    >>> tiny_inputs(batch=2).tokens.shape
    (2, 7)
    """
    config = tiny_config() if config is None else config
    draw = np.random.default_rng(seed)
    lengths = np.concatenate([[tokens], draw.integers(2, tokens + 1, batch - 1)])
    ids = draw.integers(0, config.vocab, (batch, tokens))
    return Inputs(jnp.asarray(ids, jnp.int32), jnp.asarray(lengths, jnp.int32))
