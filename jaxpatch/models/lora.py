"""Shell: PEFT LoRA adapters, merged on load: ``W + scale * B A`` (Hu et al., arXiv 2106.09685), and what else they may hold.

DoRA sets the length of each output's weights after that (Liu et al., arXiv 2402.09353); modules_to_save and trained biases come whole.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxpatch.models import convert, sources
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import Family, wrapping
from jaxpatch.trees import compare, paths

PREFIX = "base_model.model."
_READ = frozenset(
    """r lora_alpha use_rslora use_dora target_modules layers_to_transform exclude_modules rank_pattern alpha_pattern
    modules_to_save bias ensure_weight_tying""".split()
)
_IGNORED = frozenset(
    """base_model_name_or_path revision inference_mode task_type peft_type peft_version auto_mapping lora_dropout
    layers_pattern runtime_config loftq_config eva_config megatron_core qalora_group_size
    fan_in_fan_out""".split()
)
"""Settings that say how an adapter was trained or found, not what it computes; PEFT sets fan_in_fan_out by the kind of module."""

_HARMLESS = {"init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
"""Settings and the values under which they change nothing. Other starts (PiSSA, ...) alter the base itself."""
_BIASES = ("none", "all", "lora_only")
_SWITCHES = ("use_rslora", "use_dora", "ensure_weight_tying")
_LARGEST = sys.float_info.max


Place = Callable[[str, np.ndarray], Any]
"""(path, leaf) -> the leaf where it is to stay."""


class Adapter(NamedTuple):
    """Names of an adapter's tensors, by the checkpoint's name of the weight that they change.

    halves: A and B. tables: A and B of a table of embeddings. lengths: DoRA's. whole: what stands in the weight's place.
    under: what modules_to_save stands before.
    """

    halves: dict[str, tuple[str, str]]
    tables: dict[str, tuple[str, str]]
    lengths: dict[str, str]
    whole: dict[str, str]
    under: dict[str, str]

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
    """What an adapter says that it was trained on: a path, or a hub id, ``@revision`` behind it where it names one."""
    settings = sources.read_json(files(path)[0])
    name, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    if not isinstance(name, str) or not name:
        return None
    is_at_one = isinstance(revision, str) and revision and "@" not in name and not Path(name).expanduser().exists()
    return f"{name}@{revision}" if is_at_one else name


def merge(
    params: Mapping[str, Any], path: Path, family: Family, config: DecoderConfig, place: Place
) -> tuple[dict[str, Any], DecoderConfig, tuple[str, ...]]:
    """The base with the adapter added in, and its config; leaves that the adapter does not touch are the base's own arrays. Last, the
    names of tensors that are none of the text model's: an adapter may have been trained on a whole that reads more than text.

    What is meant is the model that runs with the adapter beside its base: PEFT's forward. Where base ties its two tables and the
    adapter changes one, the other stays what it was; PEFT's `merge_and_unload` writes into the one array of both: another model.

    A table that the adapter brings whole may be longer than base's, and an unembedding may be new where base ties its own. place: puts
    each new leaf where it is to stay.

    Raises: CheckpointError naming every setting and tensor that cannot be used.
    """
    settings, read, adapter, twins, wanted, family, left_out = _opened(path, family, config)
    faults = [f"{one} and {two} differ, but base ties them" for one, two in twins if not _is_one(read(one), read(two))]
    if faults:
        raise sources.CheckpointError(path, faults)
    flat = paths.flatten(params)
    if config.tied and not wanted.tied:
        flat["unembed/kernel"] = flat["embed/kernel"].T
    config, rules = wanted, family.rules(wanted)
    places = convert.places(rules, config)
    dtype = next(iter(flat.values())).dtype
    wide = np.promote_types(dtype, np.float32)

    def merged(name: str) -> np.ndarray:
        own = read(adapter.whole[name]) if name in adapter.whole else convert.to_tensor(flat, places[name], config)
        if name not in adapter.pairs:
            return own
        a, b = (read(half).astype(wide) for half in adapter.pairs[name])
        with np.errstate(all="ignore"):  # an infinity is found, and reported by name, after merging
            change = _scale(settings, name) * (b @ a)
            if name in adapter.tables or family.has_inputs_first(name):
                change = change.T
            weight = own.astype(wide) + change
            if name not in adapter.lengths:
                return weight
            inputs = 0 if family.has_inputs_first(name) else 1
            wanted = read(adapter.lengths[name]).astype(wide).reshape(-1)
            return weight * np.expand_dims(wanted / np.linalg.norm(weight, axis=inputs), inputs)

    sizes = convert.leaf_shapes(rules, config)
    start = {name: leaf for name, leaf in flat.items() if leaf.shape == sizes[name]}  # a longer table comes whole
    made = convert.to_leaves(merged, adapter.weights, rules, config, dtype, start)
    flat |= {name: place(name, leaf) for name, leaf in made}
    return paths.unflatten(flat), config, left_out


def config_with(path: Path, family: Family, config: DecoderConfig) -> DecoderConfig:
    """The config of a base with this adapter in it, from settings and shapes alone; base's own where the weights are not there.

    Raises: CheckpointError naming every setting and tensor that cannot be used, as far as that can be told without a number.
    """
    if files(path)[1].exists():
        return _opened(path, family, config).config
    if faults := setting_faults(sources.read_json(files(path)[0])):
        raise sources.CheckpointError(path, faults)
    return config


class _Opened(NamedTuple):
    """An adapter that fits its base, as far as settings and shapes tell.

    twins: tensors of which each two must be one. config: base's, with the adapter in it. family: as its tensors are called there.
    left_out: names of those that are none of the text model's.
    """

    settings: Mapping[str, Any]
    read: Callable[[str], np.ndarray]
    adapter: Adapter
    twins: list[tuple[str, str]]
    config: DecoderConfig
    family: Family
    left_out: tuple[str, ...]


def _opened(path: Path, family: Family, config: DecoderConfig) -> _Opened:
    settings_file, weights_file = files(path)
    settings = sources.read_json(settings_file)
    faults, twins = setting_faults(settings), []
    if not weights_file.exists():
        faults.append(f"no {weights_file.name} (pickled adapters are refused: they can run code when opened)")
        raise sources.CheckpointError(path, faults)
    stored, read_stored, *_ = sources.safetensors_of((weights_file,))
    own_names = {_renamed(name, family.modules): name for name in stored}
    found = {name: stored[own] for name, own in own_names.items()}
    settings = _with_names(settings, family.modules)

    def read(name: str) -> np.ndarray:
        return read_stored(own_names[name])

    names = {name: name.removeprefix(PREFIX) for name in found}
    family = wrapping.inside(family, wrapping.whole_of(family, names.values()), names.values())
    left_out = tuple(name for name in names.values() if name.startswith(family.others))
    shapes = {name: shape for name, shape in found.items() if names[name] not in left_out}
    if settings.get("target_parameters"):  # tensors lie otherwise then, so that nothing else would be true of them
        raise sources.CheckpointError(path, faults)
    known = {*convert.places(family.rules(config), config), family.unembed}
    adapter, wrong = _adapter(shapes, settings, known)
    faults += wrong + [
        f"unexpected tensor {name}; PEFT reads those whose names begin with {PREFIX}"
        for name in stored
        if not name.startswith(PREFIX)
    ]
    ends = _ends(family, config)
    if config.tied:
        tied = _tied_anew if _is_tied_anew(settings) else _taken_apart
        adapter, twins, is_tied, wrong = tied(adapter, settings, ends)
        config, faults = dataclasses.replace(config, tied=is_tied), faults + wrong
    config = _as_large(config, [shapes[adapter.whole[name]] for name in ends if name in adapter.whole])
    rules = family.rules(config)
    faults += _target_faults(adapter, settings, convert.places(rules, config), left_out)
    faults += _rank_faults(adapter, settings, shapes)
    faults += convert.faults(_weight_shapes(adapter, shapes, family), rules, config, is_partial=True)
    if faults:
        raise sources.CheckpointError(path, faults)
    return _Opened(settings, read, adapter, twins, config, family, left_out)


def _renamed(name: str, modules: Mapping[str, str]) -> str:
    """A name in which modules are called otherwise.

    >>> _renamed("base_model.model.lm_head.lora_A.weight", {"lm_head": "embed_out"})
    'base_model.model.embed_out.lora_A.weight'
    """
    for old, new in modules.items():
        name = re.sub(rf"\b{old}\b", new, name)
    return name


def _with_names(settings: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """Settings that name modules as checkpoints do."""

    def renamed(value: Any) -> Any:
        if isinstance(value, str):
            return _renamed(value, modules)
        if isinstance(value, list):
            return [renamed(each) for each in value]
        return {renamed(key): each for key, each in value.items()} if isinstance(value, dict) else value

    naming = ("target_modules", "exclude_modules", "modules_to_save", *_PATTERNS.values())
    return {name: renamed(value) if name in naming else value for name, value in settings.items()}


MOST_RANK = 64
"""Beyond which a difference is not written as an adapter, where nothing else is said."""


def split(
    base: Mapping[str, Any], params: Mapping[str, Any], family: Family, config: DecoderConfig, most: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What sets a model apart from base, as an adapter: its tensors and settings. The inverse of `merge`, as far as numbers go.

    A difference of two narrow numbers is itself rounded, so singular values below that rounding are none (`_smallest`).

    Raises: ValueError naming every tensor whose difference is of a higher rank than `most`, no matrix, or an expert's.
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
        if len(place.at) > 1:
            faults.append(f"{name} differs, and PEFT has no adapter for one expert: transformers stacks them")
            continue
        change = new.astype(np.float64) - old.astype(np.float64)
        left, sizes, right = np.linalg.svd(change.T if family.has_inputs_first(name) else change, full_matrices=False)
        rank = int((sizes > _smallest(old, new)).sum())
        if rank > most:
            faults.append(f"{name} differs by rank {rank}, more than {most}")
            continue
        module, root = module_of(name, family), np.sqrt(sizes[:rank])
        wide = np.promote_types(new.dtype, np.float32)
        ranks[module] = rank
        tensors[f"{PREFIX}{module}.lora_A.weight"] = (root[:, None] * right[:rank]).astype(wide)
        tensors[f"{PREFIX}{module}.lora_B.weight"] = np.ascontiguousarray((left[:, :rank] * root).astype(wide))
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


def module_of(weight: str, family: Family) -> str:
    """What PEFT calls the module of a weight."""
    return _renamed(weight.removesuffix(".weight"), {theirs: own for own, theirs in family.modules.items()})


def _is_one(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two tensors are the same, one of them turned perhaps: an embedding's halves are those of an unembedding, turned."""
    return np.array_equal(one, two) or np.array_equal(one, two.T)


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
    faults += [
        f"{name}: wanted true or false, got {settings[name]!r}"
        for name in _SWITCHES
        if not isinstance(settings.get(name) or False, bool)
    ]
    if not _is_names(saved := settings.get("modules_to_save")):
        faults.append(f"modules_to_save: wanted a list of names, got {saved!r}")
    faults += [
        f"{name}: wanted a list of names, or a regular expression; got {value!r}"
        for name in ("target_modules", "exclude_modules")
        if not (_is_regex(value) if isinstance(value := settings.get(name), str) else _is_names(value))
    ]
    ranks, alphas = (
        [(name, settings.get(name)), *((f"{where}[{key!r}]", v) for key, v in _pattern(settings, where).items())]
        for name, where in _PATTERNS.items()
    )
    faults += [f"{n}: wanted a positive integer, got {v!r}" for n, v in ranks if not _is(v, int) or v < 1]
    faults += [f"{n}: wanted a number, got {v!r}" for n, v in alphas if not _is_number(v)]
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


