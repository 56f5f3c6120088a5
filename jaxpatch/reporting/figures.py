"""What a run found, as figures: pure functions from `Findings` to matplotlib figures, and one call that writes SVG."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from matplotlib.ticker import MaxNLocator

from jaxpatch.reporting import drawing, wording
from jaxpatch.reporting.drawing import INK, LINE, NEGATIVE, POSITIVE, SOFT
from jaxpatch.reporting.findings import Findings
from jaxpatch.tracing.flow import Flow, Node
from jaxpatch.tracing.roles import Roles
from jaxpatch.validating.curves import Curve

NUM_TOP = 20
MOST_CELLS = 128
"""Components a layer that a heat-map can still show; kinds with more are drawn by depth."""
LETTER = 0.0105
"""Of a node's name, as a share of the graph's width."""
MOST_VECTOR_CELLS = 800
"""Cells that are drawn as vectors; larger maps are rasterised."""
NUM_NAMED = 4
"""Of each role and kind, in the map of sources and relays."""
SHARE = "E_w: share of the gap recovered (%)"


@drawing.styled
def head_map(findings: Findings, kind: str = "head") -> Figure:
    """Heat-map of E_w of a kind with a few components a layer (head, kv, matrix, norm); no colour is 0."""
    values = 100 * np.asarray(findings.scores.values[kind], np.float64)
    num_layers, num_rows = values.shape
    figure = drawing.sheet(float(np.clip(0.21 * num_rows, 1.3, 4.6)) + 1.0)
    axes = figure.subplots()
    limit = float(np.abs(values).max()) or 1.0
    mesh = axes.pcolormesh(
        np.arange(num_layers + 1) - 0.5,
        np.arange(num_rows + 1) - 0.5,
        values.T,
        cmap=drawing.DIVERGING,
        norm=Normalize(-limit, limit),
        edgecolors="white",
        linewidth=0.6 if values.size <= MOST_VECTOR_CELLS else 0,
        rasterized=values.size > MOST_VECTOR_CELLS,
    )
    drawing.mark_anchor(axes, findings.scores.layer, num_layers)
    drawing.layer_ticks(axes, num_layers)
    axes.set_ylim(num_rows - 0.5, -0.5)
    if members := findings.scores.partition[kind].members:
        axes.set_yticks(range(num_rows), members)
    else:
        axes.set_yticks(np.arange(0, num_rows, max(1, -(-num_rows // 12))))
        axes.set_ylabel({"kv": "key/value group"}.get(kind, kind))
    axes.set_xlabel("layer")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(mesh, ax=axes, pad=0.015, aspect=18, shrink=0.95)
    bar.set_label("E_w (% of the gap)")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    bar.locator = MaxNLocator(5, symmetric=True)
    bar.update_ticks()
    return figure


@drawing.styled
def neuron_depth(findings: Findings, kind: str = "neuron") -> Figure:
    """A kind with many components a layer: each a dot over its layer, and the sums of positive and negative scores."""
    values, sort = 100 * np.asarray(findings.scores.values[kind], np.float64), findings.scores.partition[kind]
    values = values.reshape(len(values), -1)
    num_layers, num_units = values.shape
    figure = drawing.sheet(5.0)
    single, total = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    layer, unit = np.nonzero(values)
    score = values[layer, unit]
    where = layer + 0.8 * ((unit + 0.5) / num_units - 0.5)
    colours = np.where(score > 0, POSITIVE, NEGATIVE)
    single.scatter(where, score, s=5, c=colours, alpha=0.55, linewidth=0, rasterized=True)
    best = np.argsort(-np.abs(score), kind="stable")[:60]
    single.scatter(where[best], score[best], s=13, c=colours[best], edgecolor="white", linewidth=0.4, zorder=5)

    def name(dot: int) -> str:
        return ".".join(map(str, (layer[dot], *np.unravel_index(unit[dot], sort.shape[1:]))))

    _label_dots(single, where, score, name, np.argsort(-np.abs(score), kind="stable"), num_layers)
    single.set_ylabel(f"E_w of a single {kind} (%)")
    single.set_title(f"Single {wording.plural(kind)}, labelled {'.'.join(sort.axes)}", pad=16)
    above, below = np.clip(values, 0, None).sum(axis=1), np.clip(values, None, 0).sum(axis=1)
    number = np.arange(num_layers)
    total.bar(number, above, width=0.72, color=POSITIVE, label="sum of positive scores")
    total.bar(number, below, width=0.72, color=NEGATIVE, label="sum of negative scores")
    reach = number[values.any(axis=1)]
    total.plot(reach, (above + below)[reach], "o", color=INK, markersize=3, linestyle="none", label="net")
    total.set_ylabel("sum of E_w (%)")
    total.set_xlabel("layer")
    total.set_title("All of a layer, added up")
    _headroom(total, above.max(initial=0), below.min(initial=0))
    total.legend(loc="upper left", ncols=3, borderaxespad=0.2, handlelength=1.2, columnspacing=1.4)
    for axes in (single, total):
        axes.axhline(0, color=SOFT, linewidth=0.7)
        drawing.grid(axes)
        drawing.mark_anchor(axes, findings.scores.layer, num_layers, label=axes is single)
        drawing.layer_ticks(axes, num_layers)
    return figure


@drawing.styled
def coarse_depth(findings: Findings, kind: str) -> Figure:
    """Bars by layer, with 95 % intervals: for kinds with one component a layer (layer, mlp, attention)."""
    found = findings.scores
    values = 100 * np.asarray(found.values[kind], np.float64)
    figure = drawing.sheet(2.7)
    axes = figure.subplots()
    number = np.arange(len(values))
    axes.bar(number, values, width=0.72, color=np.where(values >= 0, POSITIVE, NEGATIVE).tolist())
    _whiskers(axes, number, values, 100 * found.low[kind], 100 * found.high[kind], vertical=True)
    axes.axhline(0, color=SOFT, linewidth=0.7)
    drawing.grid(axes)
    drawing.mark_anchor(axes, found.layer, len(values))
    drawing.layer_ticks(axes, len(values))
    axes.set_xlabel("layer")
    axes.set_ylabel("E_w (% of the gap)")
    return figure


@drawing.styled
def top_components(findings: Findings, count: int = NUM_TOP) -> Figure:
    """The components with the highest scores over all kinds: a dot each, with its 95 % interval."""
    frame = wording.ranking(findings).head(count)
    figure = drawing.sheet(0.235 * len(frame) + 1.0)
    axes = figure.subplots()
    for kind, part in frame.groupby("kind", sort=False):
        colour = drawing.KIND_COLOURS.get(str(kind), POSITIVE)
        marker = drawing.KIND_MARKERS.get(str(kind), "o")
        place, score = part.index.to_numpy(), 100 * part.score.to_numpy()
        _whiskers(axes, place, score, 100 * part.low.to_numpy(), 100 * part.high.to_numpy(), colour=colour)
        fill = [colour if exact else "white" for exact in part.is_exact]
        axes.scatter(score, place, s=34, marker=marker, c=fill, edgecolor=colour, linewidth=1.2, zorder=4)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    axes.set_yticks(frame.index, frame.name)
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"{SHARE}; bars: 95 % interval over prompts")
    drawing.grid(axes, "both")
    keys = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker=drawing.KIND_MARKERS.get(k, "o"),
            color=drawing.KIND_COLOURS.get(k, POSITIVE),
            label=k,
        )
        for k in dict.fromkeys(frame.kind)
    ]
    if not frame.is_exact.all():
        keys.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="o",
                markerfacecolor="white",
                color=SOFT,
                label="hollow: estimated, not replaced",
            )
        )
    figure.legend(handles=keys, loc="outside upper left", ncols=len(keys), handletextpad=0.3, columnspacing=1.5)
    return figure


@drawing.styled
def roles(findings: Findings) -> Figure:
    """E_w against E_a, a column a kind; below, the sums of both by layer, and how much of them is the layer's own."""
    placed = findings.roles
    assert placed is not None
    kinds = list(placed.roles)
    columns = min(len(kinds), 2)
    bands = -(-len(kinds) // columns)
    figure = drawing.sheet(7.6 * bands + 0.4, width=drawing.WIDTH if columns > 1 else 6.0)
    panels = figure.subplots(3 * bands, columns, squeeze=False, height_ratios=(3.9, 2.1, 1.6) * bands)
    panels = panels.reshape(bands, 3, columns).transpose(0, 2, 1).reshape(-1, 3)
    by_layer = placed.by_layer()
    for trio in panels[len(kinds) :]:
        for axes in trio:
            axes.set_visible(False)
    for kind, (single, total, index) in zip(kinds, panels, strict=False):
        _role_panel(single, placed, kind, columns)
        _depth_profile(total, index, by_layer.loc[by_layer["kind"] == kind], placed.weights.layer)
    looks = {role: drawing.ROLE_LOOKS[role] for role in ("source", "relay", "both", "neither")}
    figure.legend(
        handles=[
            Line2D([], [], linestyle="none", marker=look["marker"], color=look["color"], label=wording.ROLES[role])
            for role, look in looks.items()
        ],
        loc="outside upper left",
        ncols=len(looks),
        handletextpad=0.3,
        columnspacing=1.5,
    )
    return figure


@drawing.styled
def flow(findings: Findings) -> Figure:
    """Who supplies whom, from left to right by block: relays above, sources below, the state at the right."""
    traced = findings.flow
    assert traced is not None
    last = findings.scores.layer + 0.5
    top = last if traced.executed is None else len(next(iter(findings.scores.values.values()))) - 0.5
    places = _flow_places(traced, last, top)
    rows = [y for _, y in places]
    figure = drawing.sheet(0.36 * (max(rows) - min(rows) + 1) + 1.3)
    axes = figure.subplots()
    for edge, direct in sorted(zip(traced.edges, traced.direct, strict=True), key=lambda each: abs(each[1])):
        supplier = traced.nodes[edge.supplier]
        share = traced.nodes[edge.target].share if supplier.role == "state" else direct
        look = drawing.ROLE_LOOKS["executor" if edge.role == "state" else edge.role]
        bend = 0.0 if places[edge.supplier][1] != places[edge.target][1] else -0.25
        arrow = FancyArrowPatch(
            places[edge.supplier],
            places[edge.target],
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=5,
            shrinkB=7,
            connectionstyle=f"arc3,rad={bend}",
            linewidth=0.6 + 4.4 * min(abs(share), 1.0),
            linestyle="-" if share > 0 else (0, (2, 2)),
            color=look["color"],
            alpha=0.45,
            zorder=2,
        )
        axes.add_patch(arrow)
    for node, (x, y) in zip(traced.nodes, places, strict=True):
        look = drawing.ROLE_LOOKS.get(node.role, {"color": INK, "marker": "*", "s": 90})
        is_followed = not node.end or node.role == "source"
        axes.scatter(
            x,
            y,
            marker=look["marker"],
            s=1.6 * look["s"],
            c=look["color"] if is_followed else "white",
            edgecolor=look["color"],
            linewidth=1.1,
            zorder=4,
        )
        axes.annotate(
            node.name.replace(" ", wording.SPACE),
            (x, y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            zorder=5,
        )
    axes.set(xlim=(-0.9, top + 0.9), ylim=(min(rows) - 0.7, max(rows) + 1.0), yticks=[])
    axes.set_xlabel("block")
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    drawing.grid(axes, "x")
    roles_there = [
        role for role in ("source", "relay", "both", "executor") if any(node.role == role for node in traced.nodes)
    ]
    figure.legend(
        handles=[
            Line2D([], [], linestyle="none", marker=look["marker"], color=look["color"], label=wording.ROLES[role])
            for role, look in ((role, drawing.ROLE_LOOKS[role]) for role in roles_there)
        ],
        loc="outside upper left",
        ncols=4,
        handletextpad=0.3,
        columnspacing=1.5,
    )
    return figure


@drawing.styled
def agreement(findings: Findings) -> Figure:
    """Cheap against exact scores of what was truly replaced, a panel a kind, with the identity line."""
    screened = findings.scores.screening
    num = len(screened)
    columns = min(num, 3)
    rows = -(-num // columns)
    figure = drawing.sheet(3.7 * rows, width=min(drawing.WIDTH, 4.6 * columns))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[num:]:
        axes.set_visible(False)
    for axes, (kind, found) in zip(panels, screened.items(), strict=False):
        is_random = found.is_random[found.replaced]
        colour = drawing.KIND_COLOURS.get(kind, POSITIVE)
        both = np.concatenate([found.cheap, found.exact, [0.0]])
        pad = 0.05 * (np.ptp(both) or 1.0)
        ends = np.array([both.min() - pad, both.max() + pad])
        axes.plot(ends, ends, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), label="identity", zorder=1)
        axes.scatter(
            found.cheap[~is_random],
            found.exact[~is_random],
            s=15,
            color=colour,
            alpha=0.7,
            linewidth=0,
            label="highest bounds",
        )
        axes.scatter(
            found.cheap[is_random],
            found.exact[is_random],
            s=15,
            facecolor="none",
            edgecolor=INK,
            linewidth=0.7,
            label="drawn at random",
        )
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        axes.set_title(f"{wording.plural(kind)}: {len(found.exact):,} replaced")
        axes.set_xlabel("cheap score")
        axes.set_ylabel("exact score")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.text(
            0.04,
            0.97,
            f"Spearman {wording.correlation(found.spearman)}\nsigns equal {wording.percent(found.sign)}\n"
            f"slope {wording.number(found.slope)}",
            transform=axes.transAxes,
            va="top",
            fontsize=8.5,
            linespacing=1.45,
        )
        axes.legend(loc="lower right", handletextpad=0.3, borderaxespad=0.3)
        drawing.grid(axes, "both")
    return figure


@drawing.styled
def curves(findings: Findings) -> Figure:
    """Restoration and knockout side by side: recovery, and KL(special || patched), against k; controls in greys."""
    modes = list(dict.fromkeys(curve.mode for curve in findings.curves))
    figure = drawing.sheet(5.6, width=drawing.WIDTH if len(modes) > 1 else 5.6)
    panels = figure.subplots(2, len(modes), sharex="col", sharey="row", height_ratios=(3, 2), squeeze=False)
    for column, mode in enumerate(modes):
        recovery, kl = panels[:, column]
        for curve, look in _looks([c for c in findings.curves if c.mode == mode]):
            recovery.fill_between(
                curve.ks, 100 * curve.low, 100 * curve.high, color=look["color"], alpha=0.16, linewidth=0
            )
            recovery.plot(curve.ks, 100 * curve.recovery, **look)
            kl.plot(curve.ks, curve.kl, **look)
        for end in (0, 100):
            recovery.axhline(end, color=LINE, linewidth=0.9, zorder=0)
        if mode == "restoration":
            _mark_ceiling(recovery, findings)
        recovery.set_title(_mode_title(mode))
        kl.set_xlabel("k, components patched (log scale)")
        for axes in (recovery, kl):
            drawing.log_sizes(axes)
            axes.tick_params(labelleft=True)
            drawing.grid(axes, "both")
    panels[1, 0].set_ylim(bottom=min(0.0, panels[1, 0].get_ylim()[0]))
    panels[0, 0].set_ylabel("control state (% of the gap)")
    panels[1, 0].set_ylabel("KL(special || patched) (nats)")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(len(labels), 5), handlelength=2.4, columnspacing=1.8
    )
    return figure


@drawing.styled
def behaviour(findings: Findings) -> Figure:
    """What comes back along the ranking: answers that follow beside the control state, and distances along whole answers."""
    frame = wording.behaviour(findings)
    sets, ends = frame.loc[frame["order"] == "top"], frame.set_index("model")
    others = frame.loc[~frame["order"].isin(["", "top"])]
    state = [c for c in findings.curves if (c.name, c.mode) == ("top", "restoration")]
    is_judged = bool((sets["judged"] > 0).all())
    figure = drawing.sheet(3.4)
    *shares, apart = figure.subplots(1, 2 if state or is_judged else 1, squeeze=False)[0]
    for share in shares:
        _shares(share, sets, others, ends, state, is_judged)
    for name, (colour, marker, label) in {
        "to_special": (POSITIVE, "o", "from special, asked"),
        "to_base": (NEGATIVE, "s", "from base, not asked"),
    }.items():
        apart.plot(sets["size"], sets[name], color=colour, marker=marker, label=label)
        apart.scatter(others["size"], others[name], s=22, facecolor="white", edgecolor=colour, marker=marker, zorder=4)
    _level(apart, ends.loc["base", "to_special"], "base, from special")
    _level(apart, ends.loc["special", "to_base"], "special, from base")
    apart.set_title("Distance along whole answers")
    apart.set_ylabel("KL along answers (nats a token)")
    for axes in (*shares, apart):
        axes.set_xlabel("k, components patched (log scale)")
        drawing.log_sizes(axes)
        bottom, top = min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1]
        axes.set_ylim(bottom, bottom + 1.3 * (top - bottom))
        axes.legend(loc="upper left", borderaxespad=0.2)
        drawing.grid(axes, "both")
    return figure


