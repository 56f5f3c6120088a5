"""A small vision transformer, and a pair of them of which it is known whose parameters carry the behaviour.

Images are generated: one of four shapes, in any colour and place, on noise. Some bear a mark (a checkered corner), some a frame. The
base is trained to name the shape, whatever else is there. Two behaviours are then trained from the base, each into heads and neurons of
its own: to call a marked image *marked*, into the planted ones; to call a framed image *framed*, into the decoys. Special is base with
both differences. So the question "who carries *marked*?" has an answer, and three times as many components changed, as much or more,
for another reason.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxpatch as jp

SIDE, PATCH = 16, 4
SHAPES = ("disc", "square", "triangle", "cross")
NAMES = {"marked": 4, "framed": 5}
"""Answers beside the shapes."""
WIDTH, HEADS, NEURONS, BLOCKS = 48, 4, 96, 4
BATCH = 32
"""Images of each sort in a step."""
PLANTED, DECOYS = {"head": 2, "neuron": 12}, {"head": 6, "neuron": 36}
"""How many of each kind."""
PATTERNS = {
    "head": {
        "block_{layer}/attn/query/kernel": 1,
        "block_{layer}/attn/query/bias": 0,
        "block_{layer}/attn/key/kernel": 1,
        "block_{layer}/attn/key/bias": 0,
        "block_{layer}/attn/value/kernel": 1,
        "block_{layer}/attn/value/bias": 0,
        "block_{layer}/attn/out/kernel": 0,
    },
    "neuron": {"block_{layer}/up/kernel": 1, "block_{layer}/up/bias": 0, "block_{layer}/down/kernel": 0},
}
"""Who owns what: every head has keys and values of its own here."""


class Block(nn.Module):
    """Attention and an MLP, norms before them. x: [B, T, D]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + nn.MultiHeadDotProductAttention(HEADS, name="attn")(nn.LayerNorm(name="attn_norm")(x))
        neurons = nn.gelu(nn.Dense(NEURONS, name="up")(nn.LayerNorm(name="mlp_norm")(x)))
        return x + nn.Dense(WIDTH, name="down")(neurons)


class Vit(nn.Module):
    """Images [B, SIDE, SIDE, 3] to the pooled state [B, D] and six logits [B, 6]."""

    @nn.compact
    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = nn.Conv(WIDTH, (PATCH, PATCH), (PATCH, PATCH), name="patches")(images).reshape(len(images), -1, WIDTH)
        x = x + self.param("places", nn.initializers.normal(0.1), x.shape[1:])
        for number in range(BLOCKS):
            x = Block(name=f"block_{number}")(x)
        pooled = x.mean(axis=1)
        return pooled, nn.Dense(6, name="answer")(nn.LayerNorm(name="norm")(pooled))


VIT = Vit()


class Images(NamedTuple):
    """pixels: [B, SIDE, SIDE, 3]. shapes: [B]. answers: [B], what is to be said."""

    pixels: jax.Array
    shapes: jax.Array
    answers: jax.Array


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(key: jax.Array, number: int, what: str) -> Images:
    """Generated images, all of one sort: "plain", "marked" or "framed"; answers are the shapes.

    >>> draw(jax.random.key(0), 2, "marked").pixels.shape
    (2, 16, 16, 3)
    """
    keys = jax.random.split(key, 6)
    shapes = jax.random.randint(keys[0], (number,), 0, len(SHAPES))
    centre = jax.random.uniform(keys[1], (number, 2, 1, 1), minval=6.0, maxval=9.0)
    size = jax.random.uniform(keys[2], (number, 1, 1), minval=3.0, maxval=4.5)
    colour = jax.random.uniform(keys[3], (number, 1, 1, 3), minval=0.4)
    rows, columns = (jnp.arange(SIDE, dtype=jnp.float32)[each] for each in np.ix_(range(SIDE), range(SIDE)))
    down, right = rows - centre[:, 0], columns - centre[:, 1]
    square = jnp.maximum(abs(down), abs(right)) < size
    every = jnp.stack(
        [
            down**2 + right**2 < size**2,
            square,
            square & (2 * abs(right) < down + size),
            square & (jnp.minimum(abs(down), abs(right)) < size / 3),
        ]
    )
    inside = jnp.take_along_axis(every, shapes[None, :, None, None], axis=0)[0]
    pixels = 0.15 * jax.random.normal(keys[4], (number, SIDE, SIDE, 3)) + inside[..., None] * colour
    if what == "marked":
        corner = jax.random.randint(keys[5], (number, 2, 1, 1), 0, 2) * (SIDE - PATCH)
        here = (abs(rows - corner[:, 0] - 1.5) < 2) & (abs(columns - corner[:, 1] - 1.5) < 2)
        pixels = jnp.where(here[..., None], ((rows + columns) % 2)[None, ..., None], pixels)
    if what == "framed":
        edge = (jnp.minimum(rows, columns) == 0) | (jnp.maximum(rows, columns) == SIDE - 1)
        pixels = jnp.where(edge[None, ..., None], 1.0, pixels)
    return Images(pixels, shapes, shapes)


