"""What a run found, as one HTML page that needs no other file, no network and no script."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxpatch.measuring.anchors import AnchorInfo
from jaxpatch.reporting import figures, page, stylesheet, wording
from jaxpatch.reporting.findings import Findings, Sample
from jaxpatch.reporting.page import Column, Html
from jaxpatch.reporting.wording import DASH, SPACE
from jaxpatch.scoring.scores import Scores

NUM_TOP = 20
NUM_AGAINST = 5
NUM_OF_ROLE = 5
"""Of each kind and role, in the table."""
NUM_PROMPTS_SHOWN = 6
"""Prompts whose answers are in sight; the rest is folded away."""
SIZES_SHOWN = (100, 1000)
"""Of the sets along the ranking, those nearest to these have their answers printed."""
NUM_TO_READ = 3
"""Names of components in the description of a figure."""

E_W = (
    "E_w of a component: take its weights from special, put them into base, leave all else as it is, and measure on "
    f"the same prompts how much of the distance between base and special along the anchor is made up. 0{SPACE}% is "
    f"nothing, 100{SPACE}% all of it; below 0 the component works against the behaviour."
)
E_A = (
    "E_a of a component: leave all of base's weights as they are, but let the component write what it writes in "
    "special's own run on the same prompt. E_w says whose weights make the difference, E_a where the difference is seen: a "
    "component whose weights hardly changed still writes something else if others changed what it reads."
)
INTERVAL = (
    f"Intervals are 95{SPACE}% bootstrap intervals over prompts: how far the score would move with other prompts of "
    "this kind."
)


def render(findings: Findings, drawn: Mapping[str, str] | None = None) -> str:
    """The report as HTML text.

    Args:
        drawn: the figures as SVG text by name, as `figures.save_all` returns them; made anew where not given.

    Everything that comes from prompts, models, paths and options is escaped.
    """
    drawn = figures.draw_all(findings) if drawn is None else drawn
    parts = {
        "asked": ("What was asked", _asked(findings)),
        "anchor": ("The anchor", _anchor(findings, drawn)),
        "scores": ("Scores", _scores(findings, drawn)),
        "relays": ("Sources and relays", _relays(findings, drawn)),
        "flow": ("Who supplies whom", _flow(findings, drawn)),
        "trust": ("Trust", _trust(findings, drawn)),
        "validation": ("Validation", _validation(findings, drawn)),
        "samples": ("What the models write", _samples(findings, drawn)),
        "limits": ("Limits", _limits(findings)),
        "reproduce": ("Reproduce", _reproduce(findings)),
    }
    links = (page.tag("li", page.tag("a", title, href=f"#{name}")) for name, (title, _) in parts.items())
    top = page.tag(
        "header",
        page.paragraph("Weight patching report", kind="kicker"),
        page.tag("h1", f"Which parameters carry “{findings.task}”?"),
        page.paragraph(wording.headline(findings), kind="finding warning" if findings.forced else "finding"),
        _cards(findings),
        page.tag("nav", page.tag("ul", *links), aria_label="Parts of this report"),
    )
    foot = page.tag(
        "footer",
        "Made by jaxpatch. The method is that of Sun et al., “Weight Patching”, arXiv 2604.13694, re-implemented "
        "from its published description; what is ours is said where it stands.",
    )
    body = page.join([top, page.tag("main", "\n", page.join(part for _, part in parts.values()), "\n"), foot])
    return page.page(f"Weight patching: {findings.task}", body, stylesheet.CSS)


def _cards(findings: Findings) -> Html:
    """The numbers to take away, big."""
    best = wording.ranking(findings).iloc[0]
    end = wording.ceiling(findings, None if findings.curves else best["kind"])
    info = findings.anchor_info
    judged = wording.behaviour(findings).query("judged > 0").head(2)
    cards: list[tuple[str, str, str]] = [
        (
            "Strongest single component",
            best["name"],
            f"E_w {wording.percent(best.score)}, interval {wording.interval(best.low, best.high)}",
        ),
    ]
    if end:
        cards.append((f"Recovered by {end[0]}", wording.percent(end[1]), "the ceiling of these scores"))
    passed = "" if info is None else f"{sum(c.is_passed for c in info.checks)} of {len(info.checks)} checks passed"
    cards.append(("Anchor", f"block {findings.anchor.layer}", passed or "given, not checked here"))
    found = findings.scores
    cards.append(("Scoring prompts used", f"{found.is_kept.sum()} of {len(found.is_kept)}", f"method: {found.method}"))
    if len(judged):
        told = [f"{row['strict']}/{row['judged']}" for row in judged.to_dict("records")]
        cards.append(("Answers that follow", " → ".join(told), " → ".join(judged["model"])))
    cells = [
        page.tag("div", page.tag("dt", title), page.tag("dd", value, page.tag("small", note)))
        for title, value, note in cards
    ]
    return page.tag("dl", *cells, class_="cards")


def _asked(findings: Findings) -> Html:
    return page.section(
        "asked",
        "What was asked",
        "Two models of one architecture, base and special (trained further for a behaviour), read the same prompts. "
        "Which of special's parameters, put into base, bring its inner state to where special's is?",
        page.pairs({name.replace("_", " "): _shown(value, "not given") for name, value in findings.question.items()}),
        *_likeness(findings),
    )


def _likeness(findings: Findings) -> list[Html]:
    """In what the two checkpoints differ: beside their weights, and how far in them."""
    rows = [
        [each[name] or "nothing to choose" for name in ("name", "base", "special", "chosen")]
        for each in findings.pair["differences"]
    ]
    columns = [page.Column(title) for title in ("difference", "base", "special", "whose word counts")]
    beside = page.table(columns, rows, "In what the two checkpoints differ beside their weights")
    changed = [
        [
            name,
            each["components"],
            each["changed"],
            wording.percent(each["overall"]),
            wording.percent(each["largest"]),
            each["most changed"],
        ]
        for name, each in findings.pair["changes"].items()
    ]
    titles = ("kind", "components", "changed", "|dW| / |W| of all", "largest of one", "which")
    columns = [page.Column(title, is_number=0 < n < 5) for n, title in enumerate(titles)]
    made = page.table(
        columns, changed, "How much training changed the weights themselves, whatever it did to the behaviour"
    )
    if not rows:
        beside = page.paragraph("Beside their weights the two checkpoints do not differ.")
    said = [page.paragraph(f"Logits of {role}: {each['said']}.") for role, each in findings.pair["parity"].items()]
    return [*said, beside, made]


def _anchor(findings: Findings, drawn: Mapping[str, str]) -> Html:
    info, anchor = findings.anchor_info, findings.anchor
    parts: list[Any] = [
        page.paragraph(
            f"Read after block {anchor.layer} (blocks count from 0) at the last token of the prompt, read-out "
            f"“{anchor.read_out}”. {wording.dropped(findings)}"
        )
    ]
    if info is None:
        parts.append(page.paragraph("This anchor was given, not fitted in this run: nothing here speaks for it."))
    else:
        rows = [
            (c.name, wording.number(c.value), c.wanted, page.badge(c.is_passed, ("passed", "failed", DASH)))
            for c in info.checks
        ]
        columns = (Column("check"), Column("value", is_number=True), Column("wanted"), Column("verdict"))
        parts += [page.table(columns, rows, "What the anchor must show"), _steering(info)]
    if "anchor" in drawn:
        gap = findings.scores.gap
        alt = (
            f"Dots: the gap of each of {len(gap)} scoring prompts, mean {wording.number(gap.mean())}, from "
            f"{wording.number(gap.min())} to {wording.number(gap.max())}, {findings.scores.num_dropped} dropped."
        )
        caption = (
            "G(x) = F(special, x) − F(base, x): how much further special stands along the anchor than base, on each "
            f"prompt; the line is the mean{', hollow ones were dropped' if findings.scores.num_dropped else ''}."
        )
        if info is not None and len(info.candidates) > 1:
            alt += f" Beside it, {len(info.candidates)} layers that were tried; block {anchor.layer} was chosen."
            caption += (
                " Layer search: the cosine between the directions found on two halves of the prompts, the share of "
                "base's answers that show the behaviour when the direction is added, and how far the two clouds of "
                "states lie apart."
            )
        parts.append(page.figure(drawn["anchor"], alt, caption))
    return page.section(
        "anchor",
        "The anchor and its checks",
        "The anchor is a direction in the residual stream that says how far the behaviour is switched on. It is used "
        "only if prompts agree on it, special stands further along it than base, and pushing base along it changes "
        "what base says.",
        *parts,
    )


def _steering(info: AnchorInfo) -> Html:
    columns = (
        Column("base, when pushed along the anchor"),
        Column("before", is_number=True),
        Column("after", is_number=True),
    )
    rows = (
        (
            "answers that show the behaviour",
            wording.percent(info.behaviour_before),
            wording.percent(info.behaviour_after),
        ),
        ("KL(special || base) of the next token, nats", wording.number(info.kl_before), wording.number(info.kl_after)),
        ("length of the push, units of the residual stream", DASH, wording.number(info.strength)),
    )
    return page.table(columns, rows, "Steering: the causal check")


def _scores(findings: Findings, drawn: Mapping[str, str]) -> Html:
    found = findings.scores
    rest = ""
    if "head + neuron" in found.ceilings:
        rest = (
            " Keys and values, embeddings and norms belong to neither heads nor neurons, so heads and neurons together "
            f"need not reach 100{SPACE}%."
        )
    parts: list[Any] = [
        page.tag("h3", "What patching many at once recovers"),
        page.paragraph("Single scores do not add up to these: components interact." + rest),
        _bars(found),
    ]
    for kind in found.values:
        for name, about in ((f"{kind}_map", _map_words), (f"{kind}_depth", _depth_words)):
            if name in drawn:
                parts += [
                    page.tag(
                        "h3", "Layers" if kind == "layer" else f"{wording.capital(wording.plural(kind))} by layer"
                    ),
                    page.figure(drawn[name], *about(findings, kind)),
                ]
    parts.append(page.tag("h3", "Highest scores"))
    frame = wording.ranking(findings)
    if "top_components" in drawn:
        names = ", ".join(
            f"{row['name']} {wording.percent(row.score)}" for _, row in frame.head(NUM_TO_READ).iterrows()
        )
        parts.append(
            page.figure(
                drawn["top_components"],
                f"Dot plot of the {min(figures.NUM_TOP, len(frame))} highest scores with their intervals; first "
                f"{names}.",
                "Filled: truly replaced. Hollow: the cheap estimate. A name is kind, layer and index, both counted "
                "from 0.",
            )
        )
    parts.append(_top_table(frame.head(NUM_TOP), f"The {min(NUM_TOP, len(frame))} highest scores"))
    against = frame[frame.score < 0].tail(NUM_AGAINST)[::-1]
    if len(against):
        parts.append(
            page.details("Components that work against the behaviour most", _top_table(against, "Lowest scores"))
        )
    parts.append(page.paragraph("All scores are in scores.csv, beside this page where the run wrote it.", kind="lead"))
    return page.section("scores", "Scores", f"{E_W} {INTERVAL}", *parts)


def _bars(found: Scores) -> Html:
    """What patching many at once recovers, each with its interval."""
    cells = []
    for name, share in found.ceilings.items():
        width = 0.0 if math.isnan(share) else min(abs(share), 1.0)
        fill = page.tag("div", class_="fill minus" if share < 0 else "fill", style=f"width:{100 * width:.1f}%")
        cells += [
            page.tag("div", wording.ceiling_name(name)),
            page.tag("div", fill, class_="track", aria_hidden="true"),
            page.tag("div", wording.percent(share), class_="number"),
            page.tag("div", wording.interval(*found.ceiling_ends(name)), class_="number"),
        ]
    return page.tag("div", *cells, class_="bars")


def _map_words(findings: Findings, kind: str) -> tuple[str, str]:
    values = findings.scores.values[kind]
    names = _best_names(findings, kind)
    alt = f"Heat-map of E_w over {values.shape[0]} layers and {values.shape[1]} columns a layer; highest: {names}."
    return (
        alt,
        f"{_above(findings)}Blue recovers the control state, orange works against it; the scale is the same on both "
        "sides of 0.",
    )


def _depth_words(findings: Findings, kind: str) -> tuple[str, str]:
    names = _best_names(findings, kind)
    if findings.scores.values[kind].ndim == 1:
        alt = f"Bars of E_w by layer for {wording.plural(kind)}; highest: {names}."
        return alt, f"{_above(findings)}Lines: 95{SPACE}% intervals over prompts."
    alt = f"Scores of every single {kind} by layer, and their sums; highest: {names}."
    return alt, (
        f"{_above(findings)}Above: every {kind}, side by side in the order of its index. Below: what the positive and "
        "the negative scores of a layer add up to; many small scores can outweigh one large."
    )


def _best_names(findings: Findings, kind: str) -> str:
    rows = findings.scores.top(kind, NUM_TO_READ)
    return ", ".join(f"{row['name']} {wording.percent(row.score)}" for _, row in rows.iterrows())


def _above(findings: Findings) -> str:
    layer = findings.scores.layer
    return f"Hatched: blocks above {layer} come after the anchor and cannot reach it. " if layer >= 0 else ""


def _top_table(frame, caption: str) -> Html:
    columns = (
        Column("component"),
        Column("layer", is_number=True),
        Column("index", is_number=True),
        Column("E_w", is_number=True),
        Column(f"95{SPACE}% interval", is_number=True),
        Column("truly replaced"),
    )
    rows = [
        (
            row["name"].replace(" ", SPACE),
            _place(row.layer),
            _place(row["index"]),
            wording.percent(row.score),
            wording.interval(row.low, row.high),
            page.badge(bool(row.is_exact)),
        )
        for _, row in frame.iterrows()
    ]
    return page.table(columns, rows, caption)


def _place(number: int) -> str:
    return str(number) if number >= 0 else DASH


def _relays(findings: Findings, drawn: Mapping[str, str]) -> Html:
    roles = findings.roles
    if roles is None:
        return page.section(
            "relays", "Sources and relays", E_A, page.paragraph("No activations were exchanged in this run.")
        )
    found = roles.activations
    told = [wording.sorted_out(roles, kind) for kind in roles.roles]
    parts: list[Any] = [page.paragraph(each, kind="said") for each in told]
    parts.append(page.paragraph(wording.criteria(roles)))
    if "roles" in drawn:
        parts.append(
            page.figure(
                drawn["roles"],
                f"Scatter of E_w against E_a for {wording.listed([wording.plural(kind) for kind in roles.roles])}, and both by "
                f"layer. {' '.join(told)}",
                "Above: a dot a component. Dashed: from where on a score is high, and the slanted line below which E_w is too "
                "small a part of E_a to be the component's own; a dot beyond a line stays grey where its interval holds 0. "
                "Below: what the positive scores of a layer add up to; E_a counts the same signal at every component it "
                "passes, so sums may be above 100 %. Source index: the sum of E_w over the sum of both, with its interval; "
                "near 0 a layer passes on what others made, at one half what its components write is their own; larger dots, "
                "larger sums.",
            )
        )
    parts.append(_role_table(findings))
    parts += [
        page.tag("h3", "What exchanging many at once recovers"),
        page.paragraph("E_a of whole kinds: all of their activations at once, the same prompts and anchor."),
        _bars(found),
        page.details(
            "How far E_a can be trusted",
            page.paragraph(_exchanged(findings)),
            *(page.paragraph(line) for line in wording.trust(findings._replace(scores=found))),
            *(
                [page.paragraph(f"Noise floor: {wording.noise(findings._replace(scores=found))}")]
                if found.noise
                else []
            ),
        ),
        page.paragraph("All roles are in roles.csv, beside this page where the run wrote it.", kind="lead"),
    ]
    return page.section("relays", "Sources and relays", E_A, *parts)


def _flow(findings: Findings, drawn: Mapping[str, str]) -> Html:
    traced, title = findings.flow, "Who supplies whom"
    lead = "From the state back through the relays that aggregate it to the sources that supply them, and on to the next token."
    if traced is None:
        return page.section(
            "flow", title, lead, page.paragraph("Nothing was traced in this run (`jaxpatch trace` does).")
        )
    told = wording.supplied(traced)
    parts: list[Any] = [page.paragraph(each, kind="said") for each in told]
    parts.append(page.paragraph(wording.tracing_rules(traced)))
    if "flow" in drawn:
        parts.append(
            page.figure(
                drawn["flow"],
                f"Graph of suppliers and targets by block. {' '.join(told)}",
                "From left to right by block; an arrow leads from a supplier to what it supplies, as wide as the part of its score "
                "that does not pass through another relay shown here; dashed where that is negative. Hollow: a relay that "
                "was not followed. Right of the state: components that carry it to the output, as wide as what they recover of what "
                "the formed state does to the next token.",
            )
        )
    is_asked = any(edge.through for edge in traced.edges)
    columns = (
        Column("supplier"),
        Column("role"),
        Column("of"),
        *(Column(name, is_number=True) for name in ("E_w", "interval", "E_a", "interval", "direct")),
        *((Column("most through"),) if is_asked else ()),
    )
    rows = [
        (
            row["supplier"].replace(" ", SPACE),
            row["role"],
            row["target"].replace(" ", SPACE),
            *(cell for side in ("E_w", "E_a") for cell in _score_cells(row, side)),
            wording.percent(row["direct"]),
            *((wording.through(row),) if is_asked else ()),
        )
        for row in traced.to_frame().to_dict("records")
        if row["supplier"] != "state"
    ]
    parts.append(
        page.table(
            columns,
            rows,
            "Suppliers of each target: relays, then sources, the strongest of each first; shares of the target's own gap",
        )
    )
    ends = [(node.name.replace(" ", SPACE), node.end) for node in traced.nodes if node.end and node.role != "source"]
    if ends:
        parts.append(
            page.details(
                "Why tracing ended where it did",
                page.table((Column("relay"), Column("not followed further because")), ends, ""),
            )
        )
    parts.append(page.paragraph("The graph is in flow.csv, flow.json and flow.graphml, beside this page.", kind="lead"))
    return page.section("flow", title, lead, *parts)


def _score_cells(row: Mapping[Any, Any], side: str) -> tuple[str, str]:
    if math.isnan(row[side]):
        return DASH, DASH
    return wording.percent(row[side]), wording.interval(row[f"{side} low"], row[f"{side} high"])


def _exchanged(findings: Findings) -> str:
    """What was exchanged, and how E_a was found."""
    assert findings.roles is not None
    found = findings.roles.activations
    method = f"Method: {found.method} ({wording.METHODS.get(found.method, 'ours')})."
    if found.exchange is None:
        return method
    where = {"all": "at all tokens of a prompt", "last": "at the last token of a prompt"}
    return f"{method} Exchanged: the {found.exchange.site} of each component, {where[found.exchange.positions]}."


def _role_table(findings: Findings) -> Html:
    roles = findings.roles
    assert roles is not None
    frame = pd.concat([wording.placed(roles, kind) for kind in roles.roles], ignore_index=True)
    shown = [wording.strongest_of_roles(part, NUM_OF_ROLE) for _, part in frame.groupby("kind", sort=False)]
    columns = (
        Column("component"),
        Column("role"),
        Column("E_a", is_number=True),
        Column("interval", is_number=True),
        Column("replaced"),
        Column("E_w", is_number=True),
        Column("interval", is_number=True),
        Column("replaced"),
    )
    rows = [
        (
            row["name"].replace(" ", SPACE),
            row["role"],
            *(cell for side in ("E_a", "E_w") for cell in _side(row, side)),
        )
        for row in pd.concat(shown).to_dict("records")
    ]
    return page.table(columns, rows, f"The strongest of each kind and role, at most {NUM_OF_ROLE}")


def _side(row: Mapping[Any, Any], side: str) -> tuple[str, str, Html]:
    ends = wording.interval(row[f"{side} low"], row[f"{side} high"])
    return wording.percent(row[side]), ends, page.badge(bool(row[f"{side} is exact"]))


def _trust(findings: Findings, drawn: Mapping[str, str]) -> Html:
    found = findings.scores
    parts: list[Any] = [page.paragraph(line, kind="said") for line in wording.trust(findings)]
    parts += [page.paragraph(wording.promise(kind, s)) for kind, s in found.screening.items()]
    if found.noise:
        parts.append(page.paragraph(f"Noise floor: {wording.noise(findings)}"))
    parts += [page.paragraph(line) for line in wording.halves(findings)]
    if "agreement" in drawn:
        told = "; ".join(f"{kind}: Spearman {wording.correlation(s.spearman)}" for kind, s in found.screening.items())
        parts += [
            page.figure(
                drawn["agreement"],
                f"Scatter of cheap against exact scores with the line on which both are equal. {told}.",
                "Each dot is a component that was scored both ways. On the dashed line the cheap score is exact. The "
                "random ones (open) stand for all that were not replaced. 1 is the whole gap.",
            ),
            _agreement_table(findings),
        ]
    return page.section(
        "trust",
        "Can the scores be trusted?",
        "Replacing every component one by one can be slow. A cheap score ranks them, and the replaced ones tell how "
        "good the rank is. Rounding and the choice of prompts have a part in it too.",
        *parts,
    )


def _agreement_table(findings: Findings) -> Html:
    found = findings.scores
    columns = (
        Column("kind"),
        *(
            Column(title, is_number=True)
            for title in (
                "replaced",
                "of them random",
                "Spearman",
                "signs equal",
                "slope",
                "top tenth shared",
                "error of the rest",
            )
        ),
    )
    rows = [
        (
            wording.plural(kind),
            f"{len(s.exact):,}",
            f"{int(s.is_random.sum()):,}",
            wording.correlation(s.spearman),
            wording.percent(s.sign),
            wording.number(s.slope),
            wording.percent(s.top_overlap),
            f"±{wording.number(100 * s.residual)}{SPACE}%" if s.is_random.any() else DASH,
        )
        for kind, s in found.screening.items()
    ]
    return page.join(
        [
            page.table(columns, rows, "Agreement of cheap and exact"),
            page.paragraph(
                "Slope: of exact on cheap through 0. Error of the rest: standard deviation of exact minus cheap over "
                "the random ones, as a share of the gap.",
                kind="lead",
            ),
        ]
    )


def _validation(findings: Findings, drawn: Mapping[str, str]) -> Html:
    lead = (
        "If the ranking is right, its first k components together recover more (restoration), and losing them costs "
        f"more (knockout), than as many others. Drawn on {findings.judged_on}."
    )
    if not findings.curves:
        return page.section(
            "validation", "Validation curves", lead, page.paragraph("No curves were drawn in this run.")
        )
    modes = dict.fromkeys(curve.mode for curve in findings.curves)
    parts: list[Any] = [page.paragraph(wording.stands(findings, mode), kind="said") for mode in modes]
    if "curves" in drawn:
        parts.append(
            page.figure(
                drawn["curves"],
                " ".join(wording.stands(findings, mode) for mode in modes),
                f"Above: the control state, 0{SPACE}% as in base, 100{SPACE}% as in special; bands are 95{SPACE}% "
                "intervals over prompts, and leads are judged on the same prompts drawn for both. Below: how far the "
                "next-token distribution is from special's. k runs over "
                "the ranking, all kinds together; every control takes as many of each kind. “random”: drawn "
                "at random, several draws averaged; “same layers”: each from the layer of the one in its place; “same changes”: each "
                "from those that changed about as much. “largest change”: by the size of special − base. “first order”: by the "
                "gradient alone. “largest E_a”: by what activation patching recovers. At the last k "
                "all that can reach the anchor is patched, and all orders are one.",
            )
        )
    columns = (
        Column("mode"),
        Column("order"),
        Column("k", is_number=True),
        Column("control state", is_number=True),
        Column("interval", is_number=True),
        Column("worse than the ranking by", is_number=True),
        Column("its interval", is_number=True),
        Column("KL, nats", is_number=True),
    )
    main = wording.main_curve(findings.curves).name
    rows = [
        (
            *(
                c.mode,
                c.name,
                f"{int(c.ks[n]):,}",
                wording.percent(c.recovery[n]),
                wording.interval(c.low[n], c.high[n]),
            ),
            *(
                (DASH, DASH)
                if c.name == main
                else (wording.percent(c.lag[n]), wording.interval(c.lag_low[n], c.lag_high[n]))
            ),
            wording.number(c.kl[n]),
        )
        for c in findings.curves
        for n in range(len(c.ks))
    ]
    parts += [_smallest(findings), _areas(findings)]
    parts.append(page.details("The curves as a table", page.table(columns, rows, "Recovery and KL at every k")))
    return page.section("validation", "Validation curves", lead, *parts)


def _smallest(findings: Findings) -> Html:
    """How far down the ranking one must go."""
    if not findings.smallest:
        return page.join([])
    total = len(wording.reachable(findings).places)
    columns = (
        Column("recover at least", is_number=True),
        Column("the first", is_number=True),
        Column("share of all that can reach the anchor", is_number=True),
        Column("these are"),
        Column("control state", is_number=True),
        Column("interval", is_number=True),
    )
    rows = []
    for each in findings.smallest:
        if each.size is None or each.recovered is None:
            rows.append((wording.percent(each.share), DASH, DASH, "no size that was tried", DASH, DASH))
            continue
        found = each.recovered
        rows.append(
            (
                wording.percent(each.share),
                f"{each.size:,}",
                wording.percent(each.size / total),
                wording.counted(each.counts),
                wording.percent(found.value),
                wording.interval(found.low, found.high),
            )
        )
    return page.table(columns, rows, "The smallest beginnings of the ranking that recover so much (one fewer does not)")


def _areas(findings: Findings) -> Html:
    """One number for a curve."""
    areas = {(curve.name, curve.mode): curve.area for curve in findings.curves}
    modes = list(dict.fromkeys(mode for _, mode in areas))
    columns = (Column("order"), *(Column(mode, is_number=True) for mode in modes))
    rows = [
        (name, *(wording.percent(areas[name, mode]) if (name, mode) in areas else DASH for mode in modes))
        for name in dict.fromkeys(name for name, _ in areas)
    ]
    return page.table(
        columns,
        rows,
        "Area under a curve: the control state on average over log k. A better order has more in restoration, less in knockout",
    )


def _samples(findings: Findings, drawn: Mapping[str, str]) -> Html:
    lead = (
        "Inner recovery is not behaviour: the same prompts, answered greedily by each model, and whether the answer "
        "follows the instruction."
    )
    if not findings.samples:
        return page.section(
            "samples", "What the models write", lead, page.paragraph("No answers were written in this run.")
        )
    parts: list[Any] = [page.paragraph(wording.behaves(findings), kind="said")] if wording.behaves(findings) else []
    if "behaviour" in drawn:
        parts.append(
            page.figure(
                drawn["behaviour"],
                wording.behaves(findings) or "KL from special along its answers, at every k.",
                "Left: the share of answers that follow, strictly and by IFEval's loose rule, beside the control state; "
                "dotted, base and special. Right: how far each model is from special along special's answers, and from base along "
                "base's answers where nobody asks for the behaviour. k runs over the ranking, as in the curves above. Hollow: as many "
                "components by other orders, where the ranking comes half way from base to special.",
            )
        )
    shown = _models_shown(findings)
    answers = tuple(sample for sample in findings.samples if sample.model in shown)
    groups = [_one_prompt(prompt, several) for prompt, several in _by_prompt(answers)]
    parts += [_behaviour(findings), *groups[:NUM_PROMPTS_SHOWN]]
    if rest := groups[NUM_PROMPTS_SHOWN:]:
        parts.append(page.details(f"{len(rest)} more prompts", *rest))
    return page.section("samples", "What the models write", lead, *parts)


def _models_shown(findings: Findings) -> set[str]:
    """Those whose answers are printed: of the sets along the ranking the two nearest to `SIZES_SHOWN`, and of other orders none."""
    frame = wording.behaviour(findings)
    sets = frame.loc[frame["order"] == "top"]
    if len(sets) > len(SIZES_SHOWN):
        apart = np.abs(np.log(np.asarray(sets["size"])[:, None] / np.array(SIZES_SHOWN)))
        sets = sets.iloc[apart.argmin(axis=0)]
    return {*sets["model"], *frame.loc[frame["order"] == "", "model"]}


def _behaviour(findings: Findings) -> Html:
    """How many answers of each model follow; how far each is from special where the behaviour is asked for, and from base where not."""
    columns = (
        Column("model"),
        Column("follow", is_number=True),
        Column("loosely", is_number=True),
        Column("KL from special", is_number=True),
        Column("KL from base, not asked", is_number=True),
        Column("perplexity, not asked", is_number=True),
    )
    rows = [
        (
            row["model"].replace(" ", SPACE),
            *(f"{row[name]} of {row['judged']}" if row["judged"] else DASH for name in ("strict", "loose")),
            *(wording.number(row[name]) for name in ("to_special", "to_base", "perplexity")),
        )
        for row in wording.behaviour(findings).to_dict("records")
    ]
    return page.join(
        [
            page.table(columns, rows, "Answers that follow, and next tokens along whole answers (KL in nats a token)"),
            page.paragraph(
                "Loosely: the answer, or what is left of it without its first line, its last line or asterisks, follows. KL of "
                "next-token distributions, on average over the tokens of an answer: of special's answers to the prompts "
                "below, and of base's answers to prompts that do not ask for the behaviour; perplexity of the latter. "
                "The first is what is still missing, the others are side effects.",
                kind="lead",
            ),
        ]
    )


def _by_prompt(samples: tuple[Sample, ...]) -> list[tuple[str, list[Sample]]]:
    """Answers to one prompt side by side; a prompt that a model answered twice makes two groups."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    times: dict[tuple[str, str], int] = {}
    for sample in samples:
        seen = times.get((sample.prompt, sample.model), 0)
        times[sample.prompt, sample.model] = seen + 1
        groups.setdefault((sample.prompt, seen), []).append(sample)
    return [(prompt, answers) for (prompt, _), answers in groups.items()]


