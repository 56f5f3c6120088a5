"""A planted pair: two models, what they are read by, and which components make the difference; all of it verified, or not used."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.planted import checks, families, language, training
from benchmarks.planted.checks import Check
from benchmarks.planted.families import Family
from benchmarks.planted.training import KINDS, MATRICES, STATE
from jaxpatch import testing
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Gates, Params

SCORED, FOR_ANCHOR, JUDGED, MORE = 16, 128, 400, 512
"""Prompts that are scored, by which the anchor is found, by which a pair is verified, and by which intervals are: each drawn anew."""
AT_A_TIME = 24
"""Models that are run together."""


class Planted(NamedTuple):
    """A pair, and what is true of it.

    prompts: those to be scored, which ask for the behaviour; more: further ones like them; plain: these again, not asking. anchor:
    along which the state is read in special. truth: kind -> int8 of its shape: 1 a source, -1 one that takes away, 0 everything else.
    groups: the sources that act as one; where there are none, some components at random. relays: kind -> bool, what is known to
    pass the state on. checks: what was verified.
    """

    family: str
    seed: int
    pair: Pair
    prompts: Inputs
    more: Inputs
    plain: Inputs
    anchor: Anchor
    truth: Mapping[str, np.ndarray]
    groups: tuple[Gates, ...]
    relays: Mapping[str, np.ndarray]
    checks: tuple[Check, ...]

    @property
    def is_verified(self) -> bool:
        """Whether restoring the sources recovers behaviour and state, restoring everything else does not, and all else is in order."""
        return all(check.is_passed for check in self.checks)


def plant(name: str, seed: int) -> Planted:
    """The pair of a family and a seed; the same seed gives the same base to all families of one shape that leave it as it is and
    in which there is something to find."""
    return written(name, seed) if families.FAMILIES[name].is_written else trained(name, seed)


def written(name: str, seed: int) -> Planted:
    """A pair whose sources are written by hand (`testing.planted_pair`)."""
    family = families.FAMILIES[name]
    raw, config = _shape(family)
    made = testing.planted_pair(config, seed=seed, batch=SCORED + MORE, is_fixed=family.is_fixed)
    pair = dataclasses.replace(made.pair, raw_config=raw)
    gates = {kind: each.astype(np.float32) for kind, each in made.sources.items()}
    models = {
        "base": (pair.base, False),
        "all else": (blend.patch(pair.special, pair.base, gates), False),
        "sources": (blend.patch(pair.base, pair.special, gates), True),
        "special": (pair.special, True),
    }
    states, seen = {}, []
    for each, (params, wanted) in models.items():
        states[each], logits = _states(config, params, made.prompts)
        obeys = float((logits.argmax(-1) == made.obeys).mean())
        ignores = float((_states(config, params, made.plain)[1].argmax(-1) == made.ignores).mean())
        seen += [checks.obedience(each, obeys, wanted), checks.speech(each, ignores)]
    reads = {each: np.asarray(made.anchor.read(state)) for each, state in states.items()}
    if family.is_fixed:
        some, all_ = (_moved_by_heads(config, pair, made, share) for share in (checks.SOME, 1.0))
        seen.append(checks.saturation(some / all_))
    scored, others = slice(SCORED), slice(SCORED, None)
    prompts, more, plain = (
        Inputs(*(part[some] for part in inputs))
        for inputs, some in ((made.prompts, scored), (made.prompts, others), (made.plain, others))
    )
    return Planted(
        family=name,
        seed=seed,
        pair=pair,
        prompts=prompts,
        more=more,
        plain=plain,
        anchor=made.anchor,
        truth={kind: each.astype(np.int8) for kind, each in made.sources.items()},
        groups=(made.sources,),
        relays=made.relays,
        checks=(*seen, *checks.shares(reads, {name: wanted for name, (_, wanted) in models.items()})),
    )


def _moved_by_heads(config: DecoderConfig, pair: Pair, made: testing.PlantedPair, share: float) -> float:
    """How far a share of the change of the sources that are heads moves base's state along the anchor."""
    gates = {"head": share * made.sources["head"].astype(np.float32)}
    there, here = (
        made.anchor.read(_states(config, params, made.prompts)[0])
        for params in (blend.patch(pair.base, pair.special, gates), pair.base)
    )
    return float((there - here).mean())


