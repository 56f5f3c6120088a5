"""What the paper finds, and whether it is found here: the numbers that decide, by rules that are stated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cells
import numpy as np
import pandas as pd
from result import Result
from scipy import stats

from jaxpatch.measuring.prompt_sets import NUM_LAYER
from jaxpatch.reporting.wording import interval, listed, number, percent, plural
from jaxpatch.scoring import normalise
from jaxpatch.validating import controls

RELAYS = ("relay", "both")
"""All of high E_a, whatever their own weights do."""
FEWEST = 5
"""Relays, or sources, of which something is told."""
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
    """Of every finding what it comes to, then a row a finding, a column a task."""
    told = {said: [look(each) for each in scored] for said, look in FINDINGS.items()}
    titles = [each.title for each in scored]
    return (
        "\n".join(in_short(said, titles, [each.verdict for each in found]) for said, found in told.items())
        + "\n\nThe numbers that decide:\n\n"
        + cells.table(["finding", *titles], [[said, *map(": ".join, found)] for said, found in told.items()])
        + "\n\nIn brackets 95 % intervals. A finding holds where the whole interval is as said, does not hold where none of it is, and "
        "cannot be told otherwise. Intervals are over prompts; of what was counted (relays, answers, neurons) Wilson's; of medians "
        "over the components that they are of. Of E_w+, the sum of the scores above 0, both halves are asked: of the blocks up to "
        f"the anchor, and of all; where they disagree it cannot be told. {_below_zero(scored)}, so that they say where neurons "
        "help, not where more helps than hinders; and noise adds to such sums, so that their intervals lean upwards. The middle "
        f"third is {_middle(scored[0])}. The state forms there where base, pushed along a direction fitted to the "
        f"block itself, obeys at least half as often as after the best of the blocks tried ({NUM_LAYER} answers each). A size's "
        "interval runs from the first on the grid at which the curve's reaches 80 % to the first at which all of it does, and "
        "nothing is told where as few components that no score chose recover it, too. Behaviour: a sign test, prompt by prompt, p "
        f"below {LEVEL:g}. An overlap is above chance where as many of either kind, each drawn from all below the highest target that "
        "it supplies, would share as much in less than 5 % of draws; its interval takes each supplier as found by itself, though one "
        f"tree may feed several targets, and is too narrow for it. Nothing is told of fewer than {FEWEST} relays or sources. Relays "
        "are all of high E_a, those that are both among them; only where they stand beside sources are both left out, on either side. "
        "What is high is so beside the largest of its own kind: heads and neurons are compared by those that carry the same share of "
        "the state, and in number most relays may be neurons."
    )


def in_short(said: str, titles: Sequence[str], verdicts: Sequence[str]) -> str:
    """A finding, and of which tasks it is told what.

    >>> in_short("relays are heads: of all relays", ["caps", "quote", "title"], ["holds", "cannot be told", "holds"])
    '* Relays are heads: holds for caps and title; cannot be told for quote.'
    """
    claim = said.partition(":")[0]
    of = {
        verdict: [title for title, one in zip(titles, verdicts, strict=True) if one == verdict] for verdict in verdicts
    }
    return f"* {claim[0].upper()}{claim[1:]}: {'; '.join(f'{verdict} for {listed(several)}' for verdict, several in of.items())}."


def _middle_third(total: int) -> range:
    """Of so many blocks.

    >>> _middle_third(30)
    range(9, 20)
    """
    return range(-(-total // 3) - 1, 2 * total // 3)


def _middle(each: Result) -> str:
    blocks = _middle_third(len(each.weights.values["neuron"]))
    return f"blocks {blocks[0]} to {blocks[-1]}, both among them"


def _below_zero(scored: Sequence[Result]) -> str:
    """How much of neurons' scores is below 0, beside what is above."""
    values = [each.weights.values["neuron"][: each.layer + 1] for each in scored]
    shares = [float(-own[own < 0].sum() / own[own > 0].sum()) for own in values]
    return f"Below 0 lies {percent(min(shares))} to {percent(max(shares))} as much"


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
    """Neurons, by the sum of their positive scores; of which blocks the lower half is meant may matter, so both are asked."""
    layer, total = each.layer, len(each.weights.values["neuron"])
    upto, of_all = (cells.lower_half(each.weights, "neuron", blocks) for blocks in (layer + 1, total))
    holds = {_is_above(half[1:], 0.5) for half in (upto, of_all)}
    value = f"{cells.with_ends(upto)} up to the anchor, {cells.with_ends(of_all)} of all blocks"
    return Told(value, _verdict(holds.pop() if len(holds) == 1 else None))


