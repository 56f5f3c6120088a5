"""Shell: sweeps that survive. How far each sweep is, kept on disk with Orbax, whole or not at all."""

import contextlib
import io
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import orbax.checkpoint as ocp

from jaxpatch.measuring import devices
from jaxpatch.measuring.sweep import Swept

PERIOD = 30.0
"""Seconds between two savings."""


LOCK, NEXT = "lock", "next"
OURS = re.compile(rf"{LOCK}|{NEXT}|\d+(\.orbax-checkpoint-tmp.*)?")
"""Names of what a journal puts into its folder."""
REFUSED = b"refused: "
IN_USE = "cannot keep a journal in "
BROKEN = (ValueError, KeyError, TypeError, AttributeError, OSError, RuntimeError)
"""What reading a damaged state raises."""


class DifferentRunError(ValueError):
    """What is to be gone on with was begun with something else, or is no journal at all."""


def place_faults(folder: Path) -> list[str]:
    """Why a journal cannot be kept in this folder."""
    if folder.exists() and not folder.is_dir():
        return ["it is a file, and a journal is a folder"]
    strangers = [path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)] if folder.exists() else []
    if strangers:
        return [f"it holds other things than a journal ({', '.join(sorted(strangers)[:3])}); move them"]
    return [f"{NEXT}: {fault}" for fault in place_faults(folder / NEXT)] if folder.exists() else []


