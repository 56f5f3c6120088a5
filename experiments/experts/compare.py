"""Merging three experts of SmolLM2-135M-Instruct, every two and all of them: methods of merging, and ways that know the mechanism.

    python experiments/experts/compare.py --out results/experts --docs docs/results

For each team of experts every contender (`contenders.py`) is tried by each of its few settings, on prompts to validate by: how far
its next tokens are from each expert's along that expert's answers, in nats, as a share of how far base is. The best of these is tested
once: what it answers to prompts nobody has seen is judged by rule, and so is what it does to answers that have nothing to do with the
tasks. A folder a team, a file a contender; what is there already is not done again, where it was made of the same adapters by the same
settings. With --docs these files are in DOCS/experts, too, and what is there is not done again, either, so that a run can be gone on
with elsewhere: to measure all anew, empty it. `compare_page.py` writes experts.md out of these files alone, whenever all contenders of
a team are done.
"""

import argparse
import hashlib
import itertools
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import compare_page
import examples
import jax
import jax.numpy as jnp
import numpy as np
from compare_page import place
from contenders import (
    BATCH,
    CONTENDERS,
    CONTROL,
    CONTROLS,
    KEPT,
    KINDS,
    LEARNED,
    OF_EACH,
    RATE,
    SCALES,
    SCORES,
    START,
    STEPS,
    Contender,
    Control,
    Maker,
    Settings,
    Team,
    gone,
)
from rich.console import Console

import jaxpatch as jp
from jaxpatch import atomic, experts, fetch
from jaxpatch.measuring import continuations, prompts
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.patching import components
from jaxpatch.reporting import manifest
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
ADAPTERS = {
    "constraints": HERE.parent / "six_constraints" / "adapter",
    "sums": HERE / "sums",
    "records": HERE / "records",
}
MAX_NEW = {"constraints": 96, "sums": 64, "records": 64}
EVERY = [*CONTENDERS, *CONTROLS]
SETTINGS = {"learn": 16, "validation": 6, "test": 16, "test_seed": 3, "neutral": 8, "cuts": 2, "steps": 4, "seeds": 2}
"""Prompts of each task to learn and to score by, to validate by, to test by, and the seed of these (those of seeds 1 and 2 were seen
while contenders were designed, and are not to judge them); prompts that ask for nothing; places at which an answer is cut, for scores;
steps of integrated gradients; seeds that a random contender is tested by."""


class Known(NamedTuple):
    """What all teams are judged by. of_base: how far base is from each expert along the answers to be validated by, nats a token. told:
    expert -> split -> its own answers. validate: expert -> how far a model is from it along those to be validated by. neutral: how far
    a model is from base where nothing is asked."""

    pairs: Mapping[str, jp.Pair]
    of_base: Mapping[str, float]
    told: Mapping[str, Mapping[str, continuations.Continuation]]
    validate: Mapping[str, Any]
    neutral: Any


def known(chosen: argparse.Namespace, console: Console) -> Known:
    """Experts, and what they answer: once for all teams."""
    loaded = {name: jp.load_pair(chosen.base or fetch.smollm2(), folder) for name, folder in ADAPTERS.items()}
    pairs = experts.with_one_base(loaded)
    told: dict[str, dict[str, continuations.Continuation]] = {}
    for name, pair in pairs.items():
        make, _ = examples.TASKS[name]
        told[name] = {}
        for split, wanted in (("train", "learn"), ("validation", "validation")):
            texts = [example.user for example in make(split, getattr(chosen, wanted), seed=7)]
            asked = jp.encode(pair, texts)
            told[name][split] = kept(
                cache(chosen) / f"{name}.{split}-{len(texts)}.npz",
                lambda pair=pair, asked=asked, name=name: jp.continuation(
                    pair, pair.special, asked, max_new=MAX_NEW[name]
                ),
            )
        console.print(f"{name}: answers are there")
    pair = next(iter(pairs.values()))
    plain = jp.encode(pair, prompts.prompts("anchor", chosen.neutral))
    neutral = kept(
        cache(chosen) / f"neutral-{chosen.neutral}.npz", lambda: jp.continuation(pair, pair.base, plain, max_new=64)
    )
    validate = {
        name: continuations.divergence_from(each, each.special, told[name]["validation"])
        for name, each in pairs.items()
    }
    of_base = {name: float(away(pair.base).kl.mean()) for name, away in validate.items()}
    return Known(pairs, of_base, told, validate, continuations.divergence_from(pair, pair.base, neutral))


