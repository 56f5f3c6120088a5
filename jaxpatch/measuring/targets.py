"""Contributions of chosen targets, listened to along the gradient of what they are a part of.

A state is made by components that read what others wrote. To ask who supplies one of them, its own contribution is read in place of
the state: what it writes, token by token, along the gradient of the read-out above it. For the anchor's own direction, ``<out_t, u>``,
that is known (Sun et al., arXiv 2604.13694); targets further down, read in the same way for the target above them, and gradients
through the blocks between, are ours. A gradient is taken in base's run and then stays as it is, so that contributions add up.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpatch.measuring import inputs, memory, read_outs, slopes
from jaxpatch.measuring.downstream import Models
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Contribution, ReadOut
from jaxpatch.measuring.slopes import Run
from jaxpatch.models import decoder, prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params

PATHS = ("total", "direct")


def contribution(
    pair: Pair,
    prompts: Inputs,
    parent: ReadOut,
    kind: str,
    index: tuple[int, ...],
    *,
    path: str = "total",
    through: str = "all",
    budget: int | None = None,
) -> Contribution:
    """The read-out of what one component contributes to another read-out.

    Args:
        parent: an anchor, or the contribution of a component further up.
        kind, index: the target: "head" (layer, head), "neuron" (layer, neuron), "attention" or "mlp" (layer,).
        path: how it reaches the parent. "total": through every block between them, to first order; "direct": as it lies in the
            residual stream where the parent is read, ``<out_t, u>``.
        through: by which input of a head suppliers may reach it: "all", "query", "key" or "value".
        budget: bytes that the gradient's pass may hold beside the models; half of what is free where None.

    Returns: a read-out for `score`, of these prompts alone, which refuses others.

    Raises: ValueError with every fault.

    References: Sun et al., arXiv 2604.13694; path patching: Wang et al., arXiv 2211.00593.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.relay_pair((2.0, -1.0)), testing.tiny_inputs()
        >>> anchor = jp.Anchor(layer=1, direction=jnp.eye(8)[testing.STATE])
        >>> head = contribution(pair, prompts, anchor, "head", (1, 0))
        >>> jp.score(pair, prompts, head, kinds=("neuron",)).values["neuron"].round(4).tolist()
        [[2.0, -1.0], [0.0, 0.0]]
    """
    prompts = inputs.checked(prompts, pair.config)
    parent = read_outs.unheld(read_outs.checked_for(prompts, parent, pair.config))
    along = listening(pair.config, pair.base, prompts, parent, kind, index, path, budget)
    depth = read_outs.depth(pair.config, [parent]) - (0 if isinstance(parent, Contribution) else 1)
    found = Contribution(along, kind, index, through, depth=depth)
    return dataclasses.replace(read_outs.checked_contribution(found, pair.config, prompts), prompts=prompts)


def path_faults(path: str) -> list[str]:
    """What is wrong with one."""
    return [] if path in PATHS else [f"path {path!r}; wanted one of {', '.join(PATHS)}"]


def listening(
    config: DecoderConfig,
    params: Params,
    prompts: Inputs,
    parent: ReadOut,
    kind: str,
    index: tuple[int, ...],
    path: str = "total",
    budget: int | None = None,
) -> Float[np.ndarray, "B T D"]:
    """The gradient of the parent, in a model's run, at what the target's attention or MLP writes.

    Raises: ValueError with every fault.
    """
    faults = read_outs.target_faults(kind, index, config)
    depth, stop = read_outs.depth(config, [parent]), int(read_outs.stop(config, [parent]))
    if not faults and index[0] >= stop:
        faults.append(
            f"index {index}: block {index[0]} stands no lower than what it would supply; wanted one below {stop}"
        )
    faults += path_faults(path)
    if faults:
        raise ValueError(f"target {kind} {'.'.join(map(str, index))}: " + "; ".join(faults) + ".")
    batch, tokens = prompts.tokens.shape
    budget = memory.default_budget(params) if budget is None else budget
    size = memory.even(batch, memory.cheap_prompts(config, tokens, memory.itemsize_of(params), depth, budget))
    tree = prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths))
    found = []
    for start in range(0, batch, size):
        rows = np.minimum(np.arange(start, start + size), batch - 1)
        models = Models(params, params, prompts.rows(rows), tree, (parent.rows(rows),))
        found.append(np.asarray(_gradient(config, kind in ("head", "attention"), path, models, np.int32(index[0]))))
    return np.concatenate(found)[:batch]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _gradient(
    config: DecoderConfig, is_attention: bool, path: str, models: Models, layer: jax.Array
) -> Float[Array, "B T D"]:
    depth, stop = read_outs.depth(config, models.read_outs), read_outs.stop(config, models.read_outs)
    after, run = slopes.climb(config, models)
    top = slopes.at_the_top(config, models, after)
    if path == "direct":
        return _as_it_lies(config, is_attention, models.host, jax.tree.map(lambda leaf: leaf[layer], run), top, layer)
    context = decoder.causal_context(config, after.shape[-2], after.dtype)

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, Run]):
        end, kept = carry
        number, run = at
        weights = decoder.widened(decoder.layer_of(models.host, number))
        entering, slope, _ = slopes.descend(config, context.at(number), weights, run, end)
        own = slope.attended if is_attention else slope.computed
        return (entering, jnp.where(number == layer, own, kept)), None

    numbers = jnp.arange(depth, dtype=jnp.int32)
    passing = read_outs.until(stop, step)
    return jax.lax.scan(passing, (top, jnp.zeros_like(top)), (numbers, run), reverse=True)[0][1]


def _as_it_lies(
    config: DecoderConfig, is_attention: bool, params: Params, run: Run, top: jax.Array, layer: jax.Array
) -> Float[Array, "B T D"]:
    """The gradient at what a block's attention or MLP writes, with nothing between it and the top but its own norm."""
    block = decoder.block(config, decoder.widened(decoder.layer_of(params, layer)))
    if is_attention:
        written, add = block.attn.write(run.z), lambda written: block.after_attention(written)
    else:
        written, add = block.mlp(block.mlp_input(run.read_by_mlp(config))), lambda written: block.after_mlp(written)
    return jax.vjp(add, written)[1](top)[0]
