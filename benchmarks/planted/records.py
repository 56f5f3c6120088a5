"""What was measured of pairs, a line of JSON each. The page is made of these, so it can be gone on with where the pairs are not."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxpatch import atomic
from jaxpatch.reporting import manifest


class Record(NamedTuple):
    """One pair's. recipe: by which it was planted. digest: of the pair. commit: of the code that measured it, None where there is no
    checkout. failed: checks it did not pass, in words; where there is one the rest is empty. rows: of the board, one a method. held:
    what `promises` left. first: method -> the first components of its ranking, in words, for the page's examples."""

    family: str
    seed: int
    recipe: int
    digest: str
    commit: str | None = None
    failed: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    held: Mapping[str, Any] | None = None
    first: Mapping[str, str] = {}

    @property
    def key(self) -> tuple[str, int]:
        """Family and seed."""
        return self.family, self.seed


def merged(old: Record | None, new: Record) -> Record:
    """What is known of one pair by now: nothing that was measured earlier is lost, unless the pair is another one.

    >>> old = Record("both", 0, 1, "a", rows=({"method": "x", "auroc": 1.0}, {"method": "y", "auroc": 0.5}))
    >>> [row["method"] for row in merged(old, Record("both", 0, 1, "a", rows=({"method": "x", "auroc": 0.9},))).rows]
    ['x', 'y']
    >>> merged(old, Record("both", 0, 1, "b")).rows
    ()
    """
    if old is None or old.digest != new.digest:
        return new
    rows = {row["method"]: row for row in (*old.rows, *new.rows)}
    return new._replace(rows=tuple(rows.values()), held=new.held or old.held, first={**old.first, **new.first})


def read(file: Path) -> dict[tuple[str, int], Record]:
    """Records by family and seed; none where there is no file. Raises ValueError for a line that is none."""
    if not file.is_file():
        return {}
    made = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            said = json.loads(line)
            record = Record(**said | {"failed": tuple(said["failed"]), "rows": tuple(said["rows"])})
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            raise ValueError(f"{file}, line {number}: no record of a planted pair: {error}") from None
        made[record.key] = record
    return made


def write(file: Path, records: Iterable[Record]) -> None:
    """Replace a file by these, in order of family and seed."""
    ordered = sorted(records, key=lambda record: record.key)
    lines = [json.dumps(manifest.plain(record._asdict()), separators=(",", ":")) for record in ordered]
    atomic.text(file, "\n".join(lines) + "\n", overwrite=True)
