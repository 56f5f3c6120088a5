"""Merging two experts of SmolLM2's size, beside mergekit on the same tensors in one process: seconds, and memory beside the models.

    python -m benchmarks.merging                     # Linux

All three models are in memory beforehand, on both sides, and what comes out stays there. Memory is the most that one call holds beside
them, the merged model included.
"""

import argparse
from typing import Any

import jax
import numpy as np
import torch
from mergekit.merge_methods import merge_state_dicts

import jaxpatch as jp
from benchmarks import pairs, peak_memory, report, timing
from jaxpatch.models import convert, decoder
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.models.rope import Rope

CONFIG = DecoderConfig(
    family="llama",
    vocab=49_152,
    layers=30,
    width=576,
    heads=9,
    kv_heads=3,
    head_width=64,
    neurons=1536,
    tied=True,
    context=8192,
    rope=Rope(theta=100_000.0),
    norm_eps=1e-5,
)
"""SmolLM2-135M's."""
WEIGHTS = (0.7, 0.5)
ASKED: dict[str, dict[str, Any]] = {
    "linear": {},
    "slerp": {},
    "task_arithmetic": {},
    "ties": {"density": 0.3},
    "breadcrumbs": {"density": 0.3},
    "dare_linear": {"density": 0.3},
    "dare_ties": {"density": 0.3},
    "della": {"density": 0.3, "epsilon": 0.1},
}
ALIKE, BY_NORMS = 2e-6, 1e-5
"""Of a tensor's largest entry; the second where norms decide: of 28 million float32 numbers mergekit's keep five digits, and ours seven
(against float64)."""
TRIMMED, AT_THE_CUT = ("ties", "breadcrumbs"), 1e-4
"""Share of the entries that may differ where magnitudes tie at the cut: mergekit takes any of these (the tests keep its sorts in
order)."""
RANDOM = ("dare_linear", "dare_ties", "della")
"""Drawn by each side for itself, so that only the amount that is kept can be compared (the tests replay each other's draws)."""


def models() -> list[dict]:
    """Base and two experts, with random weights."""
    base = decoder.init(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return [
        base,
        *(
            jax.tree.map(lambda leaf: leaf + pairs.CHANGE * jax.random.normal(next(keys), leaf.shape), base)
            for _ in WEIGHTS
        ),
    ]


def as_tensors(params: dict) -> dict[str, torch.Tensor]:
    """A checkpoint's, of torch."""
    rules = FAMILIES[CONFIG.family].rules(CONFIG)
    return {name: torch.from_numpy(array) for name, array in convert.to_tensors(params, rules, CONFIG)}


def ours(method: str, trees: list[dict]) -> timing.Side:
    experts, weights = (trees[1:2], WEIGHTS[0]) if method == "slerp" else (trees[1:], list(WEIGHTS))
    return timing.Side(
        f"jaxpatch, {method}",
        lambda: jp.merge(method, trees[0], experts, weights=weights, **ASKED[method]),
        1,
        "merges",
    )


def theirs(method: str, dicts: list[dict[str, torch.Tensor]]) -> timing.Side:
    names = ("base", "one", "two")[: 2 if method == "slerp" else 3]
    several = dict(zip(names, dicts, strict=False))
    parameters: dict[str, Any] = {"t": WEIGHTS[0]} if method == "slerp" else {}
    if method != "slerp":
        parameters["weight"] = dict(zip(names[1:], WEIGHTS, strict=True))
        parameters |= {name: dict.fromkeys(names[1:], value) for name, value in ASKED[method].items()}
    if method == "linear":
        several.pop("base")

    def run() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return merge_state_dicts(
                several, method, parameters=parameters, base=None if method == "linear" else "base"
            )

    return timing.Side(f"mergekit, {method}", run, 1, "merges")


def same(method: str, base: dict[str, torch.Tensor], results: list[Any]) -> None:
    """Raises where the two merged to something else."""
    made, wanted = as_tensors(results[0]), results[1]
    for name, tensor in wanted.items():
        if method in RANDOM:
            kept = [float((each[name] != base[name]).float().mean()) for each in (made, wanted)]
            if tensor.numel() > 10_000 and abs(kept[0] - kept[1]) > 0.02:
                raise ValueError(f"{method}, {name}: ours changed {kept[0]:.3f} of the entries, mergekit {kept[1]:.3f}")
            continue
        apart = (made[name] - tensor).abs() / tensor.abs().max()
        if float((apart > (BY_NORMS if method == "slerp" else ALIKE)).float().mean()) > AT_THE_CUT * (
            method in TRIMMED
        ):
            raise ValueError(f"{method}, {name}: {float(apart.max()):.2g} apart")


def held(side: timing.Side) -> float:
    """The most of one run beside what was there, MiB."""
    before = peak_memory.settled()
    made = side.run()
    jax.block_until_ready(made)
    most = peak_memory.mebibytes("VmHWM") - before
    del made
    return most


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=5, help="rounds (5)")
    options.add_argument("--methods", nargs="+", default=list(ASKED), choices=list(ASKED), metavar="METHOD")
    chosen = options.parse_args()
    trees = models()
    dicts = [as_tensors(tree) for tree in trees]
    groups, figures, facts = {}, [], {}
    for method in chosen.methods:
        sides = [ours(method, trees), theirs(method, dicts)]
        timed = timing.in_turn(
            sides, repeats=chosen.repeats, check=lambda results, method=method: same(method, dicts[0], results)
        )
        groups[method] = [each._replace(result=None) for each in timed]
        figures.append(timing.ratio(f"{method}: time of ours / mergekit's", timed[0].seconds, timed[1].seconds))
        for side in sides:
            facts[f"{side.name}: most held beside the three models, MiB"] = held(side)
            print(list(facts.items())[-1], flush=True)
    report.publish(
        report.Report(
            name="merging",
            title="Merging two experts of SmolLM2's size, beside mergekit",
            shapes={"parameters": sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(trees[0])), "experts": 2},
            groups=groups,
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
