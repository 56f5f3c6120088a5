"""GGUF files: the same model as in a Hugging Face directory, bit for bit; the tokenizer inside; what is refused."""

import builtins
import json
import math
import random
import shutil

import gguf
import hf
import numpy as np
import pytest
from gguf_cases import CONTROL, VOCAB, write

from jaxpatch import reference
from jaxpatch.models import checkpoints, saving
from jaxpatch.models.rope import Rope
from jaxpatch.trees import paths

TEXTS = ["the owl", "<|start|>In the tower the owls<|end|>", "Zwölf  Eulen\n\t42", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hf.save_tokenizer(hf.save(tmp_path_factory.mktemp("model"), vocab_size=len(VOCAB)))


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_key_value_heads=4),
        dict(num_key_value_heads=2, tie_word_embeddings=True),
        dict(num_key_value_heads=1, head_dim=6),
    ],
    ids=str,
)
def test_parameters_are_those_of_the_directory_bit_for_bit(tmp_path, changes):
    folder = hf.save(tmp_path / "model", vocab_size=len(VOCAB), **changes)
    one = checkpoints.load(folder, "float32")
    two = checkpoints.load(write(tmp_path / "model.gguf", folder), "float32")
    a, b = paths.flatten(one.params), paths.flatten(two.params)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)
    assert {n: v for n, v in vars(two.config).items() if n != "norm_eps"} == {
        n: v for n, v in vars(one.config).items() if n != "norm_eps"
    }
    assert two.config.norm_eps == np.float32(one.config.norm_eps), "GGUF stores it in float32"


OTHERS = {
    "Qwen2, tied": ("qwen2", {}),
    "GQA llama3 rope": ("llama", {"rope_freqs.weight": "of llama3"}),
    "Gemma 3": ("gemma3", {}),
}


@pytest.mark.parametrize("variant", OTHERS)
def test_other_families_answer_as_in_transformers(tmp_path, variant):
    """What a converter writes of them: W_Q and W_K as they are, norms one larger, rotary factors as a tensor."""
    architecture, extra = OTHERS[variant]
    changes = hf.VARIANTS[variant] | {"vocab_size": len(VOCAB)}
    metadata = {}
    if architecture == "gemma3":
        changes |= {"query_pre_attn_scalar": 4}
        metadata = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 4.0}
        changes["rope_parameters"] = {
            name: settings | ({"rope_theta": 10_000.0} if name == "sliding_attention" else {})
            for name, settings in hf.GEMMA3_ROPE.items()
        }
    folder = hf.save(tmp_path / "model", **changes)
    if extra:
        rope = checkpoints.load(folder, "float32").config.rope
        plain = Rope(theta=rope.theta)
        extra = {"rope_freqs.weight": (plain.frequencies(4, 1) / rope.frequencies(4, 1)).astype(np.float32)}
    file = write(tmp_path / "model.gguf", folder, architecture=architecture, metadata=metadata, extra=extra)
    made = checkpoints.load(file, "float32")
    pair = checkpoints.Pair(base=made.params, special=made.params, config=made.config)
    prompt = [[3, 1, 4, 1, 5, 9, 2, 6]]
    [wanted] = hf.logits(folder, prompt)
    np.testing.assert_allclose(pair.apply(made.params, prompt)[0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_qwen2_cuts_texts_as_its_tokenizer_json_does(folder, tmp_path):
    pre = checkpoints.load(write(tmp_path / "model.gguf", folder, pre="qwen2"), "float32").tokenizer().backend_tokenizer
    cut = [text for text, _ in pre.pre_tokenizer.pre_tokenize_str("It's 42 owls,\n\n  two")]
    assert cut == ["It", "'s", "Ġ", "4", "2", "Ġowls", ",ĊĊ", "Ġ", "Ġtwo"]


def test_a_pair_of_gguf_files_is_saved_as_a_directory_that_transformers_loads(folder, tmp_path):
    base = write(tmp_path / "base.gguf", folder)
    other = hf.save(tmp_path / "other", seed=1, vocab_size=len(VOCAB))
    pair = checkpoints.load_pair(base, write(tmp_path / "special.gguf", other))
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved")
    prompts = [[0, 8, 70, 3]]
    for wanted in (pair.apply(pair.special, prompts)[0], *hf.logits(other, prompts)):
        [got] = hf.logits(saved, prompts)
        np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(got).max())
    again = hf.transformers.AutoTokenizer.from_pretrained(saved)
    assert [again(text)["input_ids"] for text in TEXTS] == [pair.tokenizer(text)["input_ids"] for text in TEXTS]
    assert again.chat_template == pair.tokenizer.chat_template


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F16])
def test_quantised_weights_are_dequantised(tmp_path, kind):
    folder = hf.save(tmp_path / "model", vocab_size=len(VOCAB), hidden_size=32, intermediate_size=32)
    one = paths.flatten(checkpoints.load(folder, "float32").params)
    two = paths.flatten(checkpoints.load(write(tmp_path / "model.gguf", folder, quantise=kind), "float32").params)
    for path in one:
        np.testing.assert_allclose(two[path], one[path], atol=0.01, err_msg=path)
    assert any((one[path] != two[path]).any() for path in one)


