"""Shell: what a run will cost, from two configs, before any weight is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Column, Table

from jaxpatch.measuring import inputs, memory, prompt_sets, tasks
from jaxpatch.models import checkpoints, layers, outlines, prefix_tree
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.differences import Choices
from jaxpatch.patching import components
from jaxpatch.planning import calibration, cost, machines
from jaxpatch.trees import paths

HERE = "here"
OTHER_PROMPTS = {"anchor": 32, "layer": 8, "behaviour": 4}
"""As many as a run draws for its other stages: then the wordings of those that it scores on are the same."""
TOGETHER = "together"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Say what a run will cost (patches, operations, memory, time by each method) before any of it is done.

    Only config.json, the header of a .gguf file or an adapter's settings are read; no weights are needed (a .gguf file on the hub
    comes whole). Where --options FILE is said, options come from a JSON file, as for run: of a run's own those that there are here, and
    num_scoring for num_prompts.

    Attributes:
        base: base model: a Hugging Face directory, a .gguf file, a hub id, or a PEFT LoRA adapter.
        special: the behaviour-specialised model: the same.
        task: whose prompts to count, as for a run; where it is not given, or no model has a tokenizer, --tokens says how long they are.
        num_prompts: prompts for the scores (of a file: at most).
        tokens: of each prompt, where there is no task. None are taken to be shared, so the cost is the most it can be.
        layer: read the anchor after this block (0-based); two thirds up where not given.
        kinds: of component: head, kv, neuron, expert, router, attention, mlp, layer, matrix, norm,
            final_norm, embed, positions, unembed.
        top: how many of the best components of each kind must be found (screened).
        alpha: level at which they are (screened).
        sample: components drawn at random for that, at least.
        steps: points along the path (integrated).
        memory: GiB that the engine may hold beside the two models; half of what is free where not given.
        dtype: of the weights in memory: float32, bfloat16, float16 or float64.
        precision: of float32 matrix products on an accelerator: highest (float32), high (TF32, or three passes of bfloat16), default.
        device: here (the engine runs for some seconds on random weights), h100, a100, tpu-v5e or tpu-v5p (by their datasheets).
        seed: of prompts and random weights.
        choices: whose word counts where base and special disagree; what is left open is refused.
    """

    base: str
    special: str
    task: str | None = None
    num_prompts: int = 12
    tokens: int = 56
    layer: int | None = None
    kinds: tuple[str, ...] = ("head", "neuron")
    top: int = 100
    alpha: float = 0.05
    sample: int = 200
    steps: int = 16
    memory: float | None = None
    dtype: str = "float32"
    precision: str = "highest"
    device: str = HERE
    seed: int = 0
    choices: Choices = field(default_factory=Choices)


class Planned(NamedTuple):
    """What came of it. seconds: method -> kind, or TOGETHER -> seconds, without compiling. compiling: part of the engine -> seconds;
    empty where that is not known."""

    job: cost.Job
    room: memory.Room
    held: cost.Held
    bills: Mapping[str, Mapping[str, cost.Bill]]
    seconds: Mapping[str, Mapping[str, float]]
    compiling: Mapping[str, float]


