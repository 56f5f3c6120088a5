"""Numbers into words: what a run found, said plainly, also where it found nothing. No layout here."""

import collections
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.patching import components
from jaxpatch.reporting.findings import Findings
from jaxpatch.scoring import EXACT, agreement, stability
from jaxpatch.scoring.method import Screening
from jaxpatch.tracing.flow import INPUTS, Edge, Flow
from jaxpatch.tracing.roles import Roles
from jaxpatch.validating import controls
from jaxpatch.validating.curves import Curve

DASH = "—"
SPACE = "\u00a0"
SINGULARS = {
    "kv": "key/value group",
    "attention": "attention sublayer",
    "mlp": "MLP",
    "final_norm": "final norm",
    "embed": "embedding",
    "positions": "position table",
    "unembed": "unembedding",
}
METHODS = {
    "exact": "every component truly replaced",
    "first_order": "first-order estimate, nothing replaced",
    "local_linear": "local-linear estimate, nothing replaced",
    "integrated": "integrated gradients, nothing replaced",
    "screened": "local-linear screen; all that might be among the best truly replaced",
    "activation": "every activation truly exchanged",
    "screened_activation": "attribution screen; all that might be among the best truly exchanged",
    "attribution": "attribution patching, nothing exchanged",
}
ROLES = {
    "source": "source: its own weights carry it",
    "relay": "relay: passes on what others made",
    "both": "both",
    "executor": "executor: carries the state to the output",
    "neither": "neither",
}
FEW, MANY = 0.1, 0.9
"""Recoveries between which a ranking can be told from its controls; outside, every order starts or ends alike."""
GOOD_SPEARMAN, GOOD_SIGN, GOOD_SLOPE = 0.9, 0.9, (0.8, 1.25)
"""From where on the report calls the cheap score trustworthy. A reading aid of ours, not a test."""
POOR_SPEARMAN = 0.5
"""Below it the report says that one ranking says little of the other."""
FEWEST_TO_HALVE = 4
"""Prompts that count."""
SPREAD_OUT = 0.1
"""Share of all components above which the report says that the change is spread out."""


class Stand(NamedTuple):
    """How a ranking stands against its controls in one mode.

    looked: the k whose recovery lies in 10-90 %. clear: those where its lead over each is clear of 0. above: those where it
    is better than every control, clear ones included. beaten: (k, its recovery, the best control's name and recovery)
    of the rest. unclear: the controls over which its lead is not clear of 0 at every k of `above`.
    """

    mode: str
    looked: tuple[int, ...]
    clear: tuple[int, ...]
    above: tuple[int, ...]
    beaten: tuple[tuple[int, float, str, float], ...]
    unclear: tuple[str, ...]
    num_controls: int


def percent(share: float) -> str:
    """A share in per cent with two or three significant digits; a dash for NaN.

    >>> percent(0.8312).replace(SPACE, " "), percent(0.00314).replace(SPACE, " "), percent(float("nan"))
    ('83 %', '0.31 %', '—')
    """
    digits = _percent_digits(share)
    return digits if digits == DASH else f"{digits}{SPACE}%"


def interval(low: float, high: float) -> str:
    """Both ends of an interval in per cent; a dash where there is none.

    >>> interval(-0.01, 0.25).replace(SPACE, " "), interval(float("nan"), float("nan"))
    ('−1.0 to 25 %', '—')
    """
    if math.isnan(low) or math.isnan(high):
        return DASH
    return f"{_percent_digits(low)} to {percent(high)}"


def _percent_digits(share: float) -> str:
    value = 100 * float(share)
    if not math.isfinite(value):
        return DASH if math.isnan(value) else ("∞" if value > 0 else "−∞")
    size = abs(value)
    digits = 0 if size >= 9.95 else 1 if size >= 0.995 else 2 if size >= 0.0995 else 3
    text = f"{value:.{digits}f}"
    return "0" if not text.strip("-0.") else text.replace("-", "−")


