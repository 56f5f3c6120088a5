"""What `jaxpatch plan` foresees, against what then happens.

    python -m benchmarks.plan                                   # SmolLM2-135M on the CPU
    python -m benchmarks.plan --pair small

Each round calibrates anew, as the command does, and then runs every method, so that both meet the same load. Exact sweeps are foreseen
and run for a sample of candidates, `integrated` for one step: both grow in proportion.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import exact, pairs, report, timing
from jaxpatch.measuring import instrument, memory
from jaxpatch.models import prefix_tree
from jaxpatch.planning import calibration, cost, machines
from jaxpatch.scoring import METHODS
from jaxpatch.scoring.method import Answer, Options

KINDS = ("head", "neuron")
OPTIONS = Options(steps=1)


class Trial(NamedTuple):
    """Something to run, and what it costs by the plan."""

    name: str
    run: Callable[[], Any]
    bill: cost.Bill


def job_of(case: pairs.Case) -> cost.Job:
    """A case, as the plan sees it."""
    return cost.Job(
        config=case.config,
        tree=prefix_tree.of_prompts(np.asarray(case.prompts.tokens), np.asarray(case.prompts.lengths)),
        tokens=case.prompts.tokens.shape[1],
        depth=int(case.anchor.layer) + 1,
        itemsize=case.dtype.itemsize,
    )


def room_of(case: pairs.Case, job: cost.Job, budget: int) -> memory.Room:
    """The engine's batches for a case."""
    return memory.plan(job.config, job.tree, job.itemsize, job.depth, budget, memory.fill_of(case.pair.base))


def trials(case: pairs.Case, job: cost.Job, budget: int, candidates: int, seed: int) -> list[Trial]:
    """Every method. Of `first_order` it is the same pass as of `local_linear`."""
    room = room_of(case, job, budget)
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor, budget=budget)
    samples = {kind: case.some(kind, candidates, seed) for kind in KINDS}
    sweeps = [
        Trial(
            f"exact, {len(sample)} {kind}s",
            lambda kind=kind, sample=sample: exact.ours(tool, kind, sample),
            {kind: cost.exact(job, kind, np.sort(sample[:, 0]), room)},
        )
        for kind, sample in samples.items()
    ]
    asked = {name: getattr(OPTIONS, name) for name in ("top", "alpha", "sample", "steps")}
    others = {"screened": ("neuron",), "local_linear": KINDS, "integrated": KINDS}
    return sweeps + [
        Trial(
            f"{method}, every {' and '.join(kinds)}",
            lambda method=method, kinds=kinds: quiet(tool, method, kinds),
            cost.bills(job, kinds, room, **asked)[method],
        )
        for method, kinds in others.items()
    ]


def quiet(tool: instrument.Instrument, method: str, kinds: tuple[str, ...]) -> dict[str, Answer]:
    """What a method gives. A screen that does not trust its cheap score warns; how much it replaced is in the table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dict(METHODS[method](tool, kinds, OPTIONS))


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--candidates", type=int, default=64, help="at most, of each kind, in an exact sweep")
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    job, budget = job_of(case), memory.default_budget(case.pair.base)
    tried = trials(case, job, budget, chosen.candidates, chosen.seed)
    found: list[calibration.Calibration] = []

    def calibrate() -> None:
        found.append(calibration.calibrate(job, case.prompts, KINDS, str(case.dtype), budget))

    sides = [timing.Side("calibration", calibrate, 1, "calibrations")]
    sides += [timing.Side(trial.name, trial.run, 1, "runs") for trial in tried]
    timed = timing.in_turn(sides, repeats=chosen.repeats)
    rounds = found[1:]
    figures = [
        timing.ratio(
            f"{trial.name}: seconds it took / foreseen",
            took.seconds,
            [machines.seconds(trial.bill, each.paces) for each in rounds],
        )
        for trial, took in zip(tried, timed[1:], strict=True)
    ]
    screen = next(took.result for took in timed if took.side.name.startswith("screened"))["neuron"].screening
    facts: dict[str, float] = {"neurons that the screen replaced": int(screen.replaced.sum())}
    facts["neurons that it was foreseen to replace"] = cost.smallest_sample(OPTIONS.alpha, OPTIONS.sample) + OPTIONS.top
    facts |= {
        f"{part}: GFLOP/s, median": float(np.median([each.paces[part].flops for each in rounds])) / 1e9
        for part in rounds[0].paces
    }
    facts |= {f"{part}: compiling, s": seconds for part, seconds in found[0].compiling.items()}
    report.publish(
        report.Report(
            name=f"plan-{chosen.pair}-{chosen.prompts}",
            title="What the plan foresees against what happens",
            shapes=case.shapes,
            groups={"calibration and methods": timed},
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
