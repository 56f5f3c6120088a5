"""Weight patching of a vision transformer: does the ranking find the components into which a behaviour was trained?

    python experiments/vision/run.py --seeds 0 1 2 3 --out docs/results

Trains a pair for each seed (`planted.py`), verifies that the planted components carry the behaviour, ranks all heads and all neurons in
several ways, and writes `vision.md` and `vision.svg`. A pair whose truth is not verified is reported and not ranked. What to expect,
and how long it takes: docs/results/vision.md.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import matplotlib
import numpy as np
import planted
from matplotlib.figure import Figure

import jaxpatch as jp
from jaxpatch.patching import components

matplotlib.rcParams["svg.hashsalt"] = "vision"
KINDS = ("head", "neuron")
NUM_IMAGES = 48
NUM_RANDOM = 500
RANKINGS = ("exact", "exact, knockout", "integrated", "first order", "largest change", "random")


TRUTHS = (
    "seed",
    "block of S",
    "base",
    "special",
    "S in base",
    "S out",
    "recovered: S in base",
    "S out",
    "S's heads in base",
)
TRUTHS += ("S's neurons in base", "plain", "framed", "heads' change", "neurons' change", "verified")
"""Columns of the table of truths."""


def auroc(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Probability that a true one scores above another; ties count half.

    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    above = scores[is_true][:, None] - scores[~is_true][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def average_precision(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Mean, over the true ones, of the share of true ones among all that score as high.

    >>> round(average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])), 4)
    0.8333
    """
    found = is_true[np.argsort(-scores, kind="stable")]
    return float(np.mean((np.cumsum(found) / np.arange(1, len(found) + 1))[found]))


def precision(scores: np.ndarray, is_true: np.ndarray) -> float:
    """Share of true ones among the best, as many as there are.

    >>> precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True]))
    0.5
    """
    return float(is_true[np.argsort(-scores, kind="stable")[: is_true.sum()]].mean())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "AUROC": auroc,
    "average precision": average_precision,
    "precision@|S|": precision,
}


def rankings(made: planted.Planted, images: jax.Array) -> tuple[dict[str, Mapping[str, np.ndarray]], jp.Scores]:
    """Name -> kind -> a score for each component; and the exact scores, whole."""

    def scored(**options) -> jp.Scores:
        return jp.score(made.pair, images, made.read, kinds=KINDS, **options)

    exact = scored()
    base, special, partition = made.pair.base, made.pair.special, made.pair.partition
    return {
        "exact": exact.values,
        "exact, knockout": scored(mode="knockout").values,
        "integrated": scored(method="integrated").values,
        "first order": scored(method="first_order").values,
        "largest change": {k: np.asarray(components.delta_norms(base, special, partition[k])) for k in KINDS},
    }, exact


def measured(found: Mapping[str, Mapping[str, np.ndarray]], made: planted.Planted, seed: int) -> dict[str, list[float]]:
    """Ranking -> the metrics of heads, and of neurons, among those that changed. Random ones are averaged."""
    draw = np.random.default_rng(seed)
    changed = {kind: made.planted[kind] + made.decoys[kind] > 0 for kind in KINDS}
    true = {kind: made.planted[kind][changed[kind]] > 0 for kind in KINDS}

    def row(of: Callable[[str], np.ndarray]) -> list[float]:
        return [metric(of(kind), true[kind]) for kind in KINDS for metric in METRICS.values()]

    rows = {name: row(lambda kind, scores=scores: scores[kind][changed[kind]]) for name, scores in found.items()}
    by_chance = [row(lambda kind: draw.random(true[kind].size)) for _ in range(NUM_RANDOM)]
    return rows | {"random": np.mean(by_chance, axis=0).tolist()}


def one(seed: int) -> dict:
    """All that is said of one pair."""
    began = time.perf_counter()
    block = seed % 2
    made = planted.plant(seed, block=block)
    images = planted.draw(jax.random.key(seed + 1000), NUM_IMAGES, "marked").pixels
    said = planted.truth(made, images)
    norms = {
        k: np.asarray(components.delta_norms(made.pair.base, made.pair.special, made.pair.partition[k])) for k in KINDS
    }
    sizes = {k: [float(np.median(norms[k][gates[k] > 0])) for gates in (made.planted, made.decoys)] for k in KINDS}
    out = {"seed": seed, "block": block, "truth": said, "sizes": sizes}
    if said.is_verified:
        found, exact = rankings(made, images)
        out["metrics"] = measured(found, made, seed)
        out["exact"] = exact
        out["made"] = made
        held_out = planted.draw(jax.random.key(seed + 2000), NUM_IMAGES, "marked").pixels
        out["curves"] = jp.validate(made.pair, held_out, made.read, exact, seed=seed)
    return out | {"seconds": time.perf_counter() - began}