def number(value: float) -> str:
    """A number with three significant digits; a dash for NaN.

    >>> number(0.98765), number(float("nan")), number(-2.0), number(12345.0)
    ('0.988', '—', '−2', '12,345')
    """
    value = float(value)
    if not math.isfinite(value):
        return DASH if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("-", "−")


def correlation(value: float) -> str:
    """A correlation with three decimals; a dash for NaN.

    >>> correlation(0.99961), correlation(-0.5)
    ('1.000', '−0.500')
    """
    return DASH if math.isnan(value) else f"{value:.3f}".replace("-", "−")


def capital(words: str) -> str:
    """The first letter large, the others as they are."""
    return words[:1].upper() + words[1:]


def singular(kind: str) -> str:
    """What one of a kind is called."""
    return SINGULARS.get(kind, kind)


def plural(kind: str) -> str:
    """Several of a kind.

    >>> plural("head"), plural("mlp"), plural("matrix")
    ('heads', 'MLPs', 'matrices')
    """
    return "matrices" if kind == "matrix" else f"{singular(kind)}s"


def counted(counts: Mapping[str, int]) -> str:
    """Numbers of components in words.

    >>> counted({"head": 1, "neuron": 1200}), counted({"head": 0, "layer": 2})
    ('1 head and 1,200 neurons', '2 layers')
    """
    parts = [f"{n:,} {singular(kind) if n == 1 else plural(kind)}" for kind, n in counts.items() if n]
    return listed(parts) or "no component"