def _remove(folder: Path) -> None:
    """What is a journal's, and the folder if nothing else is in it. The lock goes last."""
    if not folder.is_dir():
        return
    _remove(folder / NEXT)
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in (LOCK, NEXT):
            shutil.rmtree(path, ignore_errors=True)
    (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


class Journal:
    """What the sweeps of one `score` have done, in a folder.

    Sweeps are told apart by their order, which is the same each time: all that a method draws comes from its seed. So the same call
    with the same folder goes on where a killed one was, and ends with the same numbers to the last bit. Of several processes the first
    alone reads and writes the folder, and tells the others. While a journal is open no other one can have its folder. Another `score`
    of the same run is kept in a journal of its own (`following`).

    Args:
        folder: made when the journal is opened, and removed again if nothing was saved in it. period: seconds between two savings.

    Raises: DifferentRunError where the folder was begun by another pair, on other prompts or with other options, or cannot be read;
        OSError where it cannot be written, or another process has it open.

    Example:
        >>> import tempfile, jax.numpy as jnp, jaxpatch as jp
        >>> from jaxpatch import testing
        >>> anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> with Journal(tempfile.mkdtemp()) as journal:
        ...     scores = jp.score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",), journal=journal)
    """

    def __init__(self, folder: str | Path, *, period: float = PERIOD):
        if not isinstance(period, int | float) or not 0 <= period < math.inf:
            raise ValueError(f"period: wanted seconds, at least 0; got {period!r}.")
        self.folder = Path(folder).expanduser().resolve()
        self.period = period
        self._sweeps: list[tuple[str, Swept]] = []
        self._current = -1
        self._identity: dict[str, str] = {}
        self._saved_at = time.monotonic()
        self._is_changed = False
        self._manager: ocp.CheckpointManager | None = None
        self._lock = filelock.FileLock(self.folder / LOCK, timeout=0)
        self.num_resumed = 0

    def __enter__(self) -> "Journal":
        self._open()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._is_changed:
            self._try_to_save()
        if self._manager is not None:
            self._manager.close()
            self._manager = None
        if self._lock.is_locked:
            if self.folder.is_dir() and all(path.name == LOCK for path in self.folder.iterdir()):
                _remove(self.folder)
            self._lock.release()

    def following(self) -> "Journal":
        """A journal for the next `score` of the same run, in a folder inside this one's: it is removed with this one."""
        return Journal(self.folder / NEXT, period=self.period)

    def _open(self) -> None:
        """Make the folder ours, and refuse what is not a journal. In all processes, or in none."""
        said = devices.told(self._opening_faults() if devices.is_first() else b"")[0].decode()
        if said.startswith(IN_USE):
            raise OSError(said)
        if said:
            raise DifferentRunError(said)

    def _opening_faults(self) -> bytes:
        if self._lock.is_locked:
            return b""
        if faults := place_faults(self.folder):
            return f"{self.folder}: {'; '.join(faults)}.".encode()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(NotImplementedError):  # some network file systems have no locks
                self._lock.acquire()
        except filelock.Timeout:
            return (
                f"{IN_USE}{self.folder}: another run has it open. Wait until that has ended, or name another.".encode()
            )
        except OSError as error:
            return f"{IN_USE}{self.folder}: {error.strerror or error}. Name a folder that can be written.".encode()
        return b""

    def begin(self, identity: Mapping[str, str]) -> dict[str, str]:
        """Open the folder for a run that is known by these words.

        Args: identity: name -> value. All must be what they were when the folder was begun, but for "budget", which is taken from
            there.

        Returns: the identity to go by. Raises: DifferentRunError naming all that differs.
        """
        self._open()
        self._current = -1
        if self._sweeps:
            before, sweeps = self._identity, self._sweeps
        else:
            before, sweeps = self._kept() or (dict(identity), [])
        others = [
            f"{name} (was {before.get(name, 'not there')}, is {identity.get(name, 'not there')})"
            for name in sorted({*before, *identity} - {"budget"})
            if before.get(name) != identity.get(name)
        ]
        if others:
            raise DifferentRunError(
                f"{self.folder} holds a run with other {', '.join(others)}. Run what it was begun with, name another, "
                "or remove the folder."
            )
        self._identity, self._sweeps = {**identity, "budget": before["budget"]}, sweeps
        self.num_resumed = self.num_done
        return self._identity

    def _kept(self) -> tuple[dict[str, str], list[tuple[str, Swept]]] | None:
        """Identity and sweeps of the folder, as the first process reads them; None where it is new."""
        said = devices.told(self._told() if devices.is_first() else b"")[0]
        if said.startswith(REFUSED):
            raise DifferentRunError(said.removeprefix(REFUSED).decode())
        if not said:
            return None
        arrays = dict(np.load(io.BytesIO(said)))
        about = json.loads(arrays.pop("about").tobytes())
        sweeps = enumerate(about["sweeps"])
        return about["identity"], [(s["kind"], Swept(arrays[str(n)], s["done"], s["size"])) for n, s in sweeps]

    def _told(self) -> bytes:
        """What the folder holds, in one piece; nothing where it is new; or why it is refused."""
        if (step := self._managed().latest_step()) is None:
            return b""
        wanted = ocp.args.Composite(about=ocp.args.JsonRestore(), effects=ocp.args.StandardRestore())
        try:
            kept = self._managed().restore(step, args=wanted)
            about, effects = kept["about"], [kept["effects"][str(n)] for n, _ in enumerate(kept["about"]["sweeps"])]
        except BROKEN as error:
            reason = str(error).strip().split("\n")[0][:200]
            return (
                REFUSED
                + f"{self.folder} holds a state that cannot be read ({reason}). Remove it to start again.".encode()
            )
        packed = io.BytesIO()
        named = {str(number): each for number, each in enumerate(effects)}
        np.savez(packed, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **named)
        return packed.getvalue()

    def _managed(self) -> ocp.CheckpointManager:
        if self._manager is None:
            alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0})
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=1, create=False, enable_async_checkpointing=False, multiprocessing_options=alone
                ),
            )
        return self._manager

    def recall(self, kind: str, num_candidates: int) -> Swept | None:
        """What was done of the sweep that begins now."""
        self._current += 1
        if self._current >= len(self._sweeps):
            return None
        known, swept = self._sweeps[self._current]
        if (known, len(swept.effects)) != (kind, num_candidates):
            raise DifferentRunError(
                f"{self.folder}: sweep {self._current} was of {len(swept.effects)} {known}s, and is of {num_candidates} {kind}s now. "
                "Remove the folder and start again."
            )
        return swept

    def note(self, kind: str, swept: Swept) -> None:
        """How far the current sweep is; saved when the period is over."""
        self._sweeps[self._current :] = [(kind, swept)]
        self._is_changed = True
        if time.monotonic() - self._saved_at >= self.period:
            self._try_to_save()

    def _try_to_save(self) -> None:
        """A full disk is no reason to lose what is in memory."""
        try:
            self.save()
        except OSError as error:
            self._saved_at = time.monotonic()
            warnings.warn(f"the state of the sweep could not be saved in {self.folder}: {error}", stacklevel=3)

    def save(self) -> None:
        """Write everything down, now. Raises: OSError, for instance for a full disk."""
        if not devices.is_first():
            return
        manager = self._managed()
        about = {
            "identity": self._identity,
            "sweeps": [{"kind": kind, "done": swept.done, "size": swept.size} for kind, swept in self._sweeps],
        }
        effects = {str(number): swept.effects for number, (_, swept) in enumerate(self._sweeps)}
        try:
            manager.save(
                (manager.latest_step() or 0) + 1,
                args=ocp.args.Composite(about=ocp.args.JsonSave(about), effects=ocp.args.StandardSave(effects)),
            )
        except (ValueError, RuntimeError) as error:  # so says Orbax's storage that a disk is full
            raise OSError(str(error).strip().split("\n")[0]) from error
        self._saved_at, self._is_changed = time.monotonic(), False

    def forget(self) -> None:
        """Remove what was saved, and the folder if nothing else is in it: the run is finished."""
        self._is_changed = False
        if devices.is_first():
            _remove(self.folder)

    @property
    def num_done(self) -> int:
        """Components whose effects are known."""
        return sum(swept.done for _, swept in self._sweeps)
