"""Shell: how long each stage takes, and a bar with what is left of it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass
class Clock:
    """Seconds each stage took, and a bar with an ETA while it runs."""

    console: Console
    times: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
        """Times a block; gives a function that makes the progress of a named part."""
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        began = time.monotonic()
        with Progress(*columns, console=self.console, transient=False) as bars:
            whole = bars.add_task(name, total=1)

            def part(label: str) -> Callable[[int, int], None]:
                bar = bars.add_task(f"  {label}", total=None)
                return lambda done, total: bars.update(bar, completed=done, total=total)

            yield part
            bars.update(whole, completed=1)
        self.times[name] = round(time.monotonic() - began, 3)