def listed(parts: Sequence[str]) -> str:
    """A list in words.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def ranking(findings: Findings) -> pd.DataFrame:
    """All scored components by falling score, whatever their kind; those above the anchor, which cannot reach it, left out."""
    frame = findings.scores.to_frame()
    if findings.scores.layer >= 0:
        frame = frame.loc[frame["layer"] <= findings.scores.layer]
    return frame.sort_values("score", ascending=False, kind="stable").reset_index(drop=True)


def ceiling(findings: Findings, kind: str | None = None) -> tuple[str, float] | None:
    """What patching all of the finest scored kinds recovers together: ("all heads and neurons", share).

    Args: kind: of a component that the share will stand beside; where it is none of the finest, all of this kind.
    """
    kinds = _together(findings)
    kinds = kinds if kind is None or kind in kinds else (kind,)
    known = findings.scores.ceilings
    name = f"all {kinds[0]}" if len(kinds) == 1 else " + ".join(kinds)
    return (ceiling_name(name), known[name]) if name in known else None


def ceiling_name(name: str) -> str:
    """A key of `Scores.ceilings` in words.

    >>> ceiling_name("head + neuron"), ceiling_name("all mlp"), ceiling_name("everything")
    ('all heads and neurons', 'all MLPs', 'everything')
    """
    kinds = name.removeprefix("all ").split(" + ")
    return name if name == "everything" else f"all {listed([plural(kind) for kind in kinds])}"


def reachable(findings: Findings) -> controls.Order:
    """The components that can reach the anchor, in the order in which the validation takes them."""
    found = findings.scores
    return controls.ranked({kind: found.values[kind] for kind in _together(findings)}, found.reach)


def _together(findings: Findings) -> tuple[str, ...]:
    """The kinds that take part in the validation."""
    return components.disjoint(findings.scores.partition, tuple(findings.scores.values))


def composition(findings: Findings, count: int) -> str:
    """What the first `count` components of the ranking are, in words."""
    return counted(controls.counts(reachable(findings), count))


def main_curve(drawn: Sequence[Curve]) -> Curve:
    """The curve of the ranking itself: the one called "top", else the first."""
    return next((curve for curve in drawn if curve.name == "top"), drawn[0])


def stand(findings: Findings, mode: str) -> Stand | None:
    """How the ranking stands against its controls; None without curves of this mode.

    Better is more in restoration and less in knockout. The k that takes everything is left out: there all orders are
    one set.
    """
    drawn = [curve for curve in findings.curves if curve.mode == mode]
    if not drawn:
        return None
    main = main_curve(drawn)
    others = [curve for curve in drawn if curve is not main]
    total = len(reachable(findings).places)
    at = [n for n, k in enumerate(main.ks) if k < total and FEW <= main.recovery[n] <= MANY]
    clear, above, beaten = [], [], []
    for n in at if others else []:
        k = int(main.ks[n])
        best = max(others, key=lambda curve: _good(mode, curve.recovery[n]))
        if _good(mode, main.recovery[n]) <= _good(mode, best.recovery[n]):
            beaten.append((k, float(main.recovery[n]), best.name, float(best.recovery[n])))
            continue
        above.append(k)
        if all(curve.lag_low[n] > 0 for curve in others):
            clear.append(k)
    looked = tuple(int(main.ks[n]) for n in at)
    unclear = [curve.name for curve in others if any(int(main.ks[n]) in above and not curve.lag_low[n] > 0 for n in at)]
    return Stand(mode, looked, tuple(clear), tuple(above), tuple(beaten), tuple(unclear), len(others))


def _good(mode: str, recovery: float) -> float:
    return -recovery if mode == "knockout" else recovery


def stands(findings: Findings, mode: str) -> str:
    """One or two sentences on whether the ranking beats its controls, and at which k not."""
    found = stand(findings, mode)
    if found is None:
        return ""
    name = mode.capitalize()
    side = "below" if mode == "knockout" else "above"
    if not found.num_controls:
        return f"{name}: there are no controls to compare with."
    if not found.looked:
        return (
            f"{name}: at no k on the grid does the control state lie between 10 and 90{SPACE}% for the top curve, so "
            "these sizes cannot tell the ranking from its controls."
        )
    where = f"{name}: where the top curve lies between 10 and 90{SPACE}% (k = {_ks(found.looked)}), it stands "
    beaten = [
        f"k = {k:,} ({percent(own)} against {percent(theirs)} for {other})" for k, own, other, theirs in found.beaten
    ]
    if not found.above:
        return f"{where}{side} all controls at no k: {listed(beaten)}. This ranking is no better than its controls."
    text = where + (
        f"{side} every control at every k."
        if not beaten
        else f"{side} every control at k = {_ks(found.above)}, not at {listed(beaten)}."
    )
    if found.clear == found.above:
        return f"{text} Its lead over each is clear of 0 {'there' if len(found.above) == 1 else 'at each of these'}."
    if len(found.unclear) < found.num_controls:
        there = f"over each at k = {_ks(found.clear)}, and elsewhere " if found.clear else ""
        return (
            f"{text} Its lead is clear of 0 {there}over each but {listed(list(found.unclear))}: there it may be chance."
        )
    if found.clear:
        return f"{text} Its lead over each is clear of 0 at k = {_ks(found.clear)} only."
    return f"{text} But its lead over each is nowhere clear of 0: with these prompts it may be chance."


def smallest(findings: Findings) -> str:
    """One sentence on how far down the ranking one must go; empty where nobody looked."""
    told = [
        f"{percent(each.share)} of the control state by {counted(each.counts)}"
        for each in findings.smallest
        if each.size is not None
    ]
    never = [percent(each.share) for each in findings.smallest if each.size is None]
    ends = [f"Smallest beginnings of the ranking: {listed(told)}."] if told else []
    return " ".join([*ends, *([f"No size recovers {listed(never)}."] if never else [])])


def _ks(ks: Sequence[int]) -> str:
    return listed([f"{k:,}" for k in ks])


def headline(findings: Findings) -> str:
    """What was found, in one to three plain sentences."""
    sentences = [*_distrust(findings), *(_from_curve(findings) or _from_singles(findings))]
    return " ".join(sentences)


def _distrust(findings: Findings) -> list[str]:
    if not findings.forced or findings.anchor_info is None:
        return []
    failed = listed([check.name for check in findings.anchor_info.failed])
    return [f"Forced: read nothing into these scores, for the anchor fails its checks ({failed})."]


def _from_curve(findings: Findings) -> list[str]:
    drawn = [curve for curve in findings.curves if curve.mode == "restoration"]
    if not drawn:
        return []
    main = main_curve(drawn)
    total = len(reachable(findings).places)
    half = np.flatnonzero(main.recovery >= 0.5)
    at = int(half[0]) if len(half) else int(np.argmax(main.recovery))
    k, share = int(main.ks[at]), float(main.recovery[at])
    is_all = k >= total
    who = ("all " if is_all else "") + composition(findings, k)
    layer = findings.scores.layer
    where = f" at or below block {layer}" if layer >= 0 else ""
    end = ceiling(findings)
    together = f"; {end[0]} together {percent(end[1])}" if end and not is_all else ""
    if not len(half):
        if share <= 0:
            return ["Nothing stands out: no number of the highest-scored components recovers any of the control state."]
        text = (
            f"No number of components recovers half of the control state: {who}{where} recover {percent(share)}, the "
            "most"
        )
        return [f"{text}{together}."]
    said = [f"{capital(who)}{where} recover {percent(share)} of the control state{together}."]
    if is_all:
        return [*said, "No smaller set on the grid reaches half: the change is spread out, not localised."]
    if k > SPREAD_OUT * total:
        said.append(
            f"That is {percent(k / total)} of all that can reach the anchor: the change is spread out, not localised."
        )
    return [*said, *_against_controls(drawn, main, at)]


def _against_controls(drawn: Sequence[Curve], main: Curve, at: int) -> list[str]:
    others = [curve for curve in drawn if curve is not main]
    if not others:
        return []
    best = max(others, key=lambda curve: curve.recovery[at])
    if best.recovery[at] >= main.recovery[at]:
        return [f"But a control of the same size does as well: {best.name} recovers {percent(best.recovery[at])}."]
    doubt = "" if all(c.lag_low[at] > 0 for c in others) else ", and the lead may be chance"
    return [f"Controls of the same size recover at most {percent(best.recovery[at])} ({best.name}){doubt}."]


def _from_singles(findings: Findings) -> list[str]:
    best = ranking(findings).iloc[0]
    end = ceiling(findings, best["kind"])
    together = f"; {end[0]} together {percent(end[1])}" if end else ""
    if best.score <= 0:
        return [f"Nothing stands out: no single component recovers any of the control state{together}."]
    if best.low <= 0:
        spread = f"{percent(best.score)}, has an interval that includes 0 ({interval(best.low, best.high)})"
        return [f"Nothing stands out: the highest score, {best['name']} at {spread}{together}."]
    spread = DASH if math.isnan(best.low) else interval(best.low, best.high)
    certain = f"95{SPACE}% interval {spread}" if spread != DASH else "no interval: too few prompts"
    return [
        f"The strongest single component, {best['name']}, recovers {percent(best.score)} of the control state "
        f"({certain}){together}."
    ]


def placed(roles: Roles, kind: str) -> pd.DataFrame:
    """The rows of `Roles.to_frame` of one kind, without those above the anchor, which cannot reach it."""
    frame = roles.to_frame()
    is_wanted = frame["kind"] == kind
    if roles.weights.layer >= 0:
        is_wanted &= frame["layer"] <= roles.weights.layer
    return frame.loc[is_wanted].reset_index(drop=True)


def strongest_of_roles(frame: pd.DataFrame, count: int) -> pd.DataFrame:
    """The first of each role, of rows of `Roles.to_frame`: relays by E_a, sources and those that are both by E_w."""
    ranked = [
        frame.loc[frame["role"] == role].sort_values(score, ascending=False, kind="stable").head(count)
        for role, score in (("relay", "E_a"), ("source", "E_w"), ("both", "E_w"))
    ]
    return pd.concat(ranked)


def sorted_out(roles: Roles, kind: str) -> str:
    """How many components of a kind play each role, the strongest of each, and whether E_a says anything of E_w."""
    frame = placed(roles, kind)
    counts = {role: int(np.sum(frame["role"] == role)) for role in ROLES}
    told = [
        f"{_number_of(counts['source'], 'source', 'sources')}, {_number_of(counts['relay'], 'relay', 'relays')}",
        f"{counts['both'] or 'none'} that {'is' if counts['both'] < 2 else 'are'} both, {counts['neither']:,} neither",
    ]
    said = [f"{capital(counted({kind: len(frame)}))} can reach the anchor: {', '.join(told)}."]
    for row in strongest_of_roles(frame, 1).to_dict("records"):
        scores = listed([f"{side} {percent(row[side])} ({_ends(row, side)})" for side in ("E_a", "E_w")])
        what = "of those that are both" if row["role"] == "both" else row["role"]
        said.append(f"Strongest {what}: {row['name']}, {scores}.")
    rank = agreement.spearman(frame["E_a"].to_numpy(), frame["E_w"].to_numpy())
    verdict = (
        ": the two rankings are nearly one."
        if rank >= GOOD_SPEARMAN
        else ": where the state is seen says little of whose weights made it."
        if rank < POOR_SPEARMAN
        else "."
    )
    return " ".join([*said, f"Spearman of E_a and E_w {correlation(rank)}{verdict}"])


def _number_of(count: int, one: str, several: str) -> str:
    return f"no {one}" if not count else f"{count:,} {one if count == 1 else several}"


def _ends(row: Mapping[Hashable, Any], side: str) -> str:
    return interval(row[f"{side} low"], row[f"{side} high"])


def criteria(roles: Roles) -> str:
    """What the roles mean, and when a component has one."""
    share, own = (percent(each) for each in roles.criteria)
    return (
        f"A score counts as high where its interval lies above 0, it is at least {share} of the largest of its kind, and it is no "
        "rounding. "
        "A source has a high E_w and no high E_a: what its own training changed brings the state back, whatever reaches "
        "it. A relay has a high E_a, while its E_w is not high or is less than "
        f"{own} of it: it writes the state because others made its input different. Both: high E_a and high E_w, the "
        "second a good part of the first. These criteria are ours, and adjustable (jp.Criteria)."
    )


def supplied(traced: Flow) -> list[str]:
    """For each target that was followed who supplies it; and whether the sources found so are those that the ranking names."""
    told = []
    for number, (weights, *_) in traced.measured.items():
        node, edges = traced.nodes[number], [edge for edge in traced.edges if edge.target == number]
        relays = [edge for edge in edges if edge.role != "source"]
        both = sum(edge.role == "both" for edge in relays)
        parts = [
            _number_of(len(relays), "relay", "relays")
            + f" ({both} of them {'a source' if both == 1 else 'sources'} as well)" * bool(both)
            + _strongest(traced, [(edge, edge.activations[0]) for edge in relays]),
            _number_of(len(edges) - len(relays), "source", "sources")
            + _strongest(traced, [(edge, edge.weights[0]) for edge in edges if edge.role == "source"]),
        ]
        kept = f" On {int(weights.is_kept.sum())} of {len(weights.is_kept)} prompts, where special contributes more than base."
        own = "" if math.isnan(node.own) else f" Its own parameters recover {percent(node.own)} of what it contributes."
        read = _read_through([edge for edge in edges if edge.through in INPUTS_OF_HEADS])
        who = capital(node.name if number else "the state")
        told.append(f"{who}: {listed(parts)}.{'' if weights.is_kept.all() else kept}{own}{read}")
    for row in traced.overlap().to_dict("records"):
        told.append(
            f"Of {counted({row['kind']: row['traced']})} that tracing found to supply relays, {row['shared']} "
            f"({percent(row['share'])}) are among the first {row['traced']} by E_w for the state itself; chance would give "
            f"{percent(row['chance'])} (p {probability(row['p'])})."
        )
    return told + executed(traced)


def _strongest(traced: Flow, shares: Sequence[tuple[Edge, float]]) -> str:
    """The first of the suppliers of one sort, which come from the strongest down."""
    return f", the strongest {traced.nodes[shares[0][0].supplier].name} ({percent(shares[0][1])})" if shares else ""


INPUTS_OF_HEADS = {"query": "queries", "key": "keys", "value": "values"}
"""Inputs of a head, of which there are more than one to choose from."""


def _read_through(edges: Sequence[Edge]) -> str:
    """Through which of a head's inputs its suppliers act."""
    number = collections.Counter(edge.through for edge in edges).most_common()
    if not number:
        return ""
    (most, first), *others = [(count, f"through its {INPUTS_OF_HEADS[name]}") for name, count in number]
    said = [f"{most} {'acts' if most == 1 else 'act'} mostly {first}", *(f"{count} {where}" for count, where in others)]
    return f" Of these suppliers {listed(said)}."


