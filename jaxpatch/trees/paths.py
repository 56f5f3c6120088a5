"""Leaves of a nested dict, or of any pytree, by path: `"layers/attn/q/kernel"`."""

import collections
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from jax.tree_util import GetAttrKey


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Every leaf of a nested dict under its path.

    >>> flatten({"mlp": {"up": 1, "down": 2}, "norm": 3})
    {'mlp/up': 1, 'mlp/down': 2, 'norm': 3}
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{rest}": leaf for rest, leaf in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict whose leaves these are; the inverse of `flatten`.

    >>> unflatten({"mlp/up": 1, "norm": 3})
    {'mlp': {'up': 1}, 'norm': 3}
    """
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def leaves(tree: Any) -> dict[str, Any]:
    """Every leaf of any pytree under its path: a nested dict, a Flax state, a list of modules.

    The box around an array (``nnx.Param``, ``nn.Partitioned``) is no part of its path.

    Raises: ValueError for leaves that have one path, as those of ``{"a/b": 1, "a": {"b": 2}}``.

    >>> leaves({"blocks": [{"up": 1}, {"up": 2}]})
    {'blocks/0/up': 1, 'blocks/1/up': 2}
    """
    found = [(_named(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    flat = dict(found)
    if len(flat) < len(found):
        counts = collections.Counter(path for path, _ in found)
        shared = ", ".join(path for path, count in counts.items() if count > 1)
        raise ValueError(f"several leaves of this tree have the same path: {shared}. Rename keys that hold a slash.")
    return flat


def with_leaves(tree: Any, flat: Mapping[str, Any]) -> Any:
    """The same pytree with these leaves, by path, in place of its own; it needs all of them.

    >>> with_leaves({"blocks": [{"up": 1}, {"up": 2}]}, {"blocks/1/up": 5, "blocks/0/up": 4})
    {'blocks': [{'up': 4}, {'up': 5}]}
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: flat[_named(path)], tree)


def _named(path: jax.tree_util.KeyPath) -> str:
    inside = path[:-1] if path[1:] and path[-1] == GetAttrKey("value") else path
    return jax.tree_util.keystr(inside, simple=True, separator="/")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    >>> did_you_mean("heads", ["head", "neuron"])
    "did you mean 'head'? Known: head, neuron."
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}."
