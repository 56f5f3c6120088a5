"""The conductor of localising by gradient: which entries of an expert's change its task needs, learned on what it answers."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxpatch import learned_merge
from jaxpatch.measuring import effect, mixtures, sweep
from jaxpatch.measuring.continuations import Continuation
from jaxpatch.merging import magnitudes
from jaxpatch.models.checkpoints import Pair, refuse_others
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

SURE = 3.0
"""Where entries begin: a sigmoid of this is nearly 1, and of its negative nearly 0. A step moves an entry by `rate` at most."""
LEAST_SLOPE = 1e-15
"""Beside which Adam still sees a slope. What one of millions of entries costs or saves is far below the customary 1e-8."""


def learn_mask(
    pair: Pair,
    told: Continuation,
    *,
    density: float = 0.1,
    sparsity: float = 0.1,
    steps: int = 50,
    rate: float = 0.5,
    batch: int = 8,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> Params:
    """Which entries of an expert's change carry its task: a mask for `merge` by localize_and_stitch.

    ``min_S  mean -log p(answer | base + sigmoid(S) tau) + sparsity * mean sigmoid(S)``, S one number an entry that changed, from the
    largest entries of the change on; the mask is where S is above 0.

    Args:
        pair: the expert with its base. told: the expert's answers to prompts of its own task (`continuation`).
        density: share of the changed entries, the largest, that the mask has before the first step.
        sparsity: what it costs, in nats, to keep all of the change.
        steps, rate: of Adam; where ``steps * rate`` is below 3 no entry goes in that was out, or out that was in.
        batch: answers in a step, drawn by `seed`; memory grows with them, beside four models.
        progress: called with (steps done, steps).

    Returns: a tree like the parameters, of bools. Raises: ValueError for all that is wrong at once.

    References: Localize-and-Stitch, He et al., arXiv 2408.13656, section 3.1; Adam in the place of its plain gradient steps: ours.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> mask = learn_mask(pair, jp.continuation(pair, pair.special, prompts, max_new=3), steps=3)
        >>> merged = jp.merge("localize_and_stitch", pair.base, [pair.special], statistics=[mask])
        >>> own = mask["layers"]["mlp"]["up"]["kernel"]
        >>> bool(((merged["layers"]["mlp"]["up"]["kernel"] == pair.special["layers"]["mlp"]["up"]["kernel"]) == own).all())
        True
    """
    if faults := _faults(pair, told, density, sparsity, steps, rate, batch, seed):
        raise ValueError("no mask can be learned:\n" + "\n".join(f"  - {fault}" for fault in faults))
    config, base, special = pair.config, paths.leaves(pair.base), paths.leaves(pair.special)
    changed = [
        path
        for path, leaf in base.items()
        if leaf is not special[path]
        and jnp.issubdtype(leaf.dtype, jnp.floating)
        and bool((leaf != special[path]).any())
    ]
    count = sum(int((base[path] != special[path]).sum()) for path in changed)
    cutoff = magnitudes.kth_of_all(lambda: ((base[path], special[path]) for path in changed), round(density * count))
    change = {path: special[path].astype(jnp.float32) - base[path].astype(jnp.float32) for path in changed}
    mask = {path: jnp.where(jnp.abs(each) >= cutoff, SURE, -SURE) for path, each in change.items()}
    most = int((told.ends - told.starts).max())
    draw, adam = np.random.default_rng(seed), optax.adam(rate, eps=LEAST_SLOPE)
    with jax.numpy_dtype_promotion("standard"):
        moments = adam.init(mask)
    for number in range(steps):
        rows = draw.choice(len(told.starts), min(batch, len(told.starts)), replace=False)
        chosen = tuple(jnp.asarray(part[rows], jnp.int32) for part in told)
        slope = _slope(config, most, pair.base, change, mask, jnp.float32(sparsity / max(count, 1)), chosen)
        mask, moments = _step(adam, mask, moments, slope)
        progress(number + 1, steps)
    made = {path: np.zeros(np.shape(leaf), bool) for path, leaf in base.items()}
    made |= {path: np.asarray((each > 0) & (change[path] != 0)) for path, each in mask.items()}
    return paths.with_leaves(pair.base, made)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slope(
    config: DecoderConfig,
    most: int,
    base: Params,
    change: dict[str, jax.Array],
    mask: dict[str, jax.Array],
    cost: jax.Array,
    told: tuple[jax.Array, jax.Array, jax.Array],
) -> dict[str, jax.Array]:
    """Of the loss, in each entry's number. cost: of each entry that is kept."""
    tokens, starts, ends = told
    own, steps = paths.leaves(base), jnp.arange(most, dtype=jnp.int32)
    at = jnp.minimum(starts[:, None] + steps, ends[:, None] - 1)

    def loss_of(mask: dict[str, jax.Array]) -> jax.Array:
        kept = {path: jax.nn.sigmoid(each) for path, each in mask.items()}
        mixed = {path: (own[path] + kept[path] * change[path]).astype(own[path].dtype) for path in mask}
        model = effect.unpatched(paths.with_leaves(base, {**own, **mixed}))
        states = mixtures.answering(config, model, tokens, ends, at - 1)

        def surprise(row: tuple[jax.Array, ...]) -> jax.Array:
            x, answer, length = row
            log_p = jax.nn.log_softmax(model.logits(config, x))
            said = jnp.take_along_axis(log_p, answer[:, None], axis=-1)[:, 0]
            return -jnp.where(steps < length, said, 0).sum() / length.astype(said.dtype)

        answers = jnp.take_along_axis(tokens, at, axis=1)
        told = jax.lax.map(jax.checkpoint(surprise), (states, answers, ends - starts)).mean()
        taken = sum(jnp.where(change[path] != 0, each, 0).sum() for path, each in kept.items())
        return told + cost * taken

    return jax.grad(loss_of)(mask)


def _step(adam: optax.GradientTransformation, mask: Any, moments: Any, slope: Any) -> tuple[Any, Any]:
    with jax.numpy_dtype_promotion("standard"):
        moves, moments = adam.update(slope, moments)
        return optax.apply_updates(mask, moves), moments


def _faults(
    pair: Pair,
    told: Continuation,
    density: float,
    sparsity: float,
    steps: int,
    rate: float,
    batch: int,
    seed: int,
) -> Sequence[str]:
    refuse_others(pair, "learn_mask", "Learn a mask of your own model by jax.grad in its sigmoids.")
    shares = {"density": (density, 1), "sparsity": (sparsity, math.inf), "rate": (rate, math.inf)}
    faults = learned_merge.number_faults(shares, steps=steps, batch=batch, seed=seed)
    if not len(told.starts):
        faults.append("told: wanted at least one answer; got none.")
    return faults
