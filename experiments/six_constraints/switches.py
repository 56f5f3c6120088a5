"""What the choices of the method change: every switch turned by itself, on one pair and one task, by the cheap scores.

Compared with the defaults are the anchor's contrast, its layer and read-out; mean of ratios or ratio of means; the floor under the gaps
that are divided by; other requests, the same requests in other words, and another seed for all prompts, the anchor's included.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

import jaxpatch as jp
from jaxpatch import run
from jaxpatch.measuring import anchors, instrument, prompt_sets, prompts, tasks
from jaxpatch.scoring import normalise
from jaxpatch.scoring.agreement import spearman

KINDS = ("head", "neuron")
FIRST = {"head": 10, "neuron": 100}
"""How many of the first are compared."""
BESIDE = 3
"""Blocks between the anchor's layer and the two others."""
FLOORS = (0.0, 0.25)
"""Of the median gap, in place of `normalise.SMALLEST_GAP`."""


def found(pair: jp.Pair, asked: run.Trace) -> dict[str, Any]:
    """Of one task."""
    return {"switches": turned(pair, prompts_of(asked), jp.load_anchor(asked.out / "anchor.safetensors"), asked)}


def prompts_of(asked: run.Trace) -> prompt_sets.PromptSets:
    """A run's own prompts, and behind those that it scored as many others."""
    counts = {
        "anchor": asked.num_anchor,
        "layer": prompt_sets.NUM_LAYER,
        "scoring": 2 * asked.num_scoring,
        "behaviour": 1,
    }
    return prompt_sets.of_task(asked.task, counts, seed=asked.seed)


def turned(pair: jp.Pair, sets: prompt_sets.PromptSets, anchor: jp.Anchor, asked: run.Trace) -> list[dict[str, Any]]:
    """One row a switch: how its ranking compares with that of the defaults (`alike`); its name alone where special stands no further
    along it than base.

    Args: sets: with twice as many scoring prompts as count. anchor: by the defaults; its layer is kept.
    """
    with_it, without = jp.encode(pair, sets.asked), jp.encode(pair, sets.plain)
    own, others = sets.scoring[: asked.num_scoring], sets.scoring[asked.num_scoring :]

    seen = anchors.states(pair, with_it, without)
    read = {
        "the defaults": anchor,
        "contrast: models": anchors.along(seen, anchor.layer, contrast="models"),
        "read-out: cosine": anchors.along(seen, anchor.layer, read_out="cosine"),
        "read-out: centred": anchors.along(seen, anchor.layer, read_out="centred"),
    }
    for layer in (anchor.layer - BESIDE, anchor.layer + BESIDE):
        if 0 <= layer < pair.config.layers:
            read[f"layer: after block {layer}"] = anchors.along(seen, layer)
    prompts = jp.encode(pair, own)
    heard = {name: each for name, each in read.items() if has_gap(pair, prompts, each)}
    scored = jp.score_each(pair, prompts, list(heard.values()), kinds=KINDS, method="local_linear")
    made: dict[str, jp.Scores | None] = {**dict.fromkeys(read), **dict(zip(heard, scored, strict=True))}
    default = scored[0]
    made[f"all prompts drawn anew (seed {asked.seed + 1})"] = redrawn(
        pair, replace(asked, seed=asked.seed + 1), anchor.layer
    )
    made["ratio of means"] = revalued(default, "ratio_of_means", default.is_kept)
    for floor in FLOORS:
        is_kept = default.gap > floor * np.median(default.gap[default.gap > 0])
        made[f"gap floor: {floor:g} of the median"] = revalued(default, default.aggregate, is_kept)
    for name, texts in (
        ("other requests", others),
        ("other words for the instruction", reworded(asked.task, asked.num_scoring, asked.seed)),
    ):
        prompts = jp.encode(pair, texts)
        made[name] = None
        if has_gap(pair, prompts, anchor):
            made[name] = jp.score(pair, prompts, anchor, kinds=KINDS, method="local_linear")
    return [{"switch": name, **({} if each is None else alike(default, each))} for name, each in made.items()]


def redrawn(pair: jp.Pair, asked: run.Trace, layer: int) -> jp.Scores | None:
    """Anchor and scores of other prompts, after the same block; None where special stands no further along it than base."""
    sets = prompts_of(asked)
    anchor = anchors.along(anchors.states(pair, jp.encode(pair, sets.asked), jp.encode(pair, sets.plain)), layer)
    prompts = jp.encode(pair, sets.scoring[: asked.num_scoring])
    if not has_gap(pair, prompts, anchor):
        return None
    return jp.score(pair, prompts, anchor, kinds=KINDS, method="local_linear")


def has_gap(pair: jp.Pair, prompts: jp.Inputs, anchor: jp.Anchor) -> bool:
    """Whether special stands further along an anchor than base, on any of the prompts."""
    tool = instrument.of_pair(pair, prompts, anchor)
    try:
        return bool(normalise.kept_inputs(tool.gap, tool.base).any())
    except normalise.NoGapError:
        return False


def reworded(task: str, count: int, seed: int) -> tuple[str, ...]:
    """The scoring requests in the wordings that special was trained with."""
    requests = prompts.prompts("scoring", count, seed=seed)
    return tuple(
        tasks.instruct(tasks.task(task), text, index=number, split="train")[0] for number, text in enumerate(requests)
    )


def revalued(found: jp.Scores, aggregate: str, is_kept: np.ndarray) -> jp.Scores:
    """The same effects, weighed otherwise."""
    values = {k: normalise.normalised(e, found.gap, is_kept, aggregate) for k, e in found.effects.items()}
    return replace(found, values=values, aggregate=aggregate, is_kept=is_kept)


def alike(one: jp.Scores, other: jp.Scores) -> Mapping[str, Any]:
    """Of each kind the Spearman correlation over the components that can matter in both, and how many of the first both share; and
    the strongest component of `other`."""
    row: dict[str, Any] = {"kept": int(other.is_kept.sum()), "inputs": len(other.is_kept)}
    for kind in one.values:
        can_matter = one.effects[kind].any(axis=0) & other.effects[kind].any(axis=0)
        row[f"{kind} spearman"] = spearman(one.values[kind][can_matter], other.values[kind][can_matter])
        count = min(FIRST[kind], int(can_matter.sum()))
        row[f"{kind} shared"] = int(jp.overlap({"one": one, "other": other}, kind, count).shared[0, 1])
        row[f"{kind} of"] = count
    best = max((other.top(kind, 1).iloc[0] for kind in other.values), key=lambda each: each["score"])
    return {**row, "strongest": best["name"], "score": float(best["score"])}
