"""Shell: the command line."""

import os
import sys
from typing import Any

import jax
import tyro
from rich.console import Console

from jaxpatch import check, diff, expert_runs, merge_run, plan, recipe, run, validation

COMPILING = "--xla_gpu_enable_triton_gemm=false"
"""To XLA, for every command, unless XLA_FLAGS says otherwise. Where it tries Triton's kernels too, programs for a GPU compile for a
minute each in place of ten seconds, and run 4 % faster (docs/results/engine.md)."""


COMMANDS = {
    "run": run.Run,
    "trace": run.Trace,
    "experts": expert_runs.Experts,
    "validate": validation.Validate,
    "merge": merge_run.Merge,
    "plan": plan.Plan,
    "diff": diff.Diff,
    "check": check.Check,
}
FLAT = (tyro.conf.OmitArgPrefixes,)


def main() -> None:
    """``jaxpatch`` and one of `COMMANDS`; exit status 0 done, 1 refused or failed, 2 bad usage, 130 interrupted."""
    flags = os.environ.get("XLA_FLAGS", "")
    if COMPILING.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {COMPILING}".strip()
    errors = Console(stderr=True, highlight=False)
    options = None
    try:
        options = _parsed(sys.argv[1:])
        if isinstance(options, run.Run | plan.Plan) and options.dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        if isinstance(options, plan.Plan):
            plan.plan(options)
        elif isinstance(options, diff.Diff):
            diff.diff(options)
        elif isinstance(options, check.Check):
            sys.exit(0 if check.check(options) else 1)
        else:
            command = ["jaxpatch", *sys.argv[1:]]
            if isinstance(options, merge_run.Merge):
                made = merge_run.merge(options, command=command)
                Console().print(f"merged model: {made.resolve()}", markup=False, soft_wrap=True)
                return
            if isinstance(options, expert_runs.Experts):
                page = expert_runs.run_experts(options, command=command)
            elif isinstance(options, run.Run):
                page = run.run(options, command=command)
            else:
                page = validation.validate(options, command=command)
            Console(quiet=jax.process_index() > 0).print(f"report: {page.resolve()}", markup=False, soft_wrap=True)
    except (ValueError, KeyError, IndexError, OSError, MemoryError, RuntimeError) as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        errors.print(f"[red]jaxpatch:[/red] {type(error).__name__}:", end=" ")
        errors.print(str(said), markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        if not isinstance(options, run.Run):
            sys.exit(130)
        if isinstance(options, expert_runs.Experts):
            errors.print(
                "\ninterrupted: what was scored is kept; the same command goes on.", markup=False, soft_wrap=True
            )
            sys.exit(130)
        kept = run.unfinished(options.out.expanduser())
        then = (
            f"what was scored is kept in {kept}: the same command goes on."
            if kept.exists()
            else "the same command starts again."
        )
        errors.print(f"\ninterrupted: nothing was written to {options.out}; {then}", markup=False, soft_wrap=True)
        sys.exit(130)


def _parsed(arguments: list[str]) -> Any:
    """The options of one command: those of a recipe, where one is named, with what else is said in place of its own."""
    command = arguments[0] if arguments else ""
    if command in recipe.COMMANDS:
        file, arguments = recipe.taken_out(arguments)
        if file is not None:
            own = recipe.read(file, command)
            return tyro.cli(type(own), default=own, args=arguments[1:], prog=f"jaxpatch {command}", config=FLAT)
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=arguments,
        prog="jaxpatch",
        description="Find which parameters carry a behaviour: Weight Patching in JAX.",
        config=FLAT,
    )
