"""PEFT adapters, merged: against torch by hand; and everything that cannot be merged is refused by name."""

import math

import hf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxpatch.models import checkpoints
from jaxpatch.trees import compare, paths

PROMPTS = ([3, 1, 4, 1, 5], [9, 2])
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hf.save(tmp_path_factory.mktemp("base"), attention_bias=True)


def merged_by_hand(base, adapter, folder, scale):
    """W + scale * B A, in torch, saved as a model directory."""
    tensors, halves = load_file(base / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    for name in halves:
        if name.endswith("lora_A.weight"):
            stem = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = halves[name.replace("lora_A", "lora_B")]
            tensors[f"{stem}.weight"] = tensors[f"{stem}.weight"] + scale * (b.float() @ halves[name].float())
    folder.mkdir()
    (folder / "config.json").write_text((base / "config.json").read_text())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (dict(rank=2, lora_alpha=3), 3 / 2),
        (dict(rank=4, lora_alpha=8, modules=ALL), 8 / 4),
        (dict(rank=3, lora_alpha=6.5, use_rslora=True, modules=ALL), 6.5 / math.sqrt(3)),
        (dict(rank=1, lora_alpha=2, modules=["v_proj"], layers=[1], layers_to_transform=[1]), 2.0),
        (dict(rank=1, lora_alpha=2, modules=["v_proj"], layers=[0], layers_to_transform=0), 2.0),
        (dict(modules=["lm_head", "embed_tokens", "up_proj"]), 3 / 2),
        (dict(target_modules="all-linear", modules=ALL, init_lora_weights="gaussian"), 3 / 2),
        (dict(modules=["k_proj"], target_modules=["self_attn.k_proj"]), 3 / 2),
        (dict(modules=["k_proj"], layers=[1], target_modules=["model.layers.1.self_attn.k_proj"]), 3 / 2),
        (dict(modules=["k_proj"], target_modules=["k_proj", "lm_head"], exclude_modules=["lm_head"]), 3 / 2),
    ],
    ids=lambda value: str(value)[:60],
)
def test_logits_are_those_of_the_sum_by_hand(base, tmp_path, options, scale):
    adapter = hf.save_adapter(tmp_path / "adapter", base, **options)
    by_hand = merged_by_hand(base, adapter, tmp_path / "merged", scale)
    pair, wanted = checkpoints.load_pair(base, adapter), checkpoints.load(by_hand, "float32")
    for path, leaf in paths.flatten(wanted.params).items():
        np.testing.assert_allclose(paths.flatten(pair.special)[path], leaf, atol=1e-6, err_msg=path)
    got = pair.apply(pair.special, hf.padded(PROMPTS))
    for row, reference in zip(got, hf.logits(by_hand, PROMPTS), strict=True):
        np.testing.assert_allclose(row[: len(reference)], reference, atol=1e-5 * np.abs(reference).max())


def test_leaves_it_does_not_touch_are_the_base_s_own(base, tmp_path):
    pair = checkpoints.load_pair(base, hf.save_adapter(tmp_path, base, modules=["q_proj", "down_proj"]))
    changed = {"layers/attn/q/kernel", "layers/mlp/down/kernel"}
    assert set(compare.changed_leaves(pair.base, pair.special)) == changed
    one, two = paths.flatten(pair.base), paths.flatten(pair.special)
    assert {path for path in one if one[path] is not two[path]} == changed


def test_layers_it_does_not_touch_are_bit_for_bit_the_base_s(base, tmp_path):
    adapter = hf.save_adapter(tmp_path, base, modules=["q_proj"], layers=[1], layers_to_transform=[1])
    pair = checkpoints.load_pair(base, adapter)
    one, two = (np.asarray(p["layers"]["attn"]["q"]["kernel"]) for p in (pair.base, pair.special))
    np.testing.assert_array_equal(one[0], two[0])
    assert (one[1] != two[1]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_adapter_stored_narrow_is_merged_wide(base, tmp_path, dtype):
    adapter = hf.save_adapter(tmp_path / "adapter", base)
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    by_hand = checkpoints.load(merged_by_hand(base, adapter, tmp_path / "merged", 3 / 2), "float32")
    pair = checkpoints.load_pair(base, adapter)
    for path, leaf in paths.flatten(by_hand.params).items():
        np.testing.assert_allclose(paths.flatten(pair.special)[path], leaf, atol=1e-6, err_msg=path)


def test_files_are_those_of_both(base, tmp_path):
    pair = checkpoints.load_pair(base, hf.save_adapter(tmp_path, base))
    names = [file.name for file in pair.files["special"]]
    assert names == ["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"]
    assert [file.name for file in pair.files["base"]] == names[:2]


def refused(base, adapter, *words):
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.load_pair(base, adapter)
    message = str(error.value)
    assert str(adapter) in message
    assert all(word in message for word in words), message
    return error.value.faults


@pytest.mark.parametrize(
    "settings",
    [
        dict(use_dora=True),
        dict(bias="all"),
        dict(bias="lora_only"),
        dict(rank_pattern={"q_proj": 4}),
        dict(alpha_pattern={"q_proj": 4}),
        dict(modules_to_save=["lm_head"]),
        dict(fan_in_fan_out=True),
        dict(lora_bias=True),
        dict(layer_replication=[[0, 1]]),
        dict(trainable_token_indices=[1]),
        dict(target_parameters=["x"]),
        dict(use_qalora=True),
        dict(init_lora_weights="pissa"),
        dict(a_setting_of_tomorrow=3),
        dict(peft_type="IA3"),
        dict(layers_to_transform="x"),
        dict(r=None),
        dict(r=0),
        dict(lora_alpha=None),
        dict(lora_alpha="16"),
    ],
    ids=str,
)
def test_a_setting_that_is_not_understood_is_refused_by_name(base, tmp_path, settings):
    adapter = hf.resettle(hf.save_adapter(tmp_path, base), **settings)
    [name] = settings
    refused(base, adapter, name)


def change(adapter, change_fn):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    change_fn(tensors)
    save_file(tensors, file)
    return adapter


STEM = "base_model.model.model.layers.0.self_attn.q_proj"


def test_a_missing_half_is_refused(base, tmp_path):
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: t.pop(f"{STEM}.lora_B.weight"))
    refused(base, adapter, "model.layers.0.self_attn.q_proj.weight", f"{STEM}.lora_A.weight", "other half")


