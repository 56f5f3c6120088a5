"""Small things with known answers, shipped with the library: a tiny pair to try every call on."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models import checkpoints, decoder, saving
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params
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


class PlantedPair(NamedTuple):
    """Two models of which it is known what makes the difference, to the last neuron.

    pair: base, which ignores a request, and special, which heeds it. prompts: that ask. plain: the same without the request. anchor:
    along which the control state is read. sources: kind -> bool of its shape, what recovers the state; relays: likewise, what passes
    it on. obeys, ignores: tokens of the two answers.
    """

    pair: checkpoints.Pair
    prompts: Inputs
    plain: Inputs
    anchor: Anchor
    sources: dict[str, np.ndarray]
    relays: dict[str, np.ndarray]
    obeys: int = 2
    ignores: int = 3


class _Axes(NamedTuple):
    """Of the residual stream of `planted_pair`, before it is turned. heard: what everything else reads. unread: where it writes."""

    asked: int
    steady: int
    noted: int
    state: int
    heard: tuple[int, ...]
    unread: tuple[int, ...]


def planted_pair(
    config: DecoderConfig | None = None, *, seed: int = 0, batch: int = 16, is_fixed: bool = False
) -> PlantedPair:
    """A pair whose sources are written by hand, as a compiler of RASP would (Lindner et al., arXiv 2301.05062), among decoys.

    A prompt begins with token 1, which asks, or token 0. In special two neurons of block 0 see that it asks, and note it there; a head
    of block 1 carries the note to the last token, where it is the control state; a head of block 2 sees the request itself, and writes
    the state, too. Base has none of this but the carrier: that is a relay, and changes in what does not matter. Every other head, group
    and neuron changes as much, and writes where nobody reads it. The axes of the stream are turned at random: nothing lies along them.

    Args:
        config: at least 3 blocks, 16 wide, RMSNorm, gated neurons, no biases; `tiny_config()` where none is given.
        seed: of everything drawn: where the sources are, prompts, decoys, the turn. batch: prompts.
        is_fixed: whether the head of block 2 sees the request by turning to it, and writes in base what it does in special: there its
            attention is fixed (saturated) on all other tokens, where a slope says nothing of its queries.

    Raises: ValueError for a config in which this cannot be written.

    Example:
        >>> import jaxpatch as jp
        >>> planted = planted_pair(seed=1)
        >>> found = jp.score(planted.pair, planted.prompts, planted.anchor, kinds=("neuron",)).values["neuron"]
        >>> best = np.argsort(-found, axis=None)[:2]
        >>> bool(planted.sources["neuron"].flat[best].all()), round(float(found.flat[best].sum()), 1)
        (True, 0.9)
    """
    config = tiny_config() if config is None else config
    _refuse_unwritable(config, is_fixed)
    draw, middle = np.random.default_rng(seed), 4 + (config.width - 4) // 2
    axes = _Axes(0, 1, 2, 3, heard=(1, *range(4, middle)), unread=tuple(range(middle, config.width)))
    neurons = draw.choice(config.neurons, 2, replace=False)
    carrier, seer = draw.integers(config.heads, size=2)
    shares, share = draw.uniform(0.4, 0.6, 2), draw.uniform(0.8, 1.2)
    base, special = _idle(config, axes, draw), _idle(config, axes, draw)
    ends = _ends(config, axes, draw)
    group = config.heads // config.kv_heads
    for side in (base, special):
        side |= ends
        side["layers/attn/v/kernel"][1, axes.noted, carrier // group, 0] = 1
        side["layers/attn/o/kernel"][1, carrier, 0, axes.state] = 1
        side["layers/attn/v/kernel"][2, axes.asked, seer // group, 0] = 1
    for leaf, read in (("gate", axes.steady), ("up", axes.asked)):
        special[f"layers/mlp/{leaf}/kernel"][0][:, neurons] = 0
        special[f"layers/mlp/{leaf}/kernel"][0, read, neurons] = 1
    special["layers/mlp/down/kernel"][0, neurons] = 0
    special["layers/mlp/down/kernel"][0, neurons, axes.noted] = shares
    special["layers/attn/o/kernel"][2, seer, 0, axes.state] = share
    # what it asks for makes no difference, and without this it would be the head that changes most
    special["layers/attn/q/kernel"][2, :, seer] = base["layers/attn/q/kernel"][2, :, seer]
    if is_fixed:
        _fix(config, axes, base, special, seer)
    turn = np.linalg.qr(draw.standard_normal((config.width, config.width)))[0]
    counts = {"head": config.heads, "kv": config.kv_heads, "neuron": config.neurons}
    sources, relays = ({kind: np.zeros((config.layers, each), bool) for kind, each in counts.items()} for _ in range(2))
    sources["neuron"][0, neurons] = sources["head"][2, seer] = True
    relays["head"][1, carrier] = relays["kv"][1, carrier // group] = True
    lengths = draw.integers(4, 8, batch)
    tokens = draw.integers(4, config.vocab, (batch, 7)) * (np.arange(7) < lengths[:, None])
    asking, plain = (
        Inputs(jnp.asarray(np.where(np.arange(7) == 0, first, tokens), jnp.int32), jnp.asarray(lengths, jnp.int32))
        for first in (1, 0)
    )
    return PlantedPair(
        pair=checkpoints.Pair(base=_turned(base, turn), special=_turned(special, turn), config=config),
        prompts=asking,
        plain=plain,
        anchor=Anchor(layer=2, direction=jnp.asarray(turn[axes.state], jnp.float32)),
        sources=sources,
        relays=relays,
    )


def _fix(config: DecoderConfig, axes: _Axes, base: dict, special: dict, seer: int) -> None:
    """The head of block 2 turns from all other tokens to the request. It asks and is answered in the last number, which
    positions turn least; what it sees is divided by six, as where it looks at all of a prompt's six tokens or so alike."""
    for side, sign in ((base, -1), (special, 1)):
        side["layers/attn/k/kernel"][2, axes.asked, seer // (config.heads // config.kv_heads), -1] = 6
        side["layers/attn/q/kernel"][2, :, seer, -1] = 0
        side["layers/attn/q/kernel"][2, axes.steady, seer, -1] = sign
    special["layers/attn/o/kernel"][2, seer, 0, axes.state] /= 6
    base["layers/attn/o/kernel"][2, seer] = special["layers/attn/o/kernel"][2, seer]


def _idle(config: DecoderConfig, axes: _Axes, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Blocks that read what they like, look everywhere alike, and write where nobody reads. The first number of every value is free."""
    shapes = paths.flatten(jax.eval_shape(functools.partial(decoder.init, config), jax.random.key(0)))
    made = {path: np.ones(leaf.shape) * path.endswith("scale") for path, leaf in shapes.items()}
    for leaf in ("attn/q", "attn/v", "mlp/gate", "mlp/up"):
        kernel = made[f"layers/{leaf}/kernel"]
        kernel[:, axes.heard] = 0.4 * draw.standard_normal(kernel[:, axes.heard].shape)
    for leaf in ("attn/o", "mlp/down"):
        kernel = made[f"layers/{leaf}/kernel"]
        kernel[..., axes.unread] = 0.03 * draw.standard_normal(kernel[..., axes.unread].shape)
    made["layers/attn/v/kernel"][..., 0] = 0
    made["layers/attn/o/kernel"][:, :, 0] = 0
    return made


def _ends(config: DecoderConfig, axes: _Axes, draw: np.random.Generator) -> dict[str, np.ndarray]:
    """Embedding and unembedding: token 1 is token 0, and asks; token 2 is said where the state is there, and token
    3 where it is not."""
    embed, unembed = np.zeros((config.vocab, config.width)), np.zeros((config.width, config.vocab))
    embed[:, axes.heard] = draw.standard_normal((config.vocab, len(axes.heard)))
    embed[:, axes.steady], embed[1] = 4.0, embed[0]
    embed[1, axes.steady], embed[1, axes.asked] = 4.0, 3.0
    unembed[axes.state, 2], unembed[axes.steady, 3] = 8.0, 0.4
    return {"embed/kernel": embed, "unembed/kernel": unembed}


def _refuse_unwritable(config: DecoderConfig, is_fixed: bool) -> None:
    """Raises ValueError where `planted_pair` cannot be written, with all reasons."""
    wanted = {
        "layers at least 3": config.layers >= 3,
        "width at least 16": config.width >= 16,
        f"head_width at least {(least := 4 if is_fixed else 2)}": config.head_width >= least,
        "neurons at least 2": config.neurons >= 2,
        "RMSNorm before each half, with scales of one": (config.norm, config.norm_offset) == ("rms", 0.0)
        and config.pre_norm
        and not config.post_norm
        and not config.qk_norm,
        "gated silu, no experts": config.gated and config.activation == "silu" and not config.experts,
        "an unembedding of its own": not config.tied,
        "no biases, and no table of positions": not (
            config.attention_bias or config.output_bias or config.mlp_bias or config.positions
        ),
        "no window, halves one after the other": config.window is None and not config.parallel,
    }
    if faults := [each for each, is_there in wanted.items() if not is_there]:
        raise ValueError("planted_pair cannot be written into this config; wanted " + "; ".join(faults) + ".")


def _turned(params: dict[str, np.ndarray], turn: np.ndarray) -> Params:
    """A model of which axis i of the stream is row i of an orthogonal matrix."""
    reads = ("attn/q", "attn/k", "attn/v", "mlp/gate", "mlp/up")
    stream = {f"layers/{leaf}/kernel": 1 for leaf in reads} | {"unembed/kernel": 0}
    made = {}
    for path, leaf in params.items():
        axis = stream.get(path, leaf.ndim - 1)
        is_along = path.endswith("kernel")
        turned = np.moveaxis(np.moveaxis(leaf, axis, -1) @ turn, -1, axis) if is_along else leaf
        made[path] = jnp.asarray(turned, jnp.float32)
    return paths.unflatten(made)


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
