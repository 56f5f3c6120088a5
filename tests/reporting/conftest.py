"""Small findings, truly scored."""

import dataclasses
import math
import warnings
from collections.abc import Mapping

import numpy as np
import pytest
from reporting_cases import HOSTILE, curve

import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.models.differences import Difference
from jaxpatch.patching import changes
from jaxpatch.patching.exchange import Exchange
from jaxpatch.reporting import figures, likeness
from jaxpatch.reporting.findings import Along, Findings, Sample
from jaxpatch.tracing import flow

SAMPLES = (
    Sample("Describe owls.", "base", "Owls are birds.", False, False),
    Sample("Describe owls.", "special", "OWLS ARE BIRDS.", True, True),
    Sample("Describe owls.", "base + top 10", "", None, None),
    Sample("Describe owls.", "base + top 30", "Sure:\nOWLS.", False, True),
)
MANIFEST = {
    "command": "jaxpatch run --task owls",
    "seed": 3,
    "versions": {"jax": "0.10.0"},
    "files": {"base": {"given": "models/base", "read": [{"name": "model.safetensors", "sha256": "ab" * 32}]}},
}


ALONG = {
    "base": Along(1.25, 0.0, 1.5),
    "special": Along(0.0, 0.75, 2.5),
    "base + top 10": Along(0.125, 0.03125, 1.75, "top", 10),
    "base + top 30": Along(0.0625, 0.25, 2.0, "top", 30),
}


@pytest.fixture(scope="session")
def scored():
    """(pair, prompts, anchor): six prompts along a fitted anchor at layer 1 of three."""
    pair, prompts = testing.tiny_pair(), testing.tiny_inputs(batch=6)
    anchor, info = jp.fit_anchor(pair, prompts, testing.tiny_inputs(seed=1, batch=6), layer=1, contrast="models")
    passed = tuple(check._replace(value=0.75, is_passed=True) for check in info.checks)
    return pair, prompts, anchor, info._replace(checks=passed)


@pytest.fixture(scope="session")
def exact(scored) -> Findings:
    """Everything there is to report, by the exact method."""
    pair, prompts, anchor, info = scored
    found = jp.score(pair, prompts, anchor)
    placed = jp.place(found, jp.score(pair, prompts, anchor, method="activation"))
    curves = jp.validate(pair, prompts, anchor, found, num_random=1)
    smallest = jp.smallest_sets(pair, prompts, anchor, found, curves, shares=(0.3, 0.6, 9.0))
    unlike = dataclasses.replace(pair, differences=(Difference("template", f"has {HOSTILE}", "has none", "base"),))
    changed = changes.by_kind(pair.base, pair.special, found.partition)
    told = likeness.of_pair(unlike, changed, found.partition) | {"parity": {"base": {"said": f"as {HOSTILE}"}}}
    question = {"base": "models/base", "layer": None}
    traced = supplied(placed)
    return Findings(
        "owls", question, anchor, info, found, placed, curves, SAMPLES, told, MANIFEST, traced, smallest, ALONG
    )


def supplied(placed: jp.Roles) -> flow.Flow:
    """A graph of two levels, of a state's own suppliers again and again, whatever stands below whom."""

    def measure(chain):
        if chain and chain[-1][0] == "neuron":
            return "heads are enough"
        return flow.Measured(placed.weights, placed.activations, 0.25 if chain else math.nan)

    def through(chain, suppliers, is_passed):
        return np.tile([0.01, -0.02, 0.5], (len(suppliers), 1))

    return flow.follow(measure, flow.Rules(most=4), through=through)


@pytest.fixture(scope="session")
def screened(scored, exact) -> Findings:
    """A screen that leaves some heads unseen: a small sample, and a level that is met with few."""
    pair, prompts, anchor, _ = scored
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = jp.score(pair, prompts, anchor, kinds=("head",), method="screened", top=2, alpha=0.9, sample=3)
    assert not found.screening["head"].replaced[: anchor.layer + 1].all()
    return exact._replace(scores=found)


@pytest.fixture(scope="session")
def coarse(scored, exact) -> Findings:
    """Kinds of every other shape, with random scores, and nothing that was not asked for."""
    draw = np.random.default_rng(0)
    kinds = ("layer", "kv", "matrix", "norm", "final_norm", "embed")
    values = {kind: draw.standard_normal(exact.scores.partition[kind].shape).astype(np.float32) for kind in kinds}
    found = dataclasses.replace(
        exact.scores,
        values=values,
        effects={kind: np.stack([array] * 6) for kind, array in values.items()},
        low={kind: array - 0.1 for kind, array in values.items()},
        high={kind: array + 0.1 for kind, array in values.items()},
        ceilings={f"all {kind}": 0.5 for kind in kinds},
    )
    nothing = dict(
        flow=None, anchor_info=None, roles=None, curves=(), smallest=(), along={}, samples=(), manifest={}, question={}
    )
    return exact._replace(scores=found, **nothing)


@pytest.fixture(scope="session")
def drawn(exact) -> Mapping[str, str]:
    """The figures of `exact`."""
    return figures.draw_all(exact)


@pytest.fixture(scope="session")
def hostile_drawn(hostile) -> Mapping[str, str]:
    return figures.draw_all(hostile)


@pytest.fixture(scope="session")
def hostile(exact) -> Findings:
    """Markup wherever a user, a model or a path can put it."""
    info = exact.anchor_info
    exchanged = dataclasses.replace(
        exact.roles.activations, method=HOSTILE, ceilings={HOSTILE: 0.5}, exchange=Exchange(site=HOSTILE)
    )
    return exact._replace(
        task=HOSTILE,
        question={HOSTILE: HOSTILE, "kinds": (HOSTILE,)},
        anchor=exact.anchor.replace(read_out=HOSTILE),
        anchor_info=info._replace(checks=(info.checks[0]._replace(name=HOSTILE, wanted=HOSTILE, is_passed=False),)),
        scores=dataclasses.replace(
            exact.scores, ceilings={HOSTILE: 0.5}, method=HOSTILE, aggregate=HOSTILE, is_kept=np.arange(6) < 3
        ),
        roles=dataclasses.replace(exact.roles, activations=exchanged),
        curves=(curve("top", "restoration", [0.1, 0.5, 0.8]), curve(HOSTILE, "restoration", [0.0, 0.6, 0.8])),
        along={HOSTILE: ALONG["base"]},
        samples=(Sample(HOSTILE, HOSTILE, HOSTILE, True),),
        manifest={HOSTILE: HOSTILE, "command": HOSTILE, "files": {HOSTILE: [{HOSTILE: HOSTILE}]}},
    )