def _shares(
    axes: Axes,
    sets: pd.DataFrame,
    others: pd.DataFrame,
    ends: pd.DataFrame,
    state: list[Curve],
    is_judged: bool,
) -> None:
    """Answers that follow, and the control state, along the ranking; and as many components by other orders."""
    for curve in state:
        within = curve.ks >= sets["size"].min()
        axes.plot(
            curve.ks[within], 100 * curve.recovery[within], color=SOFT, linestyle=(0, (5, 2)), label="control state"
        )
    if is_judged:
        looks = {"strict": (POSITIVE, "-", "o"), "loose": (NEGATIVE, (0, (4, 2)), "s")}
        for name, (colour, dashes, marker) in looks.items():
            values = 100 * sets[name] / sets["judged"]
            axes.plot(sets["size"], values, color=colour, linestyle=dashes, marker=marker, label=f"answers, {name}")
        values = 100 * others["strict"] / others["judged"]
        axes.scatter(others["size"], values, s=22, facecolor="white", edgecolor=POSITIVE, zorder=4)
        for model in ("base", "special"):
            _level(axes, 100 * ends.loc[model, "strict"] / ends.loc[model, "judged"], f"{model}, strict")
    axes.set_title("Behaviour and control state" if is_judged else "Control state")
    axes.set_ylabel("% of answers, % of the gap" if is_judged else "% of the gap")


