"""Shell: PEFT LoRA adapters, merged on load: ``W + scale * B A`` (Hu et al., arXiv 2106.09685)."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxpatch.models import convert, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.trees import paths

_PREFIX = "base_model.model."
_IGNORED = frozenset(
    """base_model_name_or_path revision inference_mode task_type peft_type peft_version auto_mapping lora_dropout
    layers_pattern runtime_config loftq_config ensure_weight_tying megatron_core qalora_group_size""".split()
)
"""Settings that say how an adapter was trained or found, not what it computes."""

_HARMLESS = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
"""Settings and the values under which they change nothing. Other starts (PiSSA, ...) alter the base itself."""


def is_adapter(path: Path) -> bool:
    """Whether this directory is a PEFT adapter."""
    return (path / "adapter_config.json").exists()


def files(path: Path) -> tuple[Path, Path]:
    """The two files of an adapter."""
    return path / "adapter_config.json", path / "adapter_model.safetensors"


def merge(
    params: Mapping[str, Any], path: Path, rules: Sequence[convert.Rule], config: DecoderConfig
) -> dict[str, Any]:
    """The base with the adapter added in; leaves it does not touch are the base's own arrays.

    Raises: CheckpointError naming every setting and tensor that cannot be used.
    """
    settings_file, weights_file = files(path)
    settings = sources.read_json(settings_file)
    faults = setting_faults(settings)
    if not weights_file.exists():
        faults.append(f"no {weights_file.name} (pickled adapters are refused: they can run code when opened)")
        raise sources.CheckpointError(path, faults)
    shapes, read = sources.safetensors_of((weights_file,))
    pairs, unknown = _pairs(shapes)
    faults += unknown
    faults += _target_faults(pairs, settings, convert.places(rules, config))
    rank = settings.get("r")
    weight_shapes = {}
    for name, (a, b) in pairs.items():
        (rank_a, inputs), (outputs, rank_b) = shapes[a], shapes[b]
        if not rank_a == rank_b == rank:
            faults.append(f"{a} and {b} have ranks {rank_a} and {rank_b}, but r = {rank}")
        weight_shapes[name] = (outputs, inputs)
    faults += convert.faults(weight_shapes, rules, config, is_partial=True)
    if faults or not isinstance(rank, int):
        raise sources.CheckpointError(path, faults)
    scale = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    flat = paths.flatten(params)
    wide = np.promote_types(next(iter(flat.values())).dtype, np.float32)

    def delta(name: str) -> np.ndarray:
        a, b = (read(half).astype(wide) for half in pairs[name])
        with np.errstate(all="ignore"):  # an infinity is found, and reported by name, after merging
            return scale * (b @ a)

    for leaf, change in convert.to_leaves(delta, list(pairs), rules, config, wide):
        base = np.asarray(flat[leaf])
        flat[leaf] = (base.astype(wide) + change).astype(base.dtype)
    return paths.unflatten(flat)


def setting_faults(settings: Mapping[str, Any]) -> list[str]:
    """Every setting that changes what the adapter computes and is not supported."""
    read = {"r", "lora_alpha", "use_rslora", "target_modules", "layers_to_transform", "exclude_modules"}
    faults = [
        f"{name} = {value!r} is not supported"
        for name, value in settings.items()
        if name not in read | _IGNORED and value and value not in _HARMLESS.get(name, ())
    ]
    if settings.get("peft_type", "LORA") != "LORA":
        faults.append(f"peft_type {settings['peft_type']!r} is not supported (only 'LORA' is)")
    if not _is_layers(settings.get("layers_to_transform")):
        faults.append(
            f"layers_to_transform: wanted a layer or a list of layers, got {settings['layers_to_transform']!r}"
        )
    alpha, rank = settings.get("lora_alpha"), settings.get("r")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        faults.append(f"lora_alpha: wanted a number, got {alpha!r}")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        faults.append(f"r: wanted a positive integer, got {rank!r}")
    return faults


def _is_layers(value: Any) -> bool:
    return value is None or all(isinstance(n, int) for n in (value if isinstance(value, list) else [value]))


def _pairs(shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """Weight name -> names of its A and B; and a sentence for each tensor that is neither, or stands alone."""
    halves: dict[str, dict[str, str]] = {}
    faults = []
    for name in shapes:
        stem, _, rest = name.removeprefix(_PREFIX).partition(".lora_")
        if rest in ("A.weight", "B.weight") and len(shapes[name]) == 2:
            halves.setdefault(stem + ".weight", {})[rest[0]] = name
        else:
            faults.append(f"unexpected tensor {name} {shapes[name]}; wanted ....lora_A.weight and ....lora_B.weight")
    for weight, found in halves.items():
        if len(found) == 1:
            faults.append(f"{weight} has {next(iter(found.values()))} but not its other half")
    return {weight: (found["A"], found["B"]) for weight, found in halves.items() if len(found) == 2}, faults


def _target_faults(
    pairs: Mapping[str, Any], settings: Mapping[str, Any], places: Mapping[str, convert.Place]
) -> list[str]:
    """Where the adapter's list of target modules and its tensors disagree; a list given as a pattern says nothing."""
    targets, excluded = settings.get("target_modules"), settings.get("exclude_modules") or []
    if not isinstance(targets, list) or not isinstance(excluded, list):
        return []
    layers = settings.get("layers_to_transform")
    if not _is_layers(layers):
        return []
    layers = [layers] if isinstance(layers, int) else layers
    weights = [name for name in places if name.endswith(".weight")]
    named = {
        name
        for name in weights
        if _is_named(name, targets) and not _is_named(name, excluded) and (not layers or places[name].layer in layers)
    }
    faults = [f"target module {t!r} names nothing" for t in targets if not any(_is_named(w, [t]) for w in weights)]
    faults += [f"{name} is a target, but has no tensors" for name in weights if name in named and name not in pairs]
    faults += [f"{name} has tensors, but is no target" for name in weights if name in pairs and name not in named]
    return faults


def _is_named(weight: str, modules: Sequence[str]) -> bool:
    """PEFT's rule: a module is meant by its whole name or by the end of it."""
    return any(f".{weight}".endswith(f".{module}.weight") for module in modules)
