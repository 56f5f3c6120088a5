"""Shell: GGUF files, read through the `gguf` package: weights dequantised, config and tokenizer out of the metadata."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpatch.models import sources
from jaxpatch.models.families import FAMILIES
from jaxpatch.trees import paths

_DIGITS_AND_BYTES = ("smollm",)
"""Pre-tokenizers that split numbers into digits before the byte-level pattern."""
_BYTES = ("default", "gpt-2")
_NEEDED = ("general.architecture", "tokenizer.ggml.tokens")
_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens that are cut out of a text before anything else."""


def read(path: Path) -> sources.Source:
    """Open a GGUF file. Raises CheckpointError naming every fault."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise sources.CheckpointError(path, ["reading .gguf needs an extra: pip install 'jaxpatch[gguf]'"]) from None
    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError) as error:
        raise sources.CheckpointError(path, [f"not a readable GGUF file: {error}; download it again"]) from None
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    if lacking := [name for name in _NEEDED if name not in metadata]:
        raise sources.CheckpointError(path, [f"no metadata {name}" for name in lacking])
    architecture = metadata["general.architecture"]
    readable = {name: family.gguf_config for name, family in FAMILIES.items() if family.gguf_config}
    if architecture not in readable:
        advice = paths.did_you_mean(str(architecture), readable)
        raise sources.CheckpointError(path, [f"architecture {architecture!r} is not supported. {advice}"])
    family = FAMILIES[architecture]
    try:
        raw = readable[architecture](metadata)
    except ValueError as error:
        raise sources.CheckpointError(path, str(error).split("; ")) from None
    tensors = {_their_name(tensor.name, family.gguf_names): tensor for tensor in reader.tensors}
    raw["tie_word_embeddings"] = "lm_head.weight" not in tensors
    heads = {"q_proj": raw["num_attention_heads"], "k_proj": raw["num_key_value_heads"]}
    return sources.Source(
        raw_config=raw,
        shapes={name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()},
        read=lambda name: _dequantised(path, tensors[name], heads.get(name.split(".")[-2])),
        files=(path,),
        tokenizer=_tokenizer_fn(path, metadata),
    )


def _their_name(name: str, table: Mapping[str, str]) -> str:
    """The checkpoint's name of a GGUF tensor; its own name where the table has none (and conversion will refuse it)."""
    parts = name.split(".")
    layer = parts[1] if parts[0] == "blk" else ""
    pattern = ".".join(["blk", "{l}", *parts[2:]]) if layer else name
    return table.get(pattern, name).replace("{l}", layer)


def _dequantised(path: Path, tensor: Any, num_rotary_heads: int | None) -> np.ndarray:
    """float32 weights; GGUF interleaves the two rotary halves of W_Q and W_K, which is undone here."""
    from gguf import dequantize

    try:
        weights = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise sources.CheckpointError(path, [f"{tensor.name} is stored as {kind}, which gguf does not read"]) from None
    weights = weights.reshape([int(n) for n in reversed(tensor.shape)])
    if num_rotary_heads is None:
        return weights
    rows, *rest = weights.shape
    pairs = weights.reshape(num_rotary_heads, rows // num_rotary_heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _tokenizer_fn(path: Path, metadata: Mapping[str, Any]) -> Callable[[], Any]:
    """How to make the tokenizer: a tokenizer.json beside the file, else the byte-level BPE inside it."""

    def make():
        if (path.parent / "tokenizer.json").exists():
            return sources.tokenizer_of(path.parent)
        return _byte_level_bpe(path, metadata)

    return make


def _byte_level_bpe(path: Path, metadata: Mapping[str, Any]) -> Any:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    faults = [
        f"tokenizer.ggml.{name} is not supported inside a GGUF file; put the model's tokenizer.json beside it"
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix")
        if metadata.get(f"tokenizer.ggml.{name}")
    ]
    if kind != "gpt2" or pre not in _DIGITS_AND_BYTES + _BYTES:
        faults.append(
            f"tokenizer model {kind!r} with pre-tokenizer {pre!r} is not supported inside a GGUF file "
            f"(only 'gpt2' with {', '.join(_DIGITS_AND_BYTES + _BYTES)}); put the model's tokenizer.json beside it"
        )
    if faults:
        raise sources.CheckpointError(path, faults)
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    tokenizer = tokenizers.Tokenizer(bpe)
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre in _DIGITS_AND_BYTES:
        split = [pre_tokenizers.Digits(individual_digits=True), *split]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    tokenizer.add_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED])
    named = {
        f"{ours}_token": tokens[metadata[key]]
        for ours, key in (
            ("bos", "tokenizer.ggml.bos_token_id"),
            ("eos", "tokenizer.ggml.eos_token_id"),
            ("unk", "tokenizer.ggml.unknown_token_id"),
            ("pad", "tokenizer.ggml.padding_token_id"),
        )
        if metadata.get(key) is not None
    }
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    made.chat_template = metadata.get("tokenizer.chat_template")
    return made
