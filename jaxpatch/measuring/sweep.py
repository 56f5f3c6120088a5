"""The only batching: many candidates through the engine in bounded pieces, one compilation a kind.

Candidates are sorted by layer and cut into full pieces; a piece that spans layers starts at its lowest. Numbers stay on the device: the
host only sends pieces ahead, and fetches a span of them at a time.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpatch.measuring import attribution, devices, downstream, local, local_crossed, memory, read_outs, slopes
from jaxpatch.measuring.downstream import Models, Trace
from jaxpatch.measuring.local_crossed import Runs
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import components
from jaxpatch.patching import exchange as exchanges
from jaxpatch.patching.exchange import Exchange

Progress = Callable[[int, int], None]
"""Called with (done, total) after each piece."""

SPAN = 16
"""Pieces between two fetches."""
AHEAD = 2
"""Pieces sent to the device before an earlier one is waited for."""

_embedded = jax.jit(downstream.embedded, static_argnums=0)
_trace = jax.jit(downstream.trace, static_argnums=(0, 4))
_host_reads = jax.jit(downstream.host_reads, static_argnums=0)
_cheap = jax.jit(slopes.cheap, static_argnums=(0, 1))
_attributed = jax.jit(attribution.effects, static_argnums=(0, 1, 2, 3))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 9, 11), donate_argnums=(5,))
def _piece(config, kind, exchange, models, states, out, layers, indices, start, size, unreached, mesh):
    """Effects of candidates start, ..., start + size - 1, written into `out`; and a token to wait for."""
    layer, index = (jax.lax.dynamic_slice_in_dim(part, start, size) for part in (layers, indices))
    if mesh is not None:
        cut = devices.along_candidates(mesh)
        layer, index = (jax.lax.with_sharding_constraint(part, cut) for part in (layer, index))
    at = layer, index, unreached, devices.width(mesh)
    if exchange is None:
        found = local.effects(config, kind, models, states, *at)
    else:
        found = local_crossed.effects(config, kind, exchange, models, states, *at)
    out = jax.lax.dynamic_update_slice_in_dim(out, found, start, 0)
    token = found[0, 0, 0]
    if mesh is not None:
        out, token = (jax.lax.with_sharding_constraint(part, devices.everywhere(mesh)) for part in (out, token))
    return out, token


def silent(done: int, total: int) -> None:
    """The progress that shows nothing."""
    del done, total


def part(progress: Progress, number: int, parts: int) -> Progress:
    """The progress of one of several equal parts.

    >>> part(lambda done, total: print(done, "of", total), 1, 3)(2, 4)
    6 of 12
    """
    return lambda done, total: progress(number * total + done, parts * total)


class Swept(NamedTuple):
    """How far one sweep is. effects: [n, R, B], in the order in which it goes; the first `done` are there. size: of its pieces."""

    effects: np.ndarray
    done: int
    size: int


@runtime_checkable
class Journal(Protocol):
    """Remembers what sweeps have done. `resume.Journal` keeps it on disk."""

    def begin(self, identity: Mapping[str, str]) -> Mapping[str, str]:
        """Called before the first sweep with all that the numbers depend on. Returns it with the budget to go by."""
        ...

    def recall(self, kind: str, num_candidates: int) -> Swept | None:
        """What an earlier process did of the sweep that begins now."""
        ...

    def note(self, kind: str, swept: Swept) -> None:
        """How far this sweep is; called whenever numbers have come from the device."""
        ...


class _Forgetful:
    """The journal of those who keep none."""

    def begin(self, identity: Mapping[str, str]) -> Mapping[str, str]:
        return identity

    def recall(self, kind: str, num_candidates: int) -> None:
        del kind, num_candidates

    def note(self, kind: str, swept: Swept) -> None:
        del kind, swept


FORGETFUL: Journal = _Forgetful()


def exact(
    config: DecoderConfig,
    kind: str,
    models: Models,
    indices: np.ndarray,
    *,
    exchange: Exchange | None = None,
    budget: int | None = None,
    mesh: Mesh | None = None,
    journal: Journal = FORGETFUL,
    progress: Progress = silent,
) -> np.ndarray:
    """Effects of single-component patches, ``F(patched) - F(host)``.

    Args:
        kind: one of `local.KINDS`; where activations are exchanged, of `exchange.of_decoder`.
        indices: int [n, dims], rows (layer,), (layer, index) or (layer, expert, index), no layer above what the read-outs need.
        exchange: which of the donor's activations are put in, and not its weights.
        budget: bytes that the sweep may hold beside the two models, on each device; half of what is free where None.
        mesh: devices to share the work; `models` must lie there (`devices.spread`).
        journal: where it is written down how far the sweep is. Gone on with from there, the numbers are the same to the last bit.

    Returns: float32 (float64 for float64 models) [n, R, B], in the order of `indices`.

    Raises: MemoryError where one candidate does not fit in the budget, or the device runs out with one.
    """
    depth = read_outs.depth(config, models.read_outs)
    budget = memory.default_budget(models.host) if budget is None else budget
    runs = 1 if exchange is None else 2
    itemsize, fill = memory.itemsize_of(models.host), memory.fill_of(models.host)
    room = memory.plan(config, models.tree, itemsize, depth, budget, fill, runs)
    order = np.argsort(indices[:, 0], kind="stable")
    layers = indices[order, 0]
    owned = components.of_decoder(models.host) if exchange is None else exchanges.of_decoder(models.host)
    inside = _counted_through(indices[order, 1:], owned[kind].shape[1:])
    unreached = _host_reads(config, models)
    size = devices.width(mesh) * memory.piece_size(layers[:: devices.width(mesh)], room.candidates)
    fresh = Swept(np.zeros((len(order), *unreached.shape), unreached.dtype), 0, size)
    effects, done, size = journal.recall(kind, len(order)) or fresh
    for states, which in _segments(config, models, room.blocks, depth, layers, is_crossed=exchange is not None):
        which = which[which >= done]
        while len(which):
            span, rest = np.split(which, [min(len(which), SPAN * size)])
            at = layers[span], inside[span]

            def step(pieces, before=done, size=size):
                progress(min(before + pieces * size, len(order)), len(order))

            try:
                effects[span] = _span(config, kind, exchange, models, states, *at, size, unreached, mesh, step)
            except jax.errors.JaxRuntimeError as error:
                size = _smaller(size, error, devices.width(mesh), "candidate")
                continue
            done, which = done + len(span), rest
            journal.note(kind, Swept(effects, done, size))
    out = np.empty_like(effects)
    out[order] = effects
    return out


def _counted_through(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Places in one layer [n, dims] as numbers [n].

    >>> _counted_through(np.array([[1, 2]]), (3, 10)), _counted_through(np.zeros((2, 0), int), ())
    (array([12]), array([0, 0]))
    """
    return np.asarray(np.ravel_multi_index(tuple(indices.T), shape)) if shape else np.zeros(len(indices), int)