def test_a_wrong_rank_is_refused(base, tmp_path):
    adapter = hf.resettle(hf.save_adapter(tmp_path, base, rank=2), r=3)
    faults = refused(base, adapter, f"{STEM}.lora_A.weight", "ranks 2 and 2, but r = 3")
    assert len(faults) == 4, "each of the four pairs is named"


def test_a_wrong_shape_is_refused(base, tmp_path):
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: t.update({f"{STEM}.lora_A.weight": torch.zeros(2, 15)}))
    refused(base, adapter, "model.layers.0.self_attn.q_proj.weight has shape (16, 15)", "(16, 16)")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        f"{STEM}.lora_magnitude_vector",
        f"{STEM}.lora_B.bias",
        "base_model.model.lm_head.weight",
        "base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight",
    ],
)
def test_an_unknown_tensor_is_refused(base, tmp_path, name):
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: t.update({name: torch.zeros(2, 16)}))
    refused(base, adapter, name.split(".lora_A")[0].removeprefix("base_model.model."))


def test_a_layer_that_is_not_there_is_refused(base, tmp_path):
    def add(tensors):
        for half, shape in (("A", (2, 16)), ("B", (16, 2))):
            tensors[f"base_model.model.model.layers.7.self_attn.q_proj.lora_{half}.weight"] = torch.zeros(shape)

    refused(base, change(hf.save_adapter(tmp_path, base), add), "unexpected", "layers.7.self_attn.q_proj.weight")


def test_targets_and_tensors_must_agree(base, tmp_path):
    adapter = hf.save_adapter(tmp_path / "a", base, modules=["q_proj"], target_modules=["q_proj", "k_proj"])
    refused(base, adapter, "layers.0.self_attn.k_proj.weight is a target, but has no tensors", "layers.1")
    adapter = hf.save_adapter(tmp_path / "b", base, modules=["q_proj", "k_proj"], target_modules=["q_proj"])
    refused(base, adapter, "k_proj.weight has tensors, but is no target")
    adapter = hf.save_adapter(tmp_path / "c", base, modules=["q_proj"], target_modules=["q_proj", "w_pack"])
    refused(base, adapter, "'w_pack' names nothing")
    adapter = hf.save_adapter(tmp_path / "d", base, modules=["q_proj"], layers=[0], layers_to_transform=[0, 1])
    refused(base, adapter, "layers.1.self_attn.q_proj.weight is a target, but has no tensors")


def test_an_adapter_of_a_tied_unembedding_is_refused(tmp_path):
    base = hf.save(tmp_path / "base", tie_word_embeddings=True)
    adapter = hf.save_adapter(tmp_path / "adapter", base)

    def add(tensors):
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 16)
        tensors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(43, 2)

    refused(base, change(adapter, add), "lm_head.weight")


def test_a_pickled_adapter_is_refused(base, tmp_path):
    adapter = hf.save_adapter(tmp_path, base)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(base, adapter, "adapter_model.safetensors", "pickled", "run code")


def test_a_truncated_adapter_is_refused(base, tmp_path):
    adapter = hf.save_adapter(tmp_path, base)
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    refused(base, adapter, "adapter_model.safetensors", "truncated")


def test_settings_that_are_not_json_are_refused(base, tmp_path):
    adapter = hf.save_adapter(tmp_path, base)
    (adapter / "adapter_config.json").write_text("{r: 2")
    refused(base, adapter, "adapter_config.json", "JSON")


def test_all_faults_are_named_at_once(base, tmp_path):
    adapter = hf.resettle(hf.save_adapter(tmp_path, base), use_dora=True, bias="all", r=5)
    change(adapter, lambda t: (t.pop(f"{STEM}.lora_B.weight"), t.update(extra=torch.zeros(1))))
    refused(base, adapter, "use_dora", "bias", "r = 5", "other half", "extra")


def test_infinite_adapters_are_refused(base, tmp_path):
    adapter = change(
        hf.save_adapter(tmp_path, base),
        lambda t: t.update({f"{STEM}.lora_A.weight": torch.full((2, 16), float("inf"))}),
    )
    refused(base, adapter, "self_attn.q_proj.weight", "NaN or infinity")


def test_an_adapter_that_changes_nothing_is_no_pair(base, tmp_path):
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: [t.update({n: torch.zeros_like(t[n])}) for n in t])
    with pytest.raises(ValueError, match="identical"):
        checkpoints.load_pair(base, adapter)


def test_an_adapter_is_no_base(base, tmp_path):
    with pytest.raises(ValueError, match="only special can be one"):
        checkpoints.load_pair(hf.save_adapter(tmp_path, base), base)
