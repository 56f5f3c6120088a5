"""From effects to scores: the mean of per-input ratios, its interval, and what stands beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jaxpatch.patching.components import MATRICES, NORMS, SINGLE, Partition, lookup
from jaxpatch.scoring.method import Screening

AGGREGATES = ("mean_of_ratios", "ratio_of_means")
SMALLEST_GAP = 0.05
"""Of the median positive gap: an input whose gap is smaller, or not positive, is dropped and counted."""
NUM_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Weight-patching scores of every component of the asked kinds.

    Attributes:
        values: kind -> [*shape] float32, E_w: 0 nothing recovered, 1 everything. Components above the anchor score 0.
        effects: kind -> [B, *shape] float32 (float64 for float64 models), ``F_a(patched) - F_a(base)``, not normalised.
        low, high: kind -> [*shape], bootstrap interval over inputs (95 %); NaN with fewer than two inputs.
        gap: [B], ``G(x) = F_a(special, x) - F_a(base, x)``.
        is_kept: bool [B], inputs whose gap is large enough to divide by.
        ceilings: what patching many at once recovers: "all head", ..., "head + neuron", "everything".
        method: how the effects were found. aggregate: "mean_of_ratios" or "ratio_of_means".
        screening: kind -> what was truly replaced, for the screened method.
    """

    values: Mapping[str, np.ndarray]
    effects: Mapping[str, np.ndarray] = field(repr=False)
    low: Mapping[str, np.ndarray] = field(repr=False)
    high: Mapping[str, np.ndarray] = field(repr=False)
    gap: np.ndarray
    is_kept: np.ndarray
    ceilings: Mapping[str, float]
    method: str
    aggregate: str
    layer: int
    partition: Partition = field(repr=False)
    screening: Mapping[str, Screening] = field(default_factory=dict, repr=False)

    @property
    def num_dropped(self) -> int:
        """Inputs left out because their gap is too small or not positive."""
        return int((~self.is_kept).sum())

    def top(self, kind: str, count: int) -> pd.DataFrame:
        """The components with the highest scores, best first: a row each, with interval.

        Raises: KeyError where this kind was not scored.
        """
        if kind not in self.values:
            raise KeyError(f"{kind!r} was not scored; scored: {', '.join(self.values)}.")
        frame = self.to_frame()
        best = frame.loc[frame["kind"] == kind].sort_values("score", ascending=False, kind="stable")
        return best.head(count).reset_index(drop=True)

    def to_frame(self) -> pd.DataFrame:
        """One row a component: kind, layer, index, name, score, low, high, effect (mean), is_exact."""
        parts = []
        for kind, values in self.values.items():
            has_layer = lookup(self.partition, kind).axes[0] == "layer"
            layer, index = np.divmod(np.arange(values.size), values[0].size if has_layer else values.size)
            layer = layer if has_layer else np.full(values.size, -1)
            index = index if values.ndim > 1 or not has_layer else np.full(values.size, -1)
            exact = self.method == "exact"
            replaced = self.screening[kind].replaced.ravel() if kind in self.screening else np.full(values.size, exact)
            parts.append(
                pd.DataFrame(
                    {
                        "kind": kind,
                        "layer": layer,
                        "index": index,
                        "name": [component_name(kind, *at) for at in zip(layer, index, strict=True)],
                        "score": values.ravel(),
                        "low": self.low[kind].ravel(),
                        "high": self.high[kind].ravel(),
                        "effect": self.effects[kind].mean(axis=0).ravel(),
                        "is_exact": replaced,
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


def component_name(kind: str, layer: int, index: int) -> str:
    """What a component is called in tables; -1 stands for no layer, or no index.

    >>> component_name("head", 3, 1), component_name("matrix", 2, 6), component_name("embed", -1, 0)
    ('head 3.1', 'down 2', 'embed')
    """
    if layer < 0:
        return kind if kind in SINGLE else f"{kind} {index}"
    if kind == "matrix":
        return f"{MATRICES[index]} {layer}"
    if kind == "norm":
        return f"{NORMS[index]} {layer}"
    return f"{kind} {layer}" + (f".{index}" if index >= 0 else "")


def kept_inputs(gap: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Which inputs have a gap worth dividing by: bool [B].

    Raises: ValueError where there is none: the anchor does not separate these two models here.
    """
    scale = np.abs(base).max() + np.abs(gap).max()
    positive = gap[gap > 1e-5 * scale]
    if positive.size == 0:
        largest = gap[np.argmax(np.abs(gap))]
        hint = "its direction may be reversed" if largest < -1e-5 * scale else "the two models read alike along it"
        raise ValueError(
            f"no input has a positive gap F(special) - F(base): the largest in size is {largest:.3g}, where F itself reaches "
            f"{scale:.3g}. This anchor cannot be scored here: {hint}. Fit another (fit_anchor), or use other prompts."
        )
    return gap > max(SMALLEST_GAP * np.median(positive), 1e-5 * scale)


def normalised(effects: np.ndarray, gap: np.ndarray, is_kept: np.ndarray, aggregate: str) -> np.ndarray:
    """E_w out of effects [B, ...]: ``mean_x effect / G``, or ``mean_x effect / mean_x G``.

    >>> normalised(np.array([[1.0], [4.0]]), np.array([2.0, 4.0]), np.array([True, True]), "mean_of_ratios").item()
    0.75
    """
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate {aggregate!r}; wanted one of {', '.join(AGGREGATES)}.")
    weights = _weights(np.full(is_kept.sum(), 1.0)[None], gap[is_kept], aggregate)[0]
    return np.tensordot(weights, effects[is_kept], axes=1).astype(np.float32)


def _weights(counts: np.ndarray, gap: np.ndarray, aggregate: str) -> np.ndarray:
    """Weight of each kept input's effect, when each input counts that often. counts: [R, B]; returns [R, B]."""
    if aggregate == "mean_of_ratios":
        return counts / gap / counts.sum(axis=1, keepdims=True)
    return counts / (counts @ gap)[:, None]


def intervals(
    effects: np.ndarray, gap: np.ndarray, is_kept: np.ndarray, aggregate: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap over the kept inputs. effects: [B, ...]; returns two [...]; NaN with fewer than two inputs."""
    num = int(is_kept.sum())
    shape = effects.shape[1:]
    if num < 2:
        return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES).astype(np.float32)
    weights = _weights(counts, gap[is_kept].astype(np.float32), aggregate).astype(np.float32)
    flat = effects[is_kept].reshape(num, -1).astype(np.float32)
    ends = np.zeros((2, flat.shape[1]), np.float32)
    touched = np.flatnonzero(flat.any(axis=0))
    for part in np.array_split(touched, max(1, len(touched) // 4096)):
        ends[:, part] = np.percentile(weights @ flat[:, part], (2.5, 97.5), axis=0)
    return ends[0].reshape(shape), ends[1].reshape(shape)
