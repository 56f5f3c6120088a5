"""Integrated: the mean slope along the straight path from base to special, all gates moving together."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import sweep
from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring.method import Answer, Options


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``mean over t of dF/dg_c at g = t``, t at the midpoints of `options.steps` equal pieces of [0, 1].

    Complete: the sum over all components tends to the effect of patching all of them at once. Integrated gradients are
    Sundararajan et al., arXiv 1703.01365; over gates: ours.
    """
    total = {kind: np.zeros((instrument.base.shape[0], *instrument.partition[kind].shape)) for kind in kinds}
    progress = options.progress("integrated")
    for step in range(options.steps):
        time = (step + 0.5) / options.steps
        at = {kind: jnp.zeros(instrument.partition[kind].shape) + time for kind in kinds}
        slopes = instrument.slopes(at, sweep.part(progress, step, options.steps))
        total = {kind: total[kind] + slopes[kind] for kind in kinds}
    return {kind: Answer((total[kind] / options.steps).astype(instrument.base.dtype)) for kind in kinds}
