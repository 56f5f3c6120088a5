"""The waist: all that scoring may ask of two models. Above this line nothing knows what a model is."""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import effect, inputs, local, read_outs, sweep
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.shapes import Gates


class Instrument(NamedTuple):
    """What can be read off a pair on a fixed set of inputs.

    Attributes:
        partition: the kinds of component.
        base, special: F_a of the two models, float [B].
        effect: (gates, rows int [b]) -> F_a of the patched model on those inputs, [b]; differentiable. The definition. A
            `Partial`, so that jit takes the models as arguments and not as constants of its program.
        exact: (kind, indices [n, dims], progress) -> ``F_a(patched) - F_a(base)`` of single components, [n, B].
        linear: kind -> local-exact, downstream-linear effects, [B, *shape].
        reach: kind -> bool array, True for components that can matter (no higher than the anchor).
    """

    partition: components.Partition
    base: np.ndarray
    special: np.ndarray
    effect: jax.tree_util.Partial
    exact: Callable[[str, np.ndarray, sweep.Progress], np.ndarray]
    linear: Callable[[str], np.ndarray]
    reach: Mapping[str, np.ndarray]

    @property
    def gap(self) -> np.ndarray:
        """G(x) = F_a(special, x) - F_a(base, x): [B]."""
        return self.special - self.base


def of_pair(pair: Pair, prompts: inputs.Inputs, anchor: read_outs.Anchor) -> Instrument:
    """The instrument of two decoders, by the fast engine. Raises ValueError for bad inputs or a bad anchor."""
    prompts, anchor = inputs.checked(prompts, pair.config), read_outs.checked(anchor, pair.config)
    models = local.Models(pair.base, pair.special, prompts, anchor)
    partition = components.of_decoder(pair.base)
    reach = {name: _reach(name, kind, anchor.layer) for name, kind in partition.items()}
    base, special = (np.asarray(_read(pair.config, params, prompts, anchor)) for params in (pair.base, pair.special))

    def linear(kind: str) -> np.ndarray:
        shape = partition[kind].shape
        out = np.zeros((prompts.tokens.shape[0], *shape), base.dtype)
        if kind in local.LOCALS:
            found = sweep.linear(pair.config, kind, models)
            out[:, : anchor.layer + 1] = found.reshape(*found.shape[:2], *shape[1:])
        elif kind == "embed":
            out[:, 0] = np.asarray(_embed_slope(pair.config, models))
        return out

    return Instrument(
        partition=partition,
        base=base,
        special=special,
        effect=jax.tree_util.Partial(_effect_of(pair.config), models),
        exact=lambda kind, indices, progress: sweep.exact(pair.config, kind, models, indices, progress=progress),
        linear=linear,
        reach=reach,
    )


def of_effect(
    effect_fn: Callable[[Gates, jax.Array], jax.Array], partition: components.Partition, num_inputs: int
) -> Instrument:
    """The instrument of anything that has an effect: a toy, or a Flax parameter tree of your own.

    Args: effect_fn: (gates, rows int [b]) -> [b], differentiable, at 0 for all gates the base and at 1 the special model.

    Exact effects come from one-hot gates, one by one; there is no local form, so `linear` raises.

    Example:
        >>> partition = {"part": components.Kind((3,), ("part",), ())}
        >>> toy = of_effect(lambda g, rows: jnp.full(rows.shape, g["part"] @ jnp.array([1.0, 0.0, 3.0])), partition, 2)
        >>> toy.gap.tolist(), toy.exact("part", np.array([[2]]), sweep.silent).tolist()
        ([4.0, 4.0], [[3.0, 3.0]])
    """
    rows = jnp.arange(num_inputs)
    zeros = {name: jnp.zeros(kind.shape) for name, kind in partition.items()}
    base = effect_fn(zeros, rows)

    def exact(kind: str, indices: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        def one(index):
            return effect_fn({**zeros, kind: zeros[kind].at[tuple(index)].set(1)}, rows) - base

        out = np.asarray(jax.lax.map(one, jnp.asarray(indices)))
        progress(len(indices), len(indices))
        return out

    def linear(kind: str) -> np.ndarray:
        raise ValueError(f"no local form for {kind!r} here; use first_order, integrated or exact.")

    return Instrument(
        partition=partition,
        base=np.asarray(base),
        special=np.asarray(effect_fn(jax.tree.map(jnp.ones_like, zeros), rows)),
        effect=jax.tree_util.Partial(effect_fn),
        exact=exact,
        linear=linear,
        reach={name: np.ones(kind.shape, bool) for name, kind in partition.items()},
    )


def _reach(name: str, kind: components.Kind, layer: int) -> np.ndarray:
    reach = np.zeros(kind.shape, bool)
    if kind.axes[0] == "layer":
        reach[: layer + 1] = True
    elif name == "embed":
        reach[:] = True
    return reach


@functools.partial(jax.jit, static_argnums=0)
def _read(config, params, prompts: inputs.Inputs, anchor: read_outs.Anchor) -> jax.Array:
    return anchor.read(effect.last_states(config, params, prompts, anchor.layer))


@functools.partial(jax.jit, static_argnums=0)
def _effect(config, models: local.Models, gates: Gates, rows: jax.Array) -> jax.Array:
    return effect.anchor_effect(config, models.base, models.special, gates, models.inputs.rows(rows), models.anchor)


@functools.cache
def _effect_of(config) -> Callable[..., jax.Array]:
    """One function a config, for jit to recognise."""
    return functools.partial(_effect, config)


@functools.partial(jax.jit, static_argnums=0)
def _embed_slope(config, models: local.Models) -> jax.Array:
    """The embedding's change contracted with the gradient that arrives at the first block: [B]."""
    states = local.trace(config, models)[1]
    zeros = jax.tree.map(jnp.zeros_like, states)
    slope = jax.grad(lambda taps: local.trace(config, models, taps)[0].sum())(zeros)
    tokens = models.inputs.tokens
    change = models.special["embed"]["kernel"][tokens] - models.base["embed"]["kernel"][tokens]
    return jnp.einsum("btd,btd->b", change, slope.entering[0])
