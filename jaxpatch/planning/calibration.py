"""Shell: how fast the machine at hand is, by running the engine itself for some seconds.

What runs is a model of the same shapes with a few blocks and random weights, on the same prompts, in batches of the size that a run
would use. Two sweeps that differ only in how many blocks follow tell the pace of the arithmetic from what every piece takes beside it.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import instrument, local, memory, read_outs, sweep
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models.checkpoints import Pair
from jaxpatch.planning import cost
from jaxpatch.planning.machines import Pace
from jaxpatch.trees import paths

BLOCKS = 4
"""Up to the anchor of the model that runs: the candidates' own, two that follow whole, and the anchor's."""
PIECES = 1
"""In each sweep."""
SECONDS = 2.0
FEWEST_ROUNDS = 3
NOISE = 0.05
"""Share of a sweep's time below which a difference of two sweeps says nothing."""
STD = 0.02


class Calibration(NamedTuple):
    """paces: of each part of the engine (`cost.Bill`). compiling: seconds that its first call takes beside its work."""

    paces: Mapping[str, Pace]
    compiling: Mapping[str, float]


class _Probe(NamedTuple):
    """Something to be timed, and what it does."""

    run: Callable[[], Any]
    work: cost.Work


def calibrate(
    job: cost.Job, prompts: Inputs, kinds: Sequence[str], dtype: str, budget: int, *, seed: int = 0
) -> Calibration:
    """The pace of every part of the engine that scoring these kinds may need, on the device where JAX puts arrays."""
    pair, relabelled = _random_pair(job, prompts, dtype, seed)
    job = job._replace(config=pair.config, depth=BLOCKS)
    room = memory.plan(job.config, job.tree, job.itemsize, BLOCKS, budget, memory.fill_of(pair.base))
    anchor = read_outs.Anchor(direction=jnp.eye(job.config.width)[0], layer=BLOCKS - 1)
    tool = instrument.of_pair(pair, relabelled, anchor, budget=budget)
    inside = tuple(kind for kind in kinds if kind in local.KINDS)
    half = {kind: jnp.full(cost.partition_of(job.config)[kind].shape, 0.5) for kind in kinds}
    ends = {(kind, layer): _sweep(job, tool, kind, layer, room) for kind in inside for layer in (0, BLOCKS - 1)}
    others = {
        cost.SLOPES: _Probe(lambda: instrument.gate_slopes(tool.effect, half, 1), cost.slopes(job, kinds, 1)),
        cost.CHEAP: _Probe(lambda: tool.cheap(inside, sweep.silent), cost.cheap(job, inside)),
    }
    if not inside:
        del others[cost.CHEAP]
    firsts, seconds = _timed({**ends, **others})
    paces = {part: Pace(probe.work.flops / seconds[part]) for part, probe in others.items()}
    for kind in inside:
        long, short = (kind, 0), (kind, BLOCKS - 1)
        paces[kind] = _pace(ends[long].work, ends[short].work, seconds[long], seconds[short])
    parts = {part: part for part in others} | {kind: (kind, 0) for kind in inside}
    return Calibration(paces, {name: max(0.0, firsts[key] - seconds[key]) for name, key in parts.items()})


def _sweep(job: cost.Job, tool: instrument.Instrument, kind: str, layer: int, room: memory.Room) -> _Probe:
    """Full pieces of candidates that all lie in one block."""
    layers = np.full(PIECES * room.candidates, layer)
    members = tool.partition[kind].shape[1:]
    inside = [np.arange(len(layers)) % number for number in members]
    indices = np.stack([layers, *inside], axis=1)
    return _Probe(lambda: tool.exact(kind, indices, sweep.silent), cost.exact(job, kind, layers, room))


def _timed(probes: Mapping[Any, _Probe]) -> tuple[dict[Any, float], dict[Any, float]]:
    """Seconds of each probe's first call, and of the median one of those that follow, all taking turns."""

    def clocked(probe: _Probe) -> float:
        began = time.perf_counter()
        jax.block_until_ready(probe.run())
        return time.perf_counter() - began

    firsts = {name: clocked(probe) for name, probe in probes.items()}
    rounds: list[dict[Any, float]] = []
    while len(rounds) < FEWEST_ROUNDS or sum(sum(each.values()) for each in rounds) < SECONDS:
        rounds.append({name: clocked(probe) for name, probe in probes.items()})
    return firsts, {name: float(np.median([each[name] for each in rounds])) for name in probes}


def _pace(long: cost.Work, short: cost.Work, long_seconds: float, short_seconds: float) -> Pace:
    """What explains two sweeps of equally many pieces: so many operations a second, and so much beside them for each piece."""
    gained = max(long_seconds - short_seconds, NOISE * long_seconds)
    flops = (long.flops - short.flops) / gained
    return Pace(flops, piece=max(0.0, short_seconds - short.flops / flops) / short.pieces)


def _random_pair(job: cost.Job, prompts: Inputs, dtype: str, seed: int) -> tuple[Pair, Inputs]:
    """A few blocks of the shapes and one above the anchor, with no more of a vocabulary than the prompts use."""
    ids, tokens = np.unique(np.asarray(prompts.tokens), return_inverse=True)
    turns = job.config.local and tuple(job.config.local[number % job.config.layers] for number in range(BLOCKS + 1))
    config = dataclasses.replace(job.config, layers=BLOCKS + 1, local=turns, vocab=len(ids))
    noise = STD * np.random.default_rng(seed).standard_normal(2**16).astype(np.float32)

    def drawn(change: float) -> Any:
        leaves = paths.flatten(cost.abstract(config)).items()
        return paths.unflatten(
            {path: jnp.asarray(change * np.resize(noise, leaf.shape), dtype) for path, leaf in leaves}
        )

    relabelled = Inputs(jnp.asarray(tokens.reshape(prompts.tokens.shape), jnp.int32), prompts.lengths)
    return Pair(base=drawn(1.0), special=drawn(1.01), config=config), relabelled
