"""What the paper finds, and whether it is found here: the numbers that decide, by rules that are stated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cells
import numpy as np
import pandas as pd
import result
from result import Result

from jaxpatch.reporting.wording import interval, percent
from jaxpatch.scoring import normalise

RELAYS = ("relay", "both")
FEWEST_FOR_MEDIAN = 5
MANY = 0.05
"""Of all components that can matter: fewer are few."""
LEVEL = 0.05
PAPERS_SHARE = 0.75
"""Of the traced suppliers that are ranked sources, as the paper has it."""
NUM_RESAMPLES = 1000


class Told(NamedTuple):
    """What is found in one task. value: the number that decides, with its interval. verdict: what that says."""

    value: str
    verdict: str


def of_tasks(scored: Sequence[Result]) -> str:
    """A row a finding, a column a task."""
    rows = [[said, *(": ".join(look(each)) for each in scored)] for said, look in FINDINGS.items()]
    return (
        cells.table(["finding", *(each.title for each in scored)], rows)
        + "\n\nIn brackets 95 % intervals. A finding holds where the whole interval is as said, does not hold where none of it is, and "
        "cannot be told otherwise. Intervals are over prompts; of shares that were counted (relays, answers, neurons) Wilson's; of "
        "medians over the components that they are of. A size's runs from the first on the grid at which the curve's interval reaches "
        "80 % to the first at which all of it does. An overlap is above chance where as many, each drawn from all below the highest "
        "target that it supplies, would share as much in less than 5 % of draws. Nothing is told of fewer than "
        f"{FEWEST_FOR_MEDIAN} relays or sources, nor of answers where special's hardly differ from base's, or where as many random "
        "components come half way as well."
    )


def neurons_carry_more(each: Result) -> Told:
    """Than heads, all of either put into base."""
    found = each.weights
    neurons, heads = (found.ceilings[name] for name in ("all neuron", "all head"))
    low, high = normalise.intervals(
        found.whole["all neuron"] - found.whole["all head"], found.gap, found.is_kept, found.aggregate, 0
    )
    more = float(low), float(high)
    return Told(f"{percent(neurons)} / {percent(heads)} ({interval(*more)} more)", _verdict(_is_above(more, 0)))


def sources_are_shallow(each: Result) -> Told:
    """Neurons, by the sum of their positive scores."""
    half = cells.lower_half(each.weights, "neuron")
    return Told(cells.with_ends(half), _verdict(_is_above(half[1:], 0.5)))


def relays_are_heads(each: Result) -> Told:
    """Most of them, by number."""
    relays = each.roles[each.roles["role"].isin(RELAYS)]
    if relays.empty:
        return Told("there are none", _verdict(None))
    heads = int((relays["kind"] == "head").sum())
    ends = cells.counted(heads, len(relays))
    holds = None if len(relays) < FEWEST_FOR_MEDIAN else _is_above(ends, 0.5)
    return Told(f"{heads} of {len(relays)} ({interval(*ends)})", _verdict(holds))


def relays_stand_above(each: Result) -> Told:
    """Sources, by the median of their blocks."""
    relay, source = (each.roles.loc[each.roles["role"].isin(names), "layer"] for names in (RELAYS, ("source",)))
    value = f"{relay.median():.3g} of {len(relay)} / {source.median():.3g} of {len(source)}"
    if min(len(relay), len(source)) < FEWEST_FOR_MEDIAN:
        return Told(value, _verdict(None))
    draw = np.random.default_rng(0)
    drawn = [np.median(draw.choice(blocks, (NUM_RESAMPLES, len(blocks))), axis=1) for blocks in (relay, source)]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    return Told(f"{value} ({low:.3g} to {high:.3g} above)".replace("-", "−"), _verdict(_is_above((low, high), 0)))


def state_forms_in_the_middle(each: Result) -> Told:
    """By the block after which half of it is there."""
    forming = each.state["forming"] if each.state else {}
    if not forming:
        return Told("-", _verdict(None))
    total = len(forming["shares"])
    ends = (forming["low"] + 1, forming["high"] + 1)
    value = f"{forming['half']} ({forming['low']:.3g} to {forming['high']:.3g}) of {total}"
    return Told(value, _verdict(_is_between(ends, (total / 3, 2 * total / 3))))


def few_recover_it(each: Result) -> Told:
    """Components, 80 % of the state."""
    few, total = each.smallest.set_index("share").loc[0.8, "size"], int(each.curves["k"].max())
    top = each.curves.query("order == 'top' and mode == 'restoration'")
    reached = [top.loc[top[end] >= 0.8, "k"] for end in ("high", "low")]
    sizes = [int(ks.iloc[0]) if len(ks) else None for ks in reached]
    value = "no size does" if pd.isna(few) else f"{int(few):,}"
    return Told(
        f"{value} ({cells.size(sizes[0])} to {cells.size(sizes[1])}) of {total:,}",
        _verdict(_is_below(sizes, MANY * total)),
    )


def state_is_not_behaviour(each: Result) -> Told:
    """Where half of the state is there, fewer than half as many answers follow as of special's."""
    found = result.set_of_half(each)
    if found is None:
        return Told("no set that wrote has half of the state", _verdict(None))
    state, row = found
    ends = each.behaviour.set_index("model")["strict"]
    follow = cells.counted(row["strict"], row["judged"])
    value = (
        f"half of the state with {state:,}; with {int(row['size']):,} follow {int(row['strict'])} of {int(row['judged'])} "
        f"({interval(*follow)}), special's {int(ends['special'])}, base's {int(ends['base'])}"
    )
    if others := result.others_there(each, int(row["size"])):
        return Told(f"{value}, and half as well with {others}", _verdict(None))
    if not result.is_shown(each):
        return Told(value, _verdict(None))
    return Told(value, _verdict(_is_below(follow, (ends["special"] + ends["base"]) / 2 / row["judged"])))


