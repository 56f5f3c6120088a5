"""States, ordered by expert: every choice once, in tiles of one expert; and the same numbers as if every expert saw every state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch.models import experts, layers


def drawn(num_states: int, num_experts: int, number: int, seed: int = 0) -> np.ndarray:
    """Which experts states go to; the first ones far more often than the last."""
    draw = np.random.default_rng(seed)
    often = 1 / np.arange(1, num_experts + 1) ** 2
    rows = [draw.choice(num_experts, number, replace=False, p=often / often.sum()) for _ in range(num_states)]
    return np.array(rows, np.int32)


CASES = [(1, 1, 1), (1, 64, 8), (5, 3, 3), (7, 4, 1), (100, 8, 2), (1000, 6, 2), (300, 128, 8)]


@pytest.mark.parametrize(("num_states", "num_experts", "number"), CASES)
def test_every_choice_stands_once_in_a_tile_of_its_expert(num_states, num_experts, number):
    chosen = drawn(num_states, num_experts, number)
    tiles = jax.tree.map(np.asarray, experts.tiles_of(jnp.asarray(chosen), num_experts))
    is_filled = tiles.pairs < chosen.size
    assert sorted(tiles.pairs[is_filled]) == list(range(chosen.size))
    owner = np.broadcast_to(tiles.expert[:, None], tiles.pairs.shape)
    np.testing.assert_array_equal(owner[is_filled], chosen.ravel()[tiles.pairs[is_filled]])
    used = is_filled.any(axis=1)
    assert (used[:-1] >= used[1:]).all(), "the tiles in use come first"
    assert (is_filled[:, 0] == used).all(), "and each is filled from its beginning"
    counts = np.bincount(chosen.ravel(), minlength=num_experts)
    assert used.sum() == sum(-(-count // tiles.pairs.shape[1]) for count in counts), "no more tiles than it takes"


@pytest.mark.parametrize(("number", "num_experts"), [(1, 1), (8, 128), (11_664, 128), (10**6, 8), (3000, 64)])
def test_a_tile_is_as_large_as_costs_least(number, num_experts):
    """Of all powers of two: what experts with as many states each fetch, and half a tile of empty places."""
    each = number / num_experts
    sizes = [size for size in 2 ** np.arange(12) if experts.SMALLEST <= size <= experts.LARGEST]
    costs = {size: experts.FETCHED * each / size + size / 2 for size in sizes}
    assert costs[experts.tile_size(number, num_experts)] <= 1.0001 * min(costs.values())


def weights(num_experts: int, width: int, neurons: int, dtype=np.float32, seed: int = 1):
    draw = np.random.default_rng(seed)

    def kernel(*shape):
        return {"kernel": jnp.asarray(0.3 * draw.standard_normal(shape), dtype)}

    into = [kernel(num_experts, width, neurons) for _ in range(2)]
    return into, kernel(num_experts, neurons, width), kernel(width, num_experts)["kernel"]


def everywhere(x, routes: experts.Routes, into, down):
    """Every expert on every state, and then its share."""
    inputs = [jnp.einsum("nd,edf->nef", x, each["kernel"], precision="highest") for each in into]
    made = jnp.einsum("nef,efd->ned", layers.neurons(inputs), down["kernel"], precision="highest")
    share = (jax.nn.one_hot(routes.chosen, made.shape[1]) * routes.shares[..., None]).sum(axis=1)
    return jnp.einsum("ned,ne->nd", made, share, precision="highest")


@pytest.mark.parametrize(("num_states", "num_experts", "number"), CASES)
@pytest.mark.parametrize("sum_to_one", [True, False])
def test_an_mlp_of_experts_is_their_sum_by_share_and_so_are_its_gradients(num_states, num_experts, number, sum_to_one):
    into, down, router = weights(num_experts, 6, 5)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((num_states, 6)), jnp.float32)

    def read(mlp, x, router, into, down):
        routes = experts.route(experts.product(x, router), number, sum_to_one=sum_to_one)
        return jnp.sin(mlp(x, routes, into, down)).sum()

    def both(mlp):
        return jax.jit(jax.value_and_grad(lambda *args: read(mlp, *args), argnums=(0, 1, 2, 3)))(x, router, into, down)

    for got, wanted in zip(*(jax.tree.leaves(both(mlp)) for mlp in (experts.mlp, everywhere)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_shares_are_of_all_experts_or_of_those_chosen():
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((9, 5)), jnp.float32)
    whole = np.asarray(jax.nn.softmax(logits))
    some, one = (experts.route(logits, 2, sum_to_one=flag) for flag in (False, True))
    np.testing.assert_array_equal(some.chosen, np.argsort(-whole, axis=1)[:, :2])
    np.testing.assert_array_equal(some.shares, np.sort(whole, axis=1)[:, :-3:-1])
    np.testing.assert_allclose(one.shares.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(one.shares, some.shares / some.shares.sum(axis=1, keepdims=True), rtol=1e-6)
    own = np.stack([experts.share_of(some, jnp.int32(expert)) for expert in range(5)], axis=1)
    np.testing.assert_array_equal(own, np.where(whole >= np.sort(whole, axis=1)[:, 3:4], whole, 0))


def test_wide_states_meet_narrow_experts_in_full():
    """As float32 weights of the same numbers would: the states are not rounded."""
    into, down, router = weights(4, 16, 8, jnp.bfloat16)
    x = jnp.asarray(np.random.default_rng(2).standard_normal((30, 16)), jnp.float32)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (into, down, router))
    routes = experts.route(experts.product(x, router), 2, sum_to_one=False)
    got, wanted = experts.mlp(x, routes, into, down), experts.mlp(x, routes, *wide[:2])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(experts.product(x, router), experts.product(x, wide[2]), rtol=0, atol=1e-5)
