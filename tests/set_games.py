"""Games whose every number can be worked on paper, and games of a tiny pair, by the engine and by whole runs."""

import functools

import numpy as np

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import hosts, instrument
from jaxpatch.sets import game
from jaxpatch.validating import controls

GAP = np.array([1.0, 2.0, 4.0])
"""Inputs of the toys differ in their gap alone, so intervals have no width."""
PAIR, INPUTS = testing.tiny_pair(change=0.3), testing.tiny_inputs()
ANCHOR = jp.Anchor(layer=1, direction=np.eye(16)[0])


def of(share, num):
    """share: set -> how much of the gap it recovers."""
    return game.of_value(lambda chosen: share(chosen.astype(float)) * GAP, num, GAP)


def additive(sizes=(0.5, 0.3, -0.1, 0.2)):
    return of(lambda c: float(c @ np.array(sizes)), len(sizes))


def redundant():
    """Either of the first two is enough; the third adds a tenth, whatever the others do."""
    return of(lambda c: max(c[0], c[1]) + 0.1 * c[2], 3)


def synergistic():
    """The first two do nothing one by one; the third adds a tenth."""
    return of(lambda c: c[0] * c[1] + 0.1 * c[2], 3)


def cancelling():
    """The second takes away what the first adds, and nothing without it; the third adds a tenth."""
    return of(lambda c: c[0] - c[0] * c[1] + 0.1 * c[2], 3)


def threefold():
    """All three are needed."""
    return of(lambda c: c[0] * c[1] * c[2], 3)


def drawn_order(tool, kinds, count):
    draw = np.random.default_rng(0)
    shapes = {kind: tool.partition[kind].shape for kind in kinds}
    order = controls.ranked({kind: draw.random(shape) for kind, shape in shapes.items()}, tool.reach)
    return controls.some(order, np.arange(count)), shapes


@functools.cache
def played(kinds, count=8):
    """The game by the engine, and by the definition."""
    tool = instrument.of_pair(PAIR, INPUTS, ANCHOR)
    tool = hosts.compiled(tool._replace(special=tool.base + np.abs(tool.gap) + 1))
    order, shapes = drawn_order(tool, kinds, count)
    ways = hosts.of_pair(PAIR, INPUTS, ANCHOR, tool), hosts.by_definition(tool)
    return [game.of_order(tool, order, shapes, each, "mean_of_ratios") for each in ways]
