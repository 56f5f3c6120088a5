"""The board: every contestant on every family of planted pairs, and a page of what finds what.

    python -m benchmarks.planted.board --out results/planted --docs docs/results --processes 2

A pair is made first, and stays in OUT/pairs/FAMILY/SEED as `door` describes it, whether it passes its checks or not; then each
contestant's predictions in OUT/predictions/METHOD/FAMILY-SEED.json, which is also where predictions of others are looked for; and what
the library promises beside a ranking, in OUT/promises/FAMILY-SEED.json. What is there already is not made again. With --docs, what was
measured goes to DOCS/planted.jsonl, a line a pair, whenever a seed is done, and the page is made of these: a pair that has its line
there, with all methods that are asked for, and is not in OUT is not made again, either, so that a run can be gone on with elsewhere;
each row keeps the commit that measured it. To measure all anew, name folders that are empty. Programs that were compiled are in
OUT/compiled, and are not compiled again.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import sys
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from concurrent import futures
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from benchmarks.planted import door, page, pairs, promises, records, shelf
from benchmarks.planted.contestants import CONTESTANTS
from benchmarks.planted.families import FAMILIES
from jaxpatch import atomic
from jaxpatch.reporting import manifest

ROOT = Path(__file__).resolve().parents[2]
CODE = "jaxpatch", "benchmarks"
"""Folders whose changes make other numbers."""


def made(out: Path, name: str, seed: int, methods: Sequence[str]) -> None:
    """A pair, predictions about it, and what is promised, each where it belongs; of a pair that failed, the pair alone."""
    console, began, place = Console(), time.monotonic(), folder(out, name, seed)

    def say(words: str) -> None:
        console.print(f"{name}, seed {seed}: {words}, {time.monotonic() - began:.0f} s", markup=False)

    if not place.is_dir():
        shelf.put(pairs.plant(name, seed), place)
        failed = shelf.failed(place)
        say(f"not used: {'; '.join(failed)}" if failed else "verified")
    if shelf.recipe(place) != (now := FAMILIES[name].recipe):
        raise ValueError(
            f"{place}: it was planted by recipe {shelf.recipe(place)}, and this is {now}; name an empty --out."
        )
    if shelf.failed(place):
        return
    problem = shelf.get(place)
    for method in methods:
        if not (file := prediction(out, method, name, seed)).is_file():
            asked_at = time.monotonic()
            answer = CONTESTANTS[method](problem)
            digest = door.problem(place).digest
            said = {"method": method, "cost": answer.cost, "pair": digest, "values": answer.values}
            _write(file, said | {"seconds": time.monotonic() - asked_at})
    if not (file := promise(out, name, seed)).is_file():
        said = promises.kept(problem, *shelf.beside(place))
        _write(file, {"family": name, "seed": seed} | said)
        say("done")


def measured(out: Path, name: str, seed: int) -> records.Record:
    """What was measured of a pair, whoever made the predictions."""
    place = folder(out, name, seed)
    held = _read(file) if (file := promise(out, name, seed)).is_file() else None
    made = records.Record(
        name, seed, shelf.recipe(place), door.problem(place).digest, _commit(None if held is None else held["source"])
    )
    if failed := shelf.failed(place):
        return made._replace(failed=failed)
    known, rows, first = door.marked(place), {}, {}
    for file in sorted((out / "predictions").glob(f"*/{slug(name)}-{seed}.json")):
        try:
            said = door.predictions_in(file)
            row = door.row(place, said)
            refuse_impostor(row["method"], file, rows)
        except ValueError as error:
            Console(stderr=True).print(f"{file} is left out: {error}", markup=False, soft_wrap=True)
            continue
        rows[row["method"]] = row | {"commit": _commit(said.get("source"))}
        if row["average_precision"] < 1:
            first[row["method"]] = page.first(said["values"], known)
    return made._replace(rows=tuple(rows.values()), held=held, first=first)


def refuse_impostor(method: str, file: Path, others: Container[str]) -> None:
    """Raises ValueError where predictions bear a contestant's name and are not in its folder, or one that others bear."""
    same = [name for name in (*CONTESTANTS, *others) if _plain(name) == _plain(method)]
    if method in others or (same and file.parent.name != method_slug(same[0])):
        raise ValueError(f"method: {method!r} is another's name; give yours one of its own.")


def _plain(method: str) -> str:
    """A name as it is taken for another's."""
    return re.sub(r"\W+", "", method).casefold()


def _commit(source: Any) -> str | None:
    """Of the code that said something; with a + where it had changed since. None where that is not known."""
    if not isinstance(source, dict) or not isinstance(commit := source.get("commit"), str):
        return None
    return commit + "+" * bool(source.get("is_dirty"))


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
    return out / "predictions" / method_slug(method) / f"{slug(name)}-{seed}.json"


