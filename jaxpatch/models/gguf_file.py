"""Shell: GGUF files, read through the `gguf` package: weights dequantised, config and tokenizer out of the metadata."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxpatch.models import convert, sources
from jaxpatch.models.config import ConfigError, DecoderConfig
from jaxpatch.models.families import FAMILIES
from jaxpatch.models.families.family import Gguf, Ledger
from jaxpatch.trees import paths

_DIGITS_AND_BYTES = ("smollm",)
"""Pre-tokenizers that split numbers into digits before the byte-level pattern."""
_BYTES = ("default", "gpt-2")
_QWENS = ("qwen2",)
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Where Qwen2 cuts a text."""
_ENDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))
"""Metadata that names tokens which end an answer: a text, a turn, a message."""
_NAMES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
"""transformers' names of special tokens -> llama.cpp's."""
_CONTROL, _USER_DEFINED = 3, 4
"""Kinds of tokens that are cut out of a text before anything else."""
_FACTORS = "rope_freqs.weight"
"""The tensor in which llama.cpp keeps how much slower each pair of a head's numbers turns (Llama 3.1 and later)."""


def read(path: Path) -> sources.Source:
    """Open a GGUF file. Raises CheckpointError naming every fault."""
    try:
        import gguf
    except ImportError:
        raise sources.CheckpointError(path, ["reading .gguf needs an extra: pip install 'jaxpatch[gguf]'"]) from None
    fields, found = _opened(path)
    metadata = _contents(path, fields)
    wrong: list[str] = []
    architecture = _text(metadata, "general.architecture", wrong)
    tokens = _texts(metadata, "tokenizer.ggml.tokens", wrong)
    ends = sorted({each for name in _ENDS if (each := _id(metadata, name, len(tokens), wrong)) is not None})
    if wrong:
        raise sources.CheckpointError(path, wrong)
    model_type, style = _style(path, architecture)
    inside = {tensor.name: tensor for tensor in found}
    factors = _dequantised(path, inside.pop(_FACTORS)) if _FACTORS in inside else None
    try:
        raw = _config(metadata, style) | {
            "model_type": model_type,
            "tie_word_embeddings": "output.weight" not in inside,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        }
        if factors is not None:
            if (sort := raw["rope_parameters"]["rope_type"]) != "default":
                raise ConfigError([f"rope.scaling.type {sort!r} beside {_FACTORS}: wanted one of the two"])
            raw["rope_parameters"] = _with_factors(raw, factors)
        config = FAMILIES[model_type].read_config(raw)
    except ConfigError as error:
        raise sources.CheckpointError(path, error.faults) from None
    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == style.architecture)
    names = gguf.get_tensor_name_map(number, config.layers)
    places = convert.places(FAMILIES[model_type].rules(config), config)
    theirs = {}
    for name in places:
        stem, _, kind = name.rpartition(".")
        theirs[f"{names.get_name(stem)}.{kind}"] = name
    tensors = {theirs.get(name, name): tensor for name, tensor in inside.items()}

    def of(name: str) -> np.ndarray:
        return _undone(_dequantised(path, tensors[name]), places[name].rules[0].ours, config, style)

    return sources.Source(
        raw_config=raw,
        shapes={name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in tensors.items()},
        read=of,
        files=(path,),
        tokenizer=_tokenizer_fn(path, metadata),
        beside=sources.beside(path.parent),
    )


def _opened(path: Path) -> tuple[Mapping[str, Any], list[Any]]:
    """The fields of metadata and the tensors in a file. Raises CheckpointError."""
    from gguf import GGUFReader

    class Whole(GGUFReader):
        """Refuses to read beyond the end: of a list that says that it is endless, gguf reads nothing for ever."""

        def _get(self, offset, dtype, count=1, override_order=None):
            end = int(offset) + int(count) * np.dtype(dtype).itemsize
            if end > len(self.data):
                raise ValueError(f"it ends at byte {len(self.data):,}, before {end:,}")
            return super()._get(offset, dtype, count, override_order)

    try:
        reader = Whole(path)
    except Exception as error:  # gguf raises what numpy, its tables and its enumerations raise
        said = f"{type(error).__name__}: {error}"
        raise sources.CheckpointError(path, [f"not a readable GGUF file ({said}); download it again"]) from None
    return reader.fields, reader.tensors


