"""Shell: what can be known of a pair before any weight of it is read: its architecture, and how it reads text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxpatch.models import checkpoints, differences, gguf_file, lora, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.differences import Choices
from jaxpatch.models.families import FAMILIES


class Outline(NamedTuple):
    """One architecture for both models. tokenizer, template: what requests become prompts by, or None."""

    config: DecoderConfig
    tokenizer: Any | None
    template: str | None


class _Known(NamedTuple):
    """Of one model. tokenizer: makes it, or None where it has none. home: the directory of its config.json, where it has one."""

    config: DecoderConfig
    tokenizer: Callable[[], Any] | None
    ends: tuple[int, ...] = ()
    home: Path | None = None


def read(base: str | Path, special: str | Path, choices: Choices) -> Outline:
    """What `checkpoints.load_pair` would make of these two, from config.json, a GGUF file's header, an adapter's settings and shapes.

    The directories need not hold any weights; where they do, and an adapter names another folder than the one it goes into, some
    numbers of both are held to each other. choices: whose word counts where they disagree.

    Raises: CheckpointError, FileNotFoundError, ValueError: everything that is wrong with both, at once.
    """
    if faults := checkpoints.location_faults(base=base, special=special):
        raise FileNotFoundError("\n".join(faults))
    base_path, special_path = (checkpoints.local(name, weights=False) for name in (base, special))
    strangers = checkpoints.strangers_of(base, base_path, special_path, weights=False)
    under, one, two, refused = None, None, None, []
    try:
        is_adapter = lora.is_adapter(base_path)
        under = _model(checkpoints.underlying(base_path, weights=False) if is_adapter else base_path)
        one = _adapted(under, base_path)
    except checkpoints.CheckpointError as error:
        refused.append(error)
    try:
        if not lora.is_adapter(special_path):
            two = _model(special_path)
        elif under is not None:
            two = _adapted(under, special_path)
        elif faults := lora.setting_faults(sources.read_json(lora.files(special_path)[0])):
            raise checkpoints.CheckpointError(special_path, faults)
    except checkpoints.CheckpointError as error:
        refused.append(checkpoints.of_strangers(error, special_path, strangers))
    if one is None or two is None:
        raise refused[0] if len(refused) == 1 else checkpoints.CheckpointError("both models", list(map(str, refused)))
    sides = checkpoints.sides_of(
        (one.config, one.tokenizer, one.ends), (two.config, two.tokenizer, two.ends), strangers
    )
    if faults := differences.faults(*sides, choices):
        raise checkpoints.unlike(base_path, special_path, faults)
    template = checkpoints.template_of(*sides, choices)
    tokenizer = differences.shared_tokenizer(*sides, choices)
    return Outline(differences.shared_config(one.config, two.config, choices), tokenizer, template)


def _adapted(under: _Known, path: Path) -> _Known:
    """A model with the adapter that lies there in it, or as it is where none does. Raises CheckpointError for what cannot be used."""
    if not lora.is_adapter(path):
        return under
    config = lora.config_with(path, FAMILIES[under.config.family], under.config)
    return under._replace(config=config, tokenizer=sources.tokenizer_fn(path, under.home) or under.tokenizer)


def _model(path: Path) -> _Known:
    if path.suffix == ".gguf":
        source = gguf_file.read(path)
        ends = sources.ends(path, source.raw_config, source.beside)
        return _Known(checkpoints.config_of(path, source.raw_config)[0], source.tokenizer, ends)
    config = path / "config.json"
    if not config.exists():
        raise checkpoints.CheckpointError(
            path, ["no config.json; wanted a model directory, an adapter, or a .gguf file"]
        )
    raw = sources.read_json(config)
    ends = sources.ends(path, raw, sources.beside(path))
    return _Known(checkpoints.config_of(path, raw)[0], sources.tokenizer_fn(path), ends, path)
