"""Exact: every component that can matter is truly replaced, one at a time."""

from collections.abc import Mapping

import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring.method import Answer, Options


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``F_a(M_c) - F_a(base)`` for every component c; 0 above the anchor, where nothing can reach it.

    References: Sun et al., arXiv 2604.13694.
    """
    return {kind: Answer(of_some(instrument, kind, instrument.reach[kind], options)) for kind in kinds}


def of_some(instrument: Instrument, kind: str, which: np.ndarray, options: Options) -> np.ndarray:
    """Exact effects where `which` is True, 0 elsewhere. which: bool, the kind's shape; returns [B, *shape]."""
    indices = np.argwhere(which)
    out = np.zeros((instrument.base.shape[0], *which.shape), instrument.base.dtype)
    if len(indices):
        out[(slice(None), *indices.T)] = instrument.exact(kind, indices, options.progress(kind)).T
    return out