def _contents(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as plain values. Raises CheckpointError naming all that cannot be read."""
    found, faults = {}, []
    for name, field in fields.items():
        try:
            found[name] = field.contents()
        except Exception as error:
            faults.append(f"metadata {name} cannot be read ({type(error).__name__}: {error}); download it again")
    if faults:
        raise sources.CheckpointError(path, faults)
    return found


def _text(metadata: Mapping[str, Any], name: str, faults: list[str], default: str | None = None) -> str:
    value = metadata.get(name, default)
    if isinstance(value, str):
        return value
    faults.append(f"{_what(metadata, name)}; wanted a text")
    return ""


def _texts(metadata: Mapping[str, Any], name: str, faults: list[str]) -> list[str]:
    value = metadata.get(name)
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return value
    faults.append(f"{_what(metadata, name)}; wanted a list of texts")
    return []


def _id(metadata: Mapping[str, Any], name: str, tokens: int, faults: list[str]) -> int | None:
    """A token's number, where the metadata names one."""
    value = metadata.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < tokens):
        return value
    faults.append(f"{_what(metadata, name)}; wanted the number of one of the {tokens:,} tokens")
    return None


def _what(metadata: Mapping[str, Any], name: str) -> str:
    """What stands there, cut short: it may be anything."""
    return f"metadata {name} is {repr(metadata[name])[:60]}" if name in metadata else f"no metadata {name}"


def _style(path: Path, architecture: str) -> tuple[str, Gguf]:
    """Our name of the family, and how its files are written."""
    styles = {family.gguf.architecture: (name, family.gguf) for name, family in FAMILIES.items() if family.gguf}
    if architecture in styles:
        return styles[architecture]
    advice = paths.did_you_mean(str(architecture), styles)
    raise sources.CheckpointError(path, [f"architecture {architecture!r} is not supported. {advice}"])


