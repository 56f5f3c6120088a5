"""The definition of a patch: exact at both ends, the right slope between them, nothing changed in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from patching_bits import bits, snapshot

from jaxpatch import testing
from jaxpatch.patching import components, patterns
from jaxpatch.patching.blend import blend, patch
from jaxpatch.patching.components import Kind, Slot
from jaxpatch.trees import paths

AWKWARD = [0.0, -0.0, 1.0, -1.0, 0.1, 1e-38, 3e4, -3e4, 1 / 3, 6e-8]
"""Zeros of both signs, a subnormal in float16, and numbers that do not add up exactly."""


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_both_ends_bit_for_bit(dtype):
    draw = np.random.default_rng(0)
    base, special = (
        jnp.asarray(np.concatenate([draw.permutation(AWKWARD), draw.normal(size=1000)]), dtype) for _ in "ab"
    )
    for run in (blend, jax.jit(blend), jax.vmap(blend, in_axes=(0, 0, None))):
        assert bits(run(base, special, jnp.float32(0))) == bits(base)
        assert bits(run(base, special, jnp.float32(1))) == bits(special)
    middle = blend(base, special, jnp.float32(0.25))
    assert middle.dtype == dtype
    wanted = (0.75 * np.asarray(base, np.float64) + 0.25 * np.asarray(special, np.float64)).astype(np.float32)
    np.testing.assert_allclose(np.asarray(middle, np.float32), wanted, rtol=float(jnp.finfo(dtype).eps), atol=1e-7)


@pytest.mark.parametrize("at", [0.0, 0.3, 1.0])
def test_slope_is_special_minus_base_everywhere(at):
    base, special, at = jnp.float32(2), jnp.float32(5), jnp.float32(at)
    assert jax.grad(blend, argnums=2)(base, special, at) == 3
    assert jax.jit(jax.grad(blend, argnums=2))(base, special, at) == 3
    assert jax.jvp(lambda g: blend(base, special, g), (at,), (jnp.float32(2),))[1] == 6
    ats = jnp.full(4, at)
    np.testing.assert_array_equal(
        jax.vmap(jax.grad(blend, argnums=2), in_axes=(None, None, 0))(base, special, ats), [3] * 4
    )
    np.testing.assert_allclose(jax.grad(blend)(base, special, at), 1 - at, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(blend, argnums=1)(base, special, at), at, rtol=1e-6)
    assert jax.hessian(blend, argnums=2)(base, special, at) == 0


def test_slope_in_half_precision():
    base, special = jnp.asarray([2.0, 1.0], jnp.bfloat16), jnp.asarray([5.0, -1.0], jnp.bfloat16)
    slope = jax.grad(lambda g: blend(base, special, g).sum().astype(jnp.float32))(jnp.float32(0))
    assert slope.dtype == jnp.float32 and slope == 1


def test_every_gate_at_an_end_gives_that_model_and_leaves_both_alone():
    pair = testing.tiny_pair()
    before = snapshot(pair.base), snapshot(pair.special)
    partition = components.of_decoder(pair.base)
    everything = ("layer", "final_norm", "embed", "unembed")
    assert snapshot(patch(pair.base, pair.special, {})) == before[0]
    zeros = {kind: jnp.zeros(partition[kind].shape) for kind in partition}
    assert snapshot(patch(pair.base, pair.special, zeros)) == before[0]
    ones = components.gates(partition, dict.fromkeys(everything, "all"))
    assert snapshot(patch(pair.base, pair.special, ones)) == before[1]
    assert snapshot(jax.jit(patch)(pair.base, pair.special, ones)) == before[1]
    assert (snapshot(pair.base), snapshot(pair.special)) == before


def test_only_the_slices_of_the_component_change():
    pair = testing.tiny_pair(testing.tiny_config(attention_bias=True, output_bias=True, mlp_bias=True))
    partition = components.of_decoder(pair.base)
    patched = patch(pair.base, pair.special, components.gates(partition, {"head": [(1, 2)]}))
    base, special, got = (paths.flatten(tree) for tree in (pair.base, pair.special, patched))
    owned = {
        "layers/attn/q/kernel": np.s_[1, :, 2],
        "layers/attn/q/bias": np.s_[1, 2],
        "layers/attn/o/kernel": np.s_[1, 2],
    }
    for path in base:
        wanted = np.array(base[path])
        if path in owned:
            wanted[owned[path]] = special[path][owned[path]]
        assert bits(got[path]) == bits(wanted), path
        assert path in owned or got[path] is base[path]


def test_masks_and_counts_are_gates_too():
    base, special, partition = hand_made()
    chosen = np.zeros((4, 3), bool)
    chosen[3, 1] = True
    wanted = snapshot(patch(base, special, {"channel": jnp.asarray(chosen, jnp.float32)}, partition))
    assert snapshot(patch(base, special, {"channel": chosen}, partition)) == wanted
    assert snapshot(patch(base, special, {"channel": chosen.astype(int)}, partition)) == wanted


def test_overlapping_kinds_move_as_far_as_either():
    """``1 - (1 - g1)(1 - g2)``: a half and a half is three quarters, and a one is a one whatever the other says."""
    pair = testing.tiny_pair()
    partition = components.of_decoder(pair.base)
    gates = {"head": jnp.full(partition["head"].shape, 0.5), "layer": jnp.asarray([0.5, 0.0, 1.0])}
    got = patch(pair.base, pair.special, gates)["layers"]["attn"]["q"]["kernel"]
    base, special = (tree["layers"]["attn"]["q"]["kernel"] for tree in (pair.base, pair.special))
    np.testing.assert_allclose(got[0], 0.25 * base[0] + 0.75 * special[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[1], 0.5 * base[1] + 0.5 * special[1], rtol=1e-5, atol=1e-6)
    assert bits(got[2]) == bits(special[2])


def hand_made():
    """No decoder: two convolutions and a table, with axes out of order and one slot that selects a row of gates."""
    draw = np.random.default_rng(1)
    base, special = (
        {
            "conv": {"w": draw.normal(size=(3, 2, 4)).astype(np.float32)},
            "table": draw.normal(size=(4,)).astype(np.float32),
        }
        for _ in "ab"
    )
    partition = {
        "channel": Kind((4, 3), ("out", "in"), (Slot("conv/w", (2, 0)),)),
        "part": Kind(
            (2, 4), ("part", "column"), (Slot("conv/w", (2,), (1, slice(None))), Slot("table", (0,), (0, slice(None))))
        ),
    }
    return base, special, partition


def test_any_tree_with_a_partition_of_ones_own():
    base, special, partition = hand_made()
    before = snapshot(base), snapshot(special)
    patched = patch(base, special, components.gates(partition, {"channel": [(3, 1), (0, 2)]}), partition)
    wanted = base["conv"]["w"].copy()
    wanted[1, :, 3], wanted[2, :, 0] = special["conv"]["w"][1, :, 3], special["conv"]["w"][2, :, 0]
    assert bits(patched["conv"]["w"]) == bits(wanted)
    assert patched["table"] is base["table"]
    patched = patch(base, special, components.gates(partition, {"part": [(0, 1), (1, 2)]}), partition)
    wanted = base["conv"]["w"].copy()
    wanted[:, :, 2] = special["conv"]["w"][:, :, 2]
    assert bits(patched["conv"]["w"]) == bits(wanted)
    assert np.flatnonzero(np.asarray(patched["table"]) == special["table"]).tolist() == [1]
    assert (snapshot(base), snapshot(special)) == before


def test_leaves_both_models_share_are_not_even_copied():
    base, special, partition = hand_made()
    special = {**special, "table": base["table"]}
    gates = components.gates(partition, {"part": "all"})
    assert patch(base, special, gates, partition)["table"] is base["table"]


def test_gradient_through_patch_is_the_contracted_difference():
    base, special, partition = hand_made()

    def total(gates):
        return patch(base, special, gates, partition)["conv"]["w"].sum()

    for at in (0.0, 0.5, 1.0):
        slope = jax.grad(total)({"channel": jnp.full((4, 3), at)})["channel"]
        np.testing.assert_allclose(slope, (special["conv"]["w"] - base["conv"]["w"]).sum(1).T, rtol=1e-5)
    ones = jax.vmap(
        lambda index: patch(base, special, {"channel": jnp.zeros((4, 3)).at[index, 0].set(1)}, partition)["conv"]["w"]
    )
    rows = ones(jnp.arange(4))
    for index in range(4):
        wanted = base["conv"]["w"].copy()
        wanted[0, :, index] = special["conv"]["w"][0, :, index]
        assert bits(rows[index]) == bits(wanted)


def test_faults_are_named():
    pair = testing.tiny_pair()
    with pytest.raises(KeyError, match="did you mean 'neuron'"):
        patch(pair.base, pair.special, {"neurons": jnp.zeros((3, 24))})
    with pytest.raises(ValueError, match=r"gates\['head'\] has shape \(4, 3\); this model's has \(3, 4\)"):
        patch(pair.base, pair.special, {"head": jnp.zeros((4, 3))})
    with pytest.raises(
        ValueError, match=r"(?s)do not match.*embed/kernel: base has shape.*final_norm/scale: only in base"
    ):
        special = {
            "embed": {"kernel": pair.base["embed"]["kernel"][:5]},
            "layers": pair.base["layers"],
            "unembed": pair.base["unembed"],
        }
        patch(pair.base, special, {})
    with pytest.raises(KeyError, match="the tree lacks: nowhere"):
        patch(pair.base, pair.special, {"odd": jnp.zeros(2)}, {"odd": Kind((2,), ("x",), (Slot("nowhere", (0,)),))})


def test_what_is_no_decoder_is_patched_by_its_own_partition():
    base, special = ({"up": jnp.full((2, 3), value)} for value in (1.0, 2.0))
    gates = {"unit": jnp.array([0.0, 1.0, 0.0])}
    with pytest.raises(ValueError, match=r"no decoder's parameters: give the partition too"):
        patch(base, special, gates)
    patched = patch(base, special, gates, patterns.partition(base, {"unit": {"up": 1}}))
    np.testing.assert_array_equal(patched["up"], [[1, 2, 1]] * 2)
