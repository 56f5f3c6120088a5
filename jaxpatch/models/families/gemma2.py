"""Gemma 2: Gemma with norms after attention and MLP too, capped logits, and every other layer local. arXiv 2408.00118."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import gemma, llama
from jaxpatch.models.families.family import Family, Ledger, config_of, local_fields, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = gemma.fields_of(ledger, faults, kv_heads=4, activation="hidden_activation")
    fields |= dict(family="gemma2", rope=read_rope(ledger, fields["context"], faults))
    fields |= around(ledger, faults, attention_cap=50.0, logit_cap=30.0)
    default = [number % 2 == 0 for number in range(fields["layers"])]
    width = window(ledger, faults)
    fields |= local_fields(ledger, faults, fields["layers"], width, default)
    return config_of(fields, ledger, faults, {"sliding_window_size": width}, IGNORED)


IGNORED = frozenset({"hidden_act", "cache_implementation", "_sliding_window_pattern"})
"""Old files have hidden_act beside hidden_activation; transformers reads the latter."""


def around(
    ledger: Ledger, faults: list[str], *, attention_cap: float | None = None, logit_cap: float | None = None
) -> dict[str, Any]:
    """Norms after attention and MLP, the scale of queries, and caps. attention_cap, logit_cap: where the config does not say."""
    scale = ledger.need("query_pre_attn_scalar", faults, 256, kind=float) ** -0.5
    return dict(
        post_norm=True,
        attention_scale=scale,
        attention_cap=cap(ledger, faults, "attn_logit_softcapping", attention_cap),
        logit_cap=cap(ledger, faults, "final_logit_softcapping", logit_cap),
    )


def cap(ledger: Ledger, faults: list[str], name: str, default: float | None) -> float | None:
    """A cap, None where the config says null."""
    if ledger.is_null(name) or ledger.take(name, default) is None:
        return None
    return ledger.need(name, faults, default, kind=float)


def window(ledger: Ledger, faults: list[str]) -> int | None:
    """Of local layers."""
    if ledger.is_null("sliding_window"):
        return ledger.take("sliding_window")
    return ledger.need("sliding_window", faults, 4096)


FAMILY = Family(read_config, llama.rules)
