"""The contract of a family: every field of a config is read, known to change nothing, or refused."""

import hf
import pytest

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families import FAMILIES, family, llama
from jaxpatch.models.rope import Linear, Llama3, Rope


@pytest.fixture
def raw():
    return hf.config().to_dict() | dict(model_type="llama")


def written(config) -> dict:
    """What transformers writes into config.json."""
    return config.to_diff_dict() | dict(model_type="llama")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_what_the_floor_asks_of_it(name):
    member = FAMILIES[name]
    config = DecoderConfig(
        family=name, vocab=8, layers=2, width=4, heads=2, kv_heads=1, head_width=2, neurons=6, context=9
    )
    rules = member.rules(config)
    assert all(isinstance(rule, Rule) for rule in rules)
    assert len({rule.ours for rule in rules}) == len({rule.theirs for rule in rules}) == len(rules)
    theirs = {rule.theirs for rule in rules}
    assert set(member.gguf_names.values()) <= theirs, "a GGUF tensor goes where no rule takes it on"
    assert len(set(member.gguf_names.values())) == len(member.gguf_names)
    with pytest.raises(ValueError):
        member.read_config({})
    assert bool(member.gguf_names) == bool(member.gguf_config)
    if member.gguf_config:
        with pytest.raises(ValueError):
            member.gguf_config({})


STRETCHES = {
    "GQA llama3 rope": Llama3(factor=8.0, slow=1.0, fast=4.0, original=24),
    "GQA linear rope": Linear(factor=4.0),
}
WINDOWS = {
    "Mistral, window": (3, ()),
    "Qwen2, local layers": (2, (False, True)),
    "Qwen3, biases, local layers": (2, (True, False)),
}


@pytest.mark.parametrize("variant", hf.VARIANTS)
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
        qk_norm=theirs.model_type == "qwen3",
        mlp_bias=getattr(theirs, "mlp_bias", False),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_left_out_has_transformers_defaults(name):
    fields = dict(vocab_size=8, num_hidden_layers=1, hidden_size=64, num_attention_heads=32, intermediate_size=3)
    ours, theirs = FAMILIES[name].read_config(fields), type(hf.config(name))(**fields)
    head_width = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    assert (ours.kv_heads, ours.head_width) == (theirs.num_key_value_heads, head_width)
    assert (ours.rope.theta, ours.norm_eps) == (theirs.rope_parameters["rope_theta"], theirs.rms_norm_eps)
    assert (ours.context, ours.tied, ours.mlp_bias) == (theirs.max_position_embeddings, False, False)
    assert ours.window == getattr(theirs, "sliding_window", None)


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
    ],
)
def test_fields_that_change_nothing_pass(raw, changes):
    assert llama.read_config(raw | changes) == llama.read_config(raw)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 8.0, "rope_theta": 1e4}


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
    ],
)
def test_a_stretched_rope_is_read_as_old_and_new_configs_write_it(raw, changes, rope):
    assert llama.read_config(raw | changes).rope == rope


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (dict(rope_parameters=YARN), "rope type 'yarn' is not supported (default, linear and llama3 are)"),
        (dict(rope_parameters=None, rope_scaling=YARN), "rope type 'yarn' is not supported"),
        (dict(rope_scaling={"type": "linear"}), "rope factor: wanted a positive number, got None"),
        (dict(rope_scaling={"type": "linear", "factor": 2.0, "beta": 3}), "rope beta = 3 is not supported"),
        (dict(rope_parameters=LLAMA3 | {"low_freq_factor": 9.0}), "slow = 9.0 must be less than fast = 4.0"),
        (dict(rope_parameters={"rope_theta": 5.0, "partial_rotary_factor": 0.5}), "partial_rotary_factor = 0.5"),
        (dict(hidden_act="gelu"), "hidden_act = 'gelu' is not supported (only 'silu' is)"),
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
        (dict(rms_norm_eps="tiny"), "rms_norm_eps: wanted a positive number, got 'tiny'"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings: wanted true or false, got 'yes'"),
        (dict(num_attention_heads=True), "num_attention_heads: wanted a positive integer, got True"),
    ],
)
def test_fields_that_matter_are_refused_by_name(raw, changes, fault):
    with pytest.raises(ValueError) as error:
        llama.read_config(raw | changes)
    assert fault in str(error.value)


def test_all_faults_are_named_at_once(raw):
    with pytest.raises(ValueError) as error:
        llama.read_config(raw | dict(hidden_act="gelu", rope_parameters=YARN, sliding_window=4, vocab_size=0))
    assert all(word in str(error.value) for word in ("gelu", "yarn", "sliding_window", "vocab_size"))


def test_a_ledger_knows_what_was_read():
    ledger = family.Ledger(dict(a=1, b=2, c=3, d=None, e=5))
    assert ledger.take("a") == 1 and ledger.take("x", 9) == 9
    assert ledger.unread(dict(b=2), frozenset({"c"})) == ["e = 5 is not supported (unknown field)"]
    assert ledger.unread(dict(b=7), frozenset({"c", "e"})) == ["b = 2 is not supported (only 7 is)"]
