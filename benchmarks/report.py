"""What came of a benchmark, as JSON and as one table, with all that is needed to do it again."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks.timing import Figure, Spread, Timed
from jaxpatch.reporting import manifest

FOLDER = Path(__file__).parent
PACKAGES = ("jax", "jaxlib", "flax", "numpy", "torch", "transformers", "transformer-lens", "mergekit")


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of one benchmark.

    Attributes:
        name: of the files. title: of the table, and what the figure means.
        shapes: what was run on. groups: label -> sides that were timed in turn. figures: what follows from them.
        facts: anything else measured, in words -> value.
    """

    name: str
    title: str
    shapes: Mapping[str, Any]
    groups: Mapping[str, Sequence[Timed]]
    figures: Sequence[Figure]
    facts: Mapping[str, Any]


def publish(report: Report) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, each whole or not at all, and print the table."""
    everything = {
        "name": report.name,
        "title": report.title,
        "command": command(),
        "shapes": report.shapes,
        "facts": report.facts,
        "sides": [_row(label, timed) for label, several in report.groups.items() for timed in several],
        "figures": [
            {"claim": f.claim, "values": list(f.values), **Spread.of(f.values)._asdict()} for f in report.figures
        ],
        "machine": machine(),
        "versions": versions(),
        "source": manifest.source(FOLDER.parent),
    }
    _write(FOLDER / "results" / f"{report.name}.json", json.dumps(everything, indent=1, ensure_ascii=False) + "\n")
    table = _table(report, everything)
    _write(FOLDER / "results" / f"{report.name}.md", table)
    print(table)


def command() -> str:
    """What repeats this run, from the root of the repository."""
    module = f"benchmarks.{Path(sys.argv[0]).stem}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def machine() -> dict[str, Any]:
    """What it runs on, without a name of the machine or of anybody."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        named = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = named[0] if named else model
    devices = [device.device_kind for device in jax.devices() if device.platform != "cpu"]
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "accelerators": devices or "none",
        "system": f"{platform.system()} {platform.machine()}",
        **{name: os.environ.get(name, "default") for name in ("OMP_WAIT_POLICY", "XLA_FLAGS", "GLIBC_TUNABLES")},
    }


def versions() -> dict[str, str]:
    """Of Python and of every package named that is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _row(label: str, timed: Timed) -> dict[str, Any]:
    return {
        "what": label,
        "side": timed.side.name,
        "amount": timed.side.amount,
        "unit": timed.side.unit,
        "first_call_s": timed.first,
        "compiling_s": timed.compiling,
        "seconds": list(timed.seconds),
        "seconds_quartiles": Spread.of(timed.seconds)._asdict(),
        "rate_quartiles": Spread.of(timed.rates)._asdict(),
        "cores_busy_with_other_processes": timed.others,
    }


def _table(report: Report, everything: Mapping[str, Any]) -> str:
    lines = [
        f"# {report.title}",
        "",
        f"```\n{everything['command']}\n```",
        "",
        "Medians, with quartiles in brackets; the sides of one group ran in turn in one process.",
        "",
        "| what | side | work in one run | seconds a run | a second | compiling, s | other processes, cores |",
        "|---|---|---|---|---|---|---|",
    ]
    for label, several in report.groups.items():
        for timed in several:
            side, seconds, rates = timed.side, Spread.of(timed.seconds), Spread.of(timed.rates)
            work = f"{side.amount:.4g} {side.unit}"
            apart = f"{timed.compiling:.2f} | {timed.others:.2f}"
            lines.append(f"| {label} | {side.name} | {work} | {seconds} | {rates} | {apart} |")
    lines += ["", "| figure | value |", "|---|---|"]
    lines += [f"| {figure.claim} | **{Spread.of(figure.values)}** |" for figure in report.figures]
    lines += [f"| {claim} | {value:.4g} |" for claim, value in report.facts.items()]
    source = everything["source"]
    commit = "unknown" if source is None else source["commit"] + (" and changes" if source["is_dirty"] else "")
    lines += [
        "",
        *(f"* {label}: {_listed(everything[label])}" for label in ("shapes", "machine", "versions")),
        f"* commit: {commit}",
        "",
    ]
    return "\n".join(lines)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items())


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
