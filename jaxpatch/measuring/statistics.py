"""What some methods of merging must know of an expert: how its answers depend on each parameter, and what its matrices read."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxpatch.measuring import effect
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.models import decoder, layers
from jaxpatch.models.checkpoints import Pair, refuse_others
from jaxpatch.models.config import DecoderConfig
from jaxpatch.shapes import Params

READS = {
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "o": "heads",
    "gate": "mlp",
    "up": "mlp",
    "down": "neurons",
}
"""A block's matrix -> what it reads."""


def fisher(pair: Pair, params: Params, inputs: Inputs, *, normalize: bool = False, seed: int = 0) -> Params:
    """The diagonal of the Fisher information of the next token: how much the answer depends on each parameter.

    ``F = mean_x (d log p(y | x) / d theta)^2``, y drawn from the model's own next-token distribution after each prompt x.

    Args:
        pair: whose config. params: the expert's. inputs: prompts of its own task.
        normalize: divide all by their Euclidean norm, so that an expert that is unsure of its answers, whose information is larger,
            does not decide alone: as the paper's code does by default, where its text does not.
        seed: of the tokens that are drawn.

    Returns: a tree like the parameters.

    References: Matena and Raffel, arXiv 2111.09832, equation 5, with one drawn token a prompt.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair()
        >>> found = fisher(pair, pair.special, testing.tiny_inputs())
        >>> found.keys() == pair.special.keys(), bool((found["unembed"]["kernel"] >= 0).all())
        (True, True)
    """
    refuse_others(pair, "fisher", "Square the gradients of your own model's log-probabilities instead.")
    found = _fisher(pair.config, params, inputs, jax.random.key(seed))
    return _of_unit_norm(found) if normalize else found


@jax.jit
def _of_unit_norm(tree: Params) -> Params:
    norm = jnp.sqrt(sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(tree)), start=jnp.float32(0)))
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny), tree)


@functools.partial(jax.jit, static_argnums=0)
def _fisher(config: DecoderConfig, params: Params, inputs: Inputs, key: jax.Array) -> Params:
    logits = effect.last_logits(config, effect.unpatched(params), inputs)
    drawn = jax.random.categorical(key, logits)

    def surprise(params: Params, prompt: Inputs, token: jax.Array) -> jax.Array:
        own = effect.last_logits(config, effect.unpatched(params), Inputs(*(part[None] for part in prompt)))
        return -jax.nn.log_softmax(own[0].astype(jnp.float32))[token]

    def add(total: Params, one: tuple[Inputs, jax.Array]) -> tuple[Params, None]:
        slope = jax.grad(surprise)(params, *one)
        return jax.tree.map(lambda sum_, own: sum_ + own.astype(jnp.float32) ** 2, total, slope), None

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    total, _ = jax.lax.scan(add, nothing, (inputs, drawn))
    return jax.tree.map(lambda leaf: leaf / len(inputs.lengths), total)


def moments(pair: Pair, params: Params, inputs: Inputs) -> Params:
    """Second moments of what each matrix of each block reads, ``E[x x^T]`` over all tokens of the prompts.

    Args: pair: whose config. params: the expert's. inputs: prompts of its own task.

    Returns: a tree with the path of each block's matrices: [L, inputs, inputs]; of MLPs that are a choice of experts those of the
        attention's alone.

    References: the Gram matrices of RegMean, Jin et al., arXiv 2212.09849, section 3.

    Example:
        >>> from jaxpatch import testing
        >>> pair = testing.tiny_pair()
        >>> moments(pair, pair.special, testing.tiny_inputs())["layers"]["attn"]["o"]["kernel"].shape
        (3, 16, 16)
    """
    refuse_others(pair, "moments", "Average the outer products of what your own model's matrices read instead.")
    found = _moments(pair.config, params, inputs)
    made: dict[str, dict] = {"attn": {}, "mlp": {}}
    for name, reads in READS.items():
        half = "attn" if reads in ("attention", "heads") else "mlp"
        if reads in found and name in params["layers"][half]:
            made[half][name] = {"kernel": found[reads]}
    return {"layers": made}


@functools.partial(jax.jit, static_argnums=0)
def _moments(config: DecoderConfig, params: Params, inputs: Inputs) -> dict[str, jax.Array]:
    """What is read -> [L, inputs, inputs]."""
    model = effect.unpatched(params)
    entering = model.embedded(config, inputs.tokens)
    context = decoder.causal_context(config, entering.shape[-2], entering.dtype)
    is_token = jnp.arange(entering.shape[-2])[None, :] < inputs.lengths[:, None]

    def moment(x: jax.Array) -> jax.Array:
        rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
        rows = jnp.where(is_token[..., None], rows, 0).reshape(-1, rows.shape[-1])
        return jnp.matmul(rows.T, rows, precision=layers.precision()) / is_token.sum(dtype=rows.dtype)

    def step(x: jax.Array, number: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        block, here = decoder.block(config, model.block(number)), context.at(number)
        reads = x if config.parallel else block.halves(x, here)[0]
        own = {"attention": block.attention_input(x), "heads": block.attn.attend(block.heads(x), here)}
        if not config.experts:
            neurons = layers.neurons(block.neuron_inputs(reads), config.activation)
            own |= {"mlp": block.mlp_input(reads), "neurons": neurons}
        return block(x, here)[0], {name: moment(each) for name, each in own.items()}

    return jax.lax.scan(step, entering, jnp.arange(config.layers, dtype=jnp.int32))[1]
