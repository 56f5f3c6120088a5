"""What a family is: three functions and a few names."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.rope import Linear, Llama3, Rope


class Family(NamedTuple):
    """A model family.

    read_config: config.json (as transformers' config class completes it, and as it stands on disk) -> our config;
        raises ValueError naming every field that changes the model and is not supported.
    rules: our config -> the conversion table.
    ignored_tensors: ends of tensor names that hold nothing learnt (old checkpoints save rotary tables).
    gguf_names: a GGUF file's tensor name -> the checkpoint's, ``{l}`` standing for the layer.
    gguf_config: a GGUF file's metadata -> config.json.
    """

    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    rules: Callable[[DecoderConfig], tuple[Rule, ...]]
    ignored_tensors: tuple[str, ...]
    gguf_names: Mapping[str, str]
    gguf_config: Callable[[Mapping[str, Any]], dict[str, Any]]


_KINDS = {int: "a positive integer", float: "a positive number", bool: "true or false"}


class Ledger:
    """Hands out config fields and remembers which were read, so that no field that matters stays unread."""

    def __init__(self, raw: Mapping[str, Any]):
        self._raw = dict(raw)
        self._read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The field, or the default where the field is absent or null."""
        self._read.add(name)
        value = self._raw.get(name)
        return default if value is None else value

    def need(self, name: str, faults: list[str], default: Any = None, *, kind: type = int) -> Any:
        """A field that must be of its kind, and positive where it is a number. Where it is not: a fault, and 1."""
        value = self.take(name, default)
        is_kind = isinstance(value, int | kind) and isinstance(value, bool) == (kind is bool)
        if not is_kind or (kind is not bool and value <= 0):
            faults.append(f"{name}: wanted {_KINDS[kind]}, got {value!r}")
            return kind(1)
        return kind(value)

    def table(self, name: str, faults: list[str]) -> Mapping[str, Any]:
        """A field that holds fields of its own; empty where it is absent. Where it is something else: a fault."""
        value = self.take(name, {})
        if isinstance(value, Mapping):
            return value
        faults.append(f"{name}: wanted an object, got {value!r}")
        return {}

    def unread(self, harmless: Mapping[str, Any], ignored: frozenset[str]) -> list[str]:
        """A sentence for each field nobody read that is neither ignored nor at a value known to change nothing."""
        return [
            f"{name} = {value!r} is not supported"
            + (f" (only {harmless[name]!r} is)" if name in harmless else " (unknown field)")
            for name, value in self._raw.items()
            if name not in self._read and name not in ignored and value not in (None, harmless.get(name))
        ]


def read_rope(ledger: Ledger, context: int, faults: list[str]) -> Rope:
    """The rotary positions of a config, wherever its transformers has written them: ``rope_parameters``, or ``rope_scaling`` and
    ``rope_theta``."""
    new, old = (dict(ledger.table(name, faults)) for name in ("rope_parameters", "rope_scaling"))
    if "type" in old:
        old = {"rope_type": old.pop("type")} | old
    rope = Ledger(new | old)
    found: list[str] = []
    theta = rope.need("rope_theta", found, ledger.need("rope_theta", found, 10_000.0, kind=float), kind=float)
    sort, stretch = rope.take("rope_type", "default"), None
    if sort == "linear":
        stretch = Linear(factor=rope.need("factor", found, kind=float))
    elif sort == "llama3":
        stretch = Llama3(
            factor=rope.need("factor", found, kind=float),
            slow=rope.need("low_freq_factor", found, kind=float),
            fast=rope.need("high_freq_factor", found, kind=float),
            original=rope.need("original_max_position_embeddings", found, context),
        )
    elif sort != "default":
        found.append(f"type {sort!r} is not supported (default, linear and llama3 are)")
    if sort in ("default", "linear", "llama3"):
        found += rope.unread({"partial_rotary_factor": 1.0}, frozenset())
    made = Rope(theta=theta, stretch=stretch)
    faults += [f"rope {fault}" for fault in found]
    return made