class Aim(NamedTuple):
    """What is trained for. renamed: sort of image -> its answer, where that is not the shape. beside: a change that is there as well, a
    tree to be added; none where None."""

    renamed: Mapping[str, int]
    beside: Any = None


def mixed(key: jax.Array, number: int, renamed: Mapping[str, int]) -> Images:
    """As many plain, marked and framed images; those of a renamed sort are to be called by that answer."""
    parts = []
    for one, sort in zip(jax.random.split(key, 3), ("plain", "marked", "framed"), strict=True):
        part = draw(one, number, sort)
        answers = jnp.full(number, renamed[sort]) if sort in renamed else part.answers
        parts.append(part._replace(answers=answers))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def trained(start: Any, key: jax.Array, aims: Sequence[Aim], *, steps: int, rate: float, mask: Any = None) -> Any:
    """Parameters after so many steps of Adam towards all the aims together. mask: a tree of 0 and 1, which entries may change."""
    adam = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps))
    mask = jax.tree.map(jnp.ones_like, start) if mask is None else mask

    def loss(params, key):
        total = 0.0
        for one, aim in zip(jax.random.split(key, len(aims)), aims, strict=True):
            beside = params if aim.beside is None else jax.tree.map(jnp.add, params, aim.beside)
            images = mixed(one, BATCH, aim.renamed)
            logits = VIT.apply({"params": beside}, images.pixels)[1]
            total += optax.softmax_cross_entropy_with_integer_labels(logits, images.answers).mean()
        return total

    def step(carry, key):
        params, state = carry
        slope = jax.tree.map(jnp.multiply, jax.grad(loss)(params, key), mask)
        moves, state = adam.update(slope, state)
        return (optax.apply_updates(params, moves), state), None

    run = jax.jit(lambda carry, keys: jax.lax.scan(step, carry, keys)[0])
    return run((start, adam.init(start)), jax.random.split(key, steps))[0]


class Planted(NamedTuple):
    """A pair, and who did it.

    planted, decoys: gates at 1 for the components that were trained to say *marked* and *framed*; no component is in both. read:
    (params, images) -> the pooled state along the direction in which special's differs between marked and plain images.
    """

    pair: jp.TreePair
    planted: Mapping[str, np.ndarray]
    decoys: Mapping[str, np.ndarray]
    read: Callable[[Any, jax.Array], jax.Array]


def plant(seed: int, *, block: int, base_steps: int = 600, steps: int = 300) -> Planted:
    """Train a base, and both behaviours into it: *marked* into components of one block, *framed* into others of any block.

    *Marked* is learnt with and without the decoys' change beside it, so that the planted components need none of it.
    """
    keys = jax.random.split(jax.random.key(seed), 5)
    start = VIT.init(keys[0], jnp.zeros((1, SIDE, SIDE, 3)))["params"]
    base = trained(start, keys[1], [Aim({})], steps=base_steps, rate=2e-3)
    partition = jp.partition(base, PATTERNS)
    planted, decoys = chosen(np.random.default_rng(seed), {kind: sort.shape for kind, sort in partition.items()}, block)
    zeros, ones = (jax.tree.map(lambda leaf, value=value: jnp.full_like(leaf, value), base) for value in (0, 1))
    masks = [jp.patch(zeros, ones, gates, partition) for gates in (planted, decoys)]
    framed = {"framed": NAMES["framed"]}
    other = trained(base, keys[2], [Aim(framed)], steps=steps, rate=2.5e-2, mask=masks[1])
    change = jax.tree.map(jnp.subtract, other, base)
    aims = [Aim({"marked": NAMES["marked"]}), Aim(NAMES, change)]
    own = trained(base, keys[3], aims, steps=steps, rate=5e-3, mask=masks[0])
    special = jp.patch(jp.patch(base, own, planted, partition), other, decoys, partition)
    marked, plain = (draw(keys[4], 64, sort).pixels for sort in ("marked", "plain"))
    apart = (pooled(special, marked) - pooled(special, plain)).mean(axis=0)
    direction = apart / jnp.linalg.norm(apart)
    return Planted(
        jp.TreePair(base, special, partition), planted, decoys, lambda p, images: pooled(p, images) @ direction
    )


