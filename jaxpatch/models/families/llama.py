"""Llama and everything that uses its architecture (SmolLM2, TinyLlama, Yi, ...).

RMSNorm before each half, rotary positions, grouped keys and values, a SiLU-gated MLP. Touvron et al., arXiv 2302.13971.
"""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families.family import Family, Gguf, Ledger, common_fields, config_of, read_rope

_HARMLESS = {"rope_interleaved": False}
"""Fields that change the model, and the one value under which they do not."""
_IGNORED = frozenset({"is_llama_config"})


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=2048)
    fields |= dict(
        family="llama",
        rope=read_rope(ledger, fields["context"], faults),
        attention_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=ledger.need("mlp_bias", faults, False, kind=bool),
    )
    return config_of(fields, ledger, faults, _HARMLESS, _IGNORED)


MLP = {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
EXPERTS = {"router": "mlp.gate"} | {name: f"mlp.experts.{{e}}.{name}_proj" for name in ("gate", "up", "down")}
"""What matrices of an MLP, or of a router and its experts, are called."""
_LAYOUTS = {"router": "E D -> D E", "gate": "F D -> D F", "up": "F D -> D F", "down": "D F -> F D"}


def rules(config: DecoderConfig, experts: Mapping[str, str] = EXPERTS) -> tuple[Rule, ...]:
    """The conversion table. Also that of families which differ from it in norms or by experts alone: their tensors are named alike."""
    block = "model.layers.{l}."
    table = [
        Rule("model.embed_tokens.weight", "embed/kernel", "V D -> V D"),
        Rule(block + "self_attn.q_proj.weight", "layers/attn/q/kernel", "NH D -> D N H"),
        Rule(block + "self_attn.k_proj.weight", "layers/attn/k/kernel", "KH D -> D K H"),
        Rule(block + "self_attn.v_proj.weight", "layers/attn/v/kernel", "KH D -> D K H"),
        Rule(block + "self_attn.o_proj.weight", "layers/attn/o/kernel", "D NH -> N H D"),
        Rule("model.norm.weight", "final_norm/scale", "D -> D"),
    ]
    if config.attention_bias:
        table += [
            Rule(block + "self_attn.q_proj.bias", "layers/attn/q/bias", "NH -> N H"),
            Rule(block + "self_attn.k_proj.bias", "layers/attn/k/bias", "KH -> K H"),
            Rule(block + "self_attn.v_proj.bias", "layers/attn/v/bias", "KH -> K H"),
        ]
    if config.output_bias:
        table.append(Rule(block + "self_attn.o_proj.bias", "layers/attn/o/bias", "D -> D"))
    if config.qk_norm:
        is_whole = config.qk_norm == "whole"
        table += [
            Rule(block + "self_attn.q_norm.weight", "layers/attn/q_norm/scale", "NH -> N H" if is_whole else "H -> H"),
            Rule(block + "self_attn.k_norm.weight", "layers/attn/k_norm/scale", "KH -> K H" if is_whole else "H -> H"),
        ]
    if config.mlp_bias:
        table += [
            Rule(block + "mlp.gate_proj.bias", "layers/mlp/gate/bias", "F -> F"),
            Rule(block + "mlp.up_proj.bias", "layers/mlp/up/bias", "F -> F"),
            Rule(block + "mlp.down_proj.bias", "layers/mlp/down/bias", "D -> D"),
        ]
    if not config.tied:
        table.append(Rule("lm_head.weight", "unembed/kernel", "V D -> D V"))
    mlp = (experts if config.experts else MLP).items()
    table += [Rule(f"{block}{theirs}.weight", f"layers/mlp/{ours}/kernel", _LAYOUTS[ours]) for ours, theirs in mlp]
    return tuple(table + block_norms(config, block))


def block_norms(config: DecoderConfig, block: str) -> list[Rule]:
    """Before attention and MLP, after both, or before and after."""
    before_mlp = "pre_feedforward_layernorm" if config.post_norm else "post_attention_layernorm"
    names = {}
    if config.pre_norm:
        names |= {"input_layernorm": "attn_norm", before_mlp: "mlp_norm"}
    if config.post_norm:
        names |= {"post_attention_layernorm": "attn_post_norm", "post_feedforward_layernorm": "mlp_post_norm"}
    return [Rule(f"{block}{theirs}.weight", f"layers/{ours}/scale", "D -> D") for theirs, ours in names.items()]


FAMILY = Family(
    read_config, rules, ("rotary_emb.inv_freq",), gguf=Gguf("llama", "LlamaForCausalLM", is_interleaved=True)
)
