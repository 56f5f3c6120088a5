"""The whole method on the real pair: six constraints, each from its anchor to what the patched models write.

    python experiments/six_constraints/run.py --out results/six_constraints --docs docs/results

For each task `jaxpatch trace` with the settings below, into a folder of its own; a task whose anchor fails its checks is reported, and
not scored (`--force` scores it all the same, and marks what comes of it). Of each scored task it is asked whether prompts that
no score saw are recovered alike (`fresh.py`). Then every choice of the method is turned by itself, for two of the
tasks (`switches.py`), and for one it is asked what ranking one by one loses (`together.py`). At the end `page.py` writes
six_constraints.md and its figure out of these files alone. What is there already, by the same options, is not done again: a run that
was stopped goes on. What to expect, and how long it takes: docs/results/six_constraints.md.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh
import page
import switches
import together
from rich.console import Console

import jaxpatch as jp
from jaxpatch import atomic, fetch, run
from jaxpatch.measuring import anchors, tasks
from jaxpatch.reporting import manifest

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = os.path.relpath(Path(__file__).parent / "adapter")
"""As it would be typed: it is in every manifest."""
SWITCHED = ("english_capital", "quotation")
"""Tasks of which every switch is turned."""
TOGETHER = ("english_capital",)
"""Tasks of which sets are looked at as sets."""
SETTINGS = {
    "num_anchor": 32,
    "num_scoring": 8,
    "num_behaviour": 8,
    "num_random": 3,
    "max_new": 96,
    "top": 100,
    "seed": 0,
    "limit": 200,
    "levels": 1,
}
THROUGH = ("head", "neuron")
"""Kinds of which relays are followed."""


def settings(task: str, chosen: argparse.Namespace) -> run.Trace:
    """One task's run."""
    given = {name: getattr(chosen, name) for name in SETTINGS}
    return run.Trace(
        base=str(chosen.base or fetch.smollm2()),
        special=str(chosen.special),
        task=task,
        out=chosen.out / task,
        force=chosen.force,
        overwrite=True,
        through=THROUGH,
        **given,
    )


def command(asked: run.Trace) -> list[str]:
    """What to type for the same."""
    words = ["jaxpatch", "trace", "--base", asked.base, "--special", asked.special, "--task", asked.task]
    words += ["--out", str(asked.out)]
    for name in SETTINGS:
        if getattr(asked, name) != getattr(run.Trace, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    words += ["--through", *asked.through]
    return [*words, "--force"] if asked.force else words


def refusal(asked: run.Trace) -> Path:
    """Where it is said that a task's anchor failed."""
    return asked.out.with_name(f"{asked.out.name}.refused.json")


def is_done(file: Path, asked: run.Trace) -> bool:
    """Whether a file of results says that it was made by these options. Where the anchor holds, --force makes no difference."""
    if not file.is_file():
        return False
    said, wanted = json.loads(file.read_text(encoding="utf-8")), manifest.plain(run.asked(asked))
    free = {} if said.get("forced", True) else {"force": wanted["force"]}
    return said["options"] | free == wanted


def chain(asked: run.Trace, console: Console) -> None:
    """One task: its results, or why there are none."""
    began = time.monotonic()
    try:
        run.run(asked, command=command(asked), console=console)
        refusal(asked).unlink(missing_ok=True)
    except anchors.UntrustedAnchorError as refused:
        console.print(f"{asked.task} is refused: {refused}", markup=False)
        keep(refusal(asked), asked, began, {"said": str(refused), "anchor": manifest.fitted(refused.info)})


def keep(path: Path, asked: run.Trace, began: float, found: dict[str, Any]) -> None:
    """Results as JSON, with the options and the commit that they were made by and the seconds they took."""
    said = {"options": run.asked(asked), "seconds": time.monotonic() - began, "source": manifest.source(ROOT), **found}
    atomic.text(path, json.dumps(manifest.plain(said), indent=1), overwrite=True)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for the results of each task")
    options.add_argument("--docs", type=Path, help="folder for six_constraints.md and its figure; none where not given")
    options.add_argument("--base", help="another base than SmolLM2-135M-Instruct, which is fetched")
    options.add_argument("--special", default=ADAPTER, help="another special than the adapter beside this file")
    options.add_argument("--tasks", nargs="+", default=list(tasks.TASKS), choices=list(tasks.TASKS))
    options.add_argument("--remark", default="", help="a sentence for the page, on how this was run")
    options.add_argument("--force", action="store_true", help="score tasks whose anchor fails its checks, too")
    for name, value in SETTINGS.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"of each run ({value})")
    chosen = options.parse_args()
    console, pair = Console(), None
    asked = {task: settings(task, chosen) for task in chosen.tasks}
    for task, each in asked.items():
        console.rule(task)
        if is_done(each.out / "manifest.json", each):
            refusal(each).unlink(missing_ok=True)  # which other options left
            console.print("is there already")
        elif is_done(refusal(each), each):
            console.print("is there already: refused")
        else:
            chain(each, console)
    parts: tuple[tuple[str, tuple[str, ...], Callable[[jp.Pair, run.Trace], dict[str, Any]]], ...] = (
        ("fresh", tuple(asked), fresh.found),
        ("switches", SWITCHED, switches.found),
        ("together", TOGETHER, together.found),
    )
    for name, wanted, found in parts:
        for task in wanted:
            if task not in asked or not is_done(asked[task].out / "manifest.json", asked[task]):
                continue
            kept = chosen.out / f"{task}.{name}.json"
            if is_done(kept, asked[task]):
                continue
            console.rule(f"{task}: {name}")
            pair = jp.load_pair(asked[task].base, asked[task].special) if pair is None else pair
            began, made = time.monotonic(), found(pair, asked[task])
            forced = json.loads((asked[task].out / "manifest.json").read_text(encoding="utf-8"))["forced"]
            keep(kept, asked[task], began, {"forced": forced, **made})
    if chosen.docs is not None:
        words = ["python", "experiments/six_constraints/run.py", *sys.argv[1:]]
        page.write(chosen.out, chosen.docs, list(asked), shlex.join(words), chosen.remark)
        console.print(f"page: {chosen.docs / 'six_constraints.md'}")


if __name__ == "__main__":
    main()
