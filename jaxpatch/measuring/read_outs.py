"""Read-outs: how far the control state is formed, and how far two next-token distributions are apart. All in float32 or wider."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpatch.models import layers
from jaxpatch.models.config import DecoderConfig

READ_OUTS = ("projection", "cosine", "centred")


@flax.struct.dataclass
class Anchor:
    """The vector along which the control state is read.

    layer: 0-based; the residual stream is read AFTER this block, at the last token of the prompt.
    direction: unit vector [D]. read_out: "projection" ``<h, u>``, "cosine" ``<h, u> / |h|``, or "centred" ``<h - c, u>``.
    centre: c, [D], for the centred read-out alone.

    Example:
        >>> Anchor(layer=1, direction=jnp.array([0.0, 1.0])).read(jnp.array([3.0, 4.0])).item()
        4.0
    """

    direction: Any
    layer: int = flax.struct.field(pytree_node=False)
    read_out: str = flax.struct.field(pytree_node=False, default="projection")
    centre: Any = None

    def read(self, state: Float[Array, "*lead D"]) -> Float[Array, "*lead"]:
        """F_a of residual states."""
        wide = layers.at_least_float32(state)
        if self.read_out == "centred":
            wide = wide - self.centre.astype(wide.dtype)
        along = jnp.einsum("...d,d->...", wide, self.direction.astype(wide.dtype), precision=layers.PRECISION)
        return along / jnp.linalg.norm(wide, axis=-1) if self.read_out == "cosine" else along


def checked(anchor: Anchor, config: DecoderConfig) -> Anchor:
    """The anchor with arrays on the device. Raises ValueError with every fault."""
    faults = []
    direction = np.asarray(anchor.direction)
    if not isinstance(anchor.layer, int | np.integer) or not 0 <= anchor.layer < config.layers:
        faults.append(f"layer {anchor.layer!r}: this model has blocks 0 to {config.layers - 1}")
    if direction.shape != (config.width,):
        faults.append(f"direction has shape {direction.shape}; wanted ({config.width},)")
    elif not abs(np.linalg.norm(direction.astype(np.float64)) - 1) < 1e-3:
        faults.append(f"direction has length {np.linalg.norm(direction):.4g}; wanted a unit vector: divide by its norm")
    if anchor.read_out not in READ_OUTS:
        faults.append(f"read_out {anchor.read_out!r}; wanted one of {', '.join(READ_OUTS)}")
    if (anchor.read_out == "centred") != (anchor.centre is not None):
        faults.append("centre: wanted for the centred read-out, and for no other")
    elif anchor.centre is not None and np.shape(anchor.centre) != (config.width,):
        faults.append(f"centre has shape {np.shape(anchor.centre)}; wanted ({config.width},)")
    if faults:
        raise ValueError("anchor: " + "; ".join(faults) + ".")
    centre = None if anchor.centre is None else jnp.asarray(anchor.centre)
    return Anchor(jnp.asarray(direction), int(anchor.layer), anchor.read_out, centre)


def next_token_kl(special_logits: Float[Array, "*lead V"], logits: Float[Array, "*lead V"]) -> Float[Array, "*lead"]:
    """``KL(special || patched)`` of next-token distributions, in nats.

    Example:
        >>> float(next_token_kl(jnp.array([0.0, 0.0]), jnp.array([0.0, 0.0])))
        0.0
    """
    log_p = jax.nn.log_softmax(layers.at_least_float32(special_logits))
    log_q = jax.nn.log_softmax(layers.at_least_float32(logits))
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), axis=-1)
