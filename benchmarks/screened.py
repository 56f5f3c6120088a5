"""The screened top k against the truth: how many replacements, how long, and how many of the true best it finds.

    python -m benchmarks.screened                                    # the real pair; truth: three whole layers
    python -m benchmarks.screened --layers all --truth build/truth.npz   # truth: every neuron; half an hour on 2 cores, resumable
    python -m benchmarks.screened --pair small --scale 8             # a reduced pair, exhaustively; the change times 8

Truth is exact patching of every neuron of some layers. For each of many seeds the screen then runs on those layers alone, with its
replacements looked up. `--scale` enlarges special's difference from base, until the cheap score is poor. The whole screen, on all
layers and with real replacements, is timed in turn with the loop that people write in PyTorch, which would have to take every neuron.
"""

import argparse
import dataclasses
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from benchmarks import exact, pairs, report, timing, torch_sweep
from jaxpatch.measuring import effect, instrument, read_outs, sweep
from jaxpatch.scoring import METHODS, agreement, normalise
from jaxpatch.scoring.method import Answer, Options, Screening

KIND = "neuron"
SEEDS = 20
SOME = (0.35, 0.65, 0.95)
"""Where in the depth up to the anchor the three layers lie."""
TOPS = (10, 100)


def scaled(case: pairs.Case, scale: float) -> pairs.Case:
    """Special's difference from base, times `scale`."""
    if scale == 1:
        return case

    @jax.jit
    def moved(base, special):
        return jax.tree.map(lambda a, b: (a + scale * (b - a)).astype(a.dtype), base, special)

    special = moved(case.pair.base, case.pair.special)
    pair = dataclasses.replace(case.pair, special=special)
    return case._replace(pair=pair, name=f"{case.name}, change x {scale:g}")


def pointed(case: pairs.Case) -> pairs.Case:
    """With an anchor that points from base to special, as a random direction does not."""
    layer = int(case.anchor.layer)
    low, high = (
        np.asarray(
            effect.every_last_state(case.config, effect.unpatched(params), case.prompts, layer + 1)[-1], np.float64
        )
        for params in (case.pair.base, case.pair.special)
    )
    towards = (high - low).mean(axis=0)
    direction = np.asarray(towards / np.linalg.norm(towards), np.float32)
    return case._replace(anchor=read_outs.Anchor(direction=direction, layer=layer))


def truth_of(tool: instrument.Instrument, layers: list[int], file: Path | None) -> np.ndarray:
    """Exact effects of every neuron of some layers, 0 elsewhere: [X, L, F]. Kept in a file, layer by layer, if one is given."""
    found = {}
    if file is not None and file.exists():
        found = {int(name): effects for name, effects in np.load(file).items()}
    out = np.zeros((len(tool.base), *tool.partition[KIND].shape), tool.base.dtype)
    for layer in layers:
        if layer not in found:
            indices = np.stack([np.full(out.shape[2], layer), np.arange(out.shape[2])], axis=1)
            found[layer] = exact.ours(tool, KIND, indices).T
            print(f"truth of layer {layer} of {layers}", flush=True)
            if file is not None:
                partial = file.with_suffix(".partial.npz")
                np.savez(partial, **{str(number): effects for number, effects in found.items()})
                partial.replace(file)
        out[:, layer] = found[layer]
    return out


def looked_up(tool: instrument.Instrument, layers: list[int], truth: np.ndarray) -> instrument.Instrument:
    """The instrument of these layers alone, whose replacements are known already, and whose cheap pass is done once."""
    reach = np.zeros(tool.partition[KIND].shape, bool)
    reach[layers] = True

    def lookup(kind: str, indices: np.ndarray, progress: sweep.Progress) -> np.ndarray:
        del kind, progress
        return truth[(slice(None), *indices.T)].T

    cheap = tool.cheap((KIND,), sweep.silent)
    return tool._replace(seen=({KIND: reach},), exact=lookup, cheap=lambda kinds, progress: cheap)