def _is_number(value: Any) -> bool:
    return _is(value, int | float) and abs(value) <= _LARGEST


def _is_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(name, str) and name for name in value))


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def _is_layers(value: Any) -> bool:
    return value is None or all(_is(n, int) for n in (value if isinstance(value, list) else [value]))


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
    lengths, whole, under, inside, faults = {}, {}, {}, {}, []
    for name, shape in shapes.items():
        stem, _, rest = name.removeprefix(PREFIX).replace(".base_layer.", ".").partition(".lora_")
        outer = re.sub(r"\.(original_module|modules_to_save)\.(?=\w+$)", ".", stem)
        if rest in ("A.weight", "B.weight") and len(shape) == 2:
            role, key = halves.setdefault(stem + ".weight", {}), rest[0]
        elif rest in ("embedding_A", "embedding_B") and len(shape) == 2:
            role, key = tables.setdefault(stem + ".weight", {}), rest[-1]
        elif rest in ("magnitude_vector", "magnitude_vector.weight") and settings.get("use_dora"):
            role, key = lengths, stem + ".weight"
        elif not rest and stem in known and _is_brought_whole(stem, settings):
            role, key = whole, stem
        elif not rest and outer != stem and PREFIX + outer in shapes and _is_brought_whole(outer, settings):
            # where the vocabulary has grown, PEFT writes a saved table thrice: as it is, and what is in its wrapper
            role, key = (under if ".original_module." in stem else inside), outer
        else:
            why = (
                "no setting speaks of it"
                if not rest and stem in known
                else "wanted ....lora_A.weight and ....lora_B.weight"
            )
            faults.append(f"unexpected tensor {name} {shape}; {why}")
            continue
        if key in role:
            faults.append(f"{role[key]} and {name} stand for the same; wanted one of them")
        role[key] = name
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
    return Adapter(matrices, embeddings, lengths, whole, under), faults


