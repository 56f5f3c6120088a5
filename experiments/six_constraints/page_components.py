"""Of the page: which components are sources and relays, who supplies them, and whether tasks share them."""

from collections.abc import Sequence

import cells
import findings
import numpy as np
import pandas as pd
from result import Result

import jaxpatch as jp
from jaxpatch.reporting.wording import correlation, number, percent, plural
from jaxpatch.tracing import roles

FIRST = {"head": 10, "neuron": 100}
"""Of each kind, compared across tasks."""
READ_BY_HEADS = {"query": "queries", "key": "keys", "value": "values"}
NUM_NAMED = 3


def sources(scored: Sequence[Result]) -> str:
    """Of each task and kind: sources, relays, and how the two scores go together."""
    rows = []
    for each in scored:
        for kind in each.weights.values:
            frame = each.roles[each.roles["kind"] == kind]
            counts = frame["role"].value_counts()
            reach = frame[frame["layer"] <= each.layer]
            rows.append(
                [
                    each.title,
                    plural(kind),
                    cells.whole(each.weights, f"all {kind}"),
                    *(int(counts.get(role, 0)) for role in ("source", "relay", "both")),
                    _replaced(frame),
                    _left(each, kind),
                    _named(frame, "E_w"),
                    _named(frame, "E_a"),
                    correlation(reach["E_w"].corr(reach["E_a"], method="spearman")),
                    cells.with_ends(cells.lower_half(each.weights, kind, each.layer + 1)),
                    cells.with_ends(cells.lower_half(each.activations, kind, each.layer + 1)),
                ]
            )
    head = [
        "task",
        "kind",
        "all together recover",
        "sources",
        "relays",
        "both",
        "of these replaced for E_w, E_a",
        "contenders left by the limit",
        "highest E_w",
        "highest E_a",
        "Spearman of both",
    ]
    head += ["E_w+ in the lower half of the blocks up to the anchor", "E_a+ there"]
    share, own = (percent(part) for part in roles.DEFAULTS)
    return (
        f"A score is high where its interval lies above 0 and it is at least {share} of the largest of its kind and task, so that "
        "counts of different tasks are not of one scale. Source: high E_w, no high E_a. Relay: high E_a, of which E_w is less than "
        f"{own}. Both: high E_a, and E_w more of it. Nothing is done about there being many components: of those whose E_w is "
        "nothing, a few in a "
        "hundred have an interval above 0 by chance, though seldom so large a score.\n\n" + cells.table(head, rows)
    )


def _replaced(frame: pd.DataFrame) -> str:
    """How many of the components that have a role have it by exact scores."""
    placed = frame[frame["role"] != "neither"]
    return f"{int(placed['E_w_is_exact'].sum()):,}, {int(placed['E_a_is_exact'].sum()):,}"


def _left(each: Result, kind: str) -> str:
    """Of E_w and E_a: how many that might have been among the top a limit left as the cheap score has them."""
    screened = [found.screening.get(kind) for found in (each.weights, each.activations)]
    return ", ".join("-" if one is None else f"{one.left:,}" for one in screened)


def _named(frame: pd.DataFrame, score: str) -> str:
    best = frame.nlargest(NUM_NAMED, score)
    return ", ".join(f"{row['name']} {percent(row[score])}" for row in best.to_dict("records"))


