"""Scores go to disk and come back as they were."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing

ANCHOR = jp.Anchor(layer=1, direction=jnp.eye(16)[0])


def same(one, two) -> bool:
    """Equal, whatever is inside, NaN too."""
    if dataclasses.is_dataclass(one):
        return type(one) is type(two) and all(
            same(getattr(one, f.name), getattr(two, f.name)) for f in dataclasses.fields(one)
        )
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, tuple):
        return type(one) is type(two) and len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, np.ndarray):
        return one.dtype == two.dtype and np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    return one == two


@pytest.mark.parametrize(
    "options",
    [
        dict(kinds=("neuron", "head", "matrix"), method="exact"),
        dict(kinds=("neuron", "head"), method="screened", top=3, sample=4),
        dict(kinds=("head",), method="attribution", repairs=("grad_drop",), site="vector"),
        dict(kinds=("head",), method="screened_activation", mode="knockout", top=1, sample=4, positions="last"),
    ],
    ids=lambda options: options["method"],
)
def test_scores_come_back_bit_for_bit(options, tmp_path):
    found = jp.score(testing.tiny_pair(), testing.tiny_inputs(), ANCHOR, **options)
    again = jp.load_scores(jp.save_scores(found, tmp_path / "scores.safetensors"))
    assert same(again, found) and not same(again, dataclasses.replace(found, layer=2))
    assert again.to_frame().equals(found.to_frame())


def test_scores_of_ones_own_model_come_back(tmp_path):
    base = {"a_0": jnp.ones(2), "a_1": jnp.ones(2)}
    trees = jp.TreePair(
        base, {"a_0": jnp.zeros(2), "a_1": jnp.full(2, 2.0)}, jp.partition(base, {"part": {"a_{layer}": 0}})
    )
    found = jp.score(trees, jnp.ones((3, 1)), lambda params, x: params["a_1"].sum() * x[:, 0], kinds=("part",))
    assert same(jp.load_scores(jp.save_scores(found, tmp_path / "own.safetensors")), found)


def test_other_files_are_refused(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match=r"scores.safetensors: no such file; wanted one that save_scores wrote"):
        jp.load_scores(tmp_path / "scores.safetensors")
    (tmp_path / "torn").write_bytes(b"not one")
    with pytest.raises(ValueError, match="torn is no safetensors file"):
        jp.load_scores(tmp_path / "torn")
    save_file({"direction": np.zeros(2)}, tmp_path / "anchor")
    with pytest.raises(ValueError, match="anchor holds no scores: its format is None"):
        jp.load_scores(tmp_path / "anchor")
