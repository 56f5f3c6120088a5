"""What each recipe here will cost, by `jaxpatch plan`, into the tables of README.md.

    python experiments/recipes/estimate.py

Reads each recipe's options and, in place of its two checkpoints, the config.json kept for it in `configs`: no weights, no tokenizer, no
network. Seconds on any machine; the same tables on each.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from jaxpatch import atomic, plan, recipe, run
from jaxpatch.models.differences import Choices
from jaxpatch.planning import machines

HERE = Path(__file__).parent
BEGINS, ENDS = "<!-- estimate.py writes from here -->", "<!-- to here -->"
TOKENS = 64
"""Of each prompt: a one-sentence request, its instruction and a chat template around both."""
DEVICES = ("h100", "tpu-v5p")
GATED = {
    "meta-llama": "gated: Meta's licence",
    "google": "gated: Google's terms",
    "Qwen": "open",
    "WizardLMTeam": "open",
}
"""Owner on the hub -> whether the models are given out only to a token whose owner agreed to something."""
NOT_RUN = "not run"
RAN: Mapping[str, str] = {}
"""Recipe -> where the results of a run of it are."""


def recipes() -> dict[str, Path]:
    """Name -> file."""
    return {file.stem: file for file in sorted(HERE.glob("*.json"))}


def planned(name: str, device: str) -> plan.Planned:
    """What `jaxpatch plan` makes of a recipe. Its choices are left out: one config stands for both models, so nothing differs."""
    options = recipe.read(recipes()[name], "plan")
    assert isinstance(options, plan.Plan)
    config = str(HERE / "configs" / name)
    asked = {"base": config, "special": config, "task": None, "tokens": TOKENS, "device": device, "choices": Choices()}
    return plan.plan(dataclasses.replace(options, **asked), console=Console(quiet=True))


def tables() -> str:
    """Both tables, as Markdown."""
    return f"{table(PAIRS, _pairs())}\n\n{table(COSTS, costs(recipes()))}"


PAIRS = ("recipe", "base", "special", "parameters of each", "on the hub", "run?")


def _pairs() -> Iterator[Sequence[str]]:
    for name, file in recipes().items():
        options, job = recipe.read(file, "run"), planned(name, DEVICES[0]).job
        assert isinstance(options, run.Run)
        gates = dict.fromkeys(GATED[each.split("/")[0]] for each in (options.base, options.special))
        size = f"{job.parameter_bytes / 2 / job.itemsize / 1e9:.2f} billion"
        said = options.base, options.special, size, "; ".join(gates), RAN.get(name, NOT_RUN)
        yield f"[`{name}`]({file.name})", *said


COSTS = ("recipe", "on one", "both models, GiB", "beside them: sweep", "cheap scores")
COSTS += ("screened, at least", "exact", "local_linear, first_order", "integrated")


def costs(names: Iterable[str]) -> Iterator[Sequence[str]]:
    for name in names:
        for device in DEVICES:
            made = planned(name, device)
            seconds = {method: each[plan.TOGETHER] for method, each in made.seconds.items()}
            held = made.job.parameter_bytes, made.held.states + made.held.batch, made.held.cheap
            cheap = max(seconds["local_linear"], seconds["first_order"])
            times = seconds["screened"], seconds["exact"], cheap, seconds["integrated"]
            yield (
                name,
                machines.MACHINES[device].name,
                *(f"{each / 2**30:.1f}" for each in held),
                *map(plan.duration, times),
            )


def table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def filled(page: str) -> str:
    """A page with new tables between its two marks."""
    before, rest = page.split(BEGINS)
    return f"{before}{BEGINS}\n\n{tables()}\n\n{ENDS}{rest.split(ENDS)[1]}"


if __name__ == "__main__":
    README = HERE / "README.md"
    atomic.text(README, filled(README.read_text(encoding="utf-8")), overwrite=True)
