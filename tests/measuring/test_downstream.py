"""What follows a change: the host's own run, and run on from any half-step; against a plain loop over blocks."""

import dataclasses
import functools

import engine_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpatch import testing
from jaxpatch.measuring import downstream, effect
from jaxpatch.measuring.read_outs import Anchor, NextToken
from jaxpatch.models import decoder

PAIR = testing.tiny_pair(testing.tiny_config(attention_bias=True, output_bias=True, mlp_bias=True))
CONFIG = PAIR.config
INPUTS = engine_cases.inputs(engine_cases.PROMPTS["a common prefix"])
READ_OUTS = (
    engine_cases.anchor(2, 5, read_out="cosine"),
    engine_cases.anchor(0, 3),
    NextToken("kl"),
    engine_cases.anchor(1),
    NextToken("log_prob", jnp.array([3, 1, 4, 1])),
)
ANCHORS = tuple(read_out for read_out in READ_OUTS if isinstance(read_out, Anchor))
UNREACHED = -7.0
"""No read-out comes out so."""

trace = jax.jit(downstream.trace, static_argnums=(0, 4))
finish = jax.jit(downstream.finish, static_argnums=0)
host_reads = jax.jit(downstream.host_reads, static_argnums=0)


def made(wanted=READ_OUTS):
    """Models, the host's whole run, and its read-outs by the definition."""
    models = engine_cases.models(PAIR, INPUTS, wanted)
    states = trace(CONFIG, models, downstream.embedded(CONFIG, models.host, models.tree), 0, 3)
    return models, states, np.asarray(engine_cases.reads(CONFIG, PAIR.base, INPUTS, models.read_outs))


def at_half_step(states, start: int):
    """The host's stream there."""
    return states.mid[start // 2] if start % 2 else states.entering[start // 2]


def unreached(models):
    return jnp.full((len(models.read_outs), 4), UNREACHED)


@functools.partial(jax.jit, static_argnums=2)
def half_step(models, x, half: int):
    """One half of one block of the host."""
    block = decoder.Block(CONFIG).bind({"params": decoder.layer_of(models.host, half // 2)})
    return block.mlp_half(x) if half % 2 else block.attention_half(x, downstream.context_of(CONFIG, models))[0]


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_trace_is_the_hosts_run():
    models, states, _ = made()
    every = np.asarray(jax.jit(effect.every_last_state, static_argnums=0)(CONFIG, effect.unpatched(PAIR.base), INPUTS))
    nodes = models.tree.tokens.shape[0]
    assert states.entering.shape == (4, nodes, 16) and states.mid.shape == (3, nodes, 16) and states.first == 0
    np.testing.assert_array_equal(states.entering[0], PAIR.base["embed"]["kernel"][models.tree.tokens])
    for layer in range(3):
        close(states.entering[layer + 1][models.tree.last], every[layer])
        close(half_step(models, states.mid[layer], 2 * layer + 1), np.asarray(states.entering[layer + 1]))


@pytest.mark.parametrize("length", [1, 2])
def test_the_run_in_segments_is_the_whole_run(length):
    models, whole, _ = made()
    before, x = trace._cache_size(), whole.entering[0]
    for first in range(0, 4 - length, length):
        part = trace(CONFIG, models, x, jnp.int32(first), length)
        assert part.first == first
        close(part.entering, np.asarray(whole.entering[first : first + length + 1]))
        close(part.mid, np.asarray(whole.mid[first : first + length]))
        x = part.entering[-1]
    assert trace._cache_size() == before + 1, "one program for all segments"


@pytest.mark.parametrize("wanted", [READ_OUTS, ANCHORS, READ_OUTS[3:4]], ids=["all", "anchors", "one below the top"])
def test_finish_from_any_half_step_is_the_same_run_and_one_program(wanted):
    """What lies below the start of a candidate is what it was told, and all the rest is read."""
    models, states, host = made(wanted)
    close(host_reads(CONFIG, models), host)
    before = finish._cache_size()
    depth = max(CONFIG.layers if isinstance(r, NextToken) else r.layer + 1 for r in wanted)
    for start in range(2 * depth + 1):
        x = at_half_step(states, start)
        found = finish(CONFIG, models, jnp.stack([x, x]), jnp.full(2, start, jnp.int32), unreached(models))
        reached = [isinstance(r, NextToken) or start <= 2 * (r.layer + 1) for r in wanted]
        for candidate in found:
            close(candidate, np.where(np.array(reached)[:, None], host, UNREACHED))
    assert finish._cache_size() == before + 1


def by_hand(models, x, start: int) -> np.ndarray:
    """Read-outs of one stream that enters at a half-step: every half of every block after it, one by one."""
    found = np.full((len(models.read_outs), 4), UNREACHED)
    for half in range(start, 7):
        for row, read_out in enumerate(models.read_outs):
            if isinstance(read_out, Anchor) and half == 2 * (read_out.layer + 1):
                found[row] = read_out.read(x[models.tree.last])
        if half < 6:
            x = half_step(models, x, half)
    for row, read_out in enumerate(models.read_outs):
        if isinstance(read_out, NextToken):
            logits = decoder.apply(CONFIG, models.host, x[models.tree.last], method="read_out")
            found[row] = read_out.read(logits)
    return found


def test_candidates_of_different_layers_share_a_batch():
    """Seven changed streams, entering at seven half-steps, in no order: each as if it were alone, and as run by hand."""
    models, states, host = made()
    starts = [3, 0, 6, 5, 1, 4, 2]
    noise = np.random.default_rng(0).standard_normal((7, *states.mid.shape[1:])).astype(np.float32)
    x = jnp.stack([at_half_step(states, start) for start in starts]) + 0.3 * noise
    together = finish(CONFIG, models, x, jnp.array(starts, jnp.int32), unreached(models))
    for candidate, start in enumerate(starts):
        alone = finish(CONFIG, models, x[candidate][None], jnp.array([start], jnp.int32), unreached(models))[0]
        close(together[candidate], np.asarray(alone))
        wanted = by_hand(models, x[candidate], start)
        close(together[candidate], wanted)
        assert (np.abs(wanted - host) > 1e-4).all(), "the change matters to every read-out"


def test_narrow_models_are_read_wide():
    base = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PAIR.base)
    models = engine_cases.models(dataclasses.replace(PAIR, base=base), INPUTS, ANCHORS)
    found = host_reads(CONFIG, models)
    assert found.dtype == jnp.float32
    wanted = np.asarray(engine_cases.reads(CONFIG, base, INPUTS, ANCHORS))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2**-6 * np.abs(wanted).max())
