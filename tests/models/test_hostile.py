"""Checkpoints that are broken, or made to do harm: refused by name, before they cost anything; and no code of theirs runs."""

import json
import pickle
import struct
from pathlib import Path

import hf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from jaxpatch.models import checkpoints, outlines
from jaxpatch.models.differences import Choices


@pytest.fixture
def folder(tmp_path):
    return hf.save(tmp_path / "model")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load(folder, "float32")
    assert all(word in str(caught.value) for word in words), str(caught.value)


def parts(file: Path) -> tuple[dict, bytes]:
    content = file.read_bytes()
    [length] = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rewrite(file: Path, header: str | dict, body: bytes, length: int | None = None) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


NAME = "model.norm.weight"


def offsets(*places: int):
    return lambda header: header[NAME].update(data_offsets=list(places))


@pytest.mark.parametrize(
    "change",
    [
        offsets(-64, 0),
        offsets(64, 0),
        offsets(10**15, 10**15 + 64),
        offsets(2**63, 2**63 + 64),
        offsets(0, 64),
        offsets(0, 60),
        lambda header: header[NAME].update(dtype="F64"),
        lambda header: header[NAME].update(shape=[10**12]),
        lambda header: header[NAME].update(shape=[2**40, 2**40]),
        lambda header: header[NAME].pop("data_offsets"),
        lambda header: header.update({"one.more": header[NAME]}),
        lambda header: header.update({"one.more": [1, 2]}),
    ],
    ids="below turned beyond 2**63 overlapping short type long overflowing none shared list".split(),
)
def test_offsets_that_lie(folder, change):
    file = folder / "model.safetensors"
    header, body = parts(file)
    change(header)
    rewrite(file, header, body)
    refused(folder, "model.safetensors", "truncated or corrupt", "download it again")


@pytest.mark.parametrize("length", [0, 10**6, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_another_length_than_it_says(folder, length):
    file = folder / "model.safetensors"
    rewrite(file, *parts(file), length=length)
    refused(folder, "model.safetensors", "truncated or corrupt")


@pytest.mark.parametrize("header", ["", "{", "[]", "null", '{"a": }', "\x00" * 40, "[" * 10_000])
def test_a_header_that_is_none(folder, header):
    file = folder / "model.safetensors"
    rewrite(file, header, parts(file)[1])
    refused(folder, "model.safetensors", "truncated or corrupt")


def test_a_name_that_stands_twice(folder):
    file = folder / "model.safetensors"
    header, body = parts(file)
    entry = json.dumps({NAME: header[NAME]})[1:-1]
    rewrite(file, "{" + entry + ", " + json.dumps(header)[1:], body)
    refused(folder, "model.safetensors", f"{NAME} stands twice in its header")


@pytest.mark.parametrize(
    "name", ["../model/model.safetensors", "/etc/hostname", "sub/../model.safetensors", "..", "./x"]
)
def test_an_index_that_points_elsewhere(tmp_path, name):
    folder = hf.save(tmp_path / "model", shard="3KB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = name
    file.write_text(json.dumps(index))
    refused(folder, "index.json", repr(name), "its own folder only")


def test_an_index_that_names_what_can_be_no_file(tmp_path):
    folder = hf.save(tmp_path / "model", shard="3KB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"][next(iter(index["weight_map"]))] = "x" * 5000
    file.write_text(json.dumps(index))
    refused(folder, "index.json", "'xxx", "has 5,000 characters, as no file has", "download it again")


def test_a_directory_where_a_file_should_be(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").mkdir()
    refused(folder, "model.safetensors is no file; download it")
    sharded = hf.save(tmp_path / "sharded", shard="3KB")
    first = sorted(sharded.glob("*.safetensors"))[0]
    first.unlink()
    refused(sharded, f"{first.name} is missing, but the index names it; download it")


def test_a_tensor_in_another_shard_than_the_index_says(tmp_path):
    folder = hf.save(tmp_path / "model", shard="3KB")
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    names = list(index["weight_map"])
    moved = {names[0]: index["weight_map"][names[-1]], names[-1]: index["weight_map"][names[0]]}
    file.write_text(json.dumps(index | {"weight_map": index["weight_map"] | moved}))
    refused(folder, *(f"says that {name} is in {where}" for name, where in moved.items()))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("num_hidden_layers", 10**12, "num_hidden_layers: wanted at most 10,000, got 1,000,000,000,000"),
        ("hidden_size", 10**15, "hidden_size: wanted at most 1,000,000,000"),
        ("vocab_size", 2**62, "vocab_size: wanted at most"),
        ("intermediate_size", 10**30, "intermediate_size: wanted at most"),
        ("max_position_embeddings", 10**18, "max_position_embeddings: wanted at most"),
    ],
)
def test_sizes_that_no_model_has(folder, field, value, words):
    hf.retell(folder, **{field: value})
    refused(folder, words)
    (folder / "model.safetensors").unlink()
    with pytest.raises(checkpoints.CheckpointError) as caught:
        outlines.read(folder, folder, Choices())
    assert words in str(caught.value)


def test_sizes_that_the_weights_do_not_have_cost_nothing(folder):
    hf.retell(folder, vocab_size=10**9, intermediate_size=10**9)
    refused(folder, "but the config asks for (1000000000, 16)", "but the config asks for (16, 1000000000)")
    hf.retell(folder, num_hidden_layers=9_999)
    refused(folder, "missing tensor model.layers.2.", "more")


def test_all_absurd_sizes_are_named_at_once(folder):
    hf.retell(folder, num_hidden_layers=10**12, vocab_size=10**12)
    refused(folder, "num_hidden_layers", "vocab_size")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "stand in each other too deep"),
        ('{"rms_norm_eps": ' + "1" * 5000 + "}", "not readable as JSON"),
        ('{"rms_norm_eps": ', "not readable as JSON"),
        ("[1]", "wanted a JSON object, got a list"),
    ],
    ids="deep digits cut list".split(),
)
def test_a_config_that_is_none(folder, text, words):
    (folder / "config.json").write_text(text)
    refused(folder, "config.json", words)
    with pytest.raises(checkpoints.CheckpointError, match=words):
        outlines.read(folder, folder, Choices())


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_text_that_is_none(folder, name):
    (folder / name).write_bytes(b"\xff\xfe\x00bad")
    refused(folder, name, "not readable as text", "download it again")
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name, "not readable as text")