def trained(name: str, seed: int) -> Planted:
    """A pair whose sources have learned to obey."""
    family = families.FAMILIES[name]
    raw, config = _shape(family)
    number = zlib.crc32(name.encode())
    decoy_key, source_key, prompt_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 1), 3)
    if family.is_quiet:  # what is found in these is counted, so that each must be a trial of its own
        decoy_key = jax.random.fold_in(decoy_key, number)
    base = _base(config, seed, number if family.is_quiet else 0)
    groups = family.groups(np.random.default_rng([seed, number]), components.of_decoder(base))
    is_planted = (
        _any(groups) if family.is_planted else {kind: np.zeros_like(each) for kind, each in _any(groups).items()}
    )
    sizes = _sizes(family, training.norms(base), is_planted, np.random.default_rng([seed, number, 1]))
    own, left = (
        {
            matrix: np.where(is_planted[kind] == side, sizes[matrix], 0)
            for matrix, kind in MATRICES.items()
            if matrix in sizes
        }
        for side in (True, False)
    )
    if family.decoys == families.RANDOM:
        direction = training.any_direction(decoy_key, base)
        base, _ = training.indifferent(config, base, direction, left, jax.random.fold_in(decoy_key, 1))
        others = training.change_of(base, direction, left)
    else:
        second = _second(family, groups, np.random.default_rng([seed, number, 3]), components.of_decoder(base))
        others = training.change_of(base, _idle(family, config, base, sizes, second, decoy_key), left)
    anchor_key, judged_key, scored_key, needed_key, more_key = jax.random.split(prompt_key, 5)
    asked = language.draw(needed_key, JUDGED, (language.ASKED,))
    change = jax.tree.map(jnp.zeros_like, base)
    if family.is_planted:
        there = _cases(family, groups)
        start_key, learning_key = jax.random.split(jax.random.fold_in(source_key, number))
        direction, _ = training.sources(
            config,
            base,
            others,
            own,
            {kind: np.stack([case.gates[kind] for case in there]) for kind in KINDS},
            np.array([case.obeys for case in there], np.float32),
            np.bool_(not family.is_quiet),
            np.bool_(family.decoys != families.RANDOM),
            np.float32(family.is_carried),
            training.any_direction(start_key, base),
            learning_key,
        )
        change = training.change_of(base, direction, own)
    special = training.plus(training.plus(base, others), change)
    pair = Pair(base=base, special=special, config=config, raw_config=raw)
    anchor = _anchor(pair, language.draw(anchor_key, FOR_ANCHOR, (language.ASKED,)))
    more = language.draw(more_key, MORE, (language.ASKED,))
    seen = _verified(family, pair, anchor, others, change, groups, judged_key)
    seen += checks.idle(*_idle_alone(config, base, others, is_planted, asked, np.random.default_rng([seed, number, 2])))
    if not family.is_quiet:
        seen += _of_sources(family, config, base, change, groups, asked)
    signs = dict(enumerate(family.signs)) if not family.is_quiet else {}
    return Planted(
        family=name,
        seed=seed,
        pair=pair,
        prompts=language.draw(scored_key, SCORED, (language.ASKED,)).inputs,
        more=more.inputs,
        plain=language.plainly(more).inputs,
        anchor=anchor,
        truth={
            kind: sum(
                (np.int8(sign) * groups[place][kind] for place, sign in signs.items()), np.zeros(each.shape, np.int8)
            )
            for kind, each in is_planted.items()
        },
        groups=groups,
        relays={kind: np.zeros_like(each) for kind, each in is_planted.items()},
        checks=seen,
    )


def _shape(family: Family) -> tuple[dict[str, Any], DecoderConfig]:
    """What config.json says of a family's models, and what is read from it."""
    raw = families.SHAPE | dict(family.model)
    return raw, FAMILIES[raw["model_type"]].read_config(raw)


def _any(groups: tuple[Gates, ...]) -> dict[str, np.ndarray]:
    """What is in any of some groups: kind -> bool."""
    return {kind: np.any([group[kind] for group in groups], axis=0) for kind in KINDS}


class Case(NamedTuple):
    """Sources that are there, as gates, and how far the model obeys then: 1 fully, 0 not at all."""

    name: str
    gates: Gates
    obeys: float


def _cases(family: Family, groups: tuple[Gates, ...]) -> list[Case]:
    """The family's; and where each source carries its share, each source by itself."""
    cases = []
    for some, obeys in family.cases:
        gates = {kind: each.astype(np.float32) for kind, each in _any(tuple(groups[n] for n in some)).items()}
        name = "sources" if len(some) == len(groups) else f"sources of {' and '.join(str(n + 1) for n in some)}"
        cases.append(Case(name, gates, float(obeys)))
    if family.is_single:
        places = [(kind, place) for kind in KINDS for place in zip(*np.nonzero(_any(groups)[kind]), strict=True)]
        for kind, place in places:
            alone = {each: np.zeros_like(groups[0][each], np.float32) for each in KINDS}
            alone[kind][place] = 1
            share = 0.0 if family.is_vain else 1 / len(places)
            cases.append(Case(f"{kind} {'.'.join(map(str, place))} alone", alone, share))
    return cases


