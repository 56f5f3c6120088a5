"""Hand-made curves and scores with numbers one can read off."""

import dataclasses

import numpy as np

from jaxpatch.reporting.findings import Findings
from jaxpatch.validating.curves import Curve

HOSTILE = "<script>alert(\"x\")</script> & $\\frac [bold]b[/bold] 'q'"


def curve(name: str, mode: str, recovery, *, ks=(1, 10, 84), spread=0.02, top=None) -> Curve:
    """A curve with the same half-width of its interval everywhere; that of its lag behind another's recovery, top, is twice as wide."""
    recovery = np.array(recovery)
    lag = (np.array(recovery if top is None else top) - recovery) * (-1 if mode == "knockout" else 1)
    ends = (recovery, recovery - spread, recovery + spread)
    return Curve(name, mode, np.array(ks), *ends, 2 * (1 - recovery), lag, lag - 2 * spread, lag + 2 * spread)


def with_scores(findings: Findings, heads, *, low=None, high=None, layer: int = 1) -> Findings:
    """The same with heads [3, 4] alone, whose scores are given; two prompts with gap 1."""
    values = np.asarray(heads, np.float32)
    found = dataclasses.replace(
        findings.scores,
        values={"head": values},
        effects={"head": np.stack([values, values])},
        low={"head": values - 0.01 if low is None else np.asarray(low, np.float32)},
        high={"head": values + 0.01 if high is None else np.asarray(high, np.float32)},
        gap=np.ones(2),
        is_kept=np.ones(2, bool),
        ceilings={"all head": 0.6, "everything": 1.0},
        whole={"all head": np.array([0.5, 0.7]), "everything": np.ones(2)},
        layer=layer,
    )
    return trusted(findings)._replace(scores=found, curves=())


def trusted(findings: Findings) -> Findings:
    """The same with every check of the anchor passed."""
    info = findings.anchor_info
    assert info is not None
    checks = tuple(check._replace(is_passed=True) for check in info.checks)
    return findings._replace(anchor_info=info._replace(checks=checks))
