"""Shell: a patched model out again: a Hugging Face directory, an Orbax tree, or an adapter."""

import contextlib
import copy
import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxpatch import atomic
from jaxpatch.models import convert, differences, lora, orbax_dir, sources, tensor_file
from jaxpatch.models.checkpoints import Pair, refuse_others, widest
from jaxpatch.models.families import FAMILIES, wrapping
from jaxpatch.shapes import Params
from jaxpatch.trees import compare, paths


def save_checkpoint(
    pair: Pair,
    params: Params,
    path: str | Path,
    *,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
) -> Path:
    """Write parameters of this pair as a Hugging Face directory that transformers loads, a tensor at a time.

    Of a model that reads more than text (Gemma 3 with its vision tower) it is the text model alone, under a config of its own: that is
    what was patched, it loads like any other text model, and tensors that were never read need not be there.

    Args:
        pair: where config, tokenizer and chat template come from, as they were chosen.
        params: a tree of the pair's structure, such as `patch` makes.
        path: a directory that does not exist yet; it appears whole or not at all.
        dtype: of the weights on disk. None: the narrowest that holds both models' weights as they were in their files, whatever it is
            in memory or a config says. Rounding to it loses nothing of parameters that were read from there, patched or not; of others
            (an adapter's, a mean) what that type cannot hold.
        max_shard_size: largest file of weights, such as "200MB".
        overwrite: replace what is there, if that is a model or an adapter; nothing else is ever replaced.

    Returns: the path.

    Raises: FileExistsError; ValueError for an unknown dtype, a tree of another structure, and numbers that are none or overflow, naming
        every tensor that holds such.

    Example:
        >>> import tempfile
        >>> from jaxpatch import testing
        >>> from jaxpatch.models import checkpoints
        >>> home = Path(tempfile.mkdtemp())
        >>> pair = checkpoints.load_pair(*testing.tiny_checkpoints(home))
        >>> sorted(file.name for file in save_checkpoint(pair, pair.special, home / "saved").glob("*.safetensors"))
        ['model.safetensors']
    """
    import huggingface_hub

    _refuse_strangers(pair, params)
    rules, flat = FAMILIES[pair.config.family].rules(pair.config), paths.flatten(params)
    places, stored = convert.places(rules, pair.config), jnp.dtype(_stored(pair, flat, dtype))
    tensors = {
        name: tensor_file.Outline(place.rules[0].their_shape(pair.config.sizes), stored)
        for name, place in places.items()
    }
    overflown = []

    def read(tensor: str) -> np.ndarray:
        with np.errstate(over="ignore"):
            made = convert.to_tensor(flat, places[tensor], pair.config).astype(stored)
        if not compare.is_finite(made):
            overflown.append(tensor)
        return made

    split = huggingface_hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    beside = _beside(pair, stored.name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        beside["model.safetensors.index.json"] = json.dumps(index, indent=2) + "\n"
    with _directory(path, overwrite, pair) as folder:
        _write_beside(pair, beside, folder)
        for name, held in split.filename_to_tensors.items():
            tensor_file.write(folder / name, {tensor: tensors[tensor] for tensor in held}, read)
        if overflown:
            raise ValueError(f"not written, for these hold NaN or infinity as {stored}: {', '.join(overflown)}.")
    return Path(path)


def _stored(pair: Pair, flat: Params, dtype: str | None) -> str:
    """The type of weights on disk."""
    if dtype is None:
        return widest(pair.stored.values() or [next(iter(flat.values())).dtype.name])
    if faults := stored_faults(dtype):
        raise ValueError(faults[0])
    return dtype


def stored_faults(dtype: str) -> list[str]:
    """A type that weights are not written in.

    >>> stored_faults("float16"), len(stored_faults("float31"))
    ([], 1)
    """
    known = tensor_file.STORED_AS
    return [] if dtype in known else [f"dtype {dtype!r} is unknown; {paths.did_you_mean(dtype, known)}"]


MARKS = ("config.json", "adapter_config.json")
"""Files by one of which a directory shows that it was written here, or could have been."""
OURS = (
    *MARKS,
    *sources.BESIDE,
    *sources.TOKENIZER_FILES,
    *("README.md", "merge.json"),
    *("model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", orbax_dir.PARAMS),
)
"""Patterns of what such a directory holds. One that holds anything else is not ours to replace."""


def _directory(path: str | Path, overwrite: bool, pair: Pair) -> contextlib.AbstractContextManager[Path]:
    """A directory to write into that replaces a model or an adapter, an empty one, and nothing else.

    Raises: FileExistsError where something else is there, or beside it, or what the pair was read from.
    """
    place = Path(path).expanduser()
    if overwrite and place.exists():
        there = sorted(file.name for file in place.iterdir()) if place.is_dir() else []
        strange = [name for name in there if not any(fnmatch.fnmatch(name, ours) for ours in OURS)]
        if place.resolve() in {file.parent.resolve() for files in pair.files.values() for file in files}:
            raise FileExistsError(f"{path}: this pair was read from there, so it is not replaced; name another.")
        if not place.is_dir() or strange or (there and not set(MARKS) & set(there)):
            what = f"has {', '.join(strange)} too" if strange else "is no model or adapter"
            raise FileExistsError(f"{path} {what}, so it is not replaced; name another, or remove it yourself.")
    return atomic.directory(path, overwrite=overwrite)


def _beside(pair: Pair, dtype: str) -> dict[str, str]:
    """Files that belong beside this pair's weights, name -> text. Raises ValueError where nothing is known of them."""
    if not pair.raw_config:
        raise ValueError("this pair was not read from a checkpoint, so there is no config.json to write.")
    named = {"dtype", "torch_dtype"} & pair.raw_config.keys() or {"dtype"}
    config = {**pair.raw_config, **dict.fromkeys(named, dtype)}
    return {**pair.beside, "config.json": json.dumps(config, indent=2) + "\n"}


def _write_beside(pair: Pair, beside: Mapping[str, str], folder: Path) -> None:
    for name, text in beside.items():
        (folder / name).write_text(text, encoding="utf-8")
    if pair.tokenizer is not None:
        tokenizer = copy.deepcopy(pair.tokenizer)
        if differences.template_of(tokenizer) != pair.template:
            tokenizer.chat_template = pair.template
        tokenizer.save_pretrained(folder)


def save_orbax(pair: Pair, params: Params, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write parameters of this pair as Orbax keeps a tree, which `load_pair` reads again, with config and tokenizer beside.

    Of parameters that are cut over a mesh each device writes its own part.

    Args:
        pair: where config, tokenizer and chat template come from, as they were chosen.
        params: a tree of the pair's structure, such as `patch` makes.
        path: a directory that does not exist yet; it appears whole or not at all.
        overwrite: replace what is there, if that is a model or an adapter.

    Returns: the path. Raises: FileExistsError, ValueError (a tree of another structure).

    Example:
        >>> saved = save_orbax(pair, jp.patch(pair.base, pair.special, gates), "checkpoints/patched")  # doctest: +SKIP
    """
    _refuse_strangers(pair, params)
    beside = _beside(pair, str(next(iter(paths.flatten(params).values())).dtype))
    with _directory(path, overwrite, pair) as folder:
        _write_beside(pair, beside, folder)
        orbax_dir.write(folder, params)
    return Path(path)


def save_adapter(
    pair: Pair, params: Params, path: str | Path, *, most: int = lora.MOST_RANK, overwrite: bool = False
) -> Path:
    """Write what sets parameters apart from base as a PEFT LoRA adapter, where that is exactly of low rank.

    Its tensors are called as in the model that it names as its base: of one that reads more than text, as in the whole.

    Args:
        pair: whose base the adapter is for.
        params: a tree of the pair's structure: special, or what `patch` makes. Its matrices may differ from base's by any rank up to
            `most`, as far as the numbers' own precision tells; nothing else may differ, and nothing in an expert.
        path: a directory that does not exist yet; it appears whole or not at all.
        most: largest rank of one matrix.
        overwrite: replace what is there, if that is a model or an adapter.

    Returns: the path.

    Raises: FileExistsError; ValueError naming every tensor that differs by more, is no matrix, or is an expert's, for whose matrices
        PEFT has no adapters: transformers holds those of all experts in one stack; and for what an adapter cannot say: a pair under
        special's settings, an unembedding of which only a part is shared.

    Example:
        >>> saved = save_adapter(pair, jp.patch(pair.base, pair.special, gates), "adapters/patched")  # doctest: +SKIP
    """
    _refuse_strangers(pair, params)
    family, base = FAMILIES[pair.config.family], _base_of(pair)
    if said := [each.special for each in pair.differences if (each.name, each.chosen) == ("settings", "special")]:
        raise ValueError(
            f"not to be had as an adapter: this pair runs under special's settings (it {said[0]}), and an adapter runs under its "
            'base\'s. Load the pair with settings="base", or save_checkpoint.'
        )
    if base is not None:
        around = pair.left_out["base"]
        family = wrapping.inside(family, wrapping.whole_of(family, around), around)
    tensors, settings = lora.split(pair.base, params, family, pair.config, most)
    head = f"{lora.PREFIX}{lora.module_of(family.unembed, family)}.lora_B.weight"
    if head in tensors and (rows := differences.rows_of_base(pair.differences)) not in (None, pair.config.vocab):
        raise ValueError(
            f"not to be had as an adapter: {family.unembed} differs, of which base has {rows} rows and this pair the "
            f"{pair.config.vocab} that both models have. save_checkpoint writes those."
        )
    settings["base_model_name_or_path"] = base
    with _directory(path, overwrite, pair) as folder:
        settings_file, weights_file = lora.files(folder)
        settings_file.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        outlines = {name: tensor_file.Outline(tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        tensor_file.write(weights_file, outlines, tensors.__getitem__)
    return Path(path)


def _base_of(pair: Pair) -> str | None:
    """Where base was read from; None where it has no one place, being a model with an adapter in it."""
    files = pair.files.get("base", ())
    if not files or any(lora.is_adapter(file.parent) for file in files):
        return None
    return str((files[0] if files[0].suffix == ".gguf" else files[0].parent).resolve())


def _refuse_strangers(pair: Pair, params: Params) -> None:
    refuse_others(pair, "saving", "Models of your own are yours to save: orbax.checkpoint takes any tree.")
    if faults := compare.structure_faults(pair.base, params):
        raise ValueError("these parameters are not of this pair:\n" + "\n".join(f"  - {fault}" for fault in faults))