def test_numbers_that_are_none_are_all_named_at_once(folder):
    hf.retell(folder, rms_norm_eps=float("nan"), rope_parameters={"rope_type": "default", "rope_theta": float("inf")})
    refused(
        folder, "  - rms_norm_eps: wanted a positive number", "got nan\n  - rope rope_theta: wanted a positive number"
    )


def test_more_experts_than_can_be(tmp_path):
    folder = hf.save(tmp_path / "experts", model_type="mixtral", num_local_experts=4)
    hf.retell(folder, num_hidden_layers=10_000, num_local_experts=10_000)
    refused(folder, "the config asks for 300,070,003 tensors")


class Harm:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_no_pickle_is_opened(folder, tmp_path, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    refused(folder, name, "can run code when opened", "safe_serialization=True")
    assert not (tmp_path / "harm").exists()


def test_a_pickled_adapter_is_not_opened(folder, tmp_path):
    adapter = hf.save_adapter(tmp_path / "adapter", folder)
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
    with pytest.raises(checkpoints.CheckpointError, match="pickled adapters are refused"):
        checkpoints.load_pair(folder, adapter)
    assert not (tmp_path / "harm").exists()


def test_code_that_a_checkpoint_brings_is_not_run(tmp_path):
    folder = hf.save_tokenizer(hf.save(tmp_path / "model", vocab_size=300))
    for name in ("modeling_own", "tokenization_own"):
        (folder / f"{name}.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path / 'harm')!r}).touch()\n")
    wanted = checkpoints.load(folder, "float32").config
    hf.retell(folder, auto_map={"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"})
    assert checkpoints.load(folder, "float32").config == wanted, "what the weights mean is read by our own code"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["tokenization_own.Own", None]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises((checkpoints.CheckpointError, ValueError)):
        checkpoints.load_one(folder, "float32").tokenizer()  # type: ignore[misc]
    assert not (tmp_path / "harm").exists()


def test_an_adapter_for_another_base(folder, tmp_path):
    other = hf.save(tmp_path / "other", hidden_size=24, num_hidden_layers=3)
    adapter = hf.save_adapter(tmp_path / "adapter", other, layers=(0, 1, 2))
    with pytest.raises(checkpoints.CheckpointError) as caught:
        checkpoints.load_pair(folder, adapter)
    said = str(caught.value)
    assert "model.layers.2.mlp.down_proj.weight" in said and "but the config asks for" in said, said


def test_reading_stays_within_the_file(folder):
    """A header that is right, read to the last byte: numbers are those of safetensors' own reader."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(tensors, file, metadata={"long": "x" * 10_000})
    params = checkpoints.load(folder, "float32").params
    np.testing.assert_array_equal(params["final_norm"]["scale"], tensors[NAME].numpy())
    np.testing.assert_array_equal(params["embed"]["kernel"], tensors["model.embed_tokens.weight"].numpy())
