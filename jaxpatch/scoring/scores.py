"""From effects to scores: the mean of per-input ratios, its interval, and what stands beside it."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from jaxpatch.patching.components import Kind, Partition, lookup
from jaxpatch.patching.exchange import Exchange
from jaxpatch.scoring import normalise
from jaxpatch.scoring.method import Screening

LARGEST_NOISE = 0.1
"""Of a kind's largest score: a noise floor above that makes its scores doubtful."""
SMALLEST_NOISE = 1e-5
"""Of the gap: a noise floor below is float32's own, and where scores are no larger, there is nothing to be found."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Weight-patching scores of every component of the asked kinds, or activation-patching scores.

    Attributes:
        values: kind -> [*shape] float32, E_w: 0 nothing recovered, 1 everything. Components above the anchor score 0. After a screen,
            those that were not replaced have an estimate that is never above their bound.
        effects: kind -> [B, *shape] float32 (float64 for float64 models), ``F_a(patched) - F_a(base)``, not normalised.
        low, high: kind -> [*shape], bootstrap interval over inputs (95 %); NaN with fewer than two inputs.
        gap: [B], ``G(x) = F_a(special, x) - F_a(base, x)``.
        is_kept: bool [B], inputs whose gap is large enough to divide by.
        ceilings: what patching many at once recovers: "all head", ..., "head + neuron", "everything". whole: by the same names the
            effects that these are of, [B] each.
        noise: kind -> noise floor of exact scores: the largest distance, in E_w, over a few components, between the engine and the
            definition in the highest precision, or between that and itself a second time. Scores that differ by less are alike.
        method: how the effects were found. aggregate: "mean_of_ratios" or "ratio_of_means".
        mode: "restoration", or "knockout", where effects are what is lost.
        screening: kind -> what was truly replaced, for the screened methods.
        exchange: of activation patching, what was exchanged; the scores are then E_a. repairs: of attribution patching.
    """

    values: Mapping[str, np.ndarray]
    effects: Mapping[str, np.ndarray] = field(repr=False)
    low: Mapping[str, np.ndarray] = field(repr=False)
    high: Mapping[str, np.ndarray] = field(repr=False)
    gap: np.ndarray
    is_kept: np.ndarray
    ceilings: Mapping[str, float]
    noise: Mapping[str, float]
    method: str
    mode: str = "restoration"
    aggregate: str
    layer: int
    partition: Partition = field(repr=False)
    screening: Mapping[str, Screening] = field(default_factory=dict, repr=False)
    exchange: Exchange | None = None
    repairs: tuple[str, ...] = ()
    whole: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def of(self, kinds: Sequence[str]) -> "Scores":
        """The same, of some kinds alone."""
        parts = ("values", "effects", "low", "high")
        few = {name: {kind: getattr(self, name)[kind] for kind in kinds} for name in parts}
        rest = {
            name: {kind: each for kind, each in getattr(self, name).items() if kind in kinds}
            for name in ("noise", "screening")
        }
        return replace(self, **few, **rest)

    @property
    def drowned(self) -> tuple[str, ...]:
        """Kinds whose noise floor is above a tenth of their largest score, and not negligible: their order is as much rounding as
        effect."""
        return tuple(
            kind
            for kind, values in self.values.items()
            if self.noise.get(kind, 0.0) > max(SMALLEST_NOISE, LARGEST_NOISE * np.abs(values).max())
        )

    @property
    def reach(self) -> dict[str, np.ndarray]:
        """Kind -> bool of its shape: what can matter to the read-out. In blocks, those up to where it reads, whether special changed
        them or not; outside of blocks what stands before them, and what has an effect."""
        made = {}
        for kind, values in self.values.items():
            can = np.zeros(values.shape, bool)
            is_before = self.layer < 0 or kind in ("embed", "positions")
            if not is_before and lookup(self.partition, kind).axes[0] == "layer":
                can[: self.layer + 1] = True
            else:
                can |= is_before | self.effects[kind].any(axis=0)
            made[kind] = can
        return made

    def ceiling_ends(self, name: str, *, seed: int = 0) -> tuple[float, float]:
        """Interval of a ceiling (95 %, bootstrap over inputs); NaN with fewer than two inputs, and where nobody kept its effects.

        Raises: KeyError where there is no such ceiling.
        """
        if name not in self.ceilings:
            raise KeyError(f"{name!r} is no ceiling of these scores; they have {', '.join(self.ceilings) or 'none'}.")
        if name not in self.whole:
            return float("nan"), float("nan")
        low, high = normalise.intervals(self.whole[name], self.gap, self.is_kept, self.aggregate, seed)
        return float(low), float(high)

    @property
    def num_dropped(self) -> int:
        """Inputs left out because their gap is too small or not positive."""
        return int((~self.is_kept).sum())

    def top(self, kind: str, count: int) -> pd.DataFrame:
        """The components with the highest scores, best first: a row each, with interval.

        Raises: KeyError where this kind was not scored; ValueError for a negative count.
        """
        if count < 0:
            raise ValueError(f"top: wanted how many, at least 0; got {count}.")
        if kind not in self.values:
            raise KeyError(f"{kind!r} was not scored; scored: {', '.join(self.values)}.")
        frame = self.to_frame()
        best = frame.loc[frame["kind"] == kind].sort_values("score", ascending=False, kind="stable")
        return best.head(count).reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """One row a component: kind, layer, index, name, score, low, high, effect (mean), is_exact.

        An index counts through all that a layer has of the kind: neurons of its first expert, of its second, and so on.
        """
        parts = []
        for kind, values in self.values.items():
            sort = lookup(self.partition, kind)
            has_layer = sort.axes[0] == "layer"
            layer, index = np.divmod(np.arange(values.size), values[0].size if has_layer else values.size)
            layer = layer if has_layer else np.full(values.size, -1)
            index = index if values.ndim > 1 or not has_layer else np.full(values.size, -1)
            exact = self.method in ("exact", "activation")
            replaced = self.screening[kind].replaced.ravel() if kind in self.screening else np.full(values.size, exact)
            parts.append(
                pd.DataFrame(
                    {
                        "kind": kind,
                        "layer": layer,
                        "index": index,
                        "name": component_names(kind, sort),
                        "score": values.ravel(),
                        "low": self.low[kind].ravel(),
                        "high": self.high[kind].ravel(),
                        "effect": self.effects[kind].mean(axis=0).ravel(),
                        "is_exact": replaced,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def component_names(kind: str, sort: Kind) -> list[str]:
    """What the components of a kind are called in tables, in the order of its gates.

    >>> component_names("matrix", Kind((2, 2), ("layer", "matrix"), (), ("up", "down")))
    ['up 0', 'down 0', 'up 1', 'down 1']
    >>> component_names("neuron", Kind((1, 1, 2), ("layer", "expert", "neuron"), ()))
    ['neuron 0.0.0', 'neuron 0.0.1']
    """
    places = itertools.product(*map(range, sort.shape))
    if (sort.shape, sort.axes) == ((1,), ("index",)):
        return [kind]
    if sort.members:
        return [f"{sort.members[number]} {layer}" for layer, number in places]
    return [f"{kind} {'.'.join(map(str, place))}" for place in places]