def kept(file: Path, make) -> continuations.Continuation:
    """Answers from a file, or made and left there."""
    if not file.is_file():
        made = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **made._asdict())
        partial.replace(file)
    with np.load(file) as arrays:
        return continuations.Continuation(*(arrays[name] for name in continuations.Continuation._fields))


def kept_mask(file: Path, pair: jp.Pair, told: continuations.Continuation) -> Params:
    """A mask from a file, a bit an entry, or learned and left there."""
    own = paths.leaves(pair.base)
    if not file.is_file():
        made = jp.learn_mask(pair, told, density=KEPT, steps=STEPS, batch=BATCH)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **{path: np.packbits(leaf) for path, leaf in paths.leaves(made).items()})
        partial.replace(file)
    with np.load(file) as arrays:
        bits = {path: np.unpackbits(arrays[path], count=np.size(leaf)) for path, leaf in own.items()}
    return paths.with_leaves(pair.base, {path: bits[path].reshape(leaf.shape) > 0 for path, leaf in own.items()})


def cut(told: continuations.Continuation, cuts: int, seed: int = 0) -> Inputs:
    """Prompts with the beginning of their answers, to read the next token of: so scores are of all of an answer, not its first word."""
    draw, rows = np.random.default_rng(seed), []
    for tokens, start, end in zip(*told, strict=True):
        for at in draw.choice(np.arange(start, end), min(cuts, end - start), replace=False):
            rows.append(tokens[:at])
    lengths = np.array([len(row) for row in rows], np.int32)
    made = np.zeros((len(rows), lengths.max()), np.int32)
    for row, tokens in enumerate(rows):
        made[row, : len(tokens)] = tokens
    return Inputs(jnp.asarray(made), jnp.asarray(lengths))


def scored(chosen: argparse.Namespace, there: Known, console: Console) -> dict[str, tuple[Any, dict[str, Params]]]:
    """Of each expert its scores on its own task, and what its data say."""
    found = {}
    for name, pair in there.pairs.items():
        inputs = cut(there.told[name]["train"], chosen.cuts)
        file = cache(chosen) / f"{name}.scores-{chosen.learn}-{chosen.cuts}-{chosen.steps}.safetensors"
        if not file.is_file():
            began = time.monotonic()
            made = jp.score(pair, inputs, jp.NextToken("kl"), kinds=KINDS, method="integrated", steps=chosen.steps)
            jp.save_scores(made, file)
            console.print(f"{name}: scored, {time.monotonic() - began:.0f} s")
        statistics = {
            "fisher": jp.fisher(pair, pair.special, inputs, normalize=True),
            "moments": jp.moments(pair, pair.special, inputs),
            "mask": kept_mask(
                cache(chosen) / f"{name}.mask-{chosen.learn}-{STEPS}.npz", pair, there.told[name]["train"]
            ),
        }
        found[name] = jp.load_scores(file), statistics
    return found


def validated(there: Known, names: Sequence[str], params: Params) -> dict[str, float]:
    """KL from each expert along its answers, nats a token."""
    return {name: float(there.validate[name](params).kl.mean()) for name in names}


def tested(chosen: argparse.Namespace, there: Known, names: Sequence[str], params: Params) -> dict[str, Any]:
    """Verdicts on answers to each task's prompts, and what became of answers where nothing is asked."""
    verdicts = {}
    for name in names:
        make, is_right = examples.TASKS[name]
        asked_for = make("test", chosen.test, seed=chosen.test_seed)
        pair = there.pairs[name]
        asked = jp.encode(pair, [example.user for example in asked_for])
        texts = jp.generate(pair, params, asked, max_new=MAX_NEW[name])
        verdicts[name] = [bool(is_right(text, each.target)) for text, each in zip(texts, asked_for, strict=True)]
    beside = there.neutral(params)
    return {"verdicts": verdicts, "neutral KL": float(beside.kl.mean()), "neutral perplexity": beside.perplexity}


