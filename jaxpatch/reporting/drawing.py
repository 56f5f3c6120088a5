"""How every figure looks, and how it becomes SVG text. No state of matplotlib's is changed for longer than a call."""

import functools
import io
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

INK, SOFT, LINE, PALE = "#1b1e23", "#5b626d", "#d5d8dd", "#f1f2f4"
POSITIVE, NEGATIVE = "#2463a6", "#c4501b"
CONTROL_GREYS = ("#4d5159", "#83888f", "#a9adb3", "#c3c6ca", "#6a5d4d", "#9a8f83")
CONTROL_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (2, 3)), (0, (7, 2, 2, 2)))
CONTROL_MARKERS = ("s", "^", "D", "v", "P", "X")
KIND_COLOURS = {
    "head": "#8a3b8f",
    "neuron": "#1a7f6b",
    "kv": "#b07d00",
    "attention": "#8a3b8f",
    "mlp": "#1a7f6b",
    "layer": "#2463a6",
    "matrix": "#b8432f",
    "norm": "#5b626d",
}
KIND_MARKERS = {
    "head": "s",
    "neuron": "o",
    "kv": "^",
    "attention": "P",
    "mlp": "X",
    "layer": "D",
    "matrix": "v",
    "norm": "p",
}
ROLE_LOOKS = {
    "neither": {"color": "#a9adb3", "marker": "o", "s": 6},
    "source": {"color": "#2463a6", "marker": "^", "s": 34},
    "relay": {"color": "#d9700f", "marker": "s", "s": 26},
    "both": {"color": "#1b1e23", "marker": "D", "s": 26},
    "executor": {"color": "#1a7f6b", "marker": "v", "s": 30},
}
"""Blue, orange and black: apart for every kind of colour vision, and in print by shape."""
DIVERGING = LinearSegmentedColormap.from_list(
    "signed", ["#7a2a06", NEGATIVE, "#eba984", "#f7f7f7", "#93bbe0", POSITIVE, "#0b3162"]
)
"""Orange below 0, grey-white at 0, blue above: told apart by every kind of colour vision, and by lightness in print."""

WIDTH = 9.4
"""Inches; 72 points each, so that a 9 point label is 12 pixels where the column shows the figure at its own size."""
DPI = 170
"""Of rasterised point clouds alone."""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.titleweight": "bold",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.7,
    "hatch.color": LINE,
    "hatch.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "svg.fonttype": "none",
}

Asked = ParamSpec("Asked")
Given = TypeVar("Given")


def styled(draw_fn: Callable[Asked, Given]) -> Callable[Asked, Given]:
    """The same function, drawing in our style and leaving matplotlib's settings as they were."""

    @functools.wraps(draw_fn)
    def wrapped(*args: Asked.args, **kwargs: Asked.kwargs) -> Given:
        with mpl.rc_context(STYLE):
            return draw_fn(*args, **kwargs)

    return wrapped


def sheet(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of the column's width. height, width: inches."""
    return Figure(figsize=(width, height), layout="constrained")


def grid(axes: Axes, axis: Any = "y") -> None:
    """Faint lines behind the data."""
    axes.grid(True, axis=axis)


def layer_ticks(axes: Axes, num_layers: int) -> None:
    """At most 16 layer numbers on x, always with block 0."""
    step = max(1, -(-num_layers // 16))
    axes.set_xticks(np.arange(0, num_layers, step))
    axes.set_xlim(-0.5, num_layers - 0.5)


def log_sizes(axes: Axes) -> None:
    """k on a log scale, in plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def mark_anchor(axes: Axes, layer: int, num_layers: int, *, label: bool = True) -> None:
    """A line after the anchor's block, and hatching over the blocks above it, which cannot reach the anchor."""
    if not 0 <= layer < num_layers:
        return
    axes.axvline(layer + 0.5, color=INK, linewidth=1.1, zorder=4)
    if layer < num_layers - 1:
        axes.axvspan(layer + 0.5, num_layers - 0.5, facecolor=PALE, edgecolor=LINE, hatch="///", linewidth=0, zorder=3)
    if label:
        is_late = layer > 0.6 * num_layers
        axes.annotate(
            f"anchor: read after block {layer}",
            (layer + 0.5, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-3 if is_late else 3, 4),
            textcoords="offset points",
            ha="right" if is_late else "left",
            va="bottom",
            fontsize=8,
            color=SOFT,
        )


def svg(figure: Figure, name: str) -> str:
    """A figure as SVG text: the same bytes for the same figure; ids begin with `name`, so several can share a page.

    Text stays text, in the reader's own sans-serif font.

    Example:
        >>> figure = sheet(1)
        >>> _ = figure.text(0.5, 0.5, "a < b")
        >>> text = svg(figure, "one")
        >>> text.startswith("<svg"), "a &lt; b" in text, 'id="one-figure_1"' in text
        (True, True, True)
    """
    stream = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", dpi=DPI, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"; font-family: [^;\"]*(?=[;\"])", "", text)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace("<svg ", f'<svg style="font-family: {FONTS}" ', 1)
    return re.sub(r"\s*\n\s*", "\n", text).strip() + "\n"
