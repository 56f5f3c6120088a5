"""Shell: PEFT LoRA adapters, merged on load: ``W + scale * B A`` (Hu et al., arXiv 2106.09685), and what else they may hold.

DoRA sets the length of each output's weights after that (Liu et al., arXiv 2402.09353); modules_to_save and trained biases come whole.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpatch.models import convert, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import Family, wrapping
from jaxpatch.trees import compare, paths

_PREFIX = "base_model.model."
_READ = frozenset(
    """r lora_alpha use_rslora use_dora target_modules layers_to_transform exclude_modules rank_pattern alpha_pattern
    modules_to_save bias""".split()
)
_IGNORED = frozenset(
    """base_model_name_or_path revision inference_mode task_type peft_type peft_version auto_mapping lora_dropout
    layers_pattern runtime_config loftq_config eva_config ensure_weight_tying megatron_core qalora_group_size
    fan_in_fan_out""".split()
)
"""Settings that say how an adapter was trained or found, not what it computes; PEFT sets fan_in_fan_out by the kind of module."""

_HARMLESS = {"init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
"""Settings and the values under which they change nothing. Other starts (PiSSA, ...) alter the base itself."""
_BIASES = ("none", "all", "lora_only")


Place = Callable[[str, np.ndarray], Any]
"""(path, leaf) -> the leaf where it is to stay."""


class Adapter(NamedTuple):
    """Names of an adapter's tensors, by the checkpoint's name of the weight that they change.

    halves: A and B. tables: A and B of a table of embeddings. lengths: DoRA's. whole: what stands in the weight's place.
    """

    halves: dict[str, tuple[str, str]]
    tables: dict[str, tuple[str, str]]
    lengths: dict[str, str]
    whole: dict[str, str]

    @property
    def weights(self) -> list[str]:
        """All that are changed."""
        return list(dict.fromkeys([*self.halves, *self.tables, *self.whole]))

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """A and B of matrices and of tables."""
        return {**self.halves, **self.tables}


def is_adapter(path: Path) -> bool:
    """Whether this directory is a PEFT adapter."""
    return (path / "adapter_config.json").exists()


def files(path: Path) -> tuple[Path, Path]:
    """The two files of an adapter."""
    return path / "adapter_config.json", path / "adapter_model.safetensors"


def base_of(path: Path) -> str | None:
    """What an adapter says that it was trained on: a path or a hub id."""
    name = sources.read_json(files(path)[0]).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def merge(
    params: Mapping[str, Any], path: Path, family: Family, config: DecoderConfig, place: Place
) -> tuple[dict[str, Any], DecoderConfig, tuple[str, ...]]:
    """The base with the adapter added in, and its config; leaves that the adapter does not touch are the base's own arrays. Last, the
    names of tensors that are none of the text model's: an adapter may have been trained on a whole that reads more than text.

    A table that the adapter brings whole may be longer than base's, and an unembedding may be new where base ties its own. place: puts
    each new leaf where it is to stay.

    Raises: CheckpointError naming every setting and tensor that cannot be used.
    """
    settings_file, weights_file = files(path)
    settings = sources.read_json(settings_file)
    faults = setting_faults(settings)
    if not weights_file.exists():
        faults.append(f"no {weights_file.name} (pickled adapters are refused: they can run code when opened)")
        raise sources.CheckpointError(path, faults)
    found, read, _ = sources.safetensors_of((weights_file,))
    names = {name: name.removeprefix(_PREFIX) for name in found}
    family = wrapping.inside(family, wrapping.whole_of(family, names.values()), names.values())
    left_out = tuple(name for name in names.values() if name.startswith(family.others))
    shapes = {name: shape for name, shape in found.items() if names[name] not in left_out}
    flat, known = paths.flatten(params), convert.places(family.rules(config), config)
    adapter, unknown = _adapter(shapes, settings, {*known, family.unembed})
    config, flat = _as_large(config, flat, family, adapter, shapes)
    rules = family.rules(config)
    places = convert.places(rules, config)
    faults += unknown + _target_faults(adapter, settings, places, left_out) + _rank_faults(adapter, settings, shapes)
    faults += convert.faults(_weight_shapes(adapter, shapes, family), rules, config, is_partial=True)
    if faults:
        raise sources.CheckpointError(path, faults)
    dtype = next(iter(flat.values())).dtype
    wide = np.promote_types(dtype, np.float32)

    def merged(name: str) -> np.ndarray:
        own = read(adapter.whole[name]) if name in adapter.whole else convert.to_tensor(flat, places[name], config)
        if name not in adapter.pairs:
            return own
        a, b = (read(half).astype(wide) for half in adapter.pairs[name])
        with np.errstate(all="ignore"):  # an infinity is found, and reported by name, after merging
            change = _scale(settings, name) * (b @ a)
            if name in adapter.tables or family.inputs_first:
                change = change.T
            weight = own.astype(wide) + change
            if name not in adapter.lengths:
                return weight
            inputs = 0 if family.inputs_first else 1
            wanted = read(adapter.lengths[name]).astype(wide).reshape(-1)
            return weight * np.expand_dims(wanted / np.linalg.norm(weight, axis=inputs), inputs)

    made = convert.to_leaves(merged, adapter.weights, rules, config, dtype, flat)
    flat |= {name: place(name, leaf) for name, leaf in made}
    return paths.unflatten(flat), config, left_out


MOST_RANK = 64
"""Beyond which a difference is not written as an adapter, where nothing else is said."""


def split(
    base: Mapping[str, Any], params: Mapping[str, Any], family: Family, config: DecoderConfig, most: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What sets a model apart from base, as an adapter: its tensors and settings. The inverse of `merge`, as far as numbers go.

    A difference of two narrow numbers is itself rounded, so singular values below that rounding are none (`_smallest`).

    Raises: ValueError naming every tensor whose difference is of a higher rank than `most`, or no matrix.
    """
    one, two = paths.flatten(base), paths.flatten(params)
    changed = set(compare.changed_leaves(base, params))
    tensors, ranks, faults = {}, {}, []
    for name, place in convert.places(family.rules(config), config).items():
        if not any(rule.ours in changed for rule in place.rules):
            continue
        old, new = (convert.to_tensor(flat, place, config) for flat in (one, two))
        if np.array_equal(old, new):
            continue
        if new.ndim != 2 or not name.endswith(".weight") or place.rules[0].ours in _LOOKED_UP:
            faults.append(f"{name} differs, and is no matrix that states are multiplied by")
            continue
        change = new.astype(np.float64) - old.astype(np.float64)
        left, sizes, right = np.linalg.svd(change.T if family.inputs_first else change, full_matrices=False)
        rank = int((sizes > _smallest(old, new)).sum())
        if rank > most:
            faults.append(f"{name} differs by rank {rank}, more than {most}")
            continue
        module, root, wide = (
            name.removesuffix(".weight"),
            np.sqrt(sizes[:rank]),
            np.promote_types(new.dtype, np.float32),
        )
        ranks[module] = rank
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = (root[:, None] * right[:rank]).astype(wide)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray((left[:, :rank] * root).astype(wide))
    if not ranks and not faults:
        faults.append("nothing differs from base")
    if faults:
        raise ValueError("not to be had as an adapter:\n" + "\n".join(f"  - {fault}" for fault in faults))
    largest = max(ranks.values())
    settings = dict(
        peft_type="LORA",
        task_type="CAUSAL_LM",
        r=largest,
        lora_alpha=largest,
        rank_pattern={re.escape(module): rank for module, rank in ranks.items() if rank != largest},
        alpha_pattern={re.escape(module): rank for module, rank in ranks.items() if rank != largest},
        target_modules=list(ranks),
        bias="none",
        fan_in_fan_out=family.inputs_first,
        inference_mode=True,
    )
    return tensors, settings