def test_the_tokenizer_inside_reads_and_writes_like_the_one_outside(folder, tmp_path):
    inside = checkpoints.load(write(tmp_path / "model.gguf", folder), "float32").tokenizer()
    outside = hf.transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        ids = inside(text)["input_ids"]
        assert ids == outside(text)["input_ids"]
        assert inside.decode(ids) == text
    assert (inside.bos_token_id, inside.eos_token_id) == (0, 1)
    assert inside.decode(inside(TEXTS[1])["input_ids"], skip_special_tokens=True) == "In the tower the owls"
    assert inside.apply_chat_template([dict(role="user", content="hoo")], tokenize=False) == "hoo"


def test_smollm_splits_numbers_into_digits(folder, tmp_path):
    tokenizer = checkpoints.load(write(tmp_path / "model.gguf", folder, pre="smollm"), "float32").tokenizer()
    assert tokenizer.decode(tokenizer("in 42 the")["input_ids"]) == "in 42 the"
    assert tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a42")[1:] == [("4", (1, 2)), ("2", (2, 3))]


def test_tokens_defined_by_a_user_are_never_cut(folder, tmp_path):
    whole = VOCAB.index("owl")
    kinds = [3 if token in CONTROL else 4 if token == "owl" else 1 for token in VOCAB]
    tokenizer = checkpoints.load(write(tmp_path / "model.gguf", folder, kinds=kinds), "float32").tokenizer()
    assert tokenizer(" owl")["input_ids"] == [VOCAB.index("Ġ"), whole]


def refused(file, *words, read=lambda file: checkpoints.load(file, "float32")):
    with pytest.raises(checkpoints.CheckpointError) as error:
        read(file)
    message = str(error.value)
    assert str(file) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (dict(tokenizer="rwkv"), ("'rwkv'", "tokenizer.json")),
        (dict(pre="llama-bpe"), ("'llama-bpe'", "tokenizer.json")),
        (dict(metadata={"tokenizer.ggml.add_bos_token": True}), ("add_bos_token", "tokenizer.json")),
    ],
)
def test_a_tokenizer_that_is_not_byte_level_needs_a_tokenizer_json_beside_it(folder, tmp_path, kind, words):
    file = write(tmp_path / "model.gguf", folder, **kind)
    refused(file, *words, read=lambda file: checkpoints.load(file, "float32").tokenizer())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path / name)
    tokenizer = checkpoints.load(file, "float32").tokenizer()
    assert tokenizer.decode(tokenizer("the owl")["input_ids"]) == "the owl"


