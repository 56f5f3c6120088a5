"""What the suppliers of a target cost, the first one and those after it: cheap scores of every head and neuron, E_w and E_a.

    python -m benchmarks.tracing

Targets are heads in different layers. A target's layer and place are arguments of its programs, so those of the first serve the others;
beside them the same targets with programs of their own, each as long as its target's depth.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

from benchmarks import pairs, report, timing
from jaxpatch import pipeline
from jaxpatch.measuring import instrument, targets
from jaxpatch.measuring.read_outs import Contribution
from jaxpatch.patching.exchange import Exchange
from jaxpatch.scoring.method import DEFAULTS

KINDS = ("head", "neuron")
NUM_TARGETS = 4


def chosen_targets(case: pairs.Case) -> Iterator[Contribution]:
    """One head in each of some layers, spread evenly below the anchor: the first to contribute more in special than in base."""
    for layer in np.linspace(case.anchor.layer, 1, NUM_TARGETS).astype(int):
        for head in range(case.config.heads):
            read = targets.contribution(case.pair, case.prompts, case.anchor, "head", (int(layer), head))
            if instrument.of_pair(case.pair, case.prompts, read).gap.mean() > 0:
                yield read
                break


def supplying(case: pairs.Case, read: Contribution, name: str) -> timing.Side:
    """All that tracing asks of one target."""

    def run() -> list[np.ndarray]:
        found = []
        for method, exchange in (("local_linear", None), ("attribution", Exchange())):
            tool = instrument.of_pair(case.pair, case.prompts, read, exchange=exchange)
            (scores,) = pipeline.scores_with(tool, kinds=KINDS, method=method, layers=[-1], options=DEFAULTS)
            found += [scores.effects[kind] for kind in KINDS]
        return found

    return timing.Side(f"{read.name}, {name}", run, 1, "targets")


def same(results: list[list[np.ndarray]]) -> None:
    """Raises where a target's programs of its own say something else."""
    half = len(results) // 2
    for shared, own in zip(results[:half], results[half:], strict=True):
        for one, other in zip(shared, own, strict=True):
            if (apart := np.abs(one - other).max()) > 1e-4 * np.abs(other).max():
                raise ValueError(f"the two ways are {apart:.2g} apart, of {np.abs(other).max():.2g}")


def main() -> None:
    chosen = pairs.parser(__doc__).parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    reads = list(chosen_targets(case))
    sides = [supplying(case, read, "shared programs") for read in reads]
    sides += [supplying(case, dataclasses.replace(read, depth=None), "programs of its own") for read in reads]
    timed = timing.in_turn(sides, repeats=chosen.repeats, check=same)
    shared, own = timed[: len(reads)], timed[len(reads) :]
    figures = [
        timing.Figure(
            "first calls of all targets after the first, programs of their own over shared ones",
            [sum(each.first for each in own[1:]) / sum(each.first for each in shared[1:])],
        ),
        *(
            timing.ratio(f"time of {a.side.name} / with {b.side.name.split(', ')[1]}", a.seconds, b.seconds)
            for a, b in zip(shared, own, strict=True)
        ),
    ]
    report.publish(
        report.Report(
            name=f"tracing-{chosen.pair}-{chosen.prompts}",
            title="Suppliers of targets in different layers",
            shapes=case.shapes,
            groups={"heads and neurons below a target, E_w and E_a": timed},
            figures=figures,
            facts={},
        )
    )


if __name__ == "__main__":
    main()
