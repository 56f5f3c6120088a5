"""Who takes part in the comparison: every method of merging, ways to merge by what scores say, gates that are learned, and controls.

An open set: each makes one model of a team of experts, by settings out of its own few tries, three wherever there is something to try.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxpatch as jp
from jaxpatch.measuring.continuations import Continuation
from jaxpatch.patching import components
from jaxpatch.scoring.scores import Scores
from jaxpatch.shapes import Gates, Params

Settings = Mapping[str, Any]
KINDS = ("head", "kv", "neuron")
"""Together all that adapters of linear layers change."""
SCALES = ({"scale": 0.4}, {"scale": 0.7}, {"scale": 1.0})
SHARES = ((0.2, 1.0), (0.6, 0.6), (0.6, 1.0))
DENSITIES = tuple({"density": share, "scale": scale} for share, scale in SHARES)
BUDGETS = tuple({"budget": share, "scale": scale} for share, scale in SHARES)
PARTS = ({"part": 0.3}, {"part": 0.5}, {"part": 0.7})
PORTIONS = ({"budget": 0.3}, {"budget": 0.6}, {"budget": 0.9})
SHRINKS = ({"shrink": 0.7}, {"shrink": 0.9}, {"shrink": 1.0})
FLOORS = ({"floor": 1e-8}, {"floor": 1e-6}, {"floor": 1e-4})
STRETCHES = ({"scale": 0.7}, {"scale": 1.0}, {"scale": 1.3})
"""Of gates that are learned: by how much what they leave of the experts is multiplied."""
STEPS, RATE, START = 20, 0.05, 0.5
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


Make = Callable[[Settings, int], Params]
"""(settings, seed) -> a merged model."""


class Way(NamedTuple):
    """A merge by gates of components. start: the model that it begins with, made once. gates: how far each component of each expert
    goes from there. merge: the merged model."""

    start: Callable[[Team], Params]
    gates: Callable[[Team, Params, Settings, int], Sequence[Gates]]
    merge: Callable[[Team, Params, Sequence[Gates], Settings], Params]

    def __call__(self, team: Team) -> Make:
        start = self.start(team)
        return lambda settings, seed: self.merge(team, start, self.gates(team, start, settings, seed), settings)


class Contender(NamedTuple):
    """sort: of the four. of: how it merges a team. tries: settings, of which validation chooses. is_random: whether the seed
    matters. size: how many experts it takes, where not any number. version: raised when it makes other models than before, so that
    results are not taken for its own."""

    sort: str
    of: Callable[[Team], Make]
    tries: Sequence[Settings] = ({},)
    is_random: bool = False
    size: int | None = None
    version: int = 1


class Control(NamedTuple):
    """What of a way could be chance or size. sort: that of which the way that validated best is taken, with the settings that it chose.
    changed: that way -> another, which takes as much of each kind of component."""

    sort: str
    changed: Callable[[Way], Way]
    is_random: bool = False
    version: int = 1


def published(method: str, **options: Any) -> Callable[[Team], Make]:
    """One of `jp.merge`'s, all experts alike."""

    def of(team: Team) -> Make:
        return lambda settings, seed: jp.merge(
            method, team.base, team.experts, **options, **settings, **_seeded(method, seed)
        )

    return of


def by_data(method: str, statistics: str) -> Callable[[Team], Make]:
    """One that must know of each expert what its data say."""

    def of(team: Team) -> Make:
        known = [each[statistics] for each in team.statistics]
        return lambda settings, seed: jp.merge(method, team.base, team.experts, statistics=known, **settings)

    return of


def between(team: Team) -> Make:
    """The sphere's way from one of two experts to the other."""
    one, other = team.experts
    return lambda settings, seed: jp.merge("slerp", one, [other], weights=settings["part"])