def taken(base: Params, specials: Sequence[Params], params: Params) -> dict[str, float]:
    """How much of the experts a merged model has: parameters that are not base's, of all; and the size of the merged change beside the
    mean size of the experts'."""
    own, made = paths.leaves(base), paths.leaves(params)
    differs = sum(int((np.asarray(own[path]) != np.asarray(made[path])).sum()) for path in own)

    def size(other: Params) -> float:
        leaves = paths.leaves(other)
        return float(
            np.sqrt(
                sum(float(jnp.sum((leaves[path] - own[path]) ** 2)) for path in own if leaves[path] is not own[path])
            )
        )

    return {
        "differs": differs / sum(np.size(leaf) for leaf in own.values()),
        "size": size(params) / float(np.mean([size(each) for each in specials])),
    }


def contend(chosen: argparse.Namespace, there: Known, names: Sequence[str], team: Team, method: str) -> dict[str, Any]:
    """All tries, the best of them, and its test."""
    of, sort = None, known_as(method).sort
    if method in CONTROLS:
        if (of := best_way(chosen, names, sort)) is None:
            raise SystemExit(
                f"{' + '.join(names)}: no contender of sort {sort} is done, to make a control of; name one, too."
            )
        contender, maker, sort = CONTENDERS[of], CONTROLS[method].changed(CONTENDERS[of].of)(team), CONTROL
    else:
        contender = CONTENDERS[method]
        maker = contender.of(team)
    tries, best = [], None
    for own in contender.tries:
        began = time.monotonic()
        whole = jax.block_until_ready(maker.make(own, 0))
        seconds = time.monotonic() - began

        def left(scale: float | None, own: Settings = own, whole: Params = whole, seconds: float = seconds) -> float:
            nonlocal best
            settings = own if scale is None else {**own, "scale": scale}
            params = at_scale(maker.start, whole, settings)
            kl = validated(there, names, params)
            share = float(np.mean([kl[name] / there.of_base[name] for name in names]))
            tries.append({"settings": settings, "kl": kl, "left": share, "seconds": seconds})
            if best is None or share < best[0]:
                best = share, settings, params
            return share

        if contender.begin is None:
            left(None)
        else:
            climb(left, contender.begin)
    assert best is not None
    _, settings, params = best
    tests = [tested(chosen, there, names, params)]
    for seed in range(1, chosen.seeds if known_as(method).is_random else 1):
        tests.append(
            tested(
                chosen, there, names, at_scale(maker.start, maker.make(settings_but_scale(settings), seed), settings)
            )
        )
    return {
        "method": method,
        "version": known_as(method).version,
        "sort": sort,
        "of": of,
        "tries": tries,
        "grid": grid(contender),
        "settings": settings,
        "tests": tests,
        **taken(team.base, team.experts, params),
        "gates": None if maker.gates is None else gated(team.base, maker, settings_but_scale(settings)),
    }


def climb(judge: Callable[[float], float], begin: float) -> None:
    """Scales from one on, to whichever neighbour is judged better (lower), until none is.

    >>> seen = []
    >>> climb(lambda scale: seen.append(scale) or abs(scale - 0.3), 0.5)
    >>> seen
    [0.4, 0.5, 0.7, 0.3, 0.2]
    """
    at, known = SCALES.index(begin), {}
    while True:
        for number in (at - 1, at, at + 1):
            if 0 <= number < len(SCALES) and number not in known:
                known[number] = judge(SCALES[number])
        best = min((number for number in (at, at - 1, at + 1) if number in known), key=known.__getitem__)
        if best == at:
            return
        at = best


def at_scale(start: Params, whole: Params, settings: Settings) -> Params:
    """What a maker made, or a part of the way there."""
    return gone(start, whole, settings["scale"]) if settings.get("scale", 1.0) != 1 else whole


def settings_but_scale(settings: Settings) -> dict[str, Any]:
    """What a maker is told."""
    return {name: value for name, value in settings.items() if name != "scale"}


def grid(contender: Contender) -> dict[str, list[float]]:
    """Of each setting all values that could have been chosen."""
    found: dict[str, list[float]] = {
        name: sorted({each[name] for each in contender.tries}) for name in contender.tries[0]
    }
    return found if contender.begin is None else {**found, "scale": list(SCALES)}


