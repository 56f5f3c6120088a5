"""The pairs that are timed: a real one, and shapes of well-known models with random weights."""

import argparse
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report, timing
from jaxpatch import fetch
from jaxpatch.measuring import anchors, inputs, prompt_sets, read_outs
from jaxpatch.models import checkpoints, decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.rope import Rope
from jaxpatch.trees import paths

ADAPTER = report.FOLDER.parent / "experiments" / "six_constraints" / "adapter"
TASK = "english_capital"
DEMO_PROMPTS = {"anchor": 32, "layer": 8, "scoring": 8, "behaviour": 4}
"""How many prompts the demo draws of each split: with the same numbers the wordings are the same."""
SHORTEST, LONGEST = 48, 56
"""Tokens of a random prompt."""
STD, CHANGE = 0.02, 0.002
"""Standard deviation of random kernels, and of what special adds to them."""


class Case(NamedTuple):
    """Two models, the prompts they read, and where the state is read."""

    name: str
    pair: checkpoints.Pair
    prompts: inputs.Inputs
    anchor: read_outs.Anchor

    @property
    def config(self) -> DecoderConfig:
        return self.pair.config

    @property
    def dtype(self) -> np.dtype:
        return self.pair.base["embed"]["kernel"].dtype

    @property
    def per_layer(self) -> dict[str, int]:
        """Kind -> components of one layer."""
        return {"head": self.config.heads, "neuron": self.config.neurons}

    @property
    def shapes(self) -> dict[str, Any]:
        """What a reader needs to know of it, as JSON values."""
        batch, tokens = self.prompts.tokens.shape
        return {
            "pair": self.name,
            **{
                name: value
                for name, value in dataclasses.asdict(self.config).items()
                if name not in ("family", "context") and value != getattr(DecoderConfig, name, None)
            },
            "dtype": str(self.dtype),
            "prompts": batch,
            "tokens": f"{tokens} padded, {int(self.prompts.lengths.sum())} in all, {len(self.prefixes())} distinct",
            "anchor_after_block": int(self.anchor.layer),
        }

    def prefixes(self) -> set[tuple[int, ...]]:
        """The distinct prefixes of the prompts: as many as there are states to compute in a causal model."""
        rows = zip(np.asarray(self.prompts.tokens).tolist(), np.asarray(self.prompts.lengths).tolist(), strict=True)
        return {tuple(row[:end]) for row, length in rows for end in range(1, length + 1)}

    def all(self, kind: str) -> np.ndarray:
        """Every component of a kind up to the anchor: rows (layer, index)."""
        return np.argwhere(np.ones((self.anchor.layer + 1, self.per_layer[kind]), bool))

    def some(self, kind: str, count: int, seed: int) -> np.ndarray:
        """`count` different ones, drawn uniformly; all where there are no more. A smaller count gives the beginning of a larger."""
        every = self.all(kind)
        return every[np.random.default_rng(seed).permutation(len(every))[:count]]


def two_thirds(config: DecoderConfig) -> int:
    """The anchor's block.

    >>> two_thirds(SHAPES["llama-3.2-1b"][0])
    10
    """
    return 2 * config.layers // 3


def real(num_prompts: int) -> Case:
    """SmolLM2-135M-Instruct, the adapter of `experiments/six_constraints`, and the demo's prompts; float32."""
    pair = checkpoints.load_pair(fetch.smollm2(report.FOLDER.parent / "models"), ADAPTER)
    sets = prompt_sets.of_task(TASK, DEMO_PROMPTS | {"scoring": num_prompts})
    asked, plain, scoring = (inputs.encode(pair, texts) for texts in (sets.asked, sets.plain, sets.scoring))
    anchor, info = anchors.fit_anchor(pair, asked, plain, layer=two_thirds(pair.config))
    anchors.refuse_untrusted(info)
    return Case("SmolLM2-135M-Instruct and the six_constraints adapter", pair, scoring, anchor)


