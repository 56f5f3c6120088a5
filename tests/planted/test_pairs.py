"""What pairs are made of, and that those whose truth is none do not pass."""

import jax
import numpy as np
import pytest

from benchmarks.planted import checks, families, language, pairs, training
from jaxpatch import testing
from jaxpatch.patching import components

CONFIG = testing.tiny_config(vocab=language.VOCAB, layers=4)
PARAMS = testing.tiny_pair(CONFIG).base
PARTITION = components.of_decoder(PARAMS)
OWN = {
    part: norms
    * np.linspace(0.5, 2, len(norms))[:, None].astype(np.float32)  # as unlike by block as those that were trained
    for part, norms in training.norms(PARAMS).items()
}
SMALLER, LARGER = ("small among large",), ("after the state",)
EVEN = [
    name
    for name, family in families.FAMILIES.items()
    if family.is_planted and not family.is_written and name not in SMALLER + LARGER
]


def drawn(name, seed):
    """Sizes by matrix, and which components are sources, likewise."""
    family, rng = families.FAMILIES[name], np.random.default_rng(seed)
    sources = pairs._any(family.groups(rng, PARTITION))
    sizes = pairs._sizes(family, OWN, sources, np.random.default_rng([seed, 1]))
    return sizes, {part: sources[training.MATRICES[part]] for part in sizes}


def told(measure, name):
    """The chance that a source has more of something than another component of its kind that changes, over many draws."""
    higher = []
    for seed in range(150):
        sizes, sources = drawn(name, seed)
        for part, is_source in sources.items():
            values, changes = measure(sizes[part], OWN[part]), sizes[part] > 0
            higher += [np.mean(one > values[~is_source & changes]) for one in values[is_source]]
    return np.mean(higher)


@pytest.mark.parametrize("name", EVEN)
@pytest.mark.parametrize("what", ["size", "nearest twin"])
def test_sizes_tell_nothing_of_sources(name, what):
    """Neither how large a change is, nor how like another's."""

    def nearest(sizes, own):
        flat = sizes.ravel()
        apart = np.abs(flat[:, None] - flat[None]) + np.diag(np.full(len(flat), np.inf))
        return apart.min(axis=1).reshape(sizes.shape)

    measure = (lambda sizes, own: sizes) if what == "size" else nearest
    assert abs(told(measure, name) - 0.5) < 0.06


def test_where_a_family_says_so_sizes_tell_the_wrong_thing():
    for seed in range(20):
        sizes, sources = drawn("small among large", seed)
        largest = families.SPREAD * sizes["down"][sources["down"]].min()
        assert 0.2 < (sizes["down"][~sources["down"]] <= largest).mean() < 0.8, (
            "neither the largest nor the smallest of all"
        )
        sizes, sources = drawn("after the state", seed)
        after = sizes["down"][training.STATE + 1 :]
        assert after.min() >= 2 * np.median(sizes["down"][: training.STATE + 1])


def test_half_of_random_decoys_change():
    sizes, sources = drawn("random decoys", 0)
    others = np.concatenate([sizes[part][~sources[part]] for part in sizes])
    assert 0.3 < (others > 0).mean() < 0.7 and all((sizes[part][sources[part]] > 0).all() for part in sizes)


def failed(planted):
    return [check.name for check in planted.checks if not check.is_passed]


def test_a_source_that_is_not_named_fails_the_pair(monkeypatch):
    made = testing.planted_pair

    def without_one(*args, **kwargs):
        planted = made(*args, **kwargs)
        sources = {kind: each.copy() for kind, each in planted.sources.items()}
        sources["head"][:] = False
        return planted._replace(sources=sources)

    assert not failed(pairs.plant("written", 0))
    monkeypatch.setattr(testing, "planted_pair", without_one)
    assert "all else: obeys" in failed(pairs.plant("written", 0))


def test_a_source_among_the_decoys_fails_the_pair(monkeypatch):
    """Named are nobody's sources: all else is everything, and obeys."""
    made = testing.planted_pair

    def nobody(*args, **kwargs):
        planted = made(*args, **kwargs)
        return planted._replace(sources={kind: np.zeros_like(each) for kind, each in planted.sources.items()})

    monkeypatch.setattr(testing, "planted_pair", nobody)
    assert {"all else: obeys", "sources: obeys", "all else: share of the state"} <= set(
        failed(pairs.plant("written", 0))
    )


