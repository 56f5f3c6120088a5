"""The decoder, in Flax linen. Its parameters are one nested dict, the layers stacked on a leading L axis."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpatch.models import experts, layers, prefix_tree
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params


class Cache(NamedTuple):
    """Keys (rotated) and values of every layer, as attention's products read them: each head's positions together."""

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]

    def grown(self, keys: Float[Array, "B T K H"], values: Float[Array, "B T K H"], layer, slot) -> "Cache":
        """With those of further positions of one layer, from `slot` on."""

        # of one type, with 64 bits switched on, too
        place = [jnp.asarray(each, jnp.int32) for each in (layer, 0, 0, slot, 0)]

        def put(part, new):
            return jax.lax.dynamic_update_slice(part, jnp.swapaxes(new, 1, 2)[None], place)

        return Cache(put(self.keys, keys), put(self.values, values))

    def at(self, layer) -> tuple[Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Keys and values of one layer."""
        keys, values = (jax.lax.dynamic_index_in_dim(part, layer, keepdims=False) for part in self)
        return jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2)


class Context(NamedTuple):
    """What a block needs beside the residual stream.

    cos_sin: of the rotary angles, where there are any. mask: where a query may look. slot: where new keys go in the cache. is_local:
    which layers are local; cos_sin and mask are then two, of global layers and of local ones.
    """

    cos_sin: layers.CosSin | None
    mask: Bool[Array, "*lead T S"]
    slot: Int[Array, ""] | int = 0
    is_local: Bool[Array, " L"] | None = None

    def at(self, layer: jax.Array | int) -> "Context":
        """That of one layer, or of each of some."""
        if self.is_local is None:
            return self
        sort = self.is_local[layer].astype(np.int32)
        return Context(_rows(self.cos_sin, sort), self.mask[sort], self.slot)

    def attend(self, config: DecoderConfig, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Head vectors before W_O."""
        return layers.attend(q, k, v, self.mask, config.attention_scale, config.attention_cap)


class TreeContext(NamedTuple):
    """The same for the nodes of a prefix tree. ends: of the last tokens alone, which are the nodes `last`."""

    cos_sin: layers.CosSin | None
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
        return TreeContext(_rows(self.cos_sin, sort), inside, ends, self.last)

    def attend(self, config: DecoderConfig, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Head vectors before W_O."""
        return self.inside.attend(q, k, v, config.attention_scale, config.attention_cap)


def _rows(cos_sin: tuple[jax.Array, jax.Array] | None, index: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    return None if cos_sin is None else (cos_sin[0][index], cos_sin[1][index])


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


class Norm(nn.Module):
    """Declares a norm's scale, and its bias where it has one; `normed` does the arithmetic."""

    config: DecoderConfig
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        initial = nn.initializers.constant(1.0 - self.config.norm_offset)
        weights = {"scale": self.param("scale", initial, self.shape)}
        if self.config.norm == "layer":
            weights["bias"] = self.param("bias", nn.initializers.zeros, self.shape)
        return weights


def normed(config: DecoderConfig, x: Float[Array, "*lead D"], weights: layers.Weights) -> Float[Array, "*lead D"]:
    """A norm's output, in the type of its weights."""
    if config.norm == "layer":
        return layers.layer_norm(x, weights["scale"], weights["bias"], config.norm_eps)
    return layers.rms_norm(x, weights["scale"], config.norm_eps, config.norm_offset)


def normed_as_wide(
    config: DecoderConfig, x: Float[Array, "*lead D"], weights: layers.Weights
) -> Float[Array, "*lead D"]:
    """The same, in the type of what goes in."""
    return normed(config, x, {name: leaf.astype(x.dtype) for name, leaf in weights.items()})


class Heads(NamedTuple):
    """Queries, keys and values of one block, as their matrices make them: before norms of their own, and before they are turned."""

    q: Float[Array, "*lead T N H"]
    k: Float[Array, "*lead T K H"]
    v: Float[Array, "*lead T K H"]


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
            is_whole = c.qk_norm == "whole"
            self.q_norm = Norm(c, heads if is_whole else heads[1:])
            self.k_norm = Norm(c, groups if is_whole else groups[1:])

    def queries(self, x, cos_sin):
        return self.turned_queries(layers.to_heads(x, self.q()), cos_sin)

    def keys(self, x, cos_sin):
        return self.turned_keys(layers.to_heads(x, self.k()), cos_sin)

    def turned_queries(self, q, cos_sin):
        """As they meet keys. q: [..., T, N, H], as `to_heads` gives them."""
        return turned(self.config, q, self.q_norm() if self.config.qk_norm else None, cos_sin)

    def turned_keys(self, k, cos_sin):
        return turned(self.config, k, self.k_norm() if self.config.qk_norm else None, cos_sin)

    def values(self, x):
        return layers.to_heads(x, self.v())

    def __call__(self, x, context: Context | TreeContext, cache: Cache | None = None, layer=None):
        k, v = self.keys(x, context.cos_sin), self.values(x)
        if cache is not None and isinstance(context, Context):
            cache = cache.grown(k, v, layer, context.slot)
            k, v = cache.at(layer)
        z = context.attend(self.config, self.queries(x, context.cos_sin), k, v)
        return self.write(z), cache

    def heads(self, x) -> Heads:
        return Heads(*(layers.to_heads(x, weights()) for weights in (self.q, self.k, self.v)))

    def attend(self, heads: Heads, context: Context | TreeContext):
        """Head vectors before W_O."""
        turned = self.turned_queries(heads.q, context.cos_sin), self.turned_keys(heads.k, context.cos_sin)
        return context.attend(self.config, *turned, heads.v)

    def write(self, z):
        return layers.from_heads(z, self.o())

    def at_ends(self, x, context: TreeContext):
        """What is written at the last token of each prompt. x: [..., M, D] -> [..., B, D]."""
        c, q = self.config, self.queries(x[..., context.last, :], _rows(context.cos_sin, context.last))
        z = context.ends.attend(q, self.keys(x, context.cos_sin), self.values(x), c.attention_scale, c.attention_cap)
        return self.write(z)


def turned(
    config: DecoderConfig,
    x: Float[Array, "*lead T N H"],
    weights: layers.Weights | None,
    cos_sin: layers.CosSin | None,
) -> Float[Array, "*lead T N H"]:
    """Queries or keys as they meet. weights: of the norm that they pass before."""
    if weights is not None:
        rows = x
        if config.qk_norm == "whole":
            rows = x.reshape(*x.shape[:-2], -1)
            weights = {name: leaf.reshape(-1) for name, leaf in weights.items()}
        x = normed_as_wide(config, rows, weights).reshape(x.shape)
    return layers.rotate(x, cos_sin)


def inputs(config: DecoderConfig) -> tuple[str, ...]:
    """Names of the matrices that a neuron's inputs come through."""
    return ("gate", "up") if config.gated else ("up",)


class Mlp(nn.Module):
    """gate where there is one, up, down; neuron j owns column j of gate and up and row j of down."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        if c.gated:
            self.gate = Linear((c.width, c.neurons), (c.neurons,) if c.mlp_bias else None)
        self.up = Linear((c.width, c.neurons), (c.neurons,) if c.mlp_bias else None)
        self.down = Linear((c.neurons, c.width), (c.width,) if c.mlp_bias else None)

    def write(self, activations):
        return layers.written(activations, self.down())

    def __call__(self, x):
        into = (self.gate(), self.up()) if self.config.gated else (self.up(),)
        return layers.mlp(x, into, self.down(), self.config.activation)


class Experts(nn.Module):
    """A router, and E MLPs without biases. Of expert e, neuron j owns column j of gate[e] and up[e] and row j of down[e]."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.router = Linear((c.width, c.experts))
        if c.gated:
            self.gate = Linear((c.experts, c.width, c.neurons))
        self.up = Linear((c.experts, c.width, c.neurons))
        self.down = Linear((c.experts, c.neurons, c.width))

    def routes(self, x):
        """x: [n, D]."""
        return routes(self.config, x, self.router()["kernel"])

    def __call__(self, x):
        """What lies on a fourth axis before the others, one a device, is ordered by expert apart from the rest."""
        into = (self.gate(), self.up()) if self.config.gated else (self.up(),)
        router, down = self.router()["kernel"], self.down()

        def write(x):
            rows = x.reshape(-1, x.shape[-1])
            sent = routes(self.config, rows, router)
            return experts.mlp(rows, sent, into, down, self.config.activation).reshape(x.shape)

        return jax.vmap(write)(x) if x.ndim == 4 and len(x) > 1 else write(x)


def routes(config: DecoderConfig, x: Float[Array, "n D"], router: Float[Array, "D E"]) -> experts.Routes:
    """Where a router sends states."""
    return experts.route(experts.product(x, router), config.chosen, sum_to_one=config.shares_sum_to_one)


class Block(nn.Module):
    """One layer: ``mid = x + attention(x)``, ``out = mid + mlp(mid)``, norms inside.

    Where both read the stream that enters, the first half is all of the block, and the second is nothing.
    """

    config: DecoderConfig

    def setup(self):
        c = self.config
        if c.pre_norm:
            self.attn_norm, self.mlp_norm = Norm(c, (c.width,)), Norm(c, (c.width,))
        if c.post_norm:
            self.attn_post_norm, self.mlp_post_norm = Norm(c, (c.width,)), Norm(c, (c.width,))
        self.attn = Attention(c)
        self.mlp = Experts(c) if c.experts else Mlp(c)

    def attention_input(self, x):
        return normed(self.config, x, self.attn_norm()) if self.config.pre_norm else self._as_met(x)

    def mlp_input(self, x):
        return normed(self.config, x, self.mlp_norm()) if self.config.pre_norm else self._as_met(x)

    def _as_met(self, x):
        """A stream that meets matrices without a norm before: in the type that a norm would give it."""
        return x.astype(self.attn_post_norm()["scale"].dtype)

    def after_attention(self, written):
        """What attention adds to the stream."""
        return self._added(written, self.attn_post_norm if self.config.post_norm else None)

    def after_mlp(self, written):
        """What the MLP adds to the stream."""
        return self._added(written, self.mlp_post_norm if self.config.post_norm else None)

    def _added(self, written, norm: Norm | None):
        through = written if norm is None else normed_as_wide(self.config, written, norm())
        return through if self.config.residual_scale == 1 else through * self.config.residual_scale

    def heads(self, x) -> Heads:
        """x: the stream that enters."""
        return self.attn.heads(self.attention_input(x))

    def neuron_inputs(self, x):
        """One or two, [..., T, F] each. x: the stream that the MLP reads."""
        read = self.mlp_input(x)
        return tuple(layers.dense(read, getattr(self.mlp, name)()) for name in inputs(self.config))

    def attention_half(self, x, context: Context | TreeContext, cache: Cache | None = None, layer=None):
        written, cache = self.attn(self.attention_input(x), context, cache, layer)
        return self._first_half(x, written), cache

    def attention_at_ends(self, x, context: TreeContext):
        """The middle of the block at the last token of each prompt: [..., B, D]. All other nodes only serve as keys and values."""
        last = x[..., context.last, :]
        return self._first_half(last, self.attn.at_ends(self.attention_input(x), context))

    def _first_half(self, x, written):
        mid = x + self.after_attention(written)
        return mid + self.after_mlp(self.mlp(self.mlp_input(x))) if self.config.parallel else mid

    def mlp_half(self, mid):
        return mid if self.config.parallel else mid + self.after_mlp(self.mlp(self.mlp_input(mid)))

    def halves(self, x, context: Context | TreeContext):
        """The stream in the middle and at the end, and what attention and MLP wrote before it joined them."""
        attended = self.attn(self.attention_input(x), context)[0]
        if self.config.parallel:
            computed = self.mlp(self.mlp_input(x))
            end = x + self.after_attention(attended) + self.after_mlp(computed)
            return end, end, attended, computed
        mid = x + self.after_attention(attended)
        computed = self.mlp(self.mlp_input(mid))
        return mid, mid + self.after_mlp(computed), attended, computed

    def __call__(self, x, context: Context | TreeContext, cache: Cache | None = None, layer=None):
        """layer: which one this is, where the context is not yet that of one layer, and where there is a cache."""
        context = context if layer is None else context.at(layer)
        mid, cache = self.attention_half(x, context, cache, layer)
        return self.mlp_half(mid), cache


def block(config: DecoderConfig, weights: Params) -> Block:
    """One layer with its parameters, to be asked for any of its parts."""
    return Block(config).bind({"params": weights})


class Decoder(nn.Module):
    """Tokens in, logits out: embedding, L blocks, norm, unembedding."""

    config: DecoderConfig

    def setup(self):
        c = self.config
        self.embed = Linear((c.vocab, c.width))
        if c.positions:
            self.positions = Linear((c.positions, c.width))
        self.layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # pyright: ignore[reportArgumentType]  # flax declares an int, and takes a tuple
            length=c.layers,
        )(c)
        self.final_norm = Norm(c, (c.width,))
        if not c.tied:
            self.unembed = Linear((c.width, c.vocab))

    def hidden(self, tokens):
        """Residual stream after the last block. tokens: int [B, T] -> [B, T, D]."""
        tables = {"embed": self.embed()} | ({"positions": self.positions()} if self.config.positions else {})
        context = causal_context(self.config, tokens.shape[-1], dtype_of(tables))
        x = embedded(self.config, tables, tokens)
        x, _ = self.layers(x, context, None, jnp.arange(self.config.layers))
        return x

    def unembedded(self, x):
        """Logits before they are capped; as wide as the stream: nothing is rounded on the way. x: [..., D] -> [..., V]."""
        read = normed_as_wide(self.config, x, self.final_norm())
        kernel = self.embed()["kernel"].T if self.config.tied else self.unembed()["kernel"]
        scale = self.config.logit_scale
        return layers.in_full(read, kernel) if scale == 1 else layers.in_full(read, kernel) * scale

    def read_out(self, x):
        """Logits of a residual stream. x: [..., D] -> [..., V]."""
        return layers.capped(self.unembedded(x), self.config.logit_cap)

    def __call__(self, tokens):
        return self.read_out(self.hidden(tokens))


def embedded(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "*lead T"],
    positions: Int[Array, "*lead T"] | None = None,
) -> Float[Array, "*lead T D"]:
    """The residual stream entering the first block. positions: 0, ..., T - 1 where None."""
    return entering(config, table_rows(config, params, tokens, positions))


