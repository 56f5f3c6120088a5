"""The slope in each gate, against PyTorch's autograd and against differences of the definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scoring_toys
import torch_oracle

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument
from jaxpatch.scoring import first_order


def test_by_hand():
    found = first_order.effects(scoring_toys.product(), ("part",), scoring_toys.options())["part"].effects
    assert found.tolist() == [[2, 0, 0], [4, 0, 0]]
    at = {"part": jnp.array([0.0, 0.5, 1.0])}
    assert instrument.gate_slopes(scoring_toys.product().effect, at, 2)["part"].tolist() == [[2, 3, 1.5], [4, 6, 3]]


def test_is_torch_autograd(tmp_path):
    torch_pair = torch_oracle.make(tmp_path, kv_heads=2, tied=True, attention_bias=True, mlp_bias=True)
    pair = jp.load_pair(torch_pair.base_folder, torch_pair.special_folder)
    u = torch_oracle.direction()
    tool = instrument.of_pair(pair, jp.Inputs(*torch_oracle.padded()), jp.Anchor(layer=1, direction=u))
    found = first_order.effects(tool, torch_oracle.KINDS, scoring_toys.options())
    for kind in torch_oracle.KINDS:
        true = torch_oracle.first_order(torch_pair, kind, torch_oracle.PROMPTS, u)[1]
        largest = np.abs(true).max()
        np.testing.assert_allclose(found[kind].effects, true, rtol=1e-4, atol=1e-5 * largest, err_msg=kind)
        assert kind == "embed" or not found[kind].effects[:, 2:].any()


def test_is_the_central_difference_of_the_definition_in_float64():
    """Error of a central difference: h^2 = 1e-8 of the third derivative, and 1e-16 / h of rounding."""
    with jax.enable_x64(True):
        pair = testing.tiny_pair(testing.tiny_config(neurons=3, tied=True))
        base, special = (
            jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), p) for p in (pair.base, pair.special)
        )
        pair = dataclasses.replace(pair, base=base, special=special)
        anchor = jp.Anchor(layer=1, direction=jnp.eye(16, dtype=jnp.float64)[0])
        tool = instrument.of_pair(pair, testing.tiny_inputs(batch=2), anchor)
        kinds = ("head", "neuron", "norm", "embed")
        found = first_order.effects(tool, kinds, scoring_toys.options())
        zeros = {kind: jnp.zeros(tool.partition[kind].shape) for kind in kinds}
        rows, step = np.arange(2), 1e-4
        for kind in kinds:
            assert found[kind].effects.dtype == np.float64
            for index in np.argwhere(tool.reach[kind]):
                ends = [
                    tool.effect({**zeros, kind: zeros[kind].at[tuple(index)].set(way * step)}, rows) for way in (1, -1)
                ]
                difference = np.asarray(ends[0] - ends[1]) / (2 * step)
                np.testing.assert_allclose(found[kind].effects[(slice(None), *index)], difference, rtol=1e-6, atol=1e-9)


def test_slopes_compile_once_for_all_points():
    """A step along the path is a call of one program, and its models are arguments of it, not constants in it."""
    pair, rows = testing.tiny_pair(), testing.tiny_inputs()
    tool = instrument.of_pair(pair, rows, jp.Anchor(layer=1, direction=np.eye(16)[0]))
    start = instrument._slope._cache_size()
    for at in (0.0, 0.5, 1.0):
        instrument.gate_slopes(tool.effect, {"neuron": jnp.full((3, 24), at, jnp.float32)}, 4)
    again = instrument.of_pair(testing.tiny_pair(seed=1), rows, jp.Anchor(layer=1, direction=np.eye(16)[1]))
    instrument.gate_slopes(again.effect, {"neuron": jnp.zeros((3, 24))}, 4)
    assert instrument._slope._cache_size() <= start + 1
