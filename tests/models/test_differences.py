"""In what two checkpoints can disagree: each sort is found, named, and refused until somebody chooses; nothing else is."""

import dataclasses
import json
import re
from pathlib import Path

import hf
import pytest
import tokenizers
import transformers

from jaxpatch import testing
from jaxpatch.models import differences, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.differences import POLICIES, Choices, Side
from jaxpatch.models.rope import Rope

CONFIG = testing.tiny_config(vocab=40, window=3, local=(True, False, True))
CHANGES = dict(
    rope=Rope(theta=9.0),
    local_rope=Rope(theta=50.0),
    norm_eps=0.1,
    window=2,
    local=(False, False, True),
    attention_scale=0.9,
    attention_cap=0.3,
    embed_scale=2.0,
    residual_scale=0.5,
    logit_scale=3.0,
    logit_cap=0.2,
)


def tokenizer(
    *more, words="a b c d", end="c", bos=None, pad=None, template=None, lower=False, decoder=None, **settings
):
    """One token a word."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: number for number, word in enumerate([*words.split(), *more])}, "a")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if lower:
        made.normalizer = tokenizers.normalizers.Lowercase()
    if decoder:
        made.decoder = decoder
    named = dict(eos_token=end, bos_token=bos, pad_token=pad)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **named, **settings)


def found(one: Side, two: Side, **choices) -> dict[str, differences.Difference]:
    return {each.name: each for each in differences.between(one, two, Choices(**choices))}


def test_equal_sides_do_not_differ():
    one, two = (Side(CONFIG, tokenizer(template="t")) for _ in range(2))
    assert found(one, two) == {} and differences.faults(one, two, Choices()) == []


@pytest.mark.parametrize("has_it", ["base", "special"])
@pytest.mark.parametrize("choice", [None, "base", "special"])
def test_where_only_one_has_a_tokenizer_it_serves_both(has_it, choice):
    """With its template; but nobody can choose one that there is not."""
    reads, silent = Side(CONFIG, tokenizer(template="t")), Side(CONFIG, None)
    sides = (reads, silent) if has_it == "base" else (silent, reads)
    noted = found(*sides)
    assert noted.keys() == {"reading"} and not noted["reading"].is_open
    assert {getattr(noted["reading"], side) for side in ("base", "special")} == {"has a tokenizer", "has none"}
    choices = Choices(tokenizer=choice)
    assert differences.shared_tokenizer(*sides, choices) is reads.tokenizer
    assert differences.shared_template(*sides, choices) == "t"
    assert differences.shared_template(*sides, Choices(template="none")) is None
    assert bool(differences.faults(*sides, choices)) == (choice not in (None, has_it))


@pytest.mark.parametrize("field", CHANGES)
def test_settings_are_named_and_chosen(field):
    one, two = Side(CONFIG, None), Side(dataclasses.replace(CONFIG, **{field: CHANGES[field]}), None)
    [fault] = differences.faults(one, two, Choices())
    assert fault.startswith(f"settings: base has {field} = ") and fault.endswith(
        "Choose: --settings base, --settings special (in Python settings=)"
    )
    for side, config in zip(differences.SIDES, (one.config, two.config), strict=True):
        assert differences.faults(one, two, Choices(settings=side)) == []
        assert differences.shared_config(one.config, two.config, Choices(settings=side)) == config


def test_every_field_of_a_config_has_its_place():
    """A field is a setting, or makes another architecture, or has a policy of its own."""
    assert set(CHANGES) | {"chosen", "shares_sum_to_one"} == set(differences.SETTINGS)
    fields = {field.name for field in dataclasses.fields(DecoderConfig)}
    other = dataclasses.replace(CONFIG, width=20, norm_offset=1.0, parallel=True, activation="relu")
    assert [fault.split(":")[0] for fault in differences.architecture_faults(CONFIG, other)] == [
        *("width", "norm_offset", "parallel", "activation")
    ]
    assert set(differences.SETTINGS) < fields


def test_all_that_is_open_is_said_at_once():
    one = Side(CONFIG, tokenizer(template="t"))
    two = Side(dataclasses.replace(CONFIG, vocab=42, norm_eps=0.1, width=20), tokenizer(end="d", template="u"))
    said = differences.faults(one, two, Choices(tokenizer="base"))
    assert [fault.split(":")[0] for fault in said] == ["width", "vocabulary", "settings", "template"]


@pytest.mark.parametrize(
    ("changes", "base", "special"),
    [
        (dict(words="a b d c"), "has 2 ids of its own ('c', 'd')", "has 2 ids of its own ('d', 'c')"),
        (
            dict(end="d"),
            "has 1 added tokens of its own ('c': special), has eos_token 'c'",
            "has 1 added tokens of its own ('d': special), has eos_token 'd'",
        ),
        (dict(lower=True), "has nothing of its own", "has another normalizer"),
        (dict(more=["e"]), "has nothing of its own", "has 1 ids of its own ('e')"),
        (dict(bos="b"), "has no bos_token", "has 1 added tokens of its own ('b': special), has bos_token 'b'"),
        (
            dict(end=tokenizers.AddedToken("c", special=True, rstrip=True)),
            "has 1 added tokens of its own ('c': special)",
            "has 1 added tokens of its own ('c': rstrip special)",
        ),
        (dict(decoder=tokenizers.decoders.Fuse()), "has nothing of its own", "has another decoder"),
        (dict(split_special_tokens=True), "has nothing of its own", "has another split_special_tokens"),
    ],
    ids=["ids", "end", "rules", "added", "named", "flags", "decoder", "split"],
)
def test_tokenizers_that_read_otherwise(changes, base, special):
    two = tokenizer(*changes.pop("more", ()), **changes)
    one, two = Side(CONFIG, tokenizer()), Side(CONFIG, two)
    difference = found(one, two)["tokenizer"]
    assert (difference.base, difference.special, difference.is_open) == (base, special, True)
    assert not found(one, two, tokenizer="special")["tokenizer"].is_open


def test_texts_that_become_other_ids_by_an_added_token_alone(tmp_path):
    """One vocabulary, one set of rules; but one of the two takes a token out of a text before it is cut."""
    one, two = (hf.save_tokenizer(tmp_path / name) for name in ("one", "two"))
    parts = json.loads((two / "tokenizer.json").read_text())
    taken = next(token for token, number in parts["model"]["vocab"].items() if number == 261)
    parts["added_tokens"].append(parts["added_tokens"][0] | {"id": 261, "content": taken})
    (two / "tokenizer.json").write_text(json.dumps(parts))
    one, two = (Side(dataclasses.replace(CONFIG, vocab=300), sources.tokenizer_of(folder)) for folder in (one, two))
    assert one.tokenizer("the owl").input_ids != two.tokenizer("the owl").input_ids
    difference = found(one, two)["tokenizer"]
    assert (difference.base, difference.is_open) == ("has nothing of its own", True)
    assert difference.special == f"has 1 added tokens of its own ({taken!r}: special)"


def test_a_token_that_pads_changes_nothing():
    one, two = Side(CONFIG, tokenizer()), Side(CONFIG, tokenizer(pad="c"))
    [noted] = found(one, two).values()
    assert (noted.name, noted.base, noted.special, noted.is_open) == ("padding", "has none", "pads with 'c'", False)
    assert differences.faults(one, two, Choices()) == []


def test_what_ends_an_answer():
    one, two = Side(CONFIG, tokenizer(), ends=(2,)), Side(CONFIG, tokenizer(), ends=(2, 9))
    difference = found(one, two)["ending"]
    assert difference.is_open and found(one, two._replace(ends=(2,))) == {}
    assert (difference.base, difference.special) == ("ends answers with 2 ('c')", "ends answers with 2 ('c'), 9")
    for choice, wanted in ((None, (2,)), ("base", (2,)), ("special", (2, 9))):
        assert differences.shared_ends(one, two, Choices(ending=choice)) == wanted
    silent = one._replace(ends=())
    assert found(silent, two) == {} and differences.shared_ends(silent, two, Choices()) == (2, 9)


def test_a_token_beyond_the_shared_rows_is_the_vocabularys_affair():
    one = Side(dataclasses.replace(CONFIG, vocab=4), tokenizer())
    two = Side(dataclasses.replace(CONFIG, vocab=5), tokenizer("e"))
    assert list(found(one, two)) == ["vocabulary"]


def test_templates():
    one, two = Side(CONFIG, tokenizer(template="one")), Side(CONFIG, tokenizer())
    assert (found(one, two)["template"].base, found(one, two)["template"].special) == (
        "has one of 3 characters",
        "has none",
    )
    for choice, wanted in (("base", "one"), ("special", None), ("none", None), (None, "one")):
        assert differences.shared_template(one, two, Choices(template=choice)) == wanted
        assert bool(differences.faults(one, two, Choices(template=choice))) == (choice is None)
    named = Side(CONFIG, tokenizer())
    named.tokenizer.chat_template = {"default": "one", "tools": "other"}
    assert found(one, named) == {}


def test_an_adapter_of_another_model():
    one, two = Side(CONFIG, None), Side(CONFIG, None, ("owner/one", "owner/two"))
    [fault] = differences.faults(one, two, Choices())
    assert fault.startswith("adapter: base is owner/one, special was trained on owner/two; ")
    assert fault.endswith("Choose: --adapter merge (in Python adapter=)")
    assert differences.faults(one, two, Choices(adapter="merge")) == []
    assert found(one, two, adapter="merge")["adapter"].chosen == "merge"
    assert differences.choice_faults(Choices(adapter="base"))


def test_context_and_tying_are_noted():
    one, two = Side(CONFIG, None), Side(dataclasses.replace(CONFIG, context=32, tied=True), None)
    assert [each.is_open for each in found(one, two).values()] == [False, False]
    assert differences.faults(one, two, Choices()) == []
    config = differences.shared_config(one.config, two.config, Choices())
    assert (config.context, config.tied) == (32, False)


def test_a_side_without_a_tokenizer_cannot_be_chosen():
    one, two = Side(CONFIG, tokenizer()), Side(CONFIG, None)
    said = differences.faults(one, two, Choices(tokenizer="special", template="special"))
    assert [fault.split(":")[0] for fault in said] == ["tokenizer special", "template special"]


def test_choices_that_there_are_not_are_named_at_once():
    faults = differences.choice_faults(
        Choices(vocabulary="grown", settings="basis", tokenizer="none", template="x.jinja")
    )
    assert [fault.split(" ")[0] for fault in faults] == ["vocabulary", "settings", "tokenizer"]


def test_the_docs_have_the_same_table():
    page = (Path(__file__).parents[2] / "docs" / "your_own_pair.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `?(\w+)`? \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    wanted = [
        (
            name,
            policy.what,
            policy.why,
            " ".join(f"`--{name} {choice}`" for choice in policy.choices) or "nothing to choose",
        )
        for name, policy in POLICIES.items()
    ]
    assert [row for row in rows if row[0] in POLICIES] == wanted
