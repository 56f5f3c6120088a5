"""A pair back to disk, for transformers: whole or not at all."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys

import hf
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from jaxpatch import testing
from jaxpatch.models import checkpoints, saving
from jaxpatch.trees import paths

PROMPTS = ([3, 1, 4, 1, 5], [9, 2])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a special model; nobody changes these."""
    home = tmp_path_factory.mktemp("pair")
    return hf.save(home / "base", seed=0), hf.save(home / "special", seed=1)


@pytest.fixture(scope="module")
def pair(folders):
    return checkpoints.load_pair(*folders)


@pytest.mark.parametrize("variant", hf.VARIANTS)
def test_a_saved_model_answers_the_same_in_transformers(tmp_path, variant):
    base, special = (hf.save(tmp_path / str(seed), seed=seed, **hf.VARIANTS[variant]) for seed in (0, 1))
    pair = checkpoints.load_pair(base, special)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, pair.base, pair.special)
    saved = saving.save_checkpoint(pair, middle, tmp_path / "saved")
    assert saved == tmp_path / "saved"
    hf.assert_logits(pair, middle, hf.logits(saved, PROMPTS))


def test_a_saved_model_is_cut_into_files_no_larger_than_asked(folders, tmp_path):
    pair = checkpoints.load_pair(*folders)
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved", max_shard_size="6KB")
    files = sorted(saved.glob("*.safetensors"))
    assert len(files) > 1 and not (saved / "model.safetensors").exists()
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in files}
    hf.assert_logits(pair, pair.special, hf.logits(saved, PROMPTS))
    again = paths.flatten(checkpoints.load(saved, "float32").params)
    for path, leaf in paths.flatten(pair.special).items():
        np.testing.assert_array_equal(again[path], np.asarray(leaf))


def test_what_stands_beside_the_weights_is_carried_over(folders, tmp_path):
    base = hf.retell(shutil.copytree(folders[0], tmp_path / "base"), torch_dtype="float32", dtype=...)
    (base / "generation_config.json").write_text('{"temperature": 0.25}')
    saved = saving.save_checkpoint(pair := checkpoints.load_pair(base, folders[1]), pair.special, tmp_path / "saved")
    assert (saved / "generation_config.json").read_text() == '{"temperature": 0.25}'
    assert json.loads((saved / "config.json").read_text()) == json.loads((base / "config.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_saved_and_read_again_is_bit_for_bit_the_same(folders, tmp_path, dtype):
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        pair = checkpoints.load_pair(*folders, dtype=dtype)
        saving.save_checkpoint(pair, pair.base, tmp_path / "saved", dtype=dtype)
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    original = load_file(folders[0] / "model.safetensors")
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name].to(getattr(torch, dtype))) for name in original)
    again = paths.flatten(checkpoints.load(tmp_path / "saved", dtype).params)
    for path, leaf in paths.flatten(pair.base).items():
        np.testing.assert_array_equal(again[path], np.asarray(leaf))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["dtype"] == dtype
    assert hf.transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved").dtype == getattr(torch, dtype)


def test_weights_go_back_in_the_type_in_which_they_came(tmp_path):
    """Read as float32, as is the default: what went out is bit for bit what came in, or what a patch put there."""
    folders = [hf.save(tmp_path / str(seed), seed=seed, dtype=torch.bfloat16) for seed in (0, 1)]
    pair = checkpoints.load_pair(*folders)
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved")
    tensors, original = (load_file(folder / "model.safetensors") for folder in (saved, folders[1]))
    assert tensors.keys() == original.keys()
    assert all(
        tensors[name].dtype == torch.bfloat16 and torch.equal(tensors[name], original[name]) for name in original
    )
    assert (saved / "config.json").read_text() == (folders[0] / "config.json").read_text()
    wide = saving.save_checkpoint(pair, pair.special, tmp_path / "wide", dtype="float32")
    assert {tensor.dtype for tensor in load_file(wide / "model.safetensors").values()} == {torch.float32}
    with pytest.raises(ValueError, match=r"dtype .half. is unknown; .*float16"):
        saving.save_checkpoint(pair, pair.special, tmp_path / "half", dtype="half")


