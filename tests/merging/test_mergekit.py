"""Every method that mergekit has gives what mergekit gives, tensor by tensor of the checkpoints that it reads.

What is random is drawn by us: mergekit's Bernoulli trials are replaced by those of our seed.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mergekit")
from mergekit_cases import Case, assert_same, assert_same_where_dropped, of_equals_first_is_larger

from jaxpatch import testing

WEIGHTS = {"one": 1.0, "each": [0.7, 0.3, 1.1], "of both signs": [1.0, -0.5, 0.25]}
DENSITIES = (0.0, 0.2, 0.5, 1.0)
TRIMMED = ("ties", "breadcrumbs", "breadcrumbs_ties")
DROPPED = ("dare_linear", "dare_ties", "della", "della_linear")


@functools.cache
def tiny() -> Case:
    """Three experts of one base: two that differ everywhere, and one in a tenth of all places."""
    pair, keys = testing.tiny_pair(), iter(jax.random.split(jax.random.key(1), 1000))

    def changed(share):
        def of(leaf):
            noise = 0.1 * jax.random.normal(next(keys), leaf.shape)
            return leaf + jnp.where(jax.random.uniform(next(keys), leaf.shape) < share, noise, 0)

        return jax.tree.map(of, pair.base)

    return Case(pair.config, pair.base, [pair.special, changed(1.0), changed(0.1)])


@functools.cache
def edges(narrow: bool = True) -> Case:
    """Two experts that pull apart by exactly as much in half of all places and agree in the rest, and one that is base; many equal
    magnitudes. narrow: tensors of one entry, and rows of one, too."""
    shapes = {"matrix": (8, 6), "vector": (5,), "row": (1, 4)} | ({"one": (1,), "column": (6, 1)} if narrow else {})
    rng, base, one, other = np.random.default_rng(0), {}, {}, {}
    for name, shape in shapes.items():
        base[name], change = rng.integers(-8, 9, shape) / 8, rng.integers(-3, 4, shape) / 4
        one[name], other[name] = base[name] + change, base[name] + change * rng.choice([-1, 1], shape)
    trees = [{name: jnp.asarray(leaf, jnp.float32) for name, leaf in tree.items()} for tree in (base, one, other)]
    return Case(None, trees[0], [*trees[1:], trees[0]])


@pytest.mark.parametrize(("weights", "normalize"), list(itertools.product(WEIGHTS, (False, True))))
def test_linear(weights, normalize):
    assert_same(tiny(), "linear", weights=WEIGHTS[weights], normalize=normalize)


@pytest.mark.parametrize(("part", "expert"), list(itertools.product((0.0, 0.25, 1.0), range(3))))
def test_slerp(part, expert):
    assert_same(tiny()._replace(experts=tiny().experts[expert : expert + 1]), "slerp", weights=part)


@pytest.mark.parametrize(
    ("weights", "scale", "normalize"), list(itertools.product(WEIGHTS, (0.0, 0.6, 1.0), (False, True)))
)
def test_task_arithmetic(weights, scale, normalize):
    assert_same(tiny(), "task_arithmetic", weights=WEIGHTS[weights], scale=scale, normalize=normalize)


@pytest.mark.parametrize(("method", "density", "weights"), list(itertools.product(TRIMMED, DENSITIES, WEIGHTS)))
def test_what_is_trimmed(method, density, weights):
    assert_same(tiny(), method, weights=WEIGHTS[weights], density=density, scale=0.6)


@pytest.mark.parametrize(
    ("method", "rescale", "normalize"), list(itertools.product(TRIMMED, (False, True), (False, True)))
)
def test_how_what_is_trimmed_is_added(method, rescale, normalize):
    density = [0.3, 0.1, 0.9]
    assert_same(tiny(), method, weights=0.5, density=density, rescale=rescale, normalize=normalize)


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.6])
def test_outliers(gamma):
    assert_same(tiny(), "breadcrumbs", density=0.5, gamma=gamma)


@pytest.mark.parametrize(
    ("method", "density", "rescale"), list(itertools.product(DROPPED, (0.0, 0.3, 0.7, 1.0), (False, True)))
)
def test_what_is_dropped_by_chance(method, density, rescale, monkeypatch):
    asked = {} if method.startswith("dare") else {"epsilon": 0.1}
    left = assert_same_where_dropped(
        tiny(), method, monkeypatch, weights=WEIGHTS["each"], density=density, rescale=rescale, **asked
    )
    is_asked = 0 < density < 1 or (method.startswith("dare") and density < 1)
    assert left == (0 if is_asked else 3 * len(tiny().as_tensors(tiny().base)))


@pytest.mark.parametrize(("method", "weights"), list(itertools.product(("linear", "task_arithmetic"), WEIGHTS)))
def test_edges(method, weights):
    assert_same(edges(), method, weights=WEIGHTS[weights])


@pytest.mark.parametrize("expert", range(3))
def test_edges_of_the_sphere(expert):
    assert_same(edges()._replace(experts=edges().experts[expert : expert + 1]), "slerp", weights=0.3)


@pytest.mark.parametrize(("method", "density", "weights"), list(itertools.product(TRIMMED, DENSITIES, WEIGHTS)))
def test_edges_of_what_is_trimmed(method, density, weights, monkeypatch):
    of_equals_first_is_larger(monkeypatch)
    assert_same(edges(), method, weights=WEIGHTS[weights], density=density, scale=0.6)


@pytest.mark.parametrize(
    ("method", "weights", "scale", "normalize"), list(itertools.product(DROPPED, WEIGHTS, (0.0, 0.6), (False, True)))
)
def test_edges_of_what_is_dropped_by_chance(method, weights, scale, normalize, monkeypatch):
    """mergekit has no chance for the only entry of a row, where chances are by rank."""
    of_equals_first_is_larger(monkeypatch)
    is_ranked = method.startswith("della")
    asked = {"epsilon": 0.1} if is_ranked else {}
    assert_same_where_dropped(
        edges(narrow=not is_ranked),
        method,
        monkeypatch,
        weights=WEIGHTS[weights],
        density=0.4,
        scale=scale,
        normalize=normalize,
        **asked,
    )