def cheap(
    config: DecoderConfig,
    kinds: tuple[str, ...],
    models: Models,
    *,
    budget: int | None = None,
    progress: Progress = silent,
) -> dict[str, slopes.Cheap]:
    """Both linearisations of the effects of every component of some kinds, [R * B, A, n] each, A the blocks that are read.

    As many prompts at once as the budget allows; one backward pass for each such group and read-out.

    Raises: MemoryError where one prompt does not fit in the budget, or on the device.
    """
    return _some_prompts_at_once(functools.partial(_cheap, config, kinds), config, models, 1, budget, progress)


def attributed(
    config: DecoderConfig,
    kinds: tuple[str, ...],
    models: Models,
    exchange: Exchange,
    repairs: tuple[str, ...],
    *,
    budget: int | None = None,
    progress: Progress = silent,
) -> dict[str, np.ndarray]:
    """First-order effects of exchanged activations, [R * B, A, n] each; otherwise as `cheap`. repairs: of `attribution.REPAIRS`."""
    one_pass = functools.partial(_attributed, config, kinds, exchange, repairs)
    return _some_prompts_at_once(one_pass, config, models, 2, budget, progress)


def _some_prompts_at_once(
    one_pass: Callable[[Models], Any],
    config: DecoderConfig,
    models: Models,
    runs: int,
    budget: int | None,
    progress: Progress,
) -> Any:
    """A pass that gives arrays [A, B, n] of some prompts and one read-out; of all of them [R * B, A, n]. runs: that it keeps."""
    depth = read_outs.depth(config, models.read_outs)
    budget = memory.default_budget(models.host) if budget is None else budget
    batch, tokens = models.inputs.tokens.shape
    most = memory.cheap_prompts(config, tokens, memory.itemsize_of(models.host), depth, budget, runs)
    size, total = memory.even(batch, most), batch * len(models.read_outs)
    found = []
    for read_out in models.read_outs:
        parts, start = [], 0
        while start < batch:
            rows = np.minimum(np.arange(start, start + size), batch - 1)
            some = models._replace(inputs=models.inputs.rows(rows), read_outs=(read_out.rows(rows),))
            try:
                parts.append(jax.tree.map(np.asarray, one_pass(some)))
            except jax.errors.JaxRuntimeError as error:
                size = _smaller(size, error, 1, "prompt")
                continue
            start += size
            progress(len(found) * batch + min(start, batch), total)
        found.append(jax.tree.map(lambda *cut: np.concatenate(cut, axis=1)[:, :batch], *parts))
    return jax.tree.map(lambda *every: np.concatenate([_all_blocks(one, depth) for one in every]), *found)


