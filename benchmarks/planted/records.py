"""What was measured of pairs, a line of JSON each. The page is made of these, so it can be gone on with where the pairs are not."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxpatch import atomic
from jaxpatch.reporting import manifest


class Record(NamedTuple):
    """One pair's. failed: checks it did not pass, in words; where there is one the rest is empty. rows: of the board, one a method.
    held: what `promises` left. first: method -> the first components of its ranking, in words, for the page's examples."""

    family: str
    seed: int
    failed: tuple[str, ...] = ()
    rows: tuple[Mapping[str, Any], ...] = ()
    held: Mapping[str, Any] | None = None
    first: Mapping[str, str] = {}

    @property
    def key(self) -> tuple[str, int]:
        """Family and seed."""
        return self.family, self.seed


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
