"""Shell: what can be known of a pair before any weight of it is read: its architecture, and how it reads text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxpatch.models import checkpoints, differences, gguf_file, lora, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.differences import Choices


class Outline(NamedTuple):
    """One architecture for both models. tokenizer, template: what requests become prompts by, or None."""

    config: DecoderConfig
    tokenizer: Any | None
    template: str | None


class _Known(NamedTuple):
    """Of one model. config, ends: None and none for an adapter, which has those of the other side. tokenizer: makes it, or None where
    it has none."""

    config: DecoderConfig | None
    tokenizer: Callable[[], Any] | None
    ends: tuple[int, ...] = ()


def read(base: str | Path, special: str | Path, choices: Choices) -> Outline:
    """What `checkpoints.load_pair` would make of these two, from config.json, a GGUF file's header or an adapter's settings alone.

    The directories need not hold any weights. choices: whose word counts where they disagree.

    Raises: CheckpointError, FileNotFoundError, ValueError: everything that is wrong with both, at once.
    """
    if faults := checkpoints.location_faults(base=base, special=special):
        raise FileNotFoundError("\n".join(faults))
    base_path, special_path = (checkpoints.local(name, weights=False) for name in (base, special))
    found, refused = [], []
    for path in (base_path, special_path):
        try:
            found.append(_adapter(path, path == base_path) if lora.is_adapter(path) else _model(path))
        except checkpoints.CheckpointError as error:
            refused.append(error)
    if refused:
        raise refused[0] if len(refused) == 1 else checkpoints.CheckpointError("both models", list(map(str, refused)))
    one, two = found
    own, other = one.config, two.config or one.config
    sides = checkpoints.sides_of(
        (own, one.tokenizer, one.ends),
        (other, two.tokenizer or one.tokenizer, two.ends if two.config else one.ends),
    )
    if faults := differences.faults(*sides, choices):
        raise checkpoints.unlike(base_path, special_path, faults)
    template = checkpoints.template_of(*sides, choices)
    tokenizer = sides[choices.tokenizer == "special"].tokenizer
    return Outline(differences.shared_config(own, other, choices), tokenizer, template)


def _adapter(path: Path, is_base: bool) -> _Known:
    """An adapter has the architecture of the model it is merged into, which is another one only where it is the base itself.

    Raises CheckpointError for settings that are not supported.
    """
    if faults := lora.setting_faults(sources.read_json(lora.files(path)[0])):
        raise checkpoints.CheckpointError(path, faults)
    own = sources.tokenizer_fn(path)
    if not is_base:
        return _Known(None, own)
    under = _model(checkpoints.underlying(path))
    return under._replace(tokenizer=own or under.tokenizer)


def _model(path: Path) -> _Known:
    if path.suffix == ".gguf":
        source = gguf_file.read(path)
        ends = sources.ends(path, source.raw_config, source.beside)
        return _Known(checkpoints.config_of(path, source.raw_config), source.tokenizer, ends)
    config = path / "config.json"
    if not config.exists():
        raise checkpoints.CheckpointError(
            path, ["no config.json; wanted a model directory, an adapter, or a .gguf file"]
        )
    raw = sources.read_json(config)
    ends = sources.ends(path, raw, sources.beside(path))
    return _Known(checkpoints.config_of(path, raw), sources.tokenizer_fn(path), ends)
