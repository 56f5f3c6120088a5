"""Shell: what a merge is made of, as a file says it: our own recipes in TOML, and mergekit's in YAML, of the methods that both know."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jaxpatch.merging import METHODS
from jaxpatch.numbers import is_number
from jaxpatch.trees import paths

ALL = ("method", "base", "experts", "weight", "density", "scale", "seed", "options", "gates", "stored")
OF_EXPERT = ("model", "weight", "density", "scores")
OF_GATES = ("rule", "budget", "conflict", "rest", "kinds")
MERGEKITS = {"merge_method", "base_model", "models", "parameters", "dtype"}
"""What is understood of its files."""
WITHOUT_EFFECT = ("int8_mask",)
"""Of its parameters, those that change how a result is computed, and not the result."""
FORM = 'wanted TOML, as in method = "ties", or YAML as mergekit has it'


@dataclass(frozen=True, kw_only=True)
class Expert:
    """One expert of a recipe. scores: folder of the run that scored it, where its scores decide."""

    model: str
    weight: float = 1.0
    density: float | None = None
    scores: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to merge, and how: the arguments of `merge` and `apportion`.

    rule, budget, conflict, kinds: of the gates that scores become; no rule, no gates. rest: the gate of all that has no score.
    stored: dtype of the weights on disk; base's where nothing is said.
    """

    method: str
    base: str
    experts: tuple[Expert, ...]
    scale: float = 1.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    rule: str | None = None
    budget: float = 1.0
    conflict: str = "all"
    rest: float = 0.0
    kinds: Mapping[str, float] = field(default_factory=dict)
    stored: str | None = None


def read(file: Path) -> Recipe:
    """A recipe out of a file; of its numbers only the types are looked at, since `merge` refuses the rest.

    Raises: OSError where it cannot be read; ValueError with all that is wrong with it.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp(), "recipe.toml")
        >>> text = 'method = "ties"\\nbase = "one"\\ndensity = 0.2\\nexperts = [{model = "two"}, {model = "three", weight = 0.5}]'
        >>> _ = file.write_text(text)
        >>> [(expert.weight, expert.density) for expert in read(file).experts]
        [(1.0, 0.2), (0.5, 0.2)]
    """
    file = file.expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"--recipe {file}: no such file; {FORM}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {file}: it cannot be read ({error}); {FORM}.") from None
    try:
        said = yaml.safe_load(text) if file.suffix in (".yaml", ".yml") else tomllib.loads(text)
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"--recipe {file}: it cannot be read ({error}); {FORM}.") from None
    if not isinstance(said, dict):
        raise ValueError(f"--recipe {file}: {FORM}; got {type(said).__name__}.")
    faults: list[str] = []
    made = (_of_mergekit if "merge_method" in said else _own)(said, faults)
    if faults or made is None:
        raise ValueError(f"--recipe {file} cannot be used:\n" + "\n".join(f"  - {fault}" for fault in faults))
    return made


def _own(said: Mapping[str, Any], faults: list[str]) -> Recipe | None:
    """Our own form."""
    _refuse_unknown("", said, ALL, faults)
    gates, given = _table(said, "gates", faults), said.get("experts")
    _refuse_unknown("gates.", gates, OF_GATES, faults)
    shared: dict[str, Any] = {name: _number(said, name, "", faults) for name in ("weight", "density") if name in said}
    experts = []
    if not isinstance(given, list) or not given or not all(isinstance(each, dict) for each in given):
        faults.append('experts: wanted a list of tables with a model each, as in [[experts]] model = "adapters/one"')
        given = []
    for number, each in enumerate(given):
        where = f"experts[{number}]."
        _refuse_unknown(where, each, OF_EXPERT, faults)
        model, scores = (_text(each, name, where, faults, needed=name == "model") for name in ("model", "scores"))
        own: dict[str, Any] = {
            name: _number(each, name, where, faults) for name in ("weight", "density") if name in each
        }
        experts.append(Expert(model=model or "", scores=scores, **shared | own))
    method, base, stored = (
        _text(said, name, "", faults, needed=name != "stored") for name in ("method", "base", "stored")
    )
    numbers = {name: _number(said, name, "", faults) for name in ("scale", "seed") if name in said}
    ruled = {name: _number(gates, name, "gates.", faults) for name in ("budget", "rest") if name in gates}
    ruled |= {name: _text(gates, name, "gates.", faults) for name in ("rule", "conflict") if name in gates}
    kinds = _table(gates, "kinds", faults, "gates.")
    ruled["kinds"] = {kind: _number(kinds, kind, "gates.kinds.", faults) for kind in kinds}
    if gates and "rule" not in gates:
        faults.append('gates: say by which rule scores become gates, as in rule = "mask"')
    if faults:
        return None
    options = _table(said, "options", faults)
    return Recipe(
        method=method or "",
        base=base or "",
        experts=tuple(experts),
        options=options,
        stored=stored,
        **numbers,
        **ruled,
    )