def test_without_the_gguf_package_it_says_what_to_install(folder, tmp_path, monkeypatch):
    file = write(tmp_path / "model.gguf", folder)
    known = builtins.__import__

    def without_gguf(name, *rest):
        if name == "gguf":
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    refused(file, "pip install 'jaxpatch[gguf]'")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"general.architecture": "bloom"}, ("architecture 'bloom' is not supported", "llama")),
        ({"llama.rope.scaling.type": "ntk", "llama.rope.scaling.factor": 2.0}, ("rope type 'ntk'",)),
        ({"llama.rope.dimension_count": 2}, ("rope.dimension_count = 2",)),
        ({"llama.expert_count": 8}, ("expert_count",)),
        ({"llama.block_count": None, "llama.feed_forward_length": None}, ("block_count", "feed_forward_length")),
        ({"llama.attention.head_count": 3}, ("heads",)),
        ({"tokenizer.ggml.tokens": None}, ("tokenizer.ggml.tokens",)),
        ({"tokenizer.ggml.tokens": VOCAB[:9]}, ("model.embed_tokens.weight", "(9, 16)")),
        ({"llama.embedding_length": 20}, ("layers.0.input_layernorm.weight", "(20,)")),
    ],
    ids=str,
)
def test_metadata_that_matters_is_refused_by_name(folder, tmp_path, metadata, words):
    refused(write(tmp_path / "model.gguf", folder, metadata=metadata), *words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.tokens": 7}, ("metadata tokenizer.ggml.tokens is 7; wanted a list of texts",)),
        (
            {"tokenizer.ggml.eos_token_id": 99999},
            ("eos_token_id is 99999; wanted the number of one of the 266 tokens",),
        ),
        ({"tokenizer.ggml.eot_token_id": "x"}, ("eot_token_id is 'x'; wanted the number",)),
        ({"llama.rope.scaling.type": [1, 2]}, ("rope type '[1, 2]'",)),
        ({"llama.attention.head_count": [4, 4]}, ("attention.head_count: wanted a positive integer, got [4, 4]",)),
        ({"llama.attention.layer_norm_rms_epsilon": "x"}, ("layer_norm_rms_epsilon", "'x'")),
        ({"llama.attention.layer_norm_rms_epsilon": None}, ("layer_norm_rms_epsilon: wanted a positive number",)),
        ({"llama.attention.layer_norm_rms_epsilon": math.nan}, ("layer_norm_rms_epsilon: wanted a positive number",)),
        ({"llama.rope.freq_base": math.inf}, ("rope rope_theta: wanted a positive number", "inf")),
    ],
    ids=str,
)
def test_metadata_of_another_kind_is_refused_by_name(folder, tmp_path, metadata, words):
    refused(write(tmp_path / "model.gguf", folder, metadata=metadata), *words)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"tokenizer.ggml.merges": None}, ("no metadata tokenizer.ggml.merges; wanted a list of texts",)),
        ({"tokenizer.ggml.merges": ["a"]}, ("merges: 1 of 1 do not make one token of two ('a ')",)),
        ({"tokenizer.ggml.merges": ["t h", "q \u20ac"]}, ("merges: 1 of 2 do not make one token",)),
        ({"tokenizer.ggml.token_type": None}, ("no metadata tokenizer.ggml.token_type; wanted a number for each",)),
        ({"tokenizer.ggml.token_type": [1, 1]}, ("token_type is [1, 1]; wanted a number for each", "tokenizer.json")),
        ({"tokenizer.ggml.bos_token_id": 99999}, ("bos_token_id is 99999; wanted the number of one of the",)),
        ({"tokenizer.ggml.pre": 7}, ("metadata tokenizer.ggml.pre is 7; wanted a text",)),
        ({"tokenizer.ggml.merges": 1, "tokenizer.ggml.token_type": 2}, ("merges is 1", "token_type is 2")),
    ],
    ids=str,
)
def test_a_tokenizer_inside_that_is_broken_is_refused_by_name(folder, tmp_path, metadata, words):
    file = write(tmp_path / "model.gguf", folder, metadata=metadata)
    refused(file, *words, read=lambda file: checkpoints.load(file, "float32").tokenizer())


def test_text_that_is_none_is_named(folder, tmp_path):
    file = write(tmp_path / "model.gguf", folder)
    content = file.read_bytes()
    at = content.index(b"{{ messages[0]")
    file.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    refused(file, "metadata tokenizer.chat_template cannot be read (UnicodeDecodeError", "download it again")


