"""Orbax directories of our own: written, read again bit for bit, and refused by name where they are not what their config says."""

import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxpatch import testing
from jaxpatch.check import Check, check
from jaxpatch.models import checkpoints, orbax_dir, outlines, saving
from jaxpatch.models.differences import Choices
from jaxpatch.trees import paths


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return testing.tiny_checkpoints(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def pair(folders):
    return checkpoints.load_pair(*folders)


@pytest.fixture(scope="module")
def saved(pair, tmp_path_factory):
    return saving.save_orbax(pair, pair.special, tmp_path_factory.mktemp("orbax") / "special")


@pytest.fixture
def broken(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "broken")


def refused(folder, *words):
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(folder, "float32")
    assert all(word in str(caught.value) for word in (str(folder), *words)), caught.value
    return str(caught.value)


def assert_same(one, two):
    one, two = paths.flatten(one), paths.flatten(two)
    assert one.keys() == two.keys()
    for path, leaf in one.items():
        np.testing.assert_array_equal(leaf, two[path])
        assert leaf.dtype == two[path].dtype


def test_either_side_may_be_one(folders, pair, saved):
    assert_same(checkpoints.load_pair(folders[0], saved).special, pair.special)
    turned = checkpoints.load_pair(saved, folders[0])
    assert_same(turned.base, pair.special)
    assert turned.tokenizer("an owl").input_ids == pair.tokenizer("an owl").input_ids
    assert turned.raw_config == pair.raw_config and turned.config == pair.config
    names = {file.name for file in turned.files["base"]}
    assert {"config.json", "tokenizer.json", "_METADATA", "manifest.ocdbt"} <= names
    assert outlines.read(saved, folders[0], Choices()).config == pair.config


def test_a_narrow_tree_is_written_narrow_and_read_as_asked(folders, tmp_path):
    narrow = checkpoints.load_pair(*folders, dtype="bfloat16")
    saved = saving.save_orbax(narrow, narrow.base, tmp_path / "narrow")
    assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    assert_same(checkpoints.load(saved, "bfloat16").params, narrow.base)
    assert_same(
        checkpoints.load(saved, "float32").params, jax.tree.map(lambda leaf: leaf.astype("float32"), narrow.base)
    )


def test_it_is_checked_like_any_other_but_for_transformers(folders, saved, tmp_path):
    said = tmp_path / "found.json"
    assert check(Check(base=str(folders[0]), special=str(saved), out=said), console=Console(quiet=True))
    assert json.loads(said.read_text())["parity"]["special"]["is_passed"] is None


def test_what_exists_is_overwritten_only_when_asked(folders, pair, tmp_path):
    target = saving.save_orbax(pair, pair.base, tmp_path / "saved")
    with pytest.raises(FileExistsError, match="overwrite"):
        saving.save_orbax(pair, pair.special, target)
    saving.save_orbax(pair, pair.special, target, overwrite=True)
    assert_same(checkpoints.load_pair(folders[0], target).special, pair.special)
    assert [file.name for file in tmp_path.iterdir()] == ["saved"]


def test_every_leaf_that_is_not_of_the_config_is_named(pair, broken):
    flat = paths.flatten(pair.special)
    flat["final_norm/scale"] = np.ones(17, np.float32)
    flat["layers/mlp/up/kernels"] = flat.pop("layers/mlp/up/kernel")
    flat["layers/mlp/gate/kernel"] = np.ones(flat["layers/mlp/gate/kernel"].shape, np.int32)
    shutil.rmtree(broken / orbax_dir.PARAMS)
    orbax_dir.write(broken, paths.unflatten(flat))
    width = pair.config.width
    refused(
        broken,
        "missing leaf layers/mlp/up/kernel",
        "unexpected leaf layers/mlp/up/kernels",
        f"leaf final_norm/scale has shape (17,), but the config asks for ({width},)",
        "leaf layers/mlp/gate/kernel is stored as int32; wanted float64, float32",
    )


def test_numbers_that_are_none_are_named(pair, broken):
    flat = paths.flatten(pair.special)
    up = np.array(flat["layers/mlp/up/kernel"])
    up[1, 0, 0] = np.nan
    shutil.rmtree(broken / orbax_dir.PARAMS)
    orbax_dir.write(broken, paths.unflatten({**flat, "layers/mlp/up/kernel": up}))
    refused(broken, "model.layers.1.mlp.up_proj.weight holds NaN or infinity")


def test_a_missing_config_is_refused(broken):
    (broken / "config.json").unlink()
    refused(broken, "no config.json beside the parameters")


@pytest.mark.parametrize("bytes_left", [0, 20, 100])
@pytest.mark.parametrize("name", ["_METADATA", "manifest.ocdbt", "d/*"])
def test_a_file_cut_short_is_refused(broken, name, bytes_left):
    """And nothing that Orbax began goes on: that it ends where nobody waits would be a warning, and so an error."""
    [file] = (broken / orbax_dir.PARAMS).glob(name)
    file.write_bytes(file.read_bytes()[:bytes_left])
    said = refused(broken, "params is truncated or corrupt", "copy or save it again")
    assert "NoneType" not in said, said


def test_a_missing_manifest_is_refused(broken):
    (broken / orbax_dir.PARAMS / "manifest.ocdbt").unlink()
    refused(broken, "params is truncated or corrupt (ValueError: it describes no leaf)")


def test_missing_contents_are_refused(broken):
    for folder in (broken / orbax_dir.PARAMS).glob("**/d"):
        shutil.rmtree(folder)
    refused(broken, "params is truncated or corrupt", "copy or save it again")
