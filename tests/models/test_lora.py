"""PEFT adapters, merged: against torch by hand; and everything that cannot be merged is refused by name."""

import json
import math
import shutil

import hf
import huggingface_hub
import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

import jaxpatch as jp
from jaxpatch.models import checkpoints, outlines, saving
from jaxpatch.models.differences import Choices
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


def assert_is_peft(base, adapter, pair):
    """Special answers as PEFT does with the adapter beside its base."""
    hf.assert_logits(pair, pair.special, hf.logits(peft.PeftModel.from_pretrained(hf.load(base), adapter), PROMPTS))


def train(folder, base, rows=None, **options):
    """An adapter that PEFT itself makes, every number of it drawn anew. rows: of a vocabulary that grows first.

    Returns: the adapter, and the model that runs with it.
    """
    model = hf.load(base)
    if rows is not None:
        model.resize_token_embeddings(rows)
    torch.manual_seed(0)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder, model.eval()


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        (dict(rank=2, lora_alpha=3), 3 / 2),
        (dict(rank=4, lora_alpha=8, modules=ALL), 8 / 4),
        (dict(rank=3, lora_alpha=6.5, use_rslora=True, modules=ALL), 6.5 / math.sqrt(3)),
        (dict(rank=1, lora_alpha=2, modules=["v_proj"], layers=[1], layers_to_transform=[1]), 2.0),
        (dict(rank=1, lora_alpha=2, modules=["v_proj"], layers=[0], layers_to_transform=0), 2.0),
        (dict(modules=["lm_head", "up_proj"]), 3 / 2),
        (dict(target_modules="all-linear", modules=ALL, init_lora_weights="gaussian"), 3 / 2),
        (dict(modules=["k_proj"], target_modules=["self_attn.k_proj"]), 3 / 2),
        (dict(modules=["k_proj"], layers=[1], target_modules=["model.layers.1.self_attn.k_proj"]), 3 / 2),
        (dict(modules=["k_proj"], target_modules=["k_proj", "lm_head"], exclude_modules=["lm_head"]), 3 / 2),
    ],
    ids=lambda value: str(value)[:60],
)
def test_parameters_are_those_of_the_sum_by_hand(base, tmp_path, options, scale):
    adapter = hf.save_adapter(tmp_path / "adapter", base, **options)
    by_hand = merged_by_hand(base, adapter, tmp_path / "merged", scale)
    pair, wanted = checkpoints.load_pair(base, adapter), checkpoints.load(by_hand, "float32")
    for path, leaf in paths.flatten(wanted.params).items():
        np.testing.assert_allclose(paths.flatten(pair.special)[path], leaf, atol=1e-6, err_msg=path)


LINEAR = list(ALL)
BY_PEFT = {
    "patterns": (
        dict(target_modules=LINEAR, rank_pattern={"q_proj": 5, "layers.1.*up_proj": 1}, alpha_pattern={"v_proj": 9}),
        {},
    ),
    "patterns, rslora": (dict(target_modules=["q_proj"], rank_pattern={r"layers\.0.*": 4}, use_rslora=True), {}),
    "dora": (dict(target_modules=LINEAR, use_dora=True), {}),
    "embeddings": (dict(target_modules=["embed_tokens", "q_proj"]), {}),
    "saved whole": (
        dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens", "input_layernorm"]),
        {},
    ),
    "saved by the end of a name": (dict(target_modules=["q_proj"], modules_to_save=["norm"]), {}),
    "saved with all within": (dict(target_modules=["q_proj"], modules_to_save=["mlp"]), {}),
    "biases": (dict(target_modules=["q_proj", "o_proj"], bias="all"), {}),
    "biases of targets": (dict(target_modules=["q_proj"], bias="lora_only"), {}),
    "fused": (dict(target_modules=["qkv_proj", "gate_up_proj"]), dict(model_type="phi3", attention_bias=...)),
    "fused, head by head": (dict(target_modules=["query_key_value", "dense"], bias="all"), dict(model_type="gpt_neox")),
    "unembedding of another name": (
        dict(target_modules=["query_key_value", "lm_head"], rank_pattern={"lm_head": 3}),
        dict(model_type="gpt_neox"),
    ),
    "unembedding of another name, saved whole": (
        dict(target_modules=["dense"], modules_to_save=["lm_head"]),
        dict(model_type="gpt_neox"),
    ),
    "inputs first": (
        dict(target_modules=["c_attn", "c_proj", "c_fc", "wte"], fan_in_fan_out=True),
        dict(model_type="gpt2"),
    ),
    "inputs first, dora": (
        dict(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True),
        dict(model_type="gpt2"),
    ),
    "untied by the adapter": (
        dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]),
        dict(tie_word_embeddings=True),
    ),
}