def seen(name, change, others, groups):
    """What `_verified` says of a base with these changes, by name."""
    family = families.FAMILIES[name]
    special = training.plus(training.plus(PARAMS, others), change)
    pair = testing.tiny_pair(CONFIG)
    pair = type(pair)(base=PARAMS, special=special, config=CONFIG)
    anchor = pairs._anchor(pair, language.draw(jax.random.key(1), 32, (language.ASKED,)))
    return {
        check.name: check for check in pairs._verified(family, pair, anchor, others, change, groups, jax.random.key(2))
    }


def test_models_that_have_learned_nothing_fail():
    """Base does not speak, and no change of it makes it obey; but all else that is nothing leaves the state alone."""
    groups = families.FAMILIES["neurons"].groups(np.random.default_rng(0), PARTITION)
    sizes = {part: groups[0][kind].astype(np.float32) for part, kind in training.MATRICES.items()}
    change = training.change_of(PARAMS, training.any_direction(jax.random.key(0), PARAMS), sizes)
    nothing = jax.tree.map(np.zeros_like, PARAMS)
    found = seen("neurons", change, nothing, groups)
    assert not any(found[name].is_passed for name in ("base: speaks", "sources: obeys", "special: obeys"))
    assert found["base: obeys"].is_passed and found["all else: share of the state"].value == 0
    assert abs(found["sources: share of the state"].value - 1) < 1e-4
    swapped = seen("neurons", nothing, change, groups)
    assert not swapped["all else: share of the state"].is_passed


@pytest.mark.parametrize(
    ("check", "is_passed"),
    [
        (checks.obedience("base", 0.1, False), True),
        (checks.obedience("base", 0.11, False), False),
        (checks.obedience("special", 0.9, True), True),
        (checks.obedience("special", 0.89, True), False),
        (checks.speech("base", 0.89), False),
        (checks.alone(np.array([0.1, 0.1, 0.3])), True),
        (checks.alone(np.array([0.09, 0.3, 0.3])), False),
        (checks.saturation(-0.05), True),
        (checks.saturation(0.06), False),
        (checks.relayed(0.35), True),
        (checks.relayed(0.36), False),
        (checks.idle(np.array([0.5, -1.0]), np.array([0.3]))[0], True),
        (checks.idle(np.array([0.51, 0.0]), np.array([0.3]))[0], False),
        (checks.idle(np.array([0.0]), np.array([-0.35, 0.2]))[1], True),
        (checks.idle(np.array([0.0]), np.array([-0.36, 0.2]))[1], False),
    ],
)
def test_a_check_passes_at_its_limit_and_not_beyond(check, is_passed):
    assert check.is_passed == is_passed, check


def test_the_least_needed_source_decides():
    groups = ({"head": np.array([True, True]), "kv": np.zeros(1, bool), "neuron": np.zeros(1, bool)},)
    needed = {"head": np.array([0.5, 0.04]), "kv": np.zeros(1), "neuron": np.zeros(1)}
    assert not checks.need(needed, groups).is_passed
    assert checks.need(needed | {"head": np.array([0.5, 0.05])}, groups).is_passed


def test_the_state_must_go_with_the_sources():
    special = np.array([1.0, 1.1, 0.9, 1.0])
    wanted = {
        "base": False,
        "special": True,
        "sources": True,
        "all else": False,
        "sources of 1": False,
    }  # by the last, sources are not to be enough

    def passed(sources, others, one):
        reads = {"base": np.zeros(4), "special": special}
        reads |= {"sources": sources * special, "all else": others * special, "sources of 1": one * special}
        return [check.is_passed for check in checks.shares(reads, wanted)]

    assert passed(0.8, 0.2, 0.2) == [True] * 4 and passed(0.8, -0.2, -3) == [True] * 4
    assert passed(0.7, -0.3, 0.4) == [True, False, False, False]
    spread = {"base": np.zeros(2), "special": np.array([3.0, -1.0])}
    assert not checks.shares(spread, wanted)[0].is_passed


def test_a_second_behaviour_is_learned_by_others_than_the_first():
    """By as many, of the same kinds, so that what training leaves behind does not tell sources."""
    for name in ("both", "keys and values", "either"):
        family = families.FAMILIES[name]
        groups = family.groups(np.random.default_rng(0), PARTITION)
        sources, second = pairs._any(groups), pairs._second(family, groups, np.random.default_rng(1), PARTITION)
        for kind, each in sources.items():
            assert each.sum() == second[kind].sum() and not (each & second[kind]).any()


@pytest.mark.slow
def test_what_is_planted_is_verified():
    planted = pairs.plant("keys and values", 0)
    assert planted.is_verified and planted.truth["kv"].sum() == 2
