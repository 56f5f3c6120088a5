"""The most memory that scoring holds, against what it was allowed beside the two models.

    python -m benchmarks.peak_memory                     # Linux; SmolLM2-135M on the CPU

The pair is loaded and the programs are compiled first; then the process's high-water mark is reset, and `jp.score` is called with its
budget: cheap scores, sweeps, ceilings, noise floor and intervals.
"""

import ctypes
import gc
import re
from pathlib import Path
from typing import Any

import jaxpatch as jp
from benchmarks import pairs, report

BUDGETS = (128, 256, 1024)
"""MiB."""
CALLS = {
    "every head, exact": dict(kinds=("head",), method="exact"),
    "top 20 neurons, screened": dict(kinds=("neuron",), method="screened", top=20),
    "heads and neurons, local_linear": dict(method="local_linear"),
    "heads and neurons, integrated in 2 steps": dict(method="integrated", steps=2),
    "embedding and layers, exact": dict(kinds=("embed", "layer"), method="exact"),
}
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def mebibytes(field: str) -> float:
    """What the kernel says of this process."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.M)
    if found is None:
        raise RuntimeError(f"{STATUS} has no {field}: this benchmark needs Linux.")
    return int(found.group(1)) / 1024


def settled() -> float:
    """Resident memory with everything given back that is free, and the high-water mark lowered to it."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    RESET.write_text("5")
    return mebibytes("VmRSS")


def main() -> None:
    chosen = pairs.parser(__doc__).parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    facts = {}
    for budget in BUDGETS:
        for name, call in CALLS.items():

            def score(call: dict[str, Any] = call, budget: int = budget) -> jp.Scores:
                return jp.score(case.pair, case.prompts, case.anchor, memory=budget * 2**20, **call)

            score()
            before = settled()
            score()
            facts[f"{name}, budget {budget} MiB: most held beside what was there before, MiB"] = (
                mebibytes("VmHWM") - before
            )
            print(list(facts.items())[-1], flush=True)
    report.publish(
        report.Report(
            name=f"peak-memory-{chosen.pair}-{chosen.prompts}",
            title="The most memory that scoring holds beside the two models",
            shapes=case.shapes,
            groups={},
            figures=[],
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
