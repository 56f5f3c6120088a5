"""Whether prompts that no score saw are recovered alike, of one task."""

from typing import Any

import pandas as pd
import switches

import jaxpatch as jp
from jaxpatch import run
from jaxpatch.patching import components
from jaxpatch.scoring import normalise
from jaxpatch.validating import curves

SIZES = (10, 30, 100, 300)
"""Of the beginnings that are put into base."""


def found(pair: jp.Pair, asked: run.Trace) -> dict[str, Any]:
    """`fresh`: restoration by the ranking and by its controls, on as many prompts as were scored, none of them scored; a row an order
    and size, none where special stands no further along the anchor than base."""
    texts = switches.prompts_of(asked).scoring
    scored, others = (jp.encode(pair, part) for part in (texts[: asked.num_scoring], texts[asked.num_scoring :]))
    anchor, ranking = jp.load_anchor(asked.out / "anchor.safetensors"), jp.load_scores(asked.out / "scores.safetensors")
    there = sum(
        int(ranking.reach[kind].sum()) for kind in components.disjoint(ranking.partition, tuple(ranking.values))
    )
    beside = {
        "first order": jp.score(pair, scored, anchor, kinds=tuple(ranking.values), method="first_order"),
        "largest E_a": jp.load_scores(asked.out / "activations.safetensors"),
    }
    try:
        drawn = jp.validate(
            pair,
            others,
            anchor,
            ranking,
            others=beside,
            sizes=[k for k in SIZES if k < there] or [there],
            modes=("restoration",),
            num_random=asked.num_random,
            seed=asked.seed,
        )
    except normalise.NoGapError:
        return {"fresh": []}
    return {"fresh": pd.concat([rows(curve) for curve in drawn]).to_dict("records")}


def rows(curve: curves.Curve) -> pd.DataFrame:
    """A curve without its distances, as columns that page reads."""
    return pd.DataFrame({name: value for name, value in curve._asdict().items() if name not in ("mode", "kl")}).rename(
        columns={"name": "order", "ks": "k"}
    )