def relays_are_heads(each: Result) -> Told:
    """More often than neurons are: of those that can reach the anchor, by a share of the state that is the same for both."""
    least = each.flow["rules"]["least"]
    can_reach = each.roles[each.roles["layer"] <= each.layer]
    is_relay = can_reach["role"].isin(RELAYS) & (can_reach["E_a"] >= least)
    counts = {kind: (int(part.sum()), len(part)) for kind, part in is_relay.groupby(can_reach["kind"])}
    heads, neurons = (cells.counted(*counts[kind]) for kind in ("head", "neuron"))
    told = [
        f"{counts[kind][0]} of {counts[kind][1]:,} {kind}s ({interval(*ends)})"
        for kind, ends in (("head", heads), ("neuron", neurons))
    ]
    holds = True if heads[0] > neurons[1] else False if heads[1] < neurons[0] else None
    return Told(
        f"{' / '.join(told)} carry {percent(least)} or more", _verdict(holds if is_relay.sum() >= FEWEST else None)
    )


def relays_are_late(each: Result) -> Told:
    """Above the first third of all blocks, more often than a component that can reach the anchor."""
    can_reach = each.roles[each.roles["layer"] <= each.layer]
    relays = can_reach[can_reach["role"].isin(RELAYS)]
    total = len(each.weights.values["neuron"])
    if relays.empty:
        return Told("there are none", _verdict(None))
    above, chance = int((relays["layer"] >= total / 3).sum()), float((can_reach["layer"] >= total / 3).mean())
    ends = cells.counted(above, len(relays))
    value = (
        f"{above} of {len(relays)} ({interval(*ends)}), median block {relays['layer'].median():.3g} / {percent(chance)}"
    )
    return Told(value, _verdict(None if len(relays) < FEWEST else _is_above(ends, chance)))


def relays_stand_above(each: Result) -> Told:
    """Sources, by the median of their blocks."""
    relay, source = (each.roles.loc[each.roles["role"] == role, "layer"] for role in ("relay", "source"))
    value = f"{relay.median():.3g} ({len(relay)} relays) / {source.median():.3g} ({len(source)} sources)"
    if min(len(relay), len(source)) < FEWEST:
        return Told(value, _verdict(None))
    draw = np.random.default_rng(0)
    drawn = [np.median(draw.choice(blocks, (NUM_RESAMPLES, len(blocks))), axis=1) for blocks in (relay, source)]
    low, high = np.percentile(drawn[0] - drawn[1], (2.5, 97.5))
    return Told(
        f"{value} ({low:.3g} to {high:.3g} blocks above)".replace("-", "−"), _verdict(_is_above((low, high), 0))
    )


def state_forms_in_the_middle(each: Result) -> Told:
    """By what it does: base, pushed along a direction of the block itself, obeys half as often there as after the best block."""
    info = each.manifest["anchor"]
    tried = [(c["layer"], round(c["success"] * NUM_LAYER)) for c in info["candidates"] if c["success"] is not None]
    total = len(each.weights.values["neuron"])
    middle = [one for one in tried if one[0] in _middle_third(total)]
    if not middle:
        return Told("no block of the middle third was tried", _verdict(None))
    there, best = (max(some, key=lambda one: one[1]) for some in (middle, tried))
    ends = cells.counted(there[1], NUM_LAYER)
    value = f"{there[1]} of {NUM_LAYER} after block {there[0]} ({interval(*ends)}) / {best[1]} after {best[0]}"
    return Told(value, _verdict(_is_above(ends, best[1] / 2 / NUM_LAYER) if best[1] else None))


