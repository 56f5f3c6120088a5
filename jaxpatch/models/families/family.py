"""What a family is: three functions and a few names."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.rope import Linear, Llama3, Rope


class Family(NamedTuple):
    """A model family.

    read_config: config.json (as transformers' config class completes it, and as it stands on disk) -> our config;
        raises ValueError naming every field that changes the model and is not supported.
    rules: our config -> the conversion table.
    ignored_tensors: ends of tensor names that hold nothing learnt (old checkpoints save rotary tables).
    gguf_names: a GGUF file's tensor name -> the checkpoint's, ``{l}`` standing for the layer.
    gguf_config: a GGUF file's metadata -> config.json; None where the family's GGUF files are not read.
    """

    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    rules: Callable[[DecoderConfig], tuple[Rule, ...]]
    ignored_tensors: tuple[str, ...]
    gguf_names: Mapping[str, str] = {}
    gguf_config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


_KINDS = {int: "a positive integer", float: "a positive number", bool: "true or false"}


class Ledger:
    """Hands out config fields and remembers which were read, so that no field that matters stays unread."""

    def __init__(self, raw: Mapping[str, Any]):
        self._raw = dict(raw)
        self._read: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The field, or the default where the field is absent or null."""
        self._read.add(name)
        value = self._raw.get(name)
        return default if value is None else value

    def is_null(self, name: str) -> bool:
        """Whether the field is there, and null."""
        return name in self._raw and self._raw[name] is None

    def need(self, name: str, faults: list[str], default: Any = None, *, kind: type = int) -> Any:
        """A field that must be of its kind, and positive where it is a number. Where it is not: a fault, and 1."""
        value = self.take(name, default)
        is_kind = isinstance(value, int | kind) and isinstance(value, bool) == (kind is bool)
        if not is_kind or (kind is not bool and value <= 0):
            faults.append(f"{name}: wanted {_KINDS[kind]}, got {value!r}")
            return kind(1)
        return kind(value)

    def table(self, name: str, faults: list[str]) -> Mapping[str, Any]:
        """A field that holds fields of its own; empty where it is absent. Where it is something else: a fault."""
        value = self.take(name, {})
        if isinstance(value, Mapping):
            return value
        faults.append(f"{name}: wanted an object, got {value!r}")
        return {}

    def unread(self, harmless: Mapping[str, Any], ignored: frozenset[str]) -> list[str]:
        """A sentence for each field nobody read that is neither ignored nor at a value known to change nothing."""
        return [
            f"{name} = {value!r} is not supported"
            + (f" (only {harmless[name]!r} is)" if name in harmless else " (unknown field)")
            for name, value in self._raw.items()
            if name not in self._read and name not in ignored and value not in (None, harmless.get(name))
        ]


HARMLESS = {"hidden_act": "silu", "is_encoder_decoder": False}
"""Fields that change a model of any family, and the one value under which they do not."""

IGNORED = frozenset(
    """architectures model_type torch_dtype dtype transformers_version _name_or_path use_cache initializer_range
    attention_dropout bos_token_id eos_token_id pad_token_id unk_token_id transformers.js_config
    output_attentions output_hidden_states return_dict chunk_size_feed_forward id2label label2id problem_type
    _attn_implementation_autoset attn_implementation max_length max_sequence_length do_sample temperature top_k top_p
    num_beams repetition_penalty""".split()
)
"""Fields that change nothing about a forward pass in inference."""


def common_fields(
    ledger: Ledger,
    faults: list[str],
    *,
    context: int,
    kv_heads: int | None = None,
    head_width: int | None = None,
) -> dict[str, Any]:
    """The fields that nearly all families share. kv_heads, head_width: where the config does not say; as many as heads, and the width
    over the heads, where None. context: likewise."""
    width, heads = ledger.need("hidden_size", faults), ledger.need("num_attention_heads", faults)
    if head_width is None and ledger.take("head_dim") is None and width % heads:
        faults.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}, and there is no head_dim")
    context = ledger.need("max_position_embeddings", faults, context)
    kv_heads = heads if kv_heads is None or ledger.is_null("num_key_value_heads") else kv_heads
    return dict(
        vocab=ledger.need("vocab_size", faults),
        layers=ledger.need("num_hidden_layers", faults),
        width=width,
        heads=heads,
        kv_heads=ledger.need("num_key_value_heads", faults, kv_heads),
        head_width=ledger.need("head_dim", faults, width // heads if head_width is None else head_width),
        neurons=ledger.need("intermediate_size", faults),
        context=context,
        rope=read_rope(ledger, context, faults),
        norm_eps=ledger.need("rms_norm_eps", faults, 1e-6, kind=float),
        tied=ledger.need("tie_word_embeddings", faults, False, kind=bool),
    )


def config_of(
    fields: Mapping[str, Any],
    ledger: Ledger,
    faults: list[str],
    harmless: Mapping[str, Any] | None = None,
    ignored: frozenset[str] = frozenset(),
) -> DecoderConfig:
    """The config, once all that matters has been read. Raises ValueError with every fault."""
    faults = faults + ledger.unread(HARMLESS | dict(harmless or {}), IGNORED | ignored)
    if faults:
        raise ValueError("; ".join(faults))
    return DecoderConfig(**fields)


def local_fields(ledger: Ledger, faults: list[str], layers: int, window: int | None, default: Sequence[bool]) -> dict:
    """Which layers are local, by ``layer_types`` or, where there are none, as is the family's way."""
    types = ledger.take("layer_types")
    known = {"full_attention": False, "sliding_attention": True}
    if types is None:
        local = tuple(default)
    elif isinstance(types, list) and len(types) == layers and set(types) <= known.keys():
        local = tuple(known[each] for each in types)
    else:
        faults.append(f"layer_types: wanted {' or '.join(known)} for each of {layers} layers, got {types!r}")
        local = ()
    if any(local) and window is None:
        faults.append("layer_types names sliding layers, and there is no sliding_window")
    is_any = any(local) and window is not None
    return dict(window=window if is_any else None, local=local if is_any else ())


def read_rope(ledger: Ledger, context: int, faults: list[str]) -> Rope:
    """The rotary positions of a config, wherever its transformers has written them: ``rope_parameters``, or ``rope_scaling`` and
    ``rope_theta``."""
    new, old = (dict(ledger.table(name, faults)) for name in ("rope_parameters", "rope_scaling"))
    if "type" in old:
        old = {"rope_type": old.pop("type")} | old
    rope = Ledger(new | old)
    found: list[str] = []
    theta = rope.need("rope_theta", found, ledger.need("rope_theta", found, 10_000.0, kind=float), kind=float)
    sort, stretch = rope.take("rope_type", "default"), None
    if sort == "linear":
        stretch = Linear(factor=rope.need("factor", found, kind=float))
    elif sort == "llama3":
        stretch = Llama3(
            factor=rope.need("factor", found, kind=float),
            slow=rope.need("low_freq_factor", found, kind=float),
            fast=rope.need("high_freq_factor", found, kind=float),
            original=rope.need("original_max_position_embeddings", found, context),
        )
    elif sort != "default":
        found.append(f"type {sort!r} is not supported (default, linear and llama3 are)")
    if sort in ("default", "linear", "llama3"):
        found += rope.unread({"partial_rotary_factor": 1.0}, frozenset())
    made = Rope(theta=theta, stretch=stretch)
    faults += [f"rope {fault}" for fault in found]
    return made
