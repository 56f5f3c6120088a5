"""What narrow numbers cost: scores by bfloat16 arithmetic against those of the same weights by float32.

    python -m benchmarks.precision                                  # SmolLM2-135M on the CPU
    python -m benchmarks.precision --pair llama-3.2-1b              # on an accelerator: its faster float32 products as well

The weights of all sides are rounded to bfloat16, but for the last one's: those are as they were loaded, and show what the rounding of
two checkpoints alone does to scores. The residual stream, norms, softmax, read-outs and all of `local_linear` are float32 everywhere.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import exact, pairs, report, timing
from jaxpatch.measuring import instrument
from jaxpatch.models import checkpoints, layers
from jaxpatch.scoring import METHODS, agreement, normalise
from jaxpatch.scoring.method import DEFAULTS

REFERENCE = "float32"
AS_LOADED = "float32, weights as loaded"


def cast(pair: checkpoints.Pair, *dtypes: str) -> checkpoints.Pair:
    """Both models rounded to one type after the other."""

    def rounded(leaf: jax.Array) -> jax.Array:
        for dtype in dtypes:
            leaf = leaf.astype(dtype)
        return leaf

    both = (jax.tree.map(rounded, side) for side in (pair.base, pair.special))
    return dataclasses.replace(pair, **dict(zip(("base", "special"), both, strict=True)))


def instruments(case: pairs.Case) -> dict[str, tuple[instrument.Instrument, str]]:
    """Side -> the instrument, and the precision of its products. On a CPU every float32 product is one."""
    narrow, wide = cast(case.pair, "bfloat16"), cast(case.pair, "bfloat16", "float32")
    precisions = layers.PRECISIONS if jax.default_backend() != "cpu" else layers.PRECISIONS[:1]
    sides = {REFERENCE if p == "highest" else f"{REFERENCE}, precision {p}": (wide, p) for p in precisions}
    sides |= {"bfloat16": (narrow, "highest"), AS_LOADED: (case.pair, "highest")}
    return {name: (_of_pair(pair, case, precision), precision) for name, (pair, precision) in sides.items()}


def _of_pair(pair: checkpoints.Pair, case: pairs.Case, precision: str) -> instrument.Instrument:
    with jax.default_matmul_precision(precision):
        return instrument.of_pair(pair, case.prompts, case.anchor)


def scored(tool: instrument.Instrument, effects: np.ndarray) -> np.ndarray:
    """E_w of effects [B, ...]."""
    is_kept = normalise.kept_inputs(tool.gap, tool.base)
    return normalise.normalised(effects, tool.gap, is_kept, "mean_of_ratios").ravel()


def linearised(tool: instrument.Instrument, precision: str) -> dict[str, np.ndarray]:
    """E_w of every head and neuron by `local_linear`."""
    with jax.default_matmul_precision(precision):
        answers = METHODS["local_linear"](tool, ("head", "neuron"), DEFAULTS)
    return {kind: scored(tool, answer.effects) for kind, answer in answers.items()}


def against(kind: str, name: str, ours: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How far the scores of one side are from the reference's."""
    apart, agreed = np.abs(ours - reference), agreement.agreement(ours, reference)
    label = f"{kind}, {name}"
    return {
        f"{label}: largest distance in E_w": float(apart.max()),
        f"{label}: that, over the largest score": float(apart.max() / np.abs(reference).max()),
        f"{label}: median distance over median score": float(np.median(apart) / np.median(np.abs(reference))),
        f"{label}: Spearman": agreed.spearman,
        f"{label}: top tenth shared": agreed.top_overlap,
    }


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--candidates", type=int, default=256, help="at most, of each kind")
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    tools = instruments(case)
    groups, figures, facts = {}, [], {}
    for kind in case.per_layer:
        indices = case.some(kind, chosen.candidates, chosen.seed)

        def run(name: str, kind: str = kind, indices: np.ndarray = indices) -> Callable[[], np.ndarray]:
            tool, precision = tools[name]

            def once() -> np.ndarray:
                with jax.default_matmul_precision(precision):
                    return exact.ours(tool, kind, indices)

            return once

        groups[kind] = timed = timing.in_turn(
            [timing.Side(name, run(name), len(indices)) for name in tools], repeats=chosen.repeats
        )
        scores = {each.side.name: scored(tools[each.side.name][0], each.result.T) for each in timed}
        rates = {each.side.name: each.rates for each in timed}
        for name in tools:
            if name != REFERENCE:
                facts |= against(kind, name, scores[name], scores[REFERENCE])
            if name not in (REFERENCE, AS_LOADED):
                figures.append(
                    timing.ratio(f"{kind}: {name} / {REFERENCE}, patches a second", rates[name], rates[REFERENCE])
                )
    linear = {name: linearised(*made) for name, made in tools.items()}
    for kind in case.per_layer:
        for name in set(tools) - {REFERENCE}:
            facts |= against(f"local_linear, every {kind}", name, linear[name][kind], linear[REFERENCE][kind])
    report.publish(
        report.Report(
            name=f"precision-{chosen.pair}-{chosen.prompts}",
            title="Scores by narrow arithmetic",
            shapes=case.shapes,
            groups=groups,
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
