"""What a leaf of parameters is made of: tensors that stand for themselves, and the rows of each.

Published methods look at a model's matrices one by one. A decoder's leaves have those of all its layers, and of all experts of an MLP,
in one array; a leaf of any other tree is one tensor.
"""

import math
from collections.abc import Container, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "router": 1, "gate": 1, "up": 1, "down": 1, "unembed": 1}
"""A decoder's matrix -> over how many axes its inputs run, which come first."""
IN_EXPERTS = ("gate", "up", "down")
"""Matrices that have an axis more, before the inputs, where an MLP is a choice of experts."""


class Layout(NamedTuple):
    """stack: how many axes at the front count tensors. inputs: over how many axes after these an output's inputs run, a row's; 0 where
    a row is the last axis, as in a table of embeddings."""

    stack: int
    inputs: int


def layouts(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layout]:
    """Path -> layout, of all leaves of a tree.

    >>> made = layouts({"layers/attn/q/kernel": (3, 16, 4, 8), "layers/attn/o/kernel": (3, 4, 8, 16), "embed/kernel": (9, 16)})
    >>> [tuple(layout) for layout in made.values()]
    [(1, 1), (1, 2), (0, 0)]
    """
    of = _of_decoder if is_decoder(shapes) else _of_any
    return {path: of(path, len(shape)) for path, shape in shapes.items()}


def is_decoder(leaves: Container[str]) -> bool:
    """Whether a tree of these leaves is a decoder's, as `models` has them."""
    return "layers/attn/q/kernel" in leaves


def _of_decoder(path: str, ndim: int) -> Layout:
    folders = path.split("/")
    stack = int(folders[0] == "layers")
    inputs = INPUTS.get(folders[-2], 0) if folders[-1] == "kernel" and len(folders) > 1 else 0
    is_in_experts = inputs and folders[-2] in IN_EXPERTS and ndim == stack + 3
    return Layout(stack + is_in_experts, inputs)


def _of_any(path: str, ndim: int) -> Layout:
    is_matrix = path.split("/")[-1] == "kernel" and ndim > 1
    return Layout(0, ndim - 1 if is_matrix else 0)


def split(leaf: jax.Array, layout: Layout) -> jax.Array:
    """The tensors of a leaf, each as its rows: [S, rows, in each].

    >>> split(jnp.zeros((3, 16, 4, 8)), Layout(1, 1)).shape, split(jnp.zeros((9, 16)), Layout(0, 0)).shape
    ((3, 32, 16), (1, 9, 16))
    """
    stack, inside = leaf.shape[: layout.stack], leaf.shape[layout.stack :]
    if layout.inputs:
        columns = leaf.reshape(math.prod(stack), math.prod(inside[: layout.inputs]), -1)
        return columns.swapaxes(1, 2)
    rows = (-1, inside[-1]) if len(inside) > 1 else (1, math.prod(inside))
    return jnp.reshape(leaf, (math.prod(stack), *rows))


def joined(rows: jax.Array, layout: Layout, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `split`.

    >>> leaf = jnp.arange(24.0).reshape(2, 3, 4)
    >>> bool((joined(split(leaf, Layout(1, 1)), Layout(1, 1), leaf.shape) == leaf).all())
    True
    """
    return (rows.swapaxes(1, 2) if layout.inputs else rows).reshape(shape)
