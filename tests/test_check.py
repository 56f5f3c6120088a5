"""jaxpatch check, as its user meets it: what it finds, what it says where it cannot, and what it refuses."""

import importlib.util
import json
import os
import sys

import gguf_cases
import hf
import numpy as np
import pytest

from jaxpatch import cli, reference, testing
from jaxpatch.models import checkpoints


@pytest.fixture
def folders(tmp_path):
    return testing.tiny_checkpoints(tmp_path / "pair")


@pytest.fixture
def check(monkeypatch, capsys):
    """Runs the command line here. Gives the exit status, and what was printed, in one line."""

    def call(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["jaxpatch", "check", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, " ".join((said.out + said.err).split())

    return call


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_never_parity(side, value):
    pair = [np.ones((3, 4), np.float32), np.ones((3, 4), np.float32)]
    pair[side][1, 2] = value
    for both in (pair, [pair[side], pair[side]]):
        found = reference.apart("it", *both)
        assert np.isnan(found.apart) and not found.agree and not found.is_passed


def test_logits_that_are_no_numbers_are_said_to_be_none(check, folders, monkeypatch):
    """Weights and settings are finite; what is made of them need not be."""
    monkeypatch.setattr(reference, "_own", lambda config, params, tokens: np.full((len(tokens), config.vocab), np.nan))
    code, said = check(folders[0])
    assert code == 1 and "Logits of base: NOT as transformers: some are NaN or infinite" in said, said


@pytest.fixture
def without_torch(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else found(name))


def test_a_pair_is_read_compared_and_held_to_transformers(check, folders, tmp_path):
    code, said = check(*folders, "--out", tmp_path / "found.json")
    assert code == 0
    for words in (
        "14,096",
        "left out nothing nothing",
        "Beside their weights the two do not differ",
        "head 12 12",
        "30 of 30 tensors differ",
        "Logits of base: as transformers: at most",
        "Logits of special: as transformers",
    ):
        assert words in said, said
    found = json.loads((tmp_path / "found.json").read_text())
    known = {"read", "differences", "template", "ends", "trained_on", "changes", "relative", "tensors", "parity"}
    assert set(found) == known
    assert np.shape(found["relative"]["neuron"]) == (3, 24) and found["changes"]["head"]["changed"] == 12
    assert found["parity"]["special"]["apart"] < 1e-5 and len(found["tensors"]) == 30
    pair = checkpoints.load_pair(*folders)
    [first] = [each for each in found["tensors"] if each["name"] == "model.norm.weight"]
    old, new = (np.asarray(side["final_norm"]["scale"]) for side in (pair.base, pair.special))
    np.testing.assert_allclose(first["relative"], np.linalg.norm(new - old) / np.linalg.norm(old), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, cli.COMPILING),
        ("--xla_dump_to=there", f"--xla_dump_to=there {cli.COMPILING}"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
    ],
)
def test_the_users_own_flags_of_xla_stand(monkeypatch, capsys, given, wanted):
    monkeypatch.setenv("XLA_FLAGS", given or "")
    monkeypatch.setattr(sys, "argv", ["jaxpatch", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["XLA_FLAGS"] == wanted and "trace" in capsys.readouterr().out


def test_one_checkpoint_alone(check, folders):
    code, said = check(folders[0])
    assert code == 0 and "Logits of base: as transformers" in said and "differ" not in said


def test_logits_that_are_not_those_of_transformers_fail(check, folders, monkeypatch):
    monkeypatch.setattr(reference, "TOLERANCE", 0.0)
    code, said = check(folders[0])
    assert code == 1 and "Logits of base: NOT as transformers" in said


def test_what_transformers_cannot_read_is_not_compared(check, folders, monkeypatch):
    def broken(path, under):
        raise KeyError("no such architecture")

    monkeypatch.setattr(reference, "_model", broken)
    code, said = check(folders[0])
    assert code == 0 and "Logits of base: not compared (transformers cannot read it: KeyError:" in said


@pytest.mark.filterwarnings("ignore")  # of transformers' own reading of GGUF files
def test_a_scaling_that_transformers_does_not_read_is_not_held_to_it(check, tmp_path):
    """It reads none out of GGUF files: what it would say of them is of another model."""
    scaled = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    folder = hf.save(tmp_path / "model", vocab_size=266, hidden_size=32, intermediate_size=64, rope_parameters=scaled)
    metadata = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    file = gguf_cases.write(tmp_path / "model.gguf", folder, metadata=metadata)
    code, said = check(file)
    assert code == 0 and "Logits of base: not compared (transformers reads no rotary scaling out of GGUF files)" in said
    assert checkpoints.load(file, "float32").config.rope == checkpoints.load(folder, "float32").config.rope


def test_an_adapter_goes_through_peft_and_shows_its_rank(check, tmp_path):
    base = hf.save(tmp_path / "base", hidden_size=96, intermediate_size=100, num_attention_heads=4)
    adapter = hf.save_adapter(tmp_path / "adapter", base, rank=3)
    code, said = check(base, adapter)
    assert code == 0 and "Logits of special: as transformers" in said
    assert "model.layers.0.mlp.down_proj.weight [96, 100]" in said.replace(" ]", "]")
    assert " 3 " in said.split("tensors differ")[1]


def test_what_is_left_out_of_a_model_that_sees_is_said(check, tmp_path):
    base, special = (hf.save(tmp_path / str(seed), seed=seed, model_type="gemma3", head_dim=4) for seed in (0, 1))
    code, said = check(base, special)
    assert code == 0 and "family gemma3_text gemma3_text" in said and "Logits of special: as transformers" in said
    for words in ("left out 2 tensors of", "multi_modal_projector multi_modal_projector", "32 tensors of vision_tower"):
        assert words in said, said


def test_an_adapter_that_peft_would_go_on_without_is_not_compared(check, tmp_path):
    """Of a model that sees too, for its text model alone: we read it, and PEFT finds none of its tensors."""
    whole, alone = (hf.save(tmp_path / name, model_type=name, head_dim=4) for name in ("gemma3", "gemma3_text"))
    tensors = ("v_proj", "up_proj")
    adapter = hf.save_adapter(tmp_path / "adapter", whole, modules=tensors, exclude_modules=".*vision.*")
    code, said = check(alone, adapter)
    assert code == 0 and "Logits of special: not compared (transformers cannot read it: UserWarning: Found mis" in said


def test_what_an_adapter_was_trained_on_is_said_and_refused_where_it_is_another(check, tmp_path):
    base, other = (hf.save(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    adapter = hf.save_adapter(tmp_path / "adapter", base, base_model_name_or_path="owner/model", revision="v1")
    code, said = check(base, adapter, "--out", tmp_path / "found.json")
    assert code == 0 and "adapter none trained on owner/model@v1" in said
    assert json.loads((tmp_path / "found.json").read_text())["trained_on"] == {"special": "owner/model@v1"}
    hf.resettle(adapter, base_model_name_or_path=str(other))
    code, said = check(base, adapter)
    assert code == 1 and "was trained on" in said and "Choose: --adapter merge" in said
    code, said = check(base, adapter, "--adapter", "merge")
    assert code == 0 and "Logits of special: as transformers" in said
    hf.resettle(adapter, base_model_name_or_path=str(base))
    code, said = check(adapter)
    assert code == 0 and "adapter trained on" in said


def test_what_was_chosen_is_said_and_the_other_side_is_not_compared(check, tmp_path):
    base, special = hf.save(tmp_path / "base"), hf.save(tmp_path / "special", seed=1, rms_norm_eps=0.1)
    code, said = check(base, special)
    assert code == 1 and "norm_eps = 0.1" in said and "Choose: --settings base, --settings special" in said
    code, said = check(base, special, "--settings", "special")
    assert code == 0 and "Logits of base: not compared: it runs under the settings of special" in said
    assert "Logits of special: as transformers" in said


def test_without_torch_golden_logits_serve_where_they_are_known(check, folders, monkeypatch, without_torch):
    code, said = check(folders[0])
    assert code == 0 and "not compared (not installed: torch), and no golden logits are known" in said
    golden = reference.golden_of(folders[0])
    monkeypatch.setitem(reference.GOLDEN, checkpoints.sha256(folders[0] / "model.safetensors"), golden)
    code, said = check(*folders)
    assert code == 0 and "Logits of base: as golden logits of base: at most" in said
    assert "Logits of special: not compared" in said
    wrong = golden._replace(logits=golden.logits[::-1])
    monkeypatch.setitem(reference.GOLDEN, checkpoints.sha256(folders[0] / "model.safetensors"), wrong)
    code, said = check(folders[0])
    assert code == 1 and "NOT as golden logits" in said
    assert check(folders[0], "--no-parity")[0] == 0


def test_all_bad_options_are_named_at_once(check, tmp_path):
    (tmp_path / "there.json").write_text("{}")
    code, said = check("no/such/base", "no/such/special", "--settings", "bsae", "--out", tmp_path / "there.json")
    assert code == 1
    for words in (
        "base no/such/base",
        "special no/such/special",
        "--settings 'bsae'",
        "it exists and is not overwritten",
    ):
        assert words in said, said
    assert check("no/such/base", "--template", "no/such.jinja")[1].count("no file that can be read") == 1


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_directory_is_not_replaced_by_a_file(check, tmp_path, overwrite):
    """Before anything is computed."""
    code, said = check("no/such/base", "--out", tmp_path, *overwrite)
    assert code == 1 and "no/such/base" in said and "it is a directory; name a file" in said


def test_folders_above_the_file_are_made(check, folders, tmp_path):
    code, _ = check(folders[0], "--no-parity", "--out", tmp_path / "new" / "folder" / "found.json")
    assert code == 0 and set(json.loads((tmp_path / "new" / "folder" / "found.json").read_text())) == {"read", "parity"}


def test_a_template_that_fails_is_refused_in_one_line(check, tmp_path):
    (tmp_path / "own.jinja").write_text("{% if %}")
    code, said = check("no/such/base", "no/such/special", "--template", tmp_path / "own.jinja")
    assert code == 1 and "own.jinja, line 1: Expected an expression" in said and "Traceback" not in said


def test_models_that_are_the_same_are_refused(check, folders):
    code, said = check(folders[0], folders[0])
    assert code == 1 and "identical: there is nothing to score" in said