def through(row: Mapping[Any, float]) -> str:
    """The input of a target through which most comes, alone, of those that were asked.

    >>> through({"query": 0.01, "key": 0.0, "value": 0.5, "mlp": math.nan}).replace(SPACE, " ")
    'value 50 %'
    """
    known = [name for name in INPUTS if row[name] > 0]
    most = max(known, key=lambda name: row[name], default="")
    return f"{most}{SPACE}{percent(row[most])}" if most else ""


def executed(traced: Flow) -> list[str]:
    """What carries the state on to the next token; nothing where nobody asked."""
    if (found := traced.executed) is None:
        return []
    named = [node for node in traced.nodes if node.role == "executor"]
    whole = [name for name in found.ceilings if name != "everything"]
    together = listed([f"{ceiling_name(name)} {percent(found.ceilings[name])}" for name in whole])
    strongest = listed(
        [f"{node.name} ({percent(node.share)})" for node in sorted(named, key=lambda node: -node.share)[:3]]
    )
    return [
        f"From the state to the next token: of what special's parameters up to the anchor do to it, {together} above the anchor "
        "carry on. " + (f"Single executors that stand out: {strongest}." if named else "No single executor stands out.")
    ]


def probability(p: float) -> str:
    """A probability in words that claim no more than it can.

    >>> probability(0.0301), probability(1e-9)
    ('0.0301', 'below 0.001')
    """
    return "below 0.001" if p < 0.001 else number(p)


