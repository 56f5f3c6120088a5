"""The fast engine against two slow oracles: a plain PyTorch loop over components, and the definition by tree surgery."""

import dataclasses
import functools
import itertools

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import torch_oracle

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import effect, instrument, sweep
from jaxpatch.measuring.read_outs import NextToken
from jaxpatch.patching import components
from jaxpatch.scoring import METHODS
from jaxpatch.scoring.method import Options

PADDED = jp.Inputs(*torch_oracle.padded())
OPTIONS = Options(top=4, steps=4)
TOLERANCE = parity.LIMITS["exact"]
"""Of the largest effect of the kind: what float32 rounds, where the torch loop computes in float64."""

NO_BIAS, ALL_BIASES = dict(), parity.ALL_BIASES
ATTENTION_BIAS, MLP_BIAS = dict(attention_bias=True), dict(mlp_bias=True)
PRODUCT = [
    parity.Row(dict(kv_heads=heads, tied=tied, **biases), anchor, torch_oracle.KINDS)
    for heads, tied, biases, anchor in itertools.product(
        (4, 2, 1), (True, False), (NO_BIAS, ATTENTION_BIAS, MLP_BIAS, ALL_BIASES), (0, 1, 2)
    )
]


FAMILIES = {parity.family(row.options): name for name, row in reversed(parity.ROWS.items())}
"""Each -> the first of its rows."""
TURNS = [(name, (kinds := parity.ROWS[name].kinds)[turn % len(kinds)]) for turn, name in enumerate(FAMILIES.values())]
"""Of each family one row and one kind of component."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs by their options, made once: the torch models and what load_pair reads of them."""
    made = {}

    def of(**options):
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = parity.make(tmp_path_factory.mktemp("pair"), options)
        return made[key]

    return of


def check_every_component(pairs, row: parity.Row):
    torch_pair, pair = pairs(**row.options)
    tool = parity.tool_of(pair, row.anchor)
    wide = torch_oracle.in_float64(torch_pair)
    reads = torch_oracle.reads(wide.base, torch_oracle.PROMPTS, torch_oracle.direction())[row.anchor]
    assert parity.apart(tool.base, reads) <= TOLERANCE
    for kind in row.kinds:
        effects, true = parity.exact(wide, tool, row.anchor, kind)
        assert effects.shape == true.shape
        assert np.abs(true).max() > 1e-2, "the pair is too much alike to test anything"
        assert parity.apart(effects, true) <= TOLERANCE, kind
        if kind not in ("embed", "positions"):
            assert not effects[:, row.anchor + 1 :].any()
            assert (effects[:, : row.anchor + 1] != 0).any(0).all(), f"a {kind} below the anchor does nothing"


def some_slow(names, quick=parity.QUICK):
    """Those, all but the quick ones marked slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some_slow(parity.ROWS))
def test_engine_is_the_torch_loop(pairs, name):
    check_every_component(pairs, parity.ROWS[name])


@pytest.mark.parametrize(
    ("name", "kind"), [pytest.param(*turn, marks=() if turn[0] in parity.QUICK else pytest.mark.slow) for turn in TURNS]
)
def test_engine_is_the_torch_loop_to_many_digits(pairs, name, kind):
    """In float64. Every row and kind takes minutes; docs/results/families.md has them all."""
    check_in_float64(pairs, parity.ROWS[name]._replace(kinds=(kind,)))


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.ROWS)
def test_engine_is_the_torch_loop_to_many_digits_everywhere(pairs, name):
    check_in_float64(pairs, parity.ROWS[name])


def check_in_float64(pairs, row: parity.Row):
    found = {kind: parity.apart(*both) for kind, both in parity.exact_in_float64(pairs(**row.options)[0], row).items()}
    assert max(found.values()) <= parity.LIMITS["exact in float64"], found


@pytest.mark.parametrize("name", some_slow(parity.ROWS))
def test_first_order_is_torch_autograd(pairs, name):
    row = parity.ROWS[name]
    torch_pair, pair = pairs(**row.options)
    kinds = tuple(kind for kind in row.kinds if kind in ("head", "kv", "neuron", "norm", "embed", "positions"))
    found = parity.gradient(torch_pair, parity.tool_of(pair, row.anchor), row.anchor, kinds)
    assert max(found.values()) <= parity.LIMITS["gradient"], found


def model_type(row: parity.Row) -> str:
    return row.options.get("model_type", "llama")


def asked_of(family: str) -> set[str]:
    """Kinds whose every component the engine replaces, in one of the family's rows."""
    return {kind for row in parity.ROWS.values() if model_type(row) == family for kind in row.kinds}


