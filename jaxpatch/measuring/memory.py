"""How many candidates run together: enough to fill the machine, and no more than the memory holds.

The estimate counts the arrays of the widest moment of a block. XLA reuses buffers, so it is an upper one; the tests hold it to what XLA
itself says of the compiled program.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.prefix_tree import PrefixTree
from jaxpatch.shapes import Params

FILL_CPU = 1536
"""Nodes that fill the matrix units of a few CPU cores; more of them leave the caches and run slower."""
FILL_ACCELERATOR = 16384
"""Of an H200: four times as many run 1 % faster, and cost kinds with few members a layer a quarter, since their pieces span layers."""
SHARE = 0.5
"""Of the memory that is free, what a sweep takes where no budget is given."""
ENOUGH = 4
"""Candidates for which states of more blocks give way."""
NARROW_PARTS = 3
"""Products of narrow numbers that make one of wide ones (`layers.in_full`)."""
IN_FLIGHT = 2
"""Pieces whose arrays exist at once: one that runs and one that is ready."""
WEIGHT_COPIES = 2
"""Of one block's matrices, that a running piece has cut out of the stack."""
LOGITS = 6
"""Arrays as long as the vocabulary, of a prompt that is read at its next token."""
COPIES = 5
"""Of one block's matrices, where both models' are widened, blended or multiplied by in turn: in the cheap scores and the definition."""
SMALLEST_BUDGET = 256 * 2**20


class Room(NamedTuple):
    """What a sweep may hold at once. candidates: in one batch. blocks: of which the host's states are kept; the sweep goes up through
    the model in runs of so many, each beginning where the one before it ended."""

    candidates: int
    blocks: int