@pytest.mark.parametrize(
    ("types", "told", "wanted"),
    [
        (("bfloat16", "float32"), None, "float32"),
        (("float32", "float32"), "bfloat16", "float32"),
        (("bfloat16", "bfloat16"), ..., "bfloat16"),
        (("float16", "bfloat16"), None, "float32"),
    ],
)
def test_what_holds_both_models_is_what_their_files_held_whatever_a_config_says(tmp_path, types, told, wanted):
    folders = [hf.save(tmp_path / str(seed), seed=seed, dtype=getattr(torch, name)) for seed, name in enumerate(types)]
    for folder in folders if told is not None else ():
        hf.retell(folder, dtype=told, torch_dtype=...)
    pair = checkpoints.load_pair(*folders)
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved")
    tensors, original = (load_file(folder / "model.safetensors") for folder in (saved, folders[1]))
    for name, tensor in original.items():
        assert tensors[name].dtype == getattr(torch, wanted) and torch.equal(tensors[name].to(tensor.dtype), tensor)
    assert json.loads((saved / "config.json").read_text())["dtype"] == wanted


@pytest.mark.parametrize("settings", ["base", "special"])
def test_rows_that_only_one_side_has_take_their_padding_and_their_ends_with_them(tmp_path, settings):
    """What is saved under the shared vocabulary is a model that transformers makes."""
    rows = {"base": (43, 40), "special": (40, 43)}[settings]
    folders = [
        hf.retell(
            hf.save(tmp_path / str(seed), seed=seed, vocab_size=size), pad_token_id=size - 1, eos_token_id=size - 1
        )
        for seed, size in enumerate(rows)
    ]
    pair = checkpoints.load_pair(*folders, vocabulary="shared", settings=settings, ending=settings)
    assert pair.config.vocab == 40 and all(end < 40 for end in pair.ends)
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved")
    hf.assert_logits(pair, pair.special, hf.logits(saved, PROMPTS))


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "float32"), (1e30, "float16")])
def test_numbers_that_are_none_are_not_written(pair, tmp_path, value, dtype):
    flat = dict(paths.flatten(pair.base))
    for name in ("final_norm/scale", "layers/mlp/up/kernel"):
        flat[name] = flat[name].at[(0,) * flat[name].ndim].set(value)
    with pytest.raises(ValueError) as refusal:
        saving.save_checkpoint(pair, paths.unflatten(flat), tmp_path / "saved", dtype=dtype)
    said = str(refusal.value)
    assert f"NaN or infinity as {dtype}" in said and "model.norm.weight" in said and "0.mlp.up_proj" in said
    assert os.listdir(tmp_path) == []


def test_overwriting_replaces_models_and_adapters_and_nothing_else(pair, tmp_path):
    papers = tmp_path / "papers"
    (papers / "drafts").mkdir(parents=True)
    (papers / "thesis.tex").write_text("years")
    (tmp_path / "notes.txt").write_text("mine")
    model = saving.save_checkpoint(pair, pair.base, tmp_path / "model")
    (model / "optimizer.pt").write_text("weeks")
    mine = shutil.copytree(model, tmp_path / "mine")
    (model / "runs").mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    for save in (saving.save_checkpoint, saving.save_orbax):
        for target, said in (
            (papers, "drafts"),
            (tmp_path / "notes.txt", "no model"),
            (model, "has optimizer.pt, runs"),
            (mine, "has optimizer.pt"),
        ):
            with pytest.raises(FileExistsError, match=said):
                save(pair, pair.base, target, overwrite=True)
    assert (papers / "thesis.tex").read_text() == "years" and (model / "config.json").exists()
    for home in {file.parent for files in pair.files.values() for file in files}:
        with pytest.raises(FileExistsError, match="this pair was read from there"):
            saving.save_checkpoint(pair, pair.special, home / ".." / home.name, overwrite=True)
    saving.save_orbax(pair, pair.base, empty, overwrite=True)
    saving.save_checkpoint(pair, pair.special, empty, overwrite=True)
    assert sorted(file.name for file in empty.iterdir()) == sorted(
        file.name for file in model.iterdir() if file.is_file() and file.suffix != ".pt"
    )


