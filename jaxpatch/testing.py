"""Small things with known answers, shipped with the library: a tiny pair to try every call on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import checkpoints, decoder, saving
from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import paths


def tiny_config(**changes) -> DecoderConfig:
    """Three layers, four heads in two groups; any field can be changed.

    >>> tiny_config(layers=2).layers
    2
    """
    fields: dict[str, Any] = {"family": "llama", "vocab": 61, "layers": 3, "width": 16, "heads": 4, "kv_heads": 2}
    fields |= {"head_width": 4, "neurons": 24, "context": 64}
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
    shapes = paths.flatten(jax.eval_shape(functools.partial(decoder.init, config), jax.random.key(0)))
    draw = np.random.default_rng(seed)
    base, special = {}, {}
    for path, leaf in shapes.items():
        start = (1 - config.norm_offset) * path.endswith("scale") + scale * draw.standard_normal(leaf.shape)
        base[path] = jnp.asarray(start, jnp.float32)
        special[path] = jnp.asarray(start + change * draw.standard_normal(leaf.shape), jnp.float32)
    return checkpoints.Pair(base=paths.unflatten(base), special=paths.unflatten(special), config=config)


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


WRITTEN, STATE = 0, 1
"""Axes of the residual stream of `relay_pair`: what sources write, and the state that the relay writes from it."""


def relay_pair(written: Sequence[float] = (1.0,), *, hops: int = 1):
    """A hierarchy made by hand: neurons write, a head passes on what they wrote, and the state is what that head writes.

    In block 0 each neuron j is active on every token, and in special, and there alone, writes ``written[j]`` along `WRITTEN`. Head
    (1, 0), the same in both models, takes that up from all tokens and writes it along `STATE`, where nothing else writes. So neurons
    are the sources of the state, each with its share of the sum, however they add up or cancel; and the head is a relay: its
    activation carries all of it, its parameters nothing. Where what is written is far longer than the rest of the stream, 200 or so,
    the norm lets no more than one of them through: then each source is enough, and none is needed.

    Args:
        written: of each neuron. Their sum must not be 0.
        hops: relays in a row, 1 to 5. Head (n, 0) passes on what the one below it wrote, from axis n - 1 to axis n; the last one's is
            the state.

    Returns: a `Pair` to be read along ``Anchor(layer=hops, direction=jnp.eye(8)[hops])``, `STATE` where there is one.

    Example:
        >>> import jaxpatch as jp
        >>> anchor = jp.Anchor(layer=1, direction=jnp.eye(8)[STATE])
        >>> found = jp.score(relay_pair((2.0, -1.0)), tiny_inputs(), anchor, kinds=("head",), method="activation")
        >>> found.values["head"].round(4).tolist()
        [[0.0, 0.0], [1.0, 0.0]]
    """
    shape = dict(layers=hops + 1, width=8, heads=2, kv_heads=2, head_width=4, neurons=len(written), gated=False)
    config = tiny_config(activation="relu", **shape)
    shapes = paths.flatten(jax.eval_shape(functools.partial(decoder.init, config), jax.random.key(0)))
    base = {path: np.full(leaf.shape, float(path.endswith("scale")), np.float32) for path, leaf in shapes.items()}
    # so long that what is written hardly changes the norms, and effects add up
    others = 100 * (1 + np.abs(np.random.default_rng(0).standard_normal((config.vocab, 6))))
    base["embed/kernel"][:, hops + 1 :] = others[:, hops - 1 :]
    base["layers/mlp/up/kernel"][0, hops + 1 :] = 0.1
    for hop in range(1, hops + 1):
        base["layers/attn/v/kernel"][hop, hop - 1, 0, 0] = 1
        base["layers/attn/o/kernel"][hop, 0, 0, hop] = 1
    special = {path: leaf.copy() for path, leaf in base.items()}
    special["layers/mlp/down/kernel"][0, :, WRITTEN] = written
    sides = (paths.unflatten(jax.tree.map(jnp.asarray, side)) for side in (base, special))
    return checkpoints.Pair(base=next(sides), special=next(sides), config=config)


def tiny_checkpoints(folder: str | Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Two tiny Hugging Face directories, base and special, with a byte-level tokenizer: enough for every call and the command line.

    Args: folder: where ``base`` and ``special`` are written.

    Returns: their paths.

    Example:
        >>> import tempfile
        >>> base, special = tiny_checkpoints(tempfile.mkdtemp())
        >>> checkpoints.load_pair(base, special).config.layers
        3
    """
    tokenizer = _byte_tokenizer()
    config = tiny_config(vocab=len(tokenizer), context=512, family="llama")
    raw = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.neurons,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "eos_token_id": tokenizer.eos_token_id,
    }
    pair = dataclasses.replace(tiny_pair(config, seed=seed), tokenizer=tokenizer, raw_config=raw)
    made = [
        saving.save_checkpoint(pair, params, Path(folder) / name)
        for name, params in (("base", pair.base), ("special", pair.special))
    ]
    return made[0], made[1]


def _byte_tokenizer():
    """Every byte is a token, and one token ends a text."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *letters])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
