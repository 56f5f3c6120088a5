"""Who takes part in the comparison: every method of merging over the same small grid, ways to merge by what scores say, and controls.

An open set: each makes one model of a team of experts, by settings out of its own few tries.
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
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

Settings = Mapping[str, Any]
KINDS = ("head", "kv", "neuron")
"""Together all that adapters of linear layers change."""
SCALES = ({"scale": 0.4}, {"scale": 0.7}, {"scale": 1.0})
SHARES = ((0.2, 1.0), (0.6, 0.6), (0.6, 1.0))
DENSITIES = tuple({"density": share, "scale": scale} for share, scale in SHARES)
BUDGETS = tuple({"budget": share, "scale": scale} for share, scale in SHARES)
"""Three tries each, wherever there is something to try."""
PARTS = ({"part": 0.3}, {"part": 0.5}, {"part": 0.7})
PORTIONS = ({"budget": 0.3}, {"budget": 0.6}, {"budget": 0.9})
STEPS, RATE, START = 10, 0.05, 0.5
"""Of masks and gates that are learned; of gates from a merged model on, which has gone most of the way, twice as many steps."""
BATCH, OF_EACH = 4, 2
"""Answers that a step looks at: of the one expert whose mask it is, and of each whose gates are learned together."""
BASELINE, MECHANISM, CONTROL = "baseline", "mechanism", "control"


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


Make = Callable[[Team, Settings, int], Params]
"""(team, settings, seed) -> a merged model."""


class Contender(NamedTuple):
    """sort: of the three. tries: settings, of which validation chooses. is_random: whether the seed matters. size: how many experts it
    takes, where not any number. version: raised when it makes other models than before, so that results are not taken for its own."""

    sort: str
    make: Make
    tries: Sequence[Settings] = ({},)
    is_random: bool = False
    size: int | None = None
    version: int = 1


def published(method: str, **options: Any) -> Make:
    """One of `jp.merge`'s, all experts alike."""

    def make(team: Team, settings: Settings, seed: int) -> Params:
        return jp.merge(method, team.base, team.experts, **options, **settings, **_seeded(method, seed))

    return make


def by_data(method: str, statistics: str) -> Make:
    """One that must know of each expert what its data say."""

    def make(team: Team, settings: Settings, seed: int) -> Params:
        del seed
        known = [each[statistics] for each in team.statistics]
        return jp.merge(method, team.base, team.experts, statistics=known, **settings)

    return make


def between(team: Team, settings: Settings, seed: int) -> Params:
    """The sphere's way from one of two experts to the other."""
    del seed
    one, other = team.experts
    return jp.merge("slerp", one, [other], weights=settings["part"])


def apportioned(
    rule: str,
    method: str,
    measure: Callable[[Team, int], Sequence[Scores]] | None = None,
    statistics: str | None = None,
    **options: Any,
) -> Make:
    """Components by a rule and a budget, and what is left of the experts by a method. measure: what stands in the scores' place.
    statistics: what the method must know of each expert's data."""

    def make(team: Team, settings: Settings, seed: int) -> Params:
        scores = team.scores if measure is None else measure(team, seed)
        conflict = "share" if rule == "mask" and method == "task_arithmetic" else "all"
        gates = jp.apportion(rule, scores, team.base, budget=settings["budget"], conflict=conflict)
        known = None if statistics is None else [each[statistics] for each in team.statistics]
        scale = settings.get("scale", 1.0)
        return jp.merge(method, team.base, team.experts, gates=gates, scale=scale, statistics=known, **options)

    return make


def at_random(team: Team, seed: int) -> list[Scores]:
    """Any numbers above 0, in place of each expert's scores."""
    draw = np.random.default_rng(seed)
    return [
        replace(own, values={kind: draw.random(np.shape(each)) + 0.01 for kind, each in own.values.items()})
        for own in team.scores
    ]


def by_change(team: Team, seed: int) -> list[Scores]:
    """How much an expert changed each component: the root of the mean square, so that large components are not before small ones."""
    del seed
    shapes = {path: np.shape(leaf) for path, leaf in paths.leaves(team.base).items()}
    made = []
    for expert, own in zip(team.experts, team.scores, strict=True):
        values = {}
        for kind in own.values:
            sort = own.partition[kind]
            norms = np.asarray(components.delta_norms(team.base, expert, sort))
            values[kind] = norms / np.sqrt(components.sizes(sort, shapes))
        made.append(replace(own, values=values))
    return made