def tracing_rules(traced: Flow) -> str:
    """When a supplier counts, and when tracing ends."""
    rules = traced.rules
    return (
        "A supplier stands out where the interval of its score lies above 0, and the score is no rounding and at least "
        f"{percent(rules.criteria.share)} of the largest of its kind; of each sort the first {rules.most} are kept. The own "
        f"contribution of a relay that carries at least {percent(rules.least)} of the state, along the gradient of what it is a part "
        f"of, then takes the place of the state, down to {rules.levels} levels. {_scored_by(traced)} The procedure is ours."
    )


def _scored_by(traced: Flow) -> str:
    """By which methods suppliers were found."""
    said = {}
    for number, (weights, activations, _) in traced.measured.items():
        whose = "the suppliers of relays" if number else "the suppliers of the state"
        said[whose] = f"E_w: {METHODS[weights.method]}; E_a: {METHODS[activations.method]}"
    return " ".join(f"Of {whose}, {each}." for whose, each in said.items())


def agrees(kind: str, found: Screening) -> str:
    """One sentence on how far the cheap score of a kind can be trusted."""
    numbers = f"Spearman {correlation(found.spearman)}, equal signs {percent(found.sign)}, slope {number(found.slope)}"
    random = int(found.is_random.sum())
    parts = f"{random:,} drawn at random, the others for their high bounds"
    count = f"{len(found.exact):,} {plural(kind)} were truly replaced"
    if not len(found.exact):
        return f"No component of the kind “{kind}” can reach the anchor: their scores are 0 by construction."
    if found.bound == -math.inf:
        return f"{count}: all that can reach the anchor, so no score is an estimate. {numbers}."
    is_good = (
        found.spearman >= GOOD_SPEARMAN and found.sign >= GOOD_SIGN and GOOD_SLOPE[0] <= found.slope <= GOOD_SLOPE[1]
    )
    verdict = (
        "The cheap score can stand in for the exact one."
        if is_good
        else "Trust only the replaced ones: for the others the cheap score is a hint."
    )
    return f"{count} ({parts}): {numbers}. {verdict}"


