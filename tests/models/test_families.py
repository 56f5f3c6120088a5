"""The contract of a family: every field of a config is read, known to change nothing, or refused."""

import contextlib
import copy
import math

import hf
import numpy as np
import published
import pytest
import transformers
from huggingface_hub.errors import StrictDataclassError

from jaxpatch.models.config import ConfigError, DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families import FAMILIES, family, llama
from jaxpatch.models.rope import Linear, Llama3, Rope, Yarn


@pytest.fixture
def raw():
    return hf.config().to_dict() | dict(model_type="llama")


def written(config) -> dict:
    """What transformers writes into config.json."""
    return config.to_diff_dict() | dict(model_type=config.model_type)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_what_the_floor_asks_of_it(name):
    member = FAMILIES[name]
    config = DecoderConfig(
        family=name, vocab=8, layers=2, width=4, heads=2, kv_heads=1, head_width=2, neurons=6, context=9
    )
    rules = member.rules(config)
    assert all(isinstance(rule, Rule) for rule in rules)
    assert len({rule.ours for rule in rules}) == len({(rule.theirs, rule.part) for rule in rules}) == len(rules)
    with pytest.raises(ValueError):
        member.read_config({"vocab_size": 0})


STRETCHES = {
    "GQA llama3 rope": Llama3(factor=8.0, slow=1.0, fast=4.0, original=24),
    "GQA linear rope": Linear(factor=4.0),
    "GQA yarn rope": Yarn(factor=4.0, slow=1.0, fast=4.0, original=24, scale=0.1 * math.log(4) + 1),
}
WINDOWS = {
    "Mistral, window": (3, ()),
    "Qwen2, local layers": (2, (False, True)),
    "Qwen3, biases, local layers": (2, (True, False)),
}


ALIKE = ("llama", "mistral", "qwen2", "qwen3")
"""Families that have a switch of their own at most; what the others mean is in their logits (`test_decoder`)."""