def _of_mergekit(said: Mapping[str, Any], faults: list[str]) -> Recipe | None:
    """mergekit's, where every tensor is merged alike: with `models`, and one number for each parameter. To linear, base is a model like
    the others."""
    for name in sorted(said.keys() - MERGEKITS):
        faults.append(f"{name}: of mergekit's files only {', '.join(sorted(MERGEKITS))} are understood")
    method, base, stored = (
        _text(said, name, "", faults, needed=name == "merge_method") for name in ("merge_method", "base_model", "dtype")
    )
    if method is not None and method not in METHODS:
        faults.append(f"merge_method: jaxpatch has no {method!r}; {paths.did_you_mean(method, METHODS)}")
    shared, entries = _table(said, "parameters", faults), said.get("models")
    if not isinstance(entries, list) or not all(isinstance(each, dict) and "model" in each for each in entries):
        faults.append("models: wanted a list with a model each")
        entries = []
    known = _known(method)
    experts, each_own, parts = [], [], []
    for number, entry in enumerate(entries):
        where = f"models[{number}]."
        own = _table(entry, "parameters", faults, where)
        _refuse_unknown(where, entry, ("model", "parameters"), faults)
        if entry["model"] == base and method != "linear":
            faults += [f"{where}parameters: base takes none; leave {name} out" for name in own if name != "weight"]
            continue
        both = {**shared, **own}
        faults += [
            f"{where}parameters.{name}: {method} has no such parameter; {paths.did_you_mean(name, sorted(known))}"
            for name in both
            if name not in known
        ]
        numbers: dict[str, Any] = {
            name: _number(both, name, f"{where}parameters.", faults)
            for name in ("weight", "density")
            if name in both and name in known
        }
        if method == "slerp":
            numbers = {"weight": _number(both, "t", "parameters.", faults) if "t" in both else 0.5}
        experts.append(Expert(model=str(entry["model"]), **numbers))
        parts.append(_number(both, "lambda", "parameters.", faults) if "lambda" in both else 1.0)
        each_own.append(_options(both, faults))
    for what, several in (("lambda", parts), ("options", each_own)):
        if any(each != several[0] for each in several):
            faults.append(f"{what}: wanted the same for every model; got {', '.join(map(str, several))}")
    if base is None and method != "linear":
        faults.append("base_model: wanted a model, to which the others are compared")
    if method == "linear" and base is not None and base not in [expert.model for expert in experts]:
        faults.append("base_model: to linear it is a model like the others; list it among models, with its weight")
    if not experts and not faults:
        faults.append("models: wanted at least one that is not the base model")
    if faults:
        return None
    named = experts[0].model if base is None else base
    takes = METHODS[method or ""].takes
    experts = [_with_density(expert) if "density" in takes else expert for expert in experts]
    return Recipe(
        method=method or "", base=named, experts=tuple(experts), scale=parts[0], options=each_own[0], stored=stored
    )


def _known(method: str | None) -> set[str]:
    """Parameters that mergekit's method of this name has; those of all, where there is no such method."""
    several = [METHODS[method]] if method in METHODS else list(METHODS.values())
    known = {"weight", *WITHOUT_EFFECT} if method != "slerp" else {"t", *WITHOUT_EFFECT}
    for each in several:
        known |= {name for name in ("gamma", "epsilon", "normalize", "rescale") if name in each.options}
        known |= {"density"} if "density" in each.takes else set()
        known |= {"lambda"} if "scale" in each.takes and method != "slerp" else set()
    return known


def _with_density(expert: Expert) -> Expert:
    """mergekit keeps all where nothing is said."""
    return Expert(model=expert.model, weight=expert.weight, density=1.0 if expert.density is None else expert.density)


def _options(said: Mapping[str, Any], faults: list[str]) -> dict[str, Any]:
    """Ours for mergekit's parameters."""
    made: dict[str, Any] = {
        name: _number(said, name, "parameters.", faults) for name in ("gamma", "epsilon") if name in said
    }
    for name in ("normalize", "rescale"):
        if name in said:
            if not isinstance(said[name], bool):
                faults.append(f"parameters.{name}: wanted true or false; got {said[name]!r}")
            made[name] = said[name] if name == "normalize" else ("norm" if said[name] else "none")
    return made


def _refuse_unknown(where: str, said: Mapping[str, Any], known: Sequence[str] | set[str], faults: list[str]) -> None:
    faults += [
        f"{where}{name}: unknown; {paths.did_you_mean(name, sorted(known))}" for name in said if name not in known
    ]


def _table(said: Mapping[str, Any], name: str, faults: list[str], where: str = "") -> Mapping[str, Any]:
    if (found := said.get(name)) is None:
        return {}
    if isinstance(found, Mapping):
        return found
    faults.append(f"{where}{name}: wanted a table; got {found!r}")
    return {}


def _text(said: Mapping[str, Any], name: str, where: str, faults: list[str], *, needed: bool = False) -> str | None:
    if name not in said:
        faults += [f"{where}{name}: wanted, and not said"] if needed else []
        return None
    if not isinstance(said[name], str):
        faults.append(f"{where}{name}: wanted a text; got {said[name]!r}")
        return None
    return said[name]


def _number(said: Mapping[str, Any], name: str, where: str, faults: list[str]) -> Any:
    value = said[name]
    if not is_number(value):
        faults.append(f"{where}{name}: wanted one number; got {value!r}")
        return 0
    return value