def suppliers_are_sources(each: Result) -> Told:
    """Neurons that tracing found beside as many that E_w ranks first."""
    shared = [row for row in each.flow["overlap"] if row["kind"] == "neuron"]
    if not shared:
        return Told("none traced", _verdict(None))
    row = shared[0]
    ends = cells.counted(row["shared"], row["traced"])
    beside = {None: "may be as many as", False: "fewer than", True: "more than"}[_is_above(ends, PAPERS_SHARE)]
    return Told(
        f"{row['shared']} of {row['traced']} ({interval(*ends)}) / {percent(row['chance'])}",
        f"{'above' if row['p'] < LEVEL else 'not above'} chance, {beside} the paper's",
    )


FINDINGS: dict[str, Callable[[Result], Told]] = {
    "MLP neurons carry more of the state than heads: recovered by all neurons / by all heads": neurons_carry_more,
    "sources are shallow: more than half of neurons' E_w+ in the lower half of the blocks up to the anchor": sources_are_shallow,
    "relays are heads: those that are, of all relays": relays_are_heads,
    "relays stand above sources: median block of relays / of sources": relays_stand_above,
    "the state forms in the middle: block after which half of it is there, in the middle third of all": state_forms_in_the_middle,
    "few components recover the state: those that recover 80 %, of all that can; fewer than 5 %": few_recover_it,
    "inner recovery is not behaviour: where half of the state is there, fewer than half of the answers are": state_is_not_behaviour,
    "traced suppliers are ranked sources: neurons shared (the paper: 75 %) / by chance": suppliers_are_sources,
}


def _verdict(holds: bool | None) -> str:
    return "cannot be told" if holds is None else "holds" if holds else "**does not hold**"


def _is_above(ends: tuple[float, float], bound: float) -> bool | None:
    """Whether all of an interval is above, or none of it; None where it cannot be told.

    >>> _is_above((0.6, 0.7), 0.5), _is_above((0.3, 0.4), 0.5), _is_above((0.4, 0.6), 0.5)
    (True, False, None)
    """
    return True if ends[0] > bound else False if ends[1] < bound else None


def _is_below(sizes: Sequence[float | None], bound: float) -> bool | None:
    """Whether an interval of sizes, of which an end may never come, is below.

    >>> _is_below((30, 100), 200), _is_below((300, None), 200), _is_below((100, None), 200)
    (True, False, None)
    """
    low, high = (np.inf if size is None else size for size in sizes)
    return True if high < bound else False if low > bound else None


def _is_between(ends: tuple[float, float], bounds: tuple[float, float]) -> bool | None:
    """Whether all of an interval is between two bounds, or none of it; None where it cannot be told."""
    if bounds[0] <= ends[0] and ends[1] <= bounds[1]:
        return True
    return False if ends[1] < bounds[0] or ends[0] > bounds[1] else None