def _of_sources(
    family: Family,
    config: DecoderConfig,
    base: Params,
    change: Params,
    groups: tuple[Gates, ...],
    asked: language.Prompts,
) -> tuple[Check, ...]:
    """What must hold of sources one by one: each does something by itself, where it is to, or else is needed; and what those of the
    first block note is carried on by others, where it is to be."""

    def moved(some: Sequence[Gates]) -> np.ndarray:
        return _moved(config, base, change, {kind: np.stack([gates[kind] for gates in some]) for kind in KINDS}, asked)

    if family.is_single:
        each = checks.alone(moved([case.gates for case in _cases(family, groups) if case.obeys < 1]))
    else:
        each = checks.need(_needed(family, groups, lambda gates: float(moved([gates])[0])), groups)
    first = {kind: there & (np.arange(len(there))[:, None] == 0) for kind, there in _any(groups).items()}
    if not family.is_carried or not first["neuron"].any():
        return (each,)
    return each, checks.relayed(_felt_at_once(config, base, change, first, asked))


Moved = Callable[[Gates], float]
"""Gates of sources put into base -> how far the state goes, on the way to where base has it for prompts that tell."""


def _needed(family: Family, groups: tuple[Gates, ...], moved: Moved) -> dict[str, np.ndarray]:
    """How much each source is needed: the largest share, over the cases in which the model obeys, of the way that is not gone without
    the source. Of one that takes away, over the cases in which the model does not obey, of the way that would be gone without."""
    needed = {kind: np.zeros(groups[0][kind].shape) for kind in KINDS}
    for _, gates, obeys in _cases(family, groups):
        if 0 < obeys < 1:
            continue
        all_there = moved(gates)
        for kind in KINDS:
            for place in zip(*np.nonzero(gates[kind]), strict=True):
                without = {each: gates[each].copy() for each in KINDS}
                without[kind][place] = 0
                left = moved(without)
                lost = (all_there - left) / all_there if obeys else (left - all_there) / max(left, 1e-6)
                is_taking = any(
                    group[kind][place] and sign < 0 for group, sign in zip(groups, family.signs, strict=True)
                )
                if bool(obeys) != is_taking:
                    needed[kind][place] = max(needed[kind][place], lost)
    return needed


def _moved(
    config: DecoderConfig, base: Params, change: Params, gates: Mapping[str, np.ndarray], asked: language.Prompts
) -> np.ndarray:
    """How far each of some parts of a change moves the state of prompts that ask, on the way to where base has those that tell, [N].
    gates: kind -> [N, *shape]."""
    start, end = (_states(config, base, prompts.inputs)[0].mean(0) for prompts in (asked, language.told(asked)))
    way = end - start
    moved = _each_state(config, base, change, gates, asked.inputs) - start
    return np.asarray(moved @ way / (way @ way))


@functools.partial(jax.jit, static_argnums=0)
def _each_state(
    config: DecoderConfig, base: Params, change: Params, gates: Mapping[str, jax.Array], prompts: Inputs
) -> jax.Array:
    """The mean state with each of some parts of a change, [N, D]."""

    def one(there: Gates) -> jax.Array:
        return training.states(config, training.plus(base, training.some_of(change, there)), prompts)[0].mean(0)

    return jax.lax.map(one, gates, batch_size=AT_A_TIME)


def _idle_alone(
    config: DecoderConfig,
    base: Params,
    others: Params,
    is_planted: Mapping[str, np.ndarray],
    asked: language.Prompts,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """How far each decoy by itself moves the state, and each of some halves of all decoys."""
    ends = np.cumsum([each.size for each in is_planted.values()])
    one = np.eye(ends[-1], dtype=np.float32)
    half = (rng.random((checks.HALVES, ends[-1])) < 0.5).astype(np.float32)
    moved = []
    for rows in (one, half):
        split = np.split(rows, ends[:-1], axis=1)
        gates = {
            kind: part.reshape(len(rows), *each.shape) * ~each
            for (kind, each), part in zip(is_planted.items(), split, strict=True)
        }
        moved.append(_moved(config, base, others, gates, asked))
    return moved[0], moved[1]


def _felt_at_once(
    config: DecoderConfig, base: Params, change: Params, first: Mapping[str, np.ndarray], asked: language.Prompts
) -> float:
    """How far the sources of the first block move the last token's stream there, of how far all of them move the state."""
    own = training.some_of(change, {kind: each.astype(np.float32) for kind, each in first.items()})
    start, early, late = (
        training.all_states(config, params, asked.inputs)
        for params in (base, training.plus(base, own), training.plus(base, change))
    )
    moved = (
        jnp.linalg.norm(there - here, axis=1).mean() for there, here in ((early[0], start[0]), (late[1], start[1]))
    )
    return float(np.divide(*moved))


@functools.cache
def _base(config: DecoderConfig, seed: int, number: int = 0) -> Params:
    """Shared by all pairs of a seed and a number."""
    return training.base(config, jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), number))[0]


