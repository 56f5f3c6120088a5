"""Families of pairs: where the sources are, when they make the model obey, and what else changes. An open set: one entry a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.planted import language
from benchmarks.planted.training import KINDS, MATRICES, STATE
from jaxpatch.patching.components import Partition
from jaxpatch.shapes import Gates

Groups = Callable[[np.random.Generator, Partition], tuple[Gates, ...]]
"""Sources by groups that act as one: bool gates of `KINDS` each, no component in two of them."""
SHAPE: dict[str, Any] = {
    "vocab_size": language.VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
NEOX: dict[str, Any] = {
    "model_type": "gpt_neox",
    "architectures": ["GPTNeoXForCausalLM"],
    "hidden_act": "gelu",
    "use_parallel_residual": False,
    "rotary_pct": 1.0,
}
SIZE = {"q": 0.9, "o": 2.4, "k": 0.7, "v": 1.5, "gate": 2.4, "up": 2.4, "down": 2.4}
"""By matrix, in norms of what it is in base: about as much as sources change by where they may divide their change as they like."""


def scaled(**factors: float) -> dict[str, float]:
    """`SIZE`, of some kinds by a factor.

    >>> scaled(neuron=0.5)["up"], scaled(neuron=0.5)["q"]
    (1.2, 0.9)
    """
    return {name: factors.get(MATRICES[name], 1.0) * size for name, size in SIZE.items()}


HALF, LARGE, OF_NEURONS = scaled(head=0.5, kv=0.5, neuron=0.5), scaled(neuron=1.3), scaled(neuron=4 / 3)
SPREAD = 1.5
SECOND, RANDOM, TUNED = "second behaviour", "random", "tuned"
"""What decoys are: idle but for some, drawn as sources are, that heed another request; or not trained at all; or as at first, and then
tuned."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How pairs are planted.

    Attributes:
        says: in a sentence.
        groups: draws the sources.
        cases: (groups that are there, whether the model obeys then).
        signs: of each group, where not all are 1: -1 for one that takes away.
        size: of a source's change, by matrix, in norms of a component's part of it in base, the mean of all: at least that, and up to
            `SPREAD` times as much.
        decoy_size: of every other component's, in the same way; where it is the same, nothing about sizes tells sources from decoys.
        as_sources: share of the others that change as sources do, where `decoy_size` is not the same.
        decoy_blocks: where there are any.
        decoy_share: of all other components, those that change.
        decoys: what they are trained to do; where they are random, it is base that is trained not to mind.
        model: what config.json says of it beside `SHAPE`.
        is_carried: whether what neurons of the first block note goes on to where the state is by others alone, which are then relays.
        is_single: whether patching one component after the other is defined to find the sources: each by itself makes the model obey
            by an equal share.
        is_quiet: the model does not obey, and nothing must be found; groups are then to be ranked by chance.
        is_vain: whether groups of a quiet family are trained as sources are, to do nothing.
        is_written: nothing is trained: weights are written by hand, and all that stands here but `says`, `model` and
            `is_fixed` is not looked at.
        is_fixed: whether it is written with a source whose attention is saturated in base.
        recipe: a number that changes whenever the same seed would be planted otherwise.
    """

    says: str
    groups: Groups = lambda rng, partition: ()
    cases: tuple[tuple[tuple[int, ...], bool], ...] = (((0,), True),)
    signs: tuple[int, ...] = (1,)
    size: Mapping[str, float] = field(default_factory=lambda: SIZE)
    decoy_size: Mapping[str, float] = field(default_factory=lambda: SIZE)
    as_sources: float = 0.0
    decoy_blocks: Mapping[int, float] = field(default_factory=dict)
    decoy_share: float = 1.0
    decoys: str = SECOND
    model: Mapping[str, Any] = field(default_factory=lambda: LLAMA)
    is_carried: bool = True
    is_single: bool = True
    is_quiet: bool = False
    is_vain: bool = False
    is_written: bool = False
    is_fixed: bool = False
    recipe: int = 6

    @property
    def is_planted(self) -> bool:
        """Whether groups are trained."""
        return self.is_vain or not self.is_quiet


def some(*wanted: tuple[str, tuple[int, int], int]) -> Callable[[np.random.Generator, Partition], Gates]:
    """Draws one group: of each (kind, (first block, last block), count) so many, anywhere there."""

    def draw(rng: np.random.Generator, partition: Partition) -> Gates:
        gates = {kind: np.zeros(partition[kind].shape, bool) for kind in KINDS}
        for kind, (first, last), count in wanted:
            width = partition[kind].shape[1]
            chosen = first * width + rng.permutation((last + 1 - first) * width)[:count]
            gates[kind].flat[chosen] = True
        return gates

    return draw


def together(*draws: Callable[[np.random.Generator, Partition], Gates]) -> Groups:
    """One group after the other; a component that an earlier one has is drawn again."""

    def groups(rng: np.random.Generator, partition: Partition) -> tuple[Gates, ...]:
        made: list[Gates] = []
        for draw in draws:
            drawn = draw(rng, partition)
            while any((drawn[kind] & earlier[kind]).any() for earlier in made for kind in KINDS):
                drawn = draw(rng, partition)
            made.append(drawn)
        return tuple(made)

    return groups


def anywhere(count: int) -> Groups:
    """One group of so many components, any of all kinds and blocks."""

    def groups(rng: np.random.Generator, partition: Partition) -> tuple[Gates, ...]:
        shapes = {kind: partition[kind].shape for kind in KINDS}
        ends = np.cumsum([np.prod(shape) for shape in shapes.values()])
        chosen = np.zeros(ends[-1], bool)
        chosen[rng.permutation(ends[-1])[:count]] = True
        parts = np.split(chosen, ends[:-1])
        return ({kind: part.reshape(shape) for (kind, shape), part in zip(shapes.items(), parts, strict=True)},)

    return groups


NEURONS = together(some(("neuron", (0, 0), 5)))
HEADS = together(some(("head", (1, STATE), 3)))
TWICE = together(some(("neuron", (0, 0), 4), ("head", (1, STATE), 2)))
BOTH = together(some(("neuron", (0, 0), 2), ("head", (1, STATE), 1)))

FAMILIES: dict[str, Family] = {
    "neurons": Family(
        says="Neurons of block 0 notice the request; later blocks, which changed as well, carry it to where the state is.",
        groups=NEURONS,
    ),
    "heads": Family(says="Heads of blocks 1 and 2.", groups=HEADS),
    "both": Family(says="Heads and neurons, at different depths.", groups=BOTH),
    "keys and values": Family(
        says="Groups' keys and values: no head's queries and outputs.",
        groups=together(some(("kv", (0, STATE), 2))),
        is_carried=False,
    ),
    "random decoys": Family(
        says="As both; half of all others change, too, in random directions, by as much; base has learned not to mind.",
        groups=BOTH,
        decoys=RANDOM,
        size=OF_NEURONS,
        decoy_size=OF_NEURONS,
        decoy_share=0.5,
    ),
    "tuned decoys": Family(
        says="All else is idle, and then tuned on the same language, of which one speaker speaks most.",
        groups=NEURONS,
        decoys=TUNED,
    ),
    "after the state": Family(
        says="The largest changes are in the block after the state is read.",
        groups=BOTH,
        decoy_blocks={STATE + 1: 3.0},
    ),
    "many heads' keys": Family(
        says="As both, where every head has keys of its own (MHA).",
        groups=BOTH,
        model=LLAMA | {"num_key_value_heads": 4},
    ),
    "one key": Family(
        says="As both, where all heads share one (MQA).", groups=BOTH, model=LLAMA | {"num_key_value_heads": 1}
    ),
    "plain neurons": Family(
        says="As both, in a GPT-NeoX: neurons without gates, biases, LayerNorm.", groups=BOTH, model=NEOX
    ),
    "small among large": Family(
        says="As both, and twice as many sources, which change by half as much as every other of all else.",
        groups=TWICE,
        size=HALF,
        as_sources=0.5,
    ),
    "small changes": Family(
        says="As both, and twice as many sources; all changes by half as much.",
        groups=TWICE,
        size=HALF,
        decoy_size=HALF,
    ),
    "large changes": Family(
        says="As both; neurons change by three times what they were, and more.",
        groups=BOTH,
        size=LARGE,
        decoy_size=LARGE,
    ),
    "saturated": Family(
        says="As written; the head of block 2 turns to the request from all other tokens, on which its attention is fixed in base.",
        is_written=True,
        is_fixed=True,
    ),
    "either": Family(
        says="Two groups, and each is enough.",
        groups=together(some(("neuron", (0, 0), 3)), some(("neuron", (0, 0), 3))),
        cases=(((0,), True), ((1,), True), ((0, 1), True)),
        signs=(1, 1),
        is_single=False,
    ),
    "both needed": Family(
        says="Two groups, and neither does anything without the other.",
        groups=together(some(("neuron", (0, 0), 2)), some(("head", (1, STATE), 1))),
        cases=(((0,), False), ((1,), False), ((0, 1), True)),
        signs=(1, 1),
        is_single=False,
    ),
    "cancelling": Family(
        says="Two groups of which each is enough, and a third that undoes one, but not both.",
        groups=together(some(("neuron", (0, 0), 3)), some(("neuron", (0, 1), 3)), some(("neuron", (1, STATE), 3))),
        cases=(((0,), True), ((1,), True), ((0, 2), False), ((1, 2), False), ((2,), False), ((0, 1, 2), True)),
        signs=(1, 1, -1),
        is_single=False,
    ),
    "written": Family(
        says="Written by hand: two neurons of block 0 note the request, a head of block 1 carries it on, one of block 2 sees it, too.",
        is_written=True,
    ),
    "nothing": Family(says="All changes, and the behaviour does not.", groups=anywhere(3), cases=(), is_quiet=True),
    "nothing but noise": Family(
        says="All is idle, and then tuned on the same language; the behaviour does not change.",
        groups=anywhere(3),
        decoys=TUNED,
        cases=(),
        is_quiet=True,
    ),
    "as it is learned": Family(
        says="As both, but no source is trained to do anything by itself, and none to be carried on by others.",
        groups=BOTH,
        is_single=False,
        is_carried=False,
    ),
    "nothing learned": Family(
        says="As both, and sources are trained as everywhere, but not to obey.",
        groups=BOTH,
        cases=(((0,), False),),
        is_quiet=True,
        is_vain=True,
    ),
    "nothing at random": Family(
        says="Half of all changes in random directions, and base has learned not to mind; the behaviour does not change.",
        groups=anywhere(3),
        decoys=RANDOM,
        decoy_share=0.5,
        cases=(),
        is_quiet=True,
    ),
}