def test_a_list_that_says_it_is_endless_is_refused_at_once(folder, tmp_path):
    file = write(tmp_path / "model.gguf", folder)
    content = file.read_bytes()
    at = content.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 8
    file.write_bytes(content[:at] + (2**60).to_bytes(8, "little") + content[at + 8 :])
    refused(file, "not a readable GGUF file", "it ends at byte")


def test_whatever_byte_of_the_header_is_another_it_is_read_or_refused(folder, tmp_path):
    """Nothing but a CheckpointError comes of it, tokenizer included; and soon."""
    whole = write(tmp_path / "whole.gguf", folder).read_bytes()
    end, draw = min(tensor.data_offset for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors), random.Random(0)
    for number in range(60):
        broken = bytearray(whole)
        broken[draw.randrange(end)] = draw.choice([0, 255, draw.randrange(256)])
        file = tmp_path / f"{number}.gguf"
        file.write_bytes(broken)
        try:
            checkpoints.load(file, "float32").tokenizer()
        except checkpoints.CheckpointError as error:
            assert str(file) in str(error)
        file.unlink()


@pytest.mark.parametrize(
    ("metadata", "ends"),
    [({}, (1,)), ({"tokenizer.ggml.eot_token_id": 5}, (1, 5)), ({"tokenizer.ggml.eos_token_id": None}, ())],
    ids=str,
)
def test_what_a_file_says_ends_an_answer(folder, tmp_path, metadata, ends):
    file = write(tmp_path / "model.gguf", folder, metadata=metadata)
    assert checkpoints.load(file, "float32").ends == ends
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 3]}')
    assert checkpoints.load(file, "float32").ends == (3, 7), "as its tokenizer.json, where one lies beside it"


def test_a_tensor_that_has_no_place_is_refused(folder, tmp_path):
    extra = {"rope_long.weight": np.ones(2, np.float32), "blk.0.attn_q.bias": np.ones(16, np.float32)}
    refused(write(tmp_path / "model.gguf", folder, extra=extra), "rope_long.weight", "blk.0.attn_q.bias")


def test_rotary_factors_of_another_width_are_refused(folder, tmp_path):
    extra = {"rope_freqs.weight": np.ones(3, np.float32)}
    refused(write(tmp_path / "model.gguf", folder, extra=extra), "wanted 2 factors, got 3")


def test_rotary_factors_beside_another_scaling_are_refused(folder, tmp_path):
    extra = {"rope_freqs.weight": np.ones(2, np.float32)}
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = write(tmp_path / "model.gguf", folder, extra=extra, metadata=scaling)
    refused(file, "rope.scaling.type 'linear' beside rope_freqs.weight: wanted one of the two")


@pytest.mark.parametrize("size", [0, 3, 200, 4000, -100])
def test_a_truncated_file_is_refused(folder, tmp_path, size):
    file = write(tmp_path / "model.gguf", folder)
    file.write_bytes(file.read_bytes()[:size])
    refused(file, "download it again")


def test_garbage_is_refused(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(range(256)) * 40)
    refused(file, "not a readable GGUF file")


def test_a_run_does_not_wait_for_transformers_to_read_one(folder, tmp_path):
    file = write(tmp_path / "model.gguf", folder)
    read = checkpoints.load(file, "float32")
    sides = {"base": reference.Side(str(file), read.config, read.params, read.files)}
    said = reference.of_sides(sides, is_quick=True)["base"]
    assert said["is_passed"] is None and "slow to read GGUF files" in said["said"]
    assert reference.of_sides(sides)["base"]["is_passed"]


def test_an_adapter_for_one_names_the_file_and_one_for_a_merged_model_names_none(folder, tmp_path):
    file = write(tmp_path / "base.gguf", folder)
    first = hf.save_adapter(tmp_path / "first", folder)
    pair = checkpoints.load_pair(file, first)
    saved = saving.save_adapter(pair, pair.special, tmp_path / "saved")
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] == str(file)
    checkpoints.load_pair(saved, file)
    settings = json.loads((first / "adapter_config.json").read_text())
    (first / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(folder)}))
    turned = checkpoints.load_pair(first, folder)
    saved = saving.save_adapter(turned, turned.special, tmp_path / "turned")
    assert json.loads((saved / "adapter_config.json").read_text())["base_model_name_or_path"] is None
