"""The cheap effects against their definitions: slopes of the patched model in its gates, and own changes times arriving gradients."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import NamedTuple

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import effect, instrument, local, memory, slopes, sweep
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.models import decoder
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import blend, components

PAIRS = {
    "biases": testing.tiny_pair(testing.tiny_config(neurons=6, attention_bias=True, output_bias=True, mlp_bias=True)),
    "experts": testing.tiny_pair(testing.tiny_config(neurons=4, experts=3, chosen=2, shares_sum_to_one=True)),
}
PAIR = PAIRS["biases"]
CONFIG = PAIR.config
INPUTS = engine_cases.inputs([[3, 1, 4, 1], [3, 1, 5], [9], [2, 6, 5, 3], [3, 1, 4]], fill=13)
READ_OUTS = (
    engine_cases.anchor(1, 3),
    NextToken("kl"),
    NextToken("log_prob", jnp.array([3, 1, 4, 1, 5])),
)
AT_MID = ("head", "kv")
"""Kinds whose change is taken in the middle of their block; all others at its end."""
SIGN = {"restoration": 1, "knockout": -1}


class Case(NamedTuple):
    """scale: the largest exact effect of a block on each read-out."""

    pair: Pair
    mode: str
    tool: instrument.Instrument
    cheap: Mapping[str, slopes.Cheap]
    scale: np.ndarray


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, mode), marks=pytest.mark.slow if name == "experts" else (), id=f"{name}-{mode}")
        for name, mode in itertools.product(PAIRS, instrument.MODES)
    ],
)
def case(request):
    name, mode = request.param
    tool = instrument.of_pair(PAIRS[name], INPUTS, READ_OUTS, mode=mode)
    exact = tool.exact("layer", np.arange(3)[:, None], sweep.silent)
    cheap = tool.cheap(tuple(kind for kind in local.KINDS if kind in tool.partition), sweep.silent)
    return Case(PAIRS[name], mode, tool, cheap, np.abs(exact).reshape(3, 3, 5).max((0, 2)))


def assert_close(found, wanted, scale, kind):
    """Read-out by read-out, at 1e-5 of the largest of its kind; and where special is the host, -KL(special || patched) is at its
    top, all its slopes are 0, and what is left is rounding of numbers of the size of the effects."""
    for row, (mine, theirs) in enumerate(zip(found.reshape(3, -1), wanted.reshape(3, -1), strict=True)):
        largest = np.abs(theirs).max()
        is_flat = largest < 1e-5 * scale[row]
        atol = 1e-5 * (scale[row] if is_flat else largest)
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol, err_msg=f"{kind}, read-out {row}")


def test_first_order_is_the_slope_of_the_definition(case):
    _, mode, tool, cheap, scale = case
    zeros = {kind: jnp.zeros(tool.partition[kind].shape) for kind in cheap}
    wanted = instrument.gate_slopes(tool.effect, zeros, 3 * 5)
    for kind in cheap:
        assert cheap[kind].first_order.shape == (15, *tool.partition[kind].shape)
        assert_close(cheap[kind].first_order, wanted[kind], scale, kind)
        is_flat = [np.abs(part).max() < 1e-4 * s for part, s in zip(wanted[kind].reshape(3, -1), scale, strict=True)]
        assert is_flat == [False, mode == "knockout", False], kind
        assert not cheap[kind].first_order[:5, 2].any(), "the first anchor reads after block 1"


@functools.partial(jax.jit, static_argnums=0)
def arriving_gradients(config, models, nudges):
    """The streams entering each block, and the gradient of each read-out in the stream at each half-step: [R, 6, B, T, D]."""
    context = decoder.causal_context(config, INPUTS.tokens.shape[1], jnp.float32)

    def run(nudges):
        x, entering, after = models.host["embed"]["kernel"][models.inputs.tokens], [], []
        for layer in range(3):
            block = decoder.Block(config).bind({"params": decoder.layer_of(models.host, layer)})
            entering.append(x)
            mid = block.attention_half(x, context)[0] + nudges[2 * layer]
            x = block.mlp_half(mid) + nudges[2 * layer + 1]
            after.append(decoder.take(x, models.inputs.lengths - 1)[:, 0])
        logits = decoder.apply(config, models.host, after[-1], method="read_out")
        reads = [r.read(logits) if isinstance(r, NextToken) else r.read(after[r.layer]) for r in models.read_outs]
        return jnp.stack(reads).sum(axis=1), jnp.stack(entering)

    gradients, entering = jax.jacrev(run, has_aux=True)(nudges)
    return entering, gradients


@functools.partial(jax.jit, static_argnums=0)
def own_changes(config, models, layer, entering):
    """What each component's patch alone changes where its kind is taken: kind -> [n, B, T, D]. On padded prompts."""
    context = decoder.causal_context(config, entering.shape[1], entering.dtype)
    host, donor = (decoder.layer_of(side, layer) for side in (models.host, models.donor))
    partition = components.of_block(host)

    def run(weights, is_mid):
        block = decoder.Block(config).bind({"params": weights})
        mid = block.attention_half(entering, context)[0]
        return mid if is_mid else block.mlp_half(mid)

    def of_kind(kind):
        shape = partition[kind].shape
        hot = jnp.eye(max(1, math.prod(shape))).reshape(-1, *shape)
        is_mid = kind in AT_MID
        patched = jax.vmap(lambda gate: run(blend.patch(host, donor, {kind: gate}, partition), is_mid))(hot)
        return patched - run(host, is_mid)

    return {kind: of_kind(kind) for kind in local.KINDS if kind in partition}