SPARE = 10
"""Random directions beyond a rank that is looked for."""


def rank_of(old: np.ndarray, new: np.ndarray, most: int = MOST_RANK, seed: int = 0) -> int | None:
    """The rank of the difference of two matrices, as far as their numbers' precision tells; None where it is above `most`.

    The range of a matrix is found by random directions (Halko, Martinsson and Tropp, arXiv 0909.4061), so this costs a few products
    and no singular values of the whole. A matrix with a side of `most` or less has no rank that would be low: None.

    Example:
        >>> draw = np.random.default_rng(0)
        >>> old, b, a = (draw.standard_normal(shape) for shape in ((200, 100), (200, 3), (3, 100)))
        >>> rank_of(old, old + b @ a), rank_of(old, draw.standard_normal((200, 100)))
        (3, None)
    """
    change = new.astype(np.float64) - old.astype(np.float64)
    if min(change.shape) <= most:
        return None
    directions = np.random.default_rng(seed).standard_normal((change.shape[1], min(most + SPARE, *change.shape)))
    within = np.linalg.qr(change @ directions)[0]
    inside = within.T @ change
    smallest = _smallest(old, new)
    if np.linalg.norm(change - within @ inside) > smallest * math.sqrt(min(change.shape)):
        return None
    rank = int((np.linalg.svd(inside, compute_uv=False) > smallest).sum())
    return rank if rank <= most else None


