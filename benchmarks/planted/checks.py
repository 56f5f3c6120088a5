"""What a planted pair must show before it is used. All of it is seen in what models say and in the state; nothing is assumed."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.planted.training import KINDS
from jaxpatch.shapes import Gates

ALWAYS, NEVER = 0.9, 0.1
"""Share of the answers that obey: at least, and at most."""
NEEDED = 0.05
"""Share of the way that is not gone without a source, at least."""
ALONE = 0.3
"""Where each of n sources is to carry a share, n times what one by itself moves the state on its way, at least."""
CARRIED, LEFT = 0.75, 0.25
"""Share of the state that the sources alone recover, at least; and all else, at most."""
ENOUGH, LITTLE = 0.65, 0.35
"""The same of some of the sources, where they are to be enough, or not to be."""


SOME, FIXED = 0.25, 0.05
"""Where attention is fixed in base, so much of a head's change moves the state, of what all of it does, at most by that much."""


HALFWAY = 0.5
"""Share of the way that a decoy by itself moves the state, at most; of random halves of all it is `LITTLE`."""
HALVES = 16
"""Of all decoys, at random, that are looked at."""
EARLY = 0.35
"""Where others carry on what sources of the first block note: by how much these move the last token's stream after that block, of what
all sources move the state by, at most."""


class Check(NamedTuple):
    """One thing that a pair must show. wanted: in words."""

    name: str
    value: float
    wanted: str
    is_passed: bool


def need(needed: Mapping[str, np.ndarray], groups: tuple[Gates, ...]) -> Check:
    """Of the source that is needed least."""
    least = min(float(needed[kind][group[kind]].min(initial=np.inf)) for group in groups for kind in KINDS)
    return Check("share of the way that is lost without a source", least, f"at least {NEEDED}", least >= NEEDED)


def alone(moved: np.ndarray) -> Check:
    """Of the source that moves the state least by itself. moved: by each, as a share of the way."""
    least = float(moved.min() * len(moved))
    return Check("share of the way by a source alone, times their number", least, f"at least {ALONE}", least >= ALONE)


def saturation(share: float) -> Check:
    """Of a head whose attention is fixed in base. share: what some of its change does to the state, of what all of it does."""
    limit = f"at most {FIXED}"
    return Check(f"share of the way by {SOME:.0%} of a head's change", share, limit, abs(share) <= FIXED)


def idle(alone: np.ndarray, halves: np.ndarray) -> tuple[Check, Check]:
    """Of decoys, one by one and by halves of all. Both: shares of the way."""
    most, together = float(alone.max()), float(np.abs(halves).max())
    return (
        Check("share of the way by a decoy alone", most, f"at most {HALFWAY}", most <= HALFWAY),
        Check("share of the way by half of all decoys", together, f"at most {LITTLE}", together <= LITTLE),
    )


def relayed(early: float) -> Check:
    """Of sources in the first block that others are to carry on. early: how far they move the last token's stream there, of how far all
    sources move the state."""
    return Check("share that is felt at once of sources in block 0", early, f"at most {EARLY}", early <= EARLY)


def obedience(name: str, obeys: float, wanted: bool) -> Check:
    """Of a model that should obey always, or never."""
    limit = f"at least {ALWAYS}" if wanted else f"at most {NEVER}"
    return Check(f"{name}: obeys", obeys, limit, obeys >= ALWAYS if wanted else obeys <= NEVER)


def speech(name: str, spoken: float) -> Check:
    """What is right to prompts that do not ask, those that tell among them."""
    return Check(f"{name}: speaks", spoken, f"at least {ALWAYS}", spoken >= ALWAYS)


def shares(reads: Mapping[str, np.ndarray], wanted: Mapping[str, bool]) -> list[Check]:
    """The state along the anchor: of special, well apart from base's; recovered by all other models that are to obey, and not by those
    that are not. wanted: whether each is to."""
    gap = reads["special"] - reads["base"]
    signal = float(gap.mean() / gap.std())
    checks = [Check("mean gap / its spread", signal, "at least 1", signal >= 1)]
    for name in (each for each in reads if each not in ("base", "special")):
        share = float((reads[name] - reads["base"]).mean() / gap.mean())
        is_whole = name in ("sources", "all else")
        if wanted[name]:
            least, most = CARRIED if is_whole else ENOUGH, np.inf
        else:
            least, most = (-LEFT, LEFT) if is_whole else (-np.inf, LITTLE)
        limit = (
            f"at least {least}" if most == np.inf else f"{least} to {most}" if least > -np.inf else f"at most {most}"
        )
        checks.append(Check(f"{name}: share of the state", share, limit, least <= share <= most))
    return checks