def apportioned(rule: str, method: str, statistics: str | None = None, **options: Any) -> Way:
    """Components by a rule and a budget, and what is left of the experts by a method. statistics: what the method must know of each
    expert's data."""

    def gates(team: Team, base: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        del seed
        conflict = "share" if rule == "mask" and method == "task_arithmetic" else "all"
        return jp.apportion(rule, team.scores, base, budget=settings["budget"], conflict=conflict)

    def merge(team: Team, base: Params, gates: Sequence[Gates], settings: Settings) -> Params:
        known = None if statistics is None else [each[statistics] for each in team.statistics]
        scale = settings.get("scale", 1.0)
        return jp.merge(method, base, team.experts, gates=gates, scale=scale, statistics=known, **options)

    return Way(lambda team: team.base, gates, merge)


def regmean(team: Team) -> Params:
    """Its model, by default."""
    return by_data("regmean", "moments")(team)({}, 0)


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
        return jp.merge("task_arithmetic", start, team.experts, gates=gates, rest=gate, scale=settings["scale"])

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
    """Components of one kind and one layer have each other's gates: how many go in is as before, and which of them is chance."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        draw = np.random.default_rng(seed)
        made = way.gates(team, start, settings, seed)
        return [{kind: draw.permuted(np.asarray(each), axis=-1) for kind, each in own.items()} for own in made]

    return way._replace(gates=gates)


def by_change(way: Way) -> Way:
    """Of each kind the largest gates go to the components that an expert changed most, by the Frobenius norm: its own best components
    have them no more."""

    def gates(team: Team, start: Params, settings: Settings, seed: int) -> Sequence[Gates]:
        made = []
        for expert, own in zip(team.experts, way.gates(team, start, settings, seed), strict=True):
            partition, sorted_ = components.of_decoder(team.base), {}
            for kind, each in own.items():
                changed = np.asarray(components.delta_norms(team.base, expert, partition[kind]))
                sorted_[kind] = np.empty_like(each)
                sorted_[kind].flat[np.argsort(-changed, axis=None, kind="stable")] = -np.sort(-each, axis=None)
            made.append(sorted_)
        return made

    return way._replace(gates=gates)


def _seeded(method: str, seed: int) -> dict[str, int]:
    return {"seed": seed} if method.startswith(("dare", "della")) else {}


CONTENDERS: dict[str, Contender] = {
    "average": Contender(BASELINE, published("linear")),
    "slerp": Contender(BASELINE, between, PARTS, size=2),
    "task arithmetic": Contender(BASELINE, published("task_arithmetic"), SCALES),
    "TIES": Contender(BASELINE, published("ties"), DENSITIES),
    "DARE, linear": Contender(BASELINE, published("dare_linear"), DENSITIES, is_random=True),
    "DARE, TIES": Contender(BASELINE, published("dare_ties"), DENSITIES, is_random=True),
    "DELLA": Contender(BASELINE, published("della", epsilon=0.1), DENSITIES, is_random=True),
    "breadcrumbs": Contender(BASELINE, published("breadcrumbs"), DENSITIES),
    "Localize-and-Stitch": Contender(BASELINE, published("localize_and_stitch"), DENSITIES),
    "Localize-and-Stitch, learned": Contender(BASELINE, by_data("localize_and_stitch", "mask"), SCALES, version=2),
    "consensus": Contender(BASELINE, published("consensus"), SCALES),
    "Fisher": Contender(BASELINE, by_data("fisher", "fisher"), FLOORS, version=3),
    "RegMean": Contender(BASELINE, by_data("regmean", "moments"), SHRINKS, version=2),
    "AdaMerging": Contender(BASELINE, learned("adamerging", "entropy", ("layer",)), STRETCHES, version=2),
    "RegMean, then layers learned": Contender(
        BASELINE, learned("layers", "log_kl", ("layer",), regmean, 0.0), STRETCHES
    ),
    "hard": Contender(SCORES, apportioned("hard", "task_arithmetic"), BUDGETS),
    "soft": Contender(SCORES, apportioned("soft", "task_arithmetic"), BUDGETS),
    "mask, then task arithmetic": Contender(SCORES, apportioned("mask", "task_arithmetic"), BUDGETS),
    "mask, then TIES": Contender(SCORES, apportioned("mask", "ties", density=0.6), BUDGETS),
    "mask, then RegMean": Contender(SCORES, apportioned("mask", "regmean", "moments"), PORTIONS),
    "learned gates": Contender(LEARNED, learned("gates", "log_kl", KINDS), STRETCHES, version=2),
    "RegMean, then learned gates": Contender(
        LEARNED, learned("refined", "log_kl", KINDS, regmean, 0.0), STRETCHES, version=2
    ),
}
CONTROLS: dict[str, Control] = {
    "the best by scores, shuffled": Control(SCORES, shuffled, is_random=True),
    "the best by scores, by change": Control(SCORES, by_change),
    "the best learned, shuffled": Control(LEARNED, shuffled, is_random=True),
}
"""After all others."""
