"""Sources and relays: every component placed by what its own parameters carry (E_w) against what passes through it (E_a).

Weight patching asks whose training made the difference, activation patching where the difference is seen. A component that writes the
control state because others made its input different has a high E_a and a low E_w: a relay. That the two differ is the paper's
finding (Sun et al., arXiv 2604.13694); the criteria here, and the source index, are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.scoring import ACTIVATION_METHODS, METHODS, normalise
from jaxpatch.scoring.scores import LARGEST_NOISE, SMALLEST_NOISE, Scores

ROLES = ("neither", "source", "relay", "both")


class Criteria(NamedTuple):
    """When a score is high, and when it is a component's own.

    share: a score is high where its 95 % interval lies above 0, it is at least this share of the largest score of its kind, and it is
        no rounding: at least 1e-5 of the gap, and ten times its kind's noise floor. own: a component with a high E_a is a relay where
        E_w is less than this share of it.
    """

    share: float = 0.1
    own: float = 0.25


DEFAULTS = Criteria()


@dataclass(frozen=True, kw_only=True)
class Roles:
    """Every component of the kinds that both methods scored.

    Attributes:
        weights, activations: E_w and E_a, `Scores` of the same read-out on the same prompts.
        roles: kind -> int array of the kind's shape, places in `ROLES`: "source" (high E_w, and no high E_a), "relay" (high E_a, of
            which E_w is less than `criteria.own`), "both" (high E_a, and E_w a good part of it), "neither".
        criteria: what counts as high.
    """

    weights: Scores = field(repr=False)
    activations: Scores = field(repr=False)
    roles: Mapping[str, np.ndarray]
    criteria: Criteria = DEFAULTS

    def to_frame(self) -> pd.DataFrame:
        """One row a component: kind, layer, index, name, role; E_w and E_a, the ends of their intervals, and whether each is exact."""
        sides = []
        for name, found in (("E_w", self.weights), ("E_a", self.activations)):
            frame = found.to_frame()
            frame = frame.loc[frame["kind"].isin(list(self.roles))].drop(columns="effect")
            names = {"score": name, "low": f"{name} low", "high": f"{name} high", "is_exact": f"{name} is exact"}
            sides.append(frame.rename(columns=names).set_index(["kind", "layer", "index", "name"]))
        both = sides[0].join(sides[1]).reset_index()
        numbers = np.concatenate([self.roles[kind].ravel() for kind in dict.fromkeys(both["kind"])])
        return both.assign(role=pd.Categorical.from_codes(numbers, list(ROLES)))

    def by_layer(self, seed: int = 0) -> pd.DataFrame:
        """One row a kind and layer: the sums of the positive scores of its components, and the source index, with 95 % intervals.

        ``source index = sum E_w+ / (sum E_w+ + sum E_a+)``: near 0 a layer passes on what others made; at one half what its components
        write is their own; above, their parameters recover more than what they write in special's run does. NaN where nothing is
        positive. Intervals resample prompts, for both scores together. Ours.

        Args: seed: of the bootstrap.
        """
        rows = []
        for kind in self.roles:
            sides = [_layers(found, kind, seed) for found in (self.weights, self.activations)]
            own, passed = (side.sums for side in sides)
            low, high = _ends(_index(*(side.resampled for side in sides)))
            rows.append(
                pd.DataFrame(
                    {
                        "kind": kind,
                        "layer": np.arange(len(own)),
                        "E_w": own,
                        "E_a": passed,
                        "source_index": _index(own, passed),
                        "low": low,
                        "high": high,
                    }
                )
            )
        return pd.concat(rows, ignore_index=True)


class _Layers(NamedTuple):
    """Sums of positive scores by layer, [L], and of the same components' on prompts drawn again, [R, L]. Whose score is above 0 on some
    draw alone is noise, which thousands of components would add up to a shift of the interval."""

    sums: np.ndarray
    resampled: np.ndarray


def _layers(found: Scores, kind: str, seed: int) -> _Layers:
    values = found.values[kind].reshape(len(found.values[kind]), -1)
    drawn = normalise.drawn_weights(found.gap, found.is_kept, found.aggregate, seed)
    effects = found.effects[kind][found.is_kept].astype(np.float32)
    counted = np.where(values > 0, effects.reshape(len(effects), *values.shape), 0).sum(axis=2)
    sums = np.where(values > 0, values, 0).sum(axis=1)
    if len(effects) < 2:  # one prompt drawn again is that prompt
        return _Layers(sums, np.full((1, len(sums)), np.nan))
    return _Layers(sums, np.clip(drawn @ counted, 0, None))


def _index(own: np.ndarray, passed: np.ndarray) -> np.ndarray:
    total = own + passed
    return np.divide(own, total, out=np.full_like(total, np.nan), where=total > 0)


def _ends(resampled: np.ndarray) -> np.ndarray:
    """95 % interval of each layer, [2, L]; NaN where no draw says anything."""
    ends = np.full((2, resampled.shape[1]), np.nan)
    known = ~np.isnan(resampled).all(axis=0)
    ends[:, known] = np.nanpercentile(resampled[:, known], (2.5, 97.5), axis=0)
    return ends


def place(weights: Scores, activations: Scores, criteria: Criteria = DEFAULTS) -> Roles:
    """The role of every component that both methods scored.

    Args:
        weights: E_w of each, by any weight-patching method. activations: E_a, by "activation", "screened_activation" or "attribution".
        criteria: what counts as high.

    Raises: ValueError for scores of other prompts or read-outs than each other's, or of methods that do not belong there; all at once.

    References: Sun et al., arXiv 2604.13694; criteria ours.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> asked = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> placed = place(jp.score(*asked, kinds=("head",)), jp.score(*asked, kinds=("head",), method="activation"))
        >>> placed.roles["head"].shape, sorted(placed.to_frame()["role"].unique())
        ((3, 4), ['both', 'neither', 'source'])
    """
    if faults := _faults(weights, activations, criteria):
        raise ValueError("these scores cannot be placed against each other:\n" + "\n".join(f"  - {f}" for f in faults))
    kinds = [kind for kind in weights.values if kind in activations.values]
    return Roles(
        weights=weights,
        activations=activations,
        roles={kind: _roles(weights, activations, kind, criteria) for kind in kinds},
        criteria=criteria,
    )


def _roles(weights: Scores, activations: Scores, kind: str, criteria: Criteria) -> np.ndarray:
    is_source, is_passing = (is_high(found, kind, criteria.share) for found in (weights, activations))
    own = weights.values[kind]
    is_own = own >= criteria.own * activations.values[kind]
    is_passing &= ~np.isnan(own)  # what its own parameters do is not known, so that it may be anything
    roles = np.select(
        [is_passing & ~is_own, is_passing & is_own & is_source, is_passing, is_source],
        [ROLES.index(role) for role in ("relay", "both", "relay", "source")],
    )
    return roles.astype(np.int8)


def is_high(found: Scores, kind: str, share: float) -> np.ndarray:
    """Whether a score stands out of its kind, and of rounding: bool, of the kind's shape; what is no number does not. With a single
    prompt there is no interval, and the score alone decides."""
    values, low = found.values[kind], found.low[kind]
    largest = values.max(initial=0, where=~np.isnan(values))
    rounding = max(SMALLEST_NOISE, found.noise.get(kind, 0.0) / LARGEST_NOISE)
    return (values >= rounding) & (values >= share * largest) & ~(low <= 0)


def _faults(weights: Scores, activations: Scores, criteria: Criteria) -> list[str]:
    faults = [
        f"{name}: method {found.method!r}; wanted one of {', '.join(known)}"
        for name, found, known in (("weights", weights, METHODS), ("activations", activations, ACTIVATION_METHODS))
        if found.method not in known
    ]
    if "grad_drop" in activations.repairs:
        faults.append(
            "activations: repaired by grad_drop, such scores have no sign, and what works against the state would be taken for a "
            "relay; score them without"
        )
    if not set(weights.values) & set(activations.values):
        scored = (", ".join(found.values) for found in (weights, activations))
        faults.append(f"no kind was scored by both: weights have {next(scored)}; activations {next(scored)}")
    if weights.gap.shape != activations.gap.shape or not np.allclose(weights.gap, activations.gap, rtol=1e-3):
        faults.append("the gaps between base and special differ: score both on the same prompts, along the same anchor")
    for name in ("mode", "aggregate", "layer"):
        if getattr(weights, name) != getattr(activations, name):
            faults.append(
                f"{name}: {getattr(weights, name)!r} of weights, {getattr(activations, name)!r} of activations"
            )
    for name, value in criteria._asdict().items():
        if not 0 <= value <= 1:
            faults.append(f"criteria.{name}: wanted a share from 0 to 1; got {value!r}")
    return faults
