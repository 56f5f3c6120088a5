"""Every method that mergekit has gives what mergekit gives, tensor by tensor of the checkpoints that it reads.

What is random is drawn by us: mergekit's Bernoulli trials are replaced by those of our seed.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.merging import tensors
from jaxpatch.models import convert
from jaxpatch.models.families import FAMILIES
from jaxpatch.trees import paths

torch = pytest.importorskip("torch")
merge_methods = pytest.importorskip("mergekit.merge_methods")

WEIGHTS = {"one": 1.0, "each": [0.7, 0.3, 1.1], "of both signs": [1.0, -0.5, 0.25]}
DENSITIES = (0.0, 0.2, 0.5, 1.0)
TRIMMED = ("ties", "breadcrumbs", "breadcrumbs_ties")
DROPPED = ("dare_linear", "dare_ties", "della", "della_linear")


@functools.cache
def models():
    """A pair, and three experts of its base: two that differ everywhere, and one in a tenth of all places."""
    pair, keys = testing.tiny_pair(), iter(jax.random.split(jax.random.key(1), 1000))

    def changed(share):
        def of(leaf):
            noise = 0.1 * jax.random.normal(next(keys), leaf.shape)
            return leaf + jnp.where(jax.random.uniform(next(keys), leaf.shape) < share, noise, 0)

        return jax.tree.map(of, pair.base)

    return pair, [pair.special, changed(1.0), changed(0.1)]


def as_tensors(tree):
    """What a checkpoint of it holds, by name, in the order in which mergekit takes it."""
    pair, _ = models()
    rules = FAMILIES[pair.config.family].rules(pair.config)
    made = {name: torch.tensor(np.asarray(array)) for name, array in convert.to_tensors(tree, rules, pair.config)}
    return dict(sorted(made.items()))


def by_mergekit(method, experts, *, weights=1.0, density=None, scale=None, gamma=None, epsilon=None, **options):
    """Through its door for dicts of tensors."""
    pair, _ = models()
    names = [f"expert {number}" for number in range(len(experts))]
    dicts = dict(zip(names, map(as_tensors, experts), strict=True))
    if method != "linear":
        dicts["base"] = as_tensors(pair.base)

    def each(value):
        return dict(zip(names, np.broadcast_to(value, len(names)).tolist(), strict=True))

    said = {"density": density, "gamma": gamma, "epsilon": epsilon}
    parameters = options | {name: each(value) for name, value in said.items() if value is not None}
    parameters |= {"t": weights} if method == "slerp" else {"weight": each(weights)}
    parameters |= {} if scale is None else {"lambda": scale}
    return merge_methods.merge_state_dicts(
        dicts, method, parameters=parameters, base="base" if method != "linear" else None
    )


def assert_same(method, experts, **asked):
    """1e-6 of each tensor's largest entry."""
    pair, _ = models()
    wanted = by_mergekit(method, experts, **asked)
    ours = {name: value for name, value in asked.items() if name != "rescale"}
    if "rescale" in asked:
        ours["rescale"] = "norm" if asked["rescale"] else "none"
    got = as_tensors(jp.merge(method, pair.base, experts, **ours))
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        large = float(tensor.abs().max())
        np.testing.assert_allclose(got[name].numpy(), tensor.numpy(), rtol=1e-6, atol=1e-6 * large, err_msg=name)


@pytest.mark.parametrize(("weights", "normalize"), list(itertools.product(WEIGHTS, (False, True))))
def test_linear(weights, normalize):
    assert_same("linear", models()[1], weights=WEIGHTS[weights], normalize=normalize)


@pytest.mark.parametrize(("part", "expert"), list(itertools.product((0.0, 0.25, 1.0), range(3))))
def test_slerp(part, expert):
    assert_same("slerp", models()[1][expert : expert + 1], weights=part)


@pytest.mark.parametrize(
    ("weights", "scale", "normalize"), list(itertools.product(WEIGHTS, (0.0, 0.6, 1.0), (False, True)))
)
def test_task_arithmetic(weights, scale, normalize):
    assert_same("task_arithmetic", models()[1], weights=WEIGHTS[weights], scale=scale, normalize=normalize)


@pytest.mark.parametrize(("method", "density", "weights"), list(itertools.product(TRIMMED, DENSITIES, WEIGHTS)))
def test_what_is_trimmed(method, density, weights):
    assert_same(method, models()[1], weights=WEIGHTS[weights], density=density, scale=0.6)


@pytest.mark.parametrize(
    ("method", "rescale", "normalize"), list(itertools.product(TRIMMED, (False, True), (False, True)))
)
def test_how_what_is_trimmed_is_added(method, rescale, normalize):
    density = [0.3, 0.1, 0.9]
    assert_same(method, models()[1], weights=0.5, density=density, rescale=rescale, normalize=normalize)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.6])
def test_outliers(gamma):
    assert_same("breadcrumbs", models()[1], density=0.5, gamma=gamma)


def drawn(seed=0):
    """The uniform numbers of our merge, as checkpoint tensors: one dict for each of three experts."""
    pair, experts = models()
    leaves = paths.leaves(pair.base)
    layouts = tensors.layouts({path: leaf.shape for path, leaf in leaves.items()})
    trees = [{} for _ in experts]
    for number, (path, leaf) in enumerate(sorted(leaves.items())):
        key = jax.random.fold_in(jax.random.key(seed), number)
        rows = tensors.split(leaf, layouts[path]).shape
        for tree, each in zip(trees, jax.random.uniform(key, (len(experts), *rows)), strict=True):
            tree[path] = tensors.joined(each, layouts[path], leaf.shape)
    return [as_tensors(paths.with_leaves(pair.base, tree)) for tree in trees]


@pytest.mark.parametrize(
    ("method", "density", "rescale"), list(itertools.product(DROPPED, (0.0, 0.3, 0.7, 1.0), (False, True)))
)
def test_what_is_dropped_by_chance(method, density, rescale, monkeypatch):
    uniform = drawn()
    trials = iter([each[name] for name in uniform[0] for each in uniform])
    monkeypatch.setattr(
        torch, "bernoulli", lambda chance: (next(trials).reshape(chance.shape) < chance).to(chance.dtype)
    )
    asked = {} if method.startswith("dare") else {"epsilon": 0.1}
    assert_same(method, models()[1], weights=WEIGHTS["each"], density=density, rescale=rescale, **asked)
    assert len(list(trials)) == (
        0 if 0 < density < 1 or (method.startswith("dare") and density < 1) else len(uniform[0]) * 3
    )
