"""OLMoE: experts, and norms over all queries and all keys. arXiv 2409.02060."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, expert_fields, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=4096, norm_eps=("rms_norm_eps", 1e-5))
    fields |= dict(family="olmoe", rope=read_rope(ledger, fields["context"], faults))
    fields |= dict(attention_bias=has_bias, output_bias=has_bias, qk_norm="whole")
    fields |= expert_fields(ledger, faults, experts=64, chosen=8, sum_to_one=False)
    return config_of(fields, ledger, faults)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",))
