"""Shell: whether a ranking means anything: curves against controls, and what patched models write. After a run, or for an earlier one's
results on other prompts."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import tyro
from rich.console import Console

from jaxpatch import pipeline, results
from jaxpatch.clock import Clock
from jaxpatch.measuring import anchor_file, continuations, inputs, prompt_sets, read_outs, sweep, tasks
from jaxpatch.models import checkpoints
from jaxpatch.models.differences import Choices
from jaxpatch.patching import blend, components
from jaxpatch.reporting import findings, manifest, tables
from jaxpatch.scoring import archive, scores
from jaxpatch.shapes import Gates
from jaxpatch.tracing import roles
from jaxpatch.validating import controls, curves
from jaxpatch.validating.curves import Curve
from jaxpatch.validating.smallest import Smallest

FEWEST_ANSWERING = 30
"""Components: smaller sets of the first ones are not asked to write."""
READ = ("manifest.json", "scores.safetensors", "anchor.safetensors")
"""Files of an earlier run without which there is nothing to validate."""


@dataclass(frozen=True, kw_only=True)
class Validate:
    """Does an earlier run's ranking hold on prompts that were not scored? Curves against controls, and what patched models write.

    Models, task, anchor and scores are the earlier run's; a model whose files have changed since is refused. Results are a folder like
    a run's, with the earlier scores in it.

    Attributes:
        results: folder that `jaxpatch run` or `jaxpatch trace` left.
        out: folder for these results; must not exist yet.
        num_scoring: prompts to draw curves on; of a file, those that are left, at most.
        num_behaviour: prompts to be answered in full; of a file, those that are left, at most.
        num_random: random orders averaged in the curves.
        max_new: tokens of an answer.
        fresh: take prompts that the earlier run did not score or answer; otherwise the first ones, which it did. Side effects are seen
            on the plain requests that its anchor was fitted on, in either case; no ranking looked at those.
        seed: of bootstrap and random controls.
        overwrite: replace the results of an earlier run at --out.
    """

    results: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RESULTS")]
    out: Path
    num_scoring: int = 12
    num_behaviour: int = 8
    num_random: int = 5
    max_new: int = 96
    fresh: bool = True
    seed: int = 0
    overwrite: bool = False


class Earlier(NamedTuple):
    """What an earlier run left. roles: None where it exchanged no activations."""

    manifest: dict[str, Any]
    anchor: read_outs.Anchor
    scores: scores.Scores
    roles: roles.Roles | None

    @property
    def options(self) -> dict[str, Any]:
        """By the names that they have on the command line."""
        return self.manifest["options"]


class Validation(NamedTuple):
    """Curves of a ranking and its controls, and the smallest sets along it. others: what else ranks the same components, by name; None
    where nothing was drawn."""

    curves: tuple[Curve, ...] = ()
    smallest: tuple[Smallest, ...] = ()
    others: Mapping[str, scores.Scores] | None = None


def validate(options: Validate, *, command: Sequence[str] = (), console: Console | None = None) -> Path:
    """Curves, smallest sets and answers of an earlier run's ranking, on other prompts.

    Returns: the path of the report. Raises: ValueError, OSError, MemoryError, each saying what to do; then nothing is written.
    """
    console = Console() if console is None else console
    refuse(options)
    earlier = read(options.results)
    asked = earlier.options
    choices = Choices(**{each.name: asked[each.name] for each in fields(Choices) if each.name in asked})
    clock, sets = Clock(console), _prompt_sets(options, earlier.manifest)
    if asked["dtype"] == "float64":
        jax.config.update("jax_enable_x64", True)
    with jax.default_matmul_precision(asked["precision"]):
        with clock.stage("load the pair") as part:
            pair = checkpoints.load_pair(
                asked["base"],
                asked["special"],
                dtype=asked["dtype"],
                **vars(choices),
                progress=part("models read and checked"),
            )
            refuse_changed(pair, earlier.manifest)
            prompts, plain = (inputs.encode(pair, texts) for texts in (sets.scoring, sets.plain[: len(sets.behaviour)]))
            refuse_long_answers(options.max_new, pair, plain, inputs.encode(pair, sets.behaviour))
        with clock.stage("validate") as part:
            drawn = validated(
                pair,
                prompts,
                earlier.anchor,
                earlier.scores,
                earlier.roles,
                num_random=options.num_random,
                seed=options.seed,
                memory=None if asked["memory"] is None else int(asked["memory"] * 2**30),
                progress=part,
            )
        with clock.stage("write answers") as part:
            samples, along = written(
                pair,
                sets,
                plain,
                earlier.scores,
                drawn.others,
                max_new=options.max_new,
                seed=options.seed,
                progress=part("models"),
            )
    made = findings.Findings(
        task=sets.name,
        question=manifest.plain(asdict(options)),
        anchor=earlier.anchor,
        anchor_info=manifest.unfitted(earlier.manifest["anchor"]),
        scores=earlier.scores,
        roles=earlier.roles,
        curves=drawn.curves,
        smallest=drawn.smallest,
        samples=samples,
        along=along,
        pair=earlier.manifest["pair"],
        manifest=manifest.build(
            command=list(command),
            seed=options.seed,
            dtype=asked["dtype"],
            precision=asked["precision"],
            files=pair.files,
            times=clock.times,
            options=asked | manifest.plain(asdict(options)),
            pair=earlier.manifest["pair"],
            exchanged=earlier.roles,
            anchor=manifest.unfitted(earlier.manifest["anchor"]),
        )
        | {"validates": earlier.manifest["command"]},
        judged_on=f"{len(sets.scoring)} {'prompts that were not scored' if options.fresh else 'of the scored prompts'}",
    )
    with clock.stage("write the results"):
        results.write(made, options.out.expanduser(), overwrite=options.overwrite)
    console.print(tables.terminal(made))
    return options.out.expanduser() / "report.html"


def refuse(options: Validate) -> None:
    """Raises ValueError for all that can be refused before anything is read, at once."""
    faults = []
    for name, fewest in (("num_scoring", 2), ("num_behaviour", 1), ("num_random", 1), ("max_new", 1), ("seed", 0)):
        if (value := getattr(options, name)) < fewest:
            faults.append(f"--{name.replace('_', '-')} {value}: wanted at least {fewest}")
    folder = options.results.expanduser()
    if not folder.is_dir():
        faults.append(f"{folder}: no such folder; wanted what jaxpatch run or jaxpatch trace left")
    elif missing := [name for name in READ if not (folder / name).is_file()]:
        faults.append(f"{folder} has no {', '.join(missing)}; wanted what jaxpatch run or jaxpatch trace left")
    faults += [
        f"--out {options.out}: {each}" for each in results.place_faults(options.out, overwrite=options.overwrite)
    ]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def read(folder: str | Path) -> Earlier:
    """What a run left in its folder."""
    folder = Path(folder).expanduser()
    try:
        said = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        missing = {"options", "anchor", "files", "pair", "command", "prompts", "scores"} - said.keys()
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{folder / 'manifest.json'} is no manifest of a run: {error}") from None
    if "validates" in said:
        raise ValueError(f"{folder} is of jaxpatch validate; name the folder of the run itself: {said['validates']}")
    if missing:
        raise ValueError(
            f"{folder / 'manifest.json'} lacks {', '.join(sorted(missing))}: it is of another version; run again."
        )
    found, placed = archive.load_scores(folder / "scores.safetensors"), None
    if archive.digest(found) != said["scores"]:
        raise ValueError(
            f"{folder / 'scores.safetensors'}: these are not the scores that this run left. Put them back, or run again: "
            f"{said['command']}"
        )
    if (folder / "activations.safetensors").is_file():
        placed = roles.place(found, archive.load_scores(folder / "activations.safetensors"))
    return Earlier(said, anchor_file.load_anchor(folder / "anchor.safetensors"), found, placed)


def refuse_changed(pair: checkpoints.Pair, said: dict[str, Any]) -> None:
    """Raises ValueError where the models' files are not those that a manifest tells of."""
    now = {
        role: {file.name: checkpoints.sha256(Path(file)) for file in several} for role, several in pair.files.items()
    }
    then = {role: {file["name"]: file["sha256"] for file in each["read"]} for role, each in said["files"].items()}
    wrong = [
        f"{role}: {name} is {'not the same' if name in now.get(role, {}) else 'not read'} any more"
        for role, several in then.items()
        for name, hashed in several.items()
        if now.get(role, {}).get(name) != hashed
    ]
    if wrong:
        raise ValueError(
            "these are not the models that were scored:\n"
            + "\n".join(f"  - {each}" for each in wrong)
            + "\nPut them back where they were, or score these: "
            + said["command"]
        )


