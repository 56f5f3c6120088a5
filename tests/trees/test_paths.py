"""Leaves by path."""

import pytest

from jaxpatch.trees import paths

TREE = {"embed": {"kernel": 1}, "layers": {"attn": {"q": {"kernel": 2, "bias": 3}}, "norm": 4}}


def test_flatten_and_unflatten_undo_each_other():
    flat = paths.flatten(TREE)
    assert flat == {"embed/kernel": 1, "layers/attn/q/kernel": 2, "layers/attn/q/bias": 3, "layers/norm": 4}
    assert paths.unflatten(flat) == TREE
    assert paths.flatten({}) == {} == paths.unflatten({})


def test_the_tree_given_is_left_alone():
    flat = paths.flatten(TREE)
    flat["layers/norm"] = 9
    paths.unflatten(flat)["embed"]["kernel"] = 7
    assert TREE["layers"]["norm"] == 4 and TREE["embed"]["kernel"] == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hed", "did you mean 'head'? Known: head, neuron."),
        ("zzz", "Known: head, neuron."),
        (3, "Known: head, neuron."),
    ],
)
def test_did_you_mean(name, message):
    assert paths.did_you_mean(name, ["head", "neuron"]) == message


def test_leaves_that_share_a_path_are_refused():
    with pytest.raises(ValueError, match="same path: a/b"):
        paths.leaves({"a/b": 1, "a": {"b": 2, "c": 3}})
