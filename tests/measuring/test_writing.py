"""What a model writes, and where it ends: where transformers' own generation ends."""

import dataclasses
import json

import hf
import pytest
import torch

import jaxpatch as jp
from jaxpatch.measuring import writing
from jaxpatch.models import checkpoints

MAX_NEW = 12


@pytest.fixture
def folders(tmp_path):
    """Two models of equal tokenizers; what base writes to "the owl" has no repetition in it before its sixth token."""
    return [
        hf.save_tokenizer(hf.save(tmp_path / str(seed), seed=seed, vocab_size=300, bos_token_id=0, eos_token_id=1))
        for seed in (0, 1)
    ]


def told(folder, file, **fields):
    settings = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    kept = {name: value for name, value in (settings | fields).items() if value is not ...}
    (folder / file).write_text(json.dumps(kept))


def of_transformers(folder, ids):
    """What transformers writes with the directory's own settings, without what ends it."""
    model = hf.transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    written = model.generate(torch.tensor([ids]), max_new_tokens=MAX_NEW, do_sample=False)[0, len(ids) :].tolist()
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return written[:-1] if written[-1] in ends else written


def both(folders, **choices):
    """The tokens that we and transformers write."""
    pair = checkpoints.load_pair(*folders, **choices)
    inputs = jp.encode(pair, ["the owl"])
    ids = inputs.tokens[0].tolist()
    [ours] = writing.write(pair, pair.base, inputs, max_new=MAX_NEW)
    return ours, pair.tokenizer.decode(of_transformers(folders[0], ids), skip_special_tokens=True), pair


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_every_id_that_a_checkpoint_names_ends_an_answer(folders, where):
    pair = checkpoints.load_pair(*folders)
    free = of_transformers(folders[0], jp.encode(pair, ["the owl"]).tokens[0].tolist())
    assert len(free) == MAX_NEW
    for folder in folders:
        if where == "config.json":
            (folder / "generation_config.json").unlink()
        told(folder, where, eos_token_id=[1, free[3]])
    ours, theirs, pair = both(folders)
    assert pair.ends == (1, free[3]) and ours == theirs == pair.tokenizer.decode(free[: free.index(free[3])])


def test_where_no_file_names_any_the_tokenizers_own_does(folders):
    for folder in folders:
        told(folder, "generation_config.json", eos_token_id=...)
        told(folder, "config.json", eos_token_id=...)
    pair = checkpoints.load_pair(*folders)
    assert pair.ends == (1,)
    by_hand = dataclasses.replace(pair, ends=())
    inputs = jp.encode(pair, ["the owl"])
    assert writing.write(by_hand, pair.base, inputs) == writing.write(pair, pair.base, inputs)


def test_ids_that_differ_are_refused_until_someone_chooses(folders, tmp_path):
    told(folders[1], "generation_config.json", eos_token_id=[1, 5], temperature=0.5)
    with pytest.raises(ValueError) as caught:
        checkpoints.load_pair(*folders)
    said = "ending: base ends answers with 1 ('<|end|>'), special ends answers with 1 ('<|end|>'), 5 ('$')"
    assert said in str(caught.value) and "Choose: --ending base, --ending special" in str(caught.value)
    for side, ends, folder in (("base", (1,), folders[0]), ("special", (1, 5), folders[1])):
        pair = checkpoints.load_pair(*folders, ending=side)
        assert pair.ends == ends
        saved = jp.save_checkpoint(pair, pair.special, tmp_path / side)
        assert checkpoints.load(saved, "float32").ends == ends
        assert (saved / "generation_config.json").read_text() == (folder / "generation_config.json").read_text()


@pytest.mark.parametrize("named", ["</s>", 1.5, True, [1, "2"], {"a": 1}, 2**70], ids=str)
def test_what_is_no_id_is_refused(folders, named):
    told(folders[0], "generation_config.json", eos_token_id=named)
    with pytest.raises(
        checkpoints.CheckpointError, match=r"generation_config.json: eos_token_id: wanted an id or a list"
    ):
        checkpoints.load(folders[0], "float32")


def test_a_generation_config_that_cannot_be_read_is_named(folders):
    (folders[0] / "generation_config.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(checkpoints.CheckpointError, match=r"generation_config.json:\n.*not readable as"):
        checkpoints.load(folders[0], "float32")


def test_what_cannot_be_written_is_refused(folders):
    pair = checkpoints.load_pair(*folders)
    inputs = jp.encode(pair, ["the owl", "owls"])
    assert len(writing.write(pair, pair.base, inputs, max_new=3)) == 2
    with pytest.raises(ValueError, match="exceed the context"):
        writing.write(pair, pair.base, inputs, max_new=pair.config.context)
    with pytest.raises(ValueError, match="at least 1"):
        writing.write(pair, pair.base, inputs, max_new=0)
    with pytest.raises(ValueError, match="no tokenizer"):
        writing.write(dataclasses.replace(pair, tokenizer=None), pair.base, inputs)
