"""Figures show the data they were given, and only what was scored."""

import dataclasses
import xml.etree.ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from reporting_cases import HOSTILE, curve, with_scores

from jaxpatch.reporting import drawing, figures, wording


def texts(figure) -> str:
    return drawing.svg(figure, "x")


def test_only_what_was_scored_is_drawn(exact, screened, coarse):
    both = ["anchor", "top_components", "head_map", "neuron_depth"]
    assert list(figures.make(exact)) == [*both, "roles", "flow", "curves", "behaviour"]
    assert list(figures.make(screened)) == [
        "anchor",
        "top_components",
        "head_map",
        "roles",
        "flow",
        "agreement",
        "curves",
        "behaviour",
    ]
    shapes = ["layer_depth", "kv_map", "matrix_map", "norm_map"]
    assert list(figures.make(coarse)) == ["anchor", "top_components", *shapes]


def test_head_map_is_the_scores_in_per_cent_on_a_range_symmetric_about_0(exact):
    values = exact.scores.values["head"]
    mesh = figures.head_map(exact).axes[0].collections[0]
    assert np.allclose(mesh.get_array(), 100 * values.T)
    low, high = mesh.get_clim()
    assert low == -high and high == pytest.approx(100 * np.abs(values).max())


def test_zero_scores_are_drawn_without_a_warning(exact):
    nothing = with_scores(exact, np.zeros((3, 4)))
    mesh = figures.head_map(nothing).axes[0].collections[0]
    assert mesh.get_clim() == (-1, 1)
    neurons = {"neuron": np.zeros((3, 24), np.float32)}
    silent = nothing._replace(scores=dataclasses.replace(nothing.scores, values=neurons))
    assert all(len(part.get_offsets()) == 0 for part in figures.neuron_depth(silent).axes[0].collections[:1])


def test_the_anchor_is_marked_after_its_block_unless_there_is_none(exact):
    def marks(findings):
        return [line.get_xdata()[0] for line in figures.head_map(findings).axes[0].lines]

    assert marks(exact) == [1.5]
    toy = exact._replace(scores=dataclasses.replace(exact.scores, layer=-1))
    assert marks(toy) == []


def test_neuron_depth_holds_every_neuron_that_scores_and_the_sums_of_each_layer(exact):
    values = 100 * exact.scores.values["neuron"]
    single, total = figures.neuron_depth(exact).axes
    assert len(single.collections[0].get_offsets()) == np.count_nonzero(values)
    assert single.collections[0].get_rasterized()
    heights = np.array([bar.get_height() for bar in total.patches if bar.get_width() == 0.72])
    assert np.allclose(heights[:3], np.clip(values, 0, None).sum(1))
    assert np.allclose(heights[3:6], np.clip(values, None, 0).sum(1))


def test_coarse_depth_has_a_bar_a_layer(coarse):
    bars = [bar for bar in figures.coarse_depth(coarse, "layer").axes[0].patches if bar.get_width() == 0.72]
    assert np.allclose([bar.get_height() for bar in bars], 100 * coarse.scores.values["layer"])


def test_matrices_are_named_on_the_axis(coarse):
    labels = [label.get_text() for label in figures.head_map(coarse, "matrix").axes[0].get_yticklabels()]
    assert labels == ["q", "k", "v", "o", "gate", "up", "down"]


def test_top_components_are_those_of_the_table_and_hollow_where_estimated(screened):
    axes = figures.top_components(screened, 12).axes[0]
    frame = screened.scores.to_frame().query("layer <= @screened.scores.layer")
    assert len(frame) < len(screened.scores.to_frame()), "some components stand above the anchor"
    frame = frame.sort_values("score", ascending=False, kind="stable").head(12)
    assert [label.get_text() for label in axes.get_yticklabels()] == frame.name.tolist()
    dots = [c for c in axes.collections if len(c.get_offsets()) and c.get_facecolor().size]
    points = np.concatenate([c.get_offsets() for c in dots if c.get_offsets().shape[1] == 2 and c.get_sizes().size])
    assert np.allclose(np.sort(points[:, 0])[::-1], 100 * frame.score)
    assert ("hollow" in texts(figures.top_components(screened, 12))) == (not frame.is_exact.all())