@pytest.mark.parametrize(
    "variant", [name for name, changes in hf.VARIANTS.items() if changes.get("model_type", "llama") in ALIKE]
)
def test_a_config_is_read_as_transformers_means_it(variant):
    theirs = hf.config(**hf.VARIANTS[variant])
    has_bias, window = getattr(theirs, "attention_bias", False), WINDOWS.get(variant, (None, ()))
    head_width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    ours = FAMILIES[theirs.model_type].read_config(written(theirs))
    assert ours == DecoderConfig(
        family=theirs.model_type,
        vocab=theirs.vocab_size,
        layers=theirs.num_hidden_layers,
        width=theirs.hidden_size,
        heads=theirs.num_attention_heads,
        kv_heads=theirs.num_key_value_heads,
        head_width=head_width,
        neurons=theirs.intermediate_size,
        context=theirs.max_position_embeddings,
        rope=Rope(theta=theirs.rope_parameters["rope_theta"], stretch=STRETCHES.get(variant)),
        window=window[0],
        local=window[1],
        norm_eps=theirs.rms_norm_eps,
        tied=theirs.tie_word_embeddings,
        attention_bias=has_bias or theirs.model_type == "qwen2",
        output_bias=has_bias,
        qk_norm="head" if theirs.model_type == "qwen3" else None,
        mlp_bias=getattr(theirs, "mlp_bias", False),
        activation=theirs.hidden_act,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_has_transformers_defaults(name):
    """Of a config.json with nothing but sizes, and of one in which transformers has filled in all the rest."""
    sizes = dict(vocab_size=8, num_hidden_layers=7, hidden_size=256, num_attention_heads=32, intermediate_size=3)
    short = {theirs: value for ours, value in sizes.items() if (theirs := hf.RENAMED.get(name, {}).get(ours, ours))}
    filled_in = transformers.AutoConfig.for_model(name, **short, pad_token_id=0).to_dict()
    assert FAMILIES[name].read_config(short) == FAMILIES[name].read_config(filled_in)


@pytest.mark.parametrize("model", published.CONFIGS)
def test_a_published_config_is_read_as_transformers_completes_it(model):
    raw = published.CONFIGS[model]
    theirs = transformers.AutoConfig.for_model(**copy.deepcopy(raw))  # which completes what it is given
    read = FAMILIES[raw["model_type"]].read_config
    ours = read(raw)
    assert ours == read(theirs.to_dict())
    assert (ours.layers, ours.heads, ours.width, ours.vocab) == tuple(
        getattr(theirs, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
    )
    with pytest.raises(ValueError, match="is_new = False is not supported"):
        read(raw | {"is_new": False})


def test_phi3_as_first_published_is_read_too():
    """Its longrope was called su; transformers 5 no longer reads that."""
    raw, read = published.CONFIGS["microsoft/Phi-3-mini-128k-instruct"], FAMILIES["phi3"].read_config
    assert read(raw | dict(rope_scaling=published.FACTORS | dict(type="su"))) == read(raw)


def test_each_family_has_a_published_config():
    assert {raw["model_type"] for raw in published.CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("field", family.HARMLESS)
def test_a_harmless_field_is_so_at_one_value_only(name, field):
    """Unless the family knows the field, and reads it."""
    raw, read = written(hf.config(name)), FAMILIES[name].read_config
    harmless = family.HARMLESS[field]
    other = {"any": 1} if harmless == {} else 2 if type(harmless) is int else not harmless
    without = read(raw | {field: harmless})
    try:
        assert read(raw | {field: other}) != without
    except ValueError as error:
        assert f"{field} = {other} is not supported (only {harmless!r} is)" in str(error)
        assert without == read(raw)


def other_values(value) -> list:
    """Of the same type, where there is one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value * 2 + 1 if isinstance(value, int) else value / 2 + 0.25]
    if isinstance(value, str):
        return ["relu", "tanh"]
    return [True, 2, "other"] if value is None else []  # tables have tests of their own


HOW_IT_IS_HELD = frozenset(
    "architectures dtype transformers_version _name_or_path pad_token_id return_dict model_type".split()
)
"""Fields that say nothing about what is computed, with which transformers' classes cannot be made anew at will."""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_field_that_is_ignored_changes_nothing_in_transformers_either(name, tmp_path):
    """Every other field changes our config, or is refused."""
    theirs = hf.config(name)
    raw, read = theirs.to_dict(), FAMILIES[name].read_config
    ours, ignored = read(raw), []
    for field, other in [(field, other) for field, value in raw.items() for other in other_values(value)]:
        with contextlib.suppress(ValueError):
            if read(raw | {field: other}) == ours:
                ignored.append((field, other))
    model, prompt = hf.load(hf.save(tmp_path, model_type=name)), [[3, 1, 4, 1, 5]]
    [wanted] = hf.logits(model, prompt)
    for field, other in ignored:
        if field not in HOW_IT_IS_HELD:
            try:
                changed = transformers.AutoConfig.for_model(**raw | {field: other, "attn_implementation": "eager"})
            except (TypeError, ValueError, StrictDataclassError):
                continue  # nothing that transformers would read, let alone write
            changed._experts_implementation = "eager"
            again = type(model)(changed).eval()
            again.load_state_dict(model.state_dict())
            np.testing.assert_array_equal(hf.logits(again, prompt)[0], wanted, err_msg=f"{field} = {other}")
    assert {field for field, _ in ignored} - HOW_IT_IS_HELD, "eos_token_id, at least"


@pytest.mark.parametrize(
    ("changes", "theta"),
    [
        (dict(rope_parameters=None, rope_theta=77.0), 77.0),
        (dict(rope_parameters=None), 10_000.0),
        (dict(rope_parameters={"rope_theta": 5.0}, rope_theta=77.0), 5.0),
        (dict(rope_parameters=None, rope_scaling={"type": "default"}, rope_theta=77), 77.0),
        (dict(rope_parameters={"rope_theta": 5.0, "rope_type": "default", "partial_rotary_factor": 1.0}), 5.0),
    ],
)
def test_rope_theta_is_found_where_old_and_new_configs_have_it(raw, changes, theta):
    assert llama.read_config(raw | changes).rope == Rope(theta=theta)


@pytest.mark.parametrize(
    "changes",
    [
        dict(torch_dtype="bfloat16", transformers_version="4.31.0", _name_or_path="x", use_cache=False),
        dict(hidden_act="silu", pretraining_tp=1, rope_interleaved=False, is_llama_config=True),
        dict(rope_scaling=None, quantization_config=None),
        dict(bos_token_id=7, eos_token_id=[7, 8], pad_token_id=-1, attention_dropout=0.1, max_length=4096),
        dict(auto_map={"AutoModelForCausalLM": "modeling_own.Own"}, unsloth_fixed=True, prefix="</s>", pruned_heads={}),
    ],
)
def test_fields_that_change_nothing_pass(raw, changes):
    assert llama.read_config(raw | changes) == llama.read_config(raw)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
NTK = {"rope_type": "dynamic", "factor": 8.0, "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        (
            dict(rope_parameters=LLAMA3 | {"original_max_position_embeddings": 32}),
            Rope(theta=5e5, stretch=Llama3(factor=8.0, slow=1.0, fast=4.0, original=32)),
        ),
        (
            dict(rope_parameters=None, rope_scaling=LLAMA3, rope_theta=7.0),
            Rope(theta=5e5, stretch=Llama3(factor=8.0, slow=1.0, fast=4.0, original=96)),
        ),
        (
            dict(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2}, rope_theta=7.0),
            Rope(theta=7.0, stretch=Linear(factor=2.0)),
        ),
        (
            dict(rope_parameters=LLAMA3, rope_scaling={"type": "linear", "factor": 2}),
            Rope(theta=10_000.0, stretch=Linear(factor=2.0)),
        ),
    ],
)
def test_a_stretched_rope_is_read_as_old_and_new_configs_write_it(raw, changes, rope):
    assert llama.read_config(raw | changes).rope == rope


