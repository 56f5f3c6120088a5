"""The engine against the limit: the arithmetic it must do, by the clock, over bare matrix products of the same shapes.

    python -m benchmarks.limit                                  # SmolLM2-135M on the CPU
    python -m benchmarks.limit --pair llama-3.2-1b              # on an accelerator

Both sides do about equally many operations in a run.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import exact, pairs, report, timing
from jaxpatch.measuring import instrument, memory
from jaxpatch.models import layers, prefix_tree
from jaxpatch.models.config import DecoderConfig


def block_flops(config: DecoderConfig, tokens: int, *, keys: int, looks: int) -> int:
    """Floating-point operations of one block, a multiply-add counted as two.

    Queries, outputs and MLP at `tokens` positions; keys and values at `keys` positions; `looks` pairs of a query and a key that it may
    see. Norms, softmax, rotary turns and activations are not counted.

    >>> config = pairs.SHAPES["small"][0]
    >>> block_flops(config, 1, keys=1, looks=1) - mlp_flops(config, 1)
    394240
    """
    inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
    projections = 2 * config.width * (2 * tokens * inner + 2 * keys * inner_kv)
    return projections + 4 * looks * inner + mlp_flops(config, tokens)


def mlp_flops(config: DecoderConfig, tokens: int) -> int:
    """Of gate, up and down."""
    return 6 * tokens * config.width * config.neurons


def needed_flops(case: pairs.Case, kind: str, indices: np.ndarray) -> int:
    """What no engine that replaces these candidates truly can leave out.

    A candidate in layer l changes all that follows in its own block (a head: the MLP; a neuron: nothing) and the blocks above, up
    to the anchor's, where only the last tokens are read. A state that several prompts share, because they begin alike, counts once.
    Base's own run and what the component itself writes are not counted.
    """
    config, lengths = case.config, np.asarray(case.prompts.lengths)
    prefixes = case.prefixes()
    num_states, num_last = len(prefixes), len(lengths)
    whole = block_flops(config, num_states, keys=num_states, looks=sum(map(len, prefixes)))
    top = block_flops(config, num_last, keys=num_states, looks=int(lengths.sum()))
    own = mlp_flops(config, num_states) if kind == "head" else 0
    own_at_top = mlp_flops(config, num_last) if kind == "head" else 0
    above = int(case.anchor.layer) - indices[:, 0]
    return sum(own + (n - 1) * whole + top if n else own_at_top for n in above.tolist())


def engine_rows(case: pairs.Case) -> int:
    """States in one piece of the engine: its candidates times the distinct tokens."""
    tree = prefix_tree.of_prompts(np.asarray(case.prompts.tokens), np.asarray(case.prompts.lengths))
    base, depth = case.pair.base, int(case.anchor.layer) + 1
    budget, fill = memory.default_budget(base), memory.fill_of(base)
    return len(tree.tokens) * memory.plan(case.config, tree, case.dtype.itemsize, depth, budget, fill).candidates


def bare_products(config: DecoderConfig, dtype: np.dtype, rows: int) -> tuple[Callable[[], list[jax.Array]], int]:
    """All matrix products of one block on so many states, with nothing between them; and their operations."""
    inner, inner_kv = config.heads * config.head_width, config.kv_heads * config.head_width
    shapes = [(config.width, inner), (config.width, inner_kv), (config.width, inner_kv), (inner, config.width)]
    shapes += [(config.width, config.neurons), (config.width, config.neurons), (config.neurons, config.width)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    kernels = [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]
    states = {width: jax.random.normal(keys[0], (rows, width), dtype) for width, _ in shapes}

    @jax.jit
    def multiplied(states: dict[int, jax.Array], kernels: list[jax.Array]) -> list[jax.Array]:
        return [jnp.matmul(states[kernel.shape[0]], kernel, precision=layers.precision()) for kernel in kernels]

    return lambda: multiplied(states, kernels), sum(2 * rows * i * o for i, o in shapes)


def repeated(run: Callable[[], list[jax.Array]], times: int) -> None:
    """Run again and again, one call always waiting in the queue, so that an accelerator is never idle."""
    before = run()
    for _ in range(times - 1):
        before, _ = run(), jax.block_until_ready(before)
    jax.block_until_ready(before)


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--candidates", type=int, default=512, help="at most, of each kind")
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
    rows = engine_rows(case)
    run, one_block = bare_products(case.config, case.dtype, rows)
    groups, figures = {}, []
    for kind in case.per_layer:
        indices = case.some(kind, chosen.candidates, chosen.seed)
        needed = needed_flops(case, kind, indices)
        times = -(-needed // one_block)
        sides = [
            timing.Side("engine", lambda k=kind, i=indices: exact.ours(tool, k, i), needed / 1e9, "GFLOP"),
            timing.Side("bare products", lambda t=times: repeated(run, t), times * one_block / 1e9, "GFLOP"),
        ]
        engine, bare = groups[kind] = timing.in_turn(sides, repeats=chosen.repeats)
        figures.append(timing.ratio(f"{kind}: engine / bare products, operations a second", engine.rates, bare.rates))
    report.publish(
        report.Report(
            name=f"limit-{chosen.pair}-{chosen.prompts}",
            title="The engine against bare matrix products",
            shapes=case.shapes | {"rows_of_a_bare_product": rows},
            groups=groups,
            figures=figures,
            facts={},
        )
    )


if __name__ == "__main__":
    main()
