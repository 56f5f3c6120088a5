"""The board: every contestant on every family of planted pairs, and a page of what finds what.

    python -m benchmarks.planted.board --out results/planted --docs docs/results

Pairs are made first, and stay in OUT/pairs/FAMILY/SEED as `door` describes them, whether they pass their checks or not; then each
contestant's predictions in OUT/predictions/METHOD/FAMILY-SEED.json, which is also where predictions of others are looked for; and what
the library promises beside a ranking, in OUT/promises/FAMILY-SEED.json. What is there already is not made again. Without --docs no page
is written.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks.planted import door, page, pairs, promises, shelf
from benchmarks.planted.contestants import CONTESTANTS
from benchmarks.planted.families import FAMILIES
from jaxpatch import atomic
from jaxpatch.reporting import manifest

ROOT = Path(__file__).resolve().parents[2]


def made(out: Path, names: Sequence[str], seeds: Sequence[int], console: Console) -> None:
    """All pairs, each in its folder."""
    for seed in seeds:
        for name in names:
            if not (place := folder(out, name, seed)).is_dir():
                began = time.monotonic()
                planted = pairs.plant(name, seed)
                shelf.put(planted, place)
                failed = "; ".join(f"{c.name} {c.value:.2f} ({c.wanted})" for c in planted.checks if not c.is_passed)
                said = f"not used: {failed}" if failed else "verified"
                console.print(f"{name}, seed {seed}: {said}, {time.monotonic() - began:.0f} s", markup=False)


def asked(out: Path, names: Sequence[str], seeds: Sequence[int], methods: Sequence[str], console: Console) -> None:
    """All predictions about verified pairs, each in its file."""
    for method in methods:
        for name, seed in verified(out, names, seeds):
            if (file := prediction(out, method, name, seed)).is_file():
                continue
            began = time.monotonic()
            answer = CONTESTANTS[method](shelf.get(folder(out, name, seed), seed))
            said = {
                "method": method,
                "cost": answer.cost,
                "values": answer.values,
                "seconds": time.monotonic() - began,
                "source": manifest.source(ROOT),
            }
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic.text(file, json.dumps(manifest.plain(said)) + "\n")
            console.print(f"{method}: {name}, seed {seed}, {time.monotonic() - began:.1f} s", markup=False)


def promised(out: Path, names: Sequence[str], seeds: Sequence[int], console: Console) -> None:
    """What the library promises, held against every verified pair, each in its file."""
    for name, seed in verified(out, names, seeds):
        if (file := promise(out, name, seed)).is_file():
            continue
        began, place = time.monotonic(), folder(out, name, seed)
        said = promises.kept(shelf.get(place, seed), *shelf.beside(place))
        said |= {"family": name, "seed": seed, "source": manifest.source(ROOT)}
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic.text(file, json.dumps(manifest.plain(said)) + "\n")
        console.print(f"promises: {name}, seed {seed}, {time.monotonic() - began:.1f} s", markup=False)


def held(out: Path, names: Sequence[str], seeds: Sequence[int]) -> list[dict]:
    """What `promised` left."""
    files = [promise(out, name, seed) for name, seed in verified(out, names, seeds)]
    return [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]


def rows(out: Path, names: Sequence[str], seeds: Sequence[int]) -> Iterator[dict]:
    """A row for all predictions that there are about verified pairs, whoever made them."""
    for name, seed in verified(out, names, seeds):
        for file in sorted((out / "predictions").glob(f"*/{slug(name)}-{seed}.json")):
            yield door.row(folder(out, name, seed), json.loads(file.read_text(encoding="utf-8")))


def verified(out: Path, names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Families and seeds whose pairs are there and passed their checks."""
    return [
        (name, seed)
        for name in names
        for seed in seeds
        if (place := folder(out, name, seed)).is_dir() and shelf.is_verified(place)
    ]


def firsts(out: Path, seeds: Sequence[int]) -> dict[tuple[str, str], str]:
    """What methods put first in the page's examples, where these pairs and predictions are there."""
    made = {}
    for family, method, _ in page.EXAMPLES:
        for name, seed in verified(out, [family], seeds)[:1]:
            if (file := prediction(out, method, name, seed)).is_file():
                said = json.loads(file.read_text(encoding="utf-8"))["values"]
                made[family, method] = page.first(said, door.marked(folder(out, name, seed)))
    return made


def slug(name: str) -> str:
    """A family's name in those of files.

    >>> slug("many heads' keys")
    'many-heads-keys'
    """
    return name.replace("'", "").replace(" ", "-")


def folder(out: Path, name: str, seed: int) -> Path:
    """Where a pair is."""
    return out / "pairs" / slug(name) / str(seed)


def promise(out: Path, name: str, seed: int) -> Path:
    """Where it is said what held of a pair."""
    return out / "promises" / f"{slug(name)}-{seed}.json"


def prediction(out: Path, method: str, name: str, seed: int) -> Path:
    """Where a contestant's predictions about a pair are."""
    return out / "predictions" / slug(method.replace(",", "")) / f"{slug(name)}-{seed}.json"


def main(words: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for pairs and predictions")
    options.add_argument("--docs", type=Path, help="folder for planted.md and its figure; none where not given")
    options.add_argument("--seeds", type=int, default=20, help="pairs of each family, before those that fail (20)")
    options.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    options.add_argument("--methods", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS), metavar="METHOD")
    chosen = options.parse_args(words)
    if chosen.seeds < 1:
        options.error(f"--seeds: wanted at least 1; got {chosen.seeds}")
    console, seeds = Console(), np.arange(chosen.seeds).tolist()
    made(chosen.out, chosen.families, seeds, console)
    asked(chosen.out, chosen.families, seeds, chosen.methods, console)
    promised(chosen.out, chosen.families, seeds, console)
    if chosen.docs is not None:
        found = list(rows(chosen.out, chosen.families, seeds))
        command = shlex.join(["python", "-m", "benchmarks.planted.board", *(sys.argv[1:] if words is None else words)])
        if not found:
            options.exit(1, "no pair passed its checks, so there is no page to write.\n")
        sheet = page.Sheet(
            command,
            found,
            held(chosen.out, chosen.families, seeds),
            {name: _used(chosen.out, name, seeds) for name in chosen.families},
            firsts(chosen.out, seeds),
        )
        page.write(chosen.docs, sheet)
        console.print(f"page: {chosen.docs / 'planted.md'}")


def _used(out: Path, name: str, seeds: Sequence[int]) -> tuple[int, int]:
    """Pairs of a family that were verified, and that were made."""
    there = [place for seed in seeds if (place := folder(out, name, seed)).is_dir()]
    return sum(map(shelf.is_verified, there)), len(there)


if __name__ == "__main__":
    main()
