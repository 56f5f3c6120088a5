"""Phi-3: Llama's architecture, its matrices stored side by side, and LongRoPE. arXiv 2404.14219."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families import llama
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    fields = common_fields(ledger, faults, context=4096, norm_eps=("rms_norm_eps", 1e-5))
    ledger.take("original_max_position_embeddings")
    rope = read_rope(
        ledger,
        fields["context"],
        faults,
        share=("partial_rotary_factor", 1.0),
        original=4096,
        also={"su": "longrope", "yarn": "longrope"},
    )
    fields |= dict(family="phi3", rope=rope)
    if ledger.take("sliding_window") is not None:
        fields["window"] = ledger.need("sliding_window", faults)
    return config_of(fields, ledger, faults)


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table."""
    block = "model.layers.{l}."
    into_heads = ("q", "[NKK]H D -> D N H"), ("k", "[NKK]H D -> D K H"), ("v", "[NKK]H D -> D K H")
    together = [
        Rule(block + "self_attn.qkv_proj.weight", f"layers/attn/{name}/kernel", layout, part)
        for part, (name, layout) in enumerate(into_heads)
    ] + [
        Rule(block + "mlp.gate_up_proj.weight", f"layers/mlp/{name}/kernel", "[FF] D -> D F", part)
        for part, name in enumerate(("gate", "up"))
    ]
    ours = {rule.ours for rule in together}
    return (*(rule for rule in llama.rules(config) if rule.ours not in ours), *together)


FAMILY = Family(read_config, rules)