def promise(kind: str, screening: Screening) -> str:
    """What is promised of the best components."""
    if screening.bound == -math.inf:
        return f"Best {plural(kind)}: all were replaced, so the order is exact."
    best = f"The best {screening.top:,} {plural(kind)} reach down to a score of {percent(screening.threshold)}."
    if screening.left:
        return (
            f"{best} A limit ended the screen after {int(screening.replaced.sum()):,} were replaced, with {screening.left:,} others "
            "whose "
            f"bounds lie above that: the order is of those that were replaced, and up to {number(screening.missed)} better ones are "
            "to be "
            "expected among the rest."
        )
    if screening.is_trusted:
        return (
            f"{best} No bound of any other lies above {percent(screening.bound)}; each of these bounds holds with probability "
            f"{percent(1 - screening.alpha)}. Up to {percent(screening.unnoticed)} of all could be {plural(kind)} to which the cheap "
            "score is blind, without a trace in the random sample."
        )
    return (
        f"{best} The cheap score is poor here, so the random sample was enlarged to {int(screening.is_random.sum()):,}: the expected "
        f"number of better ones that were missed is at most {number(screening.missed)}."
    )


def trust(findings: Findings) -> list[str]:
    """What the method allows to conclude: one sentence, or one for each screened kind."""
    found = findings.scores
    if found.method in EXACT:
        return [
            "Yes, by construction: every component that can reach the anchor was truly replaced; no score is an "
            "estimate."
        ]
    if not found.screening:
        return [
            f"Unknown: nothing was replaced. These are {METHODS.get(found.method, found.method)}; score again with "
            "the method “screened” or “exact” before relying on single components."
        ]
    return [agrees(kind, part) for kind, part in found.screening.items()]


