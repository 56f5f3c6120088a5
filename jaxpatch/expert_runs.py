"""Shell: several special models of one base: a run for each, and a page on what their sources have in common."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import tyro
from rich.console import Console

from jaxpatch import atomic, experts, results, run, validation
from jaxpatch.measuring import anchors
from jaxpatch.models import checkpoints
from jaxpatch.reporting import experts_page, manifest
from jaxpatch.scoring import conflict, stability

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
FILES = ("experts.csv", "shared.csv", "index.html")
"""What stands beside the experts' own folders."""
FORM = "NAME=SPECIAL:TASK"


@dataclass(frozen=True, kw_only=True)
class Experts(run.Run):
    """Score several special models against one base: a run for each, which sources they share, and where they pull these apart.

    Each expert's results are a run's, in a folder of its name at --out; beside them are index.html, experts.csv and shared.csv. An
    expert that was scored with the same options is not scored again: the same command goes on, and takes up an expert more. One whose
    anchor fails its checks is left out, and the page says so. At the end base and all experts are held at once. Options from a file
    (--options FILE) as for run.

    Attributes:
        experts: NAME=SPECIAL:TASK of each: a name for its folder, a model and a task, as --special and --task of a run.
        count: of each expert's best components of a kind, so many are compared.
        out: folder for the results of all; may hold those of experts that were scored before.
        overwrite: replace what experts of these names left that were scored with other options.
    """

    experts: tuple[str, ...]
    count: int = 20
    special: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = ""
    task: Annotated[str, tyro.conf.Fixed, tyro.conf.Suppress] = ""


class Asked(NamedTuple):
    """One expert on the command line."""

    name: str
    special: str
    task: str


def run_experts(options: Experts, *, command: Sequence[str] = (), console: Console | None = None) -> Path:
    """A run for each expert that has none yet, and then what they share.

    Returns: the path of the page. Raises: as `run.run`; what was finished is kept.
    """
    console = Console() if console is None else console
    options = replace(options, out=options.out.expanduser())
    refuse(options)
    refused: dict[str, str] = {}
    for name, own in _runs(options).items():
        console.rule(name)
        if _is_done(own):
            console.print(f"{name} was scored before with these options", markup=False)
            continue
        try:
            run.run(own, command=command, console=console)
        except anchors.UntrustedAnchorError as refusal:
            refused[name] = str(refusal)
            console.print(f"{name} is left out: {refusal}", markup=False)
    scored = {name: validation.read(own.out) for name, own in _runs(options).items() if name not in refused}
    made = compared(options, scored)
    told = [
        experts_page.Expert(
            asked.name,
            asked.special,
            asked.task,
            None if asked.name in refused else scored[asked.name].scores,
            None if asked.name in refused else scored[asked.name].anchor.layer,
            refused.get(asked.name, ""),
            () if asked.name in refused else tuple(scored[asked.name].manifest["forced"]),
        )
        for asked in parsed(options)
    ]
    forced = {each.name: "; ".join(each.forced) for each in told if each.forced}
    options.out.mkdir(parents=True, exist_ok=True)
    for file, of in (("experts.csv", conflict.Conflicts.to_frame), ("shared.csv", conflict.Conflicts.components)):
        atomic.text(options.out / file, _table(made, of, forced), overwrite=True)
    text = experts_page.render(options.base, told, made)
    return atomic.text(options.out / "index.html", text, overwrite=True)


def compared(options: Experts, scored: Mapping[str, validation.Earlier]) -> dict[str, conflict.Conflicts]:
    """Kind -> what the experts that were scored share; nothing of fewer than two, and of kinds that matter in none."""
    if len(scored) < 2:
        return {}
    pairs: dict[str, checkpoints.Pair] = {}
    for name, earlier in scored.items():
        special = earlier.options["special"]
        pair = checkpoints.load_pair(options.base, special, dtype=options.dtype, **vars(options.choices))
        validation.refuse_changed(pair, earlier.manifest)
        pairs = experts.with_one_base(pairs | {name: pair})
    found = {name: earlier.scores for name, earlier in scored.items()}
    sizes = {
        kind: min(options.count, *(stability.num_that_matter(each, kind) for each in found.values()))
        for kind in options.kinds
    }
    return {kind: experts.conflicts(pairs, found, kind, size) for kind, size in sizes.items() if size}


