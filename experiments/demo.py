"""The demo: a real 135M pair, a behaviour that was learnt and a control: another behaviour of the same adapter.

    make demo            # or: python experiments/demo.py --out demo

The capitals are traced too, from the state back to its sources and on to the output. If the scores follow the behaviour and not just
the size of the change, the two tasks have different components at the top; the last lines say how many they share. The control's
activations are not exchanged. A control whose anchor fails its checks is reported, and not scored.
What to expect on 2 CPU cores: see docs/results/demo.md.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console

from jaxpatch import fetch, run
from jaxpatch.measuring import anchors

ADAPTER = Path(__file__).parent / "six_constraints" / "adapter"
TASK, CONTROL = "english_capital", "quotation"
TOP = {"head": 10, "neuron": 100}


def shared(one: pd.DataFrame, two: pd.DataFrame, kind: str, count: int) -> tuple[int, float]:
    """How many of the `count` best components of a kind two runs share, and how many two random sets would.

    Both count only components that either run could reach: no deeper than its anchor.

    >>> scores = pd.DataFrame({"kind": "head", "name": ["a", "b", "c", "d"], "score": [0.9, 0.5, 0.1, 0.2]})
    >>> shared(scores, scores.assign(score=[0.9, 0.1, 0.5, 0.2]), "head", 2)
    (1, 1.0)
    """
    best, reached = [], []
    for frame in (one, two):
        rows = frame[(frame["kind"] == kind) & (frame["score"] != 0)]
        best.append(set(rows.nlargest(count, "score")["name"]))
        reached.append(len(rows))
    return len(best[0] & best[1]), count * count / max(*reached, 1)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for the two results; replaced if it exists"
    )
    chosen = options.parse_args()
    console = Console()
    base = fetch.smollm2()
    pages = []
    for task in (TASK, CONTROL):
        console.rule(task)
        kind = run.Trace if task == TASK else run.Run
        settings = kind(
            base=str(base),
            special=str(ADAPTER),
            task=task,
            out=chosen.out / task,
            num_scoring=8,
            num_random=2,
            relays=task == TASK,
            overwrite=True,
        )
        command = f"jaxpatch {'trace' if task == TASK else 'run'} --base {base} --special {ADAPTER} --task {task} --out {settings.out}"
        command += f" --num-scoring {settings.num_scoring} --num-random {settings.num_random}"
        command += "" if settings.relays else " --no-relays"
        try:
            pages.append(run.run(settings, command=command.split(), console=console))
        except anchors.UntrustedAnchorError as refusal:
            console.print(f"{task} is refused: {refusal}", markup=False)
    if len(pages) == 2:
        frames = [pd.read_csv(page.parent / "scores.csv") for page in pages]
        for kind, count in TOP.items():
            both, chance = shared(*frames, kind, count)
            print(f"of their {count} best {kind}s {TASK} and {CONTROL} share {both}; by chance {chance:.1f}")
    for page in pages:
        print(f"report: {page.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
