"""Changes of exact sizes, which are all that is trained; and the language that is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.planted import families, language, training
from jaxpatch import testing
from jaxpatch.patching import components
from jaxpatch.trees import paths

CONFIG = testing.tiny_config(vocab=language.VOCAB, layers=2)
PARAMS = testing.tiny_pair(CONFIG).base
PARTITION = components.of_decoder(PARAMS)
PARTS = training.parts(PARAMS)


def sizes(seed=0):
    draw = np.random.default_rng(seed)
    return {
        name: (draw.uniform(0, 2, kind.shape) * (draw.random(kind.shape) < 0.5)).astype(np.float32)
        for name, kind in PARTS.items()
    }


def test_parts_are_what_kinds_own():
    assert {name: training.MATRICES[name] for name in PARTS} == training.MATRICES
    slots = [slot for kind in PARTS.values() for slot in kind.slots]
    assert sorted(slots) == sorted(slot for kind in training.KINDS for slot in PARTITION[kind].slots)


def test_a_change_has_the_sizes_that_were_asked_for_and_touches_nothing_else():
    wanted, direction = sizes(), training.any_direction(jax.random.key(0), PARAMS)
    change = training.change_of(PARAMS, direction, wanted)
    for kind, each in training.norms(change).items():
        np.testing.assert_allclose(each, wanted[kind], rtol=1e-5, atol=1e-6)
    owned = {slot.leaf for kind in training.KINDS for slot in PARTITION[kind].slots}
    for path, leaf in paths.flatten(change).items():
        assert leaf.any() == (path in owned)


def test_the_slope_of_a_change_lies_across_it():
    """Its size cannot be learned."""
    wanted, direction = sizes(), training.any_direction(jax.random.key(0), PARAMS)
    pull = training.any_direction(jax.random.key(1), PARAMS)

    def along(direction):
        change = training.change_of(PARAMS, direction, wanted)
        return sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), change, pull)))

    slope = jax.grad(along)(direction)
    radial = paths.flatten(jax.tree.map(jnp.multiply, slope, direction))
    for part in PARTS.values():
        across = components.sums(part, lambda leaf: radial[leaf])
        np.testing.assert_allclose(across, 0, atol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_some_of_a_change_and_the_rest_of_it_are_the_change():
    change = training.change_of(PARAMS, training.any_direction(jax.random.key(0), PARAMS), sizes(1))
    gates = {kind: (np.random.default_rng(2).random(PARTITION[kind].shape) < 0.5) for kind in training.KINDS}
    parts = [training.some_of(change, {kind: each == side for kind, each in gates.items()}) for side in (True, False)]
    for one, whole in zip(jax.tree.leaves(training.plus(*parts)), jax.tree.leaves(change), strict=True):
        np.testing.assert_array_equal(one, whole)


def test_a_change_lies_across_what_a_component_was():
    """So that nobody is told from others by how much of it was forgotten."""
    change, own = (
        paths.flatten(each)
        for each in (training.change_of(PARAMS, training.any_direction(jax.random.key(2), PARAMS), sizes()), PARAMS)
    )
    for part in PARTS.values():
        along = components.sums(part, lambda leaf: change[leaf] * own[leaf])
        np.testing.assert_allclose(along, 0, atol=1e-5)


def test_prompts_are_read_as_they_are_written():
    prompts = language.draw(
        jax.random.key(0), 64, language.PLAIN + language.TOLD + (language.ASKED, language.ASKED_OTHER)
    )
    tokens, lengths = map(np.asarray, prompts.inputs)
    obeyed, plain, other = (
        np.asarray(language.answers(prompts, *heeds)) for heeds in ((True,), (False,), (False, True))
    )
    for row, length, mode, *said in zip(tokens, lengths, np.asarray(prompts.modes), obeyed, plain, other, strict=True):
        mode_token, speaker, word, *words, question = row[:length]
        assert question == language.QUESTION and mode_token == language.FIRST_MODE + mode
        assert language.FEWEST_WORDS <= 1 + len(words) <= language.MOST_WORDS and not row[length:].any()
        spoken = (word + speaker - language.FIRST_SPEAKER + language.LATER[mode]) % language.WORDS
        registers = [(each - spoken) / language.WORDS for each in said]
        wanted = {2: [1, 1, 1], 3: [2, 2, 2], 6: [1, 1, 1], 7: [2, 2, 2]}
        wanted |= {language.ASKED: [1, 0, 0], language.ASKED_OTHER: [0, 0, 2]}
        assert registers == wanted.get(int(mode), [0, 0, 0])


@pytest.mark.parametrize("name", families.FAMILIES)
def test_families_say_what_can_be_planted(name):
    """Groups without a component in two of them; cases of groups that there are, all of them in one in which the model obeys."""
    family = families.FAMILIES[name]
    if family.is_written:
        assert family.says.endswith(".") and not family.groups(np.random.default_rng(0), {})
        return
    partition = {
        "head": components.Kind((4, 4), ("layer", "head"), ()),
        "kv": components.Kind((4, 2), ("layer", "group"), ()),
        "neuron": components.Kind((4, 48), ("layer", "neuron"), ()),
    }
    one, same, other = (family.groups(np.random.default_rng(seed), partition) for seed in (0, 0, 1))
    assert len(one) == len(family.signs) and family.says.endswith(".")
    for kind in training.KINDS:
        counted = sum(group[kind].astype(int) for group in one)
        assert counted.max() <= 1
        assert all((a[kind] == b[kind]).all() for a, b in zip(one, same, strict=True))
    if family.is_quiet:
        assert not any(obeys for _, obeys in family.cases) and bool(family.cases) == family.is_vain
        return
    assert any((a[kind] != b[kind]).any() for a, b in zip(one, other, strict=True) for kind in training.KINDS)
    assert (tuple(range(len(one))), True) in family.cases
    assert all(set(some) <= set(range(len(one))) for some, _ in family.cases)
