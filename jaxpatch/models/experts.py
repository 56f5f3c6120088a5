"""MLPs among which a router chooses: each state goes through a few of them. Shazeer et al., arXiv 1701.06538.

Which expert a state goes to is known only as the model runs. States are ordered by expert and cut into tiles, each of one expert, so
that a tile is an ordinary product and nothing is computed for an expert that was not chosen (as in MegaBlocks, arXiv 2211.15841).
All shapes are static: there is room for as many tiles as there could be, and empty ones are passed over.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxpatch.models import layers

SMALLEST, LARGEST = 8, 256
"""States in a tile."""
FETCHED = 40
"""States that could be multiplied while an expert's matrices are cut out of their stack, on a CPU."""

State = TypeVar("State")


class Routes(NamedTuple):
    """The experts that each of n states goes through, and how much each counts. Those that were not chosen have a share of 0."""

    chosen: Int[Array, "n k"]
    shares: Float[Array, "n k"]


class Tiles(NamedTuple):
    """States in the order in which experts take them.

    pairs: numbers of what stands in `Routes`, n k where a place is empty. expert: of each tile. The tiles in use come first.
    """

    pairs: Int[Array, "tiles size"]
    expert: Int[Array, " tiles"]


def route(logits: Float[Array, "n E"], number: int, *, sum_to_one: bool) -> Routes:
    """The `number` experts of the largest softmax, and that as their share.

    >>> chosen, shares = route(jnp.log(jnp.array([[1.0, 6.0, 2.0]])), 2, sum_to_one=True)
    >>> chosen.tolist(), shares.round(2).tolist() == [[0.75, 0.25]]
    ([[1, 2]], True)
    """
    shares, chosen = jax.lax.top_k(jax.nn.softmax(layers.at_least_float32(logits)), number)
    return Routes(chosen, shares / shares.sum(axis=-1, keepdims=True) if sum_to_one else shares)


def share_of(routes: Routes, expert: Int[Array, ""]) -> Float[Array, " n"]:
    """How much one expert counts for each state."""
    return jnp.where(routes.chosen == expert, routes.shares, 0).sum(axis=-1)


def tiles_of(chosen: Int[Array, "n k"], num_experts: int) -> Tiles:
    """Every state once for each expert that it goes through.

    >>> tiles = tiles_of(jnp.array([[1, 0], [1, 2]]), 3)
    >>> tiles.expert.tolist(), tiles.pairs[:, :3].tolist()
    ([0, 1, 2], [[1, 4, 4], [0, 2, 4], [3, 4, 4]])
    """
    pairs = chosen.reshape(-1)
    number = pairs.size
    size = tile_size(number, num_experts)
    room = number // size + min(num_experts, number)
    order = jnp.argsort(pairs, stable=True)
    counts = jnp.bincount(pairs, length=num_experts)
    num_tiles = -(-counts // size)
    until = jnp.cumsum(num_tiles)
    first_tile, first_pair = until - num_tiles, jnp.cumsum(counts) - counts
    expert = pairs[order]
    place = first_tile[expert] * size + jnp.arange(number) - first_pair[expert]
    filled = jnp.full(room * size, number, jnp.int32).at[place].set(order.astype(jnp.int32), unique_indices=True)
    owner = jnp.searchsorted(until, jnp.arange(room), side="right")
    return Tiles(filled.reshape(room, size), jnp.minimum(owner, num_experts - 1).astype(jnp.int32))


def tile_size(number: int, num_experts: int) -> int:
    """States in a tile, where `number` go to so many experts.

    With n states each, experts have n / size tiles, that cost `FETCHED` more each, and half a tile of empty places: least where the
    size is the root of 2 n FETCHED.

    >>> tile_size(11_664, 128), tile_size(16, 128)
    (64, 8)
    """
    best = math.sqrt(2 * FETCHED * number / num_experts)
    return int(np.clip(2 ** round(math.log2(best)), SMALLEST, LARGEST))


def each(tiles: Tiles, number: int, step: Callable[[State, jax.Array, jax.Array], State], state: State) -> State:
    """Through the tiles in turn: (state, pairs [size], expert) -> state. number: of pairs, from which on a place is empty."""

    def one(state: State, tile: tuple[jax.Array, jax.Array]) -> tuple[State, None]:
        return jax.lax.cond(tile[0][0] < number, step, lambda state, *_: state, state, *tile), None

    return jax.lax.scan(one, state, (tiles.pairs, tiles.expert))[0]


def mlp(
    x: Float[Array, "n D"],
    routes: Routes,
    into: Sequence[Mapping[str, jax.Array]],
    down: Mapping[str, jax.Array],
    activation: str = "silu",
) -> Float[Array, "n D"]:
    """What the chosen experts write, not rounded: ``sum_e share_e neurons(x W_1e, x W_2e) W_down,e``.

    Args: into: of the neurons' inputs, one or two, [E, D, F]. down: [E, F, D].
    """
    (num_states, number), num_experts = routes.chosen.shape, down["kernel"].shape[0]
    shares, wide = routes.shares.reshape(-1), layers.at_least_float32(x[:0]).dtype

    def add(written: jax.Array, pairs: jax.Array, expert: jax.Array) -> jax.Array:
        own = rows(x, pairs // number)
        inputs = [product(own, weights["kernel"][expert]).astype(x.dtype) for weights in into]
        made = product(layers.neurons(inputs, activation), down["kernel"][expert])
        return written.at[pairs // number].add(made * rows(shares, pairs)[:, None].astype(made.dtype), mode="drop")

    return each(
        tiles_of(routes.chosen, num_experts), num_states * number, add, jnp.zeros((num_states, x.shape[-1]), wide)
    )


def rows(x: Float[Array, "n ..."], index: Int[Array, " size"]) -> Float[Array, "size ..."]:
    """Of places that are empty, zero."""
    return x.at[index].get(mode="fill", fill_value=0)


def product(x: Float[Array, "size i"], kernel: Float[Array, "i o"]) -> Float[Array, "size o"]:
    """``x @ kernel``, not rounded. Wide states meet a narrow matrix in full: beside a host there is no host's own expert to go by."""
    if x.dtype != kernel.dtype:
        return layers.in_full(x, kernel)
    return layers.product(x, kernel)
