"""Of the page: which anchors hold, and what was expected of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import cells
import numpy as np
from result import Refused, Result

from jaxpatch.measuring.prompt_sets import NUM_LAYER
from jaxpatch.reporting.wording import listed

EXPECTED = {
    "no_comma": "no_comma fails at mid-depth",
    "title": "title is nearly a control (special hardly obeys it more often than base)",
    "multiple_sections": "multiple_sections is nearly one, too",
}
"""Of the anchors, before anything was scored."""


def anchors(found: Sequence[Result | Refused]) -> str:
    """Checks of each anchor, and those that failed."""
    rows: list[list[str]] = []
    reasons: dict[str, list[str]] = {"Reported, and not scored": [], "Scored all the same (--force)": []}
    for each in found:
        info = each.manifest["anchor"] if isinstance(each, Result) else each.anchor
        checks = {check["name"]: check for check in info["checks"]}
        gap = np.array(info["gap"])
        is_failed = not all(check["is_passed"] for check in info["checks"])
        rows.append(
            [
                each.task,
                _chosen(each),
                f"{checks['split-half cosine']['value']:.3f}",
                f"{gap.mean():.3g} / {gap.std(ddof=1):.3g}",
                cells.share(info["behaviour_before"]),
                cells.share(info["behaviour_after"]),
                f"{info['kl_before']:.2f}",
                f"{info['kl_after']:.2f}",
                "**failed**" if is_failed else "holds",
            ]
        )
        if is_failed:
            failed = [
                f"{c['name']} {c['value']:.3g} (wanted {c['wanted']})" for c in info["checks"] if not c["is_passed"]
            ]
            what = list(reasons)[isinstance(each, Result)]
            reasons[what].append(f"* {each.task}: {'; '.join(failed)}.")
    head = [
        "task",
        "after block",
        "split-half cosine",
        "gap G, mean / standard deviation",
        f"plain answers of base that obey (of {NUM_LAYER})",
        "steered",
    ]
    head += ["KL to special, nats", "steered", "verdict"]
    told = [f"{what}:\n\n" + "\n".join(several) for what, several in reasons.items() if several]
    if away := _holds_by_answers_alone(found):
        told.append(
            f"An anchor holds by what base does when pushed along it. Of {listed(away)} it obeys more, and yet its next tokens are "
            "further from special's than before: such an anchor is the weaker for it."
        )
    return "\n\n".join([cells.table(head, rows), *told, *_beside_expectation(found)])


def _holds_by_answers_alone(found: Sequence[Result | Refused]) -> list[str]:
    """Tasks whose anchor passes though the next token's KL to special rises."""
    scored = [each for each in found if isinstance(each, Result) and not each.forced]
    return [
        each.title for each in scored if each.manifest["anchor"]["kl_after"] >= each.manifest["anchor"]["kl_before"]
    ]


def _beside_expectation(found: Sequence[Result | Refused]) -> list[str]:
    """What was expected of this pair's anchors before anything was scored, and what came; nothing of other tasks."""
    came = []
    for each in found:
        if each.task not in EXPECTED:
            continue
        if isinstance(each, Refused) or each.forced:
            came.append(
                f"{each.task} fails" + ("" if isinstance(each, Result) else ", and no answers of special were counted")
            )
        else:
            ends = each.behaviour.set_index("model")[["strict", "judged"]]
            (special, judged), (base, _) = ends.loc["special"], ends.loc["base"]
            came.append(
                f"{each.task} holds, and of {judged} answers {special} of special's follow and {base} of base's"
            )
    return [f"Expected of this pair: {listed(list(EXPECTED.values()))}. Found: {'; '.join(came)}."] if came else []


def _chosen(each: Result | Refused) -> str:
    if isinstance(each, Result):
        return str(each.layer)
    best = max(each.anchor["candidates"], key=lambda c: (_is_sound(c), c["success"] or 0, c["separation"] or 0))
    return f"{best['layer']} (best of {len(each.anchor['candidates'])})"


def _is_sound(candidate: Mapping[str, Any]) -> bool:
    return candidate["split_half"] >= 0.5 and (candidate["signal"] or np.inf) >= 1