def _smallest(old: np.ndarray, new: np.ndarray) -> float:
    """Below this a singular value of their difference may be rounding: of so large a matrix of random errors of half a unit in the last
    place, the largest is hardly ever above the sum of the roots of its sides."""
    rounding = float(max(np.abs(old).max(), np.abs(new).max())) * 2.0 ** -(_mantissa(new.dtype) + 1)
    return rounding * sum(math.sqrt(side) for side in new.shape)


def _mantissa(dtype: np.dtype) -> int:
    import ml_dtypes

    return ml_dtypes.finfo(dtype).nmant


def setting_faults(settings: Mapping[str, Any]) -> list[str]:
    """Every setting that changes what the adapter computes and is not supported."""
    faults = [
        f"{name} = {value!r} is not supported"
        for name, value in settings.items()
        if name not in _READ | _IGNORED and value and value not in _HARMLESS.get(name, ())
    ]
    if settings.get("peft_type", "LORA") != "LORA":
        faults.append(f"peft_type {settings['peft_type']!r} is not supported (only 'LORA' is)")
    if not _is_layers(settings.get("layers_to_transform")):
        faults.append(
            f"layers_to_transform: wanted a layer or a list of layers, got {settings['layers_to_transform']!r}"
        )
    if (bias := settings.get("bias", "none")) not in _BIASES:
        faults.append(f"bias: wanted one of {', '.join(_BIASES)}, got {bias!r}")
    saved = settings.get("modules_to_save")
    if saved is not None and not (isinstance(saved, list) and all(isinstance(name, str) for name in saved)):
        faults.append(f"modules_to_save: wanted a list of names, got {saved!r}")
    ranks, alphas = (
        [(name, settings.get(name)), *((f"{where}[{key!r}]", v) for key, v in _pattern(settings, where).items())]
        for name, where in _PATTERNS.items()
    )
    faults += [f"{n}: wanted a positive integer, got {v!r}" for n, v in ranks if not _is(v, int) or v < 1]
    faults += [f"{n}: wanted a number, got {v!r}" for n, v in alphas if not _is(v, int | float)]
    for name in _PATTERNS.values():
        if not isinstance(settings.get(name) or {}, dict):
            faults.append(f"{name}: wanted an object, got {settings[name]!r}")
        faults += [
            f"{name}: {key!r} is no regular expression" for key in _pattern(settings, name) if not _is_regex(key)
        ]
    return faults


_PATTERNS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}
"""A setting -> where modules may have one of their own."""


def _pattern(settings: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name) or {}
    return found if isinstance(found, dict) else {}


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _is_layers(value: Any) -> bool:
    return value is None or all(isinstance(n, int) for n in (value if isinstance(value, list) else [value]))


def _of_module(settings: Mapping[str, Any], name: str, weight: str) -> Any:
    """A setting as it holds for one weight: of the first pattern that fits the end of its module's name, else of all."""
    module = weight.removesuffix(".weight")
    for key, value in _pattern(settings, _PATTERNS[name]).items():
        if _is_regex(key) and re.match(rf"(.*\.)?({key})$", module):
            return value
    return settings.get(name)


def _scale(settings: Mapping[str, Any], weight: str) -> float:
    rank, alpha = (_of_module(settings, name, weight) for name in ("r", "lora_alpha"))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _adapter(
    shapes: Mapping[str, tuple[int, ...]], settings: Mapping[str, Any], known: set[str]
) -> tuple[Adapter, list[str]]:
    """What each tensor is for, and a sentence for each that is for nothing, or stands alone. known: names in the checkpoint."""
    halves: dict[str, dict[str, str]] = {}
    tables: dict[str, dict[str, str]] = {}
    lengths, whole, faults = {}, {}, []
    for name, shape in shapes.items():
        stem, _, rest = name.removeprefix(_PREFIX).replace(".base_layer.", ".").partition(".lora_")
        if rest in ("A.weight", "B.weight") and len(shape) == 2:
            halves.setdefault(stem + ".weight", {})[rest[0]] = name
        elif rest in ("embedding_A", "embedding_B") and len(shape) == 2:
            tables.setdefault(stem + ".weight", {})[rest[-1]] = name
        elif rest in ("magnitude_vector", "magnitude_vector.weight") and settings.get("use_dora"):
            lengths[stem + ".weight"] = name
        elif not rest and stem in known and _is_saved_whole(stem, settings):
            whole[stem] = name
        else:
            why = (
                "no setting speaks of it"
                if not rest and stem in known
                else "wanted ....lora_A.weight and ....lora_B.weight"
            )
            faults.append(f"unexpected tensor {name} {shape}; {why}")
    for weight, found in [*halves.items(), *tables.items()]:
        if len(found) == 1:
            faults.append(f"{weight} has {next(iter(found.values()))} but not its other half")
    matrices, embeddings = (
        {weight: (of["A"], of["B"]) for weight, of in each.items() if len(of) == 2} for each in (halves, tables)
    )
    faults += [
        f"{weight} has {name}, which is supported of matrices alone"
        for weight, name in lengths.items()
        if weight not in matrices
    ]
    if settings.get("use_dora"):
        faults += [
            f"{weight} has no lora_magnitude_vector, and use_dora = True"
            for weight in matrices
            if weight not in lengths
        ]
    return Adapter(matrices, embeddings, lengths, whole), faults


