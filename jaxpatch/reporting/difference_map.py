"""Where two models differ, as a heat-map: components by layer, the relative size of what changed in each."""

from collections.abc import Mapping

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from jaxpatch.reporting import drawing

MOST_COLUMNS = 64
"""Of a kind with more components a layer, the columns are quantiles: in each layer its components by falling change."""
DECADES = 3
"""What is smaller than the largest change by more has the colour of these."""


def columns(relative: np.ndarray) -> tuple[np.ndarray, bool]:
    """What is drawn of a kind, [L, columns], and whether it is sorted within each layer. Numbers that are none (a change of what was
    nothing) count as the largest.

    >>> columns(np.array([[0.1, 0.3]]))[0].tolist(), columns(np.arange(128.0)[None])[0][0, :3].tolist()
    ([[0.1, 0.3]], [127.0, 125.0, 123.0])
    """
    flat = relative.reshape(len(relative), -1)
    flat = np.nan_to_num(flat, nan=np.nanmax(flat, initial=0))
    if flat.shape[1] <= MOST_COLUMNS:
        return flat, False
    ranked = -np.sort(-flat, axis=1)
    first = np.linspace(0, flat.shape[1], MOST_COLUMNS + 1).astype(int)[:-1]
    return ranked[:, first], True


@drawing.styled
def figure(relative: Mapping[str, np.ndarray]) -> Figure:
    """One panel a kind that differs anywhere, all in one scale of colours. relative: kind -> [L, ...], ``|dW| / |W|``."""
    shown = {kind: columns(np.asarray(each, np.float64)) for kind, each in relative.items() if np.any(each)}
    heights = [0.14 * min(16, values.shape[1]) + 0.7 for values, _ in shown.values()]
    made = drawing.sheet(sum(heights) + 0.6)
    panels = made.subplots(len(shown), 1, height_ratios=heights, squeeze=False)[:, 0]
    high = max(values.max() for values, _ in shown.values())
    low = high / 10**DECADES
    scale = LogNorm(low, high)
    mesh = None
    for axes, (kind, (values, is_sorted)) in zip(panels, shown.items(), strict=True):
        edges = (np.arange(size + 1) - 0.5 for size in values.shape)
        mesh = axes.pcolormesh(*edges, np.maximum(values, low).T, cmap="Blues", norm=scale, rasterized=True)
        axes.set_ylim(values.shape[1] - 0.5, -0.5)
        axes.set_title(f"{kind}, in each layer by falling change" if is_sorted else kind)
        axes.set_yticks([0, values.shape[1] - 1], ["most", "least"] if is_sorted else [0, values.shape[1] - 1])
        axes.tick_params(length=0)
        drawing.layer_ticks(axes, len(values))
    panels[-1].set_xlabel("layer")
    if mesh is not None:
        bar = made.colorbar(mesh, ax=panels, pad=0.015, aspect=30)
        bar.set_label("|dW| / |W|")
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return made
