"""Exact patches a second: ours against two loops in PyTorch, on the same weights, prompts and candidates.

    python -m benchmarks.exact                                  # SmolLM2-135M on the CPU, 8 prompts
    python -m benchmarks.exact --prompts 1
    python -m benchmarks.exact --pair llama-3.2-1b              # on an accelerator

Before anything is timed, the sides must agree on the candidates they share.
"""

import functools

import numpy as np

from benchmarks import pairs, report, timing, torch_sweep
from jaxpatch.measuring import instrument, sweep

TOLERANCES = {"float32": 1e-3}
"""Largest difference between sides over the largest effect. In bfloat16 it is stated, not judged: there rounding hides effects."""
STRONGEST = 4
"""Of our candidates, on which the sides must agree as well as on the sample."""


def ours(tool: instrument.Instrument, kind: str, indices: np.ndarray) -> np.ndarray:
    """Our side: the effects of all candidates, [C, B]. Base's cached run is part of it."""
    return tool.exact(kind, indices, sweep.silent)


def compare(
    case: pairs.Case, theirs: torch_sweep.Sweep, kind: str, *, candidates: int, sample: int, repeats: int, seed: int
) -> tuple[list[timing.Timed], list[timing.Figure], dict[str, float]]:
    """Time one kind. candidates: of our side; the first `sample` of them are torch's."""
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
    indices = case.some(kind, candidates, seed)
    loops = {
        "(a) torch, the loop people write": torch_sweep.loop_people_write(theirs),
        "(b) torch, the best loop": torch_sweep.best_loop(theirs),
    }
    bases = {name: torch_sweep.base_read(read) for name, read in loops.items()}
    swaps = torch_sweep.swaps(case, theirs, kind, indices[:sample])
    sides = [timing.Side("ours", lambda: ours(tool, kind, indices), len(indices))]
    for name, read in loops.items():
        run = functools.partial(torch_sweep.effects, read, bases[name], swaps)
        sides.append(timing.Side(name, run, len(swaps)))
    facts = {}

    def check(results: list[np.ndarray]) -> None:
        """On the sample, and on our strongest candidates: effects of most components are as small as rounding."""
        mine, *others = results
        strongest = np.argsort(np.abs(mine).max(axis=1))[-STRONGEST:]
        strong = torch_sweep.swaps(case, theirs, kind, indices[strongest])
        apart = [np.abs(mine[: len(swaps)] - other).max() for other in others]
        apart += [
            np.abs(mine[strongest] - torch_sweep.effects(read, bases[name], strong)).max()
            for name, read in loops.items()
        ]
        difference = float(max(apart) / np.abs(mine).max())
        facts[f"{kind}: largest difference between sides / largest effect"] = difference
        if difference > TOLERANCES.get(str(case.dtype), np.inf):
            raise RuntimeError(f"{kind}: sides differ by {difference:.2g} of the largest effect; nothing was timed.")

    timed = timing.in_turn(sides, repeats=repeats, check=check)
    figures = [
        timing.ratio(f"{kind}: ours / {loop.side.name}, patches a second", timed[0].rates, loop.rates)
        for loop in timed[1:]
    ]
    every = len(case.all(kind))
    hours = [every / rate / 3600 for rate in timed[0].rates]
    figures.append(timing.Figure(f"{kind}: hours for all {every} up to the anchor at our rate (projected)", hours))
    return timed, figures, facts


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--kinds", nargs="+", choices=("head", "neuron"), default=["head", "neuron"])
    options.add_argument("--candidates", type=int, default=512, help="at most, of each kind, on our side")
    options.add_argument("--sample", type=int, default=16, help="how many of them run on torch")
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    theirs = torch_sweep.of_case(case)
    groups, figures, facts = {}, [], {}
    for kind in chosen.kinds:
        groups[kind], more_figures, more_facts = compare(
            case,
            theirs,
            kind,
            candidates=chosen.candidates,
            sample=chosen.sample,
            repeats=chosen.repeats,
            seed=chosen.seed,
        )
        figures, facts = figures + more_figures, facts | more_facts
    report.publish(
        report.Report(
            name=f"exact-{chosen.pair}-{chosen.prompts}",
            title="Exact weight patches a second",
            shapes=case.shapes,
            groups=groups,
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