def _config(metadata: Mapping[str, Any], style: Gguf) -> dict[str, Any]:
    """The file's metadata -> config.json. Raises ConfigError with every fault."""
    stem = f"{style.architecture}."
    ledger = Ledger({name.removeprefix(stem): v for name, v in metadata.items() if name.startswith(stem)})
    faults: list[str] = []
    width, heads = ledger.need("embedding_length", faults), ledger.need("attention.head_count", faults)
    head_width = ledger.need("attention.key_length", faults, width // heads)
    context = ledger.need("context_length", faults, 2048)
    raw = dict(
        architectures=[style.class_name],
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        num_hidden_layers=ledger.need("block_count", faults),
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=ledger.need("attention.head_count_kv", faults, heads),
        head_dim=head_width,
        intermediate_size=ledger.need("feed_forward_length", faults),
        max_position_embeddings=context,
        rms_norm_eps=ledger.need("attention.layer_norm_rms_epsilon", faults, kind=float),
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )
    raw |= style.more(ledger, _rope(ledger), head_width)
    harmless = {"rope.dimension_count": head_width, "attention.value_length": head_width}
    faults += ledger.unread(harmless, frozenset({"vocab_size"}))
    if faults:
        raise ConfigError(faults)
    return raw


def _rope(ledger: Ledger) -> dict[str, Any]:
    """Rotary positions, as config.json has them."""
    settings = {"rope_theta": ledger.take("rope.freq_base", 10_000.0), "rope_type": "default"}
    sort = str(ledger.take("rope.scaling.type", "none"))
    if sort != "none":
        settings |= {"rope_type": sort, "factor": ledger.take("rope.scaling.factor")}
    if sort == "yarn":
        settings["original_max_position_embeddings"] = ledger.take("rope.scaling.original_context_length")
    return settings


def _with_factors(raw: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """Each pair of numbers slowed by a factor of its own, however long the sequence."""
    both = {key: [float(factor) for factor in factors.ravel()] for key in ("short_factor", "long_factor")}
    fixed = {"original_max_position_embeddings": raw["max_position_embeddings"], "attention_factor": 1.0}
    return {"rope_theta": raw["rope_parameters"]["rope_theta"], "rope_type": "longrope"} | both | fixed


def _dequantised(path: Path, tensor: Any) -> np.ndarray:
    """float32 weights."""
    from gguf import dequantize

    try:
        weights = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise sources.CheckpointError(path, [f"{tensor.name} is stored as {kind}, which gguf does not read"]) from None
    except ValueError as error:
        raise sources.CheckpointError(path, [f"{tensor.name} is corrupt ({error}); download the file again"]) from None
    return weights.reshape([int(n) for n in reversed(tensor.shape)])


def _undone(weights: np.ndarray, ours: str, config: DecoderConfig, style: Gguf) -> np.ndarray:
    """A tensor as the checkpoint had it before it was converted. ours: the leaf that it fills."""
    if ours.endswith("/scale"):
        return weights - np.float32(style.norm_offset)
    heads = {"q": config.heads, "k": config.kv_heads}.get(ours.split("/")[-2])
    if heads is None or not style.is_interleaved:
        return weights
    rows, *rest = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(weights.shape)


def _tokenizer_fn(path: Path, metadata: Mapping[str, Any]) -> Callable[[], Any]:
    """How to make the tokenizer: a tokenizer.json beside the file, else what is inside."""

    def make():
        if (path.parent / "tokenizer.json").exists():
            return sources.tokenizer_of(path.parent)
        kind = str(metadata.get("tokenizer.ggml.model"))
        if kind not in _TOKENIZERS:
            known = ", ".join(map(repr, _TOKENIZERS))
            raise sources.CheckpointError(
                path, [f"tokenizer model {kind!r} is not supported inside a GGUF file ({known} are); {_BESIDE_IT}"]
            )
        try:
            return _TOKENIZERS[kind](path, metadata)
        except sources.CheckpointError:
            raise
        except Exception as error:  # tokenizers and transformers raise what their parsers raise
            said = f"the tokenizer inside cannot be read ({type(error).__name__}: {error})"
            raise sources.CheckpointError(path, [f"{said}; {_BESIDE_IT}"]) from error

    return make


_BESIDE_IT = "put the model's tokenizer.json beside it"


def _sentencepiece(path: Path, metadata: Mapping[str, Any]) -> Any:
    """As transformers itself reads it."""
    del metadata
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _byte_level_bpe(path: Path, metadata: Mapping[str, Any]) -> Any:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = (*_DIGITS_AND_BYTES, *_BYTES, *_QWENS)
    faults: list[str] = []
    tokens, kinds, pairs = _parts(metadata, faults)
    pre = _text(metadata, "tokenizer.ggml.pre", faults, "default")
    named = {
        f"{ours}_token": number
        for ours, theirs in _NAMES.items()
        if (number := _id(metadata, f"tokenizer.ggml.{theirs}_token_id", len(tokens), faults)) is not None
    }
    faults += [
        f"tokenizer.ggml.{name} is not supported inside a GGUF file; {_BESIDE_IT}"
        for name in ("add_bos_token", "add_eos_token", "add_space_prefix")
        if metadata.get(f"tokenizer.ggml.{name}")
    ]
    if pre not in known:
        faults.append(
            f"pre-tokenizer {pre!r} is not supported inside a GGUF file ({', '.join(known)} are); put the model's tokenizer.json "
            "beside it"
        )
    if faults:
        raise sources.CheckpointError(path, faults)
    bpe = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs)
    tokenizer = tokenizers.Tokenizer(bpe)
    split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre in _DIGITS_AND_BYTES:
        split = [pre_tokenizers.Digits(individual_digits=True), *split]
    if pre in _QWENS:
        cut = pre_tokenizers.Split(tokenizers.Regex(_QWEN), behavior="isolated")
        split = [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    tokenizer.add_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED])
    special = {name: tokens[number] for name, number in named.items()}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    made.chat_template = metadata.get("tokenizer.chat_template")
    return made


def _parts(metadata: Mapping[str, Any], faults: list[str]) -> tuple[list[str], list[int], list[tuple[str, str]]]:
    """Tokens, what kind each is, and the merges."""
    tokens = _texts(metadata, "tokenizer.ggml.tokens", faults)
    kinds, merges = metadata.get("tokenizer.ggml.token_type"), _texts(metadata, "tokenizer.ggml.merges", faults)
    if not isinstance(kinds, list) or len(kinds) != len(tokens):
        faults.append(
            f"{_what(metadata, 'tokenizer.ggml.token_type')}; wanted a number for each of the {len(tokens):,} tokens; {_BESIDE_IT}"
        )
    known, cut = set(tokens), [merge.partition(" ") for merge in merges]
    pairs = [(left, right) for left, _, right in cut]
    wrong = [" ".join(pair) for pair in pairs if not {*pair, "".join(pair)} <= known]
    if wrong:
        faults.append(
            f"metadata tokenizer.ggml.merges: {len(wrong):,} of {len(pairs):,} do not make one token of two "
            f"({wrong[0][:60]!r}); download the file again"
        )
    return tokens, kinds or [], pairs


_TOKENIZERS: Mapping[str, Callable[[Path, Mapping[str, Any]], Any]] = {"gpt2": _byte_level_bpe, "llama": _sentencepiece}
"""llama.cpp's names of kinds of tokenizer."""
