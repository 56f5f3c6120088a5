"""Models of one's own: whatever an instrument says of them is what copying slices by hand says."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import tree_pairs
from jaxpatch.patching import components
from jaxpatch.trees import paths

LAYERS, UNITS, WIDTH, INPUTS = 2, 3, 4, 5
XS = jnp.asarray(np.random.default_rng(0).normal(size=(INPUTS, WIDTH)), jnp.float32)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(WIDTH, name="down")(nn.tanh(nn.Dense(UNITS, name="up")(x)))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for number in range(LAYERS):
            x = Block(name=f"block_{number}")(x)
        return nn.Dense(2, name="out")(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.up, self.down = nnx.Linear(WIDTH, UNITS, rngs=rngs), nnx.Linear(UNITS, WIDTH, rngs=rngs)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])
        self.out = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = x + block.down(nnx.tanh(block.up(x)))
        return self.out(x)


class Model(NamedTuple):
    """A way to write the same network. slices: (layer, unit) -> leaf -> what the unit owns of it."""

    params: Any
    apply: Callable[[Any, Any], jax.Array]
    patterns: dict[str, dict[str, Any]]
    slices: Callable[[int, int], dict[str, Any]]


def of_units(form: str, layer: int, unit: int) -> dict[str, Any]:
    return {
        form.format(layer=layer) + "/up/kernel": np.s_[:, unit],
        form.format(layer=layer) + "/up/bias": np.s_[unit],
        form.format(layer=layer) + "/down/kernel": np.s_[unit],
    }


def linen() -> Model:
    net, form = Linen(), "block_{layer}"
    params = net.init(jax.random.key(0), XS)["params"]
    axes = {f"{form}/up/kernel": 1, f"{form}/up/bias": 0, f"{form}/down/kernel": 0}
    patterns = {"unit": axes, "block": {f"{form}/**": ()}, "out": {"out/*": ()}}
    return Model(params, lambda p, x: net.apply({"params": p}, x), patterns, functools.partial(of_units, form))


def of_nnx() -> Model:
    graph, params, rest = nnx.split(Nnx(nnx.Rngs(0)), nnx.Param, ...)
    form = "blocks/{layer}"
    axes = {f"{form}/up/kernel": 1, f"{form}/up/bias": 0, f"{form}/down/kernel": 0}
    patterns = {"unit": axes, "block": {f"{form}/**": ()}, "out": {"out/*": ()}}
    return Model(params, lambda p, x: nnx.merge(graph, p, rest)(x), patterns, functools.partial(of_units, form))


def pure() -> Model:
    """Layers stacked on one axis, in a list and a tuple; no Flax at all."""
    stacked = [jnp.ones((LAYERS, WIDTH, UNITS)), jnp.ones((LAYERS, UNITS, WIDTH))]

    def apply(params, x):
        (ups, downs), out = params

        def step(x, matrices):
            up, down = matrices
            return x + jnp.tanh(x @ up) @ down, None

        return jax.lax.scan(step, x, (ups, downs))[0] @ out

    def slices(layer, unit):
        return {"0/0": np.s_[layer, :, unit], "0/1": np.s_[layer, unit]}

    patterns = {"unit": {"0/0": (0, 2), "0/1": (0, 1)}, "block": {"0/*": 0}, "out": {"1": ()}}
    return Model((stacked, jnp.ones((WIDTH, 2))), apply, patterns, slices)


MODELS = {"linen": linen, "nnx": of_nnx, "pure": pure}


def read(model: Model, params, xs) -> jax.Array:
    return model.apply(params, xs) @ jnp.array([0.6, -0.8])


def drawn(params, seed: int, dtype: Any = jnp.float32) -> Any:
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.normal(size=leaf.shape), dtype), params)


class Case(NamedTuple):
    model: Model
    pair: jp.TreePair
    read: Callable[[Any, Any], jax.Array]

    def by_hand(self, host: Any, donor: Any, units: list[tuple[int, int]]) -> np.ndarray:
        """F after copying slices from one model into the other, with numpy: [B]."""
        flat = {path: np.array(leaf) for path, leaf in paths.leaves(host).items()}
        for layer, unit in units:
            for leaf, where in self.model.slices(layer, unit).items():
                flat[leaf][where] = np.asarray(paths.leaves(donor)[leaf])[where]
        return np.asarray(self.read(paths.with_leaves(host, jax.tree.map(jnp.asarray, flat)), XS))

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        base, special = (np.asarray(self.read(side, XS)) for side in (self.pair.base, self.pair.special))
        return base, special


UNIT_PLACES = [(layer, unit) for layer in range(LAYERS) for unit in range(UNITS)]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request) -> Case:
    model = MODELS[request.param]()
    base, special = drawn(model.params, 1), drawn(model.params, 2)
    return Case(model, jp.TreePair(base, special, jp.partition(base, model.patterns)), functools.partial(read, model))


@pytest.fixture(scope="module")
def small() -> Case:
    model = pure()
    base, special = drawn(model.params, 1), drawn(model.params, 2)
    return Case(model, jp.TreePair(base, special, jp.partition(base, model.patterns)), functools.partial(read, model))


def test_the_models_are_one_network_of_two_blocks(case):
    shapes = {name: kind.shape for name, kind in case.pair.partition.items()}
    assert shapes == {"unit": (LAYERS, UNITS), "block": (LAYERS,), "out": (1,)}


@pytest.mark.parametrize("mode", ["restoration", "knockout"])
def test_exact_is_copying_slices_by_hand(case, mode):
    found = jp.score(case.pair, XS, case.read, kinds=("unit",), mode=mode)
    base, special = case.ends
    for place in UNIT_PLACES:
        if mode == "restoration":
            wanted = case.by_hand(case.pair.base, case.pair.special, [place]) - base
        else:
            wanted = special - case.by_hand(case.pair.special, case.pair.base, [place])
        np.testing.assert_allclose(found.effects["unit"][:, *place], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.gap, special - base, rtol=1e-5, atol=1e-6)
    kept = found.is_kept
    shares = (found.effects["unit"][kept] / found.gap[kept, None, None]).mean(0)
    np.testing.assert_allclose(found.values["unit"], shares, rtol=1e-4, atol=1e-5)
    assert found.noise["unit"] < 1e-4 and found.ceilings["everything"] == pytest.approx(1, abs=1e-5)


def test_all_kinds_of_a_partition_have_exact_scores(case):
    found = jp.score(case.pair, XS, case.read, kinds=("block", "out"))
    whole = jp.score(case.pair, XS, case.read, kinds=("unit", "out"))
    assert found.ceilings["block + out"] == pytest.approx(1, abs=1e-4), "blocks and the last layer are everything"
    np.testing.assert_allclose(found.effects["out"], whole.effects["out"], rtol=1e-4, atol=1e-5)
    assert found.to_frame()["name"].tolist() == ["block 0", "block 1", "out"]


@pytest.mark.parametrize("mode", ["restoration", "knockout"])
def test_first_order_is_the_slope_of_the_gates(case, mode):
    found = jp.score(case.pair, XS, case.read, kinds=("unit",), method="first_order", mode=mode)
    host, donor = (case.pair.base, case.pair.special)[:: 1 if mode == "restoration" else -1]
    step, sign = 0.02, 1 if mode == "restoration" else -1
    for place in UNIT_PLACES:
        up, down = (
            case.read(
                jp.patch(host, donor, {"unit": jnp.zeros((LAYERS, UNITS)).at[place].set(at)}, case.pair.partition), XS
            )
            for at in (step, -step)
        )
        wanted = sign * (np.asarray(up) - np.asarray(down)) / (2 * step)
        np.testing.assert_allclose(found.effects["unit"][:, *place], wanted, rtol=0.01, atol=2e-3)


def test_integrated_sums_to_the_joint_effect(case):
    found = jp.score(case.pair, XS, case.read, kinds=("unit", "out"), method="integrated", steps=64)
    total = sum(found.values[kind].sum() for kind in ("unit", "out"))
    assert total == pytest.approx(found.ceilings["unit + out"], abs=2e-3)


def test_screened_by_first_order_finds_the_best(case):
    exact = jp.score(case.pair, XS, case.read, kinds=("unit",))
    found = jp.score(case.pair, XS, case.read, kinds=("unit",), method="screened", top=2, sample=2)
    best = np.sort(exact.values["unit"], axis=None)[-2:]
    np.testing.assert_allclose(np.sort(found.values["unit"], axis=None)[-2:], best, rtol=1e-4, atol=1e-5)


def test_curves_are_copying_sets_of_slices_by_hand(case):
    found = jp.score(case.pair, XS, case.read, kinds=("unit",))
    curves = {(curve.name, curve.mode): curve for curve in jp.validate(case.pair, XS, case.read, found, num_random=1)}
    assert {name for name, _ in curves} == {
        "top",
        "random",
        "random, same layers",
        "random, same changes",
        "largest change",
    }
    base, special = case.ends
    order = [
        tuple(map(int, np.unravel_index(p, (LAYERS, UNITS)))) for p in np.argsort(-found.values["unit"], axis=None)
    ]
    sides = case.pair.base, case.pair.special
    for mode, (host, donor) in (("restoration", sides), ("knockout", sides[::-1])):
        curve = curves["top", mode]
        assert curve.ks.tolist() == [1, 3, 6] and np.isnan(curve.kl).all()
        for k, recovery in zip(curve.ks, curve.recovery, strict=True):
            effect = case.by_hand(host, donor, order[:k]) - base
            wanted = (effect[found.is_kept] / found.gap[found.is_kept]).mean()
            assert recovery == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    np.testing.assert_allclose(special - base, found.gap, rtol=1e-5, atol=1e-6)


def test_several_read_outs_in_one_pass(small):
    def other(params, xs):
        return small.model.apply(params, xs)[:, 0]

    for method in ("exact", "first_order"):
        both = jp.score_each(small.pair, XS, [small.read, other], kinds=("unit",), method=method)
        alone = jp.score(small.pair, XS, other, kinds=("unit",), method=method)
        np.testing.assert_allclose(both[1].effects["unit"], alone.effects["unit"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(both[0].gap, np.subtract(*small.ends[::-1]), rtol=1e-4, atol=1e-5)


def test_a_budget_changes_the_pieces_and_not_the_numbers(small, monkeypatch):
    whole = {m: jp.score(small.pair, XS, small.read, kinds=("unit",), method=m) for m in ("exact", "first_order")}
    real = tree_pairs._bytes

    def heavy(program, *args):
        """As if each input took a megabyte, and a candidate or a backward pass on all that may run together as much again."""
        real(program, *args)
        return 2**20 * len(args[-1])

    monkeypatch.setattr(tree_pairs, "_bytes", heavy)
    for method, wanted in whole.items():
        found = jp.score(small.pair, XS, small.read, kinds=("unit",), method=method, memory=2 * 2**20)
        np.testing.assert_allclose(found.effects["unit"], wanted.effects["unit"], rtol=1e-4, atol=1e-5)
    with pytest.raises(
        MemoryError, match=r"a run on one input needs 1,048,576 bytes .* budget is 1,000\. Give more memory"
    ):
        jp.score(small.pair, XS, small.read, kinds=("unit",), memory=1000)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_leaves_keep_their_type(dtype):
    model = pure()
    base, special = drawn(model.params, 1, dtype), drawn(model.params, 2, dtype)
    pair = jp.TreePair(base, special, jp.partition(base, model.patterns))
    gates = jp.gates(pair, {"unit": [(1, 2)], "out": "all"})
    patched = paths.leaves(jp.patch(base, special, gates, pair.partition))
    assert {leaf.dtype for leaf in patched.values()} == {jnp.dtype(dtype)}
    np.testing.assert_array_equal(patched["0/0"][1, :, 2], special[0][0][1, :, 2])
    np.testing.assert_array_equal(patched["0/0"][1, :, 1], base[0][0][1, :, 1])
    found = jp.score(pair, XS.astype(dtype), lambda p, x: model.apply(p, x)[:, 0], kinds=("unit",))
    assert found.effects["unit"].dtype == np.float32


def test_a_patched_tree_is_of_the_same_sort(case):
    patched = jp.patch(case.pair.base, case.pair.special, jp.gates(case.pair, {"block": [1]}), case.pair.partition)
    assert jax.tree.structure(patched) == jax.tree.structure(case.pair.base)


def test_inputs_may_be_any_tree_with_the_inputs_first():
    model = pure()
    base, special = drawn(model.params, 1), drawn(model.params, 2)
    pair = jp.TreePair(base, special, jp.partition(base, model.patterns))
    inputs = {"image": XS, "label": jnp.array([0, 1, 0, 1, 1])}

    def of_label(params, batch):
        return jnp.take_along_axis(model.apply(params, batch["image"]), batch["label"][:, None], axis=1)[:, 0]

    found = jp.score(pair, inputs, of_label, kinds=("unit",))
    wanted = np.asarray(of_label(special, inputs) - of_label(base, inputs))
    np.testing.assert_allclose(found.gap, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(kinds=("units",)), KeyError, "unknown component 'units'; did you mean 'unit'"),
        (dict(kinds=("head", "neuron")), KeyError, "'head'.*Known: unit, block, out"),
        (dict(kinds=("unembed",)), KeyError, "unknown component 'unembed'"),
        (dict(method="local_linear"), ValueError, "'local_linear' needs each component's own form.*take 'first_order'"),
        (dict(mesh=3), ValueError, "mesh: a TreePair takes none; put the arrays of both trees on the devices yourself"),
        (dict(journal=jp.Journal), ValueError, "journal: a TreePair keeps none"),
        (dict(inputs=None), ValueError, "inputs: wanted arrays whose first axes count the same inputs.*got none"),
        (dict(inputs={"a": XS, "b": XS[:2]}), ValueError, r"got a \(5, 4\), b \(2, 4\)"),
        (dict(inputs=jnp.zeros((0, WIDTH))), ValueError, r"at least one; got .*\(0, 4\)"),
        (dict(inputs=jnp.float32(3)), ValueError, r"at least one; got"),
        (dict(kinds="unit"), ValueError, r"such as \('unit', 'block'\); got 'unit'"),
        (
            dict(anchor=jp.Anchor(layer=0, direction=np.eye(4)[0])),
            ValueError,
            r"read by a function \(params, inputs\) -> \[B\], or several; got Anchor\.",
        ),
        (
            dict(anchor=lambda p, x: x),
            ValueError,
            r"read-out 0: wanted floats \(5,\).*logits\[:, 3\]; got float32 \(5, 4\)",
        ),
        (dict(anchor=lambda p, x: x.sum()), ValueError, r"got float32 \(\)"),
        (dict(anchor=lambda p, x: x[:, 0] > 0), ValueError, r"got bool \(5,\)"),
        (dict(anchor=lambda p, x: (x, x)), ValueError, "got tuple"),
        (
            dict(anchor=lambda p, x: jnp.log(x[:, 0] * 0 - 1)),
            ValueError,
            r"read-out 0 of base is no finite number for inputs \[0, 1, 2",
        ),
        (
            dict(anchor=lambda p, x: x[:, 0]),
            ValueError,
            "no input has a positive gap.*read-out.*read alike.*other inputs",
        ),
        (dict(alpha=3), ValueError, "alpha: wanted"),
    ],
)
def test_what_cannot_be_scored_is_refused(small, options, error, message):
    asked = {"pair": small.pair, "inputs": XS, "anchor": small.read, "kinds": ("unit",)} | options
    with pytest.raises(error, match=message):
        jp.score(**asked)


def test_inputs_that_meet_in_the_batch_are_refused(small):
    def normed(params, xs):
        y = small.model.apply(params, xs)
        return ((y - y.mean(0)) / y.std(0))[:, 0]

    for reads, which in (((normed,), 0), ((small.read, normed), 1)):
        said = rf"read-out {which}: input 0 reads differently among copies.*running averages in BatchNorm"
        with pytest.raises(ValueError, match=said):
            jp.score_each(small.pair, XS, reads, kinds=("unit",))


def test_no_read_out_at_all_is_refused(small):
    with pytest.raises(ValueError, match="or several; got none"):
        jp.score_each(small.pair, XS, (), kinds=("unit",))


def test_curves_are_drawn_along_one_function(small):
    found = jp.score(small.pair, XS, small.read, kinds=("unit",))
    for wanted in ((small.read, small.read), jp.Anchor(layer=0, direction=np.eye(4)[0])):
        with pytest.raises(ValueError, match=r"of a TreePair a function .*along which.*; got (tuple|Anchor)"):
            jp.validate(small.pair, XS, wanted, found)


def test_all_faults_of_a_call_are_named_at_once(small):
    with pytest.raises(ValueError) as caught:
        jp.score(small.pair, XS, lambda p, x: x, kinds=("units",), method="local_linear", mode="on", mesh=1)
    for words in ("'units'", "read-out 0", "local_linear", "'on'", "mesh:"):
        assert words in str(caught.value)


def test_trees_that_are_no_pair_are_refused(small):
    base, partition = small.pair.base, small.pair.partition
    (ups, downs), out = base
    for special, message in (
        (((ups, downs), out[:, :1]), r"1: base has shape \(4, 2\), special has \(4, 1\)"),
        (((ups, downs), out.astype(jnp.bfloat16)), "1: base is float32, special is bfloat16"),
        (((ups,), out), "0/1: only in base"),
        (((ups, 3.0), out), "0/1 of special is a float; wanted an array"),
        (
            ((ups, np.asarray(downs, np.float64)), out),
            "0/1 of special is float64, of which JAX makes float32; cast both",
        ),
    ):
        with pytest.raises(ValueError, match="tree pair:\n  - " + message):
            jp.TreePair(base, special, partition)
    with pytest.raises(ValueError, match=r"(?s)unit: the tree has no leaf 0/0\n.*block: the tree has no leaf 0/0"):
        jp.TreePair({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, partition)
    with pytest.raises(ValueError) as caught:
        jp.TreePair(base, ((ups[:1], downs[:1]), out), partition)
    assert str(caught.value).count("has shape") == 2, "all at once"


def test_leaves_that_no_kind_owns_may_be_of_any_type():
    """A counter differs and is nobody's: special's end is special as it is, with its own."""
    base, special = ({"w": jnp.full((2,), x), "step": jnp.int32(n)} for x, n in ((1.0, 1), (3.0, 2)))
    pair = jp.TreePair(base, special, jp.partition(base, {"part": {"w": 0}}))
    found = jp.score(
        pair, jnp.ones((2, 1)), lambda p, x: x[:, 0] * p["w"].sum() * p["step"].astype(jnp.float32), kinds=("part",)
    )
    assert found.gap.tolist() == [10, 10] and found.values["part"].tolist() == pytest.approx([0.2, 0.2])


def test_components_with_the_same_leaves_share_a_program():
    """Modules of their own are a group each, and stacked leaves one group; each group counts what lies in it."""
    kind = jp.partition(linen().params, linen().patterns)["unit"]
    places = np.array([(1, 2), (0, 1), (1, 0)])
    groups = [(part, which.tolist(), inside.tolist()) for part, which, inside in tree_pairs._by_leaves(kind, places)]
    assert [(part.shape, which, inside) for part, which, inside in groups] == [
        ((UNITS,), [1], [[1]]),
        ((UNITS,), [0, 2], [[2], [0]]),
    ]
    assert {slot.leaf for slot in groups[1][0].slots} == set(linen().slices(1, 0))
    (group,) = tree_pairs._by_leaves(jp.partition(pure().params, pure().patterns)["unit"], places)
    assert group[0].shape == (LAYERS, UNITS) and group[2].tolist() == places.tolist()


def test_partitions_can_be_static():
    """Compiled programs are found again by them."""
    assert isinstance(hash(tuple(components.of_decoder(testing.tiny_pair().base).items())), int)
