"""Greedy continuation of a batch of prompts, with a key/value cache, in one compiled loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpatch.models import decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.rope import LongRope
from jaxpatch.shapes import Params

Write = Callable[[jax.Array], jax.Array]


def greedy(
    config: DecoderConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    *,
    max_new: int,
    stops: tuple[int, ...],
    steer: tuple[Int[Array, ""] | int, Float[Array, " D"]] | None = None,
) -> Int[Array, "B max_new"]:
    """The most likely next token, again and again.

    Args:
        tokens: right-padded prompts. lengths: of each.
        max_new: how many tokens to add at most.
        stops: ids that end a sequence, any of them; what follows is the first of these.
        steer: (layer, vector): the vector is added to the residual stream after that block at every position
            from the last prompt token on.

    Returns: the added tokens.

    Where positions turn in another way beyond some length (LongRoPE), keys that were kept until then turn so too: at the token that
    crosses it everything before is read again. So each token is what the model says of the whole sequence, as without a cache.
    """
    batch, width = tokens.shape
    dtype = decoder.dtype_of(params)
    slots = width + max_new
    steering = jnp.zeros((config.layers, config.width), np.promote_types(dtype, np.float32))
    if steer is not None:
        steering = steering.at[steer[0]].set(steer[1].astype(steering.dtype))
    ending, filling = jnp.asarray(stops, jnp.int32), jnp.int32(stops[0] if stops else 0)
    reads_again = isinstance(config.rope and config.rope.stretch, LongRope)
    empty = jnp.zeros((config.layers, batch, config.kv_heads, slots, config.head_width), dtype)

    slot_numbers = jnp.arange(slots)
    slot_positions = jnp.where(slot_numbers < width, slot_numbers, lengths[:, None] + slot_numbers - width)

    def run(new, positions, mask, slot, cache, is_steered):
        """Residual stream [B, t, D] of new tokens, the cache grown by them."""
        back = positions[:, :, None] - slot_positions[:, None, :]
        context = decoder.context_at(config, positions, back, mask, dtype, slot)

        def block(number, carry):
            """The cache is carried whole, so that each block's part is grown where it lies."""
            x, cache = carry
            weights = {"params": decoder.layer_of(params, number)}
            x, cache = decoder.Block(config).apply(weights, x, context, cache, number)
            return x + jnp.where(is_steered[..., None], steering[number], 0), cache

        x = decoder.embedded(config, params, new, positions)
        return jax.lax.fori_loop(0, config.layers, block, (x, cache))

    def best(x):
        """Next token of one position each. x: [B, D]."""
        return jnp.argmax(decoder.apply(config, params, x, method="read_out"), axis=-1).astype(jnp.int32)

    queries = jnp.arange(width)
    own_queries = jnp.where(queries < lengths[:, None], queries, 0)  # padding makes no sequence longer
    prefill_mask = jnp.broadcast_to(queries[:, None] >= slot_numbers[None, :], (batch, width, slots))
    is_last = queries[None, :] == lengths[:, None] - 1
    x, cache = run(tokens, own_queries, prefill_mask, 0, decoder.Cache(empty, empty), is_last)
    first = best(jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0])

    def again(step, cache, out):
        """The cache of all tokens but the newest, as they are in a sequence as long as it is with that one."""
        del cache
        is_there = (slot_numbers[None, :] < lengths[:, None]) | (
            (slot_numbers >= width) & (slot_numbers < width + step)
        )
        positions = jnp.where(is_there, slot_positions, 0)
        mask = is_there[:, None, :] & (positions[:, None, :] <= positions[:, :, None])
        every = jnp.concatenate([tokens, out], axis=1)
        is_steered = is_there & (positions >= lengths[:, None] - 1)
        return run(every, positions, mask, 0, decoder.Cache(empty, empty), is_steered)[1]

    def not_done(state):
        step, _, _, is_done, _ = state
        return (step < max_new) & ~is_done.all()

    def grow(state):
        step, last, cache, is_done, out = state
        is_prompt = slot_numbers[None, :] < lengths[:, None]
        is_new = (slot_numbers >= width) & (slot_numbers < width + step)
        mask = (is_prompt | is_new[None, :])[:, None, :]
        positions = (lengths + step - 1)[:, None]
        if reads_again:
            assert config.rope is not None and isinstance(config.rope.stretch, LongRope)
            crosses = (positions == config.rope.stretch.original).any()
            cache = jax.lax.cond(crosses, again, lambda _, cache, __: cache, step, cache, out)
        x, cache = run(last[:, None], positions, mask, width + step - 1, cache, jnp.ones((batch, 1), bool))
        token = jnp.where(is_done, filling, best(x[:, 0]))
        out = out.at[:, step].set(token)
        return step + 1, token, cache, is_done | jnp.isin(token, ending), out

    out = jnp.full((batch, max_new), filling).at[:, 0].set(first)
    state = (jnp.int32(1), first, cache, jnp.isin(first, ending), out)
    return jax.lax.while_loop(not_done, grow, state)[4]
