"""Who takes part in the comparison: every method of merging, ways to merge by what scores say, gates that are learned, and controls.

An open set: each makes one model of a team of experts, by settings out of its own few tries, three wherever there is something to try.
Whatever goes some of the way from a start is tried at `SCALES`, too, all of them alike: it is made once, and the way is walked.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpatch as jp
from jaxpatch.measuring.continuations import Continuation
from jaxpatch.patching import components
from jaxpatch.scoring.scores import Scores
from jaxpatch.shapes import Gates, Params

Settings = Mapping[str, Any]
KINDS = ("head", "kv", "neuron")
"""Together all that adapters of linear layers change."""
SCALES = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.4)
"""By which a merged difference is multiplied. They are climbed: from `BEGIN`, or `LEARNED_AT` where gates were learned at that, to
whichever neighbour validates better, until none does."""
BEGIN, LEARNED_AT = 0.5, 1.0
DENSITIES = tuple({"density": share} for share in (0.1, 0.3, 0.6))
BUDGETS = tuple({"budget": share} for share in (0.3, 0.6, 1.0))
PARTS = tuple({"part": part} for part in (0.3, 0.5, 0.7))
SHRINKS = tuple({"shrink": shrink} for shrink in (0.7, 0.9, 1.0))
FLOORS = tuple({"floor": floor} for floor in (1e-8, 1e-6, 1e-4))
BOTH = ({"budget": 0.6, "density": 0.3}, {"budget": 0.6, "density": 0.6}, {"budget": 1.0, "density": 0.3})
KEPT = 0.6
"""Share of a change that a mask has before it is learned: what the mask that is not learned did best with."""
STEPS, RATE, START = 20, 0.05, 0.3
"""Of all that is learned by gradient."""
BATCH, OF_EACH = 4, 2
"""Answers that a step looks at: of the one expert whose mask it is, and of each whose gates are learned together."""
BASELINE, SCORES, LEARNED, CONTROL = "baseline", "scores", "learned", "control"


class Team(NamedTuple):
    """Experts to be merged, in one order everywhere. told: their answers to prompts that are neither validated nor tested on. scores:
    of each on its own task. statistics: of each, "fisher", "moments" and "mask". folder: for what is learned once and used twice."""

    pairs: tuple[jp.Pair, ...]
    told: tuple[Continuation, ...]
    scores: tuple[Scores, ...]
    statistics: tuple[Mapping[str, Params], ...]
    folder: Path

    @property
    def base(self) -> Params:
        """Which all share."""
        return self.pairs[0].base

    @property
    def experts(self) -> list[Params]:
        """Their parameters."""
        return [pair.special for pair in self.pairs]


class Maker(NamedTuple):
    """How a team is merged. make: (settings, seed) -> a merged model. start: from which its whole way goes, at scale 1. gates: the same
    -> of each expert what components take, where there is a choice of them."""

    make: Callable[[Settings, int], Params]
    start: Params
    gates: Callable[[Settings, int], Sequence[Gates]] | None = None


class Way(NamedTuple):
    """A merge by gates of components. start: the model that it begins with, made once. gates: how far each component of each expert
    goes from there. merge: the merged model."""

    start: Callable[[Team], Params]
    gates: Callable[[Team, Params, Settings, int], Sequence[Gates]]
    merge: Callable[[Team, Params, Sequence[Gates], Settings], Params]

    def __call__(self, team: Team) -> Maker:
        start = self.start(team)

        def gates(settings: Settings, seed: int) -> Sequence[Gates]:
            return self.gates(team, start, settings, seed)

        return Maker(lambda settings, seed: self.merge(team, start, gates(settings, seed), settings), start, gates)


class Contender(NamedTuple):
    """sort: of the four. of: how it merges a team. tries: settings, of which validation chooses. begin: where scales are climbed from;
    None where there is no way to go a part of. is_random: whether the seed matters. size: how many experts it takes, where not any
    number. version: raised when it makes other models than before, so that results are not taken for its own."""

    sort: str
    of: Callable[[Team], Maker]
    tries: Sequence[Settings] = ({},)
    begin: float | None = None
    is_random: bool = False
    size: int | None = None
    version: int = 1


class Control(NamedTuple):
    """What of a way could be chance or size. sort: that of which the way that validated best is taken, with all its tries. changed:
    that way -> another, which takes as much."""

    sort: str
    changed: Callable[[Way], Way]
    is_random: bool = False
    version: int = 1


def published(method: str, **options: Any) -> Callable[[Team], Maker]:
    """One of `jp.merge`'s, all experts alike."""

    def of(team: Team) -> Maker:
        return Maker(
            lambda settings, seed: jp.merge(
                method, team.base, team.experts, **options, **settings, **_seeded(method, seed)
            ),
            team.base,
        )

    return of


