"""Qwen3 with experts: each MLP is a router and its experts. arXiv 2505.09388."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, expert_fields, read_rope

_HARMLESS = {"mlp_only_layers": [], "decoder_sparse_step": 1}
"""Fields that would put plain MLPs between the experts, and the one value under which they do not."""
_IGNORED = frozenset({"intermediate_size", "max_window_layers"})
"""Of plain MLPs, and of Qwen3."""


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=32_768, kv_heads=4, neurons="moe_intermediate_size")
    fields |= dict(family="qwen3_moe", rope=read_rope(ledger, fields["context"], faults))
    fields |= dict(attention_bias=has_bias, output_bias=has_bias, qk_norm="head")
    fields |= expert_fields(ledger, faults, experts=128, chosen=8, sum_to_one=False)
    window = ledger.need("sliding_window", faults, 4096)
    if ledger.need("use_sliding_window", faults, False, kind=bool) and not ledger.is_null("sliding_window"):
        fields["window"] = window
    return config_of(fields, ledger, faults, _HARMLESS, _IGNORED)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",))