def _prompt_sets(options: Validate, said: dict[str, Any]) -> prompt_sets.PromptSets:
    """Prompts beyond those of the earlier run, or its own.

    Raises: ValueError where its own are not the first of what there is now: then nobody knows which were scored.
    """
    asked, wanted = said["options"], {"scoring": options.num_scoring, "behaviour": options.num_behaviour}
    used = {name: said["prompts"][name]["count"] if options.fresh else 0 for name in wanted}
    if asked["task"] in tasks.TASKS:
        counts = {name: asked[f"num_{name}"] for name in ("anchor", *wanted)} | {"layer": prompt_sets.NUM_LAYER}
        more = {name: used[name] + number for name, number in wanted.items()} if options.fresh else {}
        own, sets = (prompt_sets.of_task(asked["task"], each, seed=asked["seed"]) for each in (counts, counts | more))
    else:
        try:
            own = sets = prompt_sets.of_file(asked["task"])
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} Paths are as the earlier run was given them: start where it was started, or put the file there."
            ) from None
    now = own.hashes({name: each["count"] for name, each in said["prompts"].items()})
    if changed := [name for name in now if now[name] != said["prompts"][name]]:
        raise ValueError(
            f"{asked['task']}: not the prompts of the earlier run any more ({', '.join(changed)}), so that nobody knows which were "
            "scored. Put the file back as it was, new lines behind all others, or score again: " + said["command"]
        )
    found = sets.beyond(used, wanted)
    few = [
        f"{name}: {len(getattr(found, name))} of {len(getattr(sets, name))} left, wanted at least {fewest}"
        for name, fewest in (("scoring", 2), ("behaviour", 1))
        if len(getattr(found, name)) < fewest
    ]
    if few:
        raise ValueError(
            f"{asked['task']}: too few prompts that the earlier run did not use ({'; '.join(few)}). Add lines at the end of the file, "
            "or say --no-fresh to take those that it used."
        )
    return found


