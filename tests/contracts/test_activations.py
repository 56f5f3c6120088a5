"""Activation and attribution patching against a loop of hooks in PyTorch, and the engine against the definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch_activations
import torch_oracle

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import instrument, sweep
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.patching import components
from jaxpatch.patching.exchange import POSITIONS, SITES, Exchange

PADDED, PROMPTS, U = jp.Inputs(*torch_oracle.padded()), torch_oracle.PROMPTS, torch_oracle.direction()
TOLERANCE, SLOPE_TOLERANCE = parity.LIMITS["exact"], parity.LIMITS["gradient"]
"""Of the largest effect of the kind."""
QUICK = ("GQA tied biases", "Gemma 2", "NeoX", "Qwen3-MoE")
"""Of each sort of block one family: norms before and after, halves side by side, experts. The others are marked slow."""
FAMILIES = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in parity.ROWS if "untied" not in name
]
EXPERTS = ("Mixtral", "Qwen3-MoE", "OLMoE")
"""Of theirs PyTorch runs all experts in one module: neurons inside are held to the definition, and not to hooks."""
LLAMA = "GQA tied biases"


def tool_of(pair, anchor=2, exchange=Exchange(), **options):  # noqa: B008  # a tuple
    wanted = jp.Anchor(layer=anchor, direction=U)
    return instrument.of_pair(pair, PADDED, wanted, exchange=exchange, **options)


def every(tool, kind):
    """Exact effects of all components, [B, *shape]."""
    shape = tool.partition[kind].shape
    found = tool.exact(kind, np.argwhere(np.ones(shape)), sweep.silent)
    return np.moveaxis(found, 0, -1).reshape(-1, *shape)


def by_definition(tool, kind):
    """The same from one-hot gates. All kinds have gates, so one program serves them all."""
    zeros = {name: jnp.zeros(sort.shape) for name, sort in tool.partition.items()}
    out = np.zeros((len(tool.base), *tool.partition[kind].shape))
    for index in np.ndindex(out.shape[1:]):
        gates = {**zeros, kind: zeros[kind].at[index].set(1)}
        out[(slice(None), *index)] = np.asarray(tool.effect(gates, np.arange(len(tool.base)))) - tool.base
    return out


def kinds_of(name):
    return [kind for kind in torch_activations.KINDS if not (name in EXPERTS and kind == "neuron")]


@pytest.mark.parametrize("name", FAMILIES)
def test_engine_and_definition_are_the_hooks(pairs, name):
    torch_pair, pair = pairs(name)
    tool = tool_of(pair)
    for kind in kinds_of(name):
        true = torch_activations.effects(torch_pair, kind, PROMPTS, U)[2]
        assert np.abs(true).max() > 1e-2
        assert parity.apart(by_definition(tool, kind), true) <= TOLERANCE, kind
        if kind in ("head", "neuron"):
            assert parity.apart(every(tool, kind), true) <= TOLERANCE, kind


@pytest.mark.parametrize(("site", "positions"), list(itertools.product(SITES, POSITIONS))[1:])
@pytest.mark.parametrize("name", [LLAMA, *(pytest.param(name, marks=pytest.mark.slow) for name in ("Gemma 2", "NeoX"))])
def test_every_site_and_position_is_the_hooks(pairs, name, site, positions):
    torch_pair, pair = pairs(name)
    tool = tool_of(pair, anchor=1, exchange=Exchange(site, positions))
    for kind in kinds_of(name):
        true = torch_activations.effects(torch_pair, kind, PROMPTS, U, site, positions)[1]
        assert parity.apart(by_definition(tool, kind), true) <= TOLERANCE, kind
        if kind in ("head", "neuron"):
            assert parity.apart(every(tool, kind), true) <= TOLERANCE, kind


SHAPES = {
    "dense": dict(attention_bias=True, mlp_bias=True),
    "experts": dict(neurons=3, experts=4, chosen=2),
    "norms after, over all heads": dict(pre_norm=False, post_norm=True, qk_norm="whole", residual_scale=0.5),
    "side by side": dict(parallel=True, gated=False, norm="layer"),
}
STEM = [3, 1, 4, 1, 5]
READ_OUTS = jp.Anchor(layer=1, direction=U), NextToken("log_prob")


QUICK_SHAPES = (("dense", "knockout"), ("norms after, over all heads", "restoration"))


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        pytest.param(shape, mode, marks=() if (shape, mode) in QUICK_SHAPES else pytest.mark.slow)
        for shape in SHAPES
        for mode in instrument.MODES
    ],
)
def test_engine_is_the_definition_for_every_kind(shape, mode):
    """Two read-outs in one pass; one prompt is the beginning of another, and its last token in the midst of that is not exchanged."""
    pair = testing.tiny_pair(testing.tiny_config(**SHAPES[shape]))
    prompts = jp.Inputs(jnp.array([[*STEM, 8, 9], [*STEM, 0, 0], [*STEM, 7, 0]]), jnp.array([7, 5, 6]))
    exchange = Exchange("vector", "last") if mode == "knockout" else Exchange()
    tool = instrument.of_pair(pair, prompts, READ_OUTS, mode=mode, exchange=exchange)
    for kind in tool.partition:
        slow = by_definition(tool, kind)
        assert parity.apart(every(tool, kind), slow) <= 2 * TOLERANCE, kind


def test_all_layers_exchanged_are_the_other_model():
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    tool = instrument.of_pair(pair, prompts, READ_OUTS[0], exchange=Exchange())
    whole = tool.read(components.gates(tool.partition, {"layer": "all"}))
    np.testing.assert_allclose(whole, tool.special, rtol=1e-6, atol=1e-6)
    nothing = tool.read(components.gates(tool.partition, {"head": [], "mlp": []}))
    np.testing.assert_allclose(nothing, tool.base, rtol=1e-6, atol=1e-6)


def test_nothing_differs_where_two_models_are_the_same():
    pair, prompts = testing.tiny_pair(change=0.0), testing.tiny_inputs()
    tool = instrument.of_pair(pair, prompts, READ_OUTS[0], exchange=Exchange())
    for kind in ("head", "neuron", "query", "layer"):
        np.testing.assert_allclose(every(tool, kind), 0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_narrow_models_are_scored_as_their_weights_are(dtype):
    pair, prompts = testing.tiny_pair(change=0.01), testing.tiny_inputs()

    def tool(*dtypes):
        def rounded(leaf):
            for each in dtypes:
                leaf = leaf.astype(each)
            return leaf

        both = (jax.tree.map(rounded, side) for side in (pair.base, pair.special))
        base, special = both
        narrow = pair.__class__(base=base, special=special, config=pair.config)
        return instrument.of_pair(narrow, prompts, READ_OUTS[0], exchange=Exchange())

    for kind in ("head", "neuron"):
        got, true = every(tool(dtype), kind), every(tool(dtype, "float32"), kind)
        assert np.linalg.norm(got - true) <= 2**-5 * np.linalg.norm(true), kind


def attributed(pair, kind, anchor, exchange=Exchange(), repairs=()):  # noqa: B008  # a tuple
    tool = tool_of(pair, anchor, exchange, repairs=repairs)
    return tool.cheap((kind,), sweep.silent)[kind].first_order


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == LLAMA else pytest.mark.slow)
        for name in parity.ROWS
        if "untied" not in name
    ],
)
def test_attribution_is_autograd(pairs, name):
    torch_pair, pair = pairs(name)
    for kind in kinds_of(name):
        true = torch_activations.attribution(torch_pair, kind, PROMPTS, U)[2]
        assert parity.apart(attributed(pair, kind, 2), true) <= SLOPE_TOLERANCE, kind


@pytest.mark.parametrize("name", [LLAMA, pytest.param("Gemma 2", marks=pytest.mark.slow)])
def test_attribution_of_vectors_at_last_tokens_is_autograd(pairs, name):
    torch_pair, pair = pairs(name)
    for kind in kinds_of(name):
        true = torch_activations.attribution(torch_pair, kind, PROMPTS, U, "vector", "last")[1]
        found = attributed(pair, kind, 1, Exchange("vector", "last"))
        assert parity.apart(found, true) <= SLOPE_TOLERANCE, kind


@pytest.mark.parametrize(
    "name", [LLAMA, *(pytest.param(name, marks=pytest.mark.slow) for name in ("OLMo 2", "Qwen3-MoE"))]
)
def test_repaired_attribution_is_the_slow_one(pairs, name):
    torch_pair, pair = pairs(name)
    for kind in ("query", "key", "value", "kv"):
        true = torch_activations.attribution(torch_pair, kind, PROMPTS, U, qk_fix=True)[2]
        assert parity.apart(attributed(pair, kind, 2, repairs=("qk_fix",)), true) <= SLOPE_TOLERANCE, kind
    for kind in ("head", "mlp", "query"):
        true = torch_activations.grad_drop(torch_pair, kind, PROMPTS, U, 2, qk_fix=True)
        found = attributed(pair, kind, 2, repairs=("qk_fix", "grad_drop"))
        assert parity.apart(found, true) <= SLOPE_TOLERANCE, kind


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=() if shape == "dense" else pytest.mark.slow) for shape in SHAPES]
)
def test_attribution_is_the_slope_of_the_definition(shape):
    pair, prompts = testing.tiny_pair(testing.tiny_config(**SHAPES[shape])), testing.tiny_inputs()
    tool = instrument.of_pair(pair, prompts, READ_OUTS, exchange=Exchange())
    kinds = tuple(tool.partition)
    slopes = tool.slopes({kind: jnp.zeros(tool.partition[kind].shape) for kind in kinds}, sweep.silent)
    found = tool.cheap(kinds, sweep.silent)
    for kind in kinds:
        assert parity.apart(found[kind].first_order, slopes[kind]) <= SLOPE_TOLERANCE, kind