def _all_blocks(effects: np.ndarray, depth: int) -> np.ndarray:
    """Effects [A, B, n] of the blocks that one read-out needs, as [B, depth, n]."""
    missing = depth - effects.shape[0]
    return np.pad(np.moveaxis(effects, 0, 1), ((0, 0), (0, missing), (0, 0)))


def _segments(
    config: DecoderConfig, models: Models, length: int, depth: int, layers: np.ndarray, *, is_crossed: bool
) -> Iterator[tuple[Trace | Runs, np.ndarray]]:
    """Runs of `length` blocks with the host's states in them, and the donor's where activations are exchanged, from the first block
    on, and which candidates (of sorted layers) lie there. Blocks of the last run that lie beyond `depth` hold no candidate and are
    never read."""
    sides = (models, local_crossed.turned_round(models)) if is_crossed else (models,)
    streams = [_embedded(config, side.host, side.tree) for side in sides]
    for first in range(0, depth, length):
        traces = [_trace(config, side, x, np.int32(first), length) for side, x in zip(sides, streams, strict=True)]
        streams = [states.entering[-1] for states in traces]
        which = np.flatnonzero((layers >= first) & (layers < first + length))
        if len(which):
            yield Runs(*traces) if is_crossed else traces[0], which


def _span(config, kind, exchange, models, states, layers, indices, size, unreached, mesh, step) -> np.ndarray:
    """Effects of some candidates, piece by piece on the device and then fetched."""
    pieces, room = -(-len(layers) // size), SPAN * size
    padded = [np.pad(part, (0, room - len(part)), "edge").astype(np.int32) for part in (layers, indices)]
    out = np.zeros((room, *unreached.shape), unreached.dtype)
    where = None if mesh is None else devices.everywhere(mesh)
    out, *padded = (jax.device_put(part, where) for part in (out, *padded))
    sent = []
    for piece in range(pieces):
        start = np.int32(piece * size)
        out, token = _piece(config, kind, exchange, models, states, out, *padded, start, size, unreached, mesh)
        sent.append(token)
        if piece >= AHEAD:
            sent[piece - AHEAD].block_until_ready()
            step(piece - AHEAD + 1)
    fetched = np.asarray(out)[: len(layers)]
    step(pieces)
    return fetched


def _smaller(size: int, error: Exception, fewest: int, what: str) -> int:
    """Half as many at once. Raises where that is no remedy."""
    if "RESOURCE_EXHAUSTED" not in str(error):
        raise error
    if jax.process_count() > 1:
        raise MemoryError(
            f"a device ran out of memory with {size} {what}s at once, and the other processes cannot know; start again with less "
            "memory= (--memory)."
        ) from error
    if size <= fewest:
        raise MemoryError(
            f"the device runs out of memory with a single {what}; use fewer or shorter prompts, a narrower dtype, or a device with "
            "more memory."
        ) from error
    smaller = max(fewest, size // 2 // fewest * fewest)
    warnings.warn(f"the device ran out of memory with {size} {what}s at once; going on with {smaller}.", stacklevel=3)
    return smaller
