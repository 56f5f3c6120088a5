"""Qwen2 and Qwen2.5: Llama's architecture with biases on queries, keys and values, and local layers if asked for. arXiv 2407.10671."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Gguf, Ledger, common_fields, config_of, local_fields, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = common_fields(ledger, faults, context=32_768, kv_heads=32)
    fields |= dict(family="qwen2", attention_bias=True, rope=read_rope(ledger, fields["context"], faults)) | windows(
        ledger, faults, fields["layers"]
    )
    return config_of(fields, ledger, faults)


def windows(ledger: Ledger, faults: list[str], layers: int) -> dict[str, Any]:
    """Layers from ``max_window_layers`` on are local where ``use_sliding_window`` says so."""
    is_used = ledger.need("use_sliding_window", faults, False, kind=bool)
    first = ledger.need("max_window_layers", faults, 28, least=0)
    window = ledger.need("sliding_window", faults, 4096)
    is_local = is_used and not ledger.is_null("sliding_window")
    default = [is_local and number >= first for number in range(layers)]
    return local_fields(ledger, faults, layers, window if is_local else None, default)


FAMILY = Family(read_config, llama.rules, ("rotary_emb.inv_freq",), gguf=Gguf("qwen2", "Qwen2ForCausalLM"))
