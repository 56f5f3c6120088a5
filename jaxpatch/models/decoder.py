"""The decoder, in Flax linen. Its parameters are one nested dict, the layers stacked on a leading L axis."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpatch.models import layers, prefix_tree
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params


class Cache(NamedTuple):
    """Keys (rotated) and values of every layer."""

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]


class Context(NamedTuple):
    """What a block needs beside the residual stream.

    cos_sin: of the rotary angles. mask: where a query may look. slot: where new keys go in the cache. is_local: which layers are local;
    cos_sin and mask are then two, of global layers and of local ones.
    """

    cos_sin: layers.CosSin
    mask: Bool[Array, "*lead T S"]
    slot: Int[Array, ""] | int = 0
    is_local: Bool[Array, " L"] | None = None

    def at(self, layer: jax.Array | int) -> "Context":
        """That of one layer, or of each of some."""
        if self.is_local is None:
            return self
        sort = self.is_local[layer].astype(np.int32)
        cos, sin = self.cos_sin
        return Context((cos[sort], sin[sort]), self.mask[sort], self.slot)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Head vectors before W_O."""
        return layers.attend(q, k, v, self.mask)


class TreeContext(NamedTuple):
    """The same for the nodes of a prefix tree. ends: of the last tokens alone, which are the nodes `last`."""

    cos_sin: layers.CosSin
    inside: prefix_tree.Tiles
    ends: prefix_tree.Tiles
    last: Int[Array, " B"]
    is_local: Bool[Array, " L"] | None = None

    def at(self, layer: jax.Array | int) -> "TreeContext":
        """That of one layer, or of each of some."""
        if self.is_local is None:
            return self
        sort = self.is_local[layer].astype(np.int32)
        inside, ends = (tiles._replace(mask=tiles.mask[sort]) for tiles in (self.inside, self.ends))
        cos, sin = self.cos_sin
        return TreeContext((cos[sort], sin[sort]), inside, ends, self.last)

    def attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Head vectors before W_O."""
        return self.inside.attend(q, k, v)


def take(x: Float[Array, "*lead B T D"], last: Int[Array, " B"]) -> Float[Array, "*lead B 1 D"]:
    """One position of each sequence."""
    index = jnp.broadcast_to(last[:, None, None], (*x.shape[:-2], 1, 1))
    return jnp.take_along_axis(x, index, axis=-2)


class Linear(nn.Module):
    """Declares a kernel, and a bias when asked; `layers` does the arithmetic."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        weights = {"kernel": self.param("kernel", nn.initializers.normal(0.02), self.shape)}
        if self.bias_shape is not None:
            weights["bias"] = self.param("bias", nn.initializers.zeros, self.bias_shape)
        return weights


class Scale(nn.Module):
    """Declares the scale of a norm."""

    width: int

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("scale", nn.initializers.ones, (self.width,))


class Attention(nn.Module):
    """q, k, v, o; what a head writes is its slice of ``from_heads(z, o)``."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        heads, groups = (c.heads, c.head_width), (c.kv_heads, c.head_width)
        self.q = Linear((c.width, *heads), heads if c.attention_bias else None)
        self.k = Linear((c.width, *groups), groups if c.attention_bias else None)
        self.v = Linear((c.width, *groups), groups if c.attention_bias else None)
        self.o = Linear((*heads, c.width), (c.width,) if c.output_bias else None)
        if c.qk_norm:
            self.q_norm, self.k_norm = Scale(c.head_width), Scale(c.head_width)

    def queries(self, x, cos_sin):
        return self.turned_queries(layers.to_heads(x, self.q()), cos_sin)

    def keys(self, x, cos_sin):
        return self.turned_keys(layers.to_heads(x, self.k()), cos_sin)

    def turned_queries(self, q, cos_sin):
        """As they meet keys. q: [..., T, N, H], as `to_heads` gives them."""
        return self._turned(q, self.q_norm() if self.config.qk_norm else None, cos_sin)

    def turned_keys(self, k, cos_sin):
        return self._turned(k, self.k_norm() if self.config.qk_norm else None, cos_sin)

    def _turned(self, x, scale, cos_sin):
        normed = x if scale is None else layers.rms_norm(x, scale.astype(x.dtype), self.config.norm_eps)
        return layers.rotate(normed, cos_sin)

    def values(self, x):
        return layers.to_heads(x, self.v())

    def __call__(self, x, context: Context | TreeContext, cache: Cache | None = None):
        k, v = self.keys(x, context.cos_sin), self.values(x)
        if cache is not None and isinstance(context, Context):
            k = jax.lax.dynamic_update_slice_in_dim(cache.keys, k, context.slot, axis=-3)
            v = jax.lax.dynamic_update_slice_in_dim(cache.values, v, context.slot, axis=-3)
        z = context.attend(self.queries(x, context.cos_sin), k, v)
        return self.write(z), Cache(k, v)

    def head_vectors(self, x, context: Context | TreeContext):
        return context.attend(self.queries(x, context.cos_sin), self.keys(x, context.cos_sin), self.values(x))

    def write(self, z):
        return layers.from_heads(z, self.o())

    def at_ends(self, x, context: TreeContext):
        """What is written at the last token of each prompt. x: [..., M, D] -> [..., B, D]."""
        cos_sin = tuple(part[context.last] for part in context.cos_sin)
        q = self.queries(x[..., context.last, :], cos_sin)
        return self.write(context.ends.attend(q, self.keys(x, context.cos_sin), self.values(x)))


class Mlp(nn.Module):
    """gate, up, down; neuron j owns column j of gate and up and row j of down."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.gate = Linear((c.width, c.neurons), (c.neurons,) if c.mlp_bias else None)
        self.up = Linear((c.width, c.neurons), (c.neurons,) if c.mlp_bias else None)
        self.down = Linear((c.neurons, c.width), (c.width,) if c.mlp_bias else None)

    def write(self, activations):
        return layers.written(activations, self.down())

    def __call__(self, x):
        return layers.gated_mlp(x, self.gate(), self.up(), self.down())


