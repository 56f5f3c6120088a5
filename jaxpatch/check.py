"""Shell: look at one checkpoint or two before anything is made of them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxpatch import atomic, reference
from jaxpatch.models import checkpoints, convert, lora
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.differences import Choices
from jaxpatch.models.families import FAMILIES
from jaxpatch.patching import changes, components
from jaxpatch.reference import Side
from jaxpatch.reporting import likeness, manifest, wording

NUM_TENSORS = 8
"""Of those that changed most, in the table."""
ROOM_NEEDED = 10_000_000
"""Free bytes that --out needs at most."""
TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Check:
    """Look at a checkpoint, or at a pair: what is read, what differs and where, and whether logits are those of transformers.

    Weights are read as float32, whatever they are on disk.

    Attributes:
        base: a Hugging Face directory with safetensors, a .gguf file, a hub id (owner/name or owner/name@revision, of a GGUF file there
            with /file.gguf after it), or a PEFT LoRA adapter.
        special: the behaviour-specialised model: the same; an adapter is merged into base.
        out: a file for all that was found, as JSON; must not exist yet.
        parity: compare logits with transformers' where torch is installed, or with golden ones where they are known.
        overwrite: replace the file at --out.
        choices: whose word counts where base and special disagree; what is left open is refused.
    """

    base: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="BASE")]
    special: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="SPECIAL")] = None
    out: Path | None = None
    parity: bool = True
    overwrite: bool = False
    choices: Choices = field(default_factory=Choices)


class Tensor(NamedTuple):
    """One tensor of the checkpoints. relative: |special - base| / |base|. rank: of the difference where it is low, or None."""

    name: str
    shape: tuple[int, ...]
    relative: float
    rank: int | None


def check(options: Check, *, console: Console | None = None) -> bool:
    """Print what is found, and write it to `out`. Returns: whether logits are those of the reference, as far as there was one.

    Raises: ValueError, FileNotFoundError, FileExistsError with everything that is wrong with the two.
    """
    console = Console() if console is None else console
    refuse(options)
    if options.special is None:
        read = checkpoints.load_one(options.base, "float32")
        pair, sides = None, {"base": Side(options.base, read.config, read.params, read.files, read.left_out)}
        trained_on = {"base": read.trained_on}
    else:
        pair = checkpoints.load_pair(options.base, options.special, **vars(options.choices))
        sides, trained_on = reference.sides_of(pair, options.base, options.special), pair.trained_on
    found: dict[str, Any] = {"read": {role: _facts(side, trained_on.get(role)) for role, side in sides.items()}}
    rows = [(fact, *(facts[fact] for facts in found["read"].values())) for fact in found["read"]["base"]]
    console.print(_grid("what was read", ("", *sides), rows))
    if pair is not None:
        found |= _compared(pair)
        _show(console, found)
    found["parity"] = reference.of_sides(sides, pair.differences if pair else ()) if options.parity else {}
    for role, each in found["parity"].items():
        console.print(Text(f"Logits of {role}: {each['said']}."), soft_wrap=True)
    if options.out is not None:
        atomic.text(options.out, json.dumps(manifest.plain(found), indent=2) + "\n", overwrite=options.overwrite)
    return all(each["is_passed"] is not False for each in found["parity"].values())


def refuse(options: Check) -> None:
    """Raises ValueError for all faults of the options at once."""
    names = {"base": options.base} if options.special is None else {"base": options.base, "special": options.special}
    faults = checkpoints.location_faults(**names)
    faults += [f"--{fault}" for fault in checkpoints.choice_faults(options.choices)]
    if options.out is not None:
        if options.out.expanduser().is_dir():
            faults.append(f"--out {options.out}: it is a directory; name a file")
        elif options.out.expanduser().exists() and not options.overwrite:
            faults.append(f"--out {options.out}: it exists and is not overwritten; name another, or say --overwrite")
        faults += [f"--out {options.out}: {fault}" for fault in atomic.place_faults(options.out, ROOM_NEEDED)]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def tensors(pair: Pair) -> Iterator[Tensor]:
    """What special changed in each of the checkpoint's tensors."""
    rules = FAMILIES[pair.config.family].rules(pair.config)
    both = (convert.to_tensors(params, rules, pair.config) for params in (pair.base, pair.special))
    for (name, old), (_, new) in zip(*both, strict=True):
        moved = float(np.linalg.norm(new.astype(np.float32) - old.astype(np.float32)))
        rank = lora.rank_of(old, new) if moved and old.ndim == 2 else None
        yield Tensor(name, old.shape, moved / max(float(np.linalg.norm(old.astype(np.float32))), TINY), rank)


def _facts(side: Side, trained_on: str | None) -> dict[str, str]:
    config, leaves = side.config, jax.tree.leaves(side.params)
    return {
        "family": config.family,
        "parameters": f"{sum(leaf.size for leaf in leaves):,}",
        "blocks": f"{config.layers} of width {config.width}, {config.heads} heads ({config.kv_heads} for keys and values)",
        "vocabulary": f"{config.vocab:,} tokens, unembedding {'tied' if config.tied else 'of its own'}",
        "context": f"{config.context:,} tokens",
        "left out": _left_out(side.left_out),
        "adapter": "none" if trained_on is None else f"trained on {trained_on}",
        "files": "\n".join(f"{file.name} ({file.stat().st_size:,} bytes)" for file in side.files),
    }


def _left_out(names: Sequence[str]) -> str:
    """Tensors that are none of the text model's, by the part that they are of."""
    parts = Counter(name.removeprefix("model.").split(".")[0] for name in names)
    return "\n".join(f"{number} tensors of {part}" for part, number in parts.items()) or "nothing"


def _compared(pair: Pair) -> dict[str, Any]:
    """Everything in which the two differ, as plain values."""
    partition = components.of_decoder(pair.base)
    found = changes.by_kind(pair.base, pair.special, partition)
    return likeness.of_pair(pair, found, partition) | {
        "relative": {name: change.relative for name, change in found.items()},
        "tensors": [each._asdict() for each in sorted(tensors(pair), key=lambda each: -each.relative)],
    }


def _show(console: Console, found: Mapping[str, Any]) -> None:
    columns = ("difference", "base", "special", "chosen")
    rows = [[str(each[c] or "nothing to choose") for c in ("name", *columns[1:])] for each in found["differences"]]
    if rows:
        console.print(_grid("what differs beside the weights", columns, rows))
    else:
        console.print(Text("Beside their weights the two do not differ.\n"))
    rows = [[name, *(_shown(each[column]) for column in likeness.COLUMNS)] for name, each in found["changes"].items()]
    console.print(_grid("what special changed, |dW| / |W|", ("kind", *likeness.COLUMNS), rows))
    changed = [each for each in found["tensors"] if each["relative"]]
    rows = [[each["name"], str(list(each["shape"])), _shown(each["relative"]), _rank(each)] for each in changed]
    title = f"{len(changed)} of {len(found['tensors'])} tensors differ; those that changed most"
    console.print(_grid(title, ("tensor", "shape", "|dW| / |W|", "rank"), rows[:NUM_TENSORS]))


def _rank(tensor: Mapping[str, Any]) -> str:
    return "not low" if tensor["rank"] is None else str(tensor["rank"])


def _shown(value: Any) -> str:
    return (
        wording.percent(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Nothing in it is read as markup, whatever names hold."""
    made = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE)
    for column in columns:
        made.add_column(column)
    for row in rows:
        made.add_row(*map(Text, row))
    return made
