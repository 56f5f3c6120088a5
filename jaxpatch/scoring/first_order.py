"""First order: the slope of the effect in each gate at the base, all components from one backward pass an input."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring.method import Answer, Options
from jaxpatch.shapes import Gates


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """``< grad_Theta(c) F_a(base, x), Theta_special(c) - Theta_base(c) >``: the gradient in the gates, at gates 0.

    Exact where the effect is linear. That the paper uses a first-order screen is known; this formula is ours.
    """
    del options
    zeros = {kind: jnp.zeros(instrument.partition[kind].shape) for kind in kinds}
    found = slopes(instrument, zeros)
    return {kind: Answer(np.asarray(found[kind])) for kind in kinds}


def slopes(instrument: Instrument, at: Gates) -> Gates:
    """Gradient of each input's read-out in the gates: kind -> [B, *shape]."""

    return _slopes(instrument.effect, at, jnp.arange(instrument.base.shape[0]))


@jax.jit
def _slopes(effect_fn: jax.tree_util.Partial, at: Gates, rows: jax.Array) -> Gates:
    def one(row):
        return jax.grad(lambda gates: effect_fn(gates, row[None])[0])(at)

    return jax.lax.map(one, rows)
