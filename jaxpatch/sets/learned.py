"""A set found by gradient: gates between 0 and 1 on every component that can matter, which add up to the set's size and end at 0 and 1.

    g = sigmoid((z + noise - tau) / T), tau such that sum(g) = k;    loss = mean_x (1 - E(g, x))^2

E(g, x) is the share of the gap that an input recovers, the mean is over the inputs that are kept, and Adam moves z while T falls, and
the noise with it. Sparsity is the sum itself, so no penalty has to be tuned until a set of the wanted size comes out. As gates cool to
0 and 1, what is learned is a set, and not a blend that rounding would break; the noise keeps z from a blend that recovers just the gap
where no set near it does. Gates begin alike, and slopes are taken where a gate's partners are part of the way, too: so two components
of which neither does anything first can be found; of three that need each other it finds none among many others that do a little.

Noisy gates of this form are Louizos et al., arXiv 1712.01312; that a fixed sum takes the place of their penalty, and cooling: ours.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from jaxpatch.measuring import sweep
from jaxpatch.measuring.instrument import Instrument
from jaxpatch.scoring import normalise
from jaxpatch.sets.game import Component, Game
from jaxpatch.shapes import Gates
from jaxpatch.validating import controls
from jaxpatch.validating.smallest import Recovered

WARMEST, COOLEST = 1.0, 0.05
"""T at the first and at the last step."""
NOISE = 0.5
"""Scale of the logistic noise, in units of T. Without any, gates settle on blends; at 1 pairs that need each other are missed."""
HALVINGS = 60
"""Of the bracket in which tau lies: finer than float32."""

Slope = Callable[[np.ndarray], tuple[float, np.ndarray]]
"""Gates [n] -> loss, and its gradient in them [n]."""


class Fitted(NamedTuple):
    """order: the components by falling logit. logits, gates: at the end. losses: [steps], before each step."""

    order: controls.Order
    logits: Gates
    gates: Gates
    losses: np.ndarray


class Learned(NamedTuple):
    """components: k of them, by falling gate. gates: kind -> what was learned of all. logits: what these were made of, which
    ranks all components, too, where gates are 0 or 1; no number for those that were not learned. losses: [steps], the mean square of
    the share of the gap that is missing, before each step. relaxed: E_w of these gates as they are, and recovered: of the k components
    truly put in; both on the inputs they were learned on, so other inputs will give less (`compare_sets`, held_out)."""

    components: tuple[Component, ...]
    gates: Gates
    logits: Gates
    losses: np.ndarray
    relaxed: Recovered
    recovered: Recovered

    def to_frame(self) -> pd.DataFrame:
        """One row a component that was chosen: name, gate."""
        gates = [float(self.gates[kind][place]) for kind, place, _ in self.components]
        return pd.DataFrame({"name": [each.name for each in self.components], "gate": gates})


@functools.partial(jax.jit, static_argnums=1)
def top_gates(logits: jax.Array, count: int, temperature: jax.Array | float) -> jax.Array:
    """Relaxed gates [n] that add up to `count`, highest where logits [n] are; the lower the temperature, the nearer to 0 and 1.

    >>> top_gates(jnp.array([3.0, 1.0, 2.0, 0.0]), 2, 0.01).round(3).tolist()
    [1.0, 0.0, 1.0, 0.0]
    """
    share = count / logits.shape[0]
    far = temperature * np.log(share / (1 - share))
    fixed = jax.lax.stop_gradient(logits)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        is_many = jax.nn.sigmoid((fixed - middle) / temperature).sum() > count
        return jnp.where(is_many, middle, low), jnp.where(is_many, high, middle)

    low, high = jax.lax.fori_loop(0, HALVINGS, halve, (fixed.min() - far, fixed.max() - far))
    level = (low + high) / 2
    # a step of Newton's leaves the level where it is, and gives it its derivative
    gates = jax.nn.sigmoid((fixed - level) / temperature)
    excess = jax.nn.sigmoid((logits - level) / temperature).sum() - count
    level = level + excess / jnp.maximum((gates * (1 - gates)).sum() / temperature, 1e-12)
    return jax.nn.sigmoid((logits - level) / temperature)


def learn(
    slope_fn: Slope,
    num: int,
    count: int,
    *,
    steps: int = 200,
    rate: float = 0.1,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits [num] and gates [num] at the end, and the losses [steps] before each step.

    Args: slope_fn: what is to be made small. count: less than num; what gates add up to. rate: of Adam. seed: of the noise.

    Example:
        >>> def both_are_needed(gates):  # the loss is (1 - g0 g1)^2, and neither does anything first
        ...     product = gates[0] * gates[1]
        ...     return (1 - product) ** 2, -2 * (1 - product) * np.array([gates[1], gates[0], 0], np.float32)
        >>> learn(both_are_needed, 3, 2, steps=50)[1].round(2).tolist()
        [1.0, 1.0, 0.0]
    """
    adam, losses, draw = optax.adam(rate), [], np.random.default_rng(seed)
    logits = jnp.zeros(num, jnp.float32)
    with jax.numpy_dtype_promotion("standard"):
        state = adam.init(logits)

        @jax.jit
        def step_fn(logits, state, noise, temperature, slope):
            (pulled,) = jax.vjp(lambda z: top_gates(z + noise, count, temperature), logits)[1](slope)
            moves, state = adam.update(pulled, state)
            return optax.apply_updates(logits, moves), state

        for step in range(steps):
            temperature = np.float32(WARMEST * (COOLEST / WARMEST) ** (step / max(1, steps - 1)))
            noise = (NOISE * temperature * draw.logistic(size=num)).astype(np.float32)
            loss, slope = slope_fn(np.asarray(top_gates(logits + noise, count, temperature)))
            losses.append(loss)
            logits, state = step_fn(logits, state, noise, temperature, jnp.asarray(slope, jnp.float32))
            progress(step + 1, steps)
        gates = top_gates(logits, count, np.float32(COOLEST))
    return np.asarray(logits), np.asarray(gates), np.array(losses)