def _shape(**fields: Any) -> DecoderConfig:
    return DecoderConfig(family="llama", context=4096, rope=Rope(theta=500_000.0), norm_eps=1e-5, **fields)


SHAPES: dict[str, tuple[DecoderConfig, str]] = {
    "small": (
        _shape(vocab=1024, layers=6, width=256, heads=8, kv_heads=4, head_width=32, neurons=768, tied=True),
        "float32",
    ),
    "llama-3.2-1b": (
        _shape(vocab=128_256, layers=16, width=2048, heads=32, kv_heads=8, head_width=64, neurons=8192, tied=True),
        "bfloat16",
    ),
    "llama-3.1-8b": (
        _shape(vocab=128_256, layers=32, width=4096, heads=32, kv_heads=8, head_width=128, neurons=14_336),
        "bfloat16",
    ),
}
"""Shapes as published, without Llama's scaled rotary frequencies (which cost nothing), and the dtype they are run in."""


def of_shape(name: str, num_prompts: int) -> Case:
    """Random models and prompts. No two prompts share more than chance: nothing is gained from common beginnings."""
    config, dtype = SHAPES[name]
    weights_key, change_key, direction_key, tokens_key, lengths_key = jax.random.split(jax.random.key(0), 5)
    base = _random(config, weights_key, dtype)
    direction = jax.random.normal(direction_key, (config.width,))
    prompts = inputs.Inputs(
        jax.random.randint(tokens_key, (num_prompts, LONGEST), 0, config.vocab),
        jax.random.randint(lengths_key, (num_prompts,), SHORTEST, LONGEST + 1).at[0].set(LONGEST),
    )
    return Case(
        f"random weights, {name} shape",
        checkpoints.Pair(base=base, special=_changed(base, change_key), config=config),
        inputs.checked(prompts, config),
        read_outs.Anchor(direction=direction / jnp.linalg.norm(direction), layer=two_thirds(config)),
    )


def _random(config: DecoderConfig, key: jax.Array, dtype: str) -> Any:
    """Kernels around 0, scales of norms around 1, drawn where they will stay."""
    shapes = paths.flatten(jax.eval_shape(functools.partial(decoder.init, config), key))
    keys = jax.random.split(key, len(shapes))
    return paths.unflatten(
        {
            path: _drawn(one, leaf.shape, dtype, float(path.endswith("scale")))
            for one, (path, leaf) in zip(keys, shapes.items(), strict=True)
        }
    )


def _changed(base: Any, key: jax.Array) -> Any:
    """Every matrix of the blocks plus noise; what lies outside of them, and the norms, is shared with base."""
    flat = paths.flatten(base)
    keys = dict(zip(flat, jax.random.split(key, len(flat)), strict=True))
    is_changed = {path: path.startswith("layers/") and path.endswith("kernel") for path in flat}
    return paths.unflatten(
        {path: _nudged(keys[path], leaf) if is_changed[path] else leaf for path, leaf in flat.items()}
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _drawn(key: jax.Array, shape: tuple[int, ...], dtype: str, centre: float) -> jax.Array:
    return (centre + STD * jax.random.normal(key, shape, dtype)).astype(dtype)


@jax.jit
def _nudged(key: jax.Array, leaf: jax.Array) -> jax.Array:
    return (leaf + CHANGE * jax.random.normal(key, leaf.shape, leaf.dtype)).astype(leaf.dtype)


PAIRS: dict[str, Callable[[int], Case]] = {
    "real": real,
    **{name: functools.partial(of_shape, name) for name in SHAPES},
}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks share."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pair", choices=PAIRS, default="real")
    options.add_argument("--prompts", type=int, default=8)
    options.add_argument("--repeats", type=int, default=timing.FEWEST_REPEATS)
    options.add_argument("--seed", type=int, default=0, help="of the candidates that are drawn")
    return options