def _one_prompt(prompt: str, answers: list[Sample]) -> Html:
    cards = [
        page.tag(
            "article",
            page.tag("header", page.tag("span", sample.model), page.badge(sample.follows)),
            page.tag("p", sample.text) if sample.text.strip() else page.paragraph("(an empty answer)", kind="empty"),
            class_="answer",
        )
        for sample in answers
    ]
    return page.tag(
        "div", page.paragraph(prompt, kind="prompt"), page.tag("div", *cards, class_="answers"), class_="sample"
    )


def _limits(findings: Findings) -> Html:
    found = findings.scores
    num = sum(int((values != 0).sum()) for values in found.values.values())
    ratio = "mean of the per-prompt ratios" if found.aggregate == "mean_of_ratios" else "ratio of the means"
    lines = [
        "A high E_w says that these weights are sufficient, by themselves and on these fixed prompts, to recover a "
        "share of the control state. It does not say that they are necessary (the knockout curve asks that), nor "
        "that scores add up.",
        "Recovering the inner state is not yet behaving like special: blocks above the anchor and later tokens have "
        "their say. Read the answers.",
        "Intervals cover the choice of prompts, not the choice of anchor, of layer or of the pair, and with few "
        f"prompts they are somewhat too narrow. Among {num:,} components with a score, about 2.5{SPACE}% would lie "
        "wholly above 0 by chance if none did anything: look at size and at the curves, not at single small scores.",
        "Random controls say what so many components recover anyway, and what their depth alone explains; “largest change” says "
        "whether the size of the change alone would have found the same ones. A ranking that does not beat these has found little. "
        "“largest E_a”: where that does as well, knowing where the state is seen would have been enough. “first order”: where that "
        "does as well, the cheapest score would have been.",
        f"The score is the {ratio} of effect and gap. Dividing by the gap, the choice of anchor and the intervals are "
        "ours; that single components are swapped between two checkpoints and read along an inner direction is the "
        "paper's (arXiv 2604.13694).",
    ]
    return page.section(
        "limits",
        "Limits",
        "How far these numbers carry.",
        page.tag("ul", *(page.tag("li", line) for line in lines), class_="plain"),
    )


