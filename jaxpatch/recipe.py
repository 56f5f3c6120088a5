"""Shell: a recipe: the options of a command in a file; a run's own manifest is one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import tyro

from jaxpatch import expert_runs, plan, run
from jaxpatch.models.differences import Choices
from jaxpatch.trees import paths

FLAG = "--options"
COMMANDS: dict[str, type[run.Run] | type[plan.Plan]] = {
    "run": run.Run,
    "trace": run.Trace,
    "experts": expert_runs.Experts,
    "plan": plan.Plan,
}
"""Those that take a recipe."""
RENAMED = {"num_scoring": "num_prompts"}
"""What `run` and `plan` call by two names."""
SAID_EACH_TIME = ("overwrite",)
"""Leave to replace results was given for one run: a manifest does not hand it on."""
WORDS = {str: "a text", Path: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def taken_out(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The file behind --options among the arguments of a command, and the other arguments.

    Raises: ValueError where no file follows, or where it is said more than once.

    >>> taken_out(["run", "--options", "recipe.json", "--top", "5"])
    (PosixPath('recipe.json'), ['run', '--top', '5'])
    """
    files, rest, left = [], [], list(arguments)
    while left:
        word = left.pop(0)
        if word == FLAG:
            if not left or left[0].startswith("--"):
                raise ValueError(f"{FLAG}: wanted a file behind it, as in {FLAG} recipe.json.")
            files.append(left.pop(0))
        elif word.startswith(f"{FLAG}="):
            files.append(word.removeprefix(f"{FLAG}="))
        else:
            rest.append(word)
    if len(files) > 1:
        raise ValueError(f"{FLAG}: wanted one file; got {', '.join(files)}. Put what they say into one.")
    return (Path(files[0]) if files else None), rest


def read(file: Path, command: str) -> run.Run | plan.Plan:
    """A command's options, as a file has them; what it is silent about has its default, or must be said.

    A file is a JSON object of option names as a manifest writes them (``num_scoring``), or a manifest, of which "options" are taken.
    `plan` passes over what only `run` and `trace` have, and takes ``num_scoring`` for ``num_prompts``: a run's recipe can be planned.
    Paths are from where the command is given, as on the command line.

    Args: command: one of `COMMANDS`.

    Returns: the command's options; `tyro.MISSING` stands where one is required and not given.

    Raises: ValueError with all that is wrong with the file; OSError where it cannot be read.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "recipe.json")
        >>> _ = file.write_text('{"base": "owner/one", "special": "owner/two", "num_scoring": 16, "template": "special"}')
        >>> read(file, "run").num_scoring, read(file, "plan").num_prompts, read(file, "plan").choices.template
        (16, 16, 'special')
    """
    kind, said = COMMANDS[command], options_in(file)
    known, faults, values = _hints(kind), [], dict[str, Any]()
    passed_over = _hints(run.Trace).keys() - known.keys() if kind is plan.Plan else set()
    if kind is plan.Plan:
        said = {RENAMED.get(name, name): value for name, value in said.items() if RENAMED.get(name) not in said}
    for name, value in said.items():
        if name in passed_over:
            continue
        if name not in known:
            faults.append(_unknown(name, command, known))
            continue
        try:
            values[name] = _as(known[name], value)
        except TypeError:
            faults.append(f"{name}: wanted {_words(known[name])}; got {json.dumps(value)}")
    if faults:
        raise ValueError(_all(file, faults))
    chosen = {each.name: values.pop(each.name) for each in fields(Choices) if each.name in values}
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    given: dict[str, Any] = dict.fromkeys(needed, tyro.MISSING) | values
    return kind(**given, choices=Choices(**chosen))


def options_in(file: Path) -> dict[str, Any]:
    """What a recipe says, or what the run did whose manifest this is. Raises as `read`."""
    twice = []

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice.extend(sorted({name for name in names if names.count(name) > 1}))
        return dict(pairs)

    try:
        said = json.loads(file.expanduser().read_text(encoding="utf-8"), object_pairs_hook=object_of)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{FLAG} {file}: no such file; wanted a recipe, or the manifest.json of a run."
        ) from None
    except OSError as error:
        raise OSError(f"{FLAG} {file}: it cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ValueError(_all(file, [f"it is no JSON: {error}"])) from None
    if not isinstance(said, dict):
        raise ValueError(_all(file, ["wanted an object of options, as in {" + '"num_scoring": 16' + "}"]))
    if twice:
        raise ValueError(_all(file, [f"{name}: said more than once" for name in twice]))
    if isinstance(said.get("options"), dict):
        return {name: value for name, value in said["options"].items() if name not in SAID_EACH_TIME}
    return said


def _all(file: Path, faults: Sequence[str]) -> str:
    return f"{FLAG} {file} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults)


def _hints(kind: type) -> dict[str, Any]:
    """Every option of a command by name, with its type; those of `Choices` among the others, as on the command line."""
    hints = get_type_hints(kind)
    del hints["choices"]
    return hints | get_type_hints(Choices)


def _unknown(name: str, command: str, known: Mapping[str, Any]) -> str:
    others = [other for other, kind in COMMANDS.items() if name in _hints(kind)]
    if others:
        return f"{name}: an option of jaxpatch {' and '.join(others)}, and not of jaxpatch {command}; leave it out"
    return f"{name}: no option of jaxpatch {command}; {paths.did_you_mean(name, known)}"


def _as(hint: Any, value: Any) -> Any:
    """A JSON value as an option's type has it. Raises TypeError where it is of another."""
    if get_origin(hint) is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        return _as(_inner(hint), value)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        is_long = inner[-1] is Ellipsis
        if not isinstance(value, list) or not (is_long or len(value) == len(inner)):
            raise TypeError
        return tuple(_as(inner[0] if is_long else inner[number], each) for number, each in enumerate(value))
    wanted = {float: (int, float), Path: str}.get(hint, hint)
    if not isinstance(value, wanted) or (isinstance(value, bool) and hint is not bool):
        raise TypeError
    return hint(value)


def _inner(hint: Any) -> Any:
    """Of a type or None, the type."""
    [inner] = (each for each in get_args(hint) if each is not NoneType)
    return inner


def _words(hint: Any) -> str:
    """A type in words.

    >>> _words(tuple[str, ...]), _words(tuple[int, int] | None), _words(float | None)
    ('a list of texts', 'a list of 2 whole numbers, or null', 'a number, or null')
    """
    if get_origin(hint) is UnionType:
        return f"{_words(_inner(hint))}, or null"
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        number = "" if inner[-1] is Ellipsis else f"{len(inner)} "
        return f"a list of {number}{WORDS[inner[0]].removeprefix('a ')}s"
    return WORDS[hint]