UNASKED = [name for name, row in parity.ROWS.items() if not asked_of(model_type(row)) >= {*torch_oracle.KINDS}]


@pytest.mark.parametrize("name", some_slow(UNASKED))
def test_definition_is_the_torch_loop_for_the_kinds_that_no_row_asks_for(pairs, name):
    """One program for all of them, where the engine has one for each: so each kind that a family serves is replaced once."""
    row = parity.ROWS[name]
    torch_pair, pair = pairs(**row.options)
    tool = parity.tool_of(pair, row.anchor)
    others = set(parity.every_kind(pair)) - asked_of(model_type(row))
    assert others
    wide = torch_oracle.in_float64(torch_pair)
    zeros = {kind: np.zeros(tool.partition[kind].shape, np.float32) for kind in sorted(others)}
    rows = np.arange(len(torch_oracle.PROMPTS))
    for kind in others:
        true = torch_oracle.effects(wide, kind, torch_oracle.PROMPTS, torch_oracle.direction())[row.anchor]
        found = np.zeros_like(true)
        for index in np.ndindex(zeros[kind].shape):
            gates = {**zeros, kind: np.asarray(components.gates(tool.partition, {kind: [index]})[kind])}
            found[(slice(None), *index)] = np.asarray(tool.effect(gates, rows)) - tool.base
        assert np.abs(true).max() > 1e-2, "the pair is too much alike to test anything"
        assert parity.apart(found, true) <= TOLERANCE, kind


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.ROWS)
def test_engine_is_the_torch_loop_for_every_draw_and_kind(name, tmp_path):
    """In float32 against the truth, which is PyTorch's in float64."""
    limits = parity.LIMITS | parity.OF_ANY_DRAW
    for column, worst in parity.of_row(parity.ROWS[name], tmp_path):
        if column != parity.ROUNDING:
            assert worst <= limits[column], column


@pytest.mark.slow
@pytest.mark.parametrize("row", PRODUCT, ids=str)
def test_engine_is_the_torch_loop_everywhere(pairs, row):
    check_every_component(pairs, row)
    jax.clear_caches()  # each case compiles programs of its own; the memory maps of 72 such cases are more than Linux allows


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_score_is_the_torch_loop(pairs, kind):
    torch_pair, pair = pairs(kv_heads=2, tied=True, **ALL_BIASES)
    u = torch_oracle.direction()
    scores = jp.score(pair, PADDED, jp.Anchor(layer=1, direction=u), kinds=(kind,), method="exact")
    true = torch_oracle.effects(torch_pair, kind, torch_oracle.PROMPTS, u)[1]
    base, special = (
        torch_oracle.reads(model, torch_oracle.PROMPTS, u)[1] for model in (torch_pair.base, torch_pair.special)
    )
    gap = special - base
    np.testing.assert_allclose(scores.effects[kind], true, rtol=0, atol=TOLERANCE * np.abs(true).max())
    np.testing.assert_allclose(scores.gap, gap, atol=1e-5)
    kept = scores.is_kept
    by_hand = np.mean([true[x] / gap[x] for x in range(len(gap)) if kept[x]], axis=0)
    np.testing.assert_allclose(scores.values[kind], by_hand, rtol=0, atol=1e-4 * np.abs(by_hand).max())