LONG = {"rope_type": "longrope", "rope_theta": 500.0, "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}


@pytest.mark.parametrize(
    ("nested", "beside", "family", "original"),
    [
        (16, 32, "llama", 32),
        (16, None, "llama", 16),
        (None, None, "llama", 96),
        (16, 32, "phi3", 32),
        (16, None, "phi3", 4096),
        (None, 8, "phi3", 8),
    ],
)
def test_the_original_context_beside_the_table_takes_the_place_of_that_in_it(raw, nested, beside, family, original):
    """As in transformers, whose Phi-3 has one of its own where the config has none there."""
    table = LONG | ({} if nested is None else {"original_max_position_embeddings": nested})
    changes = {"rope_parameters": table} | ({} if beside is None else {"original_max_position_embeddings": beside})
    theirs = hf.config(family, **copy.deepcopy(changes))
    config = FAMILIES[family].read_config(raw | changes)
    assert config.rope.stretch.original == original
    theirs.standardize_rope_params()
    assert theirs.rope_parameters["original_max_position_embeddings"] == original


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (
            dict(rope_parameters=NTK),
            "rope type 'dynamic' is not supported (default, linear, llama3, yarn, longrope are)",
        ),
        (dict(rope_parameters=None, rope_scaling=NTK), "rope type 'dynamic' is not supported"),
        (dict(rope_scaling={"type": "linear"}), "rope factor: wanted a positive number that float32 holds, got None"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0, "beta": 3}), "rope beta = 3 is not supported"),
        (dict(rope_parameters=LLAMA3 | {"low_freq_factor": 9.0}), "slow = 9.0 must be less than fast = 4.0"),
        (dict(rope_parameters={"rope_theta": 5.0, "partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
        (dict(hidden_act="tanh"), "hidden_act = 'tanh' is not supported (silu, swish, gelu,"),
        (dict(pretraining_tp=2), "pretraining_tp = 2"),
        (dict(rope_interleaved=True), "rope_interleaved = True"),
        (dict(quantization_config={"bits": 4}), "quantization_config"),
        (dict(sliding_window=128), "sliding_window = 128 is not supported (unknown field)"),
        (dict(num_hidden_layers=None), "num_hidden_layers: wanted a positive integer, got None"),
        (dict(vocab_size="43"), "vocab_size: wanted a positive integer, got '43'"),
        (dict(num_key_value_heads="2"), "num_key_value_heads: wanted a positive integer, got '2'"),
        (dict(num_key_value_heads=3), "kv_heads must divide heads"),
        (dict(head_dim=None, hidden_size=18), "does not divide"),
        (dict(head_dim=3), "head_width must be even"),
        (dict(rms_norm_eps="tiny"), "rms_norm_eps: wanted a positive number that float32 holds, got 'tiny'"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings: wanted true or false, got 'yes'"),
        (dict(num_attention_heads=True), "num_attention_heads: wanted a positive integer, got True"),
    ],
)
def test_fields_that_matter_are_refused_by_name(raw, changes, fault):
    with pytest.raises(ValueError) as error:
        llama.read_config(raw | changes)
    assert fault in str(error.value)


NAN, ENDLESS, HUGE = float("nan"), float("inf"), 10**400
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
WRONG = (NAN, ENDLESS, -ENDLESS, HUGE, 1e-60, 0, -1.0, "1", [1.0], {}, True)


@pytest.mark.parametrize("value", WRONG, ids=lambda value: str(value)[:9])
@pytest.mark.parametrize(
    ("name", "made", "field"),
    [
        ("llama", lambda value: dict(rms_norm_eps=value), "rms_norm_eps"),
        ("llama", lambda value: dict(rope_parameters={"rope_theta": value}), "rope_theta"),
        ("llama", lambda value: dict(rope_parameters=None, rope_theta=value), "rope_theta"),
        ("llama", lambda value: dict(rope_parameters=YARN | dict(factor=value)), "factor"),
        ("llama", lambda value: dict(rope_parameters=YARN | dict(mscale=value)), "mscale"),
        ("llama", lambda value: dict(rope_parameters=YARN | dict(attention_factor=value)), "attention_factor"),
        ("llama", lambda value: dict(rope_parameters=LLAMA3 | dict(low_freq_factor=value)), "low_freq_factor"),
        ("gemma2", lambda value: dict(attn_logit_softcapping=value), "attn_logit_softcapping"),
        ("gemma2", lambda value: dict(query_pre_attn_scalar=value), "query_pre_attn_scalar"),
        ("gemma3_text", lambda value: dict(rope_local_base_freq=value, rope_parameters=None), "rope_theta"),
        ("granite", lambda value: dict(logits_scaling=value), "logits_scaling"),
        ("gpt_neox", lambda value: dict(rope_parameters={"partial_rotary_factor": value}), "partial_rotary_factor"),
        ("phi3", lambda value: dict(rope_parameters=hf.LONG_ROPE | dict(long_factor=[1.0, value])), "long_factor"),
    ],
)
def test_what_is_no_number_is_refused_by_name(name, made, field, value):
    raw = written(hf.config(name))
    with pytest.raises(ValueError, match=f"{field}: wanted a (positive number|list of positive numbers)") as error:
        FAMILIES[name].read_config(raw | made(value))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("name", "changes", "fault"),
    [
        (
            "llama",
            dict(rope_parameters=YARN | dict(rope_theta=1.0)),
            "rope theta must be above 1 where it is stretched",
        ),
        ("llama", dict(rope_parameters={"rope_type": ["x"]}), "rope type \"['x']\" is not supported"),
        ("llama", dict(rope_parameters=5), "rope_parameters: wanted an object, got 5"),
        ("llama", dict(hidden_act=["silu"]), "hidden_act = ['silu'] is not supported"),
        ("llama", dict(own="x" * 10**6), "xxx... (1,000,002 characters) is not supported (unknown field)"),
        ("llama", dict(hidden_size=HUGE), "hidden_size: wanted at most 1,000,000,000, got 10,000,"),
        ("qwen2", dict(layer_types=[["a"], ["b"]]), "layer_types: wanted full_attention or sliding_attention"),
        ("qwen2", dict(max_window_layers="a"), "max_window_layers: wanted an integer of at least 0, got 'a'"),
        ("gemma3_text", dict(rope_parameters={"full_attention": 5}), "full_attention: wanted an object, got 5"),
        ("gemma3_text", dict(rope_parameters={"full_attention": [1]}), "full_attention: wanted an object, got [1]"),
        ("gemma2", dict(sliding_window_size=77), "sliding_window_size = 77 is not supported"),
    ],
)
def test_a_field_of_another_make_than_any_model_has_is_refused_by_name(name, changes, fault):
    with pytest.raises(ValueError) as error:
        FAMILIES[name].read_config(written(hf.config(name)) | changes)
    assert fault in str(error.value)


def test_an_old_spelling_that_transformers_passes_over_is_refused():
    """Gemma 3 has a table of its own for each sort of layer, and `type` in an old one changes nothing there."""
    raw = written(hf.config("gemma3_text")) | dict(rope_parameters=None, rope_scaling={"type": "linear", "factor": 8.0})
    with pytest.raises(ConfigError, match=r"rope_scaling: says type = 'linear', which transformers passes over here"):
        FAMILIES["gemma3_text"].read_config(raw)
    FAMILIES["gemma3_text"].read_config(raw | dict(rope_scaling={"rope_type": "linear", "factor": 8.0}))


def test_neox_has_as_many_keys_as_queries_whatever_a_field_says():
    raw, read = written(hf.config("gpt_neox")), FAMILIES["gpt_neox"].read_config
    assert read(raw | dict(num_key_value_heads=1)) == read(raw)


def test_all_windows_begin_at_the_first_layer():
    windows = dict(use_sliding_window=True, sliding_window=2, max_window_layers=0, layer_types=None)
    assert FAMILIES["qwen2"].read_config(written(hf.config("qwen2")) | windows).local == (True, True)


def test_all_faults_are_named_at_once(raw):
    with pytest.raises(ValueError) as error:
        llama.read_config(raw | dict(hidden_act="tanh", rope_parameters=NTK, sliding_window=4, vocab_size=0))
    assert all(word in str(error.value) for word in ("tanh", "dynamic", "sliding_window", "vocab_size"))


def test_a_ledger_knows_what_was_read():
    ledger = family.Ledger(dict(a=1, b=2, c=3, d=None, e=5))
    assert ledger.take("a") == 1 and ledger.take("x", 9) == 9
    assert ledger.unread(dict(b=2), frozenset({"c"})) == ["e = 5 is not supported (unknown field)"]
    assert ledger.unread(dict(b=7), frozenset({"c", "e"})) == ["b = 2 is not supported (only 7 is)"]