def supply(scored: Sequence[Result]) -> str:
    """Relays that were followed, with their suppliers; executors; whether suppliers are sources."""
    rows = []
    for each in scored:
        for target, edges in each.edges.groupby("target", sort=False):
            if target in ("state", "output") or (edges["supplier"] == "state").all():
                continue
            node = next(node for node in each.flow["nodes"] if node["name"] == target)
            for role in ("relay", "source"):
                some = edges[edges["role"].isin(findings.RELAYS if role == "relay" else [role])]
                score = "E_a" if role == "relay" else "E_w"
                rows.append(
                    [
                        each.title,
                        target,
                        cells.share(node["share"]),
                        cells.share(node["own"]),
                        plural(role),
                        ", ".join(f"{row['supplier']} {percent(row[score])}" for row in some.to_dict("records"))
                        or "none stands out",
                        _mostly_through(some) if node["kind"] == "head" else "-",
                    ]
                )
    shared = [
        [each.title, plural(row["kind"]), row["traced"], row["shared"], percent(row["chance"]), number(row["p"])]
        for each in scored
        for row in each.flow["overlap"]
    ]
    rules = scored[0].flow["rules"]
    lines = [
        f"Relays (those that are both among them) that carry at least {percent(rules['least'])} of the state, the first "
        f"{rules['most']} of each kind, and who supplies what they contribute (the first {rules['most']} of each kind and role); "
        f"relays of relays down to level {rules['levels']}, 1 being the state's own. Suppliers of relays are found by the cheap "
        "scores; through which of a head's inputs each acts, the others held at base's, is measured exactly.",
        cells.table(
            [
                "task",
                "relay",
                "share of the state",
                "of its own contribution, by its own weights",
                "its suppliers",
                "share of what it contributes",
                "mostly through its",
            ],
            rows,
        )
        if rows
        else "None was followed.",
    ]
    if ended := [
        [each.title, ", ".join(f"{node['name']} {percent(node['share'])} ({node['end']})" for node in nodes)]
        for each in scored
        if (nodes := [n for n in each.flow["nodes"] if n["end"] and n["share"] >= each.flow["rules"]["least"]])
    ]:
        lines += [
            "Relays that carry as much and are not followed, and why:",
            cells.table(["task", "relays, and their shares of the state"], ended),
        ]
    carried = [
        [each.title, ", ".join(f"{row['supplier']} {percent(row['E_a'])}" for row in some.to_dict("records"))]
        for each in scored
        if len(some := each.edges[each.edges["target"] == "output"].sort_values("E_a", ascending=False))
    ]
    if carried:
        lines += [
            "Executors: components above the anchor that carry a formed state on to the next token, each with the share of what the "
            "formed state does to it that comes back by it alone.",
            cells.table(["task", "executors"], carried),
        ]
    if shared:
        lines += [
            "How many of the traced sources are among as many that E_w ranks first for the state itself:",
            cells.table(["task", "kind", "traced", "shared", "chance", "p"], shared),
        ]
    return "\n\n".join(lines)


def _mostly_through(edges: pd.DataFrame) -> str:
    """Through which input of the target most of each supplier's share comes, and of how many."""
    known = edges[list(READ_BY_HEADS)].clip(lower=0)
    most = known[known.max(axis=1) > 0].idxmax(axis=1).map(READ_BY_HEADS).value_counts()
    return ", ".join(f"{name} ({count})" for name, count in most.items()) or "-"


def overlaps(scored: Sequence[Result]) -> str:
    """Of the first of each kind, how many two tasks share."""
    if len(scored) < 2:
        return "One task alone was scored."
    parts = []
    for title, side in (("E_w", "weights"), ("E_a", "activations")):
        for kind, count in FIRST.items():
            found = {each.title: getattr(each, side) for each in scored}
            count = min(count, *(int(s.effects[kind].any(axis=0).sum()) for s in found.values()))
            both = jp.overlap(found, kind, count)
            rows = [
                [name, *(int(n) if i != j else "-" for j, n in enumerate(row))]
                for i, (name, row) in enumerate(zip(both.names, both.shared, strict=True))
            ]
            apart = ~np.eye(len(rows), dtype=bool)
            low, high = both.shared[apart].min(), both.shared[apart].max()
            parts.append(
                f"{title}, of the first {count} {plural(kind)} two tasks share {low:.0f} to {high:.0f}; by chance at most "
                f"{both.chance[apart].max():.2g}:"
            )
            parts.append(cells.table(["", *both.names], rows))
    return "\n\n".join(parts)
