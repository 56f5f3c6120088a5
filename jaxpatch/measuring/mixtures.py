"""A base and what several experts differ from it by, as far as gates say: one model, never there as a whole, a block at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxpatch.measuring import effect
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import decoder, layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.patching import blend, components
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths


class Mixture(NamedTuple):
    """``base + sum_i g_i (expert_i - base)``: what `merge` makes by task arithmetic of gated experts, differentiable in the gates.

    gates: of each expert, kind -> array. rest: the gate of all leaves that these do not own.
    """

    base: Params
    experts: tuple[Params, ...]
    gates: tuple[Gates, ...]
    rest: jax.Array | float = 0.0

    def embedded(self, config: DecoderConfig, tokens: jax.Array) -> jax.Array:
        """The residual stream entering the first block: [*tokens, D]."""
        rows = [decoder.table_rows(config, side, tokens) for side in (self.base, *self.experts)]
        return decoder.entering(config, self._mixed(rows[0], rows[1:]))

    def block(self, number: jax.Array) -> Params:
        """The parameters of one block, float32 or wider."""
        own, *others = (decoder.widened(decoder.layer_of(side, number)) for side in (self.base, *self.experts))
        partition = components.of_block(own)
        ndims = {path: leaf.ndim for path, leaf in paths.flatten(own).items()}
        gates = [
            blend.leaf_gates(
                {kind: jnp.asarray(gate)[number] for kind, gate in each.items() if kind in partition}, partition, ndims
            )
            for each in self.gates
        ]
        return self._mixed(own, others, gates)

    def read_out(self, config: DecoderConfig) -> Callable[[jax.Array], jax.Array]:
        """A function from a residual stream to logits, for which norm and unembedding are mixed once, however often it is called."""
        parts = ["final_norm", "embed" if config.tied else "unembed"]
        sides = [{name: side[name] for name in parts} for side in (self.base, *self.experts)]
        ends = {**self.base, **self._mixed(sides[0], sides[1:])}
        return lambda x: layers.capped(decoder.apply(config, ends, x, method="unembedded"), config.logit_cap)

    def logits(self, config: DecoderConfig, x: jax.Array) -> jax.Array:
        """Logits of a residual stream."""
        return self.read_out(config)(x)

    def _mixed(
        self, base: Params, experts: Sequence[Params], gates: Sequence[Mapping[str, jax.Array]] | None = None
    ) -> Params:
        """Some leaves of all, mixed; where no gate owns one, by the rest."""
        flat, others = paths.flatten(base), [paths.flatten(each) for each in experts]
        gates = [{}] * len(others) if gates is None else gates
        made = {
            path: leaf
            + sum(
                (gate.get(path, jnp.asarray(self.rest)).astype(leaf.dtype) * (own[path] - leaf))
                for own, gate in zip(others, gates, strict=True)
            )
            for path, leaf in flat.items()
        }
        return paths.unflatten(made)


def answering(
    config: DecoderConfig,
    model: Any,
    tokens: Int[Array, "B T"],
    ends: Int[Array, " B"],
    at: Int[Array, "B places"],
) -> Float[Array, "B places D"]:
    """The residual stream after the last block at some places of each sequence. model: a `Mixture`, or an `effect.Patched`. tokens: of
    which `ends` count. A block is mixed once for all of them."""
    rows = Inputs(tokens, ends)
    x, _ = effect.run(config, model, rows, model.embedded(config, tokens), 0, config.layers)
    return jnp.take_along_axis(x, at[..., None], axis=1)
