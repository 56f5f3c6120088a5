"""Several experts of one base: which sources they share, and whether they pull these the same way."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxpatch.patching import changes
from jaxpatch.patching.components import lookup
from jaxpatch.scoring import stability
from jaxpatch.scoring.scores import Scores, component_names
from jaxpatch.shapes import Params


class Shared(NamedTuple):
    """One component among the first of two experts.

    cosine: of what the two changed of its parameters: 1 the same way, -1 the opposite way, 0 each its own; NaN where one changed
        nothing. both: parameters that both changed. opposed: those of them that one raised and the other lowered.
    """

    one: str
    other: str
    name: str
    cosine: float
    both: int
    opposed: int


class Conflicts(NamedTuple):
    """Where experts have their sources in common, and where they pull these apart.

    overlap: how many of the first components every two share, against chance. shared: each of those, by pair of experts.
    """

    overlap: stability.Overlap
    shared: tuple[Shared, ...]

    def of(self, one: str, other: str) -> list[Shared]:
        """The components that two experts share, in the order of the first one's ranking."""
        return [each for each in self.shared if {each.one, each.other} == {one, other}]

    def to_frame(self) -> pd.DataFrame:
        """One row a pair of experts: one, other, shared, chance, p; of the shared ones cosine (mean), pulled_apart (how many have a
        negative one) and signs_opposed (share, of the parameters that both changed). NaN where nothing is shared."""
        frame = self.overlap.to_frame()
        rows = [self.of(one, other) for one, other in zip(frame["one"], frame["other"], strict=True)]
        frame["cosine"] = [_mean([each.cosine for each in row]) for row in rows]
        frame["pulled_apart"] = [sum(each.cosine < 0 for each in row) for row in rows]
        frame["signs_opposed"] = [
            _share(sum(each.opposed for each in row), sum(each.both for each in row)) for row in rows
        ]
        return frame

    def components(self) -> pd.DataFrame:
        """One row a shared component of two experts: one, other, name, cosine, both, signs_opposed (share)."""
        rows = [(*each[:-1], _share(each.opposed, each.both)) for each in self.shared]
        return pd.DataFrame(rows, columns=["one", "other", "name", "cosine", "both", "signs_opposed"])


def conflicts(
    base: Params, specials: Mapping[str, Params], found: Mapping[str, Scores], kind: str, count: int
) -> Conflicts:
    """The first `count` components of one kind of every two experts: how many they share, and how what the two changed there lies to
    each other. base, specials: parameters of one structure. Raises: as `stability.overlap`."""
    overlap = stability.overlap(found, kind, count)
    sort = lookup(next(iter(found.values())).partition, kind)
    names = component_names(kind, sort)
    first = {name: stability.first_places(each, kind, count) for name, each in found.items()}
    shared = []
    for i, one in enumerate(overlap.names):
        for other in overlap.names[i + 1 :]:
            if not (places := [place for place in first[one] if place in set(first[other])]):
                continue
            lie = changes.between(base, specials[one], specials[other], sort)
            flat = [part.ravel()[places] for part in lie]
            shared += [
                Shared(one, other, names[place], float(cosine), int(both), int(opposed))
                for place, cosine, both, opposed in zip(places, *flat, strict=True)
            ]
    return Conflicts(overlap, tuple(shared))


def _mean(cosines: list[float]) -> float:
    known = [each for each in cosines if not np.isnan(each)]
    return float(np.mean(known)) if known else float("nan")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
