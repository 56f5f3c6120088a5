"""Read-outs: how far the control state is formed, and how far two next-token distributions are apart. All in float32 or wider."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import layers
from jaxpatch.models.config import DecoderConfig
from jaxpatch.numbers import is_whole
from jaxpatch.trees.fingerprint import fingerprint

READ_OUTS = ("projection", "cosine", "centred")
NEXT_TOKEN = ("kl", "log_prob")
TARGETS = ("head", "neuron", "attention", "mlp")
"""Kinds whose contribution can be read."""
THROUGH = ("all", "query", "key", "value")


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

    def rows(self, which: Any) -> "Anchor":
        """For some of the prompts: an anchor is the same for all."""
        del which
        return self

    def read(self, state: Float[Array, "*lead D"]) -> Float[Array, "*lead"]:
        """F_a of residual states."""
        wide = layers.at_least_float32(state)
        if self.read_out == "centred":
            wide = wide - self.centre.astype(wide.dtype)
        along = jnp.einsum("...d,d->...", wide, self.direction.astype(wide.dtype), precision=layers.precision())
        return along / jnp.linalg.norm(wide, axis=-1) if self.read_out == "cosine" else along


@flax.struct.dataclass
class NextToken:
    """The model's own end as a read-out: its next-token distribution after each prompt.

    read_out: "kl" ``-KL(special || patched)``, in nats, or "log_prob" ``log p(target)``. reference: special's log-probabilities [B, V],
    or the targets, int [B]. Where it is not given it is taken from special: its distribution, or its most likely token. Like an
    anchor it rises from base to special, so that scores mean the same: 0 nothing recovered, 1 everything. At special "kl" has no slope:
    in knockout the cheap scores are 0 for it, and only exact ones say anything.

    Example:
        >>> logits = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> round(NextToken("log_prob", jnp.array([1])).read(logits).item(), 4)
        -0.6931
    """

    read_out: str = flax.struct.field(pytree_node=False, default="kl")
    reference: Any = None

    def rows(self, which: Any) -> "NextToken":
        """For some of the prompts."""
        return dataclasses.replace(self, reference=self.reference[which])

    def read(self, logits: Float[Array, "*lead B V"]) -> Float[Array, "*lead B"]:
        """F of next-token logits."""
        log_q = jax.nn.log_softmax(layers.at_least_float32(logits))
        if self.read_out == "log_prob":
            targets = jnp.broadcast_to(self.reference[:, None], (*logits.shape[:-1], 1))
            return jnp.take_along_axis(log_q, targets, axis=-1)[..., 0]
        return -kl(self.reference, log_q)

    def referring_to(self, special_logits: Float[Array, "B V"]) -> "NextToken":
        """With special's reference where none was given."""
        if self.reference is not None:
            return self
        if self.read_out == "log_prob":
            return dataclasses.replace(self, reference=jnp.argmax(special_logits, axis=-1).astype(jnp.int32))
        return dataclasses.replace(self, reference=jax.nn.log_softmax(layers.at_least_float32(special_logits)))


class UnheardError(ValueError):
    """A target to which nothing listens."""


@flax.struct.dataclass
class Contribution:
    """What one component, a target, writes into the residual stream, along where it is listened to:
    ``sum_t <written(t), along(t)>``. What its attention or MLP writes is meant, before any norm behind it. `contributions.of_target`
    makes one.

    kind, index: the target, of `TARGETS`, as (layer, ...). along: [B, T, D], 0 where nothing listens. through: by which of a head's
    inputs a patch may reach it (path patching): "all", or "query", "key" or "value", the others being held at the host's own. held: the
    host's stream entering the target's block, [B, T, D]; the instrument fills it in. depth: no target of the same programs stands
    above this block; its own where None. One compilation serves all targets of a kind up to there. prompts: those that `along` is of,
    where it is known; a read-out that was checked for prompts says so no more.
    """

    along: Any
    kind: str = flax.struct.field(pytree_node=False)
    index: Any
    through: str = flax.struct.field(pytree_node=False, default="all")
    held: Any = None
    depth: int | None = flax.struct.field(pytree_node=False, default=None)
    prompts: Inputs | None = None

    @property
    def layer(self) -> Any:
        """The target's own; traced in a compiled program."""
        return self.index[0]

    @property
    def name(self) -> str:
        """Of the target.

        >>> Contribution(None, "head", (3, 1)).name
        'head 3.1'
        """
        return f"{self.kind} {'.'.join(map(str, self.index))}"

    def rows(self, which: Any) -> "Contribution":
        """For some of the prompts."""
        held = None if self.held is None else self.held[which]
        prompts = None if self.prompts is None else Inputs(*(part[which] for part in self.prompts))
        return dataclasses.replace(self, along=self.along[which], held=held, prompts=prompts)


ReadOut = Anchor | NextToken | Contribution
"""What maps a run of the model on each prompt to one number."""