def halves(findings: Findings) -> list[str]:
    """One sentence a kind on whether other prompts would rank alike; none with too few prompts."""
    if findings.scores.is_kept.sum() < FEWEST_TO_HALVE:
        return []
    told = stability.halves(findings.scores)
    return [
        f"Halves of the prompts: their scores of {plural(row['kind'])} have Spearman {correlation(row['spearman'])} "
        f"({correlation(row['low'])} to {correlation(row['high'])}), and of the first {row['count']:,} they share "
        f"{number(row['shared'])} ({number(row['chance'])} by chance)."
        for row in told.to_dict("records")
    ]


def noise(findings: Findings) -> str:
    """From where on exact scores differ by more than rounding."""
    told = [f"{kind} ±{number(100 * floor)}{SPACE}%" for kind, floor in findings.scores.noise.items()]
    instead = " score in float32, or by “local_linear”." if findings.scores.exchange is None else " score in float32."
    return (
        f"{listed(told)} of the gap: the engine against the definition in the highest precision, the same arithmetic in another "
        "order, and that against itself, a second time."
    ) + "".join(
        f" That is more than a tenth of the largest {kind} score: the order of {kind}s is as much rounding as effect;{instead}"
        for kind in findings.scores.drowned
    )


def behaviour(findings: Findings) -> pd.DataFrame:
    """One row a model that wrote answers, in the order in which they come: model, order and size (whose first components, and how many,
    it has of special's; "" and NaN of others), strict, loose (answers that follow), judged, to_special, to_base, perplexity."""
    rows = {}
    for sample in findings.samples:
        row = rows.setdefault(sample.model, {"model": sample.model, "strict": 0, "loose": 0, "judged": 0})
        row["strict"] += bool(sample.follows)
        row["loose"] += bool(sample.loosely)
        row["judged"] += sample.follows is not None
    for model, row in rows.items():
        row |= findings.along[model]._asdict() if model in findings.along else {}
    columns = ["model", "order", "size", "strict", "loose", "judged", "to_special", "to_base", "perplexity"]
    return pd.DataFrame(list(rows.values())).reindex(columns=columns).astype({"size": float}).fillna({"order": ""})


