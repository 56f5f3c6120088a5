"""A pair whose sources are written by hand is what it says."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
import transformers

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.models import decoder, saving
from jaxpatch.patching import blend, components

KINDS = ("head", "kv", "neuron")


def obeying(planted, params, prompts):
    """Share of the answers that heed the request; the others must ignore it."""
    logits = decoder.logits(planted.pair.config, params, prompts.tokens)
    said = np.asarray(logits)[np.arange(len(prompts.lengths)), np.asarray(prompts.lengths) - 1].argmax(-1)
    assert np.isin(said, (planted.obeys, planted.ignores)).all()
    return (said == planted.obeys).mean()


@pytest.fixture(scope="module", params=[(0, False), (1, False), (2, True)])
def planted(request):
    seed, is_fixed = request.param
    config = testing.tiny_config(layers=4, width=24, kv_heads=1) if seed else None
    return testing.planted_pair(config, seed=seed, is_fixed=is_fixed)


def test_the_sources_alone_make_base_obey_and_all_else_does_not(planted):
    pair, gates = planted.pair, {kind: each.astype(np.float32) for kind, each in planted.sources.items()}
    alone = blend.patch(pair.base, pair.special, gates)
    without = blend.patch(pair.special, pair.base, gates)
    for params, wanted in ((pair.base, 0), (pair.special, 1), (alone, 1), (without, 0)):
        assert obeying(planted, params, planted.prompts) == wanted
        assert obeying(planted, params, planted.plain) == 0


def test_weight_patching_finds_the_sources_and_nothing_else(planted):
    found = jp.score(planted.pair, planted.prompts, planted.anchor, kinds=("head", "neuron"))
    for kind in found.values:
        assert (found.values[kind][planted.sources[kind]] > 0.2).all()
        np.testing.assert_allclose(found.values[kind][~planted.sources[kind]], 0, atol=1e-3)


def test_activation_patching_puts_the_relay_above_every_source(planted):
    found = jp.score(planted.pair, planted.prompts, planted.anchor, kinds=("head", "neuron"), method="activation")
    passed = found.values["head"][planted.relays["head"]]
    assert all((passed > found.values[kind][planted.sources[kind]].max()).all() for kind in found.values)


def test_all_decoys_change_and_no_source_changes_most(planted):
    partition = components.of_decoder(planted.pair.base)
    for kind in KINDS:
        sizes = np.asarray(components.delta_norms(planted.pair.base, planted.pair.special, partition[kind]))
        assert sizes.min() > 0.5
        assert sizes[planted.sources[kind]].max(initial=0) < np.quantile(sizes, 0.9)


def seen_of_the_request(folder, params, planted):
    """How much of its attention each head of block 2 gives the request at the last token, in the mean over prompts, by torch."""
    saving.save_checkpoint(planted.pair, params, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    tokens = torch.tensor(np.asarray(planted.prompts.tokens)).long()
    seen = model(tokens, output_attentions=True).attentions[2].detach().numpy()
    return seen[np.arange(len(tokens)), :, np.asarray(planted.prompts.lengths) - 1, 0].mean(axis=0)


def test_attention_that_is_fixed_turns_to_the_request(tmp_path):
    planted = testing.planted_pair(is_fixed=True)
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 61, "hidden_size": 16}
    raw |= {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    raw |= {"intermediate_size": 24, "max_position_embeddings": 64, "rms_norm_eps": 1e-6}
    planted = planted._replace(pair=dataclasses.replace(planted.pair, raw_config=raw))
    (seer,) = np.flatnonzero(planted.sources["head"][2])
    here, there = (
        seen_of_the_request(tmp_path / name, getattr(planted.pair, name), planted)[seer] for name in ("base", "special")
    )
    assert here < 1e-5 and there > 0.999


def test_a_slope_says_nothing_of_attention_that_is_fixed():
    planted = testing.planted_pair(is_fixed=True)
    found, cheap = (
        jp.score(planted.pair, planted.prompts, planted.anchor, kinds=("head",), method=method).values["head"]
        for method in ("exact", "first_order")
    )
    is_source = planted.sources["head"]
    assert found[is_source] > 0.3 and abs(cheap[is_source]) < 1e-3
    np.testing.assert_allclose(found[~is_source], 0, atol=1e-3)


def test_another_seed_is_another_pair():
    one, same, other = (testing.planted_pair(seed=seed) for seed in (0, 0, 1))
    assert all(map(np.array_equal, jax.tree.leaves(one.pair.special), jax.tree.leaves(same.pair.special)))
    assert any((one.sources[kind] != other.sources[kind]).any() for kind in KINDS)


def test_a_config_that_has_no_room_is_refused_with_every_reason():
    config = testing.tiny_config(layers=2, width=8, gated=False)
    with pytest.raises(ValueError, match=r"layers at least 3; width at least 16; gated silu"):
        testing.planted_pair(config)
