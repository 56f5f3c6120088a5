"""From effects to scores: which inputs count, how much, and how sure that makes their mean."""

import numpy as np

AGGREGATES = ("mean_of_ratios", "ratio_of_means")
SMALLEST_GAP = 0.05
"""Of the median positive gap: an input whose gap is smaller, or not positive, is dropped and counted."""
NUM_RESAMPLES = 1000


class NoGapError(ValueError):
    """A read-out that does not tell two models apart."""


def kept_inputs(gap: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Which inputs have a gap worth dividing by: bool [B].

    Raises: NoGapError where there is none: the read-out does not separate these two models here.
    """
    scale = np.abs(base).max() + np.abs(gap).max()
    positive = gap[gap > 1e-5 * scale]
    if positive.size == 0:
        largest = gap[np.argmax(np.abs(gap))]
        hint = "its sign may be reversed" if largest < -1e-5 * scale else "the two models read alike"
        raise NoGapError(
            f"no input has a positive gap F(special) - F(base): the largest in size is {largest:.3g}, where F itself reaches "
            f"{scale:.3g}. By this read-out nothing can be scored here: {hint}. Take another (fit_anchor finds a "
            "decoder's; on the command line: --layer, --contrast), or other inputs."
        )
    return gap > max(SMALLEST_GAP * np.median(positive), 1e-5 * scale)


def normalised(effects: np.ndarray, gap: np.ndarray, is_kept: np.ndarray, aggregate: str) -> np.ndarray:
    """E_w out of effects [B, ...]: ``mean_x effect / G``, or ``mean_x effect / mean_x G``.

    >>> normalised(np.array([[1.0], [4.0]]), np.array([2.0, 4.0]), np.array([True, True]), "mean_of_ratios").item()
    0.75
    """
    return np.tensordot(weights(gap, is_kept, aggregate), effects, axes=1).astype(np.float32)


def weights(gap: np.ndarray, is_kept: np.ndarray, aggregate: str) -> np.ndarray:
    """What each input's effect counts in E_w; 0 for inputs that are not kept: [B]."""
    out = np.zeros(gap.shape)
    out[is_kept] = shares(np.ones((1, is_kept.sum())), gap[is_kept], aggregate)[0]
    return out


def shares(counts: np.ndarray, gap: np.ndarray, aggregate: str) -> np.ndarray:
    """Weight of each kept input's effect, when each input counts that often. counts: [R, B]; returns [R, B]."""
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate {aggregate!r}; wanted one of {', '.join(AGGREGATES)}.")
    if aggregate == "mean_of_ratios":
        return counts / gap / counts.sum(axis=1, keepdims=True)
    return counts / (counts @ gap)[:, None]


def drawn_weights(gap: np.ndarray, is_kept: np.ndarray, aggregate: str, seed: int) -> np.ndarray:
    """What each kept input's effect counts when inputs are drawn again and again, with replacement: float32 [R, B kept]."""
    num = int(is_kept.sum())
    counts = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=NUM_RESAMPLES).astype(np.float32)
    return shares(counts, gap[is_kept].astype(np.float32), aggregate).astype(np.float32)


def intervals(
    effects: np.ndarray, gap: np.ndarray, is_kept: np.ndarray, aggregate: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """95 % percentile bootstrap over the kept inputs. effects: [B, ...]; returns two [...]; NaN with fewer than two inputs."""
    num = int(is_kept.sum())
    shape = effects.shape[1:]
    if num < 2:
        return np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    weights = drawn_weights(gap, is_kept, aggregate, seed)
    flat = effects[is_kept].reshape(num, -1).astype(np.float32)
    ends = np.zeros((2, flat.shape[1]), np.float32)
    touched = np.flatnonzero(flat.any(axis=0))
    for part in np.array_split(touched, max(1, len(touched) // 4096)):
        ends[:, part] = np.percentile(weights @ flat[:, part], (2.5, 97.5), axis=0)
    return ends[0].reshape(shape), ends[1].reshape(shape)