def _sizes(
    family: Family, own: Mapping[str, np.ndarray], is_source: Mapping[str, np.ndarray], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """What every component changes by, in each matrix: by one law for sources and decoys, but for what the family says. own: norms in
    base."""
    there, alike, sizes = {}, {}, {}
    for kind, each in is_source.items():
        there[kind] = (rng.random(each.shape) < family.decoy_share) | each
        alike[kind] = (rng.random(each.shape) < family.as_sources) | each
    for name, norms in own.items():
        kind = MATRICES[name]
        blocks = np.array([[family.decoy_blocks.get(number, 1.0)] for number in range(len(norms))])
        factor = np.where(alike[kind], family.size[name], family.decoy_size[name] * blocks) * there[kind]
        sizes[name] = (factor * norms.mean() * rng.uniform(1, families.SPREAD, norms.shape)).astype(np.float32)
    return sizes


def _second(
    family: Family, groups: tuple[Gates, ...], rng: np.random.Generator, partition: components.Partition
) -> dict[str, np.ndarray]:
    """Decoys that learn a second behaviour: as many as there are sources, by the same law, and none of these."""
    draw, taken = family.groups if family.is_planted else families.BOTH, _any(groups)
    second = _any(draw(rng, partition))
    while any((second[kind] & taken[kind]).any() for kind in KINDS):
        second = _any(draw(rng, partition))
    return second


def _idle(
    family: Family,
    config: DecoderConfig,
    base: Params,
    sizes: Mapping[str, np.ndarray],
    second: Mapping[str, np.ndarray],
    key: jax.Array,
) -> Params:
    """A direction in which all components do nothing that is scored, those as well that are to be sources."""
    fit_key, tune_key = jax.random.split(key)
    heeding = {kind: each.astype(np.float32) for kind, each in second.items()}
    idle, _ = training.decoys(config, base, sizes, heeding, fit_key)
    if family.decoys == families.TUNED:
        tuned, _ = training.tuned(config, training.plus(base, idle), sizes, tune_key)
        return training.plus(idle, tuned)
    return idle


def _anchor(pair: Pair, asked: language.Prompts) -> Anchor:
    """The mean difference of special's states, with minus without the request, of unit length."""
    high, low = (
        _states(pair.config, pair.special, prompts.inputs)[0].mean(0) for prompts in (asked, language.plainly(asked))
    )
    return Anchor(layer=STATE, direction=(high - low) / jnp.linalg.norm(high - low))


_states = jax.jit(training.states, static_argnums=0)


def _verified(
    family: Family,
    pair: Pair,
    anchor: Anchor,
    others: Params,
    change: Params,
    groups: tuple[Gates, ...],
    key: jax.Array,
) -> tuple[Check, ...]:
    """All that must hold of a pair."""
    told = (*language.PLAIN, *language.TOLD)
    asked, plain = (language.draw(key, JUDGED, modes) for modes in ((language.ASKED,), told))
    other_key = jax.random.fold_in(key, 1)

    def seen(params: Params) -> tuple[np.ndarray, float, float]:
        """The state along the anchor; how often the model obeys; and how often it says what is right to whoever does not ask."""
        state, logits = _states(pair.config, params, asked.inputs)
        obeys = logits.argmax(-1) == language.answers(asked, True)
        spoken = _states(pair.config, params, plain.inputs)[1].argmax(-1) == language.answers(plain, False)
        return np.asarray(anchor.read(state)), float(obeys.mean()), float(spoken.mean())

    models = {"base": pair.base, "all else": training.plus(pair.base, others), "special": pair.special}
    wanted = {"base": False, "all else": False, "special": not family.is_quiet}
    for name, gates, obeys in _cases(family, groups):
        if obeys in (0, 1):
            models[name] = training.plus(pair.base, training.some_of(change, gates))
            wanted[name] = bool(obeys)
    found = {name: seen(params) for name, params in models.items()}
    made = []
    for name, (_, obeys, spoken) in found.items():
        made.append(checks.obedience(name, obeys, wanted[name]))
        if name in ("base", "all else", "sources", "special"):
            made.append(checks.speech(name, spoken))
    if family.decoys == families.SECOND:
        other = language.draw(other_key, JUDGED, (language.ASKED_OTHER,))
        said = _states(pair.config, pair.special, other.inputs)[1].argmax(-1)
        heeded = float((said == language.answers(other, False, True)).mean())
        made.append(checks.obedience("special, asked for the other", heeded, True))
    if not family.is_quiet:
        made += checks.shares({name: state for name, (state, *_) in found.items()}, wanted)
    return tuple(made)
