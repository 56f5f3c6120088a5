"""Between a checkpoint's tensors and our parameter tree, by one table used in both directions.

The table is closed both ways: every tensor of the checkpoint is used exactly once, every parameter filled exactly once.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpatch.models import buffers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import compare, paths

_STACKS = {"l": "L", "e": "E"}
"""What stands in a tensor's name for its place in a stack -> the letter of that stack's length."""


class Rule(NamedTuple):
    """One kind of tensor, or a part of one.

    theirs: its name in the checkpoint, ``{l}`` standing for the layer, ``{e}`` for the expert. ours: path of the leaf it fills.
    layout: axes there and here, in the alphabet of `shapes`: ``"NH D -> D N H"`` splits the first axis and moves D up. Where several of
        our leaves lie side by side in one tensor, brackets name their sizes, 1 being one: of ``"[NKK]H D -> D N H"`` the first part is
        N heads, and of ``"N[111]H D -> D N H"`` each head's first.
    part: which of those in brackets is meant.
    """

    theirs: str
    ours: str
    layout: str
    part: int = 0

    def their_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(_length(factor, sizes) for factor in axis) for axis in self._axes())

    def our_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Shape of one place in the stack (of the whole leaf where there is none)."""
        return tuple(sizes[letter] for letter in self._our_letters())

    def to_ours(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        mine, letters = self._mine(tensor, sizes), self._their_letters()
        return mine.transpose([letters.index(letter) for letter in self._our_letters()])

    def into_theirs(self, array: np.ndarray, tensor: np.ndarray, sizes: Mapping[str, int]) -> None:
        """Write what is ours to its place in a contiguous tensor."""
        ours = self._our_letters()
        self._mine(tensor, sizes)[...] = array.transpose([ours.index(letter) for letter in self._their_letters()])

    def _mine(self, tensor: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A view of our part, each factor an axis."""
        factors = list(itertools.chain(*self._axes()))
        split = tensor.reshape([_length(factor, sizes) for factor in factors])
        return split[tuple(_within(factor, self.part, sizes) for factor in factors)]

    def _axes(self) -> list[list[str]]:
        """Of the tensor, each as its factors: letters, or letters in brackets."""
        return [re.findall(r"\[\w+\]|\w", axis) for axis in self.layout.split("->")[0].split()]

    def _their_letters(self) -> list[str]:
        """Of our part; one that is one has none."""
        factors = itertools.chain(*self._axes())
        return [letter for factor in factors if (letter := _pieces(factor)[self._part_of(factor)]) != "1"]

    def _our_letters(self) -> list[str]:
        return self.layout.split("->")[1].split()

    def _part_of(self, factor: str) -> int:
        return self.part if factor.startswith("[") else 0


def _pieces(factor: str) -> str:
    return factor.strip("[]")


def _length(factor: str, sizes: Mapping[str, int]) -> int:
    return sum(1 if piece == "1" else sizes[piece] for piece in _pieces(factor))


def _within(factor: str, part: int, sizes: Mapping[str, int]) -> slice | int:
    """Where a part lies along an axis."""
    if not factor.startswith("["):
        return slice(None)
    start = _length(factor[1 : 1 + part], sizes)
    piece = _pieces(factor)[part]
    return start if piece == "1" else slice(start, start + sizes[piece])


class Place(NamedTuple):
    """Where one tensor of a checkpoint belongs. rules: whose parts it holds. at: its place in the stack; () where there is none."""

    rules: tuple[Rule, ...]
    at: tuple[int, ...]

    @property
    def layer(self) -> int | None:
        return self.at[0] if self.at else None


def _by_tensor(rules: Sequence[Rule]) -> dict[str, tuple[Rule, ...]]:
    """Name, with its braces -> the rules whose parts lie there."""
    found: dict[str, tuple[Rule, ...]] = {}
    for rule in rules:
        found[rule.theirs] = (*found.get(rule.theirs, ()), rule)
    return found


def _stack(theirs: str, config: DecoderConfig) -> dict[str, int]:
    """What stands in braces in a name -> of how many."""
    return {key: config.sizes[letter] for key, letter in _STACKS.items() if f"{{{key}}}" in theirs}


def _names(theirs: str, config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a name with braces -> its place in the stack."""
    stack = _stack(theirs, config)
    everywhere = itertools.product(*map(range, stack.values()))
    return {theirs.format(**dict(zip(stack, at, strict=True))): at for at in everywhere}


def number(rules: Sequence[Rule], config: DecoderConfig) -> int:
    """How many tensors a checkpoint of this config must hold, without naming them."""
    return sum(math.prod(_stack(theirs, config).values()) for theirs in _by_tensor(rules))


def places(rules: Sequence[Rule], config: DecoderConfig) -> dict[str, Place]:
    """Every tensor name that a checkpoint of this config must hold."""
    return {
        name: Place(parts, at)
        for theirs, parts in _by_tensor(rules).items()
        for name, at in _names(theirs, config).items()
    }


def leaf_shapes(rules: Sequence[Rule], config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every leaf of our tree -> its shape."""
    stacks = {rule: tuple(_stack(rule.theirs, config).values()) for rule in rules}
    return {rule.ours: stack + rule.our_shape(config.sizes) for rule, stack in stacks.items()}


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
        elif tuple(shape) != (want := wanted[name].rules[0].their_shape(config.sizes)):
            found.append(f"tensor {name} has shape {tuple(shape)}, but the config asks for {want}")
    return found


def non_finite(flat: Mapping[str, np.ndarray], rules: Sequence[Rule], config: DecoderConfig) -> list[str]:
    """The checkpoint's names of the tensors that hold a NaN or an infinity. flat: the leaves among which they are."""
    return [
        name
        for name, (parts, at) in places(rules, config).items()
        if not all(compare.is_finite(flat[rule.ours][at]) for rule in parts if rule.ours in flat)
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
    start: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Our leaves (path, array) out of checkpoint tensors, each tensor read once; nothing of them is held while the next is made.

    Args: start: of leaves where not every place is named; zero where there are none.
    """
    sizes, named = config.sizes, set(names)
    for theirs, parts in _by_tensor(rules).items():
        mine = {name: at for name, at in _names(theirs, config).items() if name in named}
        if not mine:
            continue
        lead = tuple(_stack(theirs, config).values())
        leaves = {path: buffers.zeros(shape, dtype) for path, shape in leaf_shapes(parts, config).items()}
        for path in (start or {}).keys() & leaves.keys():
            leaves[path][...] = (start or {})[path]
        for name, at in mine.items():
            tensor = read(name)
            for rule in parts:
                with np.errstate(over="ignore"):  # an infinity is found, and reported by name, after loading
                    if lead:
                        leaves[rule.ours][at] = rule.to_ours(tensor, sizes)
                    else:
                        leaves[rule.ours] = buffers.held(rule.to_ours(tensor, sizes), dtype)
            del tensor
        while leaves:
            yield leaves.popitem()


def to_tensors(params: Mapping, rules: Sequence[Rule], config: DecoderConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors (name, array) out of our tree: `to_leaves` backwards."""
    flat = paths.flatten(params)
    for name, place in places(rules, config).items():
        yield name, to_tensor(flat, place, config)


def to_tensor(flat: Mapping[str, np.ndarray], place: Place, config: DecoderConfig) -> np.ndarray:
    """One of the checkpoint's tensors out of our leaves."""
    own = [np.asarray(flat[rule.ours][place.at]) for rule in place.rules]
    tensor = np.empty(place.rules[0].their_shape(config.sizes), own[0].dtype)
    for rule, array in zip(place.rules, own, strict=True):
        rule.into_theirs(array, tensor, config.sizes)
    return tensor
