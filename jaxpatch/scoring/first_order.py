"""First order: the slope of the effect in each gate at the base, all components from one backward pass an input."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.measuring.sweep import Progress, silent
from jaxpatch.scoring.method import Answer, Options
from jaxpatch.shapes import Gates


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``< grad_Theta(c) F_a(base, x), Theta_special(c) - Theta_base(c) >``: the gradient in the gates, at gates 0.

    Exact where the effect is linear. That the paper uses a first-order screen is known; this formula is ours.
    """
    zeros = {kind: jnp.zeros(instrument.partition[kind].shape) for kind in kinds}
    found = slopes(instrument, zeros, options.progress("first order"))
    return {kind: Answer(found[kind]) for kind in kinds}


def slopes(instrument: Instrument, at: Gates, progress: Progress = silent) -> dict[str, np.ndarray]:
    """Gradient of each input's read-out in the gates: kind -> [B, *shape]. One input at a time, which bounds the memory."""
    num_inputs, found = instrument.base.shape[0], []
    for row in range(num_inputs):
        found.append(_slope(instrument.effect, at, jnp.int32(row)))
        progress(row + 1, num_inputs)
    return {kind: np.stack([np.asarray(slope[kind]) for slope in found]) for kind in at}


@jax.jit
def _slope(effect_fn: jax.tree_util.Partial, at: Gates, row: jax.Array) -> Gates:
    return jax.grad(lambda gates: effect_fn(gates, row[None])[0])(at)