_TABLES = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out")
"""Modules that PEFT saves whole by itself when their rows are not those of its base."""


def _is_brought_whole(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether a tensor may stand in its weight's place."""
    if name.endswith(".bias") and settings.get("bias", "none") in _BIASES[1:]:
        return True
    return _is_saved(name, settings) or any(f".{module}." in f".{name}" for module in _TABLES)


def _is_saved(name: str, settings: Mapping[str, Any]) -> bool:
    """PEFT's rule: modules_to_save means each module whose name ends so, at a dot or not ("norm": every norm), and all within."""
    ends, parts = settings.get("modules_to_save"), name.split(".")
    if not ends or not _is_names(ends):
        return False
    return any(".".join(parts[:number]).endswith(tuple(ends)) for number in range(1, len(parts)))


def _ends(family: Family, config: DecoderConfig) -> tuple[str, str]:
    """The names of the embedding and of the unembedding, which a tied base has not."""
    theirs = {rule.ours: rule.theirs for rule in family.rules(dataclasses.replace(config, tied=False))}
    return theirs["embed/kernel"], theirs["unembed/kernel"]


def _taken_apart(
    adapter: Adapter, settings: Mapping[str, Any], ends: tuple[str, str]
) -> tuple[Adapter, list[tuple[str, str]], bool, list[str]]:
    """An adapter for a base that ties its two tables, as PEFT runs it; tensors that must be one; whether it is still tied; faults.

    modules_to_save runs a copy of one end, and A and B stand beside one end: the other keeps the table that both had. Where that table
    itself is in the file (it grew, or PEFT saves what stands beneath A and B), it is what both had.
    """
    saved = {name for name in ends if name in adapter.whole and _is_saved(name, settings)}
    shared = [adapter.whole[name] for name in ends if name in adapter.whole and name not in saved]
    shared += [adapter.under[name] for name in ends if name in saved and name in adapter.under]
    whole = {**(dict.fromkeys(ends, shared[0]) if shared else {}), **adapter.whole}
    is_tied = not saved and adapter.pairs.keys().isdisjoint(ends)
    if is_tied:
        whole.pop(ends[1], None)
    return adapter._replace(whole=whole), [(shared[0], other) for other in shared[1:]], is_tied, []


_TIED_ANEW = ("embed_tokens", "lm_head")
"""Modules that PEFT looks for where it is to tie what it adapts; tables by other names it leaves apart."""


def _is_tied_anew(settings: Mapping[str, Any]) -> bool:
    """Whether PEFT heeds ensure_weight_tying."""
    if not settings.get("ensure_weight_tying") or setting_faults(settings):
        return False
    targets, named = settings.get("target_modules") or [], list(settings.get("modules_to_save") or [])
    if isinstance(targets, str):
        named += [name for name in _TIED_ANEW if re.fullmatch(targets, name)]
    else:
        named += targets
    return any(name.split(".")[-1] in _TIED_ANEW for name in named)


def _tied_anew(
    adapter: Adapter, settings: Mapping[str, Any], ends: tuple[str, str]
) -> tuple[Adapter, list[tuple[str, str]], bool, list[str]]:
    """The same under ensure_weight_tying: PEFT does to the unembedding what it does to the embedding, and saves both. Still tied."""
    embed, head = ends
    whole, halves, twins, faults = dict(adapter.whole), dict(adapter.halves), [], []
    if head in whole:
        twins.append((whole.setdefault(embed, whole[head]), whole.pop(head)))
    if head in halves and embed in adapter.tables:
        twins += zip(adapter.tables[embed], reversed(halves.pop(head)), strict=True)
        if _scale(settings, embed) != _scale(settings, head):
            faults.append(f"ensure_weight_tying: {embed} and {head} have other ranks or alphas; wanted the same")
    elif head in halves:
        faults.append(f"ensure_weight_tying: {head} has tensors, and {embed} has none")
    return adapter._replace(whole=whole, halves=halves), twins, True, faults


def _as_large(config: DecoderConfig, tables: Sequence[tuple[int, ...]]) -> DecoderConfig:
    """The config that whole tables of these shapes ask for."""
    rows = {shape[0] if shape else 0 for shape in tables}
    if len(rows) > 1 or len(tables) < (1 if config.tied else 2):
        return config
    return dataclasses.replace(config, vocab=rows.pop() or config.vocab)


_LOOKED_UP = ("embed/kernel", "positions/kernel")


def _weight_shapes(
    adapter: Adapter, shapes: Mapping[str, tuple[int, ...]], family: Family
) -> dict[str, tuple[int, ...]]:
    """The weights that the adapter's tensors make."""
    made = {name: shapes[file] for name, file in adapter.whole.items()}
    for name, (a, b) in adapter.pairs.items():
        is_turned = family.has_inputs_first(name) or name in adapter.tables
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
    """Where the adapter's target modules, a list or a pattern, and its tensors disagree.

    left_out: tensors that are none of the text model's, whose weights may be targets too.
    """
    targets, excluded = settings.get("target_modules"), settings.get("exclude_modules") or []
    if isinstance(targets, str):  # of a pattern PEFT reads what it fits, and passes over the rest of the file
        is_pattern = (
            _is_regex(targets) and targets.lower() != "all-linear"
        )  # PEFT's word for every matrix but the unembedding
        fits = re.compile(targets) if is_pattern else None
        others = [name for name in adapter.pairs if fits and not fits.fullmatch(name.removesuffix(".weight"))]
        return [f"{name} has tensors, but target_modules {targets!r} does not fit it" for name in others]
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
