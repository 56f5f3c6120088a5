"""Every field of a config is read: changed, it changes the logits or is refused."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.models import checkpoints, convert
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.models.rope import Linear, Llama3, Rope

CHANGES = dict(
    family="gemma",
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
    qk_norm=True,
    mlp_bias=True,
)

BEFORE = {"local": dict(window=2), "local_rope": dict(window=2, local=(True, False, True))}
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
    except (ValueError, KeyError) as error:
        assert name not in ("rope", "norm_eps", "tied", "window", "local", "local_rope"), (
            f"these change nothing but the numbers; got {error}"
        )


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
        (dict(rope=Rope(theta=0.0)), "rope theta must be positive; got 0.0"),
        (dict(rope=Rope(stretch=Linear(factor=-2.0))), "rope factor must be positive; got -2.0"),
        (
            dict(rope=Rope(stretch=Llama3(factor=8.0, slow=4.0, fast=1.0, original=9))),
            "slow = 4.0 must be less than fast = 1.0",
        ),
        (dict(norm_eps=-1e-6), "norm_eps must be positive; got -1e-06"),
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
