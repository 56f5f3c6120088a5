"""Instruments whose every number can be worked on paper."""

import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import instrument
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

    slopes = {"part": np.asarray(PART), "head": np.asarray(HEAD)}
    tool = instrument.of_effect(effect, PARTITION, 2)
    return tool._replace(linear=lambda kind: np.stack([slopes[kind], 2 * slopes[kind]]))


def product() -> instrument.Instrument:
    """``F = x (2 p0 + 3 p1 p2)``: base 0, special 5x. Neither p1 nor p2 does anything alone."""

    def effect(gates, rows):
        p = gates["part"]
        return SIZES[rows] * (2 * p[0] + 3 * p[1] * p[2])

    return instrument.of_effect(effect, {"part": PARTITION["part"]}, 2)


def ladder(exact, cheap) -> instrument.Instrument:
    """One kind, "part", whose exact and cheap effects (means over two inputs) are these numbers."""
    exact, cheap = np.asarray(exact, np.float32), np.asarray(cheap, np.float32)
    partition = {"part": Kind(exact.shape, ("part",), ())}

    def effect(gates, rows):
        return SIZES[rows] / 1.5 * (gates["part"] * exact).sum()

    tool = instrument.of_effect(effect, partition, 2)
    return tool._replace(linear=lambda kind: np.stack([cheap * 2 / 3, cheap * 4 / 3]))
