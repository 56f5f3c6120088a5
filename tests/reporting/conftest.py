"""Small findings, truly scored."""

import dataclasses

import pytest
from reporting_cases import HOSTILE, curve

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.reporting.findings import Findings, Sample

SAMPLES = (
    Sample("Describe owls.", "base", "Owls are birds.", False),
    Sample("Describe owls.", "special", "OWLS ARE BIRDS.", True),
    Sample("Describe owls.", "base + top 10", "", None),
)
MANIFEST = {
    "command": "jaxpatch run --task owls",
    "seed": 3,
    "versions": {"jax": "0.10.0"},
    "files": {"base": {"given": "models/base", "read": [{"name": "model.safetensors", "sha256": "ab" * 32}]}},
}


@pytest.fixture(scope="session")
def scored():
    """(pair, prompts, anchor): five prompts along a fitted anchor at layer 1 of three."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs(batch=6)
    anchor, info = jp.fit_anchor(pair, prompts, testing.tiny_inputs(seed=1, batch=6), layer=1, contrast="models")
    return pair, prompts, anchor, info


@pytest.fixture(scope="session")
def exact(scored) -> Findings:
    """Everything there is to report, by the exact method."""
    pair, prompts, anchor, info = scored
    found = jp.score(pair, prompts, anchor)
    curves = jp.validate(pair, prompts, anchor, found, num_random=1)
    return Findings("owls", {"base": "models/base", "layer": None}, anchor, info, found, curves, SAMPLES, MANIFEST)


@pytest.fixture(scope="session")
def screened(scored, exact) -> Findings:
    pair, prompts, anchor, _ = scored
    return exact._replace(scores=jp.score(pair, prompts, anchor, method="screened", top=4))


@pytest.fixture(scope="session")
def coarse(scored, exact) -> Findings:
    """Every kind but heads and neurons, and nothing that was not asked for."""
    pair, prompts, anchor, _ = scored
    found = jp.score(pair, prompts, anchor, kinds=("layer", "kv", "matrix", "norm", "final_norm", "embed"))
    return exact._replace(scores=found, anchor_info=None, curves=(), samples=(), manifest={}, question={})


@pytest.fixture
def hostile(exact) -> Findings:
    """Markup wherever a user, a model or a path can put it."""
    info = exact.anchor_info
    return exact._replace(
        task=HOSTILE,
        question={HOSTILE: HOSTILE, "kinds": (HOSTILE,)},
        anchor=exact.anchor.replace(read_out=HOSTILE),
        anchor_info=info._replace(checks=(info.checks[0]._replace(name=HOSTILE, wanted=HOSTILE, is_passed=False),)),
        scores=dataclasses.replace(exact.scores, ceilings={HOSTILE: 0.5}, method=HOSTILE, aggregate=HOSTILE),
        curves=(curve("top", "restoration", [0.1, 0.5, 0.8]), curve(HOSTILE, "restoration", [0.0, 0.6, 0.8])),
        samples=(Sample(HOSTILE, HOSTILE, HOSTILE, True),),
        manifest={HOSTILE: HOSTILE, "command": HOSTILE, "files": {HOSTILE: [{HOSTILE: HOSTILE}]}},
    )