def gated(base: Params, maker: Maker, settings: Settings) -> list[float]:
    """Of each expert how much of the parameters of all components that have gates these take."""
    assert maker.gates is not None
    partition, shares = components.of_decoder(base), []
    shapes = {path: np.shape(leaf) for path, leaf in paths.leaves(base).items()}
    for gates in maker.gates(settings, 0):
        sizes = {kind: components.sizes(partition[kind], shapes) for kind in gates}
        whole = sum(int(size.sum()) for size in sizes.values())
        shares.append(sum(float((np.nan_to_num(gates[kind]) * size).sum()) for kind, size in sizes.items()) / whole)
    return shares


def known_as(method: str) -> Contender | Control:
    """What bears this name."""
    return (CONTENDERS | CONTROLS)[method]


def takes_part(method: str, count: int) -> bool:
    """Whether it merges so many experts."""
    return method in CONTROLS or CONTENDERS[method].size in (None, count)


def best_way(chosen: argparse.Namespace, names: Sequence[str], sort: str) -> str | None:
    """Of a sort the contender that validated best of those that are done; None where none is."""
    said = [
        compare_page.read(chosen.out / f"{place(names, method)}.json")
        for method, contender in CONTENDERS.items()
        if contender.sort == sort and recalled(chosen, place(names, method))
    ]
    if not said:
        return None
    return min(said, key=lambda each: compare_page.Entry(each["method"], each).validated)["method"]


def alone(chosen: argparse.Namespace, there: Known) -> dict[str, Any]:
    """Base and each expert on every task: what is normalised by. And of each expert the change of one kind of component alone."""
    names, found = list(there.pairs), {}
    pair = next(iter(there.pairs.values()))
    found["base"] = tested(chosen, there, names, pair.base) | {"kl": dict(there.of_base)}
    partition = components.of_decoder(pair.base)
    for name, each in there.pairs.items():
        found[name] = tested(chosen, there, names, each.special)
        for kind in KINDS:
            gates = {kind: np.ones(partition[kind].shape, np.float32)}
            found[f"{name}, {kind} alone"] = tested(chosen, there, [name], jp.patch(each.base, each.special, gates))
    return found


def keep(chosen: argparse.Namespace, name: str, said: Mapping[str, Any]) -> None:
    """A result, with what made it."""
    put(chosen, name, manifest.plain({**said, "asked": as_asked(chosen), "source": manifest.source(ROOT)}))


def recalled(chosen: argparse.Namespace, name: str) -> bool:
    """Whether a result is in one of the folders that was made by these settings. It is put in all of them."""
    for folder in folders(chosen):
        if not (file := folder / f"{name}.json").is_file():
            continue
        said = compare_page.read(file)
        method = said.get("method")
        version = known_as(method).version if method in EVERY else None
        if said["asked"] == as_asked(chosen) and said.get("version") == version and _is_of_the_best(chosen, name, said):
            put(chosen, name, said)
            return True
    return False


def _is_of_the_best(chosen: argparse.Namespace, name: str, said: Mapping[str, Any]) -> bool:
    """Whether a control is of the way that validates best by now; of all other results this is not asked."""
    if said.get("method") not in CONTROLS:
        return True
    team, sort = Path(name).parent.name.split("-"), CONTROLS[said["method"]].sort
    return said["of"] == best_way(chosen, team, sort)


def put(chosen: argparse.Namespace, name: str, said: Mapping[str, Any]) -> None:
    """JSON, in all folders."""
    for folder in folders(chosen):
        file = folder / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.text(file, json.dumps(said) + "\n", overwrite=True)


def folders(chosen: argparse.Namespace) -> list[Path]:
    """Where results are."""
    return [chosen.out, *([] if chosen.docs is None else [chosen.docs / "experts"])]


def as_asked(chosen: argparse.Namespace) -> dict[str, Any]:
    """By which settings, of what."""
    return {name: getattr(chosen, name) for name in SETTINGS} | {"of": made_of(chosen.base)}


