"""Shell: several checkpoints in, one merged model out, with a card that says how it was made."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from jaxpatch import atomic, experts, merge_recipe, merger, validation
from jaxpatch.merge_recipe import Expert, Recipe
from jaxpatch.merging import METHODS
from jaxpatch.models import checkpoints, saving
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.differences import Choices
from jaxpatch.reporting import manifest
from jaxpatch.scoring.scores import Scores
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths

ROOM_NEEDED = 1_000_000
"""Free bytes at --out, beside the weights."""
BEST = 5
"""Components of an expert that the card names."""
CARD, RECORD = "README.md", "merge.json"
BY_RECIPE = (
    "base",
    "method",
    "experts",
    "weights",
    "density",
    "scale",
    "seed",
    "set",
    "scores",
    "rule",
    "budget",
    "rest",
    "conflict",
)
"""Flags that a recipe speaks for."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge several experts of one base into one model, by a published method, or by what their scores say.

    Say what to merge in a file (--recipe: TOML, or mergekit's YAML of the methods that both know), or by flags. The result is a Hugging
    Face directory with a card of how it was made.

    Attributes:
        out: folder for the merged model; must not exist yet.
        recipe: a file that says what to merge; leave out the flags that it speaks for.
        base: the model that experts were made from, as for run.
        experts: models, or adapters, which are merged into base.
        method: linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties,
            localize_and_stitch or consensus (those that look at data: jp.merge).
        weights: one number, or one for each expert.
        density: share of its difference that an expert keeps, 0 to 1; one number, or one each; of methods that keep a part.
        scale: by which the merged difference is multiplied.
        seed: of whatever is random.
        set: further options of the method, as in trim=all.
        scores: the folder of the run that scored each expert, in their order; its scores become gates by --rule.
        rule: hard, each component from the expert that scores it highest; soft, from all, by their shares of its scores; mask, each
            expert's own best.
        budget: share of the scored components' parameters that may be taken, 0 to 1.
        conflict: what mask does where several take a component: all, or share, equal parts.
        rest: how far all that has no score goes, 0 to 1.
        stored: dtype of the weights on disk; base's where nothing is said.
        overwrite: replace a model that is at --out.
        choices: whose word counts where base and the first expert disagree.
    """

    out: Path
    recipe: Path | None = None
    base: str | None = None
    experts: tuple[str, ...] = ()
    method: str | None = None
    weights: tuple[float, ...] = (1.0,)
    density: tuple[float, ...] = ()
    scale: float = 1.0
    seed: int = 0
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE ...")] = ()
    scores: tuple[Path, ...] = ()
    rule: str | None = None
    budget: float = 1.0
    conflict: str = "all"
    rest: float = 0.0
    stored: str | None = None
    overwrite: bool = False
    choices: Choices = field(default_factory=Choices)


def merge(options: Merge, *, command: Sequence[str] = (), console: Console | None = None) -> Path:
    """Read, merge, write.

    Returns: the folder of the merged model. Raises: ValueError, OSError with all that is wrong; nothing is half-written.
    """
    console, began = Console() if console is None else console, time.monotonic()
    made = asked(options)
    earlier = None if made.rule is None else _earlier(made)
    pairs = _read(made, options, earlier)
    read_at = time.monotonic()
    pair = next(iter(pairs.values()))
    stored = options.stored or made.stored or pair.stored["base"]
    room = sum(map(np.size, paths.leaves(pair.base).values())) * jnp.dtype(stored).itemsize
    if faults := atomic.place_faults(options.out, ROOM_NEEDED + room):
        raise _refusal([f"--out {options.out}: {fault}" for fault in faults])
    trees = [each.special for each in pairs.values()]
    scores = None if earlier is None else [each.scores for each in earlier]
    gates = None if scores is None else merger.apportion(str(made.rule), scores, pair.base, **_ruled(made))
    merged = merger.merge(made.method, pair.base, trees, gates=gates, **_numbers(made), **made.options)
    merged_at = time.monotonic()
    said = _record(made, pairs, command, options.recipe) | {"differs": _share_that_differs(pair.base, merged)}
    if scores is not None and gates is not None:
        said["taken"] = [_taken(own, gate) for own, gate in zip(scores, gates, strict=True)]
    beside = {**pair.beside, CARD: card(made, said), RECORD: json.dumps(manifest.plain(said), indent=2) + "\n"}
    place = saving.save_checkpoint(
        replace(pair, beside=beside), merged, options.out.expanduser(), dtype=stored, overwrite=options.overwrite
    )
    seconds = np.diff([began, read_at, merged_at, time.monotonic()])
    console.print("read {:.1f} s, merged {:.1f} s, written {:.1f} s".format(*seconds), markup=False)
    return place


def asked(options: Merge) -> Recipe:
    """What the options say, or the recipe that they name. Raises ValueError for all that can be refused before a model is read."""
    faults = []
    if options.recipe is not None:
        silent = Merge(out=options.out)
        beside = [name for name in BY_RECIPE if getattr(options, name) != getattr(silent, name)]
        faults += [f"--{name}: --recipe {options.recipe} says this; leave one of them out" for name in beside]
        try:
            made = merge_recipe.read(options.recipe)
        except (ValueError, OSError) as error:
            raise _refusal([*faults, *_out_faults(options, []), str(error)]) from None
        if options.stored is not None and made.stored is not None:
            faults.append(f"--stored: --recipe {options.recipe} says this; leave one of them out")
    else:
        made = _of_flags(options, faults)
    if made.method and made.experts:
        faults += merger.asked_faults(made.method, len(made.experts), _numbers(made), made.options)
    elif made.method:
        faults += merger.method_faults(made.method)
    if made.rule is not None:
        faults += merger.rule_faults(made.rule, made.budget, made.conflict)
    if made.method in METHODS and METHODS[made.method].needs is not None and METHODS[made.method].is_needed:
        faults.append(
            f"method {made.method} must know the experts' data: merge by jp.merge(..., statistics=), from a notebook"
        )
    faults += checkpoints.location_faults(**({"base": made.base} if made.base else {}))
    for number, expert in enumerate(made.experts):
        faults += checkpoints.location_faults(**{f"expert {number}": expert.model})
        if (expert.scores is None) == (made.rule is not None):
            faults.append(
                f"expert {number}: rule {made.rule} needs its scores, the folder of a run; say them"
                if expert.scores is None
                else f"expert {number}: its scores are said, and no rule by which they become gates; say one, as in mask"
            )
        elif expert.scores is not None and not (Path(expert.scores).expanduser() / "manifest.json").is_file():
            faults.append(
                f"expert {number}: scores {expert.scores}: wanted the folder of a run; it has no manifest.json"
            )
    aside = {"budget": 1.0, "conflict": "all", "rest": 0.0, "kinds": {}}
    faults += [
        f"{name}: it is for gates, and no rule is said by which scores become gates; say one, or leave it out"
        for name, silence in aside.items()
        if made.rule is None and getattr(made, name) != silence
    ]
    faults += [f"--{fault}" for fault in checkpoints.choice_faults(options.choices)]
    if (stored := options.stored or made.stored) is not None:
        faults += [f"stored: {fault}" for fault in saving.stored_faults(stored)]
    faults += _out_faults(options, [made.base, *(expert.model for expert in made.experts)])
    if faults:
        raise _refusal(faults)
    return made


def _out_faults(options: Merge, models: Sequence[str]) -> list[str]:
    """Why the merged model could not be written. models: that are read, none of which it may replace."""
    place = options.out.expanduser().resolve()
    faults = [f"--out {options.out}: {fault}" for fault in atomic.place_faults(options.out, ROOM_NEEDED)]
    if any(place == Path(model).expanduser().resolve() for model in models if model):
        faults.append(f"--out {options.out}: it is one of the models that are merged; name another")
    elif place.exists() and not options.overwrite:
        faults.append(f"--out {options.out}: it exists and is not overwritten; name another, or say --overwrite")
    return faults


def _refusal(faults: Sequence[str]) -> ValueError:
    return ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _of_flags(options: Merge, faults: list[str]) -> Recipe:
    count = len(options.experts)
    faults += [f"--{name}: wanted, or a --recipe" for name in ("base", "method") if getattr(options, name) is None]
    faults += [] if count else ["--experts: wanted at least one model, or a --recipe"]
    each: dict[str, list[Any]] = {}
    for name, silence in (("weights", 1.0), ("density", None), ("scores", None)):
        given = list(getattr(options, name)) or [silence]
        if len(given) not in (1, count) or (name == "scores" and given != [None] and len(given) != count):
            several = f"{count}, one for each expert" if name == "scores" else f"1 or {count}, one for each expert"
            faults.append(f"--{name}: wanted {several}; got {len(given)}")
        each[name] = (given * count if len(given) == 1 else given)[:count] + [silence] * max(0, count - len(given))
    own = []
    for number, model in enumerate(options.experts):
        scores = each["scores"][number]
        own.append(
            Expert(
                model=model,
                weight=each["weights"][number],
                density=each["density"][number],
                scores=None if scores is None else str(scores),
            )
        )
    named = {}
    for word in options.set:
        name, is_said, value = word.partition("=")
        if not is_said or not name:
            faults.append(f"--set {word}: wanted NAME=VALUE, as in trim=all")
        named[name] = _value(value)
    return Recipe(
        method=options.method or "",
        base=options.base or "",
        experts=tuple(own),
        scale=options.scale,
        seed=options.seed,
        options=named,
        rule=options.rule,
        budget=options.budget,
        conflict=options.conflict,
        rest=options.rest,
    )


def _value(word: str) -> Any:
    """A word of the command line as what it looks like.

    >>> _value("true"), _value("0.5"), _value("all")
    (True, 0.5, 'all')
    """
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    try:
        return float(word)
    except ValueError:
        return word


def _earlier(made: Recipe) -> list[validation.Earlier]:
    """What the runs left that scored the experts. Raises ValueError with all that is wrong with them, before a model is read."""
    found, faults = [], []
    for number, expert in enumerate(made.experts):
        try:
            found.append(validation.read(str(expert.scores)))
        except (ValueError, OSError) as error:
            faults.append(f"scores of expert {number}: {error}")
    if not faults:
        faults = merger.apportion_faults(str(made.rule), [each.scores for each in found], **_ruled(made))
    if faults:
        raise _refusal(faults)
    return found


def _ruled(made: Recipe) -> dict[str, Any]:
    """As `merger.apportion` has it."""
    return {"budget": made.budget, "conflict": made.conflict, "kinds": dict(made.kinds)}


def _read(made: Recipe, options: Merge, earlier: Sequence[validation.Earlier] | None) -> dict[str, Pair]:
    """Each expert beside base, which all of them share, and which is held once. To an average base is a model like the others.

    Raises: ValueError with what is wrong with any of them: no pair with base, or other models than were scored.
    """
    pairs, faults = {}, []
    for number, expert in enumerate(made.experts):
        try:
            is_average = made.method == "linear"
            pair = checkpoints.load_pair(made.base, expert.model, may_be_same=is_average, **vars(options.choices))
            if earlier is not None:
                validation.refuse_changed(pair, earlier[number].manifest)
            pairs = experts.with_one_base(pairs | {f"expert {number}": pair})
        except (ValueError, OSError) as error:
            faults.append(f"expert {number} {expert.model}: {error}")
    if faults:
        raise _refusal(faults)
    return pairs


def _taken(scores: Scores, gates: Gates) -> dict[str, Any]:
    """Of one expert: how many components of each kind go in, and the best of these with their scores."""
    counts = {kind: int((np.nan_to_num(gate) > 0).sum()) for kind, gate in gates.items()}
    best = []
    for kind, gate in gates.items():
        frame = scores.of([kind]).to_frame()
        goes_in = np.nan_to_num(gate).ravel() > 0
        best += zip(frame["score"][goes_in].astype(float), frame["name"][goes_in], strict=True)
    return {"components": counts, "best": [[name, score] for score, name in sorted(best, reverse=True)[:BEST]]}


def _numbers(made: Recipe) -> dict[str, Any]:
    """As `merger.merge` has them. Of densities, where some experts say nothing and others do, those keep all."""
    said = [expert.density for expert in made.experts]
    is_silent = all(each is None for each in said)
    return {
        "weights": [expert.weight for expert in made.experts],
        "density": None if is_silent else [1.0 if each is None else each for each in said],
        "scale": made.scale,
        "seed": made.seed,
        "rest": made.rest,
    }


def _share_that_differs(base: Params, merged: Params) -> float:
    """Of all parameters, those that are not base's any more."""
    a, b = paths.leaves(base), paths.leaves(merged)
    changed = sum(int((jnp.asarray(a[path]) != b[path]).sum()) for path in a)
    return changed / sum(np.size(leaf) for leaf in a.values())


def _record(made: Recipe, pairs: Mapping[str, Pair], command: Sequence[str], recipe: Path | None) -> dict[str, Any]:
    """All that is needed to do it again. recipe: the file that it was read from."""
    files: dict[str, Sequence[str | Path]] = {"base": next(iter(pairs.values())).files["base"]}
    files |= {name: pair.files["special"] for name, pair in pairs.items()}
    for number, expert in enumerate(made.experts):
        if expert.scores is not None:
            run = Path(expert.scores).expanduser()
            files[f"scores of expert {number}"] = [run / name for name in ("manifest.json", "scores.safetensors")]
    files |= {"recipe": [recipe.expanduser()]} if recipe is not None else {}
    return {
        "command": shlex.join(command),
        "recipe": asdict(made),
        "files": {
            who: [{"name": Path(file).name, "sha256": checkpoints.sha256(Path(file))} for file in several]
            for who, several in files.items()
        },
        "versions": manifest.versions(),
    }


def card(made: Recipe, said: Mapping[str, Any]) -> str:
    """The model's card, in Markdown: what it was made from, by what, and which files these were."""
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- merge",
        "- jaxpatch",
        "---",
        "",
        "# Merged model",
        "",
        f"{len(made.experts)} expert{'s' if len(made.experts) > 1 else ''} of `{made.base}`, merged by jaxpatch "
        f"{said['versions']['jaxpatch']}.",
        "",
        f"Method: **{made.method}**, {METHODS[made.method].says}.",
        "",
        "| expert | weight | density | scores |",
        "| --- | --- | --- | --- |",
    ]
    for expert in made.experts:
        density, scores = ("" if each is None else each for each in (expert.density, expert.scores))
        lines.append(f"| `{expert.model}` | {expert.weight:g} | {density} | {scores} |")
    method = METHODS[made.method]
    rules = {name: getattr(made, name) for name in ("scale", "seed") if name in method.takes}
    rules |= {name: option.default for name, option in method.options.items()} | dict(made.options)
    if made.rule is not None:
        rules |= {"rule": made.rule, "budget": made.budget, "conflict": made.conflict, "rest": made.rest}
        rules |= {f"weight of kind {kind}": weight for kind, weight in made.kinds.items()}
    if rules:
        lines += ["", ", ".join(f"{name} {value}" for name, value in rules.items()) + "."]
    lines += ["", f"{said['differs']:.2%} of the parameters are not base's.", ""]
    if "taken" in said:
        lines += [
            "## Scores",
            "",
            "| expert | components that go in | the best, and their scores |",
            "| --- | --- | --- |",
        ]
        for expert, taken in zip(made.experts, said["taken"], strict=True):
            counts = ", ".join(f"{count:,} of kind {kind}" for kind, count in taken["components"].items())
            best = ", ".join(f"{name} {score:.3g}" for name, score in taken["best"])
            lines.append(f"| `{expert.model}` | {counts} | {best} |")
        lines.append("")
    lines += [
        "## Files",
        "",
        "| of | file | SHA-256 |",
    ]
    lines += ["| --- | --- | --- |"]
    for who, several in said["files"].items():
        lines += [f"| {who} | {file['name']} | `{file['sha256']}` |" for file in several]
    lines += ["", "All of it, to do it again, is in merge.json.", ""]
    return "\n".join(lines)