@jax.jit
def missing(
    effect_fn: jax.tree_util.Partial, gates: Gates, rows: jax.Array, counts: jax.Array, base: jax.Array, gap: jax.Array
) -> tuple[jax.Array, Gates]:
    """``sum_x count_x (1 - E(g, x))^2`` over some readings [x], and its gradient in the gates."""

    def loss(gates: Gates) -> jax.Array:
        return (counts * (1 - (effect_fn(gates, rows) - base) / gap) ** 2).sum()

    return jax.value_and_grad(loss)(gates)


def of_some(tool: Instrument, gates: Gates, rows: np.ndarray, counts: np.ndarray) -> tuple:
    """The arguments of `missing`. counts: what each reading counts."""
    gates = {kind: jnp.asarray(gate, jnp.float32) for kind, gate in gates.items()}
    return tool.effect, gates, rows, counts.astype(tool.base.dtype), tool.base[rows], tool.gap[rows]


def fit(
    tool: Instrument,
    order: controls.Order,
    shapes: Mapping[str, tuple[int, ...]],
    count: int,
    *,
    at_once: int,
    aggregate: str = "mean_of_ratios",
    steps: int = 200,
    rate: float = 0.1,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> Fitted:
    """Gates of all components of an order, by the definition's own gradient. at_once: readings that one backward pass may take."""
    is_kept = normalise.kept_inputs(tool.gap, tool.base)
    kept = np.flatnonzero(is_kept)
    counts = (normalise.weights(tool.gap, is_kept, aggregate) * tool.gap)[kept]
    parts = -(-len(kept) // min(at_once, len(kept)))
    size = -(-len(kept) // parts)
    padding = parts * size - len(kept)
    groups = np.split(np.pad(kept, (0, padding), "edge"), parts), np.split(np.pad(counts, (0, padding)), parts)
    mine = [(name, order.kinds == number) for number, name in enumerate(order.names)]

    def of_kinds(values: np.ndarray, other: float = 0.0) -> dict[str, np.ndarray]:
        made = {name: np.full(shapes[name], other, np.float32) for name in order.names}
        for name, which in mine:
            made[name].flat[order.places[which]] = values[which]
        return made

    def slope_fn(values: np.ndarray) -> tuple[float, np.ndarray]:
        gates, total, slope = of_kinds(values), 0.0, np.zeros(len(values), np.float32)
        for rows, weights in zip(*groups, strict=True):
            loss, pull = missing(*of_some(tool, gates, rows, weights))
            total += float(loss)
            for name, which in mine:
                slope[which] += np.asarray(pull[name]).ravel()[order.places[which]]
        return total, slope

    logits, gates, losses = learn(
        slope_fn, len(order.places), count, steps=steps, rate=rate, seed=seed, progress=progress
    )
    ranked = controls.some(order, np.argsort(-logits, kind="stable"))
    return Fitted(ranked, of_kinds(logits, np.nan), of_kinds(gates), losses)


def measured(fitted: Fitted, game: Game, tool: Instrument, seed: int) -> Learned:
    """What was learned, as it is and truly put in. game: of the first components."""
    return Learned(
        components=game.components,
        gates=fitted.gates,
        logits=fitted.logits,
        losses=fitted.losses,
        relaxed=game.summed_up(tool.read(fitted.gates) - tool.base, seed),
        recovered=game.summed_up(game.value(np.ones(len(game.components), bool)), seed),
    )
