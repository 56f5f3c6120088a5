"""How the exact engine's time grows, with the lines that the plan's cost model foresees.

    python -m benchmarks.growth

Random weights, neurons spread evenly over all layers, the anchor after the last block. One thing grows at a time. Each round calibrates
anew, at the shape in the middle of all axes: what grows enters the lines through the count of operations alone.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from benchmarks import exact, pairs, plan, report, timing
from jaxpatch import testing
from jaxpatch.measuring import instrument, memory
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models.config import DecoderConfig
from jaxpatch.planning import calibration, cost, machines
from jaxpatch.reporting import drawing

KIND = "neuron"
HEAD_WIDTH, NEURONS_PER_WIDTH = 32, 3
SECONDS = (0.1, 0.2, 0.5, 1, 2)
"""Marks of the figure."""


class Shape(NamedTuple):
    """What can grow."""

    candidates: int = 48
    layers: int = 6
    prompts: int = 8
    tokens: int = 48
    width: int = 256


AXES: Mapping[str, tuple[int, ...]] = {
    "candidates": (12, 24, 48, 96, 192),
    "layers": (3, 6, 9, 12, 18),
    "prompts": (2, 4, 8, 16, 24),
    "tokens": (12, 24, 48, 96, 144),
    "width": (128, 192, 256, 384, 512),
}


class Point(NamedTuple):
    """One shape, ready to run. case: its models and prompts. indices: of its neurons."""

    case: pairs.Case
    indices: np.ndarray
    job: cost.Job
    budget: int

    @property
    def work(self) -> cost.Work:
        """What the plan counts."""
        room = plan.room_of(self.case, self.job, self.budget)
        return cost.exact(self.job, KIND, self.indices[:, 0], room)

    def side(self, name: str) -> timing.Side:
        """Its sweep."""
        tool = instrument.of_pair(self.case.pair, self.case.prompts, self.case.anchor, budget=self.budget)
        return timing.Side(name, lambda: exact.ours(tool, KIND, self.indices), len(self.indices))


def point(shape: Shape) -> Point:
    """A shape with random weights and prompts, of which no two begin alike."""
    heads = shape.width // HEAD_WIDTH
    config = DecoderConfig(
        family="llama",
        vocab=shape.prompts * shape.tokens,
        layers=shape.layers,
        width=shape.width,
        heads=heads,
        kv_heads=heads // 2,
        head_width=HEAD_WIDTH,
        neurons=NEURONS_PER_WIDTH * shape.width,
        context=shape.tokens,
    )
    tokens = jnp.arange(config.vocab, dtype=jnp.int32).reshape(shape.prompts, shape.tokens)
    prompts = Inputs(tokens, jnp.full(shape.prompts, shape.tokens, jnp.int32))
    anchor = Anchor(direction=jnp.eye(config.width)[0], layer=config.layers - 1)
    pair = testing.tiny_pair(config, scale=pairs.STD, change=pairs.CHANGE)
    case = pairs.Case(f"random weights, {shape}", pair, prompts, anchor)
    layers = cost.spread(shape.candidates, shape.layers)
    indices = np.stack([layers, np.arange(len(layers)) % config.neurons], axis=1)
    return Point(case, indices, plan.job_of(case), memory.default_budget(pair.base))


def along(axis: str) -> tuple[list[timing.Timed], list[timing.Figure]]:
    """Time one axis. Returns each value's sweep, and what it took over what was foreseen."""
    points = [point(Shape(**{axis: value})) for value in AXES[axis]]
    middle = point(Shape())
    found: list[calibration.Calibration] = []

    def calibrate() -> None:
        asked = middle.job, middle.case.prompts, (KIND,), str(middle.case.dtype), middle.budget
        found.append(calibration.calibrate(*asked))

    sides = [each.side(f"{axis} {value}") for each, value in zip(points, AXES[axis], strict=True)]
    timed = timing.in_turn(
        [timing.Side("calibration", calibrate, 1, "calibrations"), *sides], repeats=timing.FEWEST_REPEATS
    )[1:]
    foreseen = [[machines.seconds({KIND: each.work}, said.paces) for said in found[1:]] for each in points]
    return timed, [
        timing.ratio(f"{took.side.name}: seconds it took / foreseen", took.seconds, line)
        for took, line in zip(timed, foreseen, strict=True)
    ]


@drawing.styled
def drawn(groups: Mapping[str, list[timing.Timed]], ratios: Mapping[str, list[timing.Figure]]) -> Figure:
    """A panel for each axis: medians and quartiles of what it took, and the line that was foreseen."""
    figure = drawing.sheet(2.6)
    panels = figure.subplots(1, len(groups), sharey=True)
    for axes, (axis, timed) in zip(panels, groups.items(), strict=True):
        took = [timing.Spread.of(each.seconds) for each in timed]
        line = [
            float(np.median(np.divide(each.seconds, ratio.values)))
            for each, ratio in zip(timed, ratios[axis], strict=True)
        ]
        middle, ends = [t.median for t in took], [[t.median - t.low for t in took], [t.high - t.median for t in took]]
        axes.plot(AXES[axis], line, color=drawing.SOFT, label="foreseen")
        colour, marker = drawing.KIND_COLOURS[KIND], drawing.KIND_MARKERS[KIND]
        axes.errorbar(AXES[axis], middle, ends, fmt=marker, color=colour, label="measured")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(AXES[axis], [str(value) for value in AXES[axis]], rotation=45)
        axes.set_yticks(SECONDS, [f"{value:g}" for value in SECONDS])
        axes.minorticks_off()
        axes.set_xlabel(axis)
        drawing.grid(axes, "both")
    panels[0].set_ylabel(f"seconds for the {KIND}s")
    panels[0].legend()
    return figure


def main() -> None:
    found = {axis: along(axis) for axis in AXES}
    groups = {axis: timed for axis, (timed, _) in found.items()}
    ratios = {axis: figures for axis, (_, figures) in found.items()}
    report.publish(
        report.Report(
            name="growth",
            title="How the exact engine grows",
            shapes=Shape()._asdict()
            | {"head_width": HEAD_WIDTH, "neurons": f"{NEURONS_PER_WIDTH} x width", "kind": KIND},
            groups=groups,
            figures=[figure for figures in ratios.values() for figure in figures],
            facts={},
        )
    )
    figure, folder = drawn(groups, ratios), report.FOLDER / "results"
    (folder / "growth.svg").write_text(drawing.svg(figure, "growth"), encoding="utf-8")
    figure.savefig(folder / "growth.png", dpi=drawing.DPI)


if __name__ == "__main__":
    main()