def _reproduce(findings: Findings) -> Html:
    manifest = findings.manifest
    parts: list[Any] = []
    if command := manifest.get("command"):
        parts.append(page.tag("pre", page.tag("code", command)))
    single = {name: value for name, value in manifest.items() if not isinstance(value, Mapping) and name != "command"}
    if single:
        parts.append(
            page.facts({name.replace("_", " "): _shown(value) for name, value in single.items()}, is_code=True)
        )
    for name, value in manifest.items():
        if isinstance(value, Mapping):
            flat = page.facts(_flat(value), is_code=True)
            parts.append(page.details(name.replace("_", " ").capitalize(), flat, is_open=name in ("versions", "files")))
    if not parts:
        parts.append(page.paragraph("This run kept no manifest."))
    return page.section(
        "reproduce", "Reproduce", "The same command, versions, files, seed and precision give the same numbers.", *parts
    )


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested mappings and lists of mappings as one level of dotted names."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{path}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
            for n, part in enumerate(value, 1):
                flat |= _flat(part, f"{path}.{n}.")
        else:
            flat[path] = _shown(value)
    return flat


def _shown(value: Any, nothing: str = DASH) -> str:
    """An option as a reader would write it."""
    if value is None or (isinstance(value, str | list | tuple) and not value):
        return nothing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return DASH if math.isnan(value) else f"{value:g}"
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(_shown(part) for part in value)
    return str(value)
