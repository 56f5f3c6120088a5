"""Of the page: what was found of each task, in sentences."""

import cells
import findings
import numpy as np
import page_curves
import pandas as pd
import result
from result import Result

import jaxpatch as jp
from jaxpatch.reporting.wording import listed, number, percent, plural

UNSTEADY = 1.5
"""Standard deviations of the gap over prompts: where its mean is less, shares of it are of little use one by one."""


def plain(each: Result) -> str:
    """What was found of one task, in sentences."""
    found = each.weights
    strongest = max((found.top(kind, 1).iloc[0] for kind in found.values), key=lambda row: row["score"])
    relays = each.roles[each.roles["role"].isin(findings.RELAYS)]
    kept, asked = int(found.is_kept.sum()), len(found.is_kept)
    on = "" if kept == asked else f" ({kept} of {asked} prompts have a gap)"
    told = [
        f"{each.title}{on}: all neurons together recover {cells.whole(found, 'all neuron')} of the state, all heads "
        f"{cells.whole(found, 'all head')}, and no single component more than {percent(strongest['score'])} ({strongest['name']})."
    ]
    if unsteady := _unsteady(found):
        told.append(unsteady)
    if len(relays):
        row = relays.loc[relays["E_a"].idxmax()]
        told.append(
            f"The state is seen most in {row['name']}: exchanging what it writes recovers {percent(row['E_a'])}, its own weights "
            f"{percent(row['E_w'])}."
        )
    few = each.smallest.set_index("share").loc[0.8]
    if pd.notna(few["size"]):
        restoration = each.curves[each.curves["mode"] == "restoration"]
        nearest = min(restoration["k"].unique(), key=lambda k: abs(np.log(k / few["size"])))
        there = restoration[restoration["k"] == nearest].set_index("order")["recovery"]
        others = there.drop("top").nlargest(2)
        told.append(
            f"{_first(int(few['size']))} 80 %. With {int(nearest):,} the ranking recovers {percent(there['top'])}; the best of "
            f"the other orders, {listed([f'{name} {percent(value)}' for name, value in others.items()])}."
        )
    else:
        told.append("No beginning of the ranking that was tried recovers 80 %.")
    state, behaviour = result.half_way(each)
    ends = each.behaviour.set_index("model")["strict"]
    judged = int(each.behaviour["judged"].iloc[0])
    half = (
        f"half way between them takes {cells.size(behaviour)}"
        if behaviour
        else "no beginning of the ranking comes half way"
    )
    if others := result.others_there(each, behaviour):
        half += f", and as many that no score chose come half way as well ({others})"
    half += _and_back(each, behaviour)
    if not result.is_shown(each):
        half = "nothing can be told of what lies between"
    if beaten := _beaten(each):
        told.append(f"Knocked out, {beaten} take clearly more away than as many of the ranking.")
    told.append(
        f"On the grid half of the state is there with the first {cells.size(state)}; of {judged} answers special gives "
        f"{ends['special']} that follow and base {ends['base']}, and {half}."
    )
    return " ".join(told)


def _and_back(each: Result, size: int | None) -> str:
    """Whether answers are lost again where more of the ranking is put in."""
    sets = each.behaviour[each.behaviour["order"] == "top"].sort_values("size")
    ends = each.behaviour.set_index("model")["strict"]
    if size is None or sets["strict"].iloc[-1] >= (ends["special"] + ends["base"]) / 2:
        return ""
    last = sets.iloc[-1]
    return f"; with all {int(last['size']):,} that can reach the anchor {last['strict']} follow"


def _beaten(each: Result) -> str:
    """By which orders, and with which sizes that can be compared, more is taken away than by the ranking."""
    curves = each.curves[each.curves["mode"] == "knockout"]
    top = curves[(curves["order"] == "top") & curves["recovery"].between(*page_curves.LOOKED)]
    others = curves[(curves["order"] != "top") & curves["k"].isin(top["k"]) & (curves["lag_high"] < 0)]
    return listed(
        [
            f"the first {listed([f'{k:,}' for k in some['k']])} by {name}"
            for name, some in others.groupby("order", sort=False)
        ]
    )


def _unsteady(found: jp.Scores) -> str:
    """Of a gap that differs much between prompts: what whole kinds recover by the ratio of means, too."""
    gap = found.gap[found.is_kept]
    steadiness = float(gap.mean() / gap.std(ddof=1)) if len(gap) > 1 else np.inf
    if steadiness >= UNSTEADY:
        return ""
    told = [
        f"{listed([plural(kind)])} {percent(float(found.whole[f'all {kind}'][found.is_kept].sum() / gap.sum()))}"
        for kind in found.values
    ]
    return (
        f"Its gap is hardly larger than its spread ({number(steadiness)}), so that shares are unsteady; by the ratio of means "
        f"{listed(told)}."
    )


def _first(count: int) -> str:
    """As a sentence begins.

    >>> _first(1), _first(1200)
    ('The first of the ranking recovers', 'The first 1,200 of the ranking recover')
    """
    return "The first of the ranking recovers" if count == 1 else f"The first {count:,} of the ranking recover"
