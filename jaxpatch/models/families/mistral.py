"""Mistral: Llama's architecture, every layer looking back no further than a window where the config has one. arXiv 2310.06825."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = common_fields(ledger, faults, context=131_072, kv_heads=8)
    fields |= dict(family="mistral", rope=read_rope(ledger, fields["context"], faults))
    if not ledger.is_null("sliding_window"):
        fields["window"] = ledger.need("sliding_window", faults, 4096)
    ledger.take("sliding_window")
    return config_of(fields, ledger, faults)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",))
