"""Shell: what can be known of a pair before any weight of it is read: its architecture, and how it reads text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxpatch.models import checkpoints, gguf_file, lora, sources
from jaxpatch.models.config import DecoderConfig


class Outline(NamedTuple):
    """One architecture for both models. tokenizer: makes the base's, or None where it has none."""

    config: DecoderConfig
    tokenizer: Callable[[], Any] | None


def read(base: str | Path, special: str | Path) -> Outline:
    """What `checkpoints.load_pair` would make of these two, from config.json, a GGUF file's header or an adapter's settings alone.

    The directories need not hold any weights.

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
    one, two = found[0], found[1] or found[0]
    tied = one.config.tied and two.config.tied
    configs = [replace(each.config, tied=tied) for each in (one, two)]
    if faults := checkpoints.config_faults(*configs):
        raise ValueError(
            f"base {base_path} and special {special_path} are not of one architecture:\n"
            + "\n".join(f"  - {fault}" for fault in faults)
        )
    return Outline(configs[0], one.tokenizer)


def _adapter(path: Path, is_base: bool) -> Outline | None:
    """An adapter has the architecture of the model it is merged into, which is another one only where it is the base itself.

    Raises CheckpointError for settings that are not supported.
    """
    if faults := lora.setting_faults(sources.read_json(lora.files(path)[0])):
        raise checkpoints.CheckpointError(path, faults)
    return _model(checkpoints.underlying(path)) if is_base else None


def _model(path: Path) -> Outline:
    if path.suffix == ".gguf":
        source = gguf_file.read(path)
        return Outline(checkpoints.config_of(path, source.raw_config), source.tokenizer)
    config = path / "config.json"
    if not config.exists():
        raise checkpoints.CheckpointError(
            path, ["no config.json; wanted a model directory, an adapter, or a .gguf file"]
        )
    return Outline(checkpoints.config_of(path, sources.read_json(config)), sources.tokenizer_fn(path))
