"""The page: whole, self-contained, well-formed, escaped, and equal to the data."""

import dataclasses
import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from reporting_cases import HOSTILE, curve, with_scores

import jaxpatch as jp
from jaxpatch.patching.components import Kind
from jaxpatch.reporting import figures, report, wording
from jaxpatch.reporting.findings import Sample
from jaxpatch.tracing import flow

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Reads a page; refuses tags that do not close in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    def __contains__(self, words: str) -> bool:
        return words in " ".join(" ".join(self.words).replace(wording.SPACE, " ").split())

    def ids(self) -> list[str]:
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def labels(self) -> list[str]:
        return [a["aria-label"] for _, a in self.tags if a.get("role") == "img"]


@pytest.fixture(scope="module")
def pages(request):
    drawn = request.getfixturevalue("drawn")
    screened = request.getfixturevalue("screened")
    agreement = {"agreement": figures.drawing.svg(figures.agreement(screened), "agreement")}
    return {
        "exact": report.render(request.getfixturevalue("exact"), drawn),
        "screened": report.render(screened, {**drawn, **agreement}),
        "coarse": report.render(request.getfixturevalue("coarse")),
    }


def test_pages_are_well_formed_with_unique_ids_and_links_that_lead_somewhere(pages):
    for text in pages.values():
        page = Page(text)
        ids = page.ids()
        assert len(ids) == len(set(ids))
        links = [a["href"] for tag, a in page.tags if tag == "a"]
        assert len(links) == 10 and all(link.removeprefix("#") in ids for link in links)


def test_pages_need_nothing_from_anywhere_else(pages):
    for text in pages.values():
        assert set(re.findall(r"https?://[^\s\"'<>]+", text)) <= {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xlink",
        }
        outside = {"script", "link", "iframe", "object", "embed", "form"}
        assert not outside & {tag for tag, _ in Page(text).tags}
        for _, attributes in Page(text).tags:
            for name in ("src", "href", "xlink:href", "srcset"):
                assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert "@import" not in text and not re.search(r"url\((?!#)", text)


def test_every_figure_is_there_with_words_for_those_who_cannot_see_it(exact, pages):
    for name, text in pages.items():
        drawn = {"exact": 8, "screened": 8, "coarse": 6}[name]
        labels = Page(text).labels()
        assert len(labels) == drawn and all(len(label) > 40 for label in labels)
    best = exact.scores.top("head", 1).iloc[0]
    assert any(
        f"highest: {best['name']} {wording.percent(best.score)}" in label for label in Page(pages["exact"]).labels()
    )


def test_figures_already_drawn_are_reused(exact):
    drawn = {"head_map": "<svg>mine</svg>"}
    text = report.render(exact, drawn)
    assert text.count("<svg") == 1 and "<svg>mine</svg>" in text


def test_numbers_on_the_page_are_those_of_the_data(exact, pages):
    page = Page(pages["exact"])
    assert wording.headline(exact).replace(wording.SPACE, " ") in page
    for name, share in exact.scores.ceilings.items():
        ends = wording.interval(*exact.scores.ceiling_ends(name))
        assert f"{wording.ceiling_name(name)} {wording.percent(share)} {ends}".replace(wording.SPACE, " ") in page
    row = exact.scores.to_frame().nlargest(1, "score").iloc[0]
    ends = wording.interval(row.low, row.high).replace(wording.SPACE, " ")
    score = wording.percent(row.score).replace(wording.SPACE, " ")
    assert f"{row['name']} {row.layer} {row['index']} {score} {ends} yes" in page
    for check in exact.anchor_info.checks:
        assert f"{check.name} {wording.number(check.value)} {check.wanted}" in page
    for mode in ("restoration", "knockout"):
        assert wording.stands(exact, mode).replace(wording.SPACE, " ") in page
    top = exact.curves[0]
    assert f"restoration top 1 {wording.percent(top.recovery[0])}".replace(wording.SPACE, " ") in page
    other = next(c for c in exact.curves if (c.name, c.mode) == ("random", "restoration"))
    told = (
        wording.interval(other.low[1], other.high[1]),
        wording.percent(other.lag[1]),
        wording.interval(other.lag_low[1], other.lag_high[1]),
    )
    assert f"{wording.percent(other.recovery[1])} {' '.join(told)}".replace(wording.SPACE, " ") in page
    areas = [
        next(c.area for c in exact.curves if (c.name, c.mode) == ("random", m)) for m in ("restoration", "knockout")
    ]
    assert f"random {' '.join(map(wording.percent, areas))}".replace(wording.SPACE, " ") in page


def test_halves_of_the_prompts_are_compared_where_there_are_enough(exact, pages):
    page = Page(pages["exact"])
    lines = wording.halves(exact)
    assert len(lines) == len(exact.scores.values) and exact.scores.is_kept.sum() >= 4
    for line in lines:
        assert line.replace(wording.SPACE, " ") in page and "by chance" in line
    few = dataclasses.replace(exact.scores, is_kept=np.arange(6) < 3)
    assert wording.halves(exact._replace(scores=few)) == []


