"""Prompts as a tree of prefixes: every distinct prefix is one node, computed once.

In a causal decoder a token's state depends on nothing but the tokens up to it. Prompts in one chat template share their first
tokens, and padding is no token at all: of the B x T positions of a padded batch, only the nodes of this tree need any arithmetic. The
residual stream is ``[..., M, D]``; attention alone knows the tree, through tiles. Sharing prefixes is known from serving (radix
attention, arXiv 2312.07104); its use for patch sweeps is ours.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxpatch.models import layers

TILE_OVERHEAD = 8
"""Queries that one more tile costs about, when tiles are cut."""


class Tiles(NamedTuple):
    """Attention over the tree as a batch of small rectangles.

    queries: which query stands where; every query in at least one place. keys: the path of nodes that those queries may see.
    mask: True where a query may look. home: where in the flattened [R * S] each query is found again.
    """

    queries: Int[Array, "R S"]
    keys: Int[Array, "R T"]
    mask: Bool[Array, "R S T"]
    home: Int[Array, " Q"]

    def attend(
        self,
        q: Float[Array, "*lead Q N H"],
        k: Float[Array, "*lead M K H"],
        v: Float[Array, "*lead M K H"],
        scale: float | None = None,
        cap: float | None = None,
    ) -> Float[Array, "*lead Q N H"]:
        """Head vectors before W_O of all queries. scale, cap: as `layers.attend` has them."""
        rows = q[..., self.queries, :, :], k[..., self.keys, :, :], v[..., self.keys, :, :]
        z = layers.attend(*rows, self.mask, scale, cap)
        return z.reshape(*z.shape[:-4], -1, *z.shape[-2:])[..., self.home, :, :]


class PrefixTree(NamedTuple):
    """Prompts without repetition.

    tokens, positions: of each node; a node comes after all that it can see.
    last: the node of each prompt's last token. paths: the node at each position of the padded prompts; at padding, the last one.
    inside: attention among the nodes. ends: attention of the last tokens alone.
    """

    tokens: Int[Array, " M"]
    positions: Int[Array, " M"]
    last: Int[Array, " B"]
    paths: Int[Array, "B T"]
    inside: Tiles
    ends: Tiles


def of_prompts(tokens: np.ndarray, lengths: np.ndarray, *, own_ends: bool = False) -> PrefixTree:
    """The tree of right-padded prompts. tokens: int [B, T]; lengths: int [B], at least 1.

    own_ends: a prompt's last token is a node apart from the same token in the midst of a longer prompt, so that something can be
        done to the one and not to the other.

    Example:
        >>> tree = of_prompts(np.array([[5, 6, 7], [5, 6, 8], [5, 9, 0]]), np.array([3, 3, 2]))
        >>> tree.tokens.tolist(), tree.last.tolist()
        ([5, 6, 7, 8, 9], [2, 3, 4])
    """
    prompts = [row[:length].tolist() for row, length in zip(np.asarray(tokens), np.asarray(lengths), strict=True)]
    numbers: dict[tuple[int, int, bool], int] = {}
    nodes, paths, owned = [], [], []
    for prompt in prompts:
        path, first_new = [], len(numbers)
        for position, token in enumerate(prompt):
            key = (path[-1] if path else -1, token, own_ends and position == len(prompt) - 1)
            if key not in numbers:
                numbers[key] = len(numbers)
                nodes.append((token, position))
            path.append(numbers[key])
        paths.append(path)
        owned.append([node for node in path if node >= first_new])
    token_of, position_of = jnp.asarray(np.array(nodes).T, jnp.int32)
    return PrefixTree(
        tokens=token_of,
        positions=position_of,
        last=jnp.asarray([path[-1] for path in paths], jnp.int32),
        paths=jnp.asarray([path + path[-1:] * (tokens.shape[1] - len(path)) for path in paths], jnp.int32),
        inside=_tiles(
            [(path, node_row) for path, row in zip(paths, owned, strict=True) for node_row in _cut(row, owned)]
        ),
        ends=_last_tiles(paths),
    )


def _cut(row: list[int], owned: Sequence[list[int]]) -> list[list[int]]:
    """A prompt's own nodes in pieces of the size that wastes least over all prompts."""
    sizes = sorted({len(nodes) for nodes in owned if nodes}, reverse=True)
    size = min(sizes, key=lambda size: sum(-(-len(nodes) // size) for nodes in owned) * (size + TILE_OVERHEAD))
    return [row[start : start + size] for start in range(0, len(row), size)]


def _tiles(rows: list[tuple[list[int], list[int]]]) -> Tiles:
    """rows: (path, the nodes on it that are queries here)."""
    num_queries, num_keys = max(len(nodes) for _, nodes in rows), max(len(path) for path, _ in rows)
    queries = np.array([np.resize(nodes, num_queries) for _, nodes in rows])
    keys = np.array([np.resize(path, num_keys) for path, _ in rows])
    places = [{node: place for place, node in enumerate(path)} for path, _ in rows]
    reach = np.array([[place[node] for node in row] for place, row in zip(places, queries.tolist(), strict=True)])
    home = np.zeros(queries.max() + 1, np.int64)
    home[queries.ravel()[::-1]] = np.arange(queries.size)[::-1]
    mask = np.arange(num_keys) <= reach[:, :, None]
    return _arrays(queries, keys, mask, home)


def _last_tiles(paths: list[list[int]]) -> Tiles:
    """One query a prompt: its last token."""
    num_keys = max(map(len, paths))
    keys = np.array([np.resize(path, num_keys) for path in paths])
    mask = np.arange(num_keys) < np.array([[[len(path)]] for path in paths])
    own = np.arange(len(paths))
    return _arrays(own[:, None], keys, mask, own)


def _arrays(queries: np.ndarray, keys: np.ndarray, mask: np.ndarray, home: np.ndarray) -> Tiles:
    return Tiles(
        queries=jnp.asarray(queries, jnp.int32),
        keys=jnp.asarray(keys, jnp.int32),
        mask=jnp.asarray(mask),
        home=jnp.asarray(home, jnp.int32),
    )
