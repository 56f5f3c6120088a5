"""What a target writes, read as a `Contribution`: the arithmetic, in padded prompts and in a prefix tree.

The target's block reads the stream that enters it; of a head's queries, keys and values those that a patch may not reach are made of
the host's own stream. Ours, after path patching (Wang et al., arXiv 2211.00593).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxpatch.measuring.read_outs import Contribution
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.prefix_tree import PrefixTree
from jaxpatch.shapes import Params

INPUTS = {"query": "q", "key": "k", "value": "v"}


def written(
    config: DecoderConfig,
    weights: Params,
    target: Contribution,
    x: Float[Array, "*lead M D"],
    held: Float[Array, "*#lead M D"] | None,
    context: decoder.Context | decoder.TreeContext,
) -> Float[Array, "*lead M D"]:
    """What the target writes for every token, before any norm behind it, in float32 or wider.

    Args: weights: its block's. x: the stream entering the block; held: the host's own, where one input alone is patched.
    """
    weights = decoder.widened(weights)
    block = decoder.block(config, weights)
    heads = block.heads(x)
    if target.through != "all" and held is not None:
        name = INPUTS[target.through]
        own = block.heads(jnp.broadcast_to(held, x.shape))
        heads = own._replace(**{name: getattr(heads, name)})
    z = block.attn.attend(heads, context)
    if target.kind == "head":
        head = target.index[1]
        return jnp.einsum(
            "...h,hd->...d", z[..., head, :], weights["attn"]["o"]["kernel"][head], precision=layers.precision()
        )
    if target.kind == "attention":
        return block.attn.write(z)
    read = x if config.parallel else x + block.after_attention(block.attn.write(z))
    if target.kind == "mlp":
        return block.mlp(block.mlp_input(read))
    neuron = target.index[1]
    activations = layers.neurons(block.neuron_inputs(read), config.activation)
    return activations[..., neuron, None] * weights["mlp"]["down"]["kernel"][neuron]


def read_prompts(
    config: DecoderConfig, weights: Params, target: Contribution, x: Float[Array, "B T D"], context: decoder.Context
) -> Float[Array, " B"]:
    """F of padded prompts. weights: of the target's block. x: the stream entering it."""
    found = written(config, weights, target, x, target.held, context)
    return jnp.einsum("btd,btd->b", found, target.along.astype(found.dtype), precision=layers.precision())


def read_nodes(
    config: DecoderConfig,
    weights: Params,
    target: Contribution,
    x: Float[Array, "*lead M D"],
    tree: PrefixTree,
    context: decoder.TreeContext,
) -> Float[Array, "*lead B"]:
    """F of candidates in a prefix tree: each prompt sums over its own path."""
    held = None if target.held is None else _of_nodes(target.held, tree)
    found = written(config, weights, target, x, held, context)

    def prompt(at: tuple[jax.Array, jax.Array]) -> jax.Array:
        path, along = at
        return jnp.einsum("...td,td->...", found[..., path, :], along.astype(found.dtype), precision=layers.precision())

    return jnp.moveaxis(jax.lax.map(prompt, (tree.paths, target.along)), 0, -1)


def _of_nodes(padded: Float[Array, "B T D"], tree: PrefixTree) -> Float[Array, "M D"]:
    """The rows of padded prompts that stand at each node. A node's are the same in every prompt that passes it."""
    places = jnp.arange(tree.paths.size, dtype=jnp.int32).reshape(tree.paths.shape)
    first = jnp.full(tree.tokens.shape, tree.paths.size, jnp.int32).at[tree.paths].min(places)  # before any padding
    return padded.reshape(-1, padded.shape[-1])[first]
