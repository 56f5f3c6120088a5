"""What must hold of every method, whatever it does; and the methods that mergekit lacks, against numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.merging import METHODS, magnitudes, tensors
from jaxpatch.patching import components
from jaxpatch.trees import compare, paths

KEEPING = [name for name, method in METHODS.items() if "density" in method.takes]
RANDOM = [name for name, method in METHODS.items() if "seed" in method.takes]
AVERAGES = ("linear", "fisher", "regmean")
MEASURED = ("fisher", "moments")
MANY = [name for name, method in METHODS.items() if method.experts is None]


@functools.cache
def models():
    """Base, and two experts."""
    one, two = testing.tiny_pair(seed=0), testing.tiny_pair(seed=0, change=0.3)
    return one.base, one.special, jax.tree.map(lambda base, other: 2 * base - other, one.base, two.special)


def statistics(needs, experts):
    """Of fictitious data: other numbers for each expert."""
    rng, made = np.random.default_rng(0), []
    for expert in experts:
        leaves = {path: jnp.asarray(rng.random(leaf.shape), jnp.float32) for path, leaf in paths.leaves(expert).items()}
        if needs == "moments":
            layouts = tensors.layouts({path: leaf.shape for path, leaf in leaves.items()})
            rows = {
                path: rng.normal(
                    size=(len(tensors.split(leaf, layouts[path])), 40, tensors.split(leaf, layouts[path]).shape[-1])
                )
                for path, leaf in leaves.items()
                if "mlp/up" in path or "attn/o" in path
            }
            leaves = {path: jnp.asarray(each.swapaxes(1, 2) @ each, jnp.float32) for path, each in rows.items()}
        made.append(leaves)
    return made


def merged(method, base, experts, **asked):
    """With a half kept, where nothing else is said."""
    extra = {"density": 0.5} if method in KEEPING else {}
    extra |= {"needed": 1} if method == "consensus" and len(experts) == 1 else {}
    extra |= {"epsilon": 0.1} if method.startswith("della") else {}
    extra |= {"statistics": statistics(METHODS[method].needs, experts)} if METHODS[method].needs in MEASURED else {}
    return jp.merge(method, base, experts, **extra | asked)


def is_same(one, two):
    """To the last bit."""
    one, two = paths.leaves(one), paths.leaves(two)
    return all((np.asarray(one[path]).tobytes() == np.asarray(two[path]).tobytes()) for path in one)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_merged_with_itself_is_itself(method):
    base, *_ = models()
    count = METHODS[method].experts or 3
    weights = 0.3 if method == "slerp" else np.resize([0.3, 0.5, 0.7], count).tolist()
    assert is_same(merged(method, base, [base] * count, weights=weights), base)


@pytest.mark.parametrize("method", METHODS)
def test_all_of_one_expert_is_that_expert(method):
    base, one, two = models()
    asked = {"density": 1.0} if method in KEEPING else {}
    assert is_same(merged(method, base, [one], **asked), one)
    if method in MANY and method != "consensus":
        assert is_same(merged(method, base, [one, two], weights=[0.0, 1.0], **asked), two)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in AVERAGES])
def test_nothing_of_an_expert_is_base(method):
    base, one, two = models()
    experts = [one] if method == "slerp" else [one, two]
    assert is_same(merged(method, base, experts, weights=0.0), base)
    if method in KEEPING:
        assert is_same(merged(method, base, experts, density=0.0), base)
    if "scale" in METHODS[method].takes:
        assert is_same(merged(method, base, experts, scale=0.0), base)


@pytest.mark.parametrize("method", [name for name in MANY if name not in RANDOM])
def test_the_order_of_experts_is_nothing(method):
    base, one, two = models()
    asked = [{"weights": [0.7, 0.4]}, {"weights": [0.4, 0.7]}]
    if METHODS[method].needs in MEASURED:
        known = statistics(METHODS[method].needs, [one, two])
        asked = [each | {"statistics": some} for each, some in zip(asked, (known, known[::-1]), strict=True)]
    if method in KEEPING:
        asked = [each | {"density": density} for each, density in zip(asked, ([0.3, 0.6], [0.6, 0.3]), strict=True)]
    assert is_same(merged(method, base, [one, two], **asked[0]), merged(method, base, [two, one], **asked[1]))


@pytest.mark.parametrize("density", [0.01, 0.37, 0.9])
@pytest.mark.parametrize("method", ["ties", "breadcrumbs", "localize_and_stitch"])
def test_what_is_asked_for_is_kept(method, density):
    """So many entries of every tensor; and of the whole, where that is looked at."""
    base, one, _ = models()
    leaves = paths.leaves(base)
    layouts = tensors.layouts({path: leaf.shape for path, leaf in leaves.items()})
    by_tensor = merged(method, base, [one], density=density, **({} if method == "breadcrumbs" else {"trim": "tensor"}))
    for path, leaf in paths.leaves(by_tensor).items():
        moved = np.asarray(tensors.split(leaf, layouts[path]) != tensors.split(leaves[path], layouts[path]))
        size = math.prod(moved.shape[1:])
        assert (moved.sum((1, 2)) == max(METHODS[method].least, int(density * size))).all(), path
    if method != "breadcrumbs":
        whole = paths.leaves(merged(method, base, [one], density=density, trim="all"))
        moved = sum(int((np.asarray(whole[path]) != np.asarray(leaf)).sum()) for path, leaf in leaves.items())
        assert moved == int(density * sum(leaf.size for leaf in leaves.values()))


@pytest.mark.parametrize("method", RANDOM)
def test_chance_is_as_said_and_comes_from_the_seed(method):
    base, one, _ = models()
    made = [merged(method, base, [one], density=0.3, seed=seed, rescale="none") for seed in (0, 0, 1)]
    assert is_same(made[0], made[1]) and not is_same(made[0], made[2])
    size = sum(leaf.size for leaf in jax.tree.leaves(base))
    kept = sum(
        int((np.asarray(one) != np.asarray(two)).sum())
        for one, two in zip(jax.tree.leaves(made[0]), jax.tree.leaves(base), strict=True)
    )
    assert abs(kept / size - 0.3) < 5 * math.sqrt(0.3 * 0.7 / size)


def test_what_is_kept_is_divided_by_its_chance_as_published():
    base, one, _ = models()
    kept = merged("dare_linear", base, [one], density=0.25, rescale="chance", seed=3)
    bare = merged("dare_linear", base, [one], density=0.25, rescale="none", seed=3)
    for path, leaf in paths.leaves(base).items():
        change, whole = (np.asarray(paths.leaves(tree)[path]) - np.asarray(leaf) for tree in (kept, bare))
        np.testing.assert_allclose(change, 4 * whole, atol=2e-6)


def test_trimming_of_the_whole_is_by_one_magnitude_as_published():
    base, one, two = models()
    flat = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (base, one, two)]
    changes = [tree - flat[0] for tree in flat[1:]]
    count = int(0.2 * len(flat[0]))
    trimmed = np.stack([np.where(np.abs(each) >= np.sort(np.abs(each))[-count], each, 0) for each in changes])
    sign = np.where(trimmed.sum(0) >= 0, 1, -1)
    agree = np.sign(trimmed) == sign
    wanted = flat[0] + 0.7 * (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)
    got = merged("ties", base, [one, two], density=0.2, scale=0.7, trim="all")
    np.testing.assert_allclose(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(got)]), wanted, atol=1e-6)


def test_where_kept_parts_overlap_they_are_averaged():
    base = {"w": jnp.zeros(4)}
    one, two = {"w": jnp.array([4.0, 3.0, 1.0, 0.5])}, {"w": jnp.array([6.0, 0.1, 0.2, 2.0])}
    assert merged("localize_and_stitch", base, [one, two])["w"].tolist() == [5.0, 3.0, 0.0, 2.0]


def test_what_several_need_is_kept():
    """The sum is 3, 1, 0: a mask has an entry where an expert's own is at least 0.4 of the others'."""
    base = {"w": jnp.zeros(3)}
    one, two = {"w": jnp.array([1.0, 1.0, 1.0])}, {"w": jnp.array([2.0, 0.0, -1.0])}
    assert merged("consensus", base, [one, two])["w"].tolist() == [3.0, 0.0, 0.0]
    assert merged("consensus", base, [one, two], needed=1)["w"].tolist() == [3.0, 1.0, 0.0]
    assert merged("consensus", base, [one, two], threshold=0.6)["w"].tolist() == [0.0, 0.0, 0.0]


def test_averages_by_what_is_known_of_the_data():
    """Against numpy, of one matrix, [inputs, outputs]: Fisher's entry by entry; RegMean's answers the least squares of both."""
    rng = np.random.default_rng(1)
    weights, data = rng.normal(size=(2, 5, 3)).astype(np.float32), rng.normal(size=(2, 50, 5)).astype(np.float32)
    base, experts = {"a": {"kernel": jnp.zeros((5, 3))}}, [{"a": {"kernel": jnp.asarray(each)}} for each in weights]
    information = rng.random((2, 5, 3)).astype(np.float32)
    made = jp.merge("fisher", base, experts, statistics=[{"a": {"kernel": jnp.asarray(each)}} for each in information])
    wanted = (information * weights).sum(0) / information.sum(0)
    np.testing.assert_allclose(made["a"]["kernel"], wanted, rtol=1e-5)
    moments = [{"a": {"kernel": jnp.asarray(each.T @ each)}} for each in data]
    made = jp.merge("regmean", base, experts, statistics=moments, shrink=1.0)
    answers = np.concatenate([rows @ own for rows, own in zip(data, weights, strict=True)])
    np.testing.assert_allclose(made["a"]["kernel"], np.linalg.lstsq(np.concatenate(data), answers)[0], atol=1e-4)
    shrunk = [0.4 * each.T @ each + 0.6 * np.diag(np.diag(each.T @ each)) for each in data]
    made = jp.merge("regmean", base, experts, statistics=moments, shrink=0.4)
    wanted = np.linalg.solve(sum(shrunk), sum(each @ own for each, own in zip(shrunk, weights, strict=True)))
    np.testing.assert_allclose(made["a"]["kernel"], wanted, atol=1e-4)


def test_signs_that_cancel_count_as_above_nothing():
    base = {"w": jnp.zeros(2)}
    one, two = {"w": jnp.array([1.0, -0.5])}, {"w": jnp.array([-1.0, 0.5])}
    assert merged("ties", base, [one, two], density=1.0)["w"].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("method", METHODS)
def test_models_of_two_bytes_stay_so(method):
    """What is computed is computed in float32, and rounded once."""
    base, one, _ = (jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tree) for tree in models())
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (base, one)]
    weights = 0.3 if method == "slerp" else 0.8
    got, wanted = merged(method, base, [one], weights=weights), merged(method, wide[0], wide[1:], weights=weights)
    assert not compare.structure_faults(base, got)
    assert is_same(got, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), wanted))


def test_gates_leave_a_part_of_changes_that_are_small_in_two_bytes():
    """Half of the step from one number of bfloat16 to the next is not lost before it is doubled."""
    pair = testing.tiny_pair()
    base = jax.tree.map(lambda leaf: jnp.ones_like(leaf, jnp.bfloat16), pair.base)
    one = jax.tree.map(lambda leaf: leaf + jnp.bfloat16(2**-7), base)
    gates = [{"neuron": np.full(components.of_decoder(base)["neuron"].shape, 0.25)}]
    made = jp.merge("task_arithmetic", base, [one], gates=gates, scale=4.0)
    assert is_same(made["layers"]["mlp"], one["layers"]["mlp"]) and is_same(made["embed"], base["embed"])


def test_three_experts_in_any_order():
    """To rounding: sums of three floats depend on their order."""
    base, one, two = models()
    experts = [one, two, jax.tree.map(lambda a, b: a + 0.5 * b, one, two)]
    for method in [name for name in MANY if name not in RANDOM and METHODS[name].needs not in MEASURED]:
        made = merged(method, base, experts, weights=[0.7, 0.4, 0.2])
        again = merged(method, base, [experts[number] for number in (2, 0, 1)], weights=[0.2, 0.7, 0.4])
        for path, leaf in paths.leaves(made).items():
            np.testing.assert_allclose(paths.leaves(again)[path], leaf, atol=2e-6, err_msg=f"{method}, {path}")


def test_an_expert_of_no_weight_has_no_say_in_what_several_need():
    base = {"w": jnp.zeros(3)}
    one, two = {"w": jnp.array([1.0, 1.0, 1.0])}, {"w": jnp.array([2.0, 2.0, 2.0])}
    assert merged("consensus", base, [one, two], weights=[1.0, 0.0])["w"].tolist() == [0.0] * 3
    assert merged("consensus", base, [one, two], weights=[1.0, 0.0], needed=1)["w"].tolist() == [1.0] * 3


def test_any_tree_will_do():
    base, one = [{"w": jnp.ones((2, 3)), "steps": jnp.arange(2)}], [{"w": 2 * jnp.ones((2, 3)), "steps": jnp.arange(2)}]
    made = jp.merge("task_arithmetic", base, [one], weights=0.5)
    assert made[0]["w"].tolist() == [[1.5] * 3] * 2 and made[0]["steps"].tolist() == [0, 1]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_leaves_that_experts_share_with_base_are_what_the_method_makes_of_the_same_numbers(method):
    base, one, _ = models()
    one = one | {"embed": base["embed"]}
    apart = one | {"embed": jax.tree.map(lambda leaf: leaf + 0, base["embed"])}
    got, wanted = (merged(method, base, [each], weights=0.8) for each in (one, apart))
    assert is_same(got, wanted)
    assert (got["embed"]["kernel"] is base["embed"]["kernel"]) == ("scale" in METHODS[method].takes)


@pytest.mark.parametrize("count", [0, 1, 7, 59, 60])
def test_the_largest_are_found_without_sorting(count):
    rng = np.random.default_rng(count)
    values = rng.normal(size=(3, 4, 15)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (3, 4, 15))
    values[1] = rng.integers(-2, 3, (4, 15))  # ties, and zeros of both signs
    values[2, 0] = -0.0
    for own in values.astype(np.float32):
        first = np.argsort(-np.abs(own).ravel(), kind="stable")[:count]
        assert set(np.flatnonzero(magnitudes.largest(jnp.asarray(own), jnp.int32(count)))) == set(first)


@pytest.mark.parametrize("width", [1, 2, 15, 2**16 + 1])
def test_ranks_are_those_of_a_stable_sort(width):
    rng = np.random.default_rng(width)
    values = rng.normal(size=(3, 2, width)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, (3, 2, width))
    values[1] = rng.integers(-2, 3, (2, width))  # ties, and zeros of both signs
    wanted = np.argsort(np.argsort(np.abs(values.astype(np.float32)), axis=-1, kind="stable"), axis=-1, kind="stable")
    assert (np.asarray(magnitudes.ranks(jnp.asarray(values, jnp.float32))) == wanted).all()


def test_the_kth_of_all_leaves_is_that_of_their_differences():
    rng = np.random.default_rng(0)
    leaves = [
        rng.normal(size=shape).astype(np.float32) * 10.0 ** rng.integers(-30, 30, shape) for shape in ((7,), (2, 3, 5))
    ]
    leaves.append(rng.integers(-2, 3, (4, 3)))
    leaves = [jnp.asarray(each, jnp.float32) for each in leaves]
    sorted_ = np.sort(np.concatenate([np.abs(each).ravel() for each in leaves]))[::-1]
    pairs = [(jnp.zeros_like(each), each) for each in leaves]
    found = [magnitudes.kth_of_all(lambda: pairs, count) for count in range(1, len(sorted_) + 1)]
    assert found == sorted_.tolist()


def test_tensors_of_a_decoder_are_those_of_its_checkpoint():
    """Layers, and the experts of an MLP, stand for themselves; rows are of outputs."""
    shapes = {
        "layers/attn/q/kernel": (2, 16, 4, 8),
        "layers/attn/q/bias": (2, 4, 8),
        "layers/attn/o/kernel": (2, 4, 8, 16),
        "layers/mlp/up/kernel": (2, 5, 16, 24),
        "layers/mlp/router/kernel": (2, 16, 5),
        "layers/mlp_norm/scale": (2, 16),
        "embed/kernel": (61, 16),
        "unembed/kernel": (16, 61),
    }
    layouts = tensors.layouts(shapes)
    split = {path: tensors.split(jnp.zeros(shape), layouts[path]).shape for path, shape in shapes.items()}
    assert split == {
        "layers/attn/q/kernel": (2, 32, 16),
        "layers/attn/q/bias": (2, 4, 8),
        "layers/attn/o/kernel": (2, 16, 32),
        "layers/mlp/up/kernel": (10, 24, 16),
        "layers/mlp/router/kernel": (2, 5, 16),
        "layers/mlp_norm/scale": (2, 1, 16),
        "embed/kernel": (1, 61, 16),
        "unembed/kernel": (1, 61, 16),
    }
    assert tensors.layouts({"dense/kernel": (3, 4)})["dense/kernel"] == tensors.Layout(0, 1)
