"""What a method costs, from the shapes alone: patches, floating-point operations, bytes.

A multiply-add counts as two operations. Norms, softmax, rotary turns and activations are not counted; with them XLA's own count of a
block is about one per cent higher. Counted is what the engine runs, not only what no engine could leave out (benchmarks/limit.py has
that): attention in whole tiles, and pieces that begin at their lowest layer. With M distinct token positions, B prompts, S pairs of a
query and a key in the tiles, and D, N, K, H, F as in `shapes`:

    block       4 M D H (N + K) + 4 S N H + 6 M D F (4 M D F without gates)
    top block   the same, but queries, outputs and MLP at the B last tokens alone
    head        12 M D H + 8 S H for what it writes, then the MLP of its own block and the blocks above
    neuron      8 M D, then the blocks above
    experts     6 D F for each state that one of them takes, empty places of its last tile among them, and 2 M D E to choose
    expert      12 M D F for what it writes, then the blocks above
    cheap       a block forward and back, its queries, keys, values and attention again, its attention's gradient, and what each kind
                adds (`_share`); on padded prompts
    slopes      a block twice forward and back, with the gradient of every weight that the kinds own
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxpatch.measuring import local, memory
from jaxpatch.measuring.memory import Room, candidate_bytes, states_bytes
from jaxpatch.models import decoder, experts
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.prefix_tree import PrefixTree
from jaxpatch.patching import components
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

HOST_RUNS = 2
"""Of the unpatched model before a sweep: for its states, and for its read-outs."""
NUM_SCALES = 3
"""Among which a screen chooses: its sample holds at least ``NUM_SCALES / alpha``."""
WHOLE_BLOCK_SHARE = 4
"""Block runs in the cheap score of a component that has no closed form: two ends, and a derivative at twice the cost of one."""
BLEND_PASSES = 8
"""Times that a gradient in the gates reads or writes the weights that they move."""


class Job(NamedTuple):
    """What is to be scored.

    tree: the prompts without repetition. tokens: T of the padded prompts. depth: blocks up to the anchor's, and with it.
    itemsize: bytes of a number.
    """

    config: DecoderConfig
    tree: PrefixTree
    tokens: int
    depth: int
    itemsize: int

    @property
    def num_nodes(self) -> int:
        """M: distinct token positions."""
        return self.tree.tokens.shape[0]

    @property
    def num_prompts(self) -> int:
        """B."""
        return self.tree.last.shape[0]

    @property
    def parameter_bytes(self) -> int:
        """Of both models. Leaves in which they do not differ lie in memory once, so it is the most they can take."""
        return 2 * _numbers(self.config) * self.itemsize


class Work(NamedTuple):
    """flops: operations. moved: bytes of weights that must come to the processor. pieces: programs started."""

    flops: float
    moved: float
    pieces: int


CHEAP, SLOPES = "cheap", "slopes"
Bill = Mapping[str, Work]
"""Part of the engine -> what it does. Parts: each of `local.KINDS` (its exact sweep), CHEAP, and SLOPES (the plain model)."""


class Held(NamedTuple):
    """Bytes held beside the parameters. states: the host's. batch: one batch of candidates. cheap: one backward pass with its shares,
    of all prompts or of as many as the budget allows; it and a sweep follow one another."""

    states: int
    batch: int
    cheap: int


@functools.cache
def partition_of(config: DecoderConfig) -> components.Partition:
    """The kinds of component of a model of these shapes."""
    return components.of_decoder(abstract(config))


@functools.cache
def abstract(config: DecoderConfig) -> Params:
    """The shapes of one model's parameters, without the numbers."""
    return jax.eval_shape(functools.partial(decoder.init, config), jax.random.key(0))


def _numbers(config: DecoderConfig, under: str = "") -> int:
    """Of one model's parameters whose path begins so."""
    leaves = paths.flatten(abstract(config)).items()
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path.startswith(under))


def candidates(job: Job, kinds: Sequence[str]) -> dict[str, int]:
    """Components of each kind that can reach the anchor.

    Outside of the blocks only the embedding can.
    """
    shapes = {kind: partition_of(job.config)[kind].shape for kind in kinds}
    return {
        k: job.depth * math.prod(s[1:]) if k in local.KINDS else int(k in ("embed", "positions"))
        for k, s in shapes.items()
    }


