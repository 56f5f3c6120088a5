"""Shell: results appear whole or not at all."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def refuse_existing(path: str | Path, *, overwrite: bool) -> Path:
    """The path, if it is free or may be replaced. Raises FileExistsError otherwise."""
    path = Path(path)
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(
            f"{path} exists and is not overwritten; name another, or say so (overwrite, --overwrite)."
        )
    return path


def refuse_full_disk(path: str | Path, room: int) -> None:
    """Raises OSError where the place for `path` cannot be written or has less than `room` bytes free, before any work is done."""
    home = Path(path).absolute().parent
    while not home.exists():
        home = home.parent
    if not os.access(home, os.W_OK):
        raise PermissionError(f"{home} cannot be written to; choose another place for {path}.")
    free = shutil.disk_usage(home).free
    if free < room:
        raise OSError(
            f"only {free / 1e6:.0f} MB are free at {home}, {room / 1e6:.0f} MB are needed for {path}; free some space."
        )


@contextlib.contextmanager
def directory(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends, and vanishes when it raises.

    What a killed process left behind (``.NAME.partial-PID``) is removed by the next one.

    Raises: FileExistsError where `path` exists and not `overwrite`; OSError, saying what to do, where a write fails.
    """
    path = refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    partial = path.parent / f".{path.name}.partial-{os.getpid()}"
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


def _swap_in(partial: Path, path: Path) -> None:
    """Rename into place; an old result stays until the new one is whole."""
    if not os.path.lexists(path):
        partial.rename(path)
        return
    aside = path.parent / f".{path.name}.partial-{os.getpid()}-old"
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