class Block(nn.Module):
    """One layer: ``mid = x + attention(norm(x))``, ``out = mid + mlp(norm(mid))``."""

    config: DecoderConfig

    def setup(self):
        self.attn_norm = Scale(self.config.width)
        self.attn = Attention(self.config)
        self.mlp_norm = Scale(self.config.width)
        self.mlp = Mlp(self.config)

    def attention_input(self, x):
        return layers.rms_norm(x, self.attn_norm(), self.config.norm_eps)

    def mlp_input(self, mid):
        return layers.rms_norm(mid, self.mlp_norm(), self.config.norm_eps)

    def head_vectors(self, x, context: Context | TreeContext):
        """Before W_O."""
        return self.attn.head_vectors(self.attention_input(x), context)

    def attention_half(self, x, context: Context | TreeContext, cache: Cache | None = None):
        written, cache = self.attn(self.attention_input(x), context, cache)
        return x + written, cache

    def mlp_half(self, mid):
        return mid + self.mlp(self.mlp_input(mid))

    def attention_at_ends(self, x, context: TreeContext):
        """The middle of the block at the last token of each prompt: [..., B, D]. All other nodes only serve as keys and values."""
        return x[..., context.last, :] + self.attn.at_ends(self.attention_input(x), context)

    def __call__(self, x, context: Context | TreeContext, cache: Cache | None = None, layer=None):
        """layer: which one this is, where the context is not yet that of one layer."""
        context = context if layer is None else context.at(layer)
        mid, cache = self.attention_half(x, context, cache)
        return self.mlp_half(mid), cache


class Decoder(nn.Module):
    """Tokens in, logits out: embedding, L blocks, norm, unembedding."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.embed = Linear((c.vocab, c.width))
        self.layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]  # flax declares an int, and takes a tuple
            length=c.layers,
        )(c)
        self.final_norm = Scale(c.width)
        if not c.tied:
            self.unembed = Linear((c.width, c.vocab))

    def hidden(self, tokens):
        """Residual stream after the last block. tokens: int [B, T] -> [B, T, D]."""
        kernel = self.embed()["kernel"]
        context, numbers = causal_context(self.config, tokens.shape[-1], kernel.dtype), jnp.arange(self.config.layers)
        x, _ = self.layers(stream(kernel, tokens), context, None, numbers)
        return x

    def read_out(self, x):
        """Logits of a residual stream, as wide as it: nothing is rounded on the way. x: [..., D] -> [..., V]."""
        normed = layers.rms_norm(x, self.final_norm().astype(x.dtype), self.config.norm_eps)
        kernel = self.embed()["kernel"].T if self.config.tied else self.unembed()["kernel"]
        return layers.in_full(normed, kernel)

    def __call__(self, tokens):
        return self.read_out(self.hidden(tokens))


def stream(embedding: Float[Array, "V D"], tokens: Int[Array, "*lead"]) -> Float[Array, "*lead D"]:
    """The residual stream entering the first block."""
    return layers.at_least_float32(embedding[tokens])


def embedded(params: Params, tokens: Int[Array, "*lead"]) -> Float[Array, "*lead D"]:
    """The same, of a model's parameters."""
    return stream(params["embed"]["kernel"], tokens)