def made_of(base: str | None) -> str:
    """What all results hang on beside settings: a hash of base's name, every adapter's files, and the constants of what is learned."""
    constants = [base, MAX_NEW, KINDS, SCALES, STEPS, RATE, START, BATCH, OF_EACH, KEPT]
    made = hashlib.sha256(json.dumps(constants).encode())
    for folder in ADAPTERS.values():
        for file in sorted(folder.iterdir()):
            if file.is_file() and file.suffix in (".json", ".safetensors"):
                made.update(hashlib.sha256(file.read_bytes()).digest())
    return made.hexdigest()[:12]


def cache(chosen: argparse.Namespace) -> Path:
    """Where answers, scores, masks and gates stay."""
    made = chosen.out / "kept" / as_asked(chosen)["of"]
    made.mkdir(parents=True, exist_ok=True)
    return made


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for the results of each team")
    options.add_argument("--docs", type=Path, help="folder for experts.md; none where not given")
    options.add_argument("--base", help="another base than SmolLM2-135M-Instruct, which is fetched")
    options.add_argument("--methods", nargs="+", default=EVERY, choices=EVERY, metavar="METHOD")
    for name, value in SETTINGS.items():
        options.add_argument(f"--{name.replace('_', '-')}", type=int, default=value, help=f"({value})")
    chosen = options.parse_args()
    numbers = {name: getattr(chosen, name) for name in SETTINGS}
    if faults := [f"--{name}: wanted at least 1; got {given}" for name, given in numbers.items() if given < 1]:
        options.error("; ".join(faults).replace("_", "-"))
    console, began = Console(), time.monotonic()
    command = shlex.join(["python", "experiments/experts/compare.py", *sys.argv[1:]])
    teams = [team for size in (3, 2) for team in itertools.combinations(ADAPTERS, size)]
    left = {team: to_do(chosen, team) for team in teams}
    if any(left.values()) or not recalled(chosen, "alone") or not recalled(chosen, "conflicts"):
        there = known(chosen, console)
        found = scored(chosen, there, console)
        if not recalled(chosen, "alone"):
            keep(chosen, "alone", alone(chosen, there) | {"before": {"seconds": time.monotonic() - began}})
            console.print(f"base and experts: {(time.monotonic() - began) / 60:.1f} min")
        if not recalled(chosen, "conflicts"):
            scores = {name: each for name, (each, _) in found.items()}
            made = {
                kind: jp.conflicts(there.pairs, scores, kind, compare_page.FIRST[kind]).to_frame().to_dict("records")
                for kind in KINDS
            }
            keep(chosen, "conflicts", made)
        for names, methods in left.items():
            team = Team(
                tuple(there.pairs[name] for name in names),
                tuple(there.told[name]["train"] for name in names),
                *zip(*(found[name] for name in names), strict=True),
                cache(chosen) / "-".join(names),
            )
            for method in methods:
                started = time.monotonic()
                said = contend(chosen, there, names, team, method)
                keep(chosen, place(names, method), said | {"seconds": time.monotonic() - started})
                minutes = (time.monotonic() - began) / 60
                console.print(f"{' + '.join(names)}, {method}: {minutes:.1f} min", markup=False)
            write_page(chosen, teams, command)
    write_page(chosen, teams, command)


def write_page(chosen: argparse.Namespace, teams: Sequence[Sequence[str]], command: str) -> None:
    """Of what is there by now; none without --docs."""
    if chosen.docs is not None:
        asked_for = {tuple(team): [each for each in EVERY if takes_part(each, len(team))] for team in teams}
        done = {
            team: [each for each in methods if recalled(chosen, place(team, each))]
            for team, methods in asked_for.items()
        }
        compare_page.write(chosen.out, chosen.docs, asked_for, done, command)


def to_do(chosen: argparse.Namespace, team: Sequence[str]) -> list[str]:
    """Of the methods that were asked for those that are left: controls, too, wherever the best might be another than theirs."""
    left = [
        method
        for method in chosen.methods
        if takes_part(method, len(team)) and not recalled(chosen, place(team, method))
    ]
    is_open = any(method in CONTENDERS and CONTENDERS[method].sort in (SCORES, LEARNED) for method in left)
    return [method for method in chosen.methods if method in left or (is_open and method in CONTROLS)]


if __name__ == "__main__":
    main()