def singles_of(result: dict, kind: str) -> list[str]:
    """Exact scores of single components: their sum over the planted, and the largest in size of a decoy and of an unchanged one."""
    values, made = result["exact"].values[kind], result["made"]
    decoys, unchanged = made.decoys[kind] > 0, made.planted[kind] + made.decoys[kind] == 0
    others = (np.abs(values[which]).max(initial=0.0) for which in (decoys, unchanged))
    return [f"{values[made.planted[kind] > 0].sum():.0%}", *(f"{value:.1e}" for value in others)]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def page(results: Sequence[dict], command: str, seconds: float) -> str:
    """The whole page."""
    verified = [result for result in results if result["truth"].is_verified]
    failed = [str(result["seed"]) for result in results if not result["truth"].is_verified]
    truths = [
        [
            r["seed"],
            r["block"],
            *(f"{x:.0%}" for x in r["truth"]),
            *("{:.2g} / {:.2g}".format(*r["sizes"][k]) for k in KINDS),
            "yes" if r["truth"].is_verified else "**no**",
        ]
        for r in results
    ]
    mean = {name: np.mean([r["metrics"][name] for r in verified], axis=0) for name in RANKINGS}
    columns = [f"{kind}s: {metric}" for kind in KINDS for metric in METRICS]
    means = [[name, *(f"{x:.2f}" for x in mean[name])] for name in RANKINGS]
    singles = [[r["seed"], name, *(f"{x:.2f}" for x in r["metrics"][name])] for r in verified for name in RANKINGS]
    alone = [[r["seed"], *(cell for kind in KINDS for cell in singles_of(r, kind))] for r in verified]
    counts = ", ".join(
        f"{planted.PLANTED[kind]} of {planted.BLOCKS * width} {kind}s"
        for kind, width in zip(KINDS, (planted.HEADS, planted.NEURONS), strict=True)
    )
    return f"""# A vision transformer, with planted truth

```
{command}
```

{seconds / 60:.0f} minutes on {_machine()}, jax {jax.__version__}, float32. A Flax (linen) vision transformer of {
        planted.BLOCKS
    } blocks, width
{planted.WIDTH}, {planted.HEADS} heads and {planted.NEURONS} neurons a block, on generated images of {planted.SIDE} x {
        planted.SIDE
    }
pixels. The base names shapes. Special was taught two more behaviours: to call images with a checkered corner *marked*, into the planted
components S ({
        counts
    }, all in one block), and to call images with a frame *framed*, into three times as many decoys in any block. Nothing
else changed. The question put to each ranking is who carries *marked*. Read-out: the pooled state of {
        NUM_IMAGES
    } new marked images along
the direction in which special's state differs between marked and plain images.

## The truth, verified

Shares of marked images that are called *marked*, and of the read-out's gap that is recovered, with S of special in base ("S in base")
and with base's S in special ("S out"); shares of plain and framed images that special answers rightly; the median norm of the
change of a planted component / of a decoy.

{table(TRUTHS, truths)}

{"Not verified, and not ranked: seed " + ", ".join(failed) + "." if failed else "All pairs are verified."}

## Rankings

Among the components that changed, S and the decoys: no other can differ. |S| is {planted.PLANTED["head"]} of
{planted.PLANTED["head"] + planted.DECOYS["head"]} heads and {planted.PLANTED["neuron"]} of {
        planted.PLANTED["neuron"] + planted.DECOYS["neuron"]
    }
neurons. Means over the verified seeds, then each seed:

{table(["ranking", *columns], means)}

{table(["seed", "ranking", *columns], singles)}

Exact scores of single components: their sum over S, and the largest in size of a decoy and of a component that did not change
(rounding alone).

{table(["seed", *(f"{kind}s: {what}" for kind in KINDS for what in ("sum over S", "decoy", "unchanged"))], alone)}

What single patches cannot see: S learnt as a whole. Compare the columns of the first table: where S's heads alone and S's neurons
alone recover less in sum than S does, each kind adds more once the other is there, and a single planted component can do little or
nothing by itself. Then its exact score is small for a good reason, and lies among those of the decoys. Where such components matter,
ask all three: restoration and knockout, which patch into different models, and the integrated score, in which all gates move together.

## Curves

The exact ranking's first k components, special's into base and base's into special, on {
        NUM_IMAGES
    } other marked images.

![Restoration and knockout of the exact ranking, against largest change and random](vision.svg)
"""


def _machine() -> str:
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"


def drawn(results: Sequence[dict]) -> Figure:
    """Restoration above, knockout below, a column a seed."""
    verified = [result for result in results if result["truth"].is_verified]
    figure = Figure(figsize=(2.6 * len(verified), 4.4), layout="constrained")
    panels = figure.subplots(2, len(verified), sharex=True, sharey="row", squeeze=False)
    size = sum(planted.PLANTED.values())
    for column, result in zip(panels.T, verified, strict=True):
        for panel, mode in zip(column, ("restoration", "knockout"), strict=True):
            for curve in result["curves"]:
                if curve.mode == mode:
                    panel.plot(curve.ks, curve.recovery, marker=".", linewidth=1, label=curve.name)
            panel.axvline(size, color="0.8", linewidth=1)
            panel.set_xscale("log")
            panel.set_title(f"{mode}, seed {result['seed']}", fontsize=8)
            panel.tick_params(labelsize=7)
    panels[0, 0].set_ylabel("share of the gap", fontsize=8)
    panels[1, 0].set_ylabel("share of the gap left", fontsize=8)
    panels[1, 0].set_xlabel(f"components (line: |S| = {size})", fontsize=8)
    panels[0, 0].legend(fontsize=7)
    return figure


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    options.add_argument("--out", type=Path, required=True, help="folder for vision.md and vision.svg")
    asked = options.parse_args()
    began, results = time.perf_counter(), []
    for seed in asked.seeds:
        results.append(one(seed))
        said = results[-1]["truth"]
        print(
            f"seed {seed}: {'verified' if said.is_verified else 'NOT verified'}, {results[-1]['seconds']:.0f} s",
            flush=True,
        )
    if not any(result["truth"].is_verified for result in results):
        raise SystemExit("no pair is verified: nothing to rank.")
    asked.out.mkdir(parents=True, exist_ok=True)
    command = f"python experiments/vision/run.py --seeds {' '.join(map(str, asked.seeds))} --out {asked.out}"
    drawn(results).savefig(asked.out / "vision.svg", metadata={"Date": None})
    (asked.out / "vision.md").write_text(page(results, command, time.perf_counter() - began), encoding="utf-8")


if __name__ == "__main__":
    main()
