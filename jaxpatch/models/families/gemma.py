"""Gemma: Llama's architecture with embeddings scaled up, norms around one, and a GELU gate. arXiv 2403.08295."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    gelu = dict(raw) | (
        {"hidden_act": "gelu_pytorch_tanh"} if raw.get("hidden_act") == "gelu" else {}
    )  # as transformers reads it
    ledger, faults = Ledger(gelu), []
    fields = fields_of(ledger, faults, kv_heads=16, activation="hidden_act")
    ledger.take("hidden_activation")  # of old files; transformers reads hidden_act alone
    fields |= dict(family="gemma", rope=read_rope(ledger, fields["context"], faults))
    return config_of(fields, ledger, faults)


def fields_of(
    ledger: Ledger, faults: list[str], *, kv_heads: int, activation: str, context: int = 8192
) -> dict[str, Any]:
    """What all Gemmas share. kv_heads, context: where the config does not say. activation: the name of its field."""
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(
        ledger,
        faults,
        context=context,
        kv_heads=kv_heads,
        head_width=256,
        tied=True,
        activation=(activation, "gelu_pytorch_tanh"),
    )
    return fields | dict(
        norm_offset=1.0,
        embed_scale=fields["width"] ** 0.5,
        attention_bias=has_bias,
        output_bias=has_bias,
    )


FAMILY = Family(read_config, llama.rules)