def depth(config: DecoderConfig, read_outs: Sequence[ReadOut]) -> int:
    """Blocks that a program for all of these has: as many as must run before they can be read; of targets, `Contribution.depth`."""

    def blocks(read_out: ReadOut) -> int:
        if isinstance(read_out, Contribution):
            return int(read_out.layer) if read_out.depth is None else read_out.depth
        return config.layers if isinstance(read_out, NextToken) else read_out.layer + 1

    return max(map(blocks, read_outs))


def stop(config: DecoderConfig, read_outs: Sequence[ReadOut]) -> Any:
    """The first block that need not run for any of these: `depth`; of targets their own, for they are read from what enters it, and
    that is traced in a compiled program."""
    (first, *_) = read_outs
    return first.layer if isinstance(first, Contribution) else depth(config, read_outs)


Step = Callable[[Any, Any], tuple[Any, Any]]
"""Of a scan over blocks: (carry, number of a block, or a tuple that begins with it) -> (carry, what the block gives)."""


def until(stop: Any, step: Step) -> Step:
    """The same step, which blocks from the first on that need not run pass by: they leave the carry as it is, and give 0."""
    if isinstance(stop, int | None):
        return step

    def passing(carry: Any, at: Any) -> tuple[Any, Any]:
        number = at[0] if isinstance(at, tuple) else at
        given = jax.tree.map(lambda each: jnp.zeros(each.shape, each.dtype), jax.eval_shape(step, carry, at)[1])
        return jax.lax.cond(number < stop, step, lambda carry, _: (carry, given), carry, at)

    return passing


def unheld(read_out: ReadOut) -> ReadOut:
    """A contribution through all of its target's inputs: what both ends of a pair are read by. Others as they are."""
    if not isinstance(read_out, Contribution):
        return read_out
    return dataclasses.replace(read_out, through="all", held=None)


def several(wanted: Any) -> tuple[ReadOut, ...]:
    """One read-out or some, as a tuple. Raises ValueError where there is none, or something else, or what cannot be read together."""
    asked = tuple(wanted) if isinstance(wanted, Iterable) else (wanted,)
    if not asked or not all(isinstance(each, ReadOut) for each in asked):
        raise ValueError(f"read-outs: wanted an Anchor, a NextToken, a Contribution, or several; got {wanted!r}.")
    targets = [each for each in asked if isinstance(each, Contribution)]
    if targets and (len(targets) < len(asked) or len({int(each.layer) for each in targets}) > 1):
        names = ", ".join(each.name if isinstance(each, Contribution) else type(each).__name__ for each in asked)
        raise ValueError(
            f"read-outs: contributions are read together with others of their own layer, and nothing else; got {names}. Ask apart."
        )
    return asked


def described(read_out: ReadOut) -> str:
    """In words, with a fingerprint of its arrays: the same for read-outs that read the same.

    >>> described(Anchor(layer=1, direction=jnp.array([0.0, 1.0]))).split(" (")[0]
    'projection after block 1'
    """
    read_out = dataclasses.replace(read_out, prompts=None) if isinstance(read_out, Contribution) else read_out
    own = fingerprint({str(number): leaf for number, leaf in enumerate(jax.tree.leaves(read_out))})
    if isinstance(read_out, Contribution):
        return f"contribution of {read_out.name} through {read_out.through} ({own})"
    where = f"after block {read_out.layer}" if isinstance(read_out, Anchor) else "of the next token"
    return f"{read_out.read_out} {where} ({own})"


def checked_for(inputs: Inputs, read_out: ReadOut, config: DecoderConfig) -> ReadOut:
    """A read-out for these inputs, its arrays on the device. Raises ValueError with every fault."""
    if isinstance(read_out, NextToken):
        return _checked_next_token(read_out, config, inputs.tokens.shape[0])
    if isinstance(read_out, Contribution):
        return checked_contribution(read_out, config, inputs)
    return checked(read_out, config)


def _checked_next_token(read_out: NextToken, config: DecoderConfig, batch: int) -> NextToken:
    if read_out.read_out not in NEXT_TOKEN:
        raise ValueError(f"next token: read_out {read_out.read_out!r}; wanted one of {', '.join(NEXT_TOKEN)}.")
    if read_out.reference is None:
        return read_out
    given = np.asarray(read_out.reference)
    if read_out.read_out == "kl":
        if given.shape != (batch, config.vocab):
            raise ValueError(
                f"next token: reference has shape {given.shape}; wanted log-probabilities {(batch, config.vocab)}."
            )
        if np.isnan(given).any():
            raise ValueError("next token: reference holds NaN; wanted log-probabilities.")
        return dataclasses.replace(read_out, reference=jnp.asarray(given))
    is_token = np.issubdtype(given.dtype, np.integer) and given.shape == (batch,)
    if not is_token or given.min() < 0 or given.max() >= config.vocab:
        raise ValueError(
            f"next token: reference is {given.dtype} {given.shape}; wanted one token id a prompt, ({batch},), 0 to {config.vocab - 1}."
        )
    return dataclasses.replace(read_out, reference=jnp.asarray(given, jnp.int32))


