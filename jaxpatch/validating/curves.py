"""Restoration and knockout: the first k components of an order out of special into base, and out of base into special."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxpatch.measuring.outcomes import Outcome
from jaxpatch.numbers import is_whole
from jaxpatch.scoring import normalise
from jaxpatch.shapes import Gates
from jaxpatch.validating import controls

MODES = ("restoration", "knockout")


class Curve(NamedTuple):
    """One order of components, patched k at a time.

    name: the order. mode: "restoration" or "knockout". ks: [K]. recovery: [K], E_w of the first k together (share of the gap).
    low, high: [K], 95 % bootstrap interval over inputs. kl: [K], mean KL(special || patched), nats.
    lag: [K], share of the gap by which it is worse than the order it is compared with, the ranking: less is recovered in restoration,
        more is left in knockout. lag_low, lag_high: [K], 95 % of it, over the same inputs drawn for both: often far less than two
        intervals apart would say, since prompts that are hard are hard for both. The ranking's own is 0.
    """

    name: str
    mode: str
    ks: np.ndarray
    recovery: np.ndarray
    low: np.ndarray
    high: np.ndarray
    kl: np.ndarray
    lag: np.ndarray
    lag_low: np.ndarray
    lag_high: np.ndarray

    @property
    def area(self) -> float:
        """Mean recovery over log k, from the first k to the last (1 to all, unless other sizes were asked for: only areas over the
        same are comparable): between 0 and 1 where recovery is. The higher in restoration, the lower in knockout, the better the order.

        >>> ks, rising = np.array([1, 10, 100]), np.array([0.0, 0.5, 1.0])
        >>> round(Curve("top", "restoration", ks, *[rising] * 7).area, 6)
        0.5
        """
        if len(self.ks) == 1:
            return float(self.recovery[0])
        return float(np.trapezoid(self.recovery, np.log(self.ks)) / np.log(self.ks[-1] / self.ks[0]))


def sizes(total: int) -> np.ndarray:
    """k on a log grid, from 1 to all.

    >>> sizes(200).tolist()
    [1, 3, 10, 30, 100, 200]
    """
    grid = [k for power in range(9) for k in (10**power, 3 * 10**power) if k < total]
    return np.array([*grid, total])


def size_faults(given: Sequence[int] | None) -> list[str]:
    """What is wrong with sizes; None are all right.

    >>> size_faults([1, 2.5]), size_faults(5)
    (['sizes: wanted whole numbers, at least 1; got 2.5.'], ['sizes: wanted a list of whole numbers; got 5.'])
    """
    if given is None:
        return []
    if not isinstance(given, Sequence | np.ndarray) or isinstance(given, str):
        return [f"sizes: wanted a list of whole numbers; got {given!r}."]
    wrong = [k for k in given if not is_whole(k, 1)]
    if wrong or len(given) == 0:
        return [f"sizes: wanted whole numbers, at least 1; got {', '.join(map(repr, wrong)) or 'none'}."]
    return []


def draw(
    outcome_fn: Callable[[Gates, str], Outcome],
    orders: Mapping[str, Sequence[controls.Order]],
    shapes: Mapping[str, tuple[int, ...]],
    ks: np.ndarray,
    base: np.ndarray,
    gap: np.ndarray,
    *,
    modes: Sequence[str] = MODES,
    aggregate: str = "mean_of_ratios",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Curve, ...]:
    """A curve for each order and mode; several orders under one name are averaged (random ones).

    Args:
        outcome_fn: (gates, mode) -> outcome: special's components into base, or base's into special.
        orders: of the same components, so that all of them together are patched once a mode. The first is what others lag behind.
        base: F_a(base), [B]. gap: G, [B].
    """
    is_kept = normalise.kept_inputs(gap, base)
    total, done, made = len(modes) * len(ks) * sum(map(len, orders.values())), 0, []

    @functools.cache
    def whole(mode: str) -> Outcome:
        """Of all components, in whatever order."""
        order = next(iter(orders.values()))[0]
        return outcome_fn(controls.mask(order, len(order.places), shapes), mode)

    for mode in modes:
        first = None
        for name, several in orders.items():
            reads = np.zeros((len(base), len(ks)))
            kl = np.zeros(len(ks))
            for order in several:
                for column, k in enumerate(ks):
                    is_whole = k >= len(order.places)
                    outcome = whole(mode) if is_whole else outcome_fn(controls.mask(order, int(k), shapes), mode)
                    reads[:, column] += (outcome.read - base) / len(several)
                    kl[column] += outcome.kl.mean() / len(several)
                    done += 1
                    progress(done, total)
            first = reads if first is None else first
            lags = first - reads if mode == "restoration" else reads - first
            ends = [
                (
                    normalise.normalised(each, gap, is_kept, aggregate),
                    *normalise.intervals(each, gap, is_kept, aggregate, seed),
                )
                for each in (reads, lags)
            ]
            made.append(Curve(name, mode, ks, *ends[0], kl, *ends[1]))
    return tuple(made)