def test_every_component_stands_in_the_map_by_its_two_scores_and_in_the_colour_of_its_role(exact):
    figure = figures.roles(exact)
    single = figure.axes[0]
    frame = exact.roles.to_frame().query("kind == 'head' and layer <= @exact.scores.layer")
    for role, dots in zip(drawing.ROLE_LOOKS, single.collections, strict=True):
        rows = frame[frame["role"] == role]
        assert np.allclose(dots.get_offsets(), 100 * rows[["E_a", "E_w"]])
    named = {text.get_text() for text in single.texts}
    assert wording.strongest_of_roles(frame, 1)["name"].iloc[0].removeprefix("head ") in named
    assert not any(name in named for name in frame[frame["role"] == "neither"]["name"].str.removeprefix("head "))
    lines = [line.get_xydata() for line in single.lines]
    share, own = exact.roles.criteria
    high = share * 100 * frame["E_a"].max()
    assert np.allclose(lines[0][:, 0], high) and np.allclose(lines[1][:, 1], share * 100 * frame["E_w"].max())
    assert np.allclose(lines[2][:, 1], own * lines[2][:, 0]) and lines[2][0, 0] == pytest.approx(high)


def test_below_the_map_stand_the_sums_of_each_layer_and_its_source_index(exact):
    single, _, total, _, index, _ = figures.roles(exact).axes
    rows = exact.roles.by_layer().query("kind == 'head'")
    drawn = {line.get_label(): line.get_ydata() for line in total.lines}
    for score in ("E_w", "E_a"):
        assert np.allclose(drawn[f"sum of {score}"], 100 * rows[score])
    known = rows.dropna()
    assert 0 < len(known) <= exact.scores.layer + 1
    assert np.allclose(index.collections[1].get_offsets(), known[["layer", "source_index"]])
    assert "Heads" in single.get_title(loc="left") and total.get_title(loc="left") == "Added up by layer"


@pytest.mark.parametrize("kinds", [("head",), ("head", "neuron", "head")])
def test_the_map_has_a_column_a_kind_and_goes_on_below_when_they_are_many(exact, kinds):
    roles = exact.roles
    renamed = {f"{kind}{number}": kind for number, kind in enumerate(kinds)}

    def told(found):
        parts = ("values", "effects", "low", "high", "partition")
        return dataclasses.replace(
            found, **{part: {name: getattr(found, part)[kind] for name, kind in renamed.items()} for part in parts}
        )

    several = dataclasses.replace(
        roles,
        weights=told(roles.weights),
        activations=told(roles.activations),
        roles={name: roles.roles[kind] for name, kind in renamed.items()},
    )
    shown = [axes for axes in figures.roles(exact._replace(roles=several)).axes if axes.get_visible()]
    assert len(shown) == 3 * len(kinds)


def test_agreement_shows_every_replaced_component(screened):
    axes = figures.agreement(screened).axes[0]
    found = screened.scores.screening["head"]
    assert sum(len(part.get_offsets()) for part in axes.collections) == found.replaced.sum()
    assert f"Spearman {found.spearman:.3f}".replace("-", "−") in axes.texts[0].get_text()