def method_slug(method: str) -> str:
    """A method's name in that of its folder.

    >>> method_slug("attribution, repaired")
    'attribution-repaired'
    """
    return slug(method.replace(",", ""))


def main(words: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="folder for pairs and predictions")
    options.add_argument("--docs", type=Path, help="folder for planted.md, .svg and .jsonl; none where not given")
    options.add_argument("--seeds", type=int, default=20, help="pairs of each family, before those that fail (20)")
    options.add_argument("--processes", type=int, default=1, help="seeds at a time, each on a core of its own (1)")
    options.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), metavar="FAMILY")
    options.add_argument("--methods", nargs="+", default=list(CONTESTANTS), choices=list(CONTESTANTS), metavar="METHOD")
    chosen = options.parse_args(words)
    faults = [
        f"--{name}: wanted at least 1; got {given}"
        for name in ("seeds", "processes")
        if (given := getattr(chosen, name)) < 1
    ]
    if faults:
        options.error("; ".join(faults))
    file = None if chosen.docs is None else chosen.docs / "planted.jsonl"
    known = {} if file is None else records.read(file)
    asked = {(name, seed) for name in chosen.families for seed in range(chosen.seeds)}
    if old := {key for key in asked & known.keys() if known[key].recipe != FAMILIES[key[0]].recipe}:
        Console().print(f"{len(old)} lines of {file} are of another recipe than is planted now, and are made anew")
        known = {key: record for key, record in known.items() if key not in old}
    left = {
        seed: [
            name
            for name in chosen.families
            if folder(chosen.out, name, seed).is_dir() or not _has(known.get((name, seed)), chosen.methods)
        ]
        for seed in range(chosen.seeds)
    }
    for seed in _in_turn(chosen.out, left, chosen.methods, chosen.processes):
        for each in (measured(chosen.out, name, seed) for name in left[seed]):
            known[each.key] = records.merged(known.get(each.key), each)
        if file is not None:
            records.write(file, known.values())
    if chosen.docs is None:
        return
    shown = [known[name, seed] for name in chosen.families for seed in range(chosen.seeds)]
    if not any(record.rows for record in shown):
        options.exit(1, "no pair passed its checks, so there is no page to write.\n")
    command = shlex.join(["python", "-m", "benchmarks.planted.board", *(sys.argv[1:] if words is None else words)])
    page.write(chosen.docs, command, shown)
    Console().print(f"page: {chosen.docs / 'planted.md'}")


def _has(record: records.Record | None, methods: Sequence[str]) -> bool:
    """Whether all that is asked of a pair is known: nothing is asked of one that failed its checks."""
    return record is not None and (bool(record.failed) or {*methods} <= {row["method"] for row in record.rows})


def _in_turn(out: Path, left: Mapping[int, Sequence[str]], methods: Sequence[str], processes: int) -> Iterator[int]:
    """Seeds as they are done. left: seed -> families."""
    if processes == 1:
        for seed, names in left.items():
            _of_seed(out, names, seed, methods)
            yield seed
        return
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, futures.ProcessPoolExecutor(processes, context, max_tasks_per_child=1) as pool:
        cores = manager.Queue()
        for number in range(processes):
            cores.put(number)
        waited = {pool.submit(_aside, cores, out, names, seed, methods): seed for seed, names in left.items()}
        for done in futures.as_completed(waited):
            done.result()
            yield waited[done]


def _aside(cores: Queue, out: Path, names: Sequence[str], seed: int, methods: Sequence[str]) -> None:
    """In a process that does nothing else, on one of the cores that there are, with programs that others compiled."""
    number = cores.get()
    if hasattr(os, "sched_setaffinity"):
        there = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {there[number % len(there)]})  # before JAX starts its threads
    jax.config.update("jax_compilation_cache_dir", str((out / "compiled").resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    try:
        _of_seed(out, names, seed, methods)
    finally:
        cores.put(number)


def _of_seed(out: Path, names: Sequence[str], seed: int, methods: Sequence[str]) -> None:
    """All families. Programs for one shape of model are let go of before the next: a process cannot hold those of all."""
    shape = None
    for name in names:
        if shape not in (None, FAMILIES[name].model):
            jax.clear_caches()
        shape = FAMILIES[name].model
        made(out, name, seed, methods)


def _write(file: Path, said: Mapping[str, Any]) -> None:
    """JSON, with what made it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.text(file, json.dumps(manifest.plain(said | {"source": manifest.source(ROOT, *CODE)})) + "\n")


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