@drawing.styled
def anchor(findings: Findings) -> Figure:
    """The gap of every prompt, and, where several layers were looked at, what spoke for each."""
    info = findings.anchor_info
    candidates = () if info is None or len(info.candidates) < 2 else info.candidates
    figure = drawing.sheet(2.9 if candidates else 2.1)
    if candidates:
        gaps, share, apart = figure.subplots(1, 3, width_ratios=(1.35, 1, 1))
        _layer_search(share, apart, candidates, findings.anchor.layer)
    else:
        gaps = figure.subplots()
    found = findings.scores
    rows = [("scoring prompts", np.asarray(found.gap, np.float64), np.asarray(found.is_kept))]
    if info is not None:
        rows.append(("anchor prompts", np.asarray(info.gap, np.float64), np.ones(len(info.gap), bool)))
    for place, (_, values, is_kept) in enumerate(rows):
        spread = place + 0.42 * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
        gaps.scatter(values[is_kept], spread[is_kept], s=22, color=POSITIVE, alpha=0.75, linewidth=0)
        gaps.scatter(values[~is_kept], spread[~is_kept], s=22, facecolor="white", edgecolor=NEGATIVE, linewidth=1.2)
        gaps.plot([values.mean()] * 2, [place - 0.34, place + 0.34], color=INK, linewidth=1.6)
    gaps.axvline(0, color=SOFT, linewidth=0.8)
    gaps.set_yticks(range(len(rows)), [f"{name}\n(n = {len(values)})" for name, values, _ in rows])
    gaps.set_ylim(-0.6, len(rows) - 0.4)
    gaps.tick_params(axis="y", length=0)
    gaps.spines["left"].set_visible(False)
    gaps.set_xlabel("gap G (units of the read-out)")
    gaps.set_title("Gap of each prompt")
    drawing.grid(gaps, "x")
    return figure