def test_curves_are_drawn_at_their_k_controls_in_grey_and_the_ranking_on_top(exact):
    panels = figures.curves(exact).axes
    assert len(panels) == 4 and panels[0].get_xscale() == "log"
    lines = {line.get_label(): line for line in panels[0].lines if not line.get_label().startswith("_")}
    assert set(lines) == {"top (by E_w)", "largest change", "random, same layers", "random, same changes", "random"}
    top = next(c for c in exact.curves if (c.name, c.mode) == ("top", "restoration"))
    assert np.allclose(lines["top (by E_w)"].get_xydata(), np.stack([top.ks, 100 * top.recovery], 1))
    assert lines["top (by E_w)"].get_color() == drawing.POSITIVE
    assert lines["random"].get_color() in drawing.CONTROL_GREYS
    ceiling = exact.scores.ceilings["head + neuron"]
    assert any(np.allclose(line.get_ydata(), 100 * ceiling) for line in panels[0].lines)


def test_panels_of_a_row_share_an_axis_that_holds_both(exact):
    """Knockout's KL is often larger by far than restoration's."""
    low, high = curve("top", "restoration", [0.1, 0.5, 0.9]), curve("top", "knockout", [0.9, 0.5, -4.0])
    for axes in figures.curves(exact._replace(curves=(low, high))).axes:
        ends = axes.get_ylim()
        assert all(ends[0] <= y <= ends[1] for line in axes.lines for y in line.get_ydata())


def test_one_mode_makes_one_column(exact):
    one = exact._replace(curves=(curve("top", "knockout", [0.9, 0.5, 0.1]),))
    assert len(figures.curves(one).axes) == 2


def test_anchor_shows_both_sets_of_prompts_and_the_search_only_where_there_was_one(exact, coarse):
    assert len(figures.anchor(exact).axes) == 1
    assert [label.get_text() for label in figures.anchor(coarse).axes[0].get_yticklabels()] == [
        "scoring prompts\n(n = 6)"
    ]
    info = exact.anchor_info
    other = info.candidates[0]._replace(layer=2, separation=np.inf, success=0.5)
    searched = exact._replace(anchor_info=info._replace(candidates=(*info.candidates, other)))
    assert len(figures.anchor(searched).axes) == 3


def test_svg_is_well_formed_reproducible_and_keeps_to_its_own_ids(exact, drawn):
    assert drawing.svg(figures.neuron_depth(exact), "neuron_depth") == drawn["neuron_depth"]
    seen: set[str] = set()
    for name, text in drawn.items():
        ids = {part.get("id") for part in ET.fromstring(text).iter() if part.get("id")}
        assert ids and all(i.startswith(f"{name}-") for i in ids) and not ids & seen
        seen |= ids


def test_hostile_names_neither_break_a_figure_nor_escape_into_it(hostile, hostile_drawn):
    for text in hostile_drawn.values():
        assert "<script" not in text
        ET.fromstring(text)
    assert "alert" in hostile_drawn["curves"]
    assert HOSTILE in [text.get_text() for text in figures.curves(hostile).legends[0].get_texts()]


def test_save_all_writes_what_it_returns(exact, tmp_path):
    drawn = figures.save_all(with_scores(exact, np.eye(3, 4)), tmp_path / "figures")
    assert sorted(path.stem for path in (tmp_path / "figures").iterdir()) == sorted(drawn)
    for name, text in drawn.items():
        assert (tmp_path / "figures" / f"{name}.svg").read_text(encoding="utf-8").endswith(text)


def test_matplotlib_keeps_its_own_settings(exact):
    before = dict(mpl.rcParams)
    drawing.svg(figures.head_map(exact), "x")
    assert dict(mpl.rcParams) == before


def test_graph_has_a_mark_a_component_and_an_arrow_an_edge_that_counts(exact):
    traced = exact.flow
    axes = figures.flow(exact).axes[0]
    named = [text.get_text() for text in axes.texts]
    assert named == [node.name.replace(" ", wording.SPACE) for node in traced.nodes]
    assert len(axes.patches) == len(traced.edges) > 4
    for text, node in zip(axes.texts, traced.nodes, strict=True):
        assert text.xy[0] == (node.index[0] if node.index else exact.scores.layer + 0.5)
    assert len({text.xy for text in axes.texts}) == len(named), "no two stand on each other"
