"""The state itself, of one task: after which block it forms, and whether prompts that no score saw are recovered alike."""

from typing import Any

import numpy as np
import pandas as pd
import switches

import jaxpatch as jp
from jaxpatch import run
from jaxpatch.measuring import instrument
from jaxpatch.patching import components
from jaxpatch.scoring import normalise
from jaxpatch.validating import curves

LOOKED = (0.2, 0.8)
"""Recovery between which a ranking is compared with its controls."""
SIZES = (10, 30, 100, 300)
"""Of the beginnings that are put into base on other prompts."""


def found(pair: jp.Pair, asked: run.Trace) -> dict[str, Any]:
    """Of one task: `forming`; and `fresh`, restoration curves on as many prompts as were scored, none of them scored."""
    texts = switches.prompts_of(asked).scoring
    scored, others = (jp.encode(pair, part) for part in (texts[: asked.num_scoring], texts[asked.num_scoring :]))
    anchor, ranking = jp.load_anchor(asked.out / "anchor.safetensors"), jp.load_scores(asked.out / "scores.safetensors")
    return {
        "forming": forming(pair, scored, anchor, asked.seed),
        "fresh": fresh(pair, scored, others, anchor, ranking, asked),
    }


def forming(pair: jp.Pair, prompts: jp.Inputs, anchor: jp.Anchor, seed: int) -> dict[str, Any]:
    """How far special is ahead of base along the anchor's direction after each block.

    Returns: shares, of that at the anchor: [L]; half, the first block after which half of it is there, and its interval over prompts;
        nothing where special is not ahead on the whole.
    """
    every = [jp.Anchor(layer=layer, direction=anchor.direction) for layer in range(pair.config.layers)]
    gaps = instrument.of_pair(pair, prompts, every).gap.reshape(len(every), -1).T
    weights = normalise.drawn_weights(np.ones(len(gaps)), np.ones(len(gaps), bool), "mean_of_ratios", seed)
    drawn = weights @ gaps

    def half(means: np.ndarray) -> np.ndarray:
        """[..., L] to [...]."""
        return np.argmax(means >= 0.5 * means[..., anchor.layer, None], axis=-1)

    mean = gaps.mean(axis=0)
    if mean[anchor.layer] <= 0:
        return {}
    low, high = np.percentile(half(drawn[drawn[:, anchor.layer] > 0]), (2.5, 97.5))
    return {
        "shares": (mean / mean[anchor.layer]).tolist(),
        "half": int(half(mean)),
        "low": float(low),
        "high": float(high),
    }


def fresh(
    pair: jp.Pair, scored: jp.Inputs, others: jp.Inputs, anchor: jp.Anchor, ranking: jp.Scores, asked: run.Trace
) -> list[dict[str, Any]]:
    """The ranking and its controls on other prompts: one row an order and size."""
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
        return []
    return pd.concat([rows(curve) for curve in drawn]).to_dict("records")


def rows(curve: curves.Curve) -> pd.DataFrame:
    """A curve without its distances, as columns that page reads."""
    return pd.DataFrame({name: value for name, value in curve._asdict().items() if name not in ("mode", "kl")}).rename(
        columns={"name": "order", "ks": "k"}
    )
