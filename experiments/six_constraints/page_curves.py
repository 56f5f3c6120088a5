"""Of the page: the ranking against its controls, on the scored prompts and on others, and what becomes of behaviour."""

from collections.abc import Sequence

import cells
import pandas as pd
from result import Result

import jaxpatch as jp
from jaxpatch.reporting.wording import FEWEST_TO_HALVE, correlation, counted, interval, listed, number, percent, plural
from jaxpatch.validating.curves import Curve

LOOKED = (0.2, 0.8)
"""Recovery between which a ranking is compared with its controls."""
STANDS = ("clearly ahead of", "ahead, not clearly, of", "level with", "not ahead of", "clearly behind")
"""Where a ranking may stand beside a control."""


def restoration(scored: Sequence[Result]) -> str:
    """Curves, their areas, and the smallest beginnings."""
    rows = []
    for each in scored:
        for mode in ("restoration", "knockout"):
            curves = each.curves[each.curves["mode"] == mode]
            rows += [[each.title, mode, *line] for line in _against(curves, int(curves["k"].max()))]
    names = [name for name in scored[0].curves["order"].unique() if name != "top"]
    smallest = []
    for each in scored:
        for row in each.smallest.to_dict("records"):
            size = row["size"]
            kinds = counted({k: int(row[k]) for k in each.weights.values if k in row and pd.notna(row[k])})
            smallest.append(
                [
                    each.title,
                    percent(row["share"]),
                    "none" if pd.isna(size) else f"{int(size):,}: {kinds}",
                    "-" if pd.isna(size) else f"{percent(row['value'])} ({cells.ends(row)})",
                ]
            )
    return "\n\n".join(
        [
            f"Wherever the ranking's curve lies between {percent(LOOKED[0])} and {percent(LOOKED[1])}: the share of the state that "
            "the first k recover in base (restoration), or that is left in special without them (knockout). In brackets: of the "
            "ranking its interval; of a control the interval of how far it is behind the ranking on the same prompts, in points. Each "
            f"random control is {_draws(scored)}, and intervals are over the few prompts alone: by so few they are too narrow rather "
            "than too wide. More than 100 % is possible, since components that work against the state stand last.",
            cells.table(["task", "mode", "k", "ranking", *names, "the ranking is"], rows),
            _beside_first_order(scored),
            "At which of these k the ranking leads every control, and every one but first order:",
            _leads(scored),
            "The same in one number: the area under each curve, the state on average over log k from 1 to all. A better order has "
            "more in restoration and less in knockout.",
            cells.table(
                ["task", "mode", *("ranking" if name == "top" else name for name in ("top", *names))],
                _areas(scored, names),
            ),
            "The smallest beginnings of the ranking that recover so much:",
            cells.table(["task", "at least", "the first", "they recover"], smallest),
        ]
    )


def _against(curves: pd.DataFrame, total: int) -> list[list[str]]:
    """Of each k at which the ranking's curve (order "top") can be compared: k, its recovery, each control's, and whom it leads."""
    rows = []
    top = curves[curves["order"] == "top"].set_index("k")
    for k, own in top[top["recovery"].between(*LOOKED) & (top.index < total)].iterrows():
        others = curves[(curves["order"] != "top") & (curves["k"] == k)].set_index("order")
        beside = [
            f"{cells.exactly(row['recovery'])} ({cells.points(row['lag_low'])} to {cells.points(row['lag_high'])})"
            for _, row in others.iterrows()
        ]
        stands = others.apply(_stands, axis=1)
        said = [
            f"{how} {'all' if (stands == how).all() else ' / '.join(others.index[stands == how])}"
            for how in STANDS
            if (stands == how).any()
        ]
        rows.append(
            [
                f"{k:,}",
                f"{cells.exactly(own['recovery'])} ({interval(own['low'], own['high'])})",
                *beside,
                "; ".join(said),
            ]
        )
    return rows


def _stands(control: pd.Series) -> str:
    """Where the ranking stands beside one control, by its interval on the same prompts."""
    if control["lag"] == control["lag_low"] == control["lag_high"] == 0:
        return "level with"
    if control["lag"] > 0:
        return "clearly ahead of" if control["lag_low"] > 0 else "ahead, not clearly, of"
    return "clearly behind" if control["lag_high"] < 0 else "not ahead of"


def _leads(scored: Sequence[Result]) -> str:
    """At which of the sizes that can be compared the ranking leads all, and all but first order: a row a task and way to judge."""
    rows = []
    for each in scored:
        fresh = pd.DataFrame(each.fresh["fresh"] if each.fresh else [], columns=list(each.curves))
        judged = {mode: each.curves[each.curves["mode"] == mode] for mode in ("restoration", "knockout")}
        for name, curves in (judged | {"restoration, other prompts": fresh}).items():
            top = curves[curves["order"] == "top"]
            ks = top.loc[top["recovery"].between(*LOOKED) & (top["k"] < each.curves["k"].max()), "k"]
            others = curves[(curves["order"] != "top") & curves["k"].isin(ks)]
            if others.empty:
                continue
            better, clear = (others[lag].gt(0).groupby(others["k"]) for lag in ("lag", "lag_low"))
            beside = others[others["order"] != "first order"]
            but_one = beside["lag_low"].gt(0).groupby(beside["k"])
            rows.append(
                [
                    each.title,
                    name,
                    listed([f"{k:,}" for k in ks]),
                    *map(_ks, (but_one.all(), better.all(), clear.all())),
                ]
            )
    head = [
        "task",
        "judged by",
        "k",
        "clearly ahead of all but first order at",
        "ahead of all at",
        "clearly ahead of all at",
    ]
    return cells.table(head, rows)


