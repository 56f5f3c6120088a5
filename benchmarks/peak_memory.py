"""The most memory that a sweep holds, against what it was allowed beside the two models.

    python -m benchmarks.peak_memory                     # Linux; SmolLM2-135M on the CPU

The pair is loaded and the programs are compiled first; then the process's high-water mark is reset, and each sweep runs with
its budget.
"""

import ctypes
import gc
import re
from pathlib import Path

from benchmarks import pairs, report
from jaxpatch.measuring import instrument, sweep

BUDGETS = (128, 256, 1024)
"""MiB."""
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
    options = pairs.parser(__doc__)
    options.add_argument("--candidates", type=int, default=64)
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    indices = {kind: case.some(kind, chosen.candidates, chosen.seed) for kind in ("head", "neuron")}
    facts = {}
    for budget in BUDGETS:
        tool = instrument.of_pair(case.pair, case.prompts, case.anchor, budget=budget * 2**20)
        for kind, some in indices.items():
            tool.exact(kind, some, sweep.silent)
            before = settled()
            tool.exact(kind, some, sweep.silent)
            facts[f"{kind}, budget {budget} MiB: most held beside what was there before, MiB"] = (
                mebibytes("VmHWM") - before
            )
    report.publish(
        report.Report(
            name=f"peak-memory-{chosen.pair}-{chosen.prompts}",
            title="The most memory a sweep holds beside the two models",
            shapes=case.shapes,
            groups={},
            figures=[],
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
