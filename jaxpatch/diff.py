"""Shell: which components two checkpoints differ in."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpatch import atomic
from jaxpatch.models import checkpoints
from jaxpatch.models.differences import Choices
from jaxpatch.patching import changes, components
from jaxpatch.patching.changes import Change
from jaxpatch.patching.components import Partition
from jaxpatch.reporting import difference_map, drawing, likeness, wording
from jaxpatch.scoring.scores import component_names
from jaxpatch.shapes import Params
from jaxpatch.trees import compare

ROOM_NEEDED = 10_000_000
"""Free bytes that --out needs at most."""
FILES = ("components.csv", "heatmap.svg")


@dataclass(frozen=True, kw_only=True)
class Diff:
    """Which components do two checkpoints differ in, and by how much? A table, and a heat-map of layers.

    Attributes:
        one: a checkpoint, as for run.
        other: another of its architecture, or an adapter, which is merged into the first.
        kinds: of component.
        top: how many of those that changed most are shown of each kind.
        out: folder for components.csv and heatmap.svg; must not exist yet.
        overwrite: replace what an earlier diff left at --out.
        choices: whose word counts where the two disagree.
    """

    one: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ONE")]
    other: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")]
    kinds: tuple[str, ...] = ("head", "kv", "neuron")
    top: int = 5
    out: Path | None = None
    overwrite: bool = False
    choices: Choices = field(default_factory=Choices)


def diff(options: Diff, *, console: Console | None = None) -> None:
    """Print the table, and write what `out` is asked for. Raises: ValueError, OSError with everything that is wrong."""
    console = Console() if console is None else console
    refuse(options)
    pair = checkpoints.load_pair(options.one, options.other, may_be_same=True, **vars(options.choices))
    partition = components.of_decoder(pair.base)
    components.refuse_unknown(partition, options.kinds)
    kinds = {kind: partition[kind] for kind in options.kinds}
    found = changes.by_kind(pair.base, pair.special, kinds)
    console.print(table(found, partition, options.top))
    if beside := elsewhere(pair.base, pair.special, kinds):
        console.print(f"What none of these kinds owns differs, too: {wording.listed(beside)}.", markup=False)
    if options.out is not None:
        with atomic.directory(options.out.expanduser(), overwrite=options.overwrite) as folder:
            (folder / FILES[0]).write_text(rows(found, partition), encoding="utf-8")
            of_layers = {kind: change.relative for kind, change in found.items() if change.relative.ndim > 1}
            if any(np.any(each) for each in of_layers.values()):
                drawn = drawing.svg(difference_map.figure(of_layers), "difference")
                text = f'<?xml version="1.0" encoding="utf-8"?>\n{drawn}'
                (folder / FILES[1]).write_text(text, encoding="utf-8")


def refuse(options: Diff) -> None:
    """Raises ValueError for all faults of the options at once."""
    faults = checkpoints.location_faults(one=options.one, other=options.other)
    faults += [f"--{fault}" for fault in checkpoints.choice_faults(options.choices)]
    if options.top < 0:
        faults.append(f"--top {options.top}: wanted 0 or more")
    if not options.kinds:
        faults.append("--kinds: wanted at least one")
    if options.out is not None:
        there = options.out.expanduser()
        if there.exists() and not options.overwrite:
            faults.append(f"--out {options.out}: it exists and is not overwritten; name another, or say --overwrite")
        elif there.exists() and (not there.is_dir() or any(file.name not in FILES for file in there.iterdir())):
            faults.append(f"--out {options.out}: it is no earlier diff's, so it is not replaced; name another")
        faults += [f"--out {options.out}: {fault}" for fault in atomic.place_faults(options.out, ROOM_NEEDED)]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def elsewhere(one: Params, other: Params, kinds: Partition) -> list[str]:
    """Leaves that differ and of which no component of these kinds owns anything.

    >>> import jax.numpy as jnp
    >>> elsewhere({"norm": jnp.zeros(2), "embed": jnp.zeros(2)}, {"norm": jnp.ones(2), "embed": jnp.zeros(2)}, {})
    ['norm']
    """
    owned = {slot.leaf for kind in kinds.values() for slot in kind.slots}
    return [path for path in compare.changed_leaves(one, other) if path not in owned]


def table(found: Mapping[str, Change], partition: Partition, top: int) -> Table:
    """A row a kind."""
    made = Table(title=Text("what differs, |dW| / |W|", style="bold"), title_justify="left", box=box.SIMPLE)
    for column in ("kind", "components", "differ", "overall", "median", "most"):
        made.add_column(column)
    for kind, told in likeness.of_changes(found, {kind: partition[kind] for kind in found}).items():
        values = np.nan_to_num(found[kind].relative.ravel(), nan=np.inf)
        names = component_names(kind, partition[kind])
        most = [number for number in np.argsort(-values, kind="stable")[:top] if values[number]]
        shown = "\n".join(f"{names[number]}  {wording.percent(float(values[number]))}" for number in most)
        numbers = (
            f"{told['components']:,}",
            f"{told['changed']:,}",
            *(wording.percent(told[n]) for n in ("overall", "median")),
        )
        made.add_row(*map(Text, (kind, *numbers, shown)))
    return made


def rows(found: Mapping[str, Change], partition: Partition) -> str:
    """Every component, as CSV: kind, name, relative; in the order of gates."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("kind", "name", "relative"))
    for kind, change in found.items():
        names = component_names(kind, partition[kind])
        writer.writerows(
            (kind, name, f"{value:.6g}") for name, value in zip(names, change.relative.ravel(), strict=True)
        )
    return text.getvalue()