def few_recover_it(each: Result) -> Told:
    """Components, 80 % of the state; and no others as few do."""
    few, total = each.smallest.set_index("share").loc[0.8, "size"], int(each.curves["k"].max())
    curves = each.curves[each.curves["mode"] == "restoration"]
    top = curves[curves["order"] == "top"]
    reached = [top.loc[top[end] >= 0.8, "k"] for end in ("high", "low")]
    sizes = [int(ks.iloc[0]) if len(ks) else None for ks in reached]
    value = "no size does" if pd.isna(few) else f"{int(few):,}"
    value += f" ({cells.size(sizes[0])} to {cells.size(sizes[1])}) of {total:,}"
    others = curves[curves["order"].isin(controls.NAMES) & (curves["k"] < MANY * total) & (curves["recovery"] >= 0.8)]
    if len(others):
        row = others.sort_values("k").iloc[0]
        return Told(f"{value}, and {row['k']:,} by {row['order']} {percent(row['recovery'])}", _verdict(None))
    return Told(value, _verdict(_is_below(sizes, MANY * total)))


def state_is_not_behaviour(each: Result) -> Told:
    """A set that recovers all of the state answers less than special, prompt by prompt."""
    recovered = each.curves.query("order == 'top' and mode == 'restoration'").set_index("k")["recovery"]
    sets = each.behaviour[each.behaviour["order"] == "top"].sort_values("size")
    whole = sets[[recovered[int(size)] >= 1 for size in sets["size"]]]
    if whole.empty:
        return Told("no set that wrote has all of the state", _verdict(None))
    row = whole.iloc[0]
    follows = each.answers.pivot(index="prompt", columns="model", values="follows").astype(bool)
    less, more = follows["special"] & ~follows[row["model"]], follows[row["model"]] & ~follows["special"]
    apart = int(less.sum() + more.sum())
    p = stats.binomtest(int(less.sum()), apart).pvalue if apart else 1.0
    value = (
        f"with {int(row['size']):,}, {percent(recovered[int(row['size'])])} of the state and {row['strict']} of {row['judged']}"
        f" answers; special {int(follows['special'].sum())}, base {int(follows['base'].sum())} (p {number(p)})"
    )
    return Told(value, _verdict(None if p >= LEVEL else bool(less.sum() > more.sum())))


def suppliers_are_sources(each: Result) -> Told:
    """Heads and neurons that tracing found beside as many of each that E_w ranks first."""
    rows = each.flow["overlap"]
    if not rows:
        return Told("none traced", _verdict(None))
    shared, traced = (sum(row[name] for row in rows) for name in ("shared", "traced"))
    ends = cells.counted(shared, traced)
    beside = {None: "may be as many as", False: "fewer than", True: "more than"}[_is_above(ends, PAPERS_SHARE)]
    kinds = ", ".join(f"{row['shared']} of {row['traced']} {plural(row['kind'])}" for row in rows)
    is_clear = all(row["p"] < LEVEL for row in rows)
    return Told(
        f"{shared} of {traced} ({interval(*ends)}; {kinds}) / {', '.join(percent(row['chance']) for row in rows)}",
        f"{'above' if is_clear else 'not above'} chance, {beside} the paper's",
    )


FINDINGS: dict[str, Callable[[Result], Told]] = {
    "MLP neurons carry more of the state than heads: recovered by all neurons / by all heads": neurons_carry_more,
    "sources are shallow: more than half of neurons' E_w+ in the lower half of the blocks": sources_are_shallow,
    "heads are relays more often than neurons: of all heads up to the anchor / of all neurons": relays_are_heads,
    "relays are mid or late: those above the first third of all blocks / of all components up to the anchor": relays_are_late,
    "relays stand above sources: median block of relays / of sources": relays_stand_above,
    "the state forms in the middle: answers steered along it after the best block of the middle third / after any": (
        state_forms_in_the_middle
    ),
    "few components recover the state: those that recover 80 %, of all that can; fewer than 5 %": few_recover_it,
    "inner recovery is not behaviour: answers of the first set that wrote with all of the state / of special": (
        state_is_not_behaviour
    ),
    "traced suppliers are ranked sources: shared (the paper: 75 %) / by chance": suppliers_are_sources,
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
