"""What is known of a pair before weights are read, and what is refused already then."""

import itertools
import json

import hf
import peft
import pytest

from jaxpatch import testing
from jaxpatch.models import checkpoints, outlines
from jaxpatch.models.differences import Choices


@pytest.fixture
def folders(tmp_path):
    """Two directories with everything but weights."""
    made = testing.tiny_checkpoints(tmp_path)
    for folder in made:
        (folder / "model.safetensors").unlink()
    return made


def read(base, special, **choices):
    return outlines.read(base, special, Choices(**choices))


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def adapter(folder, **fields):
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]} | fields
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_outline_needs_no_weights(folders, tmp_path_factory):
    found = read(*folders)
    whole = testing.tiny_checkpoints(tmp_path_factory.mktemp("whole"))
    assert found.config == checkpoints.load_pair(*whole).config
    assert found.tokenizer is not None and found.tokenizer("owl")["input_ids"]


def test_without_a_tokenizer(folders):
    for name, folder in itertools.product(("tokenizer.json", "tokenizer_config.json"), folders):
        (folder / name).unlink()
    assert read(*folders).tokenizer is None


def test_an_adapter_has_the_architecture_of_its_base(folders, tmp_path):
    assert read(folders[0], adapter(tmp_path / "adapter")).config == read(*folders).config


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_an_adapter_s_own_tables_are_seen_in_its_shapes(tmp_path):
    """What is refused, and how, is what loading refuses."""
    base = hf.save(tmp_path / "base", tie_word_embeddings=True)
    model = hf.load(base)
    model.resize_token_embeddings(46)
    options = dict(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"], init_lora_weights=False)
    peft.get_peft_model(model, peft.LoraConfig(**options)).save_pretrained(tmp_path / "adapter")
    both = base, tmp_path / "adapter"
    for reading in (read, checkpoints.load_pair):
        with pytest.raises(ValueError, match="vocabulary: base has 43 rows, special has 46 rows"):
            reading(*both)
    config = read(*both, vocabulary="shared").config
    assert config == checkpoints.load_pair(*both, vocabulary="shared").config and not config.tied
    assert read(both[1], base, vocabulary="shared").config == config
    hf.resettle(both[1], r=3)
    with pytest.raises(checkpoints.CheckpointError, match="ranks 2 and 2, but r = 3"):
        read(*both)


def test_an_adapter_of_another_model_is_seen(tmp_path):
    base, other = (hf.save(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    made = hf.save_adapter(tmp_path / "adapter", other, base_model_name_or_path=str(other))
    with pytest.raises(ValueError, match=f"adapter: base is {base}, special was trained on {other}"):
        read(base, made)
    assert read(base, made, adapter="merge") == read(other, made)
    named = hf.save_adapter(tmp_path / "named", other, base_model_name_or_path=str(base))
    with pytest.raises(ValueError, match=f"adapter: base is {base}, special was trained on {other}"):
        read(named, made)


def test_where_one_model_is_tied_the_pair_is_not(folders):
    change(folders[0], tie_word_embeddings=True)
    assert not read(*folders).config.tied
    change(folders[1], tie_word_embeddings=True)
    assert read(*folders).config.tied


def test_other_architectures_are_refused_with_all_that_differs(folders):
    change(folders[1], num_hidden_layers=5, intermediate_size=32)
    with pytest.raises(ValueError, match=r"(?s)are not alike.*layers: base has 3, special has 5.*neurons: "):
        read(*folders)


def test_answers_that_end_otherwise_are_refused_as_by_a_run(folders, tmp_path):
    (folders[1] / "generation_config.json").write_text('{"eos_token_id": [0, 3]}')
    with pytest.raises(
        ValueError, match=r"ending: base ends answers with 0 \('<end>'\), special ends answers with 0 .*, 3"
    ):
        read(*folders)
    assert read(*folders, ending="special").config == read(*folders, ending="base").config
    assert read(folders[1], adapter(tmp_path / "adapter")).tokenizer is not None


def test_the_faults_of_both_are_named_at_once(folders, tmp_path):
    change(folders[0], hidden_act="tanh")
    with pytest.raises(checkpoints.CheckpointError, match=r"(?s)hidden_act = 'tanh'.*lora_bias = True"):
        read(folders[0], adapter(tmp_path / "adapter", lora_bias=True))


def test_what_is_no_model(folders, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)base no/such/base.*special no/such/special"):
        read("no/such/base", "no/such/special")
    (tmp_path / "empty").mkdir()
    with pytest.raises(checkpoints.CheckpointError, match=r"no config\.json"):
        read(tmp_path / "empty", folders[1])
    with pytest.raises(checkpoints.CheckpointError, match="does not say which model it was trained on"):
        read(adapter(tmp_path / "adapter"), folders[1])
