"""Instruments whose every number can be worked on paper."""

import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import instrument
from jaxpatch.measuring.slopes import Cheap
from jaxpatch.patching.components import Kind
from jaxpatch.scoring.method import Options

PARTITION = {"part": Kind((3,), ("part",), ()), "head": Kind((2, 2), ("layer", "head"), ())}
SIZES = jnp.array([1.0, 2.0])
"""One number an input: every effect is multiplied by it."""
PART, HEAD = jnp.array([2.0, 0.0, -1.0]), jnp.array([[1.0, 0.5], [0.0, 3.0]])


def options(**changes) -> Options:
    return Options(top=2, steps=4)._replace(**changes)


def linear() -> instrument.Instrument:
    """``F = x (7 + 2 p0 - p2 + h00 + 0.5 h01 + 3 h11)``: base 7x, special 12.5x."""

    def effect(gates, rows):
        total = 7.0
        for kind, weights in (("part", PART), ("head", HEAD)):
            total = total + (gates[kind] * weights).sum() if kind in gates else total
        return SIZES[rows] * total

    return instrument.of_effect(effect, PARTITION, 2)


def product() -> instrument.Instrument:
    """``F = x (2 p0 + 3 p1 p2)``: base 0, special 5x. Neither p1 nor p2 does anything alone."""

    def effect(gates, rows):
        p = gates["part"]
        return SIZES[rows] * (2 * p[0] + 3 * p[1] * p[2])

    return instrument.of_effect(effect, {"part": PARTITION["part"]}, 2)


def ladder(exact, cheap, first_order=None) -> instrument.Instrument:
    """One kind, "part", whose scores are these numbers, exact and cheap; every gap is its input's size. Lists of lists: one list for
    each of several read-outs."""
    rows = [
        np.atleast_2d(np.asarray(each, float)) for each in (exact, cheap, cheap if first_order is None else first_order)
    ]
    true, linear, slopes = (np.concatenate([np.outer(SIZES, row) for row in each]).astype(np.float32) for each in rows)
    partition = {"part": Kind(true.shape[1:], ("part",), ())}

    def effect(gates, readings):
        return (jnp.asarray(true)[readings] * gates["part"]).sum(axis=-1)

    def replaced(kind, indices, progress):
        progress(len(indices), len(indices))
        return true[:, indices[:, 0]].T

    gap = np.tile(np.asarray(SIZES), len(rows[0]))
    tool = instrument.of_effect(effect, partition, len(gap))
    return tool._replace(
        special=gap,
        exact=replaced,
        cheap=lambda kinds, progress: {kind: Cheap(linear, slopes) for kind in kinds},
        seen=tool.seen * len(rows[0]),
    )