@pytest.mark.parametrize("name", BY_PEFT)
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_logits_are_those_of_peft(tmp_path, name):
    """Adapters that PEFT itself has made, against PEFT with the adapter as it made it, and as it reads it again."""
    options, changes = BY_PEFT[name]
    changes = {k: v for k, v in (dict(attention_bias=True) | changes).items() if v is not ...}
    if changes.get("model_type") in ("gpt2", "gpt_neox"):
        changes.pop("attention_bias")
    base = hf.save(tmp_path / "base", **changes)
    adapter, model = train(tmp_path / "adapter", base, **options)
    pair = checkpoints.load_pair(base, adapter)
    hf.assert_logits(pair, pair.special, hf.logits(model, PROMPTS))
    assert_is_peft(base, adapter, pair)


EMBED = ["q_proj", "embed_tokens"]
OF_TIED = {
    "embedding": (dict(target_modules=EMBED), False),
    "unembedding": (dict(target_modules=["q_proj", "lm_head"]), False),
    "both": (dict(target_modules=["embed_tokens", "lm_head"]), False),
    "embedding, by a pattern": (dict(target_modules=".*(q_proj|embed_tokens)"), False),
    "embedding saved": (dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"]), False),
    "unembedding saved": (dict(target_modules=["q_proj"], modules_to_save=["lm_head"]), False),
    "both saved": (dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"]), False),
    "one saved, one adapted": (dict(target_modules=["lm_head"], modules_to_save=["embed_tokens"]), False),
    "neither": (dict(target_modules=["q_proj"]), True),
    "embedding, tied anew": (dict(target_modules=EMBED, ensure_weight_tying=True), True),
    "unembedding, tied anew": (dict(target_modules=["q_proj", "lm_head"], ensure_weight_tying=True), True),
    "both, tied anew": (dict(target_modules=["lm_head", "embed_tokens"], ensure_weight_tying=True), True),
    "saved, tied anew": (
        dict(target_modules=["q_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True),
        True,
    ),
    "unembedding saved, tied anew": (
        dict(target_modules=["q_proj"], modules_to_save=["lm_head"], ensure_weight_tying=True),
        True,
    ),
}
"""What is done to the two tables of a tied base -> whether they are one afterwards."""


@pytest.mark.parametrize("rows", [None, 46], ids=["as many rows", "grown"])
@pytest.mark.parametrize("name", OF_TIED)
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_of_a_tied_base_is_what_peft_runs(tmp_path, name, rows):
    """The end that it does not touch stays as it was, and base's own two are taken apart for it."""
    options, is_tied = OF_TIED[name]
    base = hf.save(tmp_path / "base", tie_word_embeddings=True)
    adapter, model = train(tmp_path / "adapter", base, rows, **options)
    pair = checkpoints.load_pair(base, adapter, vocabulary=rows and "shared")
    wanted = [reference[:, :43] for reference in hf.logits(model, PROMPTS)]
    hf.assert_logits(pair, pair.special, wanted)
    hf.assert_logits(pair, pair.base, hf.logits(base, PROMPTS))
    assert pair.config.tied == is_tied
    assert ("tying" in [each.name for each in pair.differences]) == (not is_tied)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_what_peft_ties_anew_must_be_one(tmp_path):
    base = hf.save(tmp_path / "base", tie_word_embeddings=True)
    adapter, _ = train(tmp_path / "adapter", base, target_modules=EMBED, ensure_weight_tying=True)
    half = "base_model.model.lm_head.lora_A.weight"
    hf.resettle(adapter, alpha_pattern={"embed_tokens": 9})
    refused(
        base, adapter, "ensure_weight_tying", "model.embed_tokens.weight and lm_head.weight have other ranks or alphas"
    )
    hf.resettle(adapter, alpha_pattern={})
    change(adapter, lambda t: t.update({half: t[half] + 1}))
    refused(base, adapter, "model.embed_tokens.lora_embedding_B", f"{half} differ, but base ties them")
    change(adapter, lambda t: [t.pop(name) for name in list(t) if "embed_tokens" in name])
    refused(base, adapter, "lm_head.weight has tensors, and model.embed_tokens.weight has none")


@pytest.mark.parametrize(
    "changes",
    [dict(model_type="gemma"), dict(model_type="gemma3_text"), dict(model_type="gpt2"), dict(model_type="opt")],
)
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_tied_bases_of_other_families_are_what_peft_runs(tmp_path, changes):
    """Embeddings that are scaled, and adapters stored inputs first, among them."""
    base = hf.save(tmp_path / "base", tie_word_embeddings=True, **changes)
    table = "wte" if changes["model_type"] == "gpt2" else "embed_tokens"
    for number, options in enumerate(
        (dict(target_modules=[table]), dict(target_modules=[table], ensure_weight_tying=True))
    ):
        adapter, model = train(tmp_path / str(number), base, **options)
        pair = checkpoints.load_pair(base, adapter)
        hf.assert_logits(pair, pair.special, hf.logits(model, PROMPTS))


def test_an_adapter_may_be_base(base, tmp_path):
    """It is merged into the model that it names; special's adapter into the same one."""
    one, two = (
        hf.save_adapter(tmp_path / str(seed), base, seed=seed, base_model_name_or_path=str(base)) for seed in (1, 2)
    )
    pair = checkpoints.load_pair(one, two)
    for adapter, side in ((one, pair.base), (two, pair.special)):
        wanted = checkpoints.load_pair(base, adapter).special
        for path, leaf in paths.flatten(wanted).items():
            np.testing.assert_array_equal(paths.flatten(side)[path], leaf)
    backwards = checkpoints.load_pair(one, base)
    np.testing.assert_array_equal(backwards.special["embed"]["kernel"], pair.base["embed"]["kernel"])
    assert [file.parent.name for file in pair.files["base"]].count(one.name) == 2


@pytest.mark.parametrize(("said", "words"), [("no/such/model", "no/such/model"), (None, "give that model as base")])
def test_an_adapter_as_base_whose_model_is_not_there_is_refused(base, tmp_path, said, words, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    adapter = hf.save_adapter(tmp_path / "adapter", base, base_model_name_or_path=said)
    with pytest.raises(checkpoints.CheckpointError) as error:
        checkpoints.load_pair(adapter, base)
    assert words in str(error.value) and str(adapter) in str(error.value)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_of_another_model_is_refused_until_someone_says_so(base, tmp_path):
    """And named in either case, beside whatever else is wrong."""
    other = hf.save(tmp_path / "other", attention_bias=True, seed=7)
    adapter = hf.save_adapter(tmp_path / "adapter", other, base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match="are not alike") as error:
        checkpoints.load_pair(base, adapter)
    assert f"adapter: base is {base}, special was trained on {other}; " in str(error.value)
    pair = checkpoints.load_pair(base, adapter, adapter="merge")
    assert [(each.name, each.chosen) for each in pair.differences] == [("adapter", "merge")]
    assert_is_peft(base, adapter, pair)
    assert checkpoints.load_pair(other, adapter).differences == ()
    own = hf.save_adapter(tmp_path / "own", base, seed=5, base_model_name_or_path=str(base))
    with pytest.raises(ValueError, match=f"base is {base}, special was trained on {other}"):
        checkpoints.load_pair(own, adapter)
    wide = hf.save(tmp_path / "wide", hidden_size=24)
    misfit = hf.save_adapter(tmp_path / "misfit", wide, base_model_name_or_path=str(wide))
    refused(base, misfit, "has shape", f"it was trained on {wide}, and {base} is another")


def test_an_adapter_trained_on_an_adapter_is_of_another_model_than_the_one_beneath(base, tmp_path):
    first = hf.save_adapter(tmp_path / "first", base, base_model_name_or_path=str(base))
    second = hf.save_adapter(tmp_path / "second", base, seed=5, base_model_name_or_path=str(first))
    with pytest.raises(ValueError, match=f"base is {base}, special was trained on {first}"):
        checkpoints.load_pair(base, second)
    assert [each.name for each in checkpoints.load_pair(base, second, adapter="merge").differences] == ["adapter"]


def test_an_adapter_says_what_it_was_trained_on(base, tmp_path):
    """Which is kept, even where nothing more can be known of it."""
    settings = dict(base_model_name_or_path="unsloth/tiny-bnb-4bit", revision="v1.0")
    adapter = hf.save_adapter(tmp_path / "adapter", base, **settings)
    pair = checkpoints.load_pair(base, adapter)
    assert pair.trained_on == {"special": "unsloth/tiny-bnb-4bit@v1.0"} and pair.differences == ()
    assert checkpoints.load_pair(base, hf.resettle(adapter, base_model_name_or_path=None)).trained_on == {}
    here = hf.resettle(adapter, base_model_name_or_path=str(base))
    assert checkpoints.load_pair(base, here).trained_on == {"special": str(base)}, "a folder has no revisions"


def test_an_adapter_as_base_goes_into_the_revision_that_it_names(base, tmp_path, monkeypatch):
    asked = []

    def fetched(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(base)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    settings = dict(base_model_name_or_path="owner/model", revision="v1.0")
    adapter = hf.save_adapter(tmp_path / "adapter", base, **settings)
    pair = checkpoints.load_pair(adapter, base)
    assert set(asked) == {("owner/model", "v1.0")} and pair.trained_on == {"base": "owner/model@v1.0"}
    moved = hf.save_adapter(tmp_path / "moved", base, seed=5, **(settings | dict(revision="v2.0")))
    with pytest.raises(ValueError, match=r"base is owner/model@v1\.0, special was trained on owner/model@v2\.0"):
        checkpoints.load_pair(adapter, moved)


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


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "PreTrainedTokenizerFast", None])
def test_a_copy_of_bases_tokenizer_beside_an_adapter_is_bases(tmp_path, named):
    """transformers chooses a class by the model's config.json, which no adapter has."""
    base = hf.save_tokenizer(hf.save(tmp_path / "base", model_type="qwen2", vocab_size=300))
    told = json.loads((base / "tokenizer_config.json").read_text()) | {"tokenizer_class": named}
    (base / "tokenizer_config.json").write_text(json.dumps(told))
    adapter = hf.save_adapter(tmp_path / "adapter", base)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, adapter / file)
    assert checkpoints.load_pair(base, adapter).differences == ()
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert [each.name for each in checkpoints.load_pair(base, adapter, template="special").differences] == ["template"]
    assert outlines.read(base, adapter, Choices(template="special")).template == "{{ messages[0]['content'] }}"


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
        dict(bias="some"),
        dict(rank_pattern={"q_proj": 0}),
        dict(rank_pattern={"q_(proj": 4}),
        dict(alpha_pattern={"q_proj": "4"}),
        dict(alpha_pattern=["q_proj"]),
        dict(modules_to_save="lm_head"),
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
        dict(lora_alpha=10**400),
        dict(lora_alpha=float("nan")),
        dict(alpha_pattern={"q_proj": float("inf")}),
        dict(target_modules=5),
        dict(target_modules="("),
        dict(target_modules=["q_proj", 5]),
        dict(exclude_modules="(k_proj"),
        dict(modules_to_save=[""]),
        dict(use_rslora="false"),
        dict(use_dora=1),
        dict(ensure_weight_tying="no"),
        dict(layers_to_transform=True),
    ],
    ids=str,
)
def test_a_setting_that_is_not_understood_is_refused_by_name(base, tmp_path, settings):
    adapter = hf.resettle(hf.save_adapter(tmp_path, base), **settings)
    [name] = settings
    refused(base, adapter, name)


def test_of_an_adapter_for_parameters_nothing_is_said_but_that(base, tmp_path):
    """Its tensors are laid out by other rules, so that whatever else was said of them would be wrong."""
    adapter = hf.save_adapter(tmp_path, base, r=8, rank=2, target_parameters=["mlp.experts.gate_up_proj"])
    assert refused(base, adapter) == ["target_parameters = ['mlp.experts.gate_up_proj'] is not supported"]


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


def test_two_tensors_for_one_are_refused(base, tmp_path):
    twice = f"{STEM}.base_layer.lora_B.weight"
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: t.update({twice: torch.zeros(16, 2)}))
    refused(base, adapter, f"{STEM}.lora_B.weight", twice, "stand for the same")


