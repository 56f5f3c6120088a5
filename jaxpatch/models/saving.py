"""Shell: a patched model out again: a Hugging Face directory, an Orbax tree, or an adapter."""

import json
from collections.abc import Mapping
from pathlib import Path

from jaxpatch import atomic
from jaxpatch.models import convert, lora, orbax_dir, tensor_file
from jaxpatch.models.checkpoints import Pair, refuse_others
from jaxpatch.models.families import FAMILIES
from jaxpatch.shapes import Params
from jaxpatch.trees import compare, paths


def save_checkpoint(
    pair: Pair, params: Params, path: str | Path, *, max_shard_size: str = "5GB", overwrite: bool = False
) -> Path:
    """Write parameters of this pair as a Hugging Face directory that transformers loads, a tensor at a time.

    Args:
        pair: where config and tokenizer come from.
        params: a tree of the pair's structure, such as `patch` makes.
        path: a directory that does not exist yet; it appears whole or not at all.
        max_shard_size: largest file of weights, such as "200MB".
        overwrite: replace what is there.

    Returns: the path. Raises: FileExistsError, ValueError (a tree of another structure).
    """
    import huggingface_hub

    _refuse_strangers(pair, params)
    rules, flat = FAMILIES[pair.config.family].rules(pair.config), paths.flatten(params)
    places, dtype = convert.places(rules, pair.config), next(iter(flat.values())).dtype
    tensors = {
        name: tensor_file.Outline(place.rules[0].their_shape(pair.config.sizes), dtype)
        for name, place in places.items()
    }
    split = huggingface_hub.split_state_dict_into_shards_factory(
        tensors,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    beside = _beside(pair, str(dtype))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        beside["model.safetensors.index.json"] = json.dumps(index, indent=2) + "\n"
    with atomic.directory(path, overwrite=overwrite) as folder:
        _write_beside(pair, beside, folder)
        for name, held in split.filename_to_tensors.items():
            tensor_file.write(
                folder / name,
                {tensor: tensors[tensor] for tensor in held},
                lambda tensor: convert.to_tensor(flat, places[tensor], pair.config),
            )
    return Path(path)


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
        pair.tokenizer.save_pretrained(folder)


def save_orbax(pair: Pair, params: Params, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write parameters of this pair as Orbax keeps a tree, which `load_pair` reads again, with config and tokenizer beside.

    Of parameters that are cut over a mesh each device writes its own part.

    Args:
        pair: where config and tokenizer come from.
        params: a tree of the pair's structure, such as `patch` makes.
        path: a directory that does not exist yet; it appears whole or not at all.
        overwrite: replace what is there.

    Returns: the path. Raises: FileExistsError, ValueError (a tree of another structure).

    Example:
        >>> saved = save_orbax(pair, jp.patch(pair.base, pair.special, gates), "checkpoints/patched")  # doctest: +SKIP
    """
    _refuse_strangers(pair, params)
    beside = _beside(pair, str(next(iter(paths.flatten(params).values())).dtype))
    with atomic.directory(path, overwrite=overwrite) as folder:
        _write_beside(pair, beside, folder)
        orbax_dir.write(folder, params)
    return Path(path)


def save_adapter(
    pair: Pair, params: Params, path: str | Path, *, most: int = lora.MOST_RANK, overwrite: bool = False
) -> Path:
    """Write what sets parameters apart from base as a PEFT LoRA adapter, where that is exactly of low rank.

    Args:
        pair: whose base the adapter is for.
        params: a tree of the pair's structure: special, or what `patch` makes. Its matrices may differ from base's by any rank up to
            `most`, as far as the numbers' own precision tells; nothing else may differ.
        path: a directory that does not exist yet; it appears whole or not at all.
        most: largest rank of one matrix.
        overwrite: replace what is there.

    Returns: the path.

    Raises: FileExistsError; ValueError naming every tensor that differs by more, or is no matrix.

    Example:
        >>> saved = save_adapter(pair, jp.patch(pair.base, pair.special, gates), "adapters/patched")  # doctest: +SKIP
    """
    _refuse_strangers(pair, params)
    tensors, settings = lora.split(pair.base, params, FAMILIES[pair.config.family], pair.config, most)
    settings["base_model_name_or_path"] = _base_of(pair)
    with atomic.directory(path, overwrite=overwrite) as folder:
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
    return str(files[0] if files[0].suffix == ".gguf" else files[0].parent)


def _refuse_strangers(pair: Pair, params: Params) -> None:
    refuse_others(pair, "saving", "Models of your own are yours to save: orbax.checkpoint takes any tree.")
    if faults := compare.structure_faults(pair.base, params):
        raise ValueError("these parameters are not of this pair:\n" + "\n".join(f"  - {fault}" for fault in faults))