def _ks(holds: pd.Series) -> str:
    return listed([f"{k:,}" for k in holds.index[holds]]) or "none"


def _draws(scored: Sequence[Result]) -> str:
    """How many orders a random control is of.

    >>> from types import SimpleNamespace
    >>> _draws([SimpleNamespace(manifest={"options": {"num_random": 1}})])
    'one draw'
    """
    count = scored[0].manifest["options"]["num_random"]
    return "one draw" if count == 1 else f"the mean of {count} draws"


def _beside_first_order(scored: Sequence[Result]) -> str:
    """How much truly replacing wins over the gradient alone, in a sentence; nothing where no size can be looked at."""
    lags = []
    for each in scored:
        curves = each.curves[each.curves["mode"] == "restoration"]
        top = curves[(curves["order"] == "top") & curves["recovery"].between(*LOOKED)]
        lags += curves.loc[(curves["order"] == "first order") & curves["k"].isin(top["k"]), "lag"].tolist()
    if not lags:
        return "First order cannot be compared at any of these sizes."
    return (
        f"Restoration by the ranking and by first order alone are {cells.points(min(lags))} to {cells.points(max(lags))} points "
        "apart: of these small differences of weights the gradient says nearly as much as truly replacing."
    )


def _areas(scored: Sequence[Result], names: Sequence[str]) -> list[list[str]]:
    """A row a task and mode: the area under the curve of the ranking, and of each control."""
    rows = []
    for each in scored:
        for (mode,), part in each.curves.groupby(["mode"], sort=False):
            areas = []
            for name in ("top", *names):
                curve = part[part["order"] == name].rename(columns={"order": "name", "k": "ks"})
                columns = {field: curve[field].to_numpy() for field in Curve._fields if field not in ("name", "mode")}
                areas.append(cells.exactly(Curve(name, mode, **columns).area))
            rows.append([each.title, mode, *areas])
    return rows


def fresh(scored: Sequence[Result]) -> str:
    """Restoration on prompts that were not scored."""
    rows, untold, names = [], [], []
    for each in scored:
        curves = pd.DataFrame(each.fresh["fresh"] if each.fresh else [])
        some = _against(curves, int(each.curves["k"].max())) if len(curves) else []
        names = [name for name in curves["order"].unique() if name != "top"] if some else names
        rows += [[each.title, *line] for line in some]
        if not some:
            top = curves[curves["order"] == "top"] if len(curves) else curves
            told = [f"{row.k:,}: {percent(row.recovery)} ({interval(row.low, row.high)})" for row in top.itertuples()]
            untold.append([each.title, "; ".join(told) or "special is no further along than base"])
    text = (
        "Restoration with the ranking, and with its controls, on as many prompts that neither chose the anchor nor were scored; "
        "wherever the ranking recovers between 20 % and 80 % of their gap. Brackets as above.\n\n"
    )
    text += cells.table(["task", "k", "ranking", *names, "the ranking is"], rows) if rows else "Of no task."
    if untold:
        text += "\n\nOf these no size that was tried does, and nothing can be compared:\n\n"
        text += cells.table(["task", "the first k, and what they recover"], untold)
    return text


def halves(scored: Sequence[Result]) -> str:
    """Scores by one half of the prompts against those by the other."""
    rows = []
    for each in scored:
        for score, found in (("E_w", each.weights), ("E_a", each.activations)):
            if found.is_kept.sum() < FEWEST_TO_HALVE:
                continue
            for row in jp.halves(found).to_dict("records"):
                ends = f"{correlation(row['low'])} to {correlation(row['high'])}"
                shared = f"{number(row['shared'])} of {row['count']} ({number(row['chance'])})"
                rows.append(
                    [each.title, score, plural(row["kind"]), f"{correlation(row['spearman'])} ({ends})", shared]
                )
    if not rows:
        return "There are too few prompts to tell."
    return (
        "Scores by one half of the scored prompts against those by the other, over random halves: the ranking by all of them is "
        "steadier than this says.\n\n"
        + cells.table(
            ["task", "score", "kind", "Spearman (95 % of halves)", "of the first, shared on average (by chance)"], rows
        )
    )


def behaviour(scored: Sequence[Result]) -> str:
    """Answers that follow, and how far models are from both ends."""
    rows = []
    for each in scored:
        recovered = each.curves.query("mode == 'restoration'").set_index(["order", "k"])["recovery"]
        for row in each.behaviour.to_dict("records"):
            if pd.notna(row["size"]):
                state = percent(recovered[row["order"], int(row["size"])])
            else:
                state = {"base": percent(0.0), "special": percent(1.0)}.get(row["model"], "-")
            rows.append(
                [
                    each.title,
                    row["model"],
                    state,
                    f"{row['strict']} of {row['judged']} ({interval(*cells.counted(row['strict'], row['judged']))})",
                    f"{row['loose']} of {row['judged']}",
                    *(number(row[name]) for name in ("to_special", "to_base", "perplexity")),
                ]
            )
    head = ["task", "model", "state", "answers that follow", "loosely", "KL from special along its answers"]
    head += ["KL from base where not asked", "perplexity of base's answers there"]
    return (
        "By IFEval's strict and loose rules (of the strict ones Wilson's interval, over prompts); KL in nats a token, along "
        "special's answers to the same prompts, and along base's answers to "
        "prompts without the instruction (side effects).\n\n" + cells.table(head, rows)
    )
