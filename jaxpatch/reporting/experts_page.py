"""Several experts of one base on one HTML page: each one's report, what their sources share, and where they pull these apart."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from jaxpatch.reporting import page, stylesheet, wording
from jaxpatch.reporting.page import Column, Html
from jaxpatch.reporting.wording import DASH
from jaxpatch.scoring.conflict import Conflicts
from jaxpatch.scoring.scores import Scores

NUM_SHOWN = 10
"""Shared components of a kind, those that are pulled apart most first."""


class Expert(NamedTuple):
    """One of them. scores, layer: None where it was refused, and refused says why. forced: checks that its anchor fails, where it was
    scored all the same."""

    name: str
    special: str
    task: str
    scores: Scores | None
    layer: int | None
    refused: str = ""
    forced: tuple[str, ...] = ()


def render(base: str, experts: Sequence[Expert], made: Mapping[str, Conflicts]) -> str:
    """The page as HTML text; a folder of each scored expert's name, with its report, stands beside it.

    Args: made: kind -> what the scored experts share. Everything that comes from paths, tasks and names is escaped.
    """
    top = page.tag(
        "header",
        page.paragraph("Weight patching: several experts", kind="kicker"),
        page.tag("h1", f"Where do {len(experts)} experts of one base have their sources?"),
        *(page.paragraph(sentence(kind, each), kind="finding") for kind, each in made.items()),
        *_warnings(experts, made),
    )
    parts = [_experts(base, experts), *(_kind(kind, each) for kind, each in made.items()), _words()]
    foot = page.tag("footer", "Made by jaxpatch. Scores are as in each report; what compares them here is ours.")
    body = page.join([top, page.tag("main", "\n", page.join(parts), "\n"), foot])
    return page.page("Weight patching: several experts", body, stylesheet.CSS)


def sentence(kind: str, made: Conflicts) -> str:
    """The two that share most of a kind, in words.

    >>> import numpy as np
    >>> from jaxpatch.scoring.stability import Overlap
    >>> two = np.array([[2, 1], [1, 2]])
    >>> sentence("head", Conflicts(Overlap("head", 2, ("a", "b"), two, two / 10, two / 4), ()))
    'Of their first 2 heads a and b share most: 1, where 0.1 would by chance. None of these is pulled apart.'
    """
    frame = made.to_frame()
    best = frame.loc[frame["shared"].idxmax()]
    if not best["shared"]:
        return f"Of their first {made.overlap.size} {wording.plural(kind)} no two experts share any."
    apart = {0: "None of these is", 1: "1 of these is"}.get(
        best["pulled_apart"], f"{best['pulled_apart']} of these are"
    )
    return (
        f"Of their first {made.overlap.size} {wording.plural(kind)} {best['one']} and {best['other']} share most: {best['shared']}, "
        f"where {wording.number(best['chance'])} would by chance. {apart} pulled apart."
    )


def _warnings(experts: Sequence[Expert], made: Mapping[str, Conflicts]) -> list[Html]:
    said = [
        f"{each.name} was forced: read nothing into its scores ({'; '.join(each.forced)})."
        for each in experts
        if each.forced
    ]
    left_out = [each.name for each in experts if each.refused]
    said += [f"Left out, because the anchor fails its checks: {', '.join(left_out)}."] if left_out else []
    said += [] if made else ["Fewer than two experts were scored, so nothing is compared."]
    return [page.paragraph(each, kind="warning") for each in said]


def _experts(base: str, experts: Sequence[Expert]) -> Html:
    columns = (
        Column("expert"),
        Column("special", is_code=True),
        Column("task"),
        Column("anchor"),
        Column("strongest component"),
    )
    rows = []
    for each in experts:
        if each.scores is None:
            rows.append((each.name, each.special, each.task, page.badge(False, ("", "refused", "")), DASH))
            continue
        frame = each.scores.to_frame()
        best = frame.loc[frame["score"].idxmax()]
        link = page.tag("a", each.name, href=f"{each.name}/report.html")
        strongest = f"{best['name']}, E_w {wording.percent(best['score'])}"
        rows.append((link, each.special, each.task, f"after block {each.layer}", strongest))
    reasons = [
        page.details(f"Why {each.name} was refused", page.tag("pre", each.refused)) for each in experts if each.refused
    ]
    lead = (
        "One base, and each expert scored against it on its own task, along its own anchor. A name leads to its report."
    )
    return page.section("experts", "The experts", lead, page.pairs({"base": base}), page.table(columns, rows), *reasons)


def _kind(kind: str, made: Conflicts) -> Html:
    size, several = made.overlap.size, wording.plural(kind)
    lead = f"Of each expert the first {size} {several} by E_w."
    parts = [_matrix(made), _pairs(made)]
    if (shared := made.components()).size:
        parts.append(_shared(shared))
    return page.section(kind, wording.capital(several), lead, *parts)


def _matrix(made: Conflicts) -> Html:
    names, found = made.overlap.names, made.overlap
    rows = [
        (
            one,
            *(
                DASH if i == j else f"{found.shared[i, j]} ({wording.number(found.chance[i, j])})"
                for j in range(len(names))
            ),
        )
        for i, one in enumerate(names)
    ]
    columns = (Column(""), *(Column(name, is_number=True) for name in names))
    return page.table(columns, rows, "How many of them two experts share, and how many two random draws would")


def _pairs(made: Conflicts) -> Html:
    titles = ("shared", "p", "mean cosine", "pulled apart", "signs opposed")
    rows = [
        (
            f"{row['one']} and {row['other']}",
            row["shared"],
            wording.number(row["p"]),
            wording.correlation(row["cosine"]),
            row["pulled_apart"],
            wording.percent(row["signs_opposed"]),
        )
        for row in made.to_frame().to_dict("records")
    ]
    columns = (Column("experts"), *(Column(title, is_number=True) for title in titles))
    return page.table(columns, rows, "What two experts changed of the components that they share")


def _shared(shared: pd.DataFrame) -> Html:
    rows = [
        (
            row["name"],
            f"{row['one']} and {row['other']}",
            wording.correlation(row["cosine"]),
            wording.percent(row["signs_opposed"]),
        )
        for row in shared.sort_values("cosine", kind="stable").head(NUM_SHOWN).to_dict("records")
    ]
    columns = (
        Column("component"),
        Column("experts"),
        Column("cosine", is_number=True),
        Column("signs opposed", is_number=True),
    )
    many = len(shared)
    title = "Shared components" if many <= NUM_SHOWN else f"Shared components: those pulled apart most, of {many}"
    return page.table(columns, rows, title)


def _words() -> Html:
    said = (
        "Shared: components that are among the first of both experts. Chance is that of two draws from all that can matter, and p the "
        "probability that two such draws share as many or more.",
        "Cosine: between what two experts changed of a component's own parameters, special less base. 1 is the same way, 0 each its "
        "own way, −1 the opposite way; below 0 they pull the component apart, and a merge of both loses there.",
        "Signs opposed: of the parameters that both changed, the share that one raised and the other lowered; a half is what two "
        "changes have that know nothing of each other. TIES merging (Yadav et al., arXiv 2306.01708) calls this sign conflict.",
    )
    items = page.tag("ul", *(page.tag("li", each) for each in said), class_="plain")
    return page.section(
        "words",
        "What the words mean",
        "All of it is about parameters; what merged models write is not measured here.",
        items,
    )
