"""Every field of a config is read: changed, it changes the logits or is refused."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.errors import FlaxError

from jaxpatch import testing
from jaxpatch.models import checkpoints, convert
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.models.rope import Linear, Llama3, LongRope, Rope

CHANGES = dict(
    family="gpt2",
    vocab=67,
    layers=2,
    width=20,
    heads=2,
    kv_heads=1,
    head_width=8,
    neurons=20,
    context=5,
    rope=Rope(theta=100.0),
    norm_eps=0.1,
    tied=True,
    window=2,
    local=(True, False, True),
    local_rope=Rope(theta=50.0),
    attention_bias=True,
    output_bias=True,
    mlp_bias=True,
    positions=64,
    norm="layer",
    norm_offset=0.5,
    pre_norm=False,
    post_norm=True,
    parallel=True,
    qk_norm="head",
    attention_scale=0.9,
    attention_cap=0.3,
    activation="relu",
    gated=False,
    experts=3,
    chosen=1,
    shares_sum_to_one=True,
    embed_scale=2.0,
    residual_scale=0.5,
    logit_scale=3.0,
    logit_cap=0.2,
)
ONLY_NUMBERS = (
    *("rope", "norm_eps", "tied", "window", "local", "local_rope", "norm_offset", "parallel", "attention_scale"),
    *("attention_cap", "activation", "embed_scale", "residual_scale", "logit_scale", "logit_cap"),
    *("chosen", "shares_sum_to_one"),
)
"""Fields that change nothing but what is computed, so that no shape can refuse them."""

BEFORE = {
    "local": dict(window=2),
    "local_rope": dict(window=2, local=(True, False, True)),
    "pre_norm": dict(post_norm=True),
    "experts": dict(experts=4, chosen=2),
    "chosen": dict(experts=4, chosen=2),
    "shares_sum_to_one": dict(experts=4, chosen=2),
}
"""What a field needs that it be allowed at all."""


def answer(config: DecoderConfig, params) -> np.ndarray:
    """What a config is for: logits, and the tensors of a checkpoint."""
    pair = checkpoints.Pair(base=params, special=params, config=config)
    assert dict(convert.to_tensors(params, FAMILIES[config.family].rules(config), config))
    return np.asarray(pair.apply(params, [[3, 1, 4, 1, 5, 9]]))


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(DecoderConfig)])
def test_each_field_changes_the_answer_or_is_refused(name):
    config = testing.tiny_config(**BEFORE.get(name, {}))
    params = testing.tiny_pair(config).base
    changed = dataclasses.replace(config, **{name: CHANGES[name]})
    assert getattr(changed, name) != getattr(config, name)
    try:
        assert np.abs(answer(changed, params) - answer(config, params)).max() > 1e-3
    except (ValueError, KeyError, FlaxError) as error:
        assert name not in ONLY_NUMBERS, f"it changes nothing but the numbers; got {error}"


def test_changes_make_another_model_and_leave_this_one():
    config = testing.tiny_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = 5  # type: ignore[misc]
    assert hash(config) == hash(testing.tiny_config())


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (dict(layers=0), "layers must be at least 1; got 0"),
        (dict(heads=4, kv_heads=3), "kv_heads must divide heads; got heads=4, kv_heads=3"),
        (dict(head_width=5), "head_width must be even; got 5"),
        (dict(rope=Rope(theta=0.0)), "rope theta must be positive and finite; got 0.0"),
        (dict(rope=Rope(stretch=Linear(factor=-2.0))), "rope factor must be positive and finite; got -2.0"),
        (
            dict(rope=Rope(stretch=Llama3(factor=8.0, slow=4.0, fast=1.0, original=9))),
            "slow = 4.0 must be less than fast = 1.0",
        ),
        (dict(norm_eps=-1e-6), "norm_eps must be positive and finite; got -1e-06"),
        (dict(logit_scale=0.0), "logit_scale must be positive and finite; got 0.0"),
        (dict(norm_eps=float("nan")), "norm_eps must be positive and finite; got nan"),
        (dict(logit_cap=float("inf")), "logit_cap must be positive and finite; got inf"),
        (dict(rope=Rope(theta=float("inf"))), "rope theta must be positive and finite; got inf"),
        (dict(rope=Rope(share=float("nan"))), "rope share must be positive and finite; got nan"),
        (
            dict(rope=Rope(stretch=LongRope(short=(1.0, float("nan")), long=(1.0, 2.0), original=4, scale=1.0))),
            r"rope short must be positive and finite; got \(1.0, nan\)",
        ),
        (dict(attention_cap=0.0), "attention_cap must be positive and finite; got 0.0"),
        (dict(norm="batch"), "norm must be one of rms, layer; got batch"),
        (dict(qk_norm="half"), "qk_norm must be one of None, head, whole; got half"),
        (dict(activation="tanh"), "activation must be one of silu, gelu, gelu_tanh, relu; got tanh"),
        (dict(rope=Rope(share=0.3)), "rope share must turn an even number of a head's 4 numbers; got 0.3"),
        (dict(rope=None, window=2, local_rope=Rope()), "rotary positions of their own only where the others have some"),
        (dict(positions=63), "positions must be at least context = 64; got 63"),
        (dict(pre_norm=False), "a block needs norms: pre_norm, post_norm or both"),
        (
            dict(rope=Rope(stretch=LongRope(short=(1.0,), long=(1.0, 2.0), original=4, scale=1.0))),
            "rope short: wanted 2 factors, got 1",
        ),
    ],
)
def test_nonsense_is_refused(changes, fault):
    with pytest.raises(ValueError, match=fault):
        testing.tiny_config(**changes)


def test_all_nonsense_is_named_at_once():
    with pytest.raises(ValueError) as error:
        testing.tiny_config(vocab=0, head_width=3, norm_eps=0.0)
    assert all(word in str(error.value) for word in ("vocab", "head_width", "norm_eps"))


def test_sizes_are_the_shapes_of_the_parameters():
    config = testing.tiny_config()
    sizes, params = config.sizes, testing.tiny_pair(config).base
    assert jax.tree.map(np.shape, params["layers"]["attn"]["q"]["kernel"]) == tuple(sizes[s] for s in "LDNH")
    assert jax.tree.map(np.shape, params["layers"]["mlp"]["down"]["kernel"]) == tuple(sizes[s] for s in "LFD")