def curves_frame(findings: Findings) -> pd.DataFrame:
    """One row an order, mode and k: order, mode, k, recovery, low, high, kl, lag, lag_low, lag_high."""
    parts = [
        pd.DataFrame(
            {
                "order": c.name,
                "mode": c.mode,
                "k": c.ks,
                "recovery": c.recovery,
                "low": c.low,
                "high": c.high,
                "kl": c.kl,
                "lag": c.lag,
                "lag_low": c.lag_low,
                "lag_high": c.lag_high,
            }
        )
        for c in findings.curves
    ]
    return pd.concat(parts, ignore_index=True)


def behaves(findings: Findings) -> str:
    """Where on the ranking the behaviour comes back, beside the inner state; "" where nothing was judged along it."""
    frame = behaviour(findings)
    sets = frame.loc[(frame["order"] == "top") & (frame["judged"] > 0)]
    if sets.empty or not {"base", "special"} <= set(frame["model"]):
        return ""
    ends = frame.set_index("model").loc[["base", "special"]]
    half = ends["strict"].mean()
    judged = int(ends.loc["special", "judged"])
    told = f"Of {judged} answers base gives {ends.loc['base', 'strict']} that follow, special {ends.loc['special', 'strict']}"
    if ends.loc["special", "strict"] <= ends.loc["base", "strict"]:
        return f"{told}: by these answers special shows the behaviour no more than base, and sets between them say nothing."
    enough = sets.loc[sets["strict"] >= half]
    if enough.empty:
        best = sets.iloc[int(sets["strict"].argmax())]
        most = f"{int(best['strict'])} at most, by the first {int(best['size']):,}"
        return f"{told}; no beginning of the ranking comes half way ({most})."
    first = enough.iloc[0]
    number, size = int(first["strict"]), int(first["size"])
    others = frame.loc[(frame["size"] == size) & (frame["order"] != "top")].to_dict("records")
    beside = listed([f"{row['order']} {row['strict']}" for row in others])
    return (
        f"{told}; the first {size:,} of the ranking are the first set to come half way ({number})."
        + f" As many of each kind by other orders: {beside}." * bool(others)
    )


def prompts_used(findings: Findings) -> str:
    """How many prompts were scored on, and how many of them count."""
    found = findings.scores
    return f"{int(found.is_kept.sum())} of {len(found.is_kept)} used"


def dropped(findings: Findings) -> str:
    """Which inputs were left out, and why; says so also where none was."""
    found = findings.scores
    if not found.num_dropped:
        return "No prompt was dropped: every gap is large enough to divide by."
    numbers = listed([str(n) for n in np.flatnonzero(~found.is_kept)])
    what = "prompts was dropped (number" if found.num_dropped == 1 else "prompts were dropped (numbers"
    return f"{found.num_dropped} of {len(found.is_kept)} {what} {numbers}): the gap is too small or not positive."