def screen(tool: instrument.Instrument, top: int, alpha: float, seed: int) -> tuple[Answer, Screening]:
    """One screen. Its warning is not shown: whether it came is in `is_trusted`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = METHODS["screened"](tool, (KIND,), Options(top=top, alpha=alpha, seed=seed))[KIND]
    assert answer.screening is not None
    return answer, answer.screening


def best(tool: instrument.Instrument, effects: np.ndarray, top: int) -> set[int]:
    """The components with the highest E_w among those in reach."""
    values = _scores(tool, effects)
    return set(np.argsort(-np.where(tool.reach[KIND].ravel(), values, -np.inf), kind="stable")[:top].tolist())


def _scores(tool: instrument.Instrument, effects: np.ndarray) -> np.ndarray:
    is_kept = normalise.kept_inputs(tool.gap, tool.base)
    return normalise.normalised(effects, tool.gap, is_kept, "mean_of_ratios").ravel()


def against_truth(tool: instrument.Instrument, truth: np.ndarray, top: int, alpha: float) -> list[timing.Figure]:
    """Recall and replacements over seeds."""
    wanted, population = best(tool, truth, top), int(tool.reach[KIND].sum())
    recall, share, is_trusted = [], [], []
    for seed in range(SEEDS):
        answer, said = screen(tool, top, alpha, seed)
        recall.append(len(wanted & best(tool, answer.effects, top)) / top)
        share.append(said.replaced.sum() / population)
        is_trusted.append(float(said.is_trusted))
    label = f"top {top} of {population:,}"
    return [
        timing.Figure(f"{label}: recall, mean over {SEEDS} seeds", [float(np.mean(recall))]),
        timing.Figure(f"{label}: recall, worst seed", [min(recall)]),
        timing.Figure(f"{label}: share replaced", share),
        timing.Figure(f"{label}: share of seeds in which the cheap score is trusted", [float(np.mean(is_trusted))]),
    ]


def whole(case: pairs.Case, top: int, alpha: float) -> tuple[timing.Side, Callable[[], dict[str, float]]]:
    """The screen of every neuron with real replacements, from the pair to the answer, and what it said last."""
    said: dict[str, float] = {}

    def run() -> None:
        tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
        _, screening = screen(tool, top, alpha, 0)
        replaced = int(screening.replaced.sum())
        said.update(
            {
                f"neurons replaced for the top {top}": replaced,
                f"of all {screening.replaced.size} neurons": replaced / screening.replaced.size,
                "threshold (E_w of the last of the top)": screening.threshold,
                "bound (no unseen one is above, at its level)": screening.bound,
            }
        )

    return timing.Side(f"screened top {top} of every neuron", run, 1, "screens"), lambda: said


def loop(case: pairs.Case, patches: int, repeats: int, seed: int) -> timing.Side:
    """The loop people write in PyTorch; each run takes other neurons, in all about `patches` of them."""
    theirs = torch_sweep.of_case(case)
    read = torch_sweep.loop_people_write(theirs)
    base, each = torch_sweep.base_read(read), -(-patches // repeats)
    swaps = torch_sweep.swaps(case, theirs, KIND, case.some(KIND, each * (repeats + 1), seed))
    parts = itertools.cycle([swaps[start : start + each] for start in range(0, each * (repeats + 1), each)])
    return timing.Side("(a) torch, the loop people write", lambda: torch_sweep.effects(read, base, next(parts)), each)


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--layers", nargs="+", default=None, help="of the truth: numbers, or 'all' up to the anchor")
    options.add_argument("--truth", type=Path, default=None, help="file to keep the truth in, and to go on from")
    options.add_argument("--scale", type=float, default=1.0, help="of special's difference from base")
    options.add_argument("--alpha", type=float, default=0.05)
    options.add_argument(
        "--patches", type=int, default=200, help="of the PyTorch loop, to tell how long all would take it"
    )
    chosen: argparse.Namespace = options.parse_args()
    case = scaled(pairs.PAIRS[chosen.pair](chosen.prompts), chosen.scale)
    case = case if chosen.pair == "real" else pointed(case)
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
    depth = int(case.anchor.layer) + 1
    layers = [int(share * depth) for share in SOME] if chosen.layers is None else chosen.layers
    layers = list(range(depth)) if chosen.pair == "small" or layers == ["all"] else [int(layer) for layer in layers]
    truth = truth_of(tool, layers, chosen.truth)
    known = looked_up(tool, layers, truth)
    figures = [figure for top in TOPS for figure in against_truth(known, truth, top, chosen.alpha)]
    in_reach = known.reach[KIND].ravel()
    cheap = known.cheap((KIND,), sweep.silent)[KIND].linear
    agreed = agreement.agreement(_scores(known, cheap)[in_reach], _scores(known, truth)[in_reach])
    side, said = whole(case, max(TOPS), chosen.alpha)
    timed = timing.in_turn([side, loop(case, chosen.patches, chosen.repeats, chosen.seed)], repeats=chosen.repeats)
    every = len(case.all(KIND))
    exhausted = [every / rate for rate in timed[1].rates]
    figures += [
        timing.Figure(
            f"hours of loop (a) for all {every:,} neurons (projected)", [seconds / 3600 for seconds in exhausted]
        ),
        timing.ratio("loop (a) exhausted (projected) / screened, time", exhausted, timed[0].seconds),
    ]
    facts = {f"layers with truth ({', '.join(map(str, layers))})": len(layers), "alpha": chosen.alpha} | said()
    facts |= {f"local_linear against exact, {name}": value for name, value in agreed._asdict().items()}
    suffix = f"-x{chosen.scale:g}" if chosen.scale != 1 else ""
    report.publish(
        report.Report(
            name=f"screened-{chosen.pair}-{chosen.prompts}{suffix}" + ("-all" if len(layers) == depth else ""),
            title="Screened top k against the truth",
            shapes=case.shapes,
            groups={"every neuron up to the anchor": timed},
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
