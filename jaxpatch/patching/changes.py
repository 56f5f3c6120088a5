"""How much special changed, component by component."""

from typing import NamedTuple

import numpy as np

from jaxpatch.patching import components
from jaxpatch.patching.components import Partition
from jaxpatch.shapes import Params


class Change(NamedTuple):
    """What special changed in the components of one kind.

    relative: ``|W_special - W_base| / |W_base|`` of each component, in Frobenius norms; NaN where base has nothing but zeros and
        special has not. overall: the same of all of them together.
    """

    relative: np.ndarray
    overall: float

    @property
    def number(self) -> int:
        """Components of the kind."""
        return self.relative.size

    @property
    def changed(self) -> int:
        """Components that differ."""
        return int((self.relative != 0).sum())


def by_kind(base: Params, special: Params, partition: Partition) -> dict[str, Change]:
    """What special changed in each kind of component of a partition.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair(change=0.1)
        >>> found = by_kind(pair.base, pair.special, components.of_decoder(pair.base))["head"]
        >>> found.number, found.changed, 0.2 < found.overall < 0.5
        (12, 12, True)
    """
    made = {}
    for name, kind in partition.items():
        moved, own = (
            np.asarray(part, np.float64)
            for part in (components.delta_norms(base, special, kind), components.norms(base, kind))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = np.where(moved == 0, 0, np.where(own == 0, np.nan, moved / own))
        made[name] = Change(relative, float(np.linalg.norm(moved) / np.linalg.norm(own)))
    return made
