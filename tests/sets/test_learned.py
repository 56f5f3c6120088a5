"""Gates learned by gradient, on toys whose best sets are known, and their gradient on a pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import hosts, instrument
from jaxpatch.sets import learned
from jaxpatch.validating import controls


def chosen(recovery_fn, num, count, **options):
    """The set that is learned, and what it recovers."""
    grad_fn = jax.jit(jax.value_and_grad(lambda gates: (1 - recovery_fn(gates)) ** 2))

    def slope_fn(gates):
        loss, slope = grad_fn(jnp.asarray(gates))
        return float(loss), np.asarray(slope)

    logits, gates, losses = learned.learn(slope_fn, num, count, **options)
    first = np.argsort(-logits)[:count]
    return set(first.tolist()), float(recovery_fn(jnp.zeros(num).at[first].set(1))), gates, losses


def either(one, other):
    return 1 - (1 - one) * (1 - other)


@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_gates_add_up_to_the_size_and_their_derivative_knows_it(count, temperature):
    logits = jnp.array([0.3, -1.2, 0.8, 0.1, 0.0])
    gates = learned.top_gates(logits, count, temperature)
    assert float(gates.sum()) == pytest.approx(count, abs=1e-4)
    assert (np.diff(gates[np.argsort(-logits)]) <= 0).all() and ((gates >= 0) & (gates <= 1)).all()
    slopes = jax.jacrev(learned.top_gates)(logits, count, temperature)
    np.testing.assert_allclose(slopes.sum(axis=0), 0, atol=1e-4)
    if temperature == 1:
        step = 1e-2 * jnp.array([1.0, 0, 0, -0.5, 0])
        ends = [learned.top_gates(logits + sign * step, count, temperature) for sign in (1, -1)]
        np.testing.assert_allclose(slopes @ step, (ends[0] - ends[1]) / 2, atol=1e-5)


def test_where_effects_add_up_it_is_the_ranking():
    sizes = jnp.asarray(np.random.default_rng(0).normal(size=40) * 0.05)
    found, recovered, gates, losses = chosen(lambda gates: gates @ sizes, 40, 8)
    assert found == set(np.argsort(-sizes)[:8].tolist())
    assert losses[-1] == pytest.approx((1 - recovered) ** 2, abs=0.01) and losses[-1] < losses[0]
    assert gates.sum() == pytest.approx(8, abs=1e-3)


def test_noise_keeps_it_from_a_blend_that_no_set_is_like():
    """Of 1, 1/2 and -1/2 a blend of all three recovers just the gap, and so do the first and one that does nothing."""
    found, recovered, _, _ = chosen(lambda g: g[0] + (g[1] - g[2]) / 2, 6, 2)
    assert 0 in found and recovered == pytest.approx(1)


def test_three_that_need_each_other_are_missed_among_many_that_do_a_little():
    found, recovered, _, _ = chosen(lambda g: 0.6 * g[0] * g[1] * g[2] + 0.01 * g[3:].sum(), 50, 3)
    assert not found & {0, 1, 2} and recovered == pytest.approx(0.03)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_what_needs_each_other_and_leaves_out_what_stands_for_another(seed):
    need = chosen(lambda g: 0.6 * g[0] * g[1] + 0.01 * g[2:].sum(), 30, 2, seed=seed)
    assert need[0] == {0, 1} and need[1] == pytest.approx(0.6), "one by one, each of the others is worth more"
    stand = chosen(lambda g: 0.9 * either(g[0], g[1]) + 0.1 * g[2], 3, 2, seed=seed)
    assert stand[0] in ({0, 2}, {1, 2}) and stand[1] == pytest.approx(1)
    cancel = chosen(lambda g: 0.9 * g[0] * (1 - g[1]) + 0.1 * g[2], 3, 2, seed=seed)
    assert cancel[0] == {0, 2}


def test_the_same_seed_learns_the_same():
    sizes = jnp.linspace(0, 1, 6)
    one, same = (chosen(lambda g: g @ sizes, 6, 2, steps=10, seed=3) for _ in range(2))
    assert (one[2] == same[2]).all() and (one[3] == same[3]).all()


@pytest.mark.parametrize("at_once", [10, 3])
def test_the_gradient_of_a_pair_is_that_of_its_definition(at_once):
    """Whatever inputs run together; those without a gap count nothing."""
    pair, prompts = testing.tiny_pair(change=0.3), testing.tiny_inputs(batch=5)
    tool = hosts.compiled(instrument.of_pair(pair, prompts, jp.Anchor(layer=1, direction=np.eye(16)[0])))
    tool = tool._replace(special=tool.base + np.array([1.0, 2.0, -3.0, 1.5, 4.0], np.float32))
    shapes = {kind: tool.partition[kind].shape for kind in ("head", "mlp")}
    order = controls.ranked(
        {kind: np.random.default_rng(0).random(shape) for kind, shape in shapes.items()}, tool.reach
    )
    caught = []

    def catching(slope_fn, num, count, **options):
        gates = np.random.default_rng(1).random(num).astype(np.float32)
        caught.extend([gates, slope_fn(gates)])
        return gates, gates, np.zeros(1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(learned, "learn", catching)
        fitted = learned.fit(tool, order, shapes, 3, at_once=at_once)
    gates, (loss, slope) = caught

    def by_hand(values):
        dense = {kind: jnp.zeros(shape) for kind, shape in shapes.items()}
        for number, kind in enumerate(order.names):
            mine = order.kinds == number
            flat = dense[kind].ravel().at[order.places[mine]].set(values[mine])
            dense[kind] = flat.reshape(shapes[kind])
        kept = np.array([0, 1, 3, 4])
        recovered = (tool.effect(dense, kept) - tool.base[kept]) / tool.gap[kept]
        return ((1 - recovered) ** 2).mean()

    expected = jax.value_and_grad(by_hand)(jnp.asarray(gates))
    np.testing.assert_allclose(loss, expected[0], rtol=1e-5)
    np.testing.assert_allclose(slope, expected[1], rtol=1e-4, atol=1e-5 * float(jnp.abs(expected[1]).max()))
    assert (fitted.order.places == order.places[np.argsort(-gates)]).all()
