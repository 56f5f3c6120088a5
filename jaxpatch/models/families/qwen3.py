"""Qwen3: Qwen2 without its biases, queries and keys normalised head by head. arXiv 2505.09388."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama, qwen2
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=32_768, kv_heads=32, head_width=128)
    fields |= dict(family="qwen3", rope=read_rope(ledger, fields["context"], faults))
    fields |= dict(attention_bias=has_bias, output_bias=has_bias, qk_norm="head")
    return config_of(fields | qwen2.windows(ledger, faults, fields["layers"]), ledger, faults)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",))