def dtype_of(params: Params) -> np.dtype:
    """The type of a model's weights."""
    return params["embed"]["kernel"].dtype


def layer_of(params: Params, layer: jax.Array | int) -> Params:
    """The parameters of one block."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), params["layers"])


def is_narrow(params: Params) -> bool:
    """Whether a model's weights are narrower than the residual stream."""
    return jnp.finfo(dtype_of(params)).bits < 32


def widened(params: Params, kernels: bool = True) -> Params:
    """Weights in float32, or wider ones as they are; a copy. kernels: matrices as well, and not only norms and biases."""

    def wide(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return layers.at_least_float32(leaf) if kernels or path[-1].key != "kernel" else leaf

    return jax.tree_util.tree_map_with_path(wide, params)


def causal_context(config: DecoderConfig, num_tokens: int, dtype: Any) -> Context:
    """Right-padded sequences: a token looks at itself and at what stands before it, so padding needs no mask."""
    positions = jnp.arange(num_tokens)
    back = positions[:, None] - positions[None, :]
    return context_at(config, positions, back, back >= 0, dtype)


def context_at(
    config: DecoderConfig,
    positions: Int[Array, "*lead T"],
    back: Int[Array, "*lead T S"],
    mask: Bool[Array, "*lead T S"],
    dtype: Any,
    slot: Int[Array, ""] | int = 0,
) -> Context:
    """The context of queries at these positions. back: tokens from a key to a query after it. mask: where global layers look."""
    cos_sin = rotary(config, positions, dtype)
    if config.window is None:
        return Context(cos_sin, mask, slot)
    return Context(cos_sin, with_window(config.window, mask, back), slot, local_layers(config))


def tree_context(config: DecoderConfig, tree: prefix_tree.PrefixTree, dtype: Any) -> TreeContext:
    """The context of a prefix tree's nodes."""
    cos_sin, window = rotary(config, tree.positions, dtype), config.window
    if window is None:
        return TreeContext(cos_sin, tree.inside, tree.ends, tree.last)

    def windowed(tiles: prefix_tree.Tiles, positions: jax.Array) -> prefix_tree.Tiles:
        """positions: of the tiles' queries."""
        back = positions[tiles.queries][:, :, None] - tree.positions[tiles.keys][:, None, :]
        return tiles._replace(mask=with_window(window, tiles.mask, back))

    inside, ends = windowed(tree.inside, tree.positions), windowed(tree.ends, tree.positions[tree.last])
    return TreeContext(cos_sin, inside, ends, tree.last, local_layers(config))


def rotary(config: DecoderConfig, positions: Int[Array, "*lead T"], dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Of global layers; where there are local ones, of both, on a leading axis of two."""
    ropes = (config.rope,) if config.window is None else (config.rope, config.local_rope or config.rope)
    both = [layers.rope(positions, rope.frequencies(config.head_width), dtype) for rope in ropes]
    return both[0] if len(both) == 1 else (jnp.stack([cos for cos, _ in both]), jnp.stack([sin for _, sin in both]))


def with_window(window: int, mask: Bool[Array, "*any"], back: Int[Array, "*any"]) -> Bool[Array, "2 *any"]:
    """Where global layers look, and where local ones do."""
    return jnp.stack([mask, mask & (back < window)])


def local_layers(config: DecoderConfig) -> Bool[Array, " L"]:
    """Which layers are local."""
    return jnp.asarray(config.local) if config.local else jnp.ones(config.layers, bool)


def apply(config: DecoderConfig, params: Params, *args: Any, method: str = "__call__") -> Any:
    """One method of the decoder on given parameters."""
    return Decoder(config).apply({"params": params}, *args, method=method)


def logits(config: DecoderConfig, params: Params, tokens: Int[Array, "B T"]) -> Float[Array, "B T V"]:
    """Next-token logits at every position. tokens: right-padded."""
    return apply(config, params, tokens)


def init(config: DecoderConfig, key: jax.Array) -> Params:
    """Random parameters (normal, standard deviation 0.02), for toys and tests."""
    return Decoder(config).init(key, jnp.zeros((1, 2), jnp.int32))["params"]