def held(job: Job, room: Room, budget: int) -> Held:
    """What `room` comes to in bytes."""
    shapes = job.config, job.tokens, job.itemsize, job.depth
    extra = max(0, budget - memory.cheap_bytes(*shapes, 1)) // memory.prompt_bytes(*shapes)
    return Held(
        states=(room.blocks + 1) * states_bytes(job.config, job.tree, job.itemsize),
        batch=room.candidates * candidate_bytes(job.config, job.tree, job.itemsize),
        cheap=memory.cheap_bytes(*shapes, min(job.num_prompts, 1 + extra)),
    )


def bills(
    job: Job, kinds: Sequence[str], room: Room, *, top: int, alpha: float, sample: int, steps: int
) -> dict[str, Bill]:
    """Method -> what it costs to score these kinds together.

    Of `screened` it is the least, which is an assumption: its sample and the best `top` are replaced, spread evenly over the layers,
    and nothing more must be.
    """
    inside = [kind for kind in kinds if kind in local.KINDS]
    outside = [kind for kind in kinds if kind not in inside]
    linear = {CHEAP: cheap(job, inside)} if inside else {}
    linear |= {SLOPES: slopes(job, outside, job.num_prompts)} if outside else {}
    counts = candidates(job, kinds)

    def sweeps(most: float) -> Bill:
        swept = {kind: exact(job, kind, spread(int(min(counts[kind], most)), job.depth), room) for kind in inside}
        whole = {SLOPES: patched_runs(job, sum(counts[kind] for kind in outside))} if outside else {}
        return swept | whole

    return {
        "exact": sweeps(math.inf),
        "screened": _together(linear, sweeps(smallest_sample(alpha, sample) + top)),
        "local_linear": linear,
        "first_order": linear,
        "integrated": {SLOPES: slopes(job, kinds, steps * job.num_prompts)},
    }


def smallest_sample(alpha: float, sample: int) -> int:
    """Candidates of a kind that a screen draws at random, if the cheap score is good."""
    return max(sample, math.ceil(NUM_SCALES / alpha))


def _together(one: Bill, two: Bill) -> Bill:
    both = {part: [bill[part] for bill in (one, two) if part in bill] for part in {**one, **two}}
    return {part: Work(*map(sum, zip(*works, strict=True))) for part, works in both.items()}


def spread(count: int, depth: int) -> np.ndarray:
    """Layers of `count` candidates that lie evenly in all of them: [count].

    >>> spread(5, 3).tolist()
    [0, 0, 1, 1, 2]
    """
    return np.arange(count) * depth // max(1, count)


def exact(job: Job, kind: str, layers: np.ndarray, room: Room) -> Work:
    """One sweep over candidates of these layers [n], sorted: pieces of equal size, each begun at its lowest layer."""
    size = memory.piece_size(layers, room.candidates)
    lowest = layers[::size]
    host = HOST_RUNS * job.depth
    return Work(
        flops=size * float(candidate_flops(job, kind)[lowest].sum()) + host * _block_flops(job),
        moved=float((job.depth - lowest).sum() + host) * _block_bytes(job),
        pieces=len(lowest),
    )


def candidate_flops(job: Job, kind: str) -> np.ndarray:
    """Operations of one patch in each block up to the anchor: [depth]. At the anchor's block they go on at the last tokens alone."""
    is_below = np.arange(job.depth) < job.depth - 1
    between = np.maximum(job.depth - 2 - np.arange(job.depth), 0)
    has_mlp = local.local_of(job.config, kind).is_mid and not job.config.parallel
    own_mlp = mlp_flops(job.config, job.num_nodes) if has_mlp else 0
    top = block_flops(job.config, job.num_prompts, job.num_nodes, job.tree.ends.mask.size)
    return (_written(job, kind) + own_mlp * is_below + between * _block_flops(job) + top).astype(float)


def _written(job: Job, kind: str) -> int:
    """Operations for what a component writes, by both models' weights; a kind without a closed form runs its block."""
    config, looks = job.config, job.tree.inside.mask.size
    vectors, group = 2 * job.num_nodes * config.width * config.head_width, config.heads // config.kv_heads
    if not local.is_closed(config, kind):
        return _block_flops(job)
    if kind == "head":
        return 6 * vectors + 8 * looks * config.head_width
    if kind == "kv":
        return (4 + 2 * group) * vectors + 8 * looks * group * config.head_width
    neurons = config.neurons * config.mlp_matrices if kind == "expert" else config.mlp_matrices - 1
    return 4 * neurons * job.num_nodes * config.width + _choosing_flops(config, job.num_nodes)