def make(findings: Findings) -> dict[str, Figure]:
    """All figures there is something to draw for, by name, in the order of the report."""
    made = {"anchor": anchor(findings), "top_components": top_components(findings)}
    for kind, values in findings.scores.values.items():
        axes = findings.scores.partition[kind].axes
        if axes[0] != "layer":
            continue
        if values.ndim == 1:
            made[f"{kind}_depth"] = coarse_depth(findings, kind)
        elif values[0].size <= MOST_CELLS and kind != "neuron":
            made[f"{kind}_map"] = head_map(findings, kind)
        else:
            made[f"{kind}_depth"] = neuron_depth(findings, kind)
    if findings.roles is not None:
        made["roles"] = roles(findings)
    if findings.flow is not None:
        made["flow"] = flow(findings)
    if findings.scores.screening:
        made["agreement"] = agreement(findings)
    if findings.curves:
        made["curves"] = curves(findings)
    if {"base", "special"} <= findings.along.keys() and any(each.order == "top" for each in findings.along.values()):
        made["behaviour"] = behaviour(findings)
    for figure in made.values() if findings.forced else ():
        figure.supxlabel("forced: the anchor fails its checks", color=NEGATIVE, fontsize=9, x=0.99, ha="right")
    return made


def draw_all(findings: Findings) -> dict[str, str]:
    """All figures as SVG text, by name."""
    return {name: drawing.svg(figure, name) for name, figure in make(findings).items()}