def test_linear_is_the_own_change_times_the_arriving_gradient(case):
    config, mode, cheap, scale = case.pair.config, case.mode, case.cheap, case.scale
    models = engine_cases.models(case.pair, INPUTS, READ_OUTS, mode)
    entering, gradients = arriving_gradients(config, models, jnp.zeros((6, *INPUTS.tokens.shape, 16)))
    changes = [own_changes(config, models, jnp.int32(layer), entering[layer]) for layer in range(3)]
    for kind in cheap:
        wanted = [
            np.einsum("nbtd,rbtd->rbn", changes[layer][kind], gradients[:, 2 * layer + (kind not in AT_MID)])
            for layer in range(3)
        ]
        wanted = SIGN[mode] * np.stack(wanted, axis=2)
        found = cheap[kind].linear.reshape(wanted.shape)
        assert_close(found, wanted, scale, kind)
        first_order = cheap[kind].first_order.reshape(wanted.shape)
        assert not np.allclose(found, first_order, rtol=0, atol=1e-3), "the two differ"


PROGRESS = {1: range(1, 11), 3: (3, 5, 8, 10)}
"""Prompts done after each pass, of five under each of two read-outs."""


@pytest.mark.parametrize("per_pass", [1, 3])
def test_passes_of_fewer_prompts_change_nothing(per_pass):
    """Five prompts one by one, or three and two."""
    models = engine_cases.models(PAIR, INPUTS, READ_OUTS[:2])
    budget, seen = memory.cheap_bytes(CONFIG, INPUTS.tokens.shape[1], 4, 3, per_pass), []
    whole = sweep.cheap(CONFIG, ("head", "neuron"), models)
    parts = sweep.cheap(CONFIG, ("head", "neuron"), models, budget=budget, progress=lambda *at: seen.append(at))
    assert seen == [(done, 10) for done in PROGRESS[per_pass]]
    for kind, number in (("head", 4), ("neuron", 6)):
        for mine, wanted in zip(parts[kind], whole[kind], strict=True):
            assert mine.shape == wanted.shape == (10, 3, number)
            np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(), err_msg=kind)


def test_a_prompt_that_does_not_fit_is_refused():
    models = engine_cases.models(PAIR, INPUTS, READ_OUTS[:1])
    least = memory.cheap_bytes(CONFIG, INPUTS.tokens.shape[1], 4, 2, 1)
    assert memory.cheap_prompts(CONFIG, INPUTS.tokens.shape[1], 4, 2, least) == 1
    with pytest.raises(
        MemoryError,
        match=r"a backward pass of one prompt of 4 tokens needs [\d,]+ bytes beside the models; the budget is",
    ):
        sweep.cheap(CONFIG, ("head",), models, budget=least - 1)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_the_climb_is_the_hosts_run(pair):
    models = engine_cases.models(pair, INPUTS, READ_OUTS)
    after, run = jax.jit(slopes.climb, static_argnums=0)(pair.config, models)
    every = jax.jit(effect.every_last_state, static_argnums=0)(pair.config, effect.unpatched(pair.base), INPUTS)
    streams = [*run.entering[1:], after]
    for layer, stream in enumerate(streams):
        at_ends = decoder.take(stream, INPUTS.lengths - 1)[:, 0]
        np.testing.assert_allclose(at_ends, every[layer], rtol=0, atol=1e-5 * np.abs(every).max())


def test_the_descent_is_jaxs_own_gradient():
    """Of one block: where things are written, and where the stream enters."""
    models = engine_cases.models(PAIR, INPUTS, engine_cases.anchor(1))
    _, run = jax.jit(slopes.climb, static_argnums=0)(CONFIG, models)
    run, weights = jax.tree.map(lambda leaf: leaf[1], run), decoder.layer_of(PAIR.base, 1)
    context = decoder.causal_context(CONFIG, INPUTS.tokens.shape[1], jnp.float32)
    arriving = jax.random.normal(jax.random.key(0), run.mid.shape)

    def tapped(x, neurons_tap, mid_tap, z_tap):
        block = decoder.Block(CONFIG).bind({"params": weights})
        mid = x + block.attn.write(block.attn.attend(block.heads(x), context) + z_tap) + mid_tap
        halves = (
            block.mlp_input(mid) @ weights["mlp"][half]["kernel"] + weights["mlp"][half]["bias"]
            for half in ("gate", "up")
        )
        gate, up = halves
        return jnp.vdot(mid + block.mlp.write(jax.nn.silu(gate) * up + neurons_tap), arriving)

    zeros = (jnp.zeros_like(part) for part in (run.inputs[0], run.mid, run.z))
    wanted = jax.jit(jax.grad(tapped, argnums=(0, 1, 2, 3)))(run.entering, *zeros)
    entering, slope, _ = jax.jit(slopes.descend, static_argnums=0)(CONFIG, context, weights, run, arriving)
    assert (slope.end == arriving).all()
    found = entering, slope.neurons, slope.attended, slope.z
    for name, mine, theirs in zip(("entering", "neurons", "mid", "z"), found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=name)