def learned(objective: str, kinds: tuple[str, ...]) -> Make:
    """Gates by gradient, on the experts' answers."""

    def make(team: Team, settings: Settings, seed: int) -> Params:
        del settings
        made = jp.learn_merge(
            team.pairs,
            team.told,
            objective=objective,
            kinds=kinds,
            start=START,
            rest=START,
            steps=STEPS,
            rate=RATE,
            batch=OF_EACH,
            seed=seed,
        )
        return jp.merge("task_arithmetic", team.base, team.experts, gates=made.gates, rest=made.rest)

    return make


def refined(is_shuffled: bool = False) -> Make:
    """RegMean's model, and from there each component some of the way to each expert's: how far, is learned by gradient on the experts'
    answers. is_shuffled: components of a kind have each other's gates."""

    def make(team: Team, settings: Settings, seed: int) -> Params:
        middle = by_data("regmean", "moments")(team, {}, seed)
        gates, draw = _gates_from(team, middle), np.random.default_rng(seed)
        if is_shuffled:
            gates = [{kind: draw.permuted(each, axis=None) for kind, each in own.items()} for own in gates]
        gates = [{kind: settings["scale"] * each for kind, each in own.items()} for own in gates]
        return jp.merge("task_arithmetic", middle, team.experts, gates=gates)

    return make


def _gates_from(team: Team, middle: Params) -> list[dict[str, np.ndarray]]:
    """Of each expert, learned from a merged model on; from a file, or learned and left there."""
    file = team.folder / f"gates-{len(team.told[0].starts)}-{2 * STEPS}.npz"
    if not file.is_file():
        pairs = [replace(pair, base=middle) for pair in team.pairs]
        made = jp.learn_merge(
            pairs,
            team.told,
            objective="log_kl",
            kinds=KINDS,
            start=0.0,
            rest=0.0,
            steps=2 * STEPS,
            rate=RATE,
            batch=OF_EACH,
        )
        team.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **{f"{n} {kind}": each for n, own in enumerate(made.gates) for kind, each in own.items()})
        partial.replace(file)
    with np.load(file) as arrays:
        return [{kind: arrays[f"{n} {kind}"] for kind in KINDS} for n in range(len(team.pairs))]


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
    "Localize-and-Stitch, learned": Contender(BASELINE, by_data("localize_and_stitch", "mask"), SCALES),
    "consensus": Contender(BASELINE, published("consensus"), SCALES),
    "Fisher": Contender(BASELINE, by_data("fisher", "fisher")),
    "RegMean": Contender(BASELINE, by_data("regmean", "moments")),
    "AdaMerging": Contender(BASELINE, learned("entropy", ("layer",))),
    "hard": Contender(MECHANISM, apportioned("hard", "task_arithmetic"), BUDGETS),
    "soft": Contender(MECHANISM, apportioned("soft", "task_arithmetic"), BUDGETS),
    "mask, then task arithmetic": Contender(MECHANISM, apportioned("mask", "task_arithmetic"), BUDGETS),
    "mask, then TIES": Contender(MECHANISM, apportioned("mask", "ties", density=0.6), BUDGETS),
    "mask, then RegMean": Contender(MECHANISM, apportioned("mask", "regmean", statistics="moments"), PORTIONS),
    "learned gates": Contender(MECHANISM, learned("kl", KINDS)),
    "RegMean, then learned gates": Contender(MECHANISM, refined(), SCALES),
    "random masks": Contender(CONTROL, apportioned("mask", "task_arithmetic", at_random), BUDGETS, is_random=True),
    "random masks, then RegMean": Contender(
        CONTROL, apportioned("mask", "regmean", at_random, statistics="moments"), PORTIONS, is_random=True
    ),
    "RegMean, then gates shuffled": Contender(CONTROL, refined(is_shuffled=True), SCALES, is_random=True),
    "masks by change": Contender(CONTROL, apportioned("mask", "task_arithmetic", by_change), BUDGETS),
}
