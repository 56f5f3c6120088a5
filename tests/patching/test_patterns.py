"""Partitions from patterns: what they own, and every way in which they can be wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch.patching.components import Kind, Slot
from jaxpatch.patching.patterns import misfits
from jaxpatch.trees import paths


def tree(layers: int = 3):
    """Blocks with an attention and an MLP, beside a stack, a table of integers and a head."""
    block = {
        "attn": {"query": jnp.ones((4, 2, 3)), "out": jnp.ones((2, 3, 4))},
        "up": jnp.ones((4, 5)),
        "down": jnp.ones((5, 4)),
    }
    blocks = {f"block_{number}": block for number in range(layers)}
    return {
        **blocks,
        "stack": {"up": jnp.ones((3, 4, 5))},
        "table": jnp.ones((7, 4), int),
        "out": {"kernel": jnp.ones((4, 2))},
    }


def test_modules_of_their_own_and_stacked_leaves_make_the_same_gates():
    made = jp.partition(
        tree(),
        {
            "head": {"block_{layer}/attn/query": 1, "block_{layer}/attn/out": 0},
            "neuron": {"stack/up": (0, 2)},
            "block": {"block_{layer}/**": ()},
            "class": {"out/kernel": -1},
            "out": {"out/*": ()},
        },
    )
    assert {name: (kind.shape, kind.axes) for name, kind in made.items()} == {
        "head": ((3, 2), ("layer", "head")),
        "neuron": ((3, 5), ("layer", "neuron")),
        "block": ((3,), ("layer",)),
        "class": ((2,), ("class",)),
        "out": ((1,), ("index",)),
    }
    assert made["head"].slots[0] == Slot("block_0/attn/query", (1,), (0,))
    assert len(made["block"].slots) == 12 and made["out"].slots == (Slot("out/kernel", (), (0,)),)


def test_a_component_owns_its_slices_and_nothing_else():
    base, special = tree(), {**tree(), **{f"block_{n}": _doubled(tree()[f"block_{n}"]) for n in range(3)}}
    made = jp.partition(base, {"head": {"block_{layer}/attn/query": 1, "block_{layer}/attn/out": 0}})
    patched = jp.patch(base, special, {"head": jnp.zeros((3, 2)).at[2, 1].set(1)}, made)
    for path, leaf in paths.leaves(patched).items():
        wanted = np.ones(leaf.shape)
        if path == "block_2/attn/query":
            wanted[:, 1] = 2
        if path == "block_2/attn/out":
            wanted[1] = 2
        np.testing.assert_array_equal(leaf, wanted, err_msg=path)


def _doubled(block):
    return paths.with_leaves(block, {path: 2 * leaf for path, leaf in paths.leaves(block).items()})


def test_numbers_are_dimensions_in_their_order():
    """Layers of a `Sequential` are numbered with gaps, and 10 comes after 9; two numbers are two dimensions."""
    gaps = {f"layers_{n}": {"kernel": jnp.full((1, 4), float(n))} for n in (10, 2, 9)}
    made = jp.partition(gaps, {"unit": {"layers_{layer}/kernel": 1}})["unit"]
    assert made.shape == (3, 4)
    assert {slot.leaf: slot.select for slot in made.slots} == {
        "layers_2/kernel": (0,),
        "layers_9/kernel": (1,),
        "layers_10/kernel": (2,),
    }
    stages = {f"stage_{s}": {f"block_{b}": jnp.ones((4,)) for b in range(3)} for s in range(2)}
    made = jp.partition(stages, {"unit": {"stage_{stage}/block_{block}": 0}})["unit"]
    assert (made.shape, made.axes) == ((2, 3, 4), ("stage", "block", "unit"))


def test_a_leaf_that_only_some_layers_have_is_owned_where_it_is():
    some = {"block_0": {"up": jnp.ones(2)}, "block_1": {"up": jnp.ones(2), "skip": jnp.ones(2)}}
    made = jp.partition(some, {"unit": {"block_{layer}/up": 0, "block_{layer}/skip": 0}})["unit"]
    assert [slot.select for slot in made.slots] == [(0,), (1,), (1,)]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"block_{layer}/attn/q/kernel": 1},
            r"'block_\{layer\}/attn/q/kernel' matches no leaf; nearest: block_0/attn/query",
        ),
        ({"zzz": 0}, "'zzz' matches no leaf; there are block_0/attn/out, "),
        ({"block_{layer}/up": 2}, r"block_0/up has shape \(4, 5\), and no axis 2"),
        ({"block_{layer}/up": -3}, "no axis -3"),
        ({"block_{layer}/up": (1, -1)}, r"block_0/up: axes \(1, -1\) name one of its axes twice"),
        ({"block_{layer}/up": "1"}, r"wanted an axis, a tuple of axes, or \(\) for whole leaves; got '1'"),
        ({"block_{layer}/up": 1.0}, "got 1.0"),
        (
            {"block_{layer}/up": 1, "block_{layer}/down": 1},
            r"sizes disagree: block_0/up has \(5,\) along axes \(1,\); block_0/down has",
        ),
        (
            {"block_{layer}/up": 1, "stack/up": (0, 2)},
            r"differ in what they number: 'block_\{layer\}/up' \('layer',\); 'stack/up'",
        ),
        (
            {"block_{layer}/attn/query": 1, "**/query": 1},
            r"block_0/attn/query is owned twice, by block_\{layer\}/attn/query, \*\*/query",
        ),
        ({"table": 0}, "table is int32; only arrays of floats can be between two models, so leave it out"),
        ({"block_{}/up": 1}, r"wanted a name of its own in each pair of braces, such as \{layer\}"),
        ({"block_{a}/{a}": 1}, "wanted a name of its own in each"),
        ({}, r"wanted \{leaf pattern: axis or axes\}, at least one; got \{\}"),
        ("block_0/up", "at least one; got 'block_0/up'"),
    ],
)
def test_bad_patterns_are_refused(patterns, message):
    with pytest.raises(ValueError, match="kind: .*" + message):
        jp.partition(tree(), {"kind": patterns})


def test_holes_are_refused():
    holed = {"stage_0": {"block_0": jnp.ones(2), "block_1": jnp.ones(2)}, "stage_1": {"block_0": jnp.ones(2)}}
    with pytest.raises(
        ValueError, match=r"unit: no leaf has \('stage', 'block'\) = \(1, 1\); a gate array has no holes"
    ):
        jp.partition(holed, {"unit": {"stage_{stage}/block_{block}": 0}})


def test_all_faults_are_named_at_once():
    with pytest.raises(ValueError) as caught:
        jp.partition(
            tree(), {"one": {"nothing": 0, "table": 0, "out/kernel": 5}, "two": {"block_*/up": 1, "block_*/down": 1}}
        )
    for words in ("one: 'nothing' matches", "one: table is int32", "one: out/kernel has shape", "two: sizes disagree"):
        assert words in str(caught.value)
    with pytest.raises(ValueError, match="no kinds: wanted"):
        jp.partition(tree(), {})


def test_scalars_that_are_no_arrays_are_refused():
    with pytest.raises(ValueError, match="scale is float; only arrays of floats"):
        jp.partition({"scale": 2.0}, {"scale": {"scale": ()}})


def test_misfits_of_a_partition_and_another_tree():
    made = jp.partition(tree(), {"head": {"block_{layer}/attn/query": 1}})
    assert misfits(tree(), made) == []
    assert misfits(tree(2), made) == ["head: the tree has no leaf block_2/attn/query"]
    assert misfits({"w": jnp.ones(3)}, {"unit": Kind((4,), ("unit",), (Slot("w", (0,)),))}) == [
        "unit: w has shape (3,); wanted (4,) along axes (0,)"
    ]
