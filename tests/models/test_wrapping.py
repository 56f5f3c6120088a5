"""Gemma 3 with its vision tower: the text model is read out of it, and nothing else is passed over without a word."""

import json
import shutil

import hf
import numpy as np
import peft
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

import jaxpatch as jp
from jaxpatch.models import checkpoints, saving
from jaxpatch.models.families import FAMILIES, wrapping
from jaxpatch.trees import paths

PROMPTS = ([3, 1, 4, 1, 5], [9, 2])
FIELDS = dict(model_type="gemma3", head_dim=4, sliding_window=3)
NORM = "language_model.model.layers.1.self_attn.q_norm.weight"
SEEING = {
    "mm_tokens_per_image": 256,
    "image_token_index": 262144,
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "vision_use_head": False},
    "model_type": "gemma3",
    "architectures": ["Gemma3ForConditionalGeneration"],
}
OF_4B = dict(
    hidden_size=2560,
    intermediate_size=10240,
    model_type="gemma3_text",
    num_hidden_layers=34,
    rope_scaling={"factor": 8.0, "rope_type": "linear"},
    sliding_window=1024,
)
"""What a config.json of 4B says of its text model: sizes that are transformers' defaults are not there."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two that see, and nobody changes these."""
    home = tmp_path_factory.mktemp("pair")
    return hf.save(home / "base", seed=0, **FIELDS), hf.save(home / "special", seed=1, **FIELDS)


@pytest.fixture
def special(folders, tmp_path):
    """A copy to break."""
    return shutil.copytree(folders[1], tmp_path / "special")


def raw_of(folder):
    return json.loads((folder / "config.json").read_text())