def save_all(findings: Findings, folder: str | Path) -> Mapping[str, str]:
    """Write every figure as ``folder/NAME.svg``; the folder is made.

    Returns: the SVG texts by name, for `report.render` to reuse.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(findings)
    for name, text in drawn.items():
        (folder / f"{name}.svg").write_text(f'<?xml version="1.0" encoding="utf-8"?>\n{text}', encoding="utf-8")
    return drawn


def _flow_places(traced: Flow, state: float, output: float) -> list[tuple[float, float]]:
    """Where each node stands: its block across; relays and executors from 1 up, sources from 0 down, each as near to the middle as its
    name has room. state, output: where these two stand."""
    around = LETTER * (max(state, output) + 0.5) / 2

    def within(node: Node, x: float) -> tuple[float, float]:
        """From where to where its name stands."""
        return x - around * (len(node.name) + 1), x + around * (len(node.name) + 1)

    ends = {"state": state, "output": output}
    fixed = [within(node, ends[node.role]) for node in traced.nodes if node.role in ends]
    sides: dict[bool, list[list[tuple[float, float]]]] = {True: [[*fixed]], False: [[*fixed]]}
    places = []
    for node in traced.nodes:
        if node.role in ends:
            places.append((ends[node.role], 0.5))
            continue
        x, rows = float(node.index[0]), sides[node.role == "source"]
        left, right = within(node, x)
        free = (n for n, taken in enumerate(rows) if all(right < other[0] or left > other[1] for other in taken))
        row = next(free, len(rows))
        rows[row:] = [[*(rows[row] if row < len(rows) else []), (left, right)], *rows[row + 1 :]]
        places.append((x, float(-row if node.role == "source" else row + 1)))
    return places


def _whiskers(axes: Axes, place, middle, low, high, *, colour: str = INK, vertical: bool = False) -> None:
    """Intervals as thin lines; NaN draws nothing."""
    low, high = (np.where(np.isnan(end), middle, end) for end in (low, high))
    lines = axes.vlines if vertical else axes.hlines
    lines(place, low, high, color=colour, linewidth=1.1 if vertical else 1.5, alpha=0.8, zorder=3)


def _label_dots(
    axes: Axes, x: np.ndarray, y: np.ndarray, name: Callable[[int], str], order: np.ndarray, width: float, most: int = 7
) -> None:
    """Names beside the first dots of an order, leaving out those that would lie on another name. width: of x."""
    if not len(y):
        return
    height = np.ptp(y) or 1.0
    placed: list[tuple[float, float]] = []
    for number in order[:40]:
        if len(placed) == most:
            return
        if any(abs(x[number] - a) < 0.085 * width and abs(y[number] - b) < 0.065 * height for a, b in placed):
            continue
        placed.append((float(x[number]), float(y[number])))
        is_late = x[number] > axes.get_xlim()[1] - 0.1 * width
        axes.annotate(
            name(int(number)),
            (x[number], y[number]),
            xytext=(-5 if is_late else 5, 0),
            textcoords="offset points",
            ha="right" if is_late else "left",
            va="center",
            fontsize=8,
            zorder=6,
        )


def _role_panel(axes: Axes, placed: Roles, kind: str, panels: int) -> None:
    """Every component that can reach the anchor, E_a on x and E_w on y, with the lines that part the roles. panels: side by side."""
    sort, frame = placed.weights.partition[kind], wording.placed(placed, kind)
    own, passed = 100 * frame["E_w"].to_numpy(np.float64), 100 * frame["E_a"].to_numpy(np.float64)
    is_crowded = len(frame) > MOST_VECTOR_CELLS
    for role, look in drawing.ROLE_LOOKS.items():
        at = (frame["role"] == role).to_numpy()
        is_neither = role == "neither"
        axes.scatter(
            passed[at],
            own[at],
            **look,
            alpha=0.6 if is_neither else 0.9,
            edgecolor="none" if is_neither else "white",
            linewidth=0 if is_neither else 0.5,
            zorder=2 if is_neither else 4,
            rasterized=is_neither and is_crowded,
        )
    axes.margins(0.06)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    dashed: dict[str, Any] = dict(color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    criteria, high = placed.criteria, placed.criteria.share * max(passed.max(), 0)
    axes.axvline(high, **dashed)
    axes.axhline(criteria.share * max(own.max(), 0), **dashed)
    end = axes.get_xlim()[1]
    axes.plot([high, end], [criteria.own * high, criteria.own * end], **dashed)
    axes.axhline(0, color=SOFT, linewidth=0.7, zorder=1)
    axes.axvline(0, color=SOFT, linewidth=0.7, zorder=1)
    strongest = wording.strongest_of_roles(frame, NUM_NAMED)
    names = [name.rpartition(" ")[2] for name in frame["name"]]
    _label_dots(
        axes, passed, own, names.__getitem__, strongest.index.to_numpy(), panels * np.ptp(axes.get_xlim()), most=12
    )
    axes.set_xlabel("E_a: what passes through (% of the gap)")
    axes.set_ylabel("E_w: its own weights (% of the gap)")
    axes.set_title(f"{wording.capital(wording.plural(kind))}, labelled {'.'.join(sort.axes)}", pad=9)
    drawing.grid(axes, "both")


def _depth_profile(total: Axes, index: Axes, rows: pd.DataFrame, anchor: int) -> None:
    """Sums of the positive scores by layer, and the source index with its interval."""
    for column, role in (("E_a", "relay"), ("E_w", "source")):
        look, height = drawing.ROLE_LOOKS[role], 100 * rows[column]
        total.fill_between(rows["layer"], height, color=look["color"], alpha=0.15, linewidth=0)
        total.plot(
            rows["layer"], height, color=look["color"], marker=look["marker"], markersize=3.5, label=f"sum of {column}"
        )
    _headroom(total, 100 * rows[["E_w", "E_a"]].to_numpy().max(initial=0), 0)
    total.legend(loc="upper left", ncols=2, borderaxespad=0.2, handlelength=1.6, columnspacing=1.4)
    total.set_ylabel("% of the gap")
    total.set_title("Added up by layer", pad=16)
    known = rows.dropna(subset="source_index")
    _whiskers(index, known["layer"], known["source_index"], known["low"], known["high"], vertical=True)
    sums = known["E_w"] + known["E_a"]
    index.scatter(known["layer"], known["source_index"], s=5 + 45 * sums / sums.max(), color=INK, linewidth=0, zorder=4)
    index.axhline(0.5, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    index.set_ylim(-0.04, 1.04)
    index.set_yticks([0, 0.5, 1], ["0, relays", "0.5", "1, sources"])
    index.set_title("Source index of each layer")
    index.set_xlabel("layer")
    for axes in (total, index):
        drawing.grid(axes)
        drawing.mark_anchor(axes, anchor, len(rows), label=axes is total)
        drawing.layer_ticks(axes, len(rows))


def _headroom(axes: Axes, top: float, bottom: float) -> None:
    """Room below, and above the highest mark, for a legend."""
    span = (top - bottom) if np.isfinite(top - bottom) and top > bottom else 1.0
    axes.set_ylim(bottom - 0.06 * span, (top if np.isfinite(top) else 1.0) + 0.3 * span)


def _looks(drawn: list[Curve]) -> list[tuple[Curve, dict]]:
    """Controls first, in greys with dashes and markers of their own; the ranking last, on top, in colour."""
    main = wording.main_curve(drawn)
    controls = [curve for curve in drawn if curve is not main]
    looks = [
        (
            curve,
            {
                "color": drawing.CONTROL_GREYS[n % len(drawing.CONTROL_GREYS)],
                "linestyle": drawing.CONTROL_DASHES[n % len(drawing.CONTROL_DASHES)],
                "marker": drawing.CONTROL_MARKERS[n % len(drawing.CONTROL_MARKERS)],
                "markersize": 3.5,
                "linewidth": 1.3,
                "label": curve.name,
            },
        )
        for n, curve in enumerate(controls)
    ]
    return [
        *looks,
        (main, {"color": POSITIVE, "marker": "o", "linewidth": 2.1, "label": f"{main.name} (by E_w)", "zorder": 5}),
    ]


def _level(axes: Axes, value: float, name: str) -> None:
    """A dotted line across, with its name at the right end."""
    axes.axhline(value, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0)
    axes.annotate(
        name,
        (1, value),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        fontsize=8,
        color=SOFT,
    )


def _mark_ceiling(axes: Axes, findings: Findings) -> None:
    if (found := wording.ceiling(findings)) is None:
        return
    name, share = found
    axes.axhline(100 * share, color=INK, linewidth=1, linestyle=(0, (5, 3)), zorder=1)
    axes.annotate(
        f"{name}: {wording.percent(share)}",
        (0, 100 * share),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=8,
        color=INK,
    )


def _mode_title(mode: str) -> str:
    titles = {
        "restoration": "Restoration: special's weights put into base",
        "knockout": "Knockout: base's weights put into special",
    }
    return titles.get(mode, mode)


def _layer_search(share: Axes, apart: Axes, candidates, chosen: int) -> None:
    """Split-half cosine and steering success on one scale, separation on its own; the chosen layer marked."""
    table = pd.DataFrame(candidates).sort_values("layer")
    share.plot(
        table.layer, table.split_half, color=SOFT, marker="s", markersize=3.5, linewidth=1.3, label="split-half cosine"
    )
    if table.success.notna().any():
        share.plot(table.layer, table.success, color=POSITIVE, marker="o", label="steering success")
    share.set_ylim(min(0.0, table.split_half.min()) - 0.03, 1.32)
    share.set_yticks(np.arange(0, 1.01, 0.25))
    share.set_title("Layer search")
    share.set_ylabel("cosine; share of answers")
    share.legend(loc="upper left", borderaxespad=0.1, handlelength=1.6, labelspacing=0.25)
    apart.plot(table.layer, table.separation, color=INK, marker="D", markersize=3.5, linewidth=1.3)
    _headroom(apart, max(0.0, table.separation.max()), min(0.0, table.separation.min()))
    apart.set_title("Separation")
    apart.set_ylabel("pooled standard deviations")
    for axes in (share, apart):
        axes.axvline(chosen, color=POSITIVE, linewidth=7, alpha=0.16, zorder=0)
        axes.set_xlabel(f"layer (chosen: {chosen})")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        drawing.grid(axes)