_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
"""Modules that PEFT saves whole by itself when their rows are not those of its base."""


def _is_saved_whole(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the settings say so of a tensor."""
    if name.endswith(".bias") and settings.get("bias", "none") in _BIASES[1:]:
        return True
    return any(f".{module}." in f".{name}" for module in (*(settings.get("modules_to_save") or ()), *_TABLES))


def _as_large(
    config: DecoderConfig,
    flat: Mapping[str, np.ndarray],
    family: Family,
    adapter: Adapter,
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    """The config and leaves that an adapter's own tables ask for."""
    ends = {
        rule.ours: rule.theirs for rule in family.rules(dataclasses.replace(config, tied=False)) if rule.ours in _ENDS
    }
    brought = {ours: shapes[adapter.whole[theirs]] for ours, theirs in ends.items() if theirs in adapter.whole}
    leaves = dict(flat)
    if "unembed/kernel" in brought and config.tied:
        config = dataclasses.replace(config, tied=False)
        leaves["unembed/kernel"] = leaves["embed/kernel"].T
    rows = {shape[0] for shape in brought.values()}
    if len(rows) == 1 and len(brought) == (1 if config.tied else 2) and rows != {config.vocab}:
        config = dataclasses.replace(config, vocab=rows.pop())
        leaves = {path: leaf for path, leaf in leaves.items() if path not in brought}
    return config, leaves


_ENDS = ("embed/kernel", "unembed/kernel")
_LOOKED_UP = ("embed/kernel", "positions/kernel")


def _weight_shapes(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], family: Family
) -> dict[str, tuple[int, ...]]:
    """The weights that the adapter's tensors make."""
    made = {name: shapes[file] for name, file in adapter.whole.items()}
    for name, (a, b) in adapter.pairs.items():
        is_turned = family.inputs_first or name in adapter.tables
        made[name] = (shapes[a][1], shapes[b][0]) if is_turned else (shapes[b][0], shapes[a][1])
    return made


def _rank_faults(adapter: Adapter, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    faults = []
    for name, (a, b) in adapter.pairs.items():
        rank_a, rank_b, rank = shapes[a][0], shapes[b][1], _of_module(settings, "r", name)
        if not rank_a == rank_b == rank:
            faults.append(f"{a} and {b} have ranks {rank_a} and {rank_b}, but r = {rank}")
    for name, file in adapter.lengths.items():
        if name in adapter.halves and math.prod(shapes[file]) != (outputs := shapes[adapter.halves[name][1]][0]):
            faults.append(f"{file} has shape {shapes[file]}; wanted {outputs} lengths")
    return faults


def _target_faults(
    adapter: Adapter, settings: Mapping[str, Any], places: Mapping[str, convert.Place], left_out: Sequence[str]
) -> list[str]:
    """Where the adapter's list of target modules and its tensors disagree; a list given as a pattern says nothing.

    left_out: tensors that are none of the text model's, whose weights may be targets too.
    """
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
    others = {name.partition(".lora_")[0] + ".weight" for name in left_out}
    faults = [
        f"target module {t!r} names nothing" for t in targets if not any(_is_named(w, [t]) for w in (*weights, *others))
    ]
    faults += [
        f"{name} is a target, but has no tensors" for name in weights if name in named and name not in adapter.pairs
    ]
    faults += [
        f"{name} has tensors, but is no target" for name in weights if name in adapter.pairs and name not in named
    ]
    return faults


def _is_named(weight: str, modules: Sequence[str]) -> bool:
    """PEFT's rule: a module is meant by its whole name or by the end of it."""
    return any(f".{weight}".endswith(f".{module}.weight") for module in modules)