def checked_contribution(target: Contribution, config: DecoderConfig, inputs: Inputs) -> Contribution:
    """One for these prompts, its array on the device. Raises ValueError with every fault, UnheardError where nothing listens."""
    faults = target_faults(target.kind, target.index, config)
    if not faults and not int(target.layer) <= depth(config, [target]) <= config.layers:
        faults.append(
            f"depth {target.depth}; wanted one from the target's own block, {target.layer}, to {config.layers}"
        )
    if target.through not in THROUGH:
        faults.append(f"through {target.through!r}; wanted one of {', '.join(THROUGH)}")
    elif target.through != "all" and target.kind not in ("head", "attention"):
        faults.append(f"through {target.through!r}: only heads and attention have such inputs; wanted 'all'")
    along, shape = np.asarray(target.along), inputs.tokens.shape
    if along.shape != (*shape, config.width):
        faults.append(
            f"along has shape {along.shape}; wanted {(*shape, config.width)}, one direction a token of these prompts"
        )
    elif not np.isfinite(along).all():
        faults.append("along holds NaN or infinity")
    elif others := _others(target, inputs):
        faults.append(
            f"it was made of other prompts (rows {', '.join(map(str, others[:5]))}); make it anew of these: jp.contribution"
        )
    if faults:
        raise ValueError(f"contribution of {target.name}: " + "; ".join(faults) + ".")
    if not along.any():
        raise UnheardError(
            f"contribution of {target.name}: along is 0 everywhere, so nothing listens to what it writes."
        )
    index = np.asarray(target.index, np.int32)
    return dataclasses.replace(
        target, along=jnp.asarray(along), index=index, depth=depth(config, [target]), prompts=None
    )


def _others(target: Contribution, inputs: Inputs) -> list[int]:
    """Rows of the prompts that are not those that a target was made of."""
    if target.prompts is None:
        return []
    lengths, own = np.asarray(inputs.lengths), np.asarray(target.prompts.lengths)
    is_token = np.arange(inputs.tokens.shape[1]) < lengths[:, None]
    differs = is_token & (np.asarray(inputs.tokens) != np.asarray(target.prompts.tokens))
    return np.flatnonzero((lengths != own) | differs.any(axis=1)).tolist()


def target_faults(kind: str, index: Sequence[int], config: DecoderConfig) -> list[str]:
    """What is wrong with a target."""
    sizes = {"head": (config.layers, config.heads), "neuron": (config.layers, config.neurons)}
    shape = sizes.get(kind, (config.layers,))
    if kind not in TARGETS:
        return [f"kind {kind!r}; wanted one of {', '.join(TARGETS)}"]
    if kind == "neuron" and config.experts:
        return ["neurons of experts cannot be targets; wanted one of head, attention, mlp"]
    is_place = len(index) == len(shape) and all(map(is_whole, index))
    if not is_place or not all(0 <= n < size for n, size in zip(index, shape, strict=True)):
        ends = ", ".join(f"0 to {size - 1}" for size in shape)
        return [f"index {tuple(index)}; wanted {len(shape)} whole numbers: {ends}"]
    if index[0] == 0:
        return ["nothing but embeddings stands below block 0; wanted a target in a higher one"]
    return []


def checked(anchor: Anchor, config: DecoderConfig) -> Anchor:
    """The anchor with arrays on the device. Raises ValueError with every fault."""
    faults = []
    direction = np.asarray(anchor.direction)
    if not is_whole(anchor.layer, 0) or anchor.layer >= config.layers:
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
    elif anchor.centre is not None and not np.isfinite(anchor.centre).all():
        faults.append("centre holds NaN or infinity")
    if faults:
        raise ValueError("anchor: " + "; ".join(faults) + ".")
    centre = None if anchor.centre is None else jnp.asarray(anchor.centre)
    return Anchor(jnp.asarray(direction), int(anchor.layer), anchor.read_out, centre)


def kl(log_p: Float[Array, "*#lead V"], log_q: Float[Array, "*#lead V"]) -> Float[Array, "*#lead"]:
    """``KL(p || q)`` of log-probabilities, in nats."""
    p = jnp.exp(log_p)
    return jnp.sum(jnp.where(p > 0, p * (log_p - log_q), 0), axis=-1)


def next_token_kl(special_logits: Float[Array, "*lead V"], logits: Float[Array, "*lead V"]) -> Float[Array, "*lead"]:
    """``KL(special || patched)`` of next-token distributions, in nats.

    Example:
        >>> float(next_token_kl(jnp.array([0.0, 0.0]), jnp.array([0.0, 0.0])))
        0.0
    """
    return kl(*(jax.nn.log_softmax(layers.at_least_float32(each)) for each in (special_logits, logits)))
