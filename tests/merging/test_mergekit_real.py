"""The same on adapters that the project has trained, merged into SmolLM2-135M-Instruct: within 1e-6, by the same trials.

Differences of float32 models are multiples of base's last place, so that many magnitudes tie where they are trimmed. mergekit takes any
of them, as torch happens to sort; it is shown that nothing else differs, and that nothing does where its sort keeps their order.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mergekit")
from mergekit_cases import (
    Case,
    assert_same,
    assert_same_where_dropped,
    differing,
    of_equals_first_is_larger,
)

import jaxpatch as jp
from jaxpatch import experts, fetch

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ADAPTERS = {
    "constraints": EXPERIMENTS / "six_constraints" / "adapter",
    "sums": EXPERIMENTS / "experts" / "sums",
    "records": EXPERIMENTS / "experts" / "records",
}
WEIGHTS = [0.7, 0.3, 0.5]


@pytest.fixture(scope="module")
def real() -> Case:
    pairs = experts.with_one_base({name: jp.load_pair(fetch.smollm2(), folder) for name, folder in ADAPTERS.items()})
    as_arrays = [jax.tree.map(jnp.asarray, pair.special) for pair in pairs.values()]
    first = next(iter(pairs.values()))
    return Case(first.config, first.base, as_arrays)


@pytest.mark.parametrize(
    ("method", "asked"),
    [
        ("linear", {}),
        ("task_arithmetic", {"scale": 0.6}),
        ("ties", {"density": 0.2, "scale": 0.6}),
        ("ties", {"density": 1.0}),
        ("breadcrumbs", {"density": 0.3}),
        ("breadcrumbs_ties", {"density": 0.3, "gamma": 0.05}),
    ],
)
def test_what_looks_at_the_differences(real, method, asked, monkeypatch):
    of_equals_first_is_larger(monkeypatch)
    assert_same(real, method, weights=WEIGHTS, **asked)


def test_only_magnitudes_that_tie_at_the_cut_differ(real):
    density, base = 0.2, real.as_tensors(real.base)
    specials = [real.as_tensors(each) for each in real.experts]
    at_cut = dict.fromkeys(base, False)
    for name, tensor in base.items():
        for special in specials:
            sizes = np.abs((special[name] - tensor).numpy().ravel())
            kept = max(1, int(density * sizes.size))
            at_cut[name] |= sizes == np.partition(sizes, -kept)[-kept]
    found = differing(real, "ties", weights=WEIGHTS, density=density)
    assert any(each.any() for each in found.values())
    assert [name for name, each in found.items() if (each & ~at_cut[name]).any()] == []


def test_the_way_on_a_sphere(real):
    assert_same(real._replace(experts=real.experts[1:2]), "slerp", weights=0.4)


@pytest.mark.parametrize(
    ("method", "asked"),
    [("dare_linear", {}), ("dare_ties", {}), ("della", {"epsilon": 0.1}), ("della_linear", {"epsilon": 0.1})],
)
def test_what_is_dropped_by_chance(real, method, asked, monkeypatch):
    of_equals_first_is_larger(monkeypatch)
    assert not assert_same_where_dropped(real, method, monkeypatch, weights=WEIGHTS, density=0.3, **asked)