def validated(
    pair: checkpoints.Pair,
    prompts: inputs.Inputs,
    anchor: read_outs.Anchor,
    found: scores.Scores,
    placed: roles.Roles | None,
    *,
    num_random: int,
    seed: int,
    memory: int | None,
    progress: Callable[[str], sweep.Progress],
) -> Validation:
    """Curves with every control, and the smallest sets along the ranking's. placed: where E_a was asked. memory: bytes, as for
    `pipeline.score`."""
    others = _other_orders(pair, prompts, anchor, found, placed, memory)
    drawn = pipeline.validate(
        pair,
        prompts,
        anchor,
        found,
        others=others,
        num_random=num_random,
        seed=seed,
        progress=progress("sets patched"),
    )
    found_sets = pipeline.smallest_sets(
        pair, prompts, anchor, found, drawn, seed=seed, progress=progress("smallest sets sought")
    )
    return Validation(drawn, found_sets, others)


def _other_orders(
    pair: checkpoints.Pair,
    prompts: inputs.Inputs,
    anchor: read_outs.Anchor,
    found: scores.Scores,
    placed: roles.Roles | None,
    memory: int | None,
) -> dict[str, scores.Scores]:
    """What else could have ranked the components that E_w ranks: first order, where that is not what ranked them; and E_a, where it was
    asked of all of them."""
    kinds, made = components.disjoint(found.partition, tuple(found.values)), {}
    if found.method != "first_order":
        made["first order"] = pipeline.score(
            pair, prompts, anchor, kinds=kinds, method="first_order", aggregate=found.aggregate, memory=memory
        )
    if placed is not None and set(kinds) <= placed.activations.values.keys():
        made["largest E_a"] = placed.activations
    return made


def refuse_long_answers(max_new: int, pair: checkpoints.Pair, *answered: inputs.Inputs) -> None:
    """Raises ValueError where the longest prompt and its answer would not fit into the context."""
    longest, context = max(prompts.tokens.shape[1] for prompts in answered), pair.config.context
    if longest + max_new > context:
        raise ValueError(
            f"--max-new {max_new}: with the longest prompt ({longest} tokens) that is more than the context of {context}; "
            f"wanted at most {context - longest}."
        )


class Writer(NamedTuple):
    """A model that is to write answers. order, size: as in `findings.Along`. gates: what of special's is in it; None of an end."""

    name: str
    order: str = ""
    size: int | None = None
    gates: Gates | None = None


