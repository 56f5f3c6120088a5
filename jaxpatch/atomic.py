"""Shell: results appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

LONGEST_NAME = 255
"""Bytes that a file's name may have, on every file system in common use."""


def refuse_existing(path: str | Path, *, overwrite: bool) -> Path:
    """The path, if it is free or may be replaced. Raises FileExistsError otherwise."""
    path = Path(path).expanduser().absolute()
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists and is not overwritten; name another, or say so (overwrite, --overwrite)."
        )
    return path


def place_faults(path: str | Path, room: int) -> list[str]:
    """Why a folder of `room` bytes could not be written at `path`, as far as that shows before any work is done.

    >>> place_faults("/proc/version/results", 1)
    ['/proc/version is a file, so nothing can be written below it; choose another place']
    """
    path = Path(path).expanduser().absolute()
    faults = []
    if len(os.fsencode(_partial(path).name)) > LONGEST_NAME - len("-old"):
        faults.append(f"the name {path.name[:20]}... has {len(path.name)} characters; choose a shorter one")
    home = path.parent
    while not _is_there(home):
        home = home.parent
    if not home.is_dir():
        return [*faults, f"{home} is a file, so nothing can be written below it; choose another place"]
    if not os.access(home, os.W_OK):
        faults.append(f"{home} cannot be written to; choose another place")
    free = shutil.disk_usage(home).free
    if free < room:
        faults.append(f"only {free / 1e6:.0f} MB are free at {home}, {room / 1e6:.0f} MB are needed; free some space")
    return faults


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that no file can have
        return False


@contextlib.contextmanager
def directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends, and vanishes when it raises.

    What a killed process left behind (``.NAME.partial-PID``) is removed by the next one.

    Raises: FileExistsError where `path` exists and not `overwrite`; OSError, saying what to do, where a write fails.
    """
    path = refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        _swap_in(partial, path)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        raise OSError(
            error.errno,
            f"could not write {path}: {error.strerror or error}; nothing was left there. "
            "Free some space or choose another place, and run again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def text(path: str | Path, content: str, *, overwrite: bool = False) -> Path:
    """Write a file that is there whole or not at all.

    Raises: FileExistsError where `path` exists and not `overwrite`; OSError where a write fails.
    """
    return binary(path, content.encode("utf-8"), overwrite=overwrite)


def binary(path: str | Path, content: bytes, *, overwrite: bool = False) -> Path:
    """The same of bytes."""
    path = refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _partial(path: Path) -> Path:
    return path.parent / f".{path.name}.partial-{os.getpid()}"


def _swap_in(partial: Path, path: Path) -> None:
    """Rename into place; an old result stays until the new one is whole."""
    if not os.path.lexists(path):
        partial.rename(path)
        return
    aside = partial.with_name(partial.name + "-old")
    path.rename(aside)
    try:
        partial.rename(path)
    except OSError:
        aside.rename(path)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def _remove_leftovers(path: Path) -> None:
    """What dead processes left. Our own number is one of theirs: containers give it out again."""
    prefix = f".{path.name}.partial-"
    for left in path.parent.iterdir():
        owner = left.name.removeprefix(prefix).removesuffix("-old")
        is_ours = left.name.startswith(prefix) and owner.isdigit()
        if is_ours and (int(owner) == os.getpid() or not _is_running(int(owner))):
            shutil.rmtree(left, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
