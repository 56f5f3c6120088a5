"""What ranking components one by one loses: sets as sets, for one task.

Interactions and Shapley values among the first of the ranking; and sets found otherwise than one by one (greedily, and by learned
gates) against as many of the ranking's first, on the scored prompts and on others.
"""

from typing import Any

import pandas as pd
import switches

import jaxpatch as jp
from jaxpatch import run

PAIRS = 12
"""Of the ranking's first, every two."""
WORTH = 8
"""Of the ranking's first, in the game."""
ROUNDS = 4
SIZE, POOL, AT_ONCE = 30, 60, 6
"""Of the sets that are found otherwise; of the candidates; of each greedy step."""
STEPS = 60
SIZES = (10, 30)


def found(pair: jp.Pair, asked: run.Trace) -> dict[str, Any]:
    """Tables, as lists of rows, and what they are of."""
    texts = switches.prompts_of(asked).scoring
    prompts, others = (jp.encode(pair, part) for part in (texts[: asked.num_scoring], texts[asked.num_scoring :]))
    anchor, ranking = jp.load_anchor(asked.out / "anchor.safetensors"), jp.load_scores(asked.out / "scores.safetensors")
    base = (pair, prompts, anchor, ranking)
    total = sum(int(effects.any(axis=0).sum()) for effects in ranking.effects.values())
    pairs = jp.interactions(*base, top=min(PAIRS, total), seed=asked.seed)
    worth = jp.shapley(*base, top=min(WORTH, total), rounds=ROUNDS, seed=asked.seed)
    size = min(SIZE, total - 1)
    grown = jp.greedy(*base, size=size, pool=min(POOL, total), at_once=AT_ONCE, seed=asked.seed)
    learned = jp.learned_gates(*base, size=size, steps=STEPS, seed=asked.seed)
    sets = {"greedy": grown.components, "learned gates": learned.components}
    worthy = {"Shapley values": worth.ranked}
    compared = [
        *jp.compare_sets(*base, worthy, sizes=[-(-len(worth.ranked) // 2)], held_out=others, seed=asked.seed),
        *jp.compare_sets(*base, sets, sizes=[k for k in SIZES if k <= size], held_out=others, seed=asked.seed),
    ]
    return {
        "interactions": {
            "names": [each[-1] for each in pairs.components],
            "pairs": pairs.to_frame().to_dict("records"),
            "joint": pairs.joint._asdict(),
            "excess": pairs.excess._asdict(),
        },
        "shapley": {
            "values": worth.to_frame().to_dict("records"),
            "total": worth.total._asdict(),
            "joint": worth.joint._asdict(),
            "rounds": worth.rounds,
        },
        "compared": pd.DataFrame(compared).to_dict("records"),
        "settings": {"pool": POOL, "at_once": AT_ONCE, "steps": STEPS},
    }
