"""OLMo 2: norms after attention and MLP instead of before, and over all queries and all keys. arXiv 2501.00656."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=2048, norm_eps=("rms_norm_eps", 1e-5))
    fields |= dict(
        family="olmo2",
        rope=read_rope(ledger, fields["context"], faults),
        pre_norm=False,
        post_norm=True,
        qk_norm="whole",
        attention_bias=has_bias,
        output_bias=has_bias,
    )
    return config_of(fields, ledger, faults)


FAMILY = Family(read_config, llama.rules)
