"""Read-outs by hand, and every fault of an anchor at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import read_outs

CONFIG = testing.tiny_config(width=2, heads=2, kv_heads=1, head_width=2)
STATE = jnp.array([[3.0, 4.0], [0.0, -2.0]])


def test_projection_cosine_and_centred_by_hand():
    """h = (3, 4) and (0, -2) along u = (0.6, 0.8): 5 and -1.6; lengths 5 and 2; the centre (1, 1) has 1.4."""
    u = jnp.array([0.6, 0.8])
    np.testing.assert_allclose(jp.Anchor(layer=0, direction=u).read(STATE), [5, -1.6], rtol=1e-6)
    np.testing.assert_allclose(jp.Anchor(layer=0, direction=u, read_out="cosine").read(STATE), [1, -0.8], rtol=1e-6)
    centred = jp.Anchor(layer=0, direction=u, read_out="centred", centre=jnp.ones(2))
    np.testing.assert_allclose(centred.read(STATE), [3.6, -3], rtol=1e-6)


@pytest.mark.parametrize("read_out", read_outs.READ_OUTS)
def test_leading_axes_are_free_and_half_precision_reads_in_float32(read_out):
    centre = jnp.array([0.5, -1.0]) if read_out == "centred" else None
    anchor = jp.Anchor(layer=0, direction=jnp.array([1.0, 0.0]), read_out=read_out, centre=centre)
    cube = jnp.stack([STATE, 2 * STATE, 3 * STATE])
    read = anchor.read(cube)
    assert read.shape == (3, 2)
    np.testing.assert_allclose(read[1], anchor.read(2 * STATE), rtol=1e-6)
    half = anchor.read(cube.astype(jnp.bfloat16))
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, read, rtol=1e-6)


def test_an_anchor_is_a_pytree_of_its_arrays():
    anchor = jp.Anchor(layer=1, direction=jnp.array([1.0, 0.0]))
    assert len(jax.tree.leaves(anchor)) == 1
    assert jax.jit(lambda a, h: a.read(h) + a.layer)(anchor, STATE).tolist() == [4, 1]


def test_checked_takes_lists_and_numpy():
    anchor = read_outs.checked(jp.Anchor(layer=np.int64(2), direction=[0.6, 0.8]), CONFIG)
    assert type(anchor.layer) is int and isinstance(anchor.direction, jax.Array)
    centred = jp.Anchor(layer=0, direction=[0, 1], read_out="centred", centre=[1, 2])
    read = read_outs.checked(centred, CONFIG).read(STATE)
    np.testing.assert_allclose(read, [2, -4])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(layer=3), "layer 3: this model has blocks 0 to 2"),
        (dict(layer=-1), "layer -1"),
        (dict(layer=1.0), "layer 1.0"),
        (dict(direction=[1, 1]), "length 1.414; wanted a unit vector: divide by its norm"),
        (dict(direction=[0, 0]), "length 0"),
        (dict(direction=[np.nan, 1]), "length nan"),
        (dict(direction=[1, 0, 0]), r"direction has shape \(3,\); wanted \(2,\)"),
        (dict(direction=[[1, 0]]), r"direction has shape \(1, 2\)"),
        (dict(read_out="angle"), "read_out 'angle'; wanted one of projection, cosine, centred"),
        (dict(read_out="centred"), "centre: wanted for the centred read-out, and for no other"),
        (dict(centre=[0, 1]), "centre: wanted for the centred read-out, and for no other"),
        (dict(read_out="centred", centre=[0, 1, 2]), r"centre has shape \(3,\); wanted \(2,\)"),
    ],
)
def test_a_bad_anchor_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        read_outs.checked(jp.Anchor(**{"layer": 0, "direction": [0.0, 1.0]} | fields), CONFIG)


def test_all_faults_at_once():
    with pytest.raises(ValueError) as caught:
        read_outs.checked(jp.Anchor(layer=9, direction=[3.0, 4.0], read_out="angle", centre=[1.0]), CONFIG)
    for part in ("layer 9", "length 5", "read_out 'angle'", "centre"):
        assert part in str(caught.value)


def test_kl_by_hand():
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = ln 2 / 2 + ln(2/3) / 2; and a constant added to logits changes nothing."""
    p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75])) + 7
    by_hand = 0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    np.testing.assert_allclose(read_outs.next_token_kl(p, q), by_hand, rtol=1e-5)
    np.testing.assert_allclose(read_outs.next_token_kl(q, q), 0, atol=1e-7)
    batch = read_outs.next_token_kl(jnp.stack([p, q]), jnp.stack([q, p]))
    np.testing.assert_allclose(batch, [by_hand, 0.25 * np.log(0.5) + 0.75 * np.log(1.5)], rtol=1e-5)
    assert read_outs.next_token_kl(p.astype(jnp.bfloat16), q.astype(jnp.bfloat16)).dtype == jnp.float32


def test_kl_with_a_token_that_special_never_writes():
    """0 ln 0 is 0."""
    p, q = jnp.array([0.0, -jnp.inf]), jnp.log(jnp.array([0.5, 0.5]))
    np.testing.assert_allclose(read_outs.next_token_kl(p, q), np.log(2), rtol=1e-6)
