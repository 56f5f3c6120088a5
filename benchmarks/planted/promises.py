"""What the library promises beside a ranking, held against planted pairs: intervals, findings, the screen's error rate, traced routes.

Each is asked of one pair at a time, and answered in numbers that can be added up over pairs.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import jaxpatch as jp
from benchmarks.planted import scorers
from benchmarks.planted.contestants import TOP, Problem
from benchmarks.planted.training import KINDS
from jaxpatch import pipeline
from jaxpatch.measuring import instrument, slopes
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.scoring.method import Options
from jaxpatch.tracing import roles

ALPHA = 0.05
"""The screen's level: so large a share of the best may be missed, in the mean over trials."""
LEVEL = 0.05
"""Of pairs in which there is nothing to find, something is found in so many at most."""
TRIALS = 8
"""Of the screen, on each pair, with other random samples."""
FOR_ANCHOR = 64
"""Prompts by which an anchor is fitted anew."""
SCREENED = "neuron"
"""The kind that is screened: of the others there are fewer than a sample."""
DULL = 1e-6
"""Rounding: a score below is one of nothing, and two that are no further apart are the same."""


class Known(NamedTuple):
    """What is true of a pair, as far as it is asked here. sources, relays: kind -> bool."""

    sources: Mapping[str, np.ndarray]
    relays: Mapping[str, np.ndarray]


def kept(problem: Problem, more: Inputs, plain: Inputs, known: Known) -> dict[str, Any]:
    """All of it. more: further prompts of the scored sort. plain: these again, not asking."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # kinds without a source are nothing but rounding, and say so
        found = jp.score(problem.pair, problem.prompts, problem.anchor, kinds=KINDS, seed=problem.seed)
        passed = jp.score(
            problem.pair, problem.prompts, problem.anchor, kinds=KINDS, method="activation", seed=problem.seed
        )
        said = {
            "intervals": intervals(problem, found, more),
            "findings": findings(found, passed, known),
            "passing on": passing_on(found, passed, known),
            "screen": screen(problem, found),
            "anchor": anchor(problem, more, plain),
        }
        if any(each.any() for each in known.relays.values()):
            said["routes"] = routes(problem, known)
    return said


def intervals(problem: Problem, found: jp.Scores, more: Inputs) -> dict[str, float]:
    """How many of the 95 % intervals hold what the score is over many more prompts, of scores that are not of nothing."""
    many = jp.score(problem.pair, more, problem.anchor, kinds=KINDS)
    low, high, true_values = (
        np.concatenate([each[kind][found.reach[kind]] for kind in KINDS])
        for each in (found.low, found.high, many.values)
    )
    lives = np.abs(true_values) > DULL
    low, high, true_values = low[lives] - DULL, high[lives] + DULL, true_values[lives]
    held = round(scorers.coverage(low, high, true_values) * len(low)) if len(low) else 0
    return {"held": held, "all": len(low)}


def findings(found: jp.Scores, passed: jp.Scores, known: Known) -> dict[str, int]:
    """What stands out by the library's own criteria: how many of the sources are called sources, and how many others; and what relays
    of which it is known are called."""
    placed = jp.place(found, passed)
    called = {
        kind: np.isin(placed.roles[kind], [roles.ROLES.index(role) for role in ("source", "both")]) for kind in KINDS
    }
    relay = roles.ROLES.index("relay")
    return {
        "sources": sum(int(known.sources[kind].sum()) for kind in KINDS),
        "called": sum(int((called[kind] & known.sources[kind]).sum()) for kind in KINDS),
        "others": sum(int((called[kind] & ~known.sources[kind]).sum()) for kind in KINDS),
        "relays": sum(int(known.relays[kind].sum()) for kind in KINDS),
        "called relays": sum(int((known.relays[kind] & (placed.roles[kind] == relay)).sum()) for kind in KINDS),
    }


def passing_on(found: jp.Scores, passed: jp.Scores, known: Known) -> dict[str, float] | None:
    """Of all components that are no sources the one of the highest E_a: that, and its E_w; beside the highest E_a of a source. None
    where there is no source."""
    if not any(each.any() for each in known.sources.values()):
        return None
    best = [max(passed.values[kind][each].max() for kind, each in known.sources.items() if each.any())]
    others = {kind: np.where(each, -np.inf, passed.values[kind]) for kind, each in known.sources.items()}
    kind = max(others, key=lambda kind: others[kind].max())
    place = np.unravel_index(others[kind].argmax(), others[kind].shape)
    return {"E_a": float(others[kind][place]), "E_w": float(found.values[kind][place]), "E_a of a source": float(*best)}


def screen(problem: Problem, found: jp.Scores) -> dict[str, Any]:
    """How many were missed that are better than the last of the best that were found, by screens with other samples, and how many
    components each replaced. The pair is run once: all that a screen may ask for is remembered."""
    tool = remembered(problem, found)
    reached = np.where(found.reach[SCREENED], found.values[SCREENED], -np.inf)
    missed, replaced = [], []
    for trial in range(TRIALS):
        options = Options(top=TOP, alpha=ALPHA, sample=20, seed=TRIALS * problem.seed + trial)
        said = pipeline.score_with(tool, kinds=(SCREENED,), method="screened", options=options).screening[SCREENED]
        last = np.sort(said.exact)[-TOP]  # of those that it says are the best
        missed.append(int((~said.replaced & (reached > last + DULL)).sum()))
        replaced.append(int(said.replaced.sum()))
    return {"missed": missed, "replaced": replaced, "all": int(found.reach[SCREENED].sum()), "top": TOP}


def remembered(problem: Problem, found: jp.Scores) -> instrument.Instrument:
    """A pair's instrument that answers for one kind from memory."""
    tool = instrument.of_pair(problem.pair, problem.prompts, problem.anchor)
    cheap: Mapping[str, slopes.Cheap] = tool.cheap((SCREENED,), lambda *_: None)
    effects = found.effects[SCREENED]
    return tool._replace(
        exact=lambda kind, indices, progress: effects[(slice(None), *indices.T)].T,
        cheap=lambda kinds, progress: cheap,
    )


def anchor(problem: Problem, asked: Inputs, plain: Inputs) -> dict[str, Any]:
    """Whether an anchor for this behaviour is trusted after the state's block, and which of its checks fail."""
    few = (Inputs(*(part[:FOR_ANCHOR] for part in prompts)) for prompts in (asked, plain))
    _, info = jp.fit_anchor(problem.pair, *few, layer=problem.anchor.layer)
    return {"is_trusted": info.is_trusted, "failed": [check.name for check in info.failed]}


def routes(problem: Problem, known: Known) -> dict[str, int]:
    """Edges of the traced graph: how many there are, how many should be, and how many of these are there.

    There should be one from every source and every known relay to the state, and from every source to each head of a later block that
    is known as a relay.
    """
    flow = jp.trace(
        problem.pair,
        problem.prompts,
        problem.anchor,
        sources=KINDS,
        relays=("head",),
        method="exact",
        seed=problem.seed,
    )
    sources, relays = (
        [(kind, *place) for kind in KINDS for place in np.argwhere(each[kind]).tolist()]
        for each in (known.sources, known.relays)
    )
    wanted = {(each, ("state",)) for each in (*sources, *relays)}
    heads = [relay for relay in relays if relay[0] == "head"]
    wanted |= {(source, head) for source in sources for head in heads if source[1] < head[1]}
    ends = [(node.kind, *node.index) for node in flow.nodes]
    traced = {(ends[edge.supplier], ends[edge.target]) for edge in flow.edges}
    return {"traced": len(traced), "wanted": len(wanted), "both": len(traced & wanted)}
