"""Gemma 3, its text models: Gemma 2 with norms on queries and keys in place of caps; one layer in six is global. arXiv 2503.19786.

All but the smallest see too, and are kept so: the text model is read out of them.
"""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import gemma, gemma2, llama
from jaxpatch.models.families.family import Family, Gguf, Ledger, Wrapping, config_of, local_fields, rope_of, shown
from jaxpatch.models.rope import Rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = gemma.fields_of(ledger, faults, kv_heads=4, activation="hidden_activation", context=131_072)
    fields |= dict(family="gemma3_text", qk_norm="head") | gemma2.around(ledger, faults)
    if fields.pop("attention_cap"):
        faults.append("attn_logit_softcapping is not supported (transformers reads it, and does not use it)")
    ledger.take("_sliding_window_pattern")  # transformers writes it, and does not read it again
    every = ledger.need("sliding_window_pattern", faults, 6)
    default = [(number + 1) % every != 0 for number in range(fields["layers"])]
    fields |= local_fields(ledger, faults, fields["layers"], gemma2.window(ledger, faults), default)
    rope, local_rope = _ropes(ledger, fields["context"], faults)
    fields |= dict(rope=rope, local_rope=local_rope if fields["window"] else None)
    return config_of(fields, ledger, faults, ignored=gemma2.IGNORED)


def _ropes(ledger: Ledger, context: int, faults: list[str]) -> tuple[Rope, Rope]:
    """Of global and of local layers. Old configs have a field each for the two bases, and scale global layers alone."""
    bases = {
        "full_attention": ledger.take("rope_theta", 1_000_000.0),
        "sliding_attention": ledger.take("rope_local_base_freq", 10_000.0),
    }
    new, old = ledger.table("rope_parameters", faults), ledger.table("rope_scaling", faults)
    faults += [
        f"rope_parameters: {name} is not supported (only {' and '.join(bases)} are)"
        for name in new
        if name not in bases
    ]
    if old.get("type", "default") != "default" and "rope_type" not in old:
        faults.append(
            f"rope_scaling: says type = {shown(old['type'])}, which transformers passes over here; write rope_type if it is meant"
        )
    stretched = {"full_attention": old, "sliding_attention": {}}
    full, sliding = (
        rope_of({"rope_theta": base} | dict(Ledger(new).table(name, faults)) | stretched[name], context, faults)
        for name, base in bases.items()
    )
    return full, sliding


_DEEPEST = 62
"""Blocks of the one model whose queries are scaled by the width of the stream over its heads (27B); no file says so."""


def _gguf(ledger: Ledger, rope: dict[str, Any], head_width: int) -> dict[str, Any]:
    """What a GGUF file says beside what all say."""
    is_deepest = ledger.take("block_count") == _DEEPEST
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": ledger.take("attention.sliding_window"),
        "query_pre_attn_scalar": ledger.need("embedding_length", []) // ledger.need("attention.head_count", [])
        if is_deepest
        else head_width,
        "final_logit_softcapping": ledger.take("final_logit_softcapping"),
        "rope_parameters": {
            "full_attention": rope,
            "sliding_attention": {"rope_type": "default", "rope_theta": ledger.take("rope.freq_base_swa", 10_000.0)},
        },
    }


_SEEING = Wrapping(
    "Gemma3ForCausalLM",
    starts={
        "model.": ("model.language_model.", "language_model.model."),
        "lm_head.": ("lm_head.", "language_model.lm_head."),
    },
    others=("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."),
    tied=True,
    sizes=dict(
        vocab_size=262_208,
        hidden_size=2304,
        intermediate_size=9216,
        num_hidden_layers=26,
        num_attention_heads=8,
    ),
    unused=("final_logit_softcapping",),
    ignored=frozenset(
        """vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
        boi_token_id eoi_token_id image_token_id""".split()
    ),
)
"""google/gemma-3-4b-it, 12b and 27b. Files have the older names, also those that transformers 5 writes; PEFT's have either."""

FAMILY = Family(
    read_config,
    llama.rules,
    gguf=Gguf("gemma3", "Gemma3ForCausalLM", norm_offset=1.0, more=_gguf),
    wrappings={"gemma3": _SEEING},
)
