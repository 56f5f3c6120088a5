"""What a family is: three functions and a few names."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxpatch.models.config import ConfigError, DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.rope import Linear, Llama3, LongRope, Rope, Yarn


class Wrapping(NamedTuple):
    """A family's models inside of a whole that reads more than text, as transformers writes it.

    class_name: of the text model by itself, in transformers. tied: whether it is, where the whole does not say.
    sizes: what fields without which no text model is read are there, where its config leaves them out.
    unused: fields of the text model's config that the whole does not obey.
    ignored: fields of the whole's own that change nothing about text.
    starts: of a tensor's name -> what may stand there in the whole; first what the module itself is called.
    others: starts of the names of tensors that are none of the text model's.
    """

    class_name: str
    starts: Mapping[str, tuple[str, ...]]
    others: tuple[str, ...]
    tied: bool = False
    sizes: Mapping[str, int] = {}
    unused: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()


class Family(NamedTuple):
    """A model family.

    read_config: config.json (as transformers' config class completes it, and as it stands on disk) -> our config;
        raises ConfigError naming every field that changes the model and is not supported.
    rules: our config -> the conversion table.
    inputs_first: whether matrices of blocks are stored with their inputs first.
    prefix: that some checkpoints leave away before the names of all tensors but the unembedding. unembed: the unembedding's name.
    ignored_tensors: ends of tensor names that hold nothing learnt (old checkpoints save rotary tables).
    others: starts of tensor names that are none of the text model's; `wrapping.inside` says so of a family inside of a whole.
    modules: a module's name in transformers -> in checkpoints, where the two differ: adapters go by the first.
    gguf: how llama.cpp writes the family; None where its GGUF files are not read.
    wrappings: model_type of a whole that holds one of the family beside parts that see or hear -> how.
    """

    read_config: Callable[[Mapping[str, Any]], DecoderConfig]
    rules: Callable[[DecoderConfig], tuple[Rule, ...]]
    ignored_tensors: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    inputs_first: bool = False
    prefix: str = "model."
    unembed: str = "lm_head.weight"
    modules: Mapping[str, str] = {}
    gguf: "Gguf | None" = None
    wrappings: Mapping[str, Wrapping] = {}

    def has_inputs_first(self, weight: str) -> bool:
        """Whether a matrix, by its name in checkpoints, is stored with its inputs first: an unembedding never is."""
        return self.inputs_first and weight != self.unembed


def _as_all_have_it(ledger: "Ledger", rope: dict[str, Any], head_width: int) -> dict[str, Any]:
    del ledger, head_width
    return {"rope_parameters": rope, "hidden_act": "silu"}


class Gguf(NamedTuple):
    """A family as llama.cpp's converter writes it.

    architecture: what it is called there. class_name: in transformers. is_interleaved: the two rotary halves of W_Q and W_K take turns.
    norm_offset: what has been added to norms. more: (metadata, settings of the rotary positions, width of a head) -> the fields of
        config.json that not all families share.
    """

    architecture: str
    class_name: str
    is_interleaved: bool = False
    norm_offset: float = 0.0
    more: Callable[["Ledger", dict[str, Any], int], dict[str, Any]] = _as_all_have_it


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

    def need(self, name: str, faults: list[str], default: Any = None, *, kind: type = int, least: int = 1) -> Any:
        """A field that must be of its kind: a whole number of at least `least`, or a number above 0 that float32 holds. Where it is
        not: a fault, and 1."""
        value = self.take(name, default)
        if not _fits(value, kind, least):
            faults.append(f"{name}: wanted {_wanted(kind, least)}, got {shown(value)}")
            return kind(1)
        most = MOST.get(name, LARGEST)
        if kind is int and value > most:
            faults.append(
                f"{name}: wanted at most {most:,}, got {_cut(f'{value:,}')}; no model is so large, and nothing of it was read"
            )
            return 1
        return kind(value)

    def may_have(self, name: str, faults: list[str]) -> float | None:
        """A number above 0, or None where the field is absent or null."""
        return None if self.take(name) is None else self.need(name, faults, kind=float)

    def table(self, name: str, faults: list[str]) -> Mapping[str, Any]:
        """A field that holds fields of its own; empty where it is absent. Where it is something else: a fault."""
        value = self.take(name, {})
        if isinstance(value, Mapping):
            return value
        faults.append(f"{name}: wanted an object, got {shown(value)}")
        return {}

    def unread(self, harmless: Mapping[str, Any], ignored: frozenset[str]) -> list[str]:
        """A sentence for each field nobody read that is neither ignored nor at a value known to change nothing."""
        return [
            f"{name} = {shown(value)} is not supported"
            + (f" (only {harmless[name]!r} is)" if name in harmless else " (unknown field)")
            for name, value in self._raw.items()
            if name not in self._read and name not in ignored and value not in (None, harmless.get(name))
        ]


def is_number(value: int | float) -> bool:
    """Whether it is above 0 and float32 holds it: no NaN, no infinity, and no whole number of any length.

    >>> is_number(1e-6), is_number(float("nan")), is_number(10**400)
    (True, False, False)
    """
    return SMALLEST_NUMBER <= value <= LARGEST_NUMBER


def shown(value: Any) -> str:
    """A value of a config in an error, which it must not fill."""
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}... ({len(text):,} characters)"


def _fits(value: Any, kind: type, least: int) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and value >= least
    return isinstance(value, int | float) and is_number(value)


def _wanted(kind: type, least: int) -> str:
    if kind is int:
        return "a positive integer" if least else "an integer of at least 0"
    return "true or false" if kind is bool else "a positive number that float32 holds"


LARGEST = 10**9
MOST: dict[str, int] = dict.fromkeys(("num_hidden_layers", "n_layer", "num_experts", "num_local_experts"), 10_000)
"""What whole numbers of a config may be at most: beyond that it is broken, or meant to use up all memory."""
SMALLEST_NUMBER, LARGEST_NUMBER = (float(getattr(np.finfo(np.float32), end)) for end in ("tiny", "max"))
LONGEST_SHOWN = 200

HARMLESS: dict[str, Any] = {
    # of encoders, and of decoders that read one
    **{"is_encoder_decoder": False, "add_cross_attention": False, "tie_encoder_decoder": False},
    # tokens see none that come after them
    "use_bidirectional_attention": False,
    # a bias where the family's code has none; where it has one, the family reads the field
    **{"attention_bias": False, "mlp_bias": False, "lm_head_bias": False},
    # positions of images: a switch of the code from which that of Qwen2-VL came
    "use_mrope": False,
    # Phi's own code: every how many layers one sees everything, and by what positions are divided
    **{"full_attn_mod": 1, "interpolate_factor": 1},
    # sums of products cut in so many parts, which rounds otherwise
    "pretraining_tp": 1,
    # heads taken out after training
    "pruned_heads": {},
}
"""Fields that change a model whose code knows them, and the one value of each under which it is as if they were not there. At any
other value a field is refused by name, as is one that no table has: what is not known is not passed over."""

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
"""transformers' names of activations -> ours."""

IGNORED_FOR: Mapping[str, str] = {
    "says where the model comes from": """_name_or_path architectures finetuning_task model_type transformers_version
        transformers.js_config unsloth_fixed unsloth_version""",
    "names Python files beside the weights; nothing runs them, and what the weights mean is read by our own code": """auto_map
        custom_pipelines""",
    "says how numbers are held, and how they are computed": """attn_implementation _attn_implementation_autoset
        _flash_attn_2_enabled chunk_size_feed_forward dtype gradient_checkpointing torch_dtype torchscript use_bfloat16 use_cache""",
    "says what a call gives back": """output_attentions output_hidden_states output_past output_router_logits output_scores
        return_dict return_dict_in_generate""",
    "acts in training alone": """activation_dropout attention_dropout attention_probs_dropout_prob attn_pdrop classifier_dropout
        dropout embd_pdrop hidden_dropout hidden_dropout_prob init_std initializer_range layerdrop resid_pdrop router_aux_loss_coef
        router_jitter_noise tf_legacy_loss""",
    "is of text before or after the model": """bos_token_id decoder_start_token_id eos_token_id pad_token_id prefix sep_token_id
        tokenizer_class unk_token_id""",
    "is of another task": "_num_labels id2label is_decoder label2id num_labels problem_type task_specific_params",
    "chooses tokens once there are logits; a run here takes the most likely": """bad_words_ids begin_suppress_tokens
        diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty forced_bos_token_id
        forced_eos_token_id length_penalty max_length max_sequence_length min_length no_repeat_ngram_size num_beam_groups num_beams
        num_return_sequences remove_invalid_values repetition_penalty suppress_tokens temperature top_k top_p typical_p""",
}
"""Why a field changes nothing about a forward pass in inference, whatever it says -> the fields."""
IGNORED = frozenset(name for names in IGNORED_FOR.values() for name in names.split())


def common_fields(
    ledger: Ledger,
    faults: list[str],
    *,
    context: int,
    kv_heads: int | None = None,
    head_width: int | None = None,
    tied: bool = False,
    norm_eps: tuple[str, float] = ("rms_norm_eps", 1e-6),
    neurons: str = "intermediate_size",
    activation: tuple[str, str] = ("hidden_act", "silu"),
) -> dict[str, Any]:
    """The fields that nearly all families share.

    Args: what they are where the config does not say. kv_heads: as many as heads where None; head_width: the width over the heads.
        norm_eps, activation: with the name of the field. neurons: the name of that field.
    """
    width, heads = ledger.need("hidden_size", faults), ledger.need("num_attention_heads", faults)
    if head_width is None and ledger.take("head_dim") is None and width % heads:
        faults.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}, and there is no head_dim")
    kv_heads = heads if kv_heads is None or ledger.is_null("num_key_value_heads") else kv_heads
    return dict(
        vocab=ledger.need("vocab_size", faults),
        layers=ledger.need("num_hidden_layers", faults),
        width=width,
        heads=heads,
        kv_heads=ledger.need("num_key_value_heads", faults, kv_heads),
        head_width=ledger.need("head_dim", faults, width // heads if head_width is None else head_width),
        neurons=ledger.need(neurons, faults),
        context=ledger.need("max_position_embeddings", faults, context),
        norm_eps=ledger.need(norm_eps[0], faults, norm_eps[1], kind=float),
        tied=ledger.need("tie_word_embeddings", faults, tied, kind=bool),
        activation=read_activation(ledger, faults, *activation),
    )


def read_activation(ledger: Ledger, faults: list[str], name: str, default: str) -> str:
    """Our name of the activation that a field names."""
    value = ledger.take(name, default)
    if isinstance(value, str) and value in ACTIVATIONS:
        return ACTIVATIONS[value]
    faults.append(f"{name} = {shown(value)} is not supported ({', '.join(ACTIVATIONS)} are)")
    return "silu"


def config_of(
    fields: Mapping[str, Any],
    ledger: Ledger,
    faults: list[str],
    harmless: Mapping[str, Any] | None = None,
    ignored: frozenset[str] = frozenset(),
) -> DecoderConfig:
    """The config, once all that matters has been read. Raises ConfigError with every fault."""
    faults = faults + ledger.unread(HARMLESS | dict(harmless or {}), IGNORED | ignored)
    if faults:
        raise ConfigError(faults)
    return DecoderConfig(**fields)


def expert_fields(
    ledger: Ledger, faults: list[str], *, experts: int, chosen: int, sum_to_one: bool | None = None
) -> dict[str, Any]:
    """The fields that families with experts share.

    Args: what they are where the config does not say. sum_to_one: None where the family always does, and has no such field.
    """
    names = [name for name in ("num_experts", "num_local_experts") if ledger.take(name) is not None]
    fields = dict(
        experts=ledger.need(names[0] if names else "num_experts", faults, experts),
        chosen=ledger.need("num_experts_per_tok", faults, chosen),
        shares_sum_to_one=sum_to_one is None or ledger.need("norm_topk_prob", faults, sum_to_one, kind=bool),
    )
    if fields["chosen"] > fields["experts"]:
        faults.append(
            f"num_experts_per_tok = {fields['chosen']} are more than the {fields['experts']} experts there are"
        )
    return fields


def layer_norms(names: Mapping[str, str]) -> list[Rule]:
    """The rules of norms with a bias. names: theirs -> ours."""
    return [
        Rule(f"{theirs}.{leaf}", f"{ours}/{name}", "D -> D")
        for theirs, ours in names.items()
        for leaf, name in (("weight", "scale"), ("bias", "bias"))
    ]


def local_fields(ledger: Ledger, faults: list[str], layers: int, window: int | None, default: Sequence[bool]) -> dict:
    """Which layers are local, by ``layer_types`` or, where there are none, as is the family's way."""
    types = ledger.take("layer_types")
    known = {"full_attention": False, "sliding_attention": True}
    if types is None:
        local = tuple(default)
    elif isinstance(types, list) and len(types) == layers and all(each in list(known) for each in types):
        local = tuple(known[each] for each in types)
    else:
        faults.append(f"layer_types: wanted {' or '.join(known)} for each of {layers} layers, got {shown(types)}")
        local = ()
    if any(local) and window is None:
        faults.append("layer_types names sliding layers, and there is no sliding_window")
    is_any = any(local) and window is not None
    return dict(window=window if is_any else None, local=local if is_any else ())


def read_rope(
    ledger: Ledger,
    context: int,
    faults: list[str],
    *,
    theta: tuple[str, float] = ("rope_theta", 10_000.0),
    share: tuple[str, float] | None = None,
    original: int | None = None,
    also: Mapping[str, str] | None = None,
) -> Rope:
    """The rotary positions of a config, wherever its transformers has written them: ``rope_parameters``, or ``rope_scaling`` and fields
    of its own for base and share. Where both tables are there, the older one takes the place of the other, as in transformers; and an
    ``original_max_position_embeddings`` beside the tables that of one in them.

    Args: context: longest sequence. theta, share: name of that field, and what it is where absent; without a share whole heads turn.
        original: context before it was stretched, where the family has one of its own for configs that do not say. also: other names of
        types.
    """
    new, old = (_with_type(ledger.table(name, faults)) for name in ("rope_parameters", "rope_scaling"))
    named = {"rope_theta": ledger.take(*theta)} | ({"partial_rotary_factor": ledger.take(*share)} if share else {})
    settings = named | (old or new)
    sort = settings.get("rope_type")
    if isinstance(sort, str) and (also or {}).get(sort, sort) in FROM_A_SHORTER:
        beside = ledger.take("original_max_position_embeddings")
        beside = original if beside is None else beside
        settings |= {} if beside is None else {"original_max_position_embeddings": beside}
    made = rope_of(settings, context, faults, also=also)
    if share is None and made.share != 1:
        faults.append(f"rope partial_rotary_factor = {made.share} is not supported (only 1.0 is)")
    return made


def rope_of(raw: Mapping[str, Any], context: int, faults: list[str], *, also: Mapping[str, str] | None = None) -> Rope:
    """The rotary positions that one table of settings describes."""
    rope, found = Ledger(_with_type(raw)), []
    sort = rope.take("rope_type", "default")
    sort = (also or {}).get(sort, sort) if isinstance(sort, str) else shown(sort)
    made = Rope(
        theta=rope.need("rope_theta", found, 10_000.0, kind=float),
        share=rope.need("partial_rotary_factor", found, 1.0, kind=float),
        stretch=STRETCHES[sort](rope, context, found) if sort in STRETCHES else None,
    )
    if sort not in STRETCHES:
        found.append(f"type {sort!r} is not supported ({', '.join(STRETCHES)} are)")
    else:
        found += rope.unread({}, frozenset({"original_max_position_embeddings"}))
    faults += [f"rope {fault}" for fault in found]
    return made


def _with_type(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Old configs say type where new ones say rope_type."""
    named = {"rope_type": settings["type"]} if "type" in settings else {}
    return named | {name: value for name, value in settings.items() if name != "type"}


def _no_stretch(rope: Ledger, context: int, found: list[str]) -> None:
    del rope, context, found


def _linear(rope: Ledger, context: int, found: list[str]) -> Linear:
    return Linear(factor=rope.need("factor", found, kind=float))


def _llama3(rope: Ledger, context: int, found: list[str]) -> Llama3:
    return Llama3(
        factor=rope.need("factor", found, kind=float),
        slow=rope.need("low_freq_factor", found, kind=float),
        fast=rope.need("high_freq_factor", found, kind=float),
        original=rope.need("original_max_position_embeddings", found, context),
    )


def _yarn(rope: Ledger, context: int, found: list[str]) -> Yarn:
    original = rope.need("original_max_position_embeddings", found, context)
    factor = rope.need("factor", found, context / original, kind=float)
    top, bottom = (rope.may_have(name, found) for name in ("mscale", "mscale_all_dim"))

    def grown(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    scale = grown(top) / grown(bottom) if top and bottom else grown(1.0)
    return Yarn(
        factor=factor,
        slow=rope.need("beta_slow", found, 1.0, kind=float),
        fast=rope.need("beta_fast", found, 32.0, kind=float),
        original=original,
        scale=rope.need("attention_factor", found, scale, kind=float),
        whole=rope.need("truncate", found, True, kind=bool),
    )


def _longrope(rope: Ledger, context: int, found: list[str]) -> LongRope:
    original = rope.need("original_max_position_embeddings", found, context)
    factor = rope.need("factor", found, context / original, kind=float)
    scale = 1.0 if factor <= 1 or original < 2 else math.sqrt(1 + math.log(factor) / math.log(original))
    return LongRope(
        short=_factors(rope, "short_factor", found),
        long=_factors(rope, "long_factor", found),
        original=original,
        scale=rope.need("attention_factor", found, scale, kind=float),
    )


def _factors(rope: Ledger, name: str, found: list[str]) -> tuple[float, ...]:
    value = rope.take(name)
    if isinstance(value, list) and all(type(each) in (int, float) and is_number(each) for each in value):
        return tuple(map(float, value))
    found.append(f"{name}: wanted a list of positive numbers that float32 holds, got {shown(value)}")
    return ()


STRETCHES: Mapping[str, Callable[[Ledger, int, list[str]], Any]] = {
    "default": _no_stretch,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
"""Types of rotary positions: (its settings, longest sequence, faults) -> how they are stretched."""
FROM_A_SHORTER = ("llama3", "yarn", "longrope")
"""Those that stretch from the context of an earlier training."""
