"""The conversion table: both ways, closed both ways."""

import hf
import jax
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.models import convert, decoder
from jaxpatch.models.convert import Rule
from jaxpatch.models.families import FAMILIES, wrapping
from jaxpatch.trees import paths

SIZES = dict(N=2, H=3, D=4)


def test_a_layout_says_where_each_number_goes():
    rule = Rule("q", "q/kernel", "NH D -> D N H")
    theirs = np.arange(24).reshape(6, 4)
    ours = rule.to_ours(theirs, SIZES)
    assert ours.shape == rule.our_shape(SIZES) == (4, 2, 3)
    assert rule.their_shape(SIZES) == (6, 4)
    for head, unit, column in np.ndindex(2, 3, 4):
        assert ours[column, head, unit] == theirs[3 * head + unit, column]


def test_parts_lie_side_by_side():
    sizes = dict(N=4, K=2, H=3, D=5)
    theirs = np.arange(24 * 5).reshape(24, 5)
    q, k, v = (
        Rule("qkv", name, f"[NKK]H D -> D {letter} H", part).to_ours(theirs, sizes)
        for part, (name, letter) in enumerate(zip("qkv", "NKK", strict=True))
    )
    assert (q.shape, k.shape, v.shape) == ((5, 4, 3), (5, 2, 3), (5, 2, 3))
    np.testing.assert_array_equal(q[:, 1, 2], theirs[5])
    np.testing.assert_array_equal(k[:, 1, 2], theirs[12 + 5])
    np.testing.assert_array_equal(v[:, 0, 1], theirs[18 + 1])


def test_parts_may_take_turns_head_by_head():
    sizes, theirs = dict(N=2, H=3, D=5), np.arange(18 * 5).reshape(18, 5)
    second = Rule("qkv", "k", "N[111]H D -> D N H", 1).to_ours(theirs, sizes)
    assert second.shape == (5, 2, 3)
    np.testing.assert_array_equal(second[:, 1, 2], theirs[9 + 3 + 2])


WHOLE = ["NH D -> D N H", "D NH -> N H D", "D H -> H D", "NH -> N H", "D -> D"]
PARTS = [["[NHH] D -> N D", "[NHH] D -> H D", "[NHH] D -> H D"], ["N[11]H D -> D N H"] * 2, ["D [NN]H -> D N H"] * 2]


@pytest.mark.parametrize("layouts", [*([layout] for layout in WHOLE), *PARTS], ids=str)
def test_a_layout_is_undone_bit_for_bit(layouts):
    rules = [Rule("x", str(part), layout, part) for part, layout in enumerate(layouts)]
    theirs = np.random.default_rng(0).standard_normal(rules[0].their_shape(SIZES)).astype(np.float32)
    back = np.full_like(theirs, np.nan)
    for rule in rules:
        rule.into_theirs(rule.to_ours(theirs, SIZES), back, SIZES)
        assert rule.to_ours(theirs, SIZES).shape == rule.our_shape(SIZES)
    np.testing.assert_array_equal(back, theirs)


@pytest.mark.parametrize("variant", hf.VARIANTS)
def test_every_parameter_is_filled_once_and_comes_back(variant):
    theirs = hf.config(**hf.VARIANTS[variant])
    config, raw = wrapping.read_config(theirs.to_dict())
    rules = FAMILIES[raw["model_type"]].rules(config)
    shapes = jax.eval_shape(lambda key: decoder.init(config, key), jax.random.key(0))
    wanted = {path: leaf.shape for path, leaf in paths.flatten(shapes).items()}
    assert sorted(rule.ours for rule in rules) == sorted(wanted), "the table and the decoder disagree"

    draw = np.random.default_rng(0)
    tensors = {
        name: draw.standard_normal(place.rules[0].their_shape(config.sizes)).astype(np.float32)
        for name, place in convert.places(rules, config).items()
    }
    assert not convert.faults({name: t.shape for name, t in tensors.items()}, rules, config)
    reads = []
    leaves = dict(
        convert.to_leaves(lambda n: reads.append(n) or tensors[n], list(tensors), rules, config, np.dtype(np.float32))
    )
    assert {path: leaf.shape for path, leaf in leaves.items()} == wanted
    assert sorted(reads) == sorted(tensors), "a tensor was not used exactly once"
    back = dict(convert.to_tensors(paths.unflatten(leaves), rules, config))
    assert back.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(back[name], tensors[name])


def test_layers_that_are_not_named_stay_zero():
    config = testing.tiny_config()
    rules = FAMILIES["llama"].rules(config)
    name = "model.layers.1.mlp.up_proj.weight"
    leaves = convert.to_leaves(lambda _: np.ones((24, 16)), [name], rules, config, np.dtype(np.float32))
    [(path, leaf)] = leaves
    assert path == "layers/mlp/up/kernel"
    np.testing.assert_array_equal(leaf.sum((1, 2)), [0, 24 * 16, 0])


def shapes_of(config):
    rules = FAMILIES["llama"].rules(config)
    return {name: p.rules[0].their_shape(config.sizes) for name, p in convert.places(rules, config).items()}, rules


def test_faults_are_all_named_at_once():
    config = testing.tiny_config()
    shapes, rules = shapes_of(config)
    del shapes["model.norm.weight"]
    shapes["model.layers.1.mlp.down_proj.weight"] = (24, 16)
    shapes["model.layers.0.self_attn.q_prj.weight"] = (16, 16)
    found = convert.faults(shapes, rules, config)
    assert len(found) == 3
    assert "missing tensor model.norm.weight" in found
    assert "tensor model.layers.1.mlp.down_proj.weight has shape (24, 16), but the config asks for (16, 24)" in found
    [unexpected] = [fault for fault in found if "unexpected" in fault]
    assert "did you mean 'model.layers.0.self_attn.q_proj.weight'?" in unexpected
    assert "layers.1" not in unexpected, "only names of the same layer are worth showing"


def test_only_a_partial_set_may_lack_tensors():
    config = testing.tiny_config()
    shapes, rules = shapes_of(config)
    some = dict(list(shapes.items())[:2])
    assert not convert.faults(some, rules, config, is_partial=True)
    assert len(convert.faults(some, rules, config)) == len(shapes) - 2