def plan(
    config: DecoderConfig, tree: PrefixTree, itemsize: int, depth: int, budget: int, fill: int, runs: int = 1
) -> Room:
    """Room within a budget of bytes, beside the two models' parameters.

    Args: depth: blocks that the read-outs need. fill: nodes that fill the machine. runs: models whose states are kept.

    Raises: MemoryError where one candidate does not fit, saying what would.
    """
    num_nodes = tree.tokens.shape[0]
    each, block = IN_FLIGHT * candidate_bytes(config, tree, itemsize), runs * states_bytes(config, tree, itemsize)
    beside = each if itemsize < stream_itemsize(itemsize) else 0  # the host, as a candidate more
    fixed = IN_FLIGHT * WEIGHT_COPIES * block_bytes(config, itemsize) + beside
    least = fixed + each + 2 * block
    if least > budget:
        raise _too_little(
            f"a sweep over {num_nodes} distinct token positions", least, budget, "use fewer or shorter prompts"
        )
    most, left = max(1, fill // num_nodes), budget - fixed
    blocks = max(1, min(depth, (left - min(most, ENOUGH) * each) // block - 1))
    return Room(candidates=max(1, min(most, (left - (blocks + 1) * block) // each)), blocks=blocks)


def piece_size(layers: np.ndarray, most: int) -> int:
    """Candidates in one piece of a sweep over these layers [n], sorted: `most`.

    Where whole layers are swept and one of them nearly makes a piece, it is one: a piece that spans layers starts at its lowest. Where
    there are fewer candidates in all, the next power of two, so that few sizes are ever compiled.

    >>> piece_size(np.repeat(np.arange(4), 9), 6), piece_size(np.repeat(np.arange(4), 9), 12), piece_size(np.arange(3), 6)
    (6, 9, 4)
    """
    if len(layers) <= most:
        return min(most, 1 << (len(layers) - 1).bit_length())
    counts = np.unique(layers, return_counts=True)[1]
    largest = int(counts.max())
    return largest if counts.min() == largest and most < 2 * largest <= 2 * most else most


def candidate_bytes(config: DecoderConfig, tree: PrefixTree, itemsize: int) -> int:
    """Bytes of one candidate's arrays at the widest moment: attention, an MLP, or the logits of a next-token read-out.

    In a narrow model they are there twice: wide, and rounded for the matrices.
    """
    num_nodes, tiles = tree.tokens.shape[0], tree.inside
    wide = stream_itemsize(itemsize)
    both = wide if itemsize == wide else wide + itemsize
    stream = (5 if config.post_norm else 4) * num_nodes * config.width * wide
    queries, keys = (math.prod(part.shape) * config.head_width * both for part in (tiles.queries, tiles.keys))
    weights = math.prod(tiles.mask.shape) * config.heads * (wide + wide)
    attention = 2 * (config.heads * queries + 2 * config.kv_heads * keys) + weights + num_nodes * config.width * wide
    inner = _routing(config) * wide if config.experts else 2 * config.neurons * both
    mlp = num_nodes * (inner + config.width * wide)
    logits = tree.last.shape[0] * config.vocab * wide * (1 if itemsize == wide else 1 + NARROW_PARTS)
    return stream + max(attention, mlp, logits)


def states_bytes(config: DecoderConfig, tree: PrefixTree, itemsize: int) -> int:
    """Bytes of one block's cached states: two of the stream, and two more where norms follow."""
    return (4 if config.post_norm else 2) * tree.tokens.shape[0] * config.width * stream_itemsize(itemsize)


def stream_itemsize(itemsize: int) -> int:
    """Bytes of one number of the stream, in a model of numbers of so many."""
    return max(itemsize, 4)


def block_bytes(config: DecoderConfig, itemsize: int) -> int:
    """Bytes of one block's matrices."""
    attention = 2 * config.width * config.head_width * (config.heads + config.kv_heads)
    router, number = config.width * config.experts, max(1, config.experts)
    return (attention + router + number * config.mlp_matrices * config.width * config.neurons) * itemsize


def _routing(config: DecoderConfig) -> int:
    """Numbers for each token position while it is sent to experts: their shares, its places among them, and the state itself. What
    they make of it is there a tile at a time."""
    return 5 * config.experts + 12 * config.chosen + config.width


def cheap_bytes(config: DecoderConfig, tokens: int, itemsize: int, depth: int, prompts: int, runs: int = 1) -> int:
    """Bytes that the backward pass of the cheap scores holds for so many prompts together. runs: models whose run is kept."""
    return COPIES * block_bytes(config, stream_itemsize(itemsize)) + prompts * prompt_bytes(
        config, tokens, itemsize, depth, runs
    )


def cheap_prompts(config: DecoderConfig, tokens: int, itemsize: int, depth: int, budget: int, runs: int = 1) -> int:
    """Prompts that this pass may take together.

    Raises: MemoryError where one does not fit in the budget.
    """
    least = cheap_bytes(config, tokens, itemsize, depth, 1, runs)
    if least > budget:
        raise _too_little(f"a backward pass of one prompt of {tokens} tokens", least, budget, "use shorter prompts")
    return 1 + int((budget - least) // prompt_bytes(config, tokens, itemsize, depth, runs))


def prompt_bytes(config: DecoderConfig, tokens: int, itemsize: int, depth: int, runs: int = 1) -> int:
    """Bytes that this pass with all its shares holds for one prompt: the run through all blocks, and what one of them needs."""
    inner = config.heads * config.head_width
    run = tokens * (2 * config.width + inner + (0 if config.experts else 2 * config.neurons))
    block = tokens * (12 * config.width + 10 * config.active_neurons + 10 * inner + 6 * config.heads * tokens)
    experts = (
        tokens * (3 * config.chosen * config.width + _routing(config)) + 2 * depth * config.experts * config.neurons
    )
    more = experts if config.experts else 0
    return (runs * depth * run + block + more + LOGITS * config.vocab) * stream_itemsize(itemsize)


def prompts_at_once(config: DecoderConfig, tokens: int, itemsize: int, budget: int) -> int:
    """Prompts that the definition may run together, beside a few copies of one block's matrices.

    Raises: MemoryError where one does not fit in the budget.
    """
    wide, inner = stream_itemsize(itemsize), config.heads * config.head_width
    mlp = _routing(config) if config.experts else 4 * config.neurons
    states = tokens * (8 * config.width + mlp + 4 * inner + 4 * config.heads * tokens)
    each, fixed = (states + LOGITS * config.vocab) * wide, COPIES * block_bytes(config, wide)
    if fixed + each > budget:
        raise _too_little(f"a run of one prompt of {tokens} tokens", fixed + each, budget, "use shorter prompts")
    return (budget - fixed) // each


def _too_little(what: str, least: int, budget: int, else_do: str) -> MemoryError:
    needed, given = (f"{each / 2**20:,.1f} MiB" if each >= 2**20 else f"{each:,} bytes" for each in (least, budget))
    return MemoryError(
        f"{what} needs {needed} beside the models; the budget is {given}. Give more memory (memory=, --memory), or {else_do}."
    )


def even(number: int, most: int) -> int:
    """Size of groups, none above `most`, that leaves the last one as full as the others.

    >>> even(10, 4), even(3, 4)
    (4, 3)
    """
    return -(-number // -(-number // min(number, most)))


def free_bytes(params: Params) -> int:
    """Memory that is free where these parameters lie."""
    device = next(iter(jax.tree.leaves(params)[0].devices()))
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return _free_host_bytes()


def _free_host_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available


def default_budget(params: Params) -> int:
    """Half of what is free."""
    return max(SMALLEST_BUDGET, int(SHARE * free_bytes(params)))


def fill_of(params: Params) -> int:
    """Nodes that fill the device on which these parameters lie."""
    return FILL_CPU if next(iter(jax.tree.leaves(params)[0].devices())).platform == "cpu" else FILL_ACCELERATOR


def itemsize_of(params: Params) -> int:
    """Bytes of one number of the weights."""
    return np.dtype(params["embed"]["kernel"].dtype).itemsize