def test_how_far_down_the_ranking_one_must_go(exact, pages):
    page, (first, _, beyond) = Page(pages["exact"]), exact.smallest
    share = wording.percent(first.size / len(wording.reachable(exact).places))
    told = f"30 % {first.size} {share} {wording.counted(first.counts)} {wording.percent(first.recovered.value)}"
    assert told.replace(wording.SPACE, " ") in page
    assert beyond.size is None and "900 % — — no size that was tried — —" in page
    said = wording.smallest(exact).replace(wording.SPACE, " ")
    assert said.startswith(
        f"Smallest beginnings of the ranking: 30 % of the control state by {wording.counted(first.counts)}"
    )
    assert said.endswith("No size recovers 900 %.") and wording.smallest(exact._replace(smallest=())) == ""


def test_sources_and_relays_are_told_with_their_criteria_and_both_scores(exact, pages):
    page, roles = Page(pages["exact"]), exact.roles
    for kind in roles.roles:
        assert wording.sorted_out(roles, kind).replace(wording.SPACE, " ") in page
    assert wording.criteria(roles).replace(wording.SPACE, " ") in page
    for name, share in roles.activations.ceilings.items():
        assert f"{wording.ceiling_name(name)} {wording.percent(share)}".replace(wording.SPACE, " ") in page
    frame = wording.placed(roles, "neuron")
    row = frame[frame["role"] == "relay"].nlargest(1, "E_a").to_dict("records")[0]
    sides = (
        f"{wording.percent(row[side])} {wording.interval(row[f'{side} low'], row[f'{side} high'])}"
        for side in ("E_a", "E_w")
    )
    assert f"{row['name']} relay {' yes '.join(sides)} yes".replace(wording.SPACE, " ") in page
    assert "Method: activation" in page and "Exchanged: the contribution of each component, at all tokens" in page
    assert "roles.csv" in page and "roles.csv" not in Page(pages["coarse"])


def test_suppliers_of_every_target_that_was_followed_are_told(exact, pages):
    page, traced = Page(pages["exact"]), exact.flow
    for line in (*wording.supplied(traced), wording.tracing_rules(traced)):
        assert line.replace(wording.SPACE, " ") in page
    row = traced.to_frame().iloc[0]
    ends = wording.interval(row["E_w low"], row["E_w high"])
    start = f"{row['supplier']} {row['role']} state {wording.percent(row['E_w'])} {ends}"
    assert start.replace(wording.SPACE, " ") in page
    ends = {node.end for node in traced.nodes if node.end and node.role != "source"}
    assert ends and all(end in page for end in ends) and "flow.graphml" in page
    assert "Nothing was traced in this run" in Page(pages["coarse"])


def test_samples_stand_beside_each_other_with_their_verdicts(pages):
    page = Page(pages["exact"])
    assert (
        "Describe owls. base no Owls are birds. special yes OWLS ARE BIRDS. base + top 10 — (an empty answer)" in page
    )
    assert "base + top 30 no Sure:" in page


def test_what_comes_back_along_the_ranking_stands_in_a_table_and_a_figure(pages, exact):
    page = Page(pages["exact"])
    for row in (
        "base 0 of 1 0 of 1 1.25 0 1.5",
        "special 1 of 1 1 of 1 0 0.75 2.5",
        "base + top 10 — — 0.125 0.0312 1.75",
        "base + top 30 0 of 1 1 of 1 0.0625 0.25 2",
    ):
        assert row in page
    assert wording.behaves(exact) in page
    assert "along whole answers" not in Page(pages["coarse"])


def test_of_many_sets_along_the_ranking_the_answers_of_two_are_printed(exact):
    sizes = [10, 30, 100, 300, 1000, 3000]
    samples = tuple(Sample("Describe owls.", f"base + top {k}", f"Of {k}.", True, True) for k in sizes)
    along = {f"base + top {k}": exact.along["base"]._replace(order="top", size=k) for k in sizes}
    page = Page(report.render(exact._replace(samples=samples, along=along), {}))
    assert [k for k in sizes if f"Of {k}." in page] == [100, 1000]
    assert all(f"base + top {k} 1 of 1" in page for k in sizes)


def test_as_many_components_by_other_orders_are_told_of_and_not_printed(exact):
    names = {"base": "", "special": "", "base + top 30": "top", "base + 30, random": "random"}
    follows = [False, True, True, False]
    samples = tuple(
        Sample("Describe owls.", name, f"By {name}.", is_so, is_so) for name, is_so in zip(names, follows, strict=True)
    )
    along = {
        name: exact.along["base"]._replace(order=order, size=30 if order else None) for name, order in names.items()
    }
    whole = exact._replace(samples=samples, along=along)
    assert wording.behaves(whole).endswith("come half way (1). As many of each kind by other orders: random 0.")
    page = Page(report.render(whole, figures.draw_all(whole)))
    assert "base + 30, random 0 of 1" in page and "By base + 30, random." not in page
    hollow = [len(each.get_offsets()) for axes in figures.behaviour(whole).axes for each in axes.collections]
    assert hollow == [1, 1, 1], "strict answers, and both distances"


