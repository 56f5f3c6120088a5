"""Mixtral: Mistral with experts. arXiv 2401.04088."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, expert_fields, read_rope

_STEM = "block_sparse_moe."
_EXPERTS = {"router": _STEM + "gate"} | {
    ours: f"{_STEM}experts.{{e}}.{theirs}" for ours, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
}


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = common_fields(ledger, faults, context=131_072, kv_heads=8, norm_eps=("rms_norm_eps", 1e-5))
    rope = read_rope(ledger, fields["context"], faults, theta=("rope_theta", 1_000_000.0))
    fields |= dict(family="mixtral", rope=rope)
    fields |= expert_fields(ledger, faults, experts=8, chosen=2)
    if ledger.take("sliding_window") is not None:
        fields["window"] = ledger.need("sliding_window", faults)
    return config_of(fields, ledger, faults)


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table: Llama's, experts named otherwise."""
    return llama.rules(config, _EXPERTS)


FAMILY = Family(read_config, rules, ("rotary_emb.inv_freq",))
