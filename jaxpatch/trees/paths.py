"""Leaves of a nested dict by path: `"layers/attn/q/kernel"`."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


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


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name.

    >>> did_you_mean("heads", ["head", "neuron"])
    "did you mean 'head'? Known: head, neuron."
    """
    known = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), known, n=1)
    return (f"did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(known)}."
