"""What every way of scoring promises, over the whole registry."""

import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument
from jaxpatch.scoring import ACTIVATION_METHODS, METHODS

KINDS = ("neuron", "embed", "final_norm", "unembed")


@pytest.fixture(scope="module")
def tool():
    return instrument.of_pair(testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0]))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_every_component(tool, method):
    answers = METHODS[method](tool, KINDS, scoring_toys.options(steps=2))
    assert tuple(answers) == KINDS
    for kind, answer in answers.items():
        assert isinstance(answer.effects, np.ndarray) and answer.effects.dtype == np.float32
        assert answer.effects.shape == (4, *tool.partition[kind].shape)
        assert np.isfinite(answer.effects).all()
        assert not answer.effects[:, ~tool.reach[kind]].any()
        assert (answer.effects[:, tool.reach[kind]] != 0).any(0).all()
        assert (answer.screening is not None) == (method == "screened")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exact_where_the_effect_is_linear(method):
    answers = METHODS[method](scoring_toys.linear(), ("part", "head"), scoring_toys.options())
    for kind, weights in (("part", scoring_toys.PART), ("head", scoring_toys.HEAD)):
        np.testing.assert_allclose(answers[kind].effects, [weights, 2 * weights], rtol=1e-6, atol=1e-6)


def test_registry_names_are_the_documented_ones():
    assert tuple(METHODS) == ("exact", "first_order", "local_linear", "integrated", "screened")
    assert tuple(ACTIVATION_METHODS) == ("activation", "attribution", "screened_activation")
    assert all(f'"{name}"' in jp.score.__doc__ for name in METHODS | ACTIVATION_METHODS)