def table_rows(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "*lead T"],
    positions: Int[Array, "*lead T"] | None = None,
) -> Params:
    """Of the tables of tokens and positions, the rows that are read, in a tree like theirs."""
    rows = {"embed": {"kernel": params["embed"]["kernel"][tokens]}}
    if config.positions:
        at = jnp.arange(tokens.shape[-1]) if positions is None else positions
        table = params["positions"]["kernel"][config.positions - config.context :]
        rows["positions"] = {"kernel": jnp.broadcast_to(table[at], rows["embed"]["kernel"].shape)}
    return rows


def entering(config: DecoderConfig, rows: Params) -> Float[Array, "*lead T D"]:
    """The residual stream that these rows make."""
    kernel = rows["embed"]["kernel"]
    x = layers.at_least_float32(kernel)
    if config.embed_scale != 1:
        x = x * np.asarray(config.embed_scale, kernel.dtype).astype(x.dtype)
    return x + layers.at_least_float32(rows["positions"]["kernel"]) if config.positions else x


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


def rotary(config: DecoderConfig, positions: Int[Array, "*lead T"], dtype: Any) -> tuple[jax.Array, jax.Array] | None:
    """Of global layers; where there are local ones, of both, on a leading axis of two. None where the model has no such positions. A
    sequence, one row of positions, is as long as its last position says."""
    if config.rope is None:
        return None
    ropes = (config.rope,) if config.window is None else (config.rope, config.local_rope or config.rope)
    longest = positions.max(axis=-1, keepdims=True) + 1
    both = [layers.rope(positions, rope.frequencies(config.head_width, longest), dtype, rope.scale) for rope in ropes]
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