def test_a_wrong_shape_is_refused(base, tmp_path):
    adapter = change(hf.save_adapter(tmp_path, base), lambda t: t.update({f"{STEM}.lora_A.weight": torch.zeros(2, 15)}))
    refused(base, adapter, "model.layers.0.self_attn.q_proj.weight has shape (16, 15)", "(16, 16)")


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.self_attn.q_proj.bias",
        "base_model.model.model.norm.weight",
        f"{STEM}.lora_magnitude_vector",
        f"{STEM}.lora_B.bias",
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


def test_tensors_that_peft_would_pass_over_are_refused(base, tmp_path):
    """What a pattern does not fit, and names that do not begin as PEFT's do."""
    adapter = hf.save_adapter(tmp_path / "adapter", base, modules=["q_proj", "k_proj"], target_modules=".*q_proj")
    refused(base, adapter, "k_proj.weight has tensors, but target_modules '.*q_proj' does not fit it")
    plain = hf.save_adapter(tmp_path / "plain", base)
    file = plain / "adapter_model.safetensors"
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in load_file(file).items()}, file)
    refused(base, plain, "unexpected tensor model.layers", "PEFT reads those whose names begin with base_model.model.")


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
    adapter = hf.resettle(hf.save_adapter(tmp_path, base), lora_bias=True, bias="some", r=5)
    change(adapter, lambda t: (t.pop(f"{STEM}.lora_B.weight"), t.update(extra=torch.zeros(1))))
    refused(base, adapter, "lora_bias", "bias: wanted one of", "r = 5", "other half", "extra")


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


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "phi3", "gpt2", "gpt_neox"])
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_a_difference_of_low_rank_is_saved_as_an_adapter(tmp_path, model_type):
    """It is what was merged, at each matrix's own rank, for us and for PEFT."""
    folder = hf.save(tmp_path / "base", model_type=model_type, hidden_size=32, intermediate_size=48)
    torch.manual_seed(0)
    targets = {
        "gpt2": ["c_attn", "c_fc"],
        "phi3": ["qkv_proj", "down_proj"],
        "gpt_neox": ["lm_head", "dense_h_to_4h"],
    }.get(model_type, ["q_proj", "down_proj"])
    wide = {"down_proj|c_fc|dense_h_to_4h": 3}
    model = peft.get_peft_model(
        hf.load(folder),
        peft.LoraConfig(r=2, target_modules=targets, rank_pattern=wide, fan_in_fan_out=model_type == "gpt2"),
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(tmp_path / "adapter")
    pair = checkpoints.load_pair(folder, tmp_path / "adapter")
    saved = saving.save_adapter(pair, pair.special, tmp_path / "saved")
    tensors = load_file(saved / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {2, 3}
    again = checkpoints.load_pair(folder, saved)
    for path, leaf in paths.flatten(pair.special).items():
        np.testing.assert_allclose(paths.flatten(again.special)[path], leaf, atol=1e-6, err_msg=path)
    assert_is_peft(folder, saved, again)


@pytest.mark.parametrize("vocab", [43, 32], ids=["tall", "square"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_gpt2s_unembedding_is_stored_as_any_other_familys(tmp_path, tied, vocab):
    """Of a square one nothing would be noticed: read from PEFT and written for it, with and without DoRA."""
    base = hf.save(
        tmp_path / "base",
        model_type="gpt2",
        hidden_size=32,
        vocab_size=vocab,
        tie_word_embeddings=tied,
        dtype=torch.float32,
    )
    for number, options in enumerate((dict(), dict(use_dora=True))):
        adapter, model = train(tmp_path / str(number), base, target_modules=["lm_head", "c_attn"], **options)
        pair = checkpoints.load_pair(base, adapter)
        hf.assert_logits(pair, pair.special, hf.logits(model, PROMPTS))
    if not tied:
        special = shutil.copytree(base, tmp_path / "special")
        head = load_file(base / "model.safetensors")["lm_head.weight"]
        torch.manual_seed(1)
        hf.retensor(special, {"lm_head.weight": head + 0.3 * torch.randn(vocab, 2) @ torch.randn(2, 32)})
        pair = checkpoints.load_pair(base, special)
        saved = saving.save_adapter(pair, pair.special, tmp_path / "saved")
        assert_is_peft(base, saved, pair)
        assert_is_peft(base, saved, checkpoints.load_pair(base, saved))


def changed(folder, name, rows=None):
    """A model directory in which one matrix has changed by rank 1."""
    tensor = load_file(folder / "model.safetensors")[name]
    torch.manual_seed(0)
    hf.retensor(folder, {name: tensor + 0.3 * torch.outer(*(torch.randn(size) for size in tensor.shape))})
    return folder


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_what_an_adapter_cannot_say_is_refused(tmp_path):
    """That its base runs under other settings, and that it has fewer rows."""
    base = hf.save(tmp_path / "base", hidden_size=32)
    special = changed(shutil.copytree(base, tmp_path / "special"), "model.layers.0.self_attn.q_proj.weight")
    hf.retell(special, rms_norm_eps=0.05)
    pair = checkpoints.load_pair(base, special, settings="special")
    with pytest.raises(ValueError, match=r"runs under special's settings \(it has norm_eps = 0.05\)"):
        saving.save_adapter(pair, pair.special, tmp_path / "saved")
    pair = checkpoints.load_pair(base, special, settings="base")
    assert_is_peft(base, saving.save_adapter(pair, pair.special, tmp_path / "under base's"), pair)
    rows = load_file(base / "model.safetensors")
    for cut in ("model.embed_tokens.weight", "lm_head.weight"):
        hf.retensor(special, {cut: rows[cut][:40].clone()})
    hf.retell(special, rms_norm_eps=..., vocab_size=40)
    hf.retell(special, rms_norm_eps=json.loads((base / "config.json").read_text())["rms_norm_eps"])
    pair = checkpoints.load_pair(base, special, vocabulary="shared")
    saving.save_adapter(pair, pair.special, tmp_path / "queries alone")
    pair = checkpoints.load_pair(base, changed(special, "lm_head.weight"), vocabulary="shared")
    with pytest.raises(ValueError, match=r"lm_head.weight differs, of which base has 43 rows and this pair the 40"):
        saving.save_adapter(pair, pair.special, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_is_no_adapter_is_refused_with_every_reason(tmp_path):
    folders = [hf.save(tmp_path / str(seed), seed=seed, hidden_size=32) for seed in (0, 1)]
    pair = checkpoints.load_pair(*folders)
    with pytest.raises(ValueError) as error:
        saving.save_adapter(pair, pair.special, tmp_path / "saved", most=8)
    said = str(error.value)
    assert "model.norm.weight differs, and is no matrix" in said
    assert "model.embed_tokens.weight differs, and is no matrix" in said
    assert "model.layers.1.self_attn.q_proj.weight differs by rank" in said and "more than 8" in said
    with pytest.raises(ValueError, match="nothing differs from base"):
        saving.save_adapter(pair, pair.base, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_patched_head_is_an_adapter(tmp_path):
    """Of the rank of its own width."""
    folders = [hf.save(tmp_path / str(seed), seed=seed, hidden_size=32, head_dim=4) for seed in (0, 1)]
    pair = checkpoints.load_pair(*folders)
    patched = jp.patch(pair.base, pair.special, jp.gates(pair, {"head": [(1, 2)]}))
    saved = saving.save_adapter(pair, patched, tmp_path / "saved")
    shapes = {name: tuple(t.shape) for name, t in load_file(saved / "adapter_model.safetensors").items()}
    assert {name.split(".")[6] for name in shapes} == {"q_proj", "o_proj"}
    assert all(4 in shape for shape in shapes.values())
    again = checkpoints.load_pair(folders[0], saved).special
    for path, leaf in paths.flatten(patched).items():
        np.testing.assert_allclose(paths.flatten(again)[path], leaf, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("model_type", ["olmoe", "qwen3_moe", "mixtral"])
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_of_experts_the_router_is_saved_and_they_themselves_are_refused(tmp_path, model_type):
    """PEFT reads what is saved, and could not read the rest."""
    count = "num_local_experts" if model_type == "mixtral" else "num_experts"
    base, special = (
        hf.save(tmp_path / name, model_type=model_type, num_experts_per_tok=2, **{count: 4})
        for name in ("base", "special")
    )
    tensors = load_file(base / "model.safetensors")
    router, *_ = (name for name in tensors if name.endswith((".mlp.gate.weight", ".block_sparse_moe.gate.weight")))
    expert, *_ = (name for name in tensors if ".experts.2." in name)

    def steps(name):
        torch.manual_seed(0)
        return 0.3 * torch.outer(*(torch.randn(size) for size in tensors[name].shape))

    hf.retensor(special, {router: tensors[router] + steps(router)})
    pair = checkpoints.load_pair(base, special)
    saved = saving.save_adapter(pair, pair.special, tmp_path / "saved")
    assert_is_peft(base, saved, pair)
    hf.retensor(special, {expert: tensors[expert] + steps(expert)})
    pair = checkpoints.load_pair(base, special)
    with pytest.raises(ValueError, match="PEFT has no adapter for one expert") as error:
        saving.save_adapter(pair, pair.special, tmp_path / "refused")
    assert expert in str(error.value) and router not in str(error.value)
    assert not (tmp_path / "refused").exists()
