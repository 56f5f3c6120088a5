"""A set of components put into base makes another host: what each component does there, beside the rest of the set, is one sweep.

From the host ``patch(base, special, S)`` towards ``patch(special, base, S)`` a component goes where it is not: into the set, or out of
it. So one sweep of these two says what every component is worth beside the others of S, whether it is one of them or not. Ours.
"""

from collections.abc import Mapping

import jax
import numpy as np

from jaxpatch.measuring import inputs, instrument, local, read_outs, sweep
from jaxpatch.measuring.downstream import Models
from jaxpatch.models import prefix_tree
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import blend
from jaxpatch.shapes import Gates

_patched = jax.jit(blend.patch)


@jax.jit
def _effect(effect_fn: jax.tree_util.Partial, gates: Gates, rows: jax.Array) -> jax.Array:
    return effect_fn(gates, rows)


def compiled(tool: instrument.Instrument) -> instrument.Instrument:
    """The same, whose definition is one program for all gates of the same kinds, whatever the pair is of."""
    return tool._replace(effect=jax.tree_util.Partial(_effect, tool.effect))


def by_definition(tool: instrument.Instrument) -> instrument.Marginals:
    """Of anything that has an instrument: a whole run for each component, and one for the set."""

    def marginals(gates: Gates, wanted: Mapping[str, np.ndarray], progress: sweep.Progress) -> dict[str, np.ndarray]:
        here, total, done, found = tool.read(gates), sum(map(len, wanted.values())), 0, {}
        for kind, indices in wanted.items():
            found[kind] = np.zeros((len(indices), len(here)), here.dtype)
            for number, index in enumerate(map(tuple, indices)):
                gate = np.array(gates[kind])
                gate[index] = 1 - gate[index]
                moved = tool.read({**gates, kind: gate}) - here
                found[kind][number] = moved if gate[index] else -moved
                done += 1
                progress(done, total)
        return found

    return marginals


def of_pair(
    pair: Pair,
    prompts: inputs.Inputs,
    anchor: read_outs.Anchor,
    tool: instrument.Instrument,
    *,
    budget: int | None = None,
) -> instrument.Marginals:
    """Of two decoders, by the engine: a sweep for each kind, from one host. Kinds outside of blocks go by the definition.

    Beside the two models there are the two others of a set, leaves that no component of its kinds owns excepted.

    Args: tool: the instrument of the same pair, prompts and anchor. budget: as for `instrument.of_pair`.
    """
    prompts, asked = inputs.checked(prompts, pair.config), read_outs.checked_for(prompts, anchor, pair.config)
    tree = prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths))
    outside = by_definition(tool)

    def marginals(gates: Gates, wanted: Mapping[str, np.ndarray], progress: sweep.Progress) -> dict[str, np.ndarray]:
        host, flipped = _patched(pair.base, pair.special, gates), _patched(pair.special, pair.base, gates)
        models = Models(host, flipped, prompts, tree, (asked,))
        total, done, found = sum(map(len, wanted.values())), 0, {}
        for kind, indices in wanted.items():

            def step(number: int, all_of_kind: int, before: int = done) -> None:
                progress(before + number, total)

            if kind in local.KINDS:
                moved = sweep.exact(pair.config, kind, models, indices, budget=budget, progress=step)
                sign = 1 - 2 * np.asarray(gates[kind])[tuple(indices.T)]
                found[kind] = moved.reshape(len(indices), -1) * sign[:, None].astype(moved.dtype)
            else:
                found |= outside(gates, {kind: indices}, step)
            done += len(indices)
        return found

    return marginals