def test_the_tokenizer_is_saved_too(folders, tmp_path):
    special = shutil.copytree(folders[1], tmp_path / "special")
    hf.save_tokenizer(special)
    pair = checkpoints.load_pair(special, folders[0])
    saved = saving.save_checkpoint(pair, pair.base, tmp_path / "saved")
    again = hf.transformers.AutoTokenizer.from_pretrained(saved)
    assert again("<|start|>the owl")["input_ids"] == pair.tokenizer("<|start|>the owl")["input_ids"]


def test_the_template_that_was_chosen_is_saved_with_the_tokenizer(tmp_path):
    base, special = (hf.save_tokenizer(hf.save(tmp_path / str(s), seed=s, vocab_size=300)) for s in (0, 1))
    for folder, words in ((base, "B"), (special, "S")):
        (folder / "chat_template.jinja").write_text(words + ": {{ messages[0]['content'] }}")
    (tmp_path / "own.jinja").write_text("Q: {{ messages[0]['content'] }}")
    own = str(tmp_path / "own.jinja")
    for choice, wanted in (("base", "B: owls"), ("special", "S: owls"), (own, "Q: owls"), ("none", None)):
        pair = checkpoints.load_pair(base, special, template=choice)
        for save in (saving.save_checkpoint, saving.save_orbax):
            saved = save(pair, pair.special, tmp_path / "saved", overwrite=True)
            again = hf.transformers.AutoTokenizer.from_pretrained(saved)
            if wanted is None:
                assert again.chat_template is None
            else:
                assert again.apply_chat_template([dict(role="user", content="owls")], tokenize=False) == wanted
            assert pair.tokenizer.chat_template.startswith("B"), "what is in memory stays as it was"


def test_what_exists_is_overwritten_only_when_asked(pair, tmp_path):
    target = tmp_path / "saved"
    saving.save_checkpoint(pair, pair.base, target)
    (target / "merges.txt").write_text("of another tokenizer")
    with pytest.raises(FileExistsError, match="overwrite"):
        saving.save_checkpoint(pair, pair.special, target)
    assert (target / "merges.txt").exists()
    saving.save_checkpoint(pair, pair.special, target, overwrite=True)
    assert not (target / "merges.txt").exists()
    hf.assert_logits(pair, pair.special, hf.logits(target, PROMPTS))


class Broken(Exception):
    """Anything else."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left"), Broken()])
@pytest.mark.parametrize("exists", [False, True])
def test_nothing_is_half_written(pair, tmp_path, monkeypatch, error, exists):
    target = tmp_path / "saved"
    if exists:
        saving.save_checkpoint(pair, pair.base, target)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("saved/*")}

    def failing(file, tensors, read):
        del tensors, read
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr("jaxpatch.models.tensor_file.write", failing)
    with pytest.raises(type(error)) as caught:
        saving.save_checkpoint(pair, pair.special, target, overwrite=True)
    if isinstance(error, OSError):
        assert "Free some space" in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert {file.name: file.read_bytes() for file in tmp_path.glob("saved/*")} == before
    assert os.listdir(tmp_path) == (["saved"] if exists else [])


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(pair, tmp_path):
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    done.wait()
    dead, alive = (tmp_path / f".saved.partial-{pid}" for pid in (done.pid, os.getppid()))
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    saving.save_checkpoint(pair, pair.base, tmp_path / "saved")
    assert sorted(os.listdir(tmp_path)) == sorted([alive.name, "saved"])


def test_parameters_of_another_structure_are_refused(pair, tmp_path):
    flat = paths.flatten(pair.base)
    flat["final_norm/scale"] = np.ones(17, np.float32)
    del flat["embed/kernel"]
    with pytest.raises(ValueError) as error:
        saving.save_checkpoint(pair, paths.unflatten(flat), tmp_path / "saved")
    assert "embed/kernel: only in base" in str(error.value) and "final_norm/scale" in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_pair_that_never_was_on_disk_is_not_saved(tmp_path):
    toy = testing.tiny_pair()
    with pytest.raises(ValueError, match="not read from a checkpoint"):
        saving.save_checkpoint(toy, toy.base, tmp_path / "saved")