def _block_flops(job: Job) -> int:
    """Of one block on all distinct token positions."""
    return block_flops(job.config, job.num_nodes, job.num_nodes, job.tree.inside.mask.size)


def _block_bytes(job: Job) -> float:
    """Of one block's weights."""
    return _numbers(job.config, "layers/") * job.itemsize / job.config.layers


def block_flops(config: DecoderConfig, queries: int, keys: int, looks: int) -> int:
    """Operations of one block.

    Args: queries: positions whose state is computed. keys: positions they look at. looks: pairs of the two that are multiplied.

    >>> from jaxpatch import testing
    >>> block_flops(testing.tiny_config(), 1, 1, 1) - mlp_flops(testing.tiny_config(), 1)
    1600
    """
    inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
    projections = 4 * config.width * (queries * inner + keys * inner_kv)
    return projections + 4 * looks * inner + mlp_flops(config, queries)


def mlp_flops(config: DecoderConfig, tokens: int) -> int:
    """Of gate, up and down, or up and down alone; of experts, those chosen (spread evenly) and of choosing them."""
    rows, each = tokens, 2 * config.mlp_matrices * config.width * config.neurons
    if config.experts:
        rows = _rows_in_tiles(tokens * config.chosen, config.experts)
    return rows * each + _choosing_flops(config, tokens)


def _rows_in_tiles(number: int, num_experts: int) -> int:
    """The last tile of an expert is half empty; the only one is there as a whole."""
    size, used = experts.tile_size(number, num_experts), min(num_experts, number)
    return max(used * size, number + used * size // 2)


def _choosing_flops(config: DecoderConfig, tokens: int) -> int:
    return 2 * tokens * config.width * config.experts


def cheap(job: Job, kinds: Sequence[str]) -> Work:
    """Both linearisations of kinds inside of blocks, from one forward and one backward pass."""
    forward, attention = _padded(job, job.num_prompts)
    heads = job.config.heads + 2 * job.config.kv_heads
    again = 2 * job.num_prompts * job.tokens * job.config.width * job.config.head_width * heads + attention
    again += mlp_flops(job.config, job.num_prompts * job.tokens) if job.config.experts else 0
    each = 2 * forward + attention + again + sum(_share(job, kind) for kind in kinds)
    return Work(job.depth * each, 3 * job.depth * _block_bytes(job), 1)


def _padded(job: Job, num_prompts: int) -> tuple[int, int]:
    """Operations of one block on padded prompts, and of its attention alone."""
    tokens = num_prompts * job.tokens
    looks = tokens * job.tokens
    return block_flops(job.config, tokens, tokens, looks), 4 * looks * job.config.heads * job.config.head_width


def _share(job: Job, kind: str) -> int:
    """What one kind adds to a block: the donor's vectors, and the gradient through the donor's matrices."""
    config, (forward, attention) = job.config, _padded(job, job.num_prompts)
    tokens = job.num_prompts * job.tokens
    inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
    if local.is_closed(config, kind):
        if kind in ("neuron", "expert"):
            return mlp_flops(config, tokens) * (2 if config.experts else 1)
        return 4 * tokens * config.width * (inner if kind == "head" else inner_kv) + attention
    return WHOLE_BLOCK_SHARE * math.prod(partition_of(config)[kind].shape[1:]) * forward


def slopes(job: Job, kinds: Sequence[str], num_gradients: int) -> Work:
    """Gradients in the gates through the plain patched model, one prompt each."""
    forward, attention = _padded(job, 1)
    owned = _owned(job, kinds)
    flops = job.depth * (3 * forward + attention) + 2 * job.tokens * owned
    moved = 4 * job.depth * _block_bytes(job) + BLEND_PASSES * owned * job.itemsize
    return Work(num_gradients * flops, num_gradients * moved, num_gradients)


def patched_runs(job: Job, number: int) -> Work:
    """The definition, for components outside of the blocks: the plain patched model on all prompts."""
    forward, _ = _padded(job, job.num_prompts)
    return Work(number * job.depth * forward, number * job.depth * _block_bytes(job), number)


def _owned(job: Job, kinds: Sequence[str]) -> int:
    """Numbers up to the anchor that gates of these kinds move."""
    leaves = {slot.leaf for kind in kinds for slot in partition_of(job.config)[kind].slots}
    inside = sum(_numbers(job.config, leaf) for leaf in leaves if leaf.startswith("layers/"))
    outside = sum(_numbers(job.config, leaf) for leaf in leaves if not leaf.startswith("layers/"))
    return inside * job.depth // job.config.layers + outside