def plan(options: Plan, *, console: Console | None = None) -> Planned:
    """Print the tables, and return what is in them.

    Raises: ValueError, KeyError, OSError for what cannot be planned, saying what to do; MemoryError for what does not fit.
    """
    console = Console() if console is None else console
    refuse(options)
    outline = outlines.read(options.base, options.special, options.choices)
    _refuse_for_config(options, outline.config)
    prompts, wording = _prompts(options, outline)
    job = cost.Job(
        config=outline.config,
        tree=prefix_tree.of_prompts(np.asarray(prompts.tokens), np.asarray(prompts.lengths)),
        tokens=prompts.tokens.shape[1],
        depth=(2 * outline.config.layers // 3 if options.layer is None else options.layer) + 1,
        itemsize=jnp.dtype(options.dtype).itemsize,
    )
    machine = machines.MACHINES.get(options.device)
    here = {"a number": jnp.zeros(())}
    free = int(machine.memory if machine else memory.free_bytes(here))
    budget = _budget(options, job, free)
    fill = memory.FILL_ACCELERATOR if machine else memory.fill_of(here)
    room = memory.plan(job.config, job.tree, job.itemsize, job.depth, budget, fill)
    parts = (*options.kinds, cost.CHEAP, cost.SLOPES)
    if machine:
        own, wide = (machine.pace(dtype, options.precision) for dtype in (options.dtype, "float32"))
        known = calibration.Calibration({part: wide if part == cost.CHEAP else own for part in parts}, {})
    else:
        with jax.default_matmul_precision(options.precision), console.status("calibrating"):
            known = calibration.calibrate(job, prompts, options.kinds, options.dtype, budget, seed=options.seed)
    columns = {kind: (kind,) for kind in options.kinds} | {TOGETHER: options.kinds}
    asked = {"top": options.top, "alpha": options.alpha, "sample": options.sample, "steps": options.steps}
    by_column = {name: cost.bills(job, kinds, room, **asked) for name, kinds in columns.items()}
    bills = {method: {name: by_column[name][method] for name in columns} for method in by_column[TOGETHER]}
    times = {m: {name: machines.seconds(bill, known.paces) for name, bill in each.items()} for m, each in bills.items()}
    planned = Planned(job, room, cost.held(job, room, budget), bills, times, known.compiling)
    _show(console, options, planned, wording, free, budget, known.paces)
    return planned


def refuse(options: Plan) -> None:
    """Raises for all faults of the options at once."""
    faults = []
    for name, known in (
        ("dtype", checkpoints.DTYPES),
        ("precision", layers.PRECISIONS),
        ("device", (HERE, *machines.MACHINES)),
    ):
        if (value := getattr(options, name)) not in known:
            faults.append(f"--{name} {value!r}: {paths.did_you_mean(value, known)}")
    for name, fewest in (
        ("num_prompts", 1),
        ("tokens", 1),
        ("layer", 0),
        ("top", 1),
        ("sample", 1),
        ("steps", 1),
        ("seed", 0),
    ):
        value = getattr(options, name)
        if value is not None and value < fewest:
            faults.append(f"--{name.replace('_', '-')} {value}: wanted at least {fewest}")
    faults += [f"--{fault}" for fault in checkpoints.choice_faults(options.choices)]
    if not 0 < options.alpha < 1:
        faults.append(f"--alpha {options.alpha}: wanted a number between 0 and 1")
    if options.memory is not None and not 0 < options.memory < math.inf:
        faults.append(f"--memory {options.memory}: wanted more than 0 GiB")
    if options.dtype == "float64" and options.device in machines.MACHINES:
        faults.append(f"--dtype float64: the table of accelerators has none; wanted --device {HERE}")
    faults += [
        f"--kinds {kind}: {paths.did_you_mean(kind, components.KINDS)}"
        for kind in options.kinds
        if kind not in components.KINDS and not components.is_per_head_key(kind)
    ]
    faults += [f"--kinds {kind}: named more than once" for kind in components.repeated(options.kinds)]
    if not options.kinds:
        faults.append("--kinds: wanted at least one")
    if options.task is not None and options.task not in tasks.TASKS and not Path(options.task).is_file():
        faults.append(f"--task {options.task!r}: no such task or file. {paths.did_you_mean(options.task, tasks.TASKS)}")
    faults += [f"--{fault}" for fault in checkpoints.location_faults(base=options.base, special=options.special)]
    if faults:
        raise ValueError("these options cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _refuse_for_config(options: Plan, config: DecoderConfig) -> None:
    faults = []
    try:
        components.refuse_unknown(cost.partition_of(config), options.kinds)
    except KeyError as error:
        faults.append(f"--kinds: {error.args[0]}")
    if options.layer is not None and options.layer >= config.layers:
        faults.append(f"--layer {options.layer}: this model has blocks 0 to {config.layers - 1}")
    if options.tokens > config.context:
        faults.append(f"--tokens {options.tokens}: the context of this model is {config.context}")
    if faults:
        raise ValueError("these options do not fit this pair:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _prompts(options: Plan, outline: outlines.Outline) -> tuple[inputs.Inputs, str]:
    """The prompts that a run would score on, and where they are from; else as many that share nothing."""
    if options.task is None or outline.tokenizer is None:
        tokens = np.arange(options.num_prompts * options.tokens).reshape(options.num_prompts, options.tokens)
        lengths = np.full(options.num_prompts, options.tokens)
        why = "no task given" if options.task is None else "neither model has a tokenizer"
        return inputs.Inputs(jnp.asarray(tokens, jnp.int32), jnp.asarray(lengths, jnp.int32)), why
    counts = OTHER_PROMPTS | {"scoring": options.num_prompts}
    if options.task in tasks.TASKS:
        texts = prompt_sets.of_task(options.task, counts, seed=options.seed).scoring
    else:
        texts = prompt_sets.of_file(options.task, counts).scoring
    reader = checkpoints.Pair(
        base={}, special={}, config=outline.config, tokenizer=outline.tokenizer, template=outline.template
    )
    return inputs.encode(reader, texts), f"of {options.task}"


def _budget(options: Plan, job: cost.Job, free: int) -> int:
    """Bytes beside the two models. Raises MemoryError where these alone do not fit."""
    left = free - job.parameter_bytes
    if left <= 0:
        raise MemoryError(
            f"both models take {job.parameter_bytes / 2**30:.1f} GiB in {options.dtype}, and there are {free / 2**30:.1f}. "
            "Use a narrower --dtype, or a machine with more memory."
        )
    if options.memory is not None:
        return int(options.memory * 2**30)
    return max(memory.SMALLEST_BUDGET, int(memory.SHARE * left))


def _neurons(config: DecoderConfig) -> str:
    if config.experts:
        return f"{config.experts} experts of {config.neurons} neurons, {config.chosen} a token,"
    return f"{config.neurons} neurons"


def _show(
    console: Console,
    options: Plan,
    planned: Planned,
    wording: str,
    free: int,
    budget: int,
    paces: Mapping[str, machines.Pace],
) -> None:
    job, config = planned.job, planned.job.config
    machine = machines.MACHINES.get(options.device)
    console.print(
        f"{config.layers} blocks of width {config.width}, {config.heads} heads in {config.kv_heads} groups and {_neurons(config)} "
        f"each; {options.dtype}. Read after block {job.depth - 1}.\n"
        f"{job.num_prompts} prompts of up to {job.tokens} tokens ({wording}): {job.num_nodes} distinct token positions.\n",
        markup=False,
    )
    console.print(_memory_table(planned, free, budget))
    console.print(_work_table(planned, options.kinds))
    console.print(_time_table(planned, options.kinds, machine.name if machine else "this machine"))
    if machine:
        peak = next(iter(paces.values())).flops / machines.ASSUMED_SHARE
        notes = [
            f"assumed: {machines.ASSUMED_SHARE:.0%} of the peak of {peak / 1e12:.0f} TFLOP/s, {machine.moved / 1e12:.2f} TB/s "
            f"({machine.source}); compiling is not counted"
        ]
    else:
        rates = ", ".join(f"{part} {pace.flops / 1e9:.0f}" for part, pace in paces.items())
        compiling = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in planned.compiling.items())
        notes = [f"measured here, GFLOP/s: {rates}", f"compiling comes once beside this: {compiling}"]
    notes.append(
        f"screened is the least it takes, an assumption: {cost.smallest_sample(options.alpha, options.sample)} at random and the best "
        f"{options.top} of each kind; more where the cheap score is poor"
    )
    notes.append("counted: the scores alone, not reading the pair, finding the anchor, validating or writing answers")
    console.print("\n".join(f"* {note}" for note in notes), markup=False)


def _memory_table(planned: Planned, free: int, budget: int) -> Table:
    table = Table("memory", Column("GiB", justify="right"))
    held, room = planned.held, planned.room
    for label, size in (
        ("parameters of both models, at most", planned.job.parameter_bytes),
        (f"base's states, {room.blocks} blocks at a time", held.states),
        (f"one batch of {room.candidates} candidates", held.batch),
        ("cheap scores, one pass", held.cheap),
        ("budget beside the parameters", budget),
        ("there is", free),
    ):
        table.add_row(label, _short(size / 2**30))
    return table


def _work_table(planned: Planned, kinds: tuple[str, ...]) -> Table:
    numbers = (Column(name, justify="right") for name in ("candidates", "GFLOP a patch", "TFLOP for all, exact"))
    table = Table("kind", *numbers)
    counts = cost.candidates(planned.job, kinds)
    for kind in kinds:
        flops = sum(work.flops for work in planned.bills["exact"][kind].values())
        each = _short(flops / counts[kind] / 1e9) if counts[kind] else "-"
        table.add_row(kind, f"{counts[kind]:,}", each, _short(flops / 1e12))
    return table


def _time_table(planned: Planned, kinds: tuple[str, ...], machine: str) -> Table:
    names = (*kinds, TOGETHER) if len(kinds) > 1 else kinds
    table = Table(f"time on {machine}", *(Column(name, justify="right") for name in names))
    for method, times in planned.seconds.items():
        at_least = "at least " if method == "screened" else ""
        table.add_row(method, *(at_least + duration(times[name]) for name in names))
    return table


def _short(number: float) -> str:
    """Three digits that count, and no exponent."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """In the unit that reads best.

    >>> duration(0.0025), duration(0.25), duration(90), duration(200_000)
    ('2.5 ms', '0.25 s', '1.5 min', '2.3 days')
    """
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:,.0f} {unit}"
    if seconds >= 0.1:
        return f"{seconds:.2g} s"
    return f"{seconds * 1000:.3g} ms" if seconds >= 1e-4 else "under 0.1 ms"
