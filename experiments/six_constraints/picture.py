"""The figure of the page."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from result import Result

from jaxpatch.reporting import drawing


@drawing.styled
def figure(scored: Sequence[Result]) -> Figure:
    """A row a task: by block, what neurons recover by their weights and heads by what they write; and restoration."""
    made = drawing.sheet(2.1 * len(scored) + 0.5)
    rows = made.subplots(len(scored), 2, squeeze=False)
    for each, (depth, curves) in zip(scored, rows, strict=True):
        _depth(depth, each)
        _curves(curves, each)
    rows[-1, 0].set_xlabel("block")
    rows[-1, 1].set_xlabel("k, components put into base")
    return made


def _depth(axes: Axes, each: Result) -> None:
    layers = np.arange(len(each.weights.values["neuron"]))
    for n, (side, kind, label) in enumerate(
        (
            ("weights", "neuron", "E_w+ of neurons"),
            ("weights", "head", "E_w+ of heads"),
            ("activations", "head", "E_a+ of heads"),
        )
    ):
        sums = np.clip(getattr(each, side).values[kind], 0, None).sum(axis=1)
        colour = (drawing.KIND_COLOURS["neuron"], drawing.KIND_COLOURS["head"], drawing.ROLE_LOOKS["relay"]["color"])[n]
        axes.step(layers, 100 * sums, where="mid", color=colour, label=label)
    drawing.mark_anchor(axes, each.layer, len(layers))
    drawing.layer_ticks(axes, len(layers))
    drawing.grid(axes)
    axes.set_title(each.title, pad=16)
    axes.set_ylabel("% of the gap, summed")
    axes.legend(loc="upper left")


def _curves(axes: Axes, each: Result) -> None:
    frame = each.curves[each.curves["mode"] == "restoration"]
    names = [name for name in frame["order"].unique() if name != "top"]
    for n, name in enumerate(names):
        part = frame[frame["order"] == name]
        axes.plot(
            part["k"],
            100 * part["recovery"],
            color=drawing.CONTROL_GREYS[n],
            linestyle=drawing.CONTROL_DASHES[n],
            linewidth=1.2,
            label=name,
        )
    top = frame[frame["order"] == "top"]
    axes.fill_between(top["k"], 100 * top["low"], 100 * top["high"], color=drawing.POSITIVE, alpha=0.16, linewidth=0)
    axes.plot(top["k"], 100 * top["recovery"], color=drawing.POSITIVE, linewidth=2, label="ranking (E_w)")
    sets = each.behaviour[each.behaviour["order"] == "top"]
    axes.plot(
        sets["size"],
        100 * sets["strict"] / sets["judged"],
        color=drawing.NEGATIVE,
        marker="o",
        linestyle="none",
        label="answers that follow",
    )
    drawing.log_sizes(axes)
    axes.set_ylabel("% of the gap, of answers")
    axes.legend(loc="upper left", fontsize=7)
    drawing.grid(axes)
