"""The demo: a real 135M pair, one task that was learnt and one control.

    make demo            # or: python experiments/demo.py --out demo

The control is a task that the base already does: its anchor fails its checks, and a failed anchor is reported, not scored.
What to expect on 2 CPU cores: see docs/results/demo.md.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from jaxpatch import fetch, run
from jaxpatch.measuring import anchors

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
        try:
            pages.append(run.run(settings, command=command.split(), console=console))
        except anchors.UntrustedAnchorError as refusal:
            console.print(f"{task} is refused: {refusal}", markup=False)
    for page in pages:
        print(f"report: {page.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
