"""Shell: one run, from two checkpoints to a folder with a report."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from jaxpatch import hierarchy, pipeline, reference, results, resume
from jaxpatch.clock import Clock
from jaxpatch.measuring import anchors, devices, inputs, prompt_sets, read_outs, sweep, targets, tasks
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models import checkpoints, layers
from jaxpatch.models.differences import Choices
from jaxpatch.patching import changes, components, exchange
from jaxpatch.reporting import findings, likeness, manifest, tables
from jaxpatch.scoring import AS_CAREFUL, METHODS, archive, normalise, scores
from jaxpatch.tracing import flow, roles
from jaxpatch.trees import paths
from jaxpatch.validation import Validation, refuse_long_answers, validated, written

FEWEST_RELAYS = 100
"""Of the components with the highest E_a, and of the suppliers of each target, so many at least are found for certain. The cheap score
of activations is less often to be trusted, and the fewer must then be right, the larger the sample that says so: of 20, everything."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """Find which parameters carry a behaviour, and write a report.

    Where --options FILE is said, options come from a JSON file, by the names below with _ for - ({"num_scoring": 16}); what is said
    beside it wins. The manifest.json of an earlier run is such a file: with another --out that run is done again.

    Attributes:
        base: base model: a Hugging Face directory with safetensors, a .gguf file, a hub id (owner/name or
            owner/name@revision, of a GGUF file there with /file.gguf after it), or a PEFT LoRA adapter, which is merged into the model
            that it names.
        special: the behaviour-specialised model: the same; an adapter is merged into base.
        task: english_capital, no_comma, title, multiple_sections, quotation, number_highlighted_sections; or a JSONL file with lines
            {"with": request with the instruction, "without": the same without it}.
        out: folder for the results; must not exist yet.
        layer: read the anchor after this block (0-based); chosen where not given.
        kinds: of component: head, kv, neuron, expert, router, attention, mlp, layer, matrix, norm,
            final_norm, embed, positions, unembed.
        method: exact, screened, local_linear, first_order or integrated.
        top: how many of the best components of each kind must be found (screened); by E_a, 100 at least.
        alpha: level at which they are (screened).
        sample: drawn at random for that, at least: a larger one notices rarer components to which the cheap score is blind (screened).
        steps: points along the path (integrated).
        limit: replace no more of each kind than so many, whatever the promise takes (screened); the report then says what is promised.
        read_out: of the anchor: projection, cosine or centred.
        contrast: of the anchor: instruction (special with - without) or models (special - base).
        aggregate: mean_of_ratios or ratio_of_means.
        num_anchor: prompts for the anchor, with and without the instruction (of a file: at most).
        num_scoring: prompts for the scores (of a file: at most).
        num_behaviour: prompts that are answered in full (of a file: at most).
        num_random: random orders averaged in the validation curves.
        max_new: tokens of an answer.
        relays: also patch activations (E_a), as carefully as weights, and say which components are sources and which are relays.
        validation: draw the restoration and knockout curves.
        parity: first hold logits to transformers' where torch is installed (not of GGUF files, which it is slow to read), or to golden
            ones where they are known; of float32 and float64, by one process.
        memory: GiB that the engine may hold beside the two models, on each device; half of what is free where not given.
        mesh: devices that share exact patches, N M: N times as many candidates at once, each block's heads and neurons cut in M.
        distributed: this process is one of several (jax.distributed), each given the same command; the first one writes. The mesh is of
            all their devices: all for candidates, where --mesh does not say otherwise.
        dtype: of the weights in memory: float32, bfloat16, float16 or float64.
        precision: of float32 matrix products on an accelerator: highest (float32), high (TF32, or three passes of bfloat16), default.
        seed: of prompts, bootstrap and random controls.
        choices: whose word counts where base and special disagree; what is left open is refused.
        force: go on with an anchor that fails its checks; every result then says so.
        overwrite: replace the results of an earlier run at --out.
    """

    base: str
    special: str
    task: str
    out: Path
    layer: int | None = None
    kinds: tuple[str, ...] = ("head", "neuron")
    method: str = "screened"
    top: int = 100
    alpha: float = 0.05
    sample: int = 200
    steps: int = 16
    limit: int | None = None
    read_out: str = "projection"
    contrast: str = "instruction"
    aggregate: str = "mean_of_ratios"
    num_anchor: int = 32
    num_scoring: int = 12
    num_behaviour: int = 4
    num_random: int = 3
    max_new: int = 96
    relays: bool = True
    validation: bool = True
    parity: bool = True
    memory: float | None = None
    mesh: tuple[int, int] | None = None
    distributed: bool = False
    dtype: str = "float32"
    precision: str = "highest"
    seed: int = 0
    choices: Choices = field(default_factory=Choices)
    force: bool = False
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Trace(Run):
    """As run; and from the state back through the relays that aggregate it to the sources that supply them.

    Options from a file, --options FILE, as for run.

    Attributes:
        suppliers: method by which the suppliers of relays are found; those of the state are found by --method. A screened one takes as
            long for each relay as for the state.
        through: kinds of which relays are followed: head, neuron, attention, mlp; of those that --kinds names. On one device, whatever
            --mesh says.
        path: how a relay reaches what it is a part of: total, through all blocks between; or direct.
        levels: of relays below the state that are followed, at most.
        most: suppliers of each sort that are kept of one target, at most.
        least: share of the state that a relay must carry to be followed.
        by_input: also say through which of a relay's inputs each supplier acts: queries, keys or values (path patching).
    """

    suppliers: str = "local_linear"
    through: tuple[str, ...] = ("head",)
    path: str = "total"
    levels: int = flow.DEFAULTS.levels
    most: int = flow.DEFAULTS.most
    least: float = flow.DEFAULTS.least
    by_input: bool = True

    @property
    def rules(self) -> flow.Rules:
        """When tracing goes on."""
        return flow.Rules(most=self.most, least=self.least, levels=self.levels)


def run(options: Run, *, command: Sequence[str] = (), console: Console | None = None) -> Path:
    """The whole method for one pair and one behaviour: anchor, scores, validation, samples, report.

    A run that is stopped while it scores keeps what it has in `unfinished`; the same options go on from there.

    Returns: the path of the report. Raises: ValueError, KeyError, OSError, MemoryError, each saying what to do; then no results are
        written.
    """
    console = Console() if console is None else console
    options = replace(options, out=options.out.expanduser())
    if options.distributed:
        devices.join()
        console = console if devices.is_first() else Console(quiet=True)
        _refuse_together(options)
    else:
        refuse(options)
    with jax.default_matmul_precision(options.precision), resume.Journal(unfinished(options.out)) as journal:
        return _run(options, command, console, journal)


def _run(options: Run, command: Sequence[str], console: Console, journal: resume.Journal) -> Path:
    clock = Clock(console)
    mesh = devices.grid(options.mesh) if options.mesh or options.distributed else None
    sets = _prompt_sets(options)
    with clock.stage("load the pair") as part:
        pair = checkpoints.load_pair(
            options.base,
            options.special,
            dtype=options.dtype,
            **vars(options.choices),
            mesh=None if options.distributed else mesh,
            progress=part("models read and checked"),
        )
        _refuse_for_pair(options, pair)
        parity = _parity(options, pair)
        encoded = {
            name: inputs.encode(pair, getattr(sets, name))
            for name in ("asked", "plain", "steered", "scoring", "behaviour")
        }
        refuse_long_answers(options.max_new, pair, encoded["behaviour"], encoded["plain"])
    with clock.stage("find the anchor") as part:
        anchor, info = anchors.fit_anchor(
            pair,
            encoded["asked"],
            encoded["plain"],
            layer=options.layer,
            contrast=options.contrast,
            read_out=options.read_out,
            plain=encoded["steered"],
            verdict=sets.sign,
            progress=part("layers tried"),
        )
        if not options.force:
            anchors.refuse_untrusted(info)

    def scored(kinds: tuple[str, ...], method: str, top: int, journal: resume.Journal) -> scores.Scores:
        with clock.stage(f"score ({method})") as part:
            found = pipeline.score(
                pair,
                encoded["scoring"],
                anchor,
                kinds=kinds,
                method=method,
                aggregate=options.aggregate,
                top=top,
                alpha=options.alpha,
                memory=None if options.memory is None else int(options.memory * 2**30),
                sample=options.sample,
                steps=options.steps,
                limit=options.limit,
                seed=options.seed,
                mesh=mesh,
                journal=journal,
                progress=part,
            )
        if journal.num_resumed:
            console.print(f"{journal.num_resumed:,} components were known from an interrupted run")
        return found

    placed, traced, exchanged = None, None, _exchanged(options, pair)
    with journal.following() as second, second.following() as third, third.following() as fourth:
        found = scored(options.kinds, options.method, options.top, journal)
        if exchanged:
            most = max(options.top, FEWEST_RELAYS)
            placed = roles.place(found, scored(exchanged, AS_CAREFUL[options.method], most, second))
        if isinstance(options, Trace):
            with clock.stage("trace") as part:
                traced = _traced(options, pair, encoded["scoring"], anchor, exchanged, placed, (third, fourth), part)
    proof = Validation()
    if options.validation:
        with clock.stage("validate") as part:
            proof = validated(
                pair,
                encoded["scoring"],
                anchor,
                found,
                placed,
                num_random=options.num_random,
                seed=options.seed,
                memory=None if options.memory is None else int(options.memory * 2**30),
                progress=part,
            )
    with clock.stage("write answers") as part:
        samples, along = written(
            pair,
            sets,
            encoded["plain"].rows(slice(len(sets.behaviour))),
            found,
            proof.others,
            max_new=options.max_new,
            seed=options.seed,
            progress=part("models"),
        )
    compared = _compared(pair, options.kinds) | {"parity": parity}
    made = findings.Findings(
        task=sets.name,
        question=asked(options),
        anchor=anchor,
        anchor_info=info,
        scores=found,
        roles=placed,
        curves=proof.curves,
        samples=samples,
        pair=compared,
        manifest=manifest.build(
            command=list(command),
            seed=options.seed,
            dtype=options.dtype,
            precision=options.precision,
            files=pair.files,
            times=clock.times,
            options=asked(options),
            pair=compared,
            exchanged=placed,
            anchor=info,
        )
        | {"prompts": sets.hashes(), "scores": archive.digest(found)},
        flow=traced,
        smallest=proof.smallest,
        along=along,
    )
    with clock.stage("write the results"):
        if devices.is_first():
            results.write(made, options.out, overwrite=options.overwrite)
        journal.forget()
    console.print(tables.terminal(made))
    return options.out / "report.html"


def _traced(
    options: Trace,
    pair: checkpoints.Pair,
    scoring: inputs.Inputs,
    anchor: Anchor,
    exchanged: tuple[str, ...],
    placed: roles.Roles | None,
    journals: tuple[resume.Journal, resume.Journal],
    part: Callable[[str], sweep.Progress],
) -> flow.Flow:
    """Who supplies the state, and what carries it on. exchanged: kinds whose activations can be patched."""
    ours, following = journals
    asked: dict[str, Any] = {name: getattr(options, name) for name in ("aggregate", "limit", "seed")}
    asked |= {"top": max(options.top, FEWEST_RELAYS)}
    asked |= {"memory": None if options.memory is None else int(options.memory * 2**30)}
    found = hierarchy.trace(
        pair,
        scoring,
        anchor,
        sources=options.kinds,
        relays=options.through,
        method=options.suppliers,
        path=options.path,
        rules=options.rules,
        state=placed,
        by_input=options.by_input,
        journal=ours,
        progress=part,
        **asked,
    )
    if not exchanged or anchor.layer == pair.config.layers - 1:
        return found
    executed = hierarchy.executors(
        pair,
        scoring,
        anchor,
        kinds=exchanged,
        method=AS_CAREFUL[options.method],
        journal=following,
        progress=lambda name: part(f"executors: {name}"),
        **asked,
    )
    return flow.with_executors(found, executed)


def asked(options: Run) -> dict[str, Any]:
    """All options by the names that they have on the command line."""
    said = asdict(options)
    choices = said.pop("choices")
    return said | choices


def _parity(options: Run, pair: checkpoints.Pair) -> dict[str, dict[str, Any]]:
    """How far logits are from those of others; ValueError where they are not the same."""
    if not options.parity or options.distributed or options.dtype not in ("float32", "float64"):
        return {}
    found = reference.of_sides(reference.sides_of(pair, options.base, options.special), pair.differences, is_quick=True)
    if wrong := [f"logits of {role}: {each['said']}" for role, each in found.items() if each["is_passed"] is False]:
        raise ValueError(
            "the models do not compute what they should:\n"
            + "\n".join(f"  - {fault}" for fault in wrong)
            + "\nLook at them with `jaxpatch check`; --no-parity goes on all the same."
        )
    return found


def _compared(pair: checkpoints.Pair, kinds: Sequence[str]) -> dict[str, Any]:
    partition = {kind: sort for kind, sort in components.of_decoder(pair.base).items() if kind in kinds}
    return likeness.of_pair(pair, changes.by_kind(pair.base, pair.special, partition), partition)


def _exchanged(options: Run, pair: checkpoints.Pair) -> tuple[str, ...]:
    """Kinds of which E_a is asked and can be known."""
    known = exchange.of_decoder(pair.base)
    return tuple(kind for kind in options.kinds if kind in known) if options.relays else ()


def unfinished(out: Path) -> Path:
    """Where a run keeps what it has scored until its results are written."""
    return out.with_name(f"{out.name}.unfinished")


def _refuse_together(options: Run) -> None:
    """`refuse` in several processes: what one of them finds wrong ends all of them. Only the first one writes."""
    try:
        refuse(options, is_writing=devices.is_first())
        own = ""
    except ValueError as error:
        own = str(error)
    for number, said in enumerate(devices.told(own.encode())):
        if said:
            raise ValueError(f"process {number}: {said.decode()}")


def refuse(options: Run, *, is_writing: bool = True) -> None:
    """Raises for everything that can be refused before a model is read: all faults of the options at once."""
    faults = []
    for name, known in (
        ("method", tuple(METHODS)),
        ("aggregate", normalise.AGGREGATES),
        ("read_out", read_outs.READ_OUTS),
        ("contrast", anchors.CONTRASTS),
        ("dtype", checkpoints.DTYPES),
        ("precision", layers.PRECISIONS),
    ):
        if (value := getattr(options, name)) not in known:
            faults.append(f"--{name.replace('_', '-')} {value!r}: {paths.did_you_mean(value, known)}")
    for name, fewest in (
        ("num_anchor", 4),
        ("num_scoring", 2),
        ("num_behaviour", 1),
        ("num_random", 1),
        ("max_new", 1),
        ("top", 1),
        ("sample", 1),
        ("steps", 1),
        ("limit", 1),
        ("seed", 0),
        ("layer", 0),
        ("memory", 0.001),
    ):
        value = getattr(options, name)
        if value is not None and value < fewest:
            faults.append(f"--{name.replace('_', '-')} {value}: wanted at least {fewest}")
    if options.mesh is not None and min(options.mesh) < 1:
        faults.append(f"--mesh {options.mesh[0]} {options.mesh[1]}: wanted at least 1 1")
    if not 0 < options.alpha < 1:
        faults.append(f"--alpha {options.alpha}: wanted a level between 0 and 1")
    faults += [f"--kinds {k}: {paths.did_you_mean(k, components.KINDS)}" for k in _unknown_kinds(options.kinds)]
    faults += [f"--kinds {k}: named more than once" for k in components.repeated(options.kinds)]
    if not options.kinds:
        faults.append("--kinds: wanted at least one")
    if options.task not in tasks.TASKS and not Path(options.task).is_file():
        faults.append(f"--task {options.task!r}: no such task or file. {paths.did_you_mean(options.task, tasks.TASKS)}")
    faults += [f"--{fault}" for fault in checkpoints.location_faults(base=options.base, special=options.special)]
    faults += [f"--{fault}" for fault in checkpoints.choice_faults(options.choices)]
    if options.memory is not None and not math.isfinite(options.memory):
        faults.append(f"--memory {options.memory}: wanted a number of GiB")
    if isinstance(options, Trace):
        faults += _trace_faults(options)
    if is_writing:
        wrong = [
            f"--out {options.out}: {fault}" for fault in results.place_faults(options.out, overwrite=options.overwrite)
        ]
        kept = unfinished(options.out.expanduser())
        faults += wrong or [f"{kept}: {fault}" for fault in resume.place_faults(kept)]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _trace_faults(options: Trace) -> list[str]:
    faults = [f"--{fault.removeprefix('rules.').removesuffix('.')}" for fault in flow.faults(options.rules)]
    faults += [f"--{fault}" for fault in targets.path_faults(options.path)]
    if options.suppliers not in METHODS:
        faults.append(f"--suppliers {options.suppliers!r}: {paths.did_you_mean(options.suppliers, METHODS)}")
    if not options.relays:
        faults.append("--no-relays: there is nothing to trace through; leave it out, or use `jaxpatch run`")
    for kind in options.through:
        if kind not in read_outs.TARGETS:
            faults.append(f"--through {kind}: {paths.did_you_mean(kind, read_outs.TARGETS)}")
        elif kind not in options.kinds:
            faults.append(f"--through {kind}: wanted one of --kinds, {', '.join(options.kinds)}")
    return faults + ([] if options.through else ["--through: wanted at least one"])


def _unknown_kinds(kinds: Sequence[str]) -> list[str]:
    return [kind for kind in kinds if kind not in components.KINDS and not components.is_per_head_key(kind)]


def _refuse_for_pair(options: Run, pair: checkpoints.Pair) -> None:
    faults = []
    try:
        components.refuse_unknown(components.of_decoder(pair.base), options.kinds)
    except KeyError as error:
        faults.append(f"--kinds: {error.args[0]}")
    if options.layer is not None and options.layer >= pair.config.layers:
        faults.append(f"--layer {options.layer}: this model has blocks 0 to {pair.config.layers - 1}.")
    if pair.tokenizer is None:
        faults.append(f"neither model has a tokenizer; put tokenizer.json beside the weights of {options.base}.")
    if faults:
        raise ValueError("these options do not fit this pair:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _prompt_sets(options: Run) -> prompt_sets.PromptSets:
    counts = {
        "anchor": options.num_anchor,
        "layer": prompt_sets.NUM_LAYER,
        "scoring": options.num_scoring,
        "behaviour": options.num_behaviour,
    }
    if options.task in tasks.TASKS:
        return prompt_sets.of_task(options.task, counts, seed=options.seed)
    return prompt_sets.of_file(options.task, counts)
