"""Shell: what is needed to do a run again: versions, hashes, seed, precision, times."""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxpatch.measuring.anchors import AnchorInfo, Candidate, Check
from jaxpatch.models import checkpoints
from jaxpatch.tracing.roles import Roles

PACKAGES = ("jaxpatch", "jax", "jaxlib", "flax", "numpy", "pandas", "transformers", "safetensors", "matplotlib")
GIT_SECONDS = 10


def build(
    *,
    command: str | Sequence[str],
    seed: int,
    dtype: str,
    precision: str,
    files: Mapping[str, Sequence[Path]],
    times: Mapping[str, float],
    options: Mapping[str, Any],
    pair: Mapping[str, Any],
    exchanged: Roles | None = None,
    anchor: AnchorInfo | None = None,
    started: datetime | None = None,
) -> dict[str, Any]:
    """Everything about a run but its results, as plain JSON values.

    Args:
        command: as typed.
        precision: of matrix products.
        files: "base" and "special" -> the files each was read from; of these only name, size and hash are kept.
        times: stage -> seconds.
        pair: what `likeness.of_pair` says.
        options: as asked for; their "base" and "special" say where the files were, in the words of whoever asked.
        exchanged: the roles of those components whose activations were exchanged; of these the manifest says what was.
        anchor: what was measured of it.
        started: UTC; now less the sum of `times` where not given.
    """
    started = datetime.now(UTC) - timedelta(seconds=sum(times.values())) if started is None else started
    made = {
        "command": command if isinstance(command, str) else shlex.join(command),
        "started": started.isoformat(timespec="seconds"),
        "seed": seed,
        "dtype": dtype,
        "matmul_precision": precision,
        "versions": versions(),
        "source": source(Path(__file__).resolve().parents[2]),
        "machine": {
            "platform": platform.platform(),
            "processors": processors(),
            "backend": jax.default_backend(),
            "devices": sorted(device.device_kind for device in jax.devices()),
        },
        "files": {
            role: {"given": options.get(role), "read": [_fingerprint(Path(file)) for file in several]}
            for role, several in files.items()
        },
        "seconds": {**times, "all": round(sum(times.values()), 3)},
        "options": options,
        "pair": pair,
        "exchanged": None if exchanged is None else _exchange(exchanged),
        "anchor": None if anchor is None else fitted(anchor),
    }
    return plain(made)


def fitted(info: AnchorInfo) -> dict[str, Any]:
    """What was measured of an anchor: its checks, the layers that were looked at, the gaps, and what steering did."""
    lists = {name: [each._asdict() for each in getattr(info, name)] for name in ("checks", "candidates")}
    return {**info._asdict(), **lists}


def unfitted(said: Mapping[str, Any]) -> AnchorInfo:
    """`fitted`, read back from a manifest: what is unknown there (None) is NaN again."""

    def known(value: Any) -> Any:
        return math.nan if value is None else value

    checks = tuple(Check(**{name: known(value) for name, value in each.items()}) for each in said["checks"])
    candidates = tuple(Candidate(**{name: known(value) for name, value in each.items()}) for each in said["candidates"])
    rest = {name: known(value) for name, value in said.items() if name not in ("checks", "candidates", "gap")}
    return AnchorInfo(checks=checks, candidates=candidates, gap=np.array(said["gap"], np.float64), **rest)


def _exchange(roles: Roles) -> dict[str, Any]:
    """Which activations, where, how E_a was found, and by which criteria roles were given."""
    found = roles.activations
    where = {} if found.exchange is None else found.exchange._asdict()
    return {"kinds": list(roles.roles), "method": found.method, **where, "criteria": roles.criteria._asdict()}


def write(manifest: Mapping[str, Any], path: str | Path) -> Path:
    """The manifest as JSON, keys sorted."""
    text = json.dumps(plain(manifest), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
    return Path(path)


def versions() -> dict[str, str | None]:
    """Of Python, and of the packages that numbers depend on; None for one that is not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def source(folder: Path, *parts: str) -> dict[str, Any] | None:
    """Commit of a git checkout that tracks this package, and whether its tracked files, or those in some parts of it, were changed;
    None elsewhere.

    Another project's repository around an installed copy (a virtual environment inside it) is not a checkout of ours.
    """
    if _git(folder, "ls-files", "--error-unmatch", "jaxpatch/__init__.py") is None:
        return None
    commit, changes = (
        _git(folder, "rev-parse", "HEAD"),
        _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *parts),
    )
    return None if commit is None else {"commit": commit, "is_dirty": None if changes is None else bool(changes)}


def processors() -> int | None:
    """Cores that this process may run on, which can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None where there is no git, no repository, or no answer in time."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.stat().st_size, "sha256": checkpoints.sha256(file)}


def plain(value: Any) -> Any:
    """The same in values that JSON has: NaN and infinity become None, paths and the rest text."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in (sorted(value, key=str) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
