"""When the model that an adapter names is known to be another one: by two hub ids, or by two folders; and never by anything less."""

from pathlib import Path

import hf
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxpatch.models import origins

NOWHERE = Path("no/such/folder")
SNAPSHOT = Path("/cache/hub/models--Qwen--Qwen2.5-0.5B/snapshots/0123abcd")


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "Qwen/Qwen2.5-1.5B"),
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen2.5-0.5B@main", NOWHERE, "unsloth/Qwen2.5-1.5B-bnb-4bit@v1"),
        (str(SNAPSHOT), SNAPSHOT, "Qwen/Qwen2.5-1.5B"),
        ("owner/model@v1", NOWHERE, "owner/model@v2"),
        (str(SNAPSHOT), SNAPSHOT, "Qwen/Qwen2.5-0.5B@89ef"),
    ],
)
def test_ids_of_two_models(name, path, said):
    assert origins.are_two(name, path, said)


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "qwen/qwen2.5-0.5b"),
        ("meta-llama/Llama-3.2-1B", NOWHERE, "unsloth/Llama-3.2-1B-bnb-4bit"),
        ("meta-llama/Llama-3.2-1B", NOWHERE, "unsloth/Llama-3.2-1B-unsloth-bnb-4bit"),
        ("meta-llama/Llama-2-7b-hf", NOWHERE, "TheBloke/Llama-2-7B-GPTQ"),
        ("Qwen/Qwen2.5-7B-Instruct", NOWHERE, "Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4"),
        ("owner/model", NOWHERE, "owner/model@v2"),
        ("owner/model@v2", NOWHERE, "owner/model"),
        ("owner/model@v2", NOWHERE, "owner/model@v2"),
        ("Qwen/Qwen2.5-0.5B@main", SNAPSHOT, "Qwen/Qwen2.5-0.5B@0123abcd"),
        (str(SNAPSHOT), SNAPSHOT, "Qwen/Qwen2.5-0.5B"),
        ("models/qwen.gguf", NOWHERE, "Qwen/Qwen2.5-1.5B"),
        ("/data/renamed", NOWHERE, "Qwen/Qwen2.5-1.5B"),
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "/kaggle/input/another"),
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "gpt2"),
        ("Qwen/Qwen2.5-0.5B", NOWHERE, "./outputs"),
    ],
)
def test_names_that_tell_nothing(name, path, said):
    assert not origins.are_two(name, path, said)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    hf.save(root / "one")
    hf.save(root / "seed", seed=1)
    hf.save(root / "sharded", shard="3KB")
    hf.save(root / "bfloat16", dtype=torch.bfloat16)
    hf.save(root / "float16", dtype=torch.float16)
    hf.save(root / "bfloat16 of another", seed=1, dtype=torch.bfloat16)
    hf.save(root / "wide", hidden_size=24)
    hf.save(root / "other family", model_type="gpt2")
    (root / "linked").symlink_to(root / "one")
    (root / "empty").mkdir()
    grown = hf.load(root / "one")
    grown.resize_token_embeddings(47)
    grown.save_pretrained(root / "grown")
    tensors = load_file(hf.save(root / "merged") / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    hf.retensor(root / "merged", {name: tensors[name] + 1e-4 * torch.randn(tensors[name].shape)})
    return root


@pytest.mark.parametrize("said", ["seed", "bfloat16 of another", "wide", "merged"])
def test_folders_of_two_models(folders, said):
    one, two = folders / "one", folders / said
    assert origins.are_two(str(one), one, str(two)) and origins.are_two(str(two), two, str(one))


@pytest.mark.parametrize("said", ["one", "linked", "sharded", "bfloat16", "float16", "grown", "empty", "other family"])
def test_folders_of_one_model_or_of_which_nothing_is_known(folders, said):
    one, two = folders / "one", folders / said
    assert not origins.are_two(str(one), one, str(two)) and not origins.are_two(str(two), two, str(one))


def test_two_types_of_which_neither_holds_the_other(folders):
    one, two = folders / "bfloat16", folders / "float16"
    assert not origins.are_two(str(one), one, str(two))
    assert origins.are_two(str(two), two, str(folders / "bfloat16 of another"))


def test_what_cannot_be_compared_tells_nothing(folders, tmp_path):
    """Quantised weights, and files cut short."""
    save_file({"model.norm.weight": torch.zeros(16, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    assert not origins.are_two("x", folders / "one", str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    assert not origins.are_two("x", folders / "one", str(tmp_path))
    assert not origins.are_two("x", NOWHERE, str(folders / "one"))
