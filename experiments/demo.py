"""The demo: a real 135M pair, one task that was learnt and one control, a report each.

    make demo            # or: python experiments/demo.py --out demo

What to expect on 2 CPU cores: see docs/results/demo.md.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from jaxpatch import fetch, run

ADAPTER = Path(__file__).parent / "six_constraints" / "adapter"
TASKS = ("english_capital", "title")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the two results; replaced if it exists"
    )
    chosen = options.parse_args()
    console = Console()
    base = fetch.smollm2()
    pages = []
    for task in TASKS:
        console.rule(task)
        settings = run.Run(
            base=str(base),
            special=str(ADAPTER),
            task=task,
            out=chosen.out / task,
            top=100,
            num_scoring=8,
            num_random=2,
            overwrite=True,
        )
        command = f"jaxpatch run --base {base} --special {ADAPTER} --task {task} --out {settings.out}"
        command += f" --top {settings.top} --num-scoring {settings.num_scoring} --num-random {settings.num_random}"
        pages.append(run.run(settings, command=command.split(), console=console))
    for page in pages:
        print(f"report: {page.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