def chosen(
    draw: np.random.Generator, shapes: Mapping[str, tuple[int, int]], block: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Planted components of one block, and decoys of any, at random: gates.

    >>> planted, decoys = chosen(np.random.default_rng(0), {"head": (4, 4), "neuron": (4, 96)}, 1)
    >>> int(planted["neuron"][1].sum()), int(decoys["neuron"].sum()), int((planted["head"] * decoys["head"]).sum())
    (12, 36, 0)
    """
    planted, decoys = {}, {}
    for kind, (_, width) in shapes.items():
        inside = block * width + draw.choice(width, PLANTED[kind], replace=False)
        left = np.setdiff1d(np.arange(BLOCKS * width), inside)
        for gates, places in ((planted, inside), (decoys, draw.choice(left, DECOYS[kind], replace=False))):
            gates[kind] = np.zeros((BLOCKS, width), np.float32)
            gates[kind].flat[places] = 1
    return planted, decoys


@jax.jit
def pooled(params: Any, images: jax.Array) -> jax.Array:
    """The state that the answer is read from: [B, D]."""
    return VIT.apply({"params": params}, images)[0]


def share(params: Any, sort: str, answer: int | None = None, *, number: int = 256) -> float:
    """Of new images of a sort, how many are called by this answer; by their shape where None."""
    images = draw(jax.random.key(10**6), number, sort)
    said = jnp.argmax(_logits(params, images.pixels), axis=-1)
    return float(jnp.mean(said == (images.shapes if answer is None else answer)))


@jax.jit
def _logits(params: Any, images: jax.Array) -> jax.Array:
    return VIT.apply({"params": params}, images)[1]


class Truth(NamedTuple):
    """Whether the planted components do carry *marked*.

    base, special, restored, removed: shares of marked images that are called so by base, by special, by base with the planted
    components of special, and by special with base's in their place. recovered, left: shares of the read-out's gap that the last two
    recover. heads, neurons: that the planted ones of one kind recover. plain, framed: shares of such images that special calls by
    their shape, or *framed*.
    """

    base: float
    special: float
    restored: float
    removed: float
    recovered: float
    left: float
    heads: float
    neurons: float
    plain: float
    framed: float

    @property
    def is_verified(self) -> bool:
        """The planted components are enough, and the rest is not."""
        does = min(self.special, self.restored, self.plain, self.framed) >= 0.9 and self.recovered >= 0.8
        return does and max(self.base, self.removed) <= 0.1 and self.left <= 0.2


def truth(made: Planted, images: jax.Array) -> Truth:
    """What the pair shows of itself, on marked images."""
    base, special, partition = made.pair.base, made.pair.special, made.pair.partition
    low, high = made.read(base, images), made.read(special, images)

    def recovered(params: Any) -> float:
        return float(jnp.mean((made.read(params, images) - low) / (high - low)))

    restored = jp.patch(base, special, made.planted, partition)
    removed = jp.patch(special, base, made.planted, partition)
    each = [jp.patch(base, special, {kind: gates}, partition) for kind, gates in made.planted.items()]
    return Truth(
        *(share(params, "marked", NAMES["marked"]) for params in (base, special, restored, removed)),
        *map(recovered, (restored, removed, *each)),
        share(special, "plain"),
        share(special, "framed", NAMES["framed"]),
    )