def by_data(method: str, statistics: str) -> Callable[[Team], Maker]:
    """One that must know of each expert what its data say."""

    def of(team: Team) -> Maker:
        known = [each[statistics] for each in team.statistics]
        return Maker(
            lambda settings, seed: jp.merge(method, team.base, team.experts, statistics=known, **settings), team.base
        )

    return of


def between(team: Team) -> Maker:
    """The sphere's way from one of two experts to the other."""
    one, other = team.experts
    return Maker(lambda settings, seed: jp.merge("slerp", one, [other], weights=settings["part"]), team.base)


@jax.jit
def gone(start: Params, made: Params, scale: float) -> Params:
    """Some of the way from a model to another."""
    return jax.tree.map(lambda a, b: a + scale * (b - a), start, made)


def apportioned(rule: str, method: str, statistics: str | None = None, **options: Any) -> Way:
    """Components by a rule and a budget, and what is left of the experts by a method. statistics: what the method must know of each
    expert's data."""

    def gates(team: Team, base: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        del seed
        conflict = "share" if rule == "mask" and method == "task_arithmetic" else "all"
        return jp.apportion(rule, team.scores, base, budget=settings["budget"], conflict=conflict)

    def merge(team: Team, base: Params, gates: Sequence[Gates], settings: Settings) -> Params:
        known = None if statistics is None else [each[statistics] for each in team.statistics]
        own = {"density": settings["density"]} if "density" in settings else {}
        return jp.merge(method, base, team.experts, gates=gates, statistics=known, **options, **own)

    return Way(lambda team: team.base, gates, merge)


def regmean(team: Team) -> Params:
    """Its model, by default."""
    return by_data("regmean", "moments")(team).make({}, 0)


def learned(
    name: str,
    objective: str,
    kinds: tuple[str, ...],
    start: Callable[[Team], Params] = lambda team: team.base,
    gate: float = START,
) -> Way:
    """Gates by gradient on the experts' answers. name: of the file in which they stay. start: the model from which each component goes
    some of the way to each expert's. gate: how far all go before the first step, and for good what has no gate."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        del settings, seed
        return kept_gates(
            team.folder / f"{name}-{len(team.told[0].starts)}-{STEPS}-{OF_EACH}.npz",
            lambda: (
                jp.learn_merge(
                    [replace(pair, base=start) for pair in team.pairs],
                    team.told,
                    objective=objective,
                    kinds=kinds,
                    start=gate,
                    rest=gate,
                    steps=STEPS,
                    rate=RATE,
                    batch=OF_EACH,
                ).gates
            ),
        )

    def merge(team: Team, start: Params, gates: Sequence[Gates], settings: Settings) -> Params:
        del settings
        return jp.merge("task_arithmetic", start, team.experts, gates=gates, rest=gate)

    return Way(start, gates, merge)


def kept_gates(file: Path, make: Callable[[], Sequence[Gates]]) -> list[Gates]:
    """Of each expert, from a file, or made and left there."""
    if not file.is_file():
        made = {f"{number} {kind}": each for number, own in enumerate(make()) for kind, each in own.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **made)
        partial.replace(file)
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(file) as arrays:
        for name in arrays.files:
            number, kind = name.split(" ")
            found.setdefault(int(number), {})[kind] = arrays[name]
    return [found[number] for number in sorted(found)]


def shuffled(way: Way) -> Way:
    """Components of one kind and one layer have each other's gates, of all experts in the same places: how many go in, and how many of
    two experts meet, is as before, and which of them is chance."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        made = way.gates(team, start, settings, seed)
        draw = np.random.default_rng(seed)
        places = {
            kind: draw.permuted(np.broadcast_to(np.arange(np.shape(each)[-1]), np.shape(each)), axis=-1)
            for kind, each in made[0].items()
        }
        return [
            {kind: np.take_along_axis(np.asarray(each), places[kind], -1) for kind, each in own.items()} for own in made
        ]

    return way._replace(gates=gates)


def scored_by_change(way: Way) -> Way:
    """The same rule and budget, where a component's score is by how much its expert changed it."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        scores = tuple(
            replace(own, values=changed(team.base, expert, own.values))
            for own, expert in zip(team.scores, team.experts, strict=True)
        )
        return way.gates(team._replace(scores=scores), start, settings, seed)

    return way._replace(gates=gates)


def sorted_by_change(way: Way) -> Way:
    """Of each kind the largest gates go to the components that an expert changed most: its own best components have them no more."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        made = []
        for expert, own in zip(team.experts, way.gates(team, start, settings, seed), strict=True):
            sorted_, sizes = {}, changed(team.base, expert, own)
            for kind, each in own.items():
                sorted_[kind] = np.empty_like(each)
                sorted_[kind].flat[np.argsort(-sizes[kind], axis=None, kind="stable")] = -np.sort(-each, axis=None)
            made.append(sorted_)
        return made

    return way._replace(gates=gates)


def changed(base: Params, expert: Params, kinds: Iterable[str]) -> dict[str, np.ndarray]:
    """Kind -> by how much each component differs, the Frobenius norm."""
    partition = components.of_decoder(base)
    return {kind: np.asarray(components.delta_norms(base, expert, partition[kind])) for kind in kinds}


def _seeded(method: str, seed: int) -> dict[str, int]:
    return {"seed": seed} if method.startswith(("dare", "della")) else {}


CONTENDERS: dict[str, Contender] = {
    "average": Contender(BASELINE, published("linear")),
    "slerp": Contender(BASELINE, between, PARTS, size=2),
    "task arithmetic": Contender(BASELINE, published("task_arithmetic"), begin=BEGIN),
    "TIES": Contender(BASELINE, published("ties"), DENSITIES, BEGIN),
    "DARE, linear": Contender(BASELINE, published("dare_linear"), DENSITIES, BEGIN, is_random=True),
    "DARE, TIES": Contender(BASELINE, published("dare_ties"), DENSITIES, BEGIN, is_random=True),
    "DELLA": Contender(BASELINE, published("della", epsilon=0.09), DENSITIES, BEGIN, is_random=True),
    "breadcrumbs": Contender(BASELINE, published("breadcrumbs"), DENSITIES, BEGIN),
    "Localize-and-Stitch": Contender(BASELINE, published("localize_and_stitch"), DENSITIES, BEGIN),
    "Localize-and-Stitch, learned": Contender(BASELINE, by_data("localize_and_stitch", "mask"), begin=BEGIN),
    "consensus": Contender(BASELINE, published("consensus"), begin=BEGIN),
    "Fisher": Contender(BASELINE, by_data("fisher", "fisher"), FLOORS),
    "RegMean": Contender(BASELINE, by_data("regmean", "moments"), SHRINKS),
    "AdaMerging": Contender(BASELINE, learned("adamerging", "entropy", ("layer",)), begin=LEARNED_AT),
    "RegMean, then layers learned": Contender(
        BASELINE, learned("layers", "log_kl", ("layer",), regmean, 0.0), begin=LEARNED_AT
    ),
    "hard": Contender(SCORES, apportioned("hard", "task_arithmetic"), BUDGETS, BEGIN),
    "soft": Contender(SCORES, apportioned("soft", "task_arithmetic"), BUDGETS, BEGIN),
    "mask, then task arithmetic": Contender(SCORES, apportioned("mask", "task_arithmetic"), BUDGETS, BEGIN),
    "mask, then TIES": Contender(SCORES, apportioned("mask", "ties"), BOTH, BEGIN),
    "mask, then RegMean": Contender(SCORES, apportioned("mask", "regmean", "moments"), BUDGETS),
    "learned gates": Contender(LEARNED, learned("gates", "log_kl", KINDS), begin=LEARNED_AT),
    "RegMean, then learned gates": Contender(
        LEARNED, learned("refined", "log_kl", KINDS, regmean, 0.0), begin=LEARNED_AT
    ),
}
CONTROLS: dict[str, Control] = {
    "the best by scores, shuffled": Control(SCORES, shuffled, is_random=True),
    "the best by scores, by change": Control(SCORES, scored_by_change),
    "the best learned, shuffled": Control(LEARNED, shuffled, is_random=True),
    "the best learned, by change": Control(LEARNED, sorted_by_change),
}
"""After all others."""
