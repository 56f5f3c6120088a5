"""What components do beside a set: the engine, from a host of its own, against whole runs, in blocks of every build."""

import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import hosts, instrument, sweep

INPUTS = testing.tiny_inputs(batch=3, tokens=5)
ANCHOR = jp.Anchor(layer=1, direction=np.eye(16)[0])
BUILDS = {
    "norms after": dict(post_norm=True),
    "norms over heads": dict(qk_norm="head"),
    "norms over all queries": dict(qk_norm="whole"),
    "experts": dict(experts=3, chosen=2),
    "side by side, biases": dict(parallel=True, attention_bias=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", BUILDS)
def test_engine_and_definition_agree_beside_any_set(build):
    pair = testing.tiny_pair(testing.tiny_config(**BUILDS[build]), change=0.3)
    tool = hosts.compiled(instrument.of_pair(pair, INPUTS, ANCHOR))
    draw = np.random.default_rng(0)
    gates, wanted = {}, {}
    for kind in ("head", "kv", "neuron", "norm", "embed"):
        gates[kind] = (draw.random(tool.partition[kind].shape) < 0.5).astype(np.float32)
        places = np.argwhere(tool.reach[kind])
        wanted[kind] = places[draw.permutation(len(places))[:4]]
    found = hosts.of_pair(pair, INPUTS, ANCHOR, tool)(gates, wanted, sweep.silent)
    expected = hosts.by_definition(tool)(gates, wanted, sweep.silent)
    for kind in wanted:
        scale = np.abs(expected[kind]).max()
        np.testing.assert_allclose(found[kind], expected[kind], rtol=0, atol=2e-5 * scale, err_msg=kind)