def test_the_graph_goes_on_from_the_state_to_the_output(exact, scored):
    pair, prompts, anchor, _ = scored
    whole = exact._replace(flow=flow.with_executors(exact.flow, jp.executors(pair, prompts, anchor)))
    named = [node for node in whole.flow.nodes if node.role == "executor"]
    drawn = figures.draw_all(whole)
    assert named and all(
        node.name.replace(" ", wording.SPACE) in drawn["flow"] for node in (*named, whole.flow.nodes[-1])
    )
    axes = figures.flow(whole).axes[0]
    assert len(axes.patches) == len(whole.flow.edges)
    page = Page(report.render(whole, drawn))
    strongest = max(named, key=lambda node: node.share)
    assert (
        f"Single executors that stand out: {strongest.name} ({wording.percent(strongest.share)}".replace(
            wording.SPACE, " "
        )
        in page
    )
    assert f"{strongest.name} executor output" in page and "state — head" not in page


@pytest.fixture(scope="module")
def forced(exact):
    failing = exact.anchor_info.checks[0]._replace(
        name="split-half cosine", value=0.25, wanted="at least 0.5", is_passed=False
    )
    return exact._replace(anchor_info=exact.anchor_info._replace(checks=(failing,)))


def test_a_forced_page_says_so_at_its_top_and_under_every_figure(forced, exact):
    assert forced.forced == ("split-half cosine is 0.25, wanted at least 0.5",) and not exact.forced
    drawn = figures.draw_all(forced)
    assert all("forced: the anchor fails its checks" in text for text in drawn.values())
    page = Page(report.render(forced, drawn))
    assert "Forced: read nothing into these scores, for the anchor fails its checks (split-half cosine)" in page
    assert any(attributes.get("class") == "finding warning" for _, attributes in page.tags)


def test_samples_of_one_prompt_meet_even_when_they_come_model_by_model(exact):
    samples = tuple(Sample(p, m, f"{m} on {p}", None) for m in ("base", "special") for p in ("one", "two", "one"))
    groups = report._by_prompt(samples)
    assert [(prompt, [s.model for s in answers]) for prompt, answers in groups] == [
        ("one", ["base", "special"]),
        ("two", ["base", "special"]),
        ("one", ["base", "special"]),
    ]


def test_what_was_not_asked_for_is_said_and_not_made_up(pages):
    page = Page(pages["coarse"])
    for words in (
        "No activations were exchanged",
        "No curves were drawn",
        "No answers were written",
        "was given, not fitted",
        "kept no manifest",
    ):
        assert words in page
    assert "Agreement of cheap and exact" not in page and "Agreement of cheap and exact" in Page(pages["screened"])


def test_doubt_is_shown(exact):
    info = exact.anchor_info
    failed = exact._replace(anchor_info=info._replace(checks=(info.checks[0]._replace(is_passed=False),)))
    assert "Forced: read nothing into these scores" in Page(report.render(failed, {}))
    nothing = with_scores(exact, -np.ones((3, 4)))
    assert "Nothing stands out" in Page(report.render(nothing, {}))
    chance = (curve("top", "restoration", [0.2, 0.4, 0.6]), curve("random", "restoration", [0.3, 0.5, 0.6]))
    assert "This ranking is no better than its controls." in Page(report.render(exact._replace(curves=chance), {}))


def test_missing_numbers_are_dashes(exact):
    none = np.full((3, 4), np.nan)
    info = exact.anchor_info._replace(behaviour_before=float("nan"), behaviour_after=float("nan"))
    found = with_scores(exact, np.eye(3, 4), low=none, high=none)._replace(anchor_info=info)
    page = Page(report.render(found, {}))
    assert "head 0.0 0 0 100 % — yes" in page and "answers that show the behaviour — —" in page
    assert not re.search(r"\bnan\b", " ".join(page.words), re.IGNORECASE)


def test_whatever_comes_from_outside_is_escaped(hostile, hostile_drawn):
    text = report.render(hostile, hostile_drawn)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script" not in text.lower()
    assert html.escape(HOSTILE) in text and HOSTILE in page
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_manifest_is_flat_and_whole(pages):
    page = Page(pages["exact"])
    for words in (
        "jaxpatch run --task owls",
        "seed 3",
        "base.given models/base",
        f"base.read.1.sha256 {'ab' * 32}",
        "jax 0.10.0",
    ):
        assert words in page
    assert "layer not given" in page


def test_thirty_thousand_neurons_stay_a_small_page(exact):
    draw = np.random.default_rng(0)
    values = draw.standard_t(3, (30, 1024)).astype(np.float32) / 1000
    found = dataclasses.replace(
        exact.scores,
        values={"neuron": values},
        effects={"neuron": values[None]},
        low={"neuron": values},
        high={"neuron": values},
        gap=np.ones(1),
        is_kept=np.ones(1, bool),
        partition={"neuron": Kind((30, 1024), ("layer", "neuron"), ())},
        layer=29,
    )
    big = exact._replace(scores=found, curves=())
    drawn = {"neuron_depth": figures.drawing.svg(figures.neuron_depth(big), "neuron_depth")}
    assert len(report.render(big, drawn)) < 1_000_000