def renamed(folder, **starts):
    """The same tensors under other names: ``{old start: new start}``."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for old, new in starts["starts"].items():
        tensors = {new + n.removeprefix(old) if n.startswith(old) else n: tensor for n, tensor in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def assert_same(one, two):
    assert paths.flatten(one.params).keys() == paths.flatten(two.params).keys()
    for path, leaf in paths.flatten(one.params).items():
        np.testing.assert_array_equal(leaf, paths.flatten(two.params)[path])


def refused(folder, *words):
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(folder, "float32")
    message = str(caught.value)
    assert all(word in message for word in words), message
    return message


# ---- its config ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [{}, OF_4B], ids=["nothing", "4B"])
def test_what_a_text_config_leaves_out_has_transformers_defaults(text):
    """Of a config.json as Google wrote it, and of what transformers makes of that."""
    short = SEEING | {"text_config": text}
    filled_in = transformers.AutoConfig.for_model(**short).to_dict() | {"dtype": "bfloat16"}
    config, raw = wrapping.read_config(short)
    assert config == wrapping.read_config(filled_in)[0] == FAMILIES["gemma3_text"].read_config(raw)
    assert (config.vocab, config.heads, config.tied) == (262_208, 8, True)
    by_itself = transformers.AutoConfig.for_model(**raw).to_dict()
    assert FAMILIES["gemma3_text"].read_config(by_itself) == config


def test_every_field_is_read_refused_or_changes_nothing_in_transformers(folders):
    raw, model = raw_of(folders[0]), hf.load(folders[0])
    ours, [wanted] = wrapping.read_config(raw)[0], hf.logits(model, PROMPTS[:1])
    ignored = []
    for field, value in raw.items():
        others = [not value] if isinstance(value, bool) else [value + 1] if isinstance(value, int) else []
        for other in others:
            try:
                same = wrapping.read_config(raw | {field: other})[0] == ours
            except ValueError:
                continue
            if not same:
                continue
            ignored.append(field)
            try:
                changed = transformers.AutoConfig.for_model(**raw | {field: other})
            except StrictDataclassError:
                continue
            again = transformers.AutoModelForCausalLM.from_config(changed, attn_implementation="eager").eval()
            again.load_state_dict(model.state_dict())
            np.testing.assert_array_equal(hf.logits(again, PROMPTS[:1])[0], wanted, err_msg=field)
    assert {"image_token_index", "mm_tokens_per_image"} <= set(ignored) and "tie_word_embeddings" not in ignored


def test_a_cap_of_logits_is_refused_because_transformers_passes_over_it_there(tmp_path):
    capped = hf.save(tmp_path / "capped", **FIELDS, final_logit_softcapping=0.01)
    [logits] = hf.logits(capped, PROMPTS[:1])
    assert np.abs(logits).max() > 0.01
    refused(capped, "text_config: final_logit_softcapping = 0.01 is not supported (transformers does not use it inside")
    assert hf.load(hf.retell(capped, text_config=raw_of(capped)["text_config"] | {"final_logit_softcapping": None}))
    checkpoints.load(capped, "float32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(text_config=[1]), ["text_config: wanted an object, got [1]"]),
        (
            dict(text_config={"model_type": "llama"}),
            ["model_type 'llama' is not supported inside of gemma3 (gemma3_text"],
        ),
        (dict(tie_word_embeddings="yes"), ["tie_word_embeddings: wanted true or false, got 'yes'"]),
        (dict(sliding_window=9), ["sliding_window = 9 is not supported (unknown field)"]),
        (dict(quantization_config={"bits": 4}), ["quantization_config"]),
        (dict(use_bidirectional_attention=True), ["use_bidirectional_attention = True"]),
        (
            dict(text_config={"hidden_activation": "tanh", "vocab_size": "1"}, audio_config={"a": 1}),
            ["audio_config = {'a': 1}", "text_config: hidden_activation = 'tanh'", "text_config: vocab_size: wanted"],
        ),
        (dict(model_type="gemma3n"), ["model_type 'gemma3n' is not supported. did you mean 'gemma3'? Known: llama, "]),
    ],
)
def test_a_config_that_is_not_understood_is_refused_with_all_its_faults(special, changes, words):
    refused(hf.retell(special, **changes), *words)


# ---- its tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_text_model_is_the_same_by_itself_and_under_every_name(tmp_path, is_tied):
    old = hf.save(tmp_path / "old", **FIELDS, tie_word_embeddings=is_tied)
    starts = {"language_model.model.": "model.language_model.", "language_model.lm_head.": "lm_head."}
    new = renamed(shutil.copytree(old, tmp_path / "new"), starts=starts)
    half = renamed(shutil.copytree(old, tmp_path / "half"), starts={"language_model.lm_head.": "lm_head."})
    alone = renamed(shutil.copytree(old, tmp_path / "alone"), starts={"language_model.": "", "x": "x"})
    others = {name: None for name in load_file(alone / "model.safetensors") if name.startswith(("vision", "multi"))}
    hf.retensor(alone, others)
    (alone / "config.json").write_text(json.dumps(wrapping.read_config(raw_of(old))[1]))
    wanted = checkpoints.load(alone, "float32")
    assert set(wanted.left_out) == set() and wanted.config.tied == is_tied
    for folder in (old, new, half):
        made = checkpoints.load(folder, "float32")
        assert made.config == wanted.config and set(made.left_out) == set(others)
        assert_same(made, wanted)
    assert isinstance(hf.load(alone), transformers.Gemma3ForCausalLM)
    for ours, theirs in zip(hf.logits(old, PROMPTS), hf.logits(alone, PROMPTS), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_tower_may_be_called_by_its_module_or_not_be_there(folders, special):
    names = [name for name in load_file(special / "model.safetensors") if not name.startswith("language_model.")]
    assert set(checkpoints.load(special, "float32").left_out) == set(names)
    starts = {"vision_tower.": "model.vision_tower.", "multi_modal_": "model.multi_modal_"}
    renamed(special, starts=starts)
    assert set(checkpoints.load(special, "float32").left_out) == {f"model.{name}" for name in names}
    hf.retensor(special, {f"model.{name}": None for name in names})
    assert checkpoints.load(special, "float32").left_out == ()


def test_whatever_else_is_there_or_is_not_there_is_refused_by_the_name_it_has(special):
    both = {"model.language_model.norm.weight": torch.ones(16), "audio_tower.weight": torch.ones(2)}
    hf.retensor(special, both | {"language_model.head.bias": torch.ones(2), NORM: None})
    refused(
        special,
        *(f"unexpected tensor {name}" for name in (*both, "language_model.head.bias")),
        f"missing tensor {NORM}",
    )


def test_a_text_model_by_itself_has_no_tower(tmp_path):
    alone = hf.save(tmp_path, **FIELDS | {"model_type": "gemma3_text"})
    hf.retensor(alone, {"vision_tower.post_layernorm.weight": torch.ones(8)})
    refused(alone, "unexpected tensor vision_tower.post_layernorm.weight")


def test_what_is_not_finite_is_named_as_in_the_file(special):
    refused(hf.retensor(special, {NORM: torch.full((4,), torch.nan)}), f"{NORM} holds NaN")


# ---- pairs, and out again --------------------------------------------------------------------------------------------


def test_one_that_sees_and_a_text_model_make_a_pair(folders, tmp_path):
    pair = checkpoints.load_pair(*folders)
    alone = saving.save_checkpoint(pair, pair.special, tmp_path / "alone")
    assert raw_of(alone)["architectures"] == ["Gemma3ForCausalLM"] and raw_of(alone)["model_type"] == "gemma3_text"
    assert not {"text_config", "vision_config", "mm_tokens_per_image"} & raw_of(alone).keys()
    assert isinstance(hf.load(alone), transformers.Gemma3ForCausalLM)
    hf.assert_logits(pair, pair.special, hf.logits(folders[1], PROMPTS))
    hf.assert_logits(pair, pair.special, hf.logits(alone, PROMPTS))
    mixed = checkpoints.load_pair(folders[0], alone)
    assert mixed.config == pair.config and mixed.left_out["base"] and not mixed.left_out["special"]
    for path, leaf in paths.flatten(mixed.special).items():
        np.testing.assert_array_equal(leaf, paths.flatten(pair.special)[path])
    again = checkpoints.load_pair(alone, folders[0])
    assert not again.differences and not again.left_out["base"]


def test_what_makes_two_text_models_another_architecture_does_so_inside_of_a_whole(folders, tmp_path):
    deeper = hf.save(tmp_path / "deeper", **FIELDS | {"model_type": "gemma3_text"}, num_hidden_layers=3)
    with pytest.raises(ValueError, match="layers: base has 2, special has 3"):
        checkpoints.load_pair(folders[0], deeper)


# ---- adapters --------------------------------------------------------------------------------------------------------


def trained(base, folder, **settings):
    """An adapter as PEFT writes it for a model in transformers, no matrix of it zero."""
    options = dict(r=2, lora_alpha=3, init_lora_weights=False, task_type="CAUSAL_LM") | settings
    torch.manual_seed(0)
    peft.get_peft_model(hf.load(base), peft.LoraConfig(**options)).save_pretrained(folder)
    return folder


def assert_is_peft(base, adapter, pair, params):
    model = peft.PeftModel.from_pretrained(hf.load(base), adapter).merge_and_unload()
    hf.assert_logits(pair, params, hf.logits(model, PROMPTS))


ADAPTERS = {
    "all that are called so": dict(target_modules=["q_proj", "v_proj", "down_proj", "fc1", "out_proj"]),
    "a pattern": dict(target_modules=r".*language_model.*\.(q_proj|down_proj)"),
    "a rank by its name in the whole": dict(
        target_modules=["k_proj", "up_proj"],
        exclude_modules=r".*vision_tower.*",
        rank_pattern={r"model\.language_model\.layers\.1\.mlp\.up_proj": 3},
        alpha_pattern={r"language_model\.layers\.0\.self_attn\.k_proj": 7},
    ),
    "one module": dict(target_modules=["model.language_model.layers.1.self_attn.q_proj"]),
    "tables": dict(target_modules=["o_proj"], modules_to_save=["embed_tokens", "lm_head", "multi_modal_projector"]),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_of_the_whole_is_merged_into_its_text_model(folders, tmp_path, name):
    base = hf.save(tmp_path / "base", **FIELDS, tie_word_embeddings=name != "tables")
    adapter = trained(base, tmp_path / "adapter", **ADAPTERS[name])
    pair = checkpoints.load_pair(base, adapter)
    assert_is_peft(base, adapter, pair, pair.special)
    is_seeing = name in ("all that are called so", "tables")
    assert (len(pair.left_out["special"]) > len(pair.left_out["base"])) == is_seeing
    alone = saving.save_checkpoint(pair, pair.base, tmp_path / "alone")
    for path, leaf in paths.flatten(checkpoints.load_pair(alone, adapter).special).items():
        np.testing.assert_array_equal(leaf, paths.flatten(pair.special)[path])


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_may_have_the_older_names(folders, tmp_path):
    adapter = trained(folders[0], tmp_path / "adapter", target_modules=["q_proj", "gate_proj"])
    wanted = checkpoints.load_pair(folders[0], adapter).special
    file = adapter / "adapter_model.safetensors"
    old = {n.replace(".model.language_model.", ".language_model.model."): t for n, t in load_file(file).items()}
    save_file(old, file)
    for path, leaf in paths.flatten(checkpoints.load_pair(folders[0], adapter).special).items():
        np.testing.assert_array_equal(leaf, paths.flatten(wanted)[path])


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_what_an_adapter_lacks_or_has_too_much_is_named_as_in_the_whole(folders, tmp_path):
    adapter = trained(folders[0], tmp_path / "adapter", target_modules=["q_proj"])
    file, stem = adapter / "adapter_model.safetensors", "model.language_model.layers.0.self_attn.q_proj"
    tensors = load_file(file) | {"base_model.model.model.audio_tower.q_proj.lora_A.weight": torch.ones(2, 4)}
    del tensors[f"base_model.model.{stem}.lora_A.weight"]
    save_file(tensors, file)
    hf.resettle(adapter, target_modules=["q_proj", "fc2"])
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load_pair(folders[0], adapter)
    for words in (f"{stem}.weight has ", "model.audio_tower.q_proj.weight has ", "'fc2' names nothing"):
        assert words in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_a_saved_adapter_fits_the_model_that_it_names(folders, tmp_path):
    adapter = trained(folders[0], tmp_path / "adapter", target_modules=r".*language_model.*\.(q_proj|down_proj)")
    pair = checkpoints.load_pair(folders[0], adapter)
    patched = jp.patch(pair.base, pair.special, jp.gates(pair, {"mlp": [(0,)]}))
    saved = saving.save_adapter(pair, patched, tmp_path / "saved")
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folders[0])
    assert_is_peft(folders[0], saved, pair, patched)
    hf.assert_logits(pair, checkpoints.load_pair(folders[0], saved).special, [*pair.apply(patched, hf.padded(PROMPTS))])
    alone = saving.save_checkpoint(pair, pair.base, tmp_path / "alone")
    of_text = saving.save_adapter(checkpoints.load_pair(alone, adapter), patched, tmp_path / "of_text")
    assert_is_peft(alone, of_text, pair, patched)
