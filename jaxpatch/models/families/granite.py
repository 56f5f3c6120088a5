"""Granite: Llama's architecture with four multipliers. IBM's models of that name, and muP (arXiv 2203.03466) behind them."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=2048)
    fields |= dict(
        family="granite",
        rope=read_rope(ledger, fields["context"], faults),
        attention_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=ledger.need("mlp_bias", faults, False, kind=bool),
        embed_scale=ledger.need("embedding_multiplier", faults, 1.0, kind=float),
        residual_scale=ledger.need("residual_multiplier", faults, 1.0, kind=float),
        attention_scale=ledger.need("attention_multiplier", faults, 1.0, kind=float),
        logit_scale=1 / ledger.need("logits_scaling", faults, 1.0, kind=float),
    )
    return config_of(fields, ledger, faults)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",))
