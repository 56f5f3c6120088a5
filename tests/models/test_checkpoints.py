"""Two checkpoints in, a pair out; and every bad input refused by name, with what to do."""

import dataclasses
import json
import shutil

import hf
import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jaxpatch.models import checkpoints, saving
from jaxpatch.trees import paths

PROMPTS = ([3, 1, 4, 1, 5], [9, 2])
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and a special model; nobody changes these."""
    home = tmp_path_factory.mktemp("pair")
    return hf.save(home / "base", seed=0), hf.save(home / "special", seed=1)


@pytest.fixture(scope="module")
def pair(folders):
    return checkpoints.load_pair(*folders)


@pytest.fixture
def special(folders, tmp_path):
    """A copy of special to break."""
    return shutil.copytree(folders[1], tmp_path / "special")


def refused(base, special, *words, error=ValueError, **options):
    with pytest.raises(error) as caught:
        checkpoints.load_pair(base, special, **options)
    message = str(caught.value)
    assert all(str(word) in message for word in words), message
    return message


# ---- what can be read ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", hf.VARIANTS)
def test_both_models_answer_as_in_transformers(tmp_path, variant):
    base, special = (hf.save(tmp_path / str(seed), seed=seed, **hf.VARIANTS[variant]) for seed in (0, 1))
    pair = checkpoints.load_pair(base, special)
    hf.assert_logits(pair, pair.base, hf.logits(base, PROMPTS))
    hf.assert_logits(pair, pair.special, hf.logits(special, PROMPTS))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_type_on_disk_is_read_exactly(tmp_path, dtype):
    folder = hf.save(tmp_path, dtype=getattr(torch, dtype))
    leaves = paths.flatten(checkpoints.load(folder, "float32").params)
    tensors = load_file(folder / "model.safetensors")
    assert tensors[UP].dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(leaves["layers/mlp/up/kernel"][1], tensors[UP].float().numpy().T)
    kept = paths.flatten(checkpoints.load(folder, dtype).params)
    for path, leaf in leaves.items():
        np.testing.assert_array_equal(kept[path].astype(np.float32), leaf)
    same_type = np.asarray(kept["layers/mlp/up/kernel"][1])
    assert same_type.T.tobytes() == tensors[UP].view(torch.uint8).numpy().tobytes(), "not the same bits"


def test_shards_are_read_like_one_file(folders, tmp_path):
    sharded = hf.save(tmp_path / "sharded", seed=0, shard="3KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    one, two = (checkpoints.load(folder, "float32") for folder in (folders[0], sharded))
    for path, leaf in paths.flatten(one.params).items():
        np.testing.assert_array_equal(leaf, paths.flatten(two.params)[path])
    assert {file.suffix for file in two.files} == {".json", ".safetensors"}


def test_float64_is_float64(folders):
    with jax.enable_x64(True):
        pair = checkpoints.load_pair(*folders, dtype="float64")
        assert {leaf.dtype for leaf in jax.tree.leaves(pair.special)} == {np.dtype(np.float64)}
        hf.assert_logits(pair, pair.special, hf.logits(folders[1], PROMPTS, torch.float64), 1e-9)


def test_leaves_that_do_not_differ_are_shared(folders, special):
    shutil.copy(folders[0] / "model.safetensors", special)
    hf.retensor(special, {UP: torch.ones(20, 16)})
    pair = checkpoints.load_pair(folders[0], special)
    one, two = paths.flatten(pair.base), paths.flatten(pair.special)
    assert [path for path in one if one[path] is not two[path]] == ["layers/mlp/up/kernel"]


@pytest.mark.parametrize("tied_first", [True, False])
def test_a_tied_and_an_untied_model_make_a_pair(tmp_path, tied_first):
    base = hf.save(tmp_path / "base", seed=0, tie_word_embeddings=tied_first)
    special = hf.save(tmp_path / "special", seed=1, tie_word_embeddings=not tied_first)
    pair = checkpoints.load_pair(base, special)
    assert not pair.config.tied and "unembed" in pair.base
    hf.assert_logits(pair, pair.base, hf.logits(base, PROMPTS))
    hf.assert_logits(pair, pair.special, hf.logits(special, PROMPTS))
    for name, params, source in (("a", pair.base, base), ("b", pair.special, special)):
        saved = saving.save_checkpoint(pair, params, tmp_path / name)
        for got, wanted in zip(hf.logits(saved, PROMPTS), hf.logits(source, PROMPTS), strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_tied_model_may_store_its_unembedding_if_it_is_the_embedding(tmp_path):
    folder = hf.save(tmp_path, tie_word_embeddings=True)
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    hf.retensor(folder, {"lm_head.weight": embedding.clone()})
    assert "unembed" not in checkpoints.load(folder, "float32").params
    hf.retensor(folder, {"lm_head.weight": 2 * embedding})
    with pytest.raises(checkpoints.CheckpointError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        checkpoints.load(folder, "float32")


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_a_tied_table_may_be_stored_by_its_other_name(tmp_path, name):
    """As a writer that keeps one of two names may leave it; transformers reads it too."""
    folder = hf.save(tmp_path, model_type=name, tie_word_embeddings=True)
    wanted = hf.logits(folder, PROMPTS)
    tensors = load_file(folder / "model.safetensors")
    table = next(tensor for tensor in tensors if tensor.endswith(("embed_tokens.weight", "wte.weight")))
    hf.retensor(folder, {table: None, "lm_head.weight": tensors[table].clone()})
    for got, each in zip(hf.logits(folder, PROMPTS), wanted, strict=True):
        np.testing.assert_array_equal(got, each)
    loaded = checkpoints.load(folder, "float32")
    assert "unembed" not in loaded.params
    np.testing.assert_array_equal(loaded.params["embed"]["kernel"], tensors[table])


def test_rotary_tables_of_old_checkpoints_are_passed_over(folders, special):
    hf.retensor(special, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    checkpoints.load_pair(folders[0], special)


@pytest.mark.parametrize("tied", [False, True])
def test_of_two_vocabularies_the_shared_rows_are_kept_when_that_is_chosen(tmp_path, tied):
    short = hf.save(tmp_path / "short", tie_word_embeddings=tied)
    long = hf.save(tmp_path / "long", seed=1, vocab_size=47, tie_word_embeddings=tied)
    refused(short, long, "base has 43 rows, special has 47 rows", "--vocabulary shared")
    grown, shrunk = (checkpoints.load_pair(*sides, vocabulary="shared") for sides in ((short, long), (long, short)))
    assert grown.config == shrunk.config and grown.config.vocab == 43
    for pair in (grown, shrunk):
        [found] = pair.differences
        assert (found.name, found.chosen) == ("vocabulary", "shared")
    wanted = [logits[:, :43] for logits in hf.logits(long, PROMPTS)]
    hf.assert_logits(grown, grown.special, wanted)
    hf.assert_logits(shrunk, shrunk.base, wanted)
    saved = saving.save_checkpoint(shrunk, shrunk.base, tmp_path / "saved")
    for got, each in zip(hf.logits(saved, PROMPTS), wanted, strict=True):
        np.testing.assert_allclose(got, each, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["base", "special"])
def test_both_models_run_under_the_settings_that_were_chosen(folders, tmp_path, side):
    changes = dict(rope_parameters={"rope_type": "default", "rope_theta": 9.0}, rms_norm_eps=0.1)
    special = hf.save(tmp_path / "special", seed=1, **changes)
    refused(folders[0], special, "settings: base has rope = Rope(theta=500.0", "norm_eps = 0.1", "--settings special")
    pair = checkpoints.load_pair(folders[0], special, settings=side)
    assert pair.config.norm_eps == {"base": 1e-5, "special": 0.1}[side]
    own = {"base": folders[0], "special": special}
    hf.assert_logits(pair, getattr(pair, side), hf.logits(own[side], PROMPTS))
    saved = saving.save_checkpoint(pair, pair.special, tmp_path / "saved")
    assert checkpoints.load(saved, "float32").config == pair.config


def test_an_adapter_may_bring_a_tokenizer_of_its_own(folders, tmp_path):
    base = hf.save_tokenizer(hf.save(tmp_path / "base", vocab_size=300))
    adapter = hf.save_tokenizer(hf.save_adapter(tmp_path / "adapter", base))
    assert checkpoints.load_pair(base, adapter).differences == ()
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    refused(base, adapter, "template: base has none", "--template special")
    pair = checkpoints.load_pair(base, adapter, template="special")
    assert pair.template == "{{ messages[0]['content'] }}!" and pair.tokenizer.chat_template is None
    assert adapter / "chat_template.jinja" in pair.files["special"]


def test_a_template_may_be_a_file(folders, tmp_path):
    base = hf.save_tokenizer(hf.save(tmp_path / "base", vocab_size=300))
    special = hf.save_tokenizer(hf.save(tmp_path / "special", seed=1, vocab_size=300))
    (tmp_path / "own.jinja").write_text("Q: {{ messages[0]['content'] }} A:")
    pair = checkpoints.load_pair(base, special, template=str(tmp_path / "own.jinja"))
    assert pair.template == "Q: {{ messages[0]['content'] }} A:"
    refused(base, special, "template 'nowhere.jinja'", "no file that can be read", template="nowhere.jinja")


def test_a_tokenizer_comes_along_if_there_is_one(folders, special, pair):
    assert pair.tokenizer is None
    hf.save_tokenizer(special)
    assert checkpoints.load_pair(special, folders[0]).tokenizer("the owl")["input_ids"]


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(num_hidden_layers=3), ("layers: base has 2, special has 3",)),
        (dict(intermediate_size=24), ("neurons: base has 20, special has 24",)),
        (dict(num_key_value_heads=1), ("kv_heads: base has 2, special has 1",)),
        (dict(attention_bias=True), ("attention_bias: base has False, special has True",)),
        (dict(rms_norm_eps=1e-6), ("settings: base has norm_eps = 1e-05, special has norm_eps = 1e-06",)),
        (dict(hidden_size=24, mlp_bias=True), ("width", "mlp_bias", "head_width")),
        (
            dict(rope_parameters={"rope_type": "default", "rope_theta": 9.0}),
            ("rope = Rope(theta=500.0, share=1.0, stretch=None), special has rope = Rope(theta=9.0",),
        ),
    ],
    ids=str,
)
def test_different_architectures_are_refused(folders, tmp_path, changes, words):
    special = hf.save(tmp_path, seed=1, **changes)
    refused(folders[0], special, folders[0], special, "are not alike", *words)


def test_another_context_is_no_other_architecture(folders, tmp_path):
    pair = checkpoints.load_pair(folders[0], hf.save(tmp_path, seed=1, max_position_embeddings=500))
    assert pair.config.context == 96


def test_identical_models_are_refused(folders, tmp_path):
    refused(folders[0], folders[0], "identical", "nothing to score")
    refused(folders[0], hf.save(tmp_path, seed=0), "identical")


BAD = pytest.mark.parametrize(
    ("change", "words"),
    [
        ({UP: None}, (f"missing tensor {UP}",)),
        ({"lm_head.weight": None}, ("missing tensor lm_head.weight",)),
        ({"model.layers.1.mlp.upproj.weight": torch.ones(20, 16)}, ("unexpected tensor", f"did you mean '{UP}'?")),
        ({"model.layers.2.mlp.up_proj.weight": torch.ones(20, 16)}, ("unexpected tensor", "layers.2")),
        ({"norm.weight": torch.ones(16)}, ("unexpected tensor norm.weight",)),
        ({UP: torch.ones(16, 20)}, (UP, "(16, 20)", "asks for (20, 16)")),
        ({UP: torch.full((20, 16), torch.nan)}, (f"{UP} holds NaN or infinity",)),
        ({UP: torch.full((20, 16), -torch.inf)}, (f"{UP} holds NaN or infinity",)),
        (
            {UP: None, "model.norm.weight": torch.ones(17), "extra": torch.ones(1)},
            (f"missing tensor {UP}", "model.norm.weight has shape (17,)", "unexpected tensor extra"),
        ),
    ],
    ids=str,
)


@BAD
def test_bad_tensors_are_refused_all_at_once(folders, special, change, words):
    hf.retensor(special, change)
    refused(folders[0], special, special, *words, error=checkpoints.CheckpointError)
    refused(special, folders[0], special, *words, error=checkpoints.CheckpointError)


def test_every_tensor_that_is_not_finite_is_named(folders, special):
    hf.retensor(special, {UP: torch.full((20, 16), torch.inf), "model.norm.weight": torch.full((16,), torch.nan)})
    refused(folders[0], special, UP, "model.norm.weight")


def test_numbers_too_large_for_the_type_asked_for_are_refused(folders, special):
    hf.retensor(special, {UP: torch.full((20, 16), 1e6)})
    refused(folders[0], special, f"{UP} holds NaN or infinity as float16", dtype="float16")


def test_faults_of_both_models_are_named_together(folders, special, tmp_path):
    base = hf.retell(shutil.copytree(folders[0], tmp_path / "base"), hidden_act="tanh")
    hf.retensor(special, {UP: None})
    refused(base, special, base, "hidden_act", special, f"missing tensor {UP}")


def test_both_missing_models_are_named(tmp_path):
    refused(tmp_path / "b", tmp_path / "s", f"base {tmp_path}/b", f"special {tmp_path}/s", error=FileNotFoundError)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64])
def test_types_that_are_no_weights_are_refused(folders, special, dtype):
    hf.retensor(special, {UP: load_file(special / "model.safetensors")[UP].to(dtype)})
    refused(folders[0], special, special, UP, "is stored as", "F32")


@pytest.mark.parametrize("content", ["{", '{"a": 1}'])
def test_a_broken_tokenizer_is_refused(folders, special, tmp_path, content):
    base = hf.save_tokenizer(shutil.copytree(folders[0], tmp_path / "base"))
    (base / "tokenizer.json").write_text(content)
    refused(base, special, base, "tokenizer cannot be read")


def test_the_tokenizer_is_among_the_files_to_hash(folders, special, tmp_path):
    base = hf.save_tokenizer(shutil.copytree(folders[0], tmp_path / "base"))
    read = checkpoints.load_pair(base, special).files["base"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in read}


def test_a_long_list_of_faults_is_cut(folders, special):
    hf.retensor(special, {f"extra.{number}": torch.ones(1) for number in range(30)})
    refused(folders[0], special, "... and 10 more")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rope_parameters={"rope_type": "dynamic", "factor": 8.0}), ("rope type 'dynamic' is not supported",)),
        (dict(hidden_act="tanh", sliding_window=5), ("hidden_act = 'tanh'", "sliding_window = 5")),
        (dict(model_type="lama"), ("model_type 'lama' is not supported", "did you mean 'llama'?")),
        (dict(rope_parameters="default"), ("rope_parameters: wanted an object, got 'default'",)),
        (dict(rope_scaling=[1]), ("rope_scaling: wanted an object, got [1]",)),
        (dict(model_type=["llama"]), ("model_type ['llama'] is not supported",)),
        (dict(model_type=...), ("model_type None is not supported",)),
        (dict(hidden_size=...), ("hidden_size: wanted a positive integer, got None",)),
        (dict(num_key_value_heads=3), ("kv_heads must divide heads",)),
    ],
    ids=str,
)
def test_a_config_that_is_not_understood_is_refused(folders, special, changes, words):
    hf.retell(special, **changes)
    refused(folders[0], special, special, *words, error=checkpoints.CheckpointError)


def test_a_config_that_does_not_fit_the_tensors_is_refused(folders, special):
    hf.retell(special, tie_word_embeddings=True)
    refused(folders[0], special, "tie_word_embeddings is true, but lm_head.weight differs")
    hf.retell(special, tie_word_embeddings=False, num_hidden_layers=3)
    refused(folders[0], special, "missing tensor model.layers.2.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("content", "what"),
    [(b"{'model_type': 1", "JSON"), (b"", "JSON"), (b"\xff\xfe", "not readable as text"), (b"[1, 2]", "JSON")],
)
def test_a_broken_config_is_refused(folders, special, content, what):
    (special / "config.json").write_bytes(content)
    refused(folders[0], special, "config.json", what, error=checkpoints.CheckpointError)


@pytest.mark.parametrize("breaking", [lambda b: b[:-40], lambda b: b[:50], lambda b: b"", lambda b: b"garbage" * 99])
def test_broken_weights_are_refused(folders, special, breaking):
    file = special / "model.safetensors"
    file.write_bytes(breaking(file.read_bytes()))
    refused(folders[0], special, "model.safetensors", "bytes", "download it again", error=checkpoints.CheckpointError)


def test_a_directory_without_a_config_is_refused(folders, special):
    (special / "config.json").unlink()
    refused(folders[0], special, special, "no config.json", error=checkpoints.CheckpointError)


def test_pickles_are_refused(folders, special):
    (special / "model.safetensors").rename(special / "pytorch_model.bin")
    refused(folders[0], special, "pytorch_model.bin", "run code", "safe_serialization=True")
    (special / "pytorch_model.bin").unlink()
    refused(folders[0], special, "no weights")


@pytest.fixture
def sharded(tmp_path):
    return hf.save(tmp_path / "sharded", seed=1, shard="3KB")


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def test_a_missing_shard_is_refused(folders, sharded):
    lost = shards(sharded)[1]
    lost.unlink()
    refused(folders[0], sharded, lost.name, "missing", error=checkpoints.CheckpointError)


def test_every_broken_shard_is_named(folders, sharded):
    for file in shards(sharded)[:2]:
        file.write_bytes(b"garbage")
    refused(folders[0], sharded, *(file.name for file in shards(sharded)[:2]), error=checkpoints.CheckpointError)


def test_a_tensor_in_two_shards_is_refused(folders, sharded):
    one, two = shards(sharded)[:2]
    [name, tensor], *_ = load_file(one).items()
    save_file(load_file(two) | {name: tensor}, two)
    refused(folders[0], sharded, f"tensor {name} stands in both {one.name} and {two.name}")


def test_an_index_that_lists_too_much_is_refused(folders, sharded):
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] |= {"one.more": shards(sharded)[0].name, "two.more": shards(sharded)[0].name}
    file.write_text(json.dumps(index))
    refused(folders[0], sharded, "one.more, which no shard holds", "two.more, which no shard holds")


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}']
)
def test_a_broken_index_is_refused(folders, sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(folders[0], sharded, "model.safetensors.index.json", error=checkpoints.CheckpointError)


def test_an_unknown_type_is_refused(folders):
    refused(*folders, "'floaty32'", "did you mean 'float32'?", dtype="floaty32")


def test_float64_without_x64_is_refused(folders):
    refused(*folders, "jax_enable_x64", dtype="float64")


def test_a_path_that_does_not_exist_is_refused(folders, tmp_path):
    for name in (tmp_path / "nowhere", "./nowhere", tmp_path / "nowhere.gguf", "nowhere"):
        refused(folders[0], name, name, "no such directory or file", error=FileNotFoundError)


def test_a_hub_id_that_cannot_be_fetched_is_refused_with_advice(folders):
    refused(folders[0], "nobody/nothing", "nobody/nothing", "Check the spelling", error=FileNotFoundError)


def test_a_plain_file_is_refused(folders, tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("")
    refused(folders[0], file, file, "is a file; wanted a model directory", error=FileNotFoundError)


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ([[1, 43]], ("tokens[0, 1] = 43 is out of range", "0 to 42", "another model's tokenizer")),
        ([[1, 2], [-1, 3]], ("tokens[1, 0] = -1 is out of range",)),
        ([[1.0, 2.0]], ("wanted integers [B, T], got float64 (1, 2)",)),
        ([[True, False]], ("wanted integers", "bool")),
        ([1, 2, 3], ("(3,)",)),
        ([[]], ("(1, 0)",)),
        (np.zeros((1, 97), int), ("97 tokens are more than the model's context of 96",)),
    ],
    ids=["too large", "negative", "floats", "booleans", "no batch", "empty", "too long"],
)
def test_bad_tokens_are_refused(pair, tokens, words):
    with pytest.raises(ValueError) as error:
        pair.apply(pair.base, tokens)
    assert all(word in str(error.value) for word in words), error.value


def test_a_sequence_as_long_as_the_context_is_fine(pair):
    assert pair.apply(pair.base, np.ones((1, 96), np.uint8)).shape == (1, 96, 43)


def test_a_pair_is_frozen(pair):
    with pytest.raises(dataclasses.FrozenInstanceError):
        pair.base = pair.special
    assert "Array" not in repr(pair), "a pair is shown without its weights"


def test_hashes_are_those_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert checkpoints.sha256(tmp_path / "file") == digest
