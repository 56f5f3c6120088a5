"""Between a checkpoint's tensors and our parameter tree, by one table used in both directions.

The table is closed both ways: every tensor of the checkpoint is used exactly once, every parameter filled exactly once.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import compare, paths


class Rule(NamedTuple):
    """One kind of tensor.

    theirs: its name in the checkpoint, ``{l}`` standing for the layer. ours: path of the leaf it fills.
    layout: axes there and here, in the alphabet of `shapes`: ``"NH D -> D N H"`` splits the first axis and moves D up.
    """

    theirs: str
    ours: str
    layout: str

    @property
    def is_stacked(self) -> bool:
        return "{l}" in self.theirs

    def their_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(int(np.prod([sizes[letter] for letter in axis])) for axis in self._theirs_axes())

    def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one layer's slice (of the whole leaf where it is not stacked)."""
        return tuple(sizes[letter] for letter in self._our_axes())

    def to_ours(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        letters = "".join(self._theirs_axes())
        split = tensor.reshape([sizes[letter] for letter in letters])
        return split.transpose([letters.index(letter) for letter in self._our_axes()])

    def to_theirs(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        ours, letters = self._our_axes(), "".join(self._theirs_axes())
        moved = array.transpose([ours.index(letter) for letter in letters])
        return np.ascontiguousarray(moved.reshape(self.their_shape(sizes)))

    def _theirs_axes(self) -> list[str]:
        return self.layout.split("->")[0].split()

    def _our_axes(self) -> list[str]:
        return self.layout.split("->")[1].split()


class Place(NamedTuple):
    """Where one tensor of a checkpoint belongs."""

    rule: Rule
    layer: int | None


def places(rules: Sequence[Rule], config: DecoderConfig) -> dict[str, Place]:
    """Every tensor name that a checkpoint of this config must hold."""
    table: dict[str, Place] = {}
    for rule in rules:
        if rule.is_stacked:
            table |= {rule.theirs.format(l=layer): Place(rule, layer) for layer in range(config.layers)}
        else:
            table[rule.theirs] = Place(rule, None)
    return table


def faults(
    shapes: Mapping[str, tuple[int, ...]], rules: Sequence[Rule], config: DecoderConfig, *, is_partial: bool = False
) -> list[str]:
    """Everything that keeps these tensors from filling the tree exactly; empty when nothing does.

    Args:
        shapes: tensor name -> shape, as the checkpoint says.
        is_partial: missing tensors are fine (an adapter touches only some).
    """
    wanted = places(rules, config)
    found = [f"missing tensor {name}" for name in wanted if name not in shapes and not is_partial]
    for name, shape in shapes.items():
        if name not in wanted:
            near = _near(name, wanted)
            hint = paths.did_you_mean(name, near) if near else f"the config has {config.layers} layers"
            found.append(f"unexpected tensor {name} {tuple(shape)}; {hint}")
        elif tuple(shape) != (want := wanted[name].rule.their_shape(config.sizes)):
            found.append(f"tensor {name} has shape {tuple(shape)}, but the config asks for {want}")
    return found


def non_finite(params: Mapping, rules: Sequence[Rule], config: DecoderConfig) -> list[str]:
    """The checkpoint's names of the tensors that hold a NaN or an infinity."""
    flat = paths.flatten(params)
    bad = compare.non_finite_leaves(params)
    return [
        name
        for name, (rule, layer) in places(rules, config).items()
        if rule.ours in bad and not np.isfinite(flat[rule.ours] if layer is None else flat[rule.ours][layer]).all()
    ]


def _near(name: str, wanted: Mapping[str, Place]) -> list[str]:
    """The names that share the layer number, so that a message stays short."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return [w for w in wanted if [part for part in w.split(".") if part.isdigit()] == numbers]


def to_leaves(
    read: Callable[[str], np.ndarray],
    names: Sequence[str],
    rules: Sequence[Rule],
    config: DecoderConfig,
    dtype: np.dtype,
) -> Iterator[tuple[str, np.ndarray]]:
    """Our leaves (path, array) out of checkpoint tensors, one leaf in memory at a time; layers not named stay zero."""
    wanted, sizes = places(rules, config), config.sizes
    for rule in rules:
        mine = [name for name in names if wanted[name].rule is rule]
        if not mine:
            continue
        lead = (config.layers,) if rule.is_stacked else ()
        leaf = np.zeros(lead + rule.our_shape(sizes), dtype)
        for name in mine:
            where = wanted[name].layer if rule.is_stacked else ...
            with np.errstate(over="ignore"):  # an infinity is found, and reported by name, after loading
                leaf[where] = rule.to_ours(read(name), sizes).astype(dtype)
        yield rule.ours, leaf


def to_tensors(params: Mapping, rules: Sequence[Rule], config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors (name, array) out of our tree: `to_leaves` backwards."""
    flat = paths.flatten(params)
    for name, (rule, layer) in places(rules, config).items():
        leaf = np.asarray(flat[rule.ours])
        yield name, rule.to_theirs(leaf if layer is None else leaf[layer], config.sizes)
