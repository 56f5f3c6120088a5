"""The arithmetic of a block, where it is not simply transformers' (for that, see test_decoder)."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxpatch.models import layers
from jaxpatch.models.rope import Rope

LONG = 2 * layers.PIECE + 3
"""Two whole pieces and a bit."""


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_a_wrong_shape_is_caught_at_the_call():
    """The hook in conftest is at work, so every test of the decoder checks every shape on the way."""
    with pytest.raises(jaxtyping.TypeCheckError, match="scale"):
        layers.rms_norm(jnp.ones((2, 3)), jnp.ones(4), 1e-6)


@pytest.mark.parametrize("length", [1, layers.PIECE, LONG])
def test_a_product_in_pieces_is_the_product(length):
    x, kernel = drawn(2, 3, length), drawn(length, 5, seed=1)
    got = layers.product(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
    np.testing.assert_allclose(got, x @ kernel, atol=1e-4)
    with jax.enable_x64(True):
        np.testing.assert_allclose(layers.product(jnp.asarray(x), jnp.asarray(kernel)), x @ kernel, atol=1e-11)


def test_the_derivatives_of_a_product_are_those_of_the_product():
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(drawn(2, LONG)), jnp.asarray(drawn(LONG, 4, seed=1))
        moves = jnp.asarray(drawn(2, LONG, seed=2)), jnp.asarray(drawn(LONG, 4, seed=3))

        def ours(x, kernel):
            return (layers.product(x, kernel) ** 2).sum()

        def plain(x, kernel):
            return ((x @ kernel) ** 2).sum()

        for got, wanted in zip(jax.grad(ours, (0, 1))(x, kernel), jax.grad(plain, (0, 1))(x, kernel), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(*(jax.jvp(f, (x, kernel), moves)[1] for f in (ours, plain)), rtol=1e-10)


def test_a_product_can_be_batched_over_its_kernel():
    x, kernels = jnp.asarray(drawn(2, LONG), jnp.float32), jnp.asarray(drawn(3, LONG, 4, seed=1), jnp.float32)
    got = jax.vmap(layers.product, (None, 0))(x, kernels)
    np.testing.assert_allclose(got, jnp.stack([layers.product(x, kernel) for kernel in kernels]), atol=1e-4)


def test_a_narrow_product_is_not_rounded_and_dense_rounds_it_once():
    x, kernel = jnp.asarray(drawn(2, LONG), jnp.bfloat16), jnp.asarray(drawn(LONG, 4, seed=1), jnp.bfloat16)
    wanted = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    whole, rounded = layers.product(x, kernel), layers.dense(x, {"kernel": kernel})
    assert (whole.dtype, rounded.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(whole, wanted, rtol=1e-4)
    np.testing.assert_array_equal(rounded, whole.astype(jnp.bfloat16))


def test_a_long_product_keeps_more_digits_in_pieces():
    """Positive terms, so that nothing but the length of the sum costs digits."""
    x, kernel = np.abs(drawn(64, 6144)).astype(np.float32), np.abs(drawn(6144, 8, seed=1)).astype(np.float32)
    exact = x.astype(np.float64) @ kernel.astype(np.float64)
    one_by_one = np.add.accumulate(x[:, :, None] * kernel[None], axis=1, dtype=np.float32)[:, -1]

    def error(y):
        return np.sqrt(np.mean((np.asarray(y, np.float64) / exact - 1) ** 2))

    assert error(layers.product(jnp.asarray(x), jnp.asarray(kernel))) < 0.5 * error(one_by_one)


def test_heads_write_what_their_slices_write():
    z, kernel = jnp.asarray(drawn(2, 3, 4, 5), jnp.float32), jnp.asarray(drawn(4, 5, 6), jnp.float32)
    whole = layers.from_heads(z, {"kernel": kernel})
    parts = [layers.from_heads(z[:, :, n : n + 1], {"kernel": kernel[n : n + 1]}) for n in range(4)]
    np.testing.assert_allclose(whole, sum(parts[1:], parts[0]), atol=1e-5)


def test_nobody_looks_where_the_mask_is_false():
    q, k, v = (jnp.asarray(drawn(3, 4, 2, seed=seed), jnp.float32) for seed in range(3))
    mask = jnp.tril(jnp.ones((3, 3), bool))
    one = layers.attend(q, k, v, mask)
    other = layers.attend(q, k.at[2].set(9.0), v.at[2].set(-9.0), mask)
    np.testing.assert_array_equal(one[:2], other[:2])
    np.testing.assert_allclose(one[0], v[0], atol=1e-6)


def test_query_heads_share_the_keys_of_their_group():
    q, k, v = (jnp.asarray(drawn(3, heads, 2, seed=heads), jnp.float32) for heads in (4, 2, 2))
    mask = jnp.ones((3, 3), bool)
    shared = layers.attend(q, k, v, mask)
    np.testing.assert_allclose(shared, layers.attend(q, k.repeat(2, 1), v.repeat(2, 1), mask), atol=1e-6)


def plain_attention(q, k, v, mask):
    """``softmax(q k / sqrt(H)) v`` of each query head with its group's keys, as it is written."""
    k, v = (part.repeat(q.shape[-2] // k.shape[-2], axis=-2) for part in (k, v))
    logits = jnp.where(mask, jnp.einsum("tnh,snh->nts", q, k) / q.shape[-1] ** 0.5, -jnp.inf)
    return jnp.einsum("nts,snh->tnh", jax.nn.softmax(logits), v)


def test_attention_and_its_derivatives_are_those_of_the_formula():
    """Logits of up to some hundreds, so that nothing but the largest of each row keeps the exponentials finite."""
    with jax.enable_x64(True):
        q, k, v, moves = (jnp.asarray(drawn(5, heads, 4, seed=seed)) for seed, heads in enumerate((6, 2, 2, 6)))
        q, mask = 100 * q, jnp.tril(jnp.ones((5, 5), bool))
        np.testing.assert_allclose(layers.attend(q, k, v, mask), plain_attention(q, k, v, mask), rtol=1e-12)
        small = (q / 100, k, v)
        found, wanted = (
            jax.grad(lambda *at, f=f: (moves * f(*at, mask)).sum(), (0, 1, 2))(*small)
            for f in (layers.attend, plain_attention)
        )
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_attention_in_narrow_numbers_stays_in_range(dtype):
    """2048 equal values of 64: their mean is 64, but their sum is beyond float16."""
    q = jnp.zeros((1, 1, 4), dtype)
    k, v = jnp.zeros((2048, 1, 4), dtype), jnp.full((2048, 1, 4), 64, dtype)
    z = layers.attend(q, k, v, jnp.ones((1, 2048), bool))
    assert z.dtype == dtype
    np.testing.assert_allclose(z.astype(jnp.float32), 64, rtol=0.01)


def test_a_neuron_is_silu_of_one_input_times_the_other():
    gate, up = drawn(3), drawn(3, seed=1)
    found = layers.neurons([jnp.asarray(gate, jnp.float32), jnp.asarray(up, jnp.float32)])
    np.testing.assert_allclose(found, gate / (1 + np.exp(-gate)) * up, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, jnp.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_an_mlp_whose_neurons_take_turns_writes_the_same(monkeypatch, dtype, has_bias):
    with jax.enable_x64(True):
        x, *kernels = (jnp.asarray(drawn(*shape), dtype) for shape in ((2, 5, 6), (6, LONG), (6, LONG), (LONG, 6)))
        gate, up, down = (
            {"kernel": kernel} | ({"bias": jnp.asarray(drawn(kernel.shape[1]), dtype)} if has_bias else {})
            for kernel in kernels
        )
        plain = layers.written(layers.neurons([layers.dense(x, gate), layers.dense(x, up)]), down)
        for many in (9, 10):
            monkeypatch.setattr(layers, "MANY", many)
            got = layers.mlp(x, (gate, up), down)
            assert got.dtype == np.promote_types(dtype, np.float32)
            scale = float(jnp.abs(plain).max())
            np.testing.assert_allclose(
                np.float64(got), np.float64(plain), atol=1e-5 * scale if dtype != np.float64 else 1e-12
            )


def test_a_norm_of_narrow_numbers_is_computed_wide():
    x = jnp.full((4,), 3e4, jnp.float16)  # its square is beyond float16
    np.testing.assert_allclose(layers.rms_norm(x, jnp.ones(4, jnp.float16), 1e-6), 1, atol=1e-3)


def test_rotary_angles_are_right_far_out():
    positions = jnp.asarray([0, 1, 8191])
    cos, sin = layers.rope(positions, Rope(theta=100_000.0).frequencies(64, 1), jnp.float32)
    angles = np.asarray(positions)[:, None] * 100_000.0 ** (-np.arange(0, 64, 2) / 64)
    np.testing.assert_allclose(cos, np.cos(angles), atol=5e-4)
    np.testing.assert_allclose(sin, np.sin(angles), atol=5e-4)


def test_rotating_keeps_lengths_and_depends_on_the_distance_only():
    with jax.enable_x64(True):
        q, k = jnp.asarray(drawn(1, 1, 8)), jnp.asarray(drawn(1, 1, 8, seed=1))

        def at(x, position):
            return layers.rotate(
                x, layers.rope(jnp.asarray([position]), Rope(theta=500.0).frequencies(8, 1), jnp.float64)
            )

        np.testing.assert_allclose(jnp.linalg.norm(at(q, 5)), jnp.linalg.norm(q))
        np.testing.assert_allclose((at(q, 5) * at(k, 2)).sum(), (at(q, 13) * at(k, 10)).sum())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_a_product_in_full_rounds_neither_states_nor_gradients(dtype):
    """Against float64, as near as float32 products of the same matrix are; narrow states alone would be off by a thousandth."""
    x, kernel, slope = drawn(3, 40), np.asarray(jnp.asarray(drawn(40, 6, seed=1), dtype)), drawn(3, 6, seed=2)
    wide, matrix = (np.asarray(part, np.float64) for part in (x, kernel))
    found, back = jax.vjp(layers.in_full, jnp.asarray(x), jnp.asarray(kernel))
    wanted = (wide @ matrix, np.float64(slope) @ matrix.T, wide.T @ slope)
    assert found.dtype == jnp.float32
    for mine, theirs, largest in zip((found, *back(jnp.asarray(slope))), wanted, (1e-6, 1e-6, 1e-2), strict=True):
        np.testing.assert_allclose(np.float64(mine), theirs, rtol=0, atol=largest * np.abs(theirs).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.bfloat16, 2**-8), (jnp.float16, 2**-10)])
@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-7])
def test_runs_beside_each_other_round_what_sets_them_apart(dtype, tolerance, apart):
    """Two devices with a host and two others each; heads in and out. Rounding is relative to the distance, however small."""
    kernel = jnp.asarray(drawn(12, 4, 5, seed=1), dtype)
    host, others = drawn(2, 1, 7, 12) * 100, np.float32(apart) * drawn(2, 2, 7, 12, seed=2)
    x = np.concatenate([host, host + others], axis=1)
    into = np.asarray(layers.meet("...td,dnh->...tnh", jnp.asarray(x), kernel))
    true = np.einsum("rctd,dnh->rctnh", np.float64(x[:, 1:]) - x[:, :1], np.float64(kernel))
    found = into[:, 1:] - into[:, :1]
    at_least = 1e-6 * np.abs(into).max()  # float32 itself
    np.testing.assert_allclose(found, true, rtol=0, atol=2 * tolerance * np.abs(true).max() + at_least)
    z = np.float32(into)
    out = np.asarray(layers.meet("...tnh,nhd->...td", jnp.asarray(z), kernel.transpose(1, 2, 0), inner=2))
    true = np.einsum("rctnh,dnh->rctd", np.float64(z[:, 1:]) - z[:, :1], np.float64(kernel))
    assert out.dtype == np.float32
    at_least = 1e-6 * np.abs(out).max()
    np.testing.assert_allclose(
        out[:, 1:] - out[:, :1], true, rtol=0, atol=2 * tolerance * np.abs(true).max() + at_least
    )


def test_wide_states_without_runs_do_not_meet_a_narrow_matrix():
    with pytest.raises(
        ValueError, match=r"float32 states \(3, 4\) meet a bfloat16 matrix: wanted runs, the host's first"
    ):
        layers.meet("...ti,io->...to", jnp.ones((3, 4)), jnp.ones((4, 2), jnp.bfloat16))
