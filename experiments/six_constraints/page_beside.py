"""Of the page: what is asked beside the chain: every choice turned by itself, and sets of components."""

from collections.abc import Sequence

import cells
import findings
import numpy as np
import page_components
import pandas as pd
from result import Result

from jaxpatch.reporting.wording import correlation, interval, listed, percent, plural
from jaxpatch.scoring import normalise

ALIKE = 0.95
"""Spearman of two rankings that are nearly one."""
NUM_PAIRS = 5


def switches(scored: Sequence[Result]) -> str:
    """Rankings by other choices, beside the one by the defaults."""
    rows = []
    for each in scored:
        for row in (each.switches or {"switches": []})["switches"]:
            if "kept" not in row:
                rows.append(
                    [
                        each.title,
                        row["switch"],
                        "special is no further along",
                        *["-"] * (2 * len(page_components.FIRST) + 1),
                    ]
                )
                continue
            line = [each.title, row["switch"], f"{row['kept']} of {row['inputs']}"]
            for kind in page_components.FIRST:
                line += [_correlated(row[f"{kind} spearman"]), f"{row[f'{kind} shared']} of {row[f'{kind} of']}"]
            rows.append([*line, f"{row['strongest']} {percent(row['score'])}"])
    head = ["task", "switch", "prompts that count"]
    head += [
        f"{plural(kind)}: {what}" for kind in page_components.FIRST for what in ("Spearman", "of the first shared")
    ]
    return _most_unlike(scored) + (
        "The ranking of each beside that of the defaults (projection on the instruction's direction at the chosen block, mean of "
        f"ratios, gap floor {normalise.SMALLEST_GAP:g} of the median), all by `local_linear`.\n\n"
        + cells.table([*head, "strongest"], rows)
    )


def _most_unlike(scored: Sequence[Result]) -> str:
    """Which choices matter most, and which least, in a sentence."""
    turned = [row for each in scored for row in (each.switches or {"switches": []})["switches"][1:] if "kept" in row]
    if not turned:
        return ""
    frame = pd.DataFrame(
        {
            "choice": [row["switch"].replace("after block", "of the anchor, after block") for row in turned],
            "same": [
                np.nanmean(
                    [
                        np.nan if row[f"{kind} spearman"] is None else row[f"{kind} spearman"]
                        for kind in page_components.FIRST
                    ]
                )
                for row in turned
            ],
        }
    )
    by_choice = frame.groupby("choice")["same"].mean().sort_values()
    most, least = by_choice.index[0], [name for name, same in by_choice.items() if same >= ALIKE]
    told = f"What matters most is {most} (Spearman {correlation(by_choice.iloc[0])} on average)"
    return told + (f"; what hardly matters, {listed(least)} ({correlation(ALIKE)} or more).\n\n" if least else ".\n\n")


def _correlated(value: float | None) -> str:
    return "-" if value is None else correlation(value)


def together(scored: Sequence[Result]) -> str:
    """Interactions, Shapley values, and sets found jointly beside the ranking's."""
    parts = []
    for each in scored:
        if each.together is None:
            continue
        said, worth = each.together["interactions"], each.together["shapley"]
        clear = [row for row in said["pairs"] if row["is_clear"]]
        strongest = [
            [row["one"], row["other"], cells.exactly(row["interaction"], 2), cells.close(row)]
            for row in said["pairs"][:NUM_PAIRS]
        ]
        parts.append(
            f"{each.title}: of the ranking's first {len(said['names'])}, {len(clear)} of {len(said['pairs'])} pairs interact with an "
            f"interval clear of 0 (some {max(1, round(findings.LEVEL * len(said['pairs'])))} would be by chance), "
            f"{sum(row['interaction'] < 0 for row in clear)} of them below it (they stand for each other). All "
            f"together recover {cells.exactly(said['joint']['value'])}, which is {cells.exactly(said['excess']['value'])} "
            f"({cells.ends(said['excess'])}) more than the sum of what each recovers alone. The strongest:\n\n"
            + cells.table(["one", "other", "interaction", "interval"], strongest)
        )
        rows = [
            [
                row["name"],
                cells.exactly(row["alone"], 2),
                cells.exactly(row["shapley"], 2),
                cells.close(row),
                cells.exactly(row["last"], 2),
            ]
            for row in worth["values"]
        ]
        parts.append(
            f"Shapley values of the first {len(rows)} ({worth['rounds']} rounds of sampled sets, interval over these); they add up to "
            f"{cells.exactly(worth['total']['value'])}, and all together recover {cells.exactly(worth['joint']['value'])}:\n\n"
            + cells.table(["component", "alone (E_w)", "Shapley value", "interval", "beside all the others"], rows)
        )
        rows = [
            [
                "other prompts" if row["is_held_out"] else "the scored prompts",
                row["size"],
                row["name"],
                f"{cells.exactly(row['recovery'])} ({cells.ends(row)})",
                "-"
                if row["name"] == "ranking"
                else f"{cells.exactly(row['gain'])} ({interval(row['gain_low'], row['gain_high'])})",
                cells.exactly(row["miss"]),
                row["shared"],
            ]
            for row in each.together["compared"]
        ]
        asked = each.together["settings"]
        head = [
            "read on",
            "k",
            "set",
            "recovers",
            "more than the ranking",
            "root mean square of what is missing or too much",
            "shared",
        ]
        gains = [row for row in each.together["compared"] if row["name"] != "ranking"]
        most = {
            place: max((row["gain"] for row in gains if row["is_held_out"] == place), default=0.0)
            for place in (False, True)
        }
        parts.append(
            f"So at equal size ranking one by one loses at most {cells.points(most[False])} points to a set on the scored prompts, and "
            f"{cells.points(most[True])} on others."
        )
        parts.append(
            f"Sets of k components, found on the scored prompts: greedily ({asked['at_once']} a step, out of the ranking's first "
            f"{asked['pool']}), by learned gates over all components ({asked['steps']} steps), and by Shapley values of the first "
            f"{len(worth['values'])}:\n\n" + cells.table(head, rows)
        )
    return "\n\n".join(parts)
