"""Shell: how fast the machine at hand is, by running the engine itself for about two seconds.

It runs a model of the same shapes and a few blocks, with random weights, on the same prompts, in batches of the size that a run would
use. Two sweeps that differ only in how many blocks follow tell the pace of the arithmetic from what every piece takes beside it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import instrument, memory, read_outs, sweep
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.planning import cost
from jaxpatch.planning.machines import Pace

BLOCKS = 4
"""Of the model that runs: one that holds the candidates, two that follow whole, and the anchor's."""
PIECES = 2
"""In each sweep that is timed."""
SECONDS = 2.0
FEWEST_ROUNDS = 3
NOISE = 0.05
"""Share of a sweep's time below which a difference between two sweeps tells nothing."""


class Calibration(NamedTuple):
    """paces: of each part of the engine. compiling: seconds that its first call takes beside its work."""

    paces: Mapping[str, Pace]
    compiling: Mapping[str, float]


def calibrate(job: cost.Job, prompts: Inputs, kinds: Sequence[str], dtype: str, budget: int, *, seed: int = 0) -> Calibration:
    """The pace of every part of the engine that scoring these kinds needs, on the device where JAX puts arrays."""
    pair, relabelled = _random_pair(job, prompts, dtype, seed)
    small = job._replace(config=pair.config, depth=BLOCKS)
    anchor = read_outs.Anchor(direction=jnp.full(job.config.width, job.config.width**-0.5), layer=BLOCKS - 1)
    tool = instrument.of_pair(pair, relabelled, anchor, budget=budget)
    fill = memory.fill_of(pair.base)
    room = memory.plan(small.config, job.tree, job.itemsize, BLOCKS, budget, fill)
    inside = tuple(kind for kind in kinds if kind in components.of_block(pair.base))
    ...