def written(
    pair: checkpoints.Pair,
    sets: prompt_sets.PromptSets,
    plain: inputs.Inputs,
    found: scores.Scores,
    others: Mapping[str, scores.Scores] | None,
    *,
    max_new: int,
    seed: int,
    progress: sweep.Progress,
) -> tuple[tuple[findings.Sample, ...], dict[str, findings.Along]]:
    """What base, special, and base with more and more of the ranking's first components patched write to the behaviour prompts; and how
    they follow special's answers there, and base's where the instruction is left out. One patched model at a time.

    The ranking's beginnings are powers of ten, and all. Below the first whose answers come half way from base's to special's the one a
    third as large writes, too; and with as many components as the first that is half way, the controls.

    Args: plain: prompts without the instruction. others: what else ranks the components; None where the ends alone are to write. seed:
        of random controls.
    """
    requests = inputs.encode(pair, sets.behaviour)
    told = {
        "special": continuations.continuation(pair, pair.special, requests, max_new=max_new),
        "base": continuations.continuation(pair, pair.base, plain, max_new=max_new),
    }
    sides = {"base": pair.base, "special": pair.special}
    from_side = {side: continuations.divergence_from(pair, sides[side], told[side]) for side in told}
    samples: dict[str, list[findings.Sample]] = {}
    along: dict[str, findings.Along] = {}

    def write(writer: Writer) -> None:
        params = sides[writer.name] if writer.gates is None else blend.patch(pair.base, pair.special, writer.gates)
        if writer.name == "special":
            texts = continuations.texts(pair, told["special"])
        else:
            texts = pipeline.generate(pair, params, requests, max_new=max_new)
        verdicts = [
            (None,) * len(texts)
            if rules is None
            else tuple(rule(text) for rule, text in zip(rules, texts, strict=True))
            for rules in (sets.verdicts, sets.loosely)
        ]
        samples[writer.name] = [
            findings.Sample(prompt, writer.name, text, strict, loose)
            for prompt, text, strict, loose in zip(sets.behaviour, texts, *verdicts, strict=True)
        ]
        to_special, to_base = from_side["special"](params), from_side["base"](params)
        along[writer.name] = findings.Along(
            float(to_special.kl.mean()), float(to_base.kl.mean()), to_base.perplexity, writer.order, writer.size
        )

    def follow(name: str) -> int:
        return sum(bool(sample.follows) for sample in samples[name])

    def half_way() -> int | None:
        """Of the beginnings that wrote the first whose answers come half way; None where special's follow no more often than base's."""
        half = (follow("base") + follow("special")) / 2
        there = (n for n, each in enumerate(beginnings) if each.name in samples and follow(each.name) >= half)
        return next(there, None) if follow("special") > follow("base") else None

    def write_all(writers: Sequence[Writer]) -> None:
        before = len(samples)
        for number, writer in enumerate(writers, before + 1):
            write(writer)
            progress(number, before + len(writers))

    beginnings = [] if others is None else list(_beginnings(found))
    ends = [Writer("base"), Writer("special")]
    write_all([*ends, *(each for each in beginnings if _is_coarse(each, beginnings)), _whole(found)])
    if number := half_way():  # and not the first of all, below which there is nothing
        write_all([each for each in beginnings[number - 1 : number] if each.name not in samples])
    beside = []
    if others is not None and (number := half_way()) is not None and beginnings[number] is not beginnings[-1]:
        beside = list(_controls(pair, found, others, beginnings[number].size or 0, seed))
        write_all(beside)
    names = [each.name for each in (*ends, *beginnings, _whole(found), *beside) if each.name in samples]
    return tuple(sample for name in names for sample in samples[name]), {name: along[name] for name in names}


def _order(found: scores.Scores) -> tuple[controls.Order, dict[str, tuple[int, ...]]]:
    """The ranking of all components that can matter, and the shapes of their kinds."""
    kinds = components.disjoint(found.partition, tuple(found.values))
    order = controls.ranked({kind: found.values[kind] for kind in kinds}, found.reach)
    return order, {kind: found.values[kind].shape for kind in kinds}


def _beginnings(found: scores.Scores) -> Iterator[Writer]:
    """Base with the ranking's first components, so many and three times and ten times as many."""
    order, shapes = _order(found)
    for k in curves.sizes(len(order.places)) if len(order.places) else ():
        if k >= FEWEST_ANSWERING:
            yield Writer(f"base + top {k}", "top", int(k), controls.mask(order, k, shapes))


def _is_coarse(writer: Writer, beginnings: Sequence[Writer]) -> bool:
    """Whether a beginning is one of a power of ten, or of all."""
    return writer is beginnings[-1] or math.log10(writer.size or 1).is_integer()


def _whole(found: scores.Scores) -> Writer:
    """Base with all of the ranked kinds."""
    _, shapes = _order(found)
    gates = components.gates(found.partition, dict.fromkeys(shapes, "all"))
    return Writer(f"base + all {' + '.join(shapes)}", gates=gates)


def _controls(
    pair: checkpoints.Pair, found: scores.Scores, others: Mapping[str, scores.Scores], k: int, seed: int
) -> Iterator[Writer]:
    """Base with as many components as the first k of the ranking, of each kind as many, by each other order."""
    order, shapes = _order(found)
    changes = {
        kind: np.asarray(components.delta_norms(pair.base, pair.special, found.partition[kind])) for kind in shapes
    }
    ranked = {name: each.values for name, each in others.items()}
    for name, (control, *_) in controls.of_equal_size(order, shapes, changes, ranked, [seed]).items():
        yield Writer(f"base + {k}, {name}", name, k, controls.mask(control, k, shapes))