def test_engine_is_the_definition(pairs):
    """One-hot gates through the whole patched tree, every component of every kind. Same shapes as above: nothing compiles anew."""
    _, pair = pairs(kv_heads=2, tied=True, **ALL_BIASES)
    tool = instrument.of_pair(pair, PADDED, jp.Anchor(layer=1, direction=torch_oracle.direction()))
    found = METHODS["exact"](tool, torch_oracle.KINDS, OPTIONS)
    zeros = {kind: jnp.zeros(tool.partition[kind].shape) for kind in torch_oracle.KINDS}
    rows = np.arange(len(torch_oracle.PROMPTS))
    for kind in torch_oracle.KINDS:
        slow = np.zeros_like(found[kind].effects)
        for index in np.ndindex(zeros[kind].shape):
            gates = {**zeros, kind: components.gates(tool.partition, {kind: [index]})[kind]}
            slow[(slice(None), *index)] = np.asarray(tool.effect(gates, rows)) - tool.base
        largest = np.abs(slow).max()
        np.testing.assert_allclose(found[kind].effects, slow, rtol=0, atol=TOLERANCE * largest, err_msg=kind)


READ_OUTS = (
    engine_cases.anchor(1, 3),
    NextToken("kl"),
    NextToken("log_prob"),
    engine_cases.anchor(2, 7, read_out="centred", centre=jnp.linspace(-1, 1, 16, dtype=jnp.float32)),
)
STEM = [3, 1, 4, 1, 5, 9, 2, 6, 5]
LONG_PREFIX = [[*STEM, 8, 9, 7], [*STEM, 3, 2], STEM[:4], [7, 7]]


SHAPES = {
    "biases": dict(neurons=6, positions=64, **ALL_BIASES),
    "experts": dict(neurons=3, experts=4, chosen=2, attention_bias=True),
}


@pytest.mark.parametrize(
    ("shape", "mode"),
    [
        ("biases", "restoration"),
        pytest.param("experts", "knockout", marks=pytest.mark.slow),
        pytest.param("biases", "knockout", marks=pytest.mark.slow),
        pytest.param("experts", "restoration", marks=pytest.mark.slow),
    ],
)
def test_every_read_out_is_the_definition_in_both_modes(shape, mode):
    """One-hot gates through the whole patched tree, all kinds, four read-outs in the same pass; no weights are tied."""
    rows = LONG_PREFIX
    pair = testing.tiny_pair(testing.tiny_config(**SHAPES[shape]))
    prompts = engine_cases.inputs(rows, fill=11)
    tool = instrument.of_pair(pair, prompts, READ_OUTS, mode=mode)
    readings, batch = np.arange(len(READ_OUTS) * len(rows)), len(rows)
    assert tool.num_read_outs == len(READ_OUTS) and tool.base.shape == readings.shape
    zeros = {kind: np.zeros(sort.shape, np.float32) for kind, sort in tool.partition.items()}
    np.testing.assert_allclose(tool.effect(zeros, readings), tool.base, rtol=1e-5, atol=1e-5)
    for kind in tool.partition:
        indices = np.argwhere(np.ones(tool.partition[kind].shape))
        found = tool.exact(kind, indices, sweep.silent)
        hot = np.eye(len(indices), dtype=np.float32).reshape(-1, *tool.partition[kind].shape)
        gates = [{**zeros, kind: gate} for gate in hot]
        slow = np.stack([np.asarray(tool.effect(gate, readings)) for gate in gates]) - tool.base
        assert found.shape == slow.shape
        for number in range(len(READ_OUTS)):
            own = slice(number * batch, (number + 1) * batch)
            largest = np.abs(slow[:, own]).max()
            atol = TOLERANCE * max(largest, np.abs(tool.gap[own]).max())
            np.testing.assert_allclose(found[:, own], slow[:, own], rtol=0, atol=atol, err_msg=f"{kind}, {number}")
            if number in (1, 2):
                assert largest > 1e-3, f"{kind}: every kind can reach the next token"