def parsed(options: Experts) -> list[Asked]:
    """The experts by name, special and task. Those that cannot be read are left out; `refuse` names them.

    >>> parsed(Experts(base="b", out=Path("o"), experts=("caps=owner/model@main:no_comma", "wrong")))
    [Asked(name='caps', special='owner/model@main', task='no_comma')]
    """
    made = []
    for each in options.experts:
        name, _, rest = each.partition("=")
        special, _, task = rest.rpartition(":")
        if NAME.fullmatch(name) and special and task:
            made.append(Asked(name, special, task))
    return made


def refuse(options: Experts) -> None:
    """Raises ValueError for all that can be refused before a model is read, of all experts at once; what all have in common stands
    once."""
    asked = parsed(options)
    readable = {f"{each.name}={each.special}:{each.task}" for each in asked}
    faults = [
        f"--experts {each}: wanted {FORM}, a name of letters, digits and hyphens, as in caps=models/caps:english_capital"
        for each in options.experts
        if each not in readable
    ]
    names = Counter(each.name for each in asked)
    faults += [f"--experts {name}: named {count} times" for name, count in names.items() if count > 1]
    if len(options.experts) < 2:
        faults.append(f"--experts: wanted at least two, {FORM} each; for one there is jaxpatch run")
    faults += [
        f"--{name} {value}: each of --experts names its own; leave it out"
        for name, value in (("special", options.special), ("task", options.task))
        if value
    ]
    if options.count < 1:
        faults.append(f"--count {options.count}: wanted at least 1")
    if options.distributed:
        faults.append("--distributed: not for several experts; run each by itself")
    faults += [f"--out {options.out}: {fault}" for fault in _place_faults(options.out)]
    own = {name: _own_faults(each) for name, each in _runs(options).items() if not _is_done(each)}
    common = [fault for fault in next(iter(own.values()), []) if all(fault in others for others in own.values())]
    faults += common if len(own) > 1 else []
    for name, several in own.items():
        faults += [f"{name}: {fault}" for fault in several if len(own) < 2 or fault not in common]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _runs(options: Experts) -> dict[str, run.Run]:
    """Name -> the run of that expert."""
    shared = {each.name: getattr(options, each.name) for each in fields(run.Run)}
    return {
        each.name: run.Run(**shared | {"special": each.special, "task": each.task, "out": options.out / each.name})
        for each in parsed(options)
    }


def _is_done(own: run.Run) -> bool:
    """Whether a run's results are there, with the same options. Whether it was to be forced is no matter where nothing had to be."""
    try:
        made = json.loads((own.out / "manifest.json").read_text(encoding="utf-8"))
        said, forced = made["options"], made["forced"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    aside = ("out", "overwrite") if forced else ("out", "overwrite", "force")
    asked = {name: value for name, value in manifest.plain(run.asked(own)).items() if name not in aside}
    is_whole = all((own.out / name).is_file() for name in (*validation.READ, "report.html"))
    return is_whole and all(name in said and said[name] == value for name, value in asked.items())


def _own_faults(own: run.Run) -> list[str]:
    try:
        run.refuse(own)
    except ValueError as error:
        return [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
    return []


def _place_faults(out: Path) -> list[str]:
    """What keeps a folder from being that of several experts: anything in it that is none of theirs."""
    out = out.expanduser()
    if not out.exists():
        return atomic.place_faults(out, results.ROOM_NEEDED)
    if not out.is_dir():
        return ["it is a file; name a folder"]
    strangers = [each.name for each in sorted(out.iterdir()) if each.name not in FILES and not _is_of_a_run(each)]
    return [f"it holds other things than experts ({', '.join(strangers[:3])}); name another"] if strangers else []


def _is_of_a_run(folder: Path) -> bool:
    """Its results, or what one that was stopped has left."""
    is_left = folder.suffix == ".unfinished" or ".partial-" in folder.name
    return folder.is_dir() and ((folder / "manifest.json").is_file() or is_left)


def _table(
    made: Mapping[str, conflict.Conflicts], of: Callable[[conflict.Conflicts], pd.DataFrame], forced: Mapping[str, str]
) -> str:
    """A kind's rows after another's, as CSV. forced: name -> checks that its anchor fails."""
    frames = [of(each).assign(kind=kind, size=each.overlap.size) for kind, each in made.items()]
    if not frames:
        return "kind,size\n"
    frame = pd.concat(frames, ignore_index=True)
    frame = frame[["kind", "size", *(name for name in frame if name not in ("kind", "size"))]]
    if forced:
        both = zip(frame["one"], frame["other"], strict=True)
        frame["forced"] = ["; ".join(f"{n}: {forced[n]}" for n in names if n in forced) for names in both]
    return frame.to_csv(index=False)
