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


LOGITS = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))


def test_next_token_by_hand():
    """log p of tokens 1 and 2: ln 1/4 and ln 0.8; -KL(special || p) with special even: ln(1/3) averaged against ln p."""
    read = read_outs.NextToken("log_prob", jnp.array([1, 2])).read(LOGITS)
    np.testing.assert_allclose(read, np.log([0.25, 0.8]), rtol=1e-5)
    even = jnp.full((2, 3), jnp.log(1 / 3))
    by_hand = -(np.log(1 / 3) - np.asarray(LOGITS).mean(-1))
    np.testing.assert_allclose(read_outs.NextToken("kl", even).read(LOGITS), by_hand, rtol=1e-4)
    np.testing.assert_allclose(read_outs.NextToken("kl", LOGITS).read(LOGITS + 3), 0, atol=1e-6)


@pytest.mark.parametrize("read_out", read_outs.NEXT_TOKEN)
def test_next_token_of_many_candidates_and_of_some_prompts(read_out):
    made = read_outs.NextToken(read_out).referring_to(LOGITS[::-1])
    many = jnp.stack([LOGITS, 2 * LOGITS, LOGITS[::-1]])
    read = made.read(many)
    assert read.shape == (3, 2) and read.dtype == jnp.float32
    for row, logits in zip(read, many, strict=True):
        np.testing.assert_allclose(row, made.read(logits), rtol=1e-6)
    np.testing.assert_allclose(made.rows(np.array([1])).read(LOGITS[1:]), read[0, 1:], rtol=1e-6)
    assert made.read(LOGITS.astype(jnp.bfloat16)).dtype == jnp.float32


def test_next_token_refers_to_special_where_nothing_is_given():
    assert read_outs.NextToken("log_prob").referring_to(LOGITS).reference.tolist() == [0, 2]
    given = read_outs.NextToken("log_prob", jnp.array([1, 1]))
    assert given.referring_to(LOGITS).reference.tolist() == [1, 1]
    np.testing.assert_allclose(jnp.exp(read_outs.NextToken("kl").referring_to(LOGITS).reference).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("read_out", "message"),
    [
        (read_outs.NextToken("logit"), "read_out 'logit'; wanted one of kl, log_prob"),
        (
            read_outs.NextToken("kl", np.zeros((2, 3))),
            r"reference has shape \(2, 3\); wanted log-probabilities \(2, 61\)",
        ),
        (
            read_outs.NextToken("log_prob", np.array([1.0, 2.0])),
            r"reference is float64 \(2,\); wanted one token id a prompt",
        ),
        (read_outs.NextToken("log_prob", np.array([1])), r"reference is int64 \(1,\)"),
        (read_outs.NextToken("log_prob", np.array([1, 61])), "wanted one token id a prompt, .*0 to 60"),
        (read_outs.NextToken("log_prob", np.array([-1, 1])), "0 to 60"),
        (jp.Anchor(layer=4, direction=[0.0, 1.0]), "anchor: layer 4"),
    ],
)
def test_a_bad_read_out_is_refused(read_out, message):
    with pytest.raises(ValueError, match=message):
        read_outs.checked_for(testing.tiny_inputs(batch=2), read_out, CONFIG)


def test_depth_is_that_of_the_deepest():
    anchors = [jp.Anchor(layer=layer, direction=[0.0, 1.0]) for layer in (0, 1)]
    assert read_outs.depth(CONFIG, anchors) == 2 and read_outs.depth(CONFIG, anchors[:1]) == 1
    assert read_outs.depth(CONFIG, [*anchors, read_outs.NextToken()]) == 3


def test_several_are_a_tuple_of_read_outs():
    one = jp.Anchor(layer=0, direction=[0.0, 1.0])
    assert read_outs.several(one) == (one,) and len(read_outs.several([one, read_outs.NextToken()])) == 2
    for wrong in ([], [one, "kl"]):
        with pytest.raises(
            ValueError, match="read-outs: wanted an Anchor, a NextToken, a Contribution, or several; got"
        ):
            read_outs.several(wrong)