def test_knockout_is_restoration_with_the_models_swapped():
    """What is lost of special is what is gained, with the other sign, by base's weights in special; gates mean the same."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
    swapped = dataclasses.replace(pair, base=pair.special, special=pair.base)
    knockout, mirror = (
        instrument.of_pair(some, prompts, READ_OUTS[:1], mode=mode)
        for some, mode in ((pair, "knockout"), (swapped, "restoration"))
    )
    indices = np.argwhere(np.ones((2, 4)))
    lost = knockout.exact("head", indices, sweep.silent)
    np.testing.assert_allclose(lost, -mirror.exact("head", indices, sweep.silent), rtol=0, atol=1e-6)
    ends = {"layer": "all", "embed": "all"}
    whole = knockout.effect(components.gates(knockout.partition, ends), np.arange(4))
    np.testing.assert_allclose(whole, knockout.special, rtol=1e-5, atol=1e-5)


BLOCKS = {
    "norms around, capped": dict(post_norm=True, norm_offset=1.0, qk_norm="head", attention_cap=3.0, embed_scale=4.0),
    "norms after, over all heads": dict(pre_norm=False, post_norm=True, qk_norm="whole", residual_scale=0.5),
    "side by side, plain": dict(parallel=True, gated=False, norm="layer", rope=None, positions=64, kv_heads=4),
    "experts, all chosen": dict(experts=4, chosen=4, neurons=8),  # where some are, rounding may choose others: a jump
}


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_scores_of_any_narrow_block_are_those_of_its_weights(block):
    pair = testing.tiny_pair(testing.tiny_config(**BLOCKS[block]), seed=1, change=0.01)
    check_narrow(pair, "bfloat16", 2**-5, layers=(1,))


QUICK = ("bfloat16", 1e-4)
"""The others are marked slow."""


@pytest.mark.parametrize(
    ("dtype", "tolerance", "change"),
    [
        pytest.param(dtype, tolerance, change, marks=() if (dtype, change) == QUICK else pytest.mark.slow)
        for dtype, tolerance in (("bfloat16", 2**-5), ("float16", 2**-7))
        for change in (1.0, 0.01, 1e-4)
    ],
)
def test_scores_of_a_narrow_model_are_those_of_its_weights(dtype, tolerance, change):
    check_narrow(testing.tiny_pair(change=change), dtype, tolerance, layers=(1, 0, 2))


def check_narrow(pair, dtype, tolerance, layers):
    """Against the same weights in float32, read after some layers and at the end: the cheap scores as far as float32 goes; exact ones
    as far as narrow numbers tell how far a patch moves the stream, however little that is."""
    prompts = testing.tiny_inputs()
    kinds = ("neuron", "expert", "router") if pair.config.experts else ("head", "kv", "neuron", "layer")

    def cast(*dtypes):
        def rounded(leaf):
            return functools.reduce(lambda leaf, each: leaf.astype(each), dtypes, leaf)

        both = {name: jax.tree.map(rounded, getattr(pair, name)) for name in ("base", "special")}
        return instrument.of_pair(dataclasses.replace(pair, **both), prompts, wanted)

    ends = (effect.every_last_state(pair.config, effect.unpatched(side), prompts) for side in (pair.base, pair.special))
    base, special = (np.asarray(states.mean(axis=1)) for states in ends)
    units = [towards / np.linalg.norm(towards) for towards in special - base]
    wanted = (*(jp.Anchor(layer=layer, direction=units[layer]) for layer in layers), NextToken("log_prob"))
    for method, share in (("local_linear", 1e-3), ("first_order", 1e-3), ("exact", tolerance)):
        narrow, wide = (METHODS[method](cast(*dtypes), kinds, OPTIONS) for dtypes in ((dtype,), (dtype, "float32")))
        for kind in kinds:
            got, true = (found[kind].effects.reshape(len(wanted), -1) for found in (narrow, wide))
            assert got.dtype == true.dtype == np.float32
            apart, size = (np.linalg.norm(part, axis=1) for part in (got - true, true))
            assert (apart <= share * size).all(), f"{method} {kind}: {apart / size}"
