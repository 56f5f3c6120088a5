"""Llama and everything that uses its architecture (SmolLM2, TinyLlama, Yi, ...).

RMSNorm before each half, rotary positions, grouped keys and values, a SiLU-gated MLP. Touvron et al., arXiv 2302.13971.
"""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of

_HARMLESS = {"pretraining_tp": 1, "rope_interleaved": False}
"""Fields that change the model, and the one value under which they do not."""
_IGNORED = frozenset({"is_llama_config"})


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ValueError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, False, kind=bool)
    fields = common_fields(ledger, faults, context=2048) | dict(
        family="llama",
        attention_bias=has_bias,
        output_bias=has_bias,
        mlp_bias=ledger.need("mlp_bias", faults, False, kind=bool),
    )
    return config_of(fields, ledger, faults, _HARMLESS, _IGNORED)


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table."""
    block = "model.layers.{l}."
    table = [
        Rule("model.embed_tokens.weight", "embed/kernel", "V D -> V D"),
        Rule(block + "input_layernorm.weight", "layers/attn_norm/scale", "D -> D"),
        Rule(block + "self_attn.q_proj.weight", "layers/attn/q/kernel", "NH D -> D N H"),
        Rule(block + "self_attn.k_proj.weight", "layers/attn/k/kernel", "KH D -> D K H"),
        Rule(block + "self_attn.v_proj.weight", "layers/attn/v/kernel", "KH D -> D K H"),
        Rule(block + "self_attn.o_proj.weight", "layers/attn/o/kernel", "D NH -> N H D"),
        Rule(block + "post_attention_layernorm.weight", "layers/mlp_norm/scale", "D -> D"),
        Rule(block + "mlp.gate_proj.weight", "layers/mlp/gate/kernel", "F D -> D F"),
        Rule(block + "mlp.up_proj.weight", "layers/mlp/up/kernel", "F D -> D F"),
        Rule(block + "mlp.down_proj.weight", "layers/mlp/down/kernel", "D F -> F D"),
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
        table += [
            Rule(block + "self_attn.q_norm.weight", "layers/attn/q_norm/scale", "H -> H"),
            Rule(block + "self_attn.k_norm.weight", "layers/attn/k_norm/scale", "H -> H"),
        ]
    if config.mlp_bias:
        table += [
            Rule(block + "mlp.gate_proj.bias", "layers/mlp/gate/bias", "F -> F"),
            Rule(block + "mlp.up_proj.bias", "layers/mlp/up/bias", "F -> F"),
            Rule(block + "mlp.down_proj.bias", "layers/mlp/down/bias", "D -> D"),
        ]
    if not config.tied:
        table.append(Rule("lm_head.weight", "unembed/kernel", "V D -> D V"))
    return tuple(table)


_GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{l}.attn_norm.weight": "model.layers.{l}.input_layernorm.weight",
    "blk.{l}.attn_q.weight": "model.layers.{l}.self_attn.q_proj.weight",
    "blk.{l}.attn_k.weight": "model.layers.{l}.self_attn.k_proj.weight",
    "blk.{l}.attn_v.weight": "model.layers.{l}.self_attn.v_proj.weight",
    "blk.{l}.attn_output.weight": "model.layers.{l}.self_attn.o_proj.weight",
    "blk.{l}.ffn_norm.weight": "model.layers.{l}.post_attention_layernorm.weight",
    "blk.{l}.ffn_gate.weight": "model.layers.{l}.mlp.gate_proj.weight",
    "blk.{l}.ffn_up.weight": "model.layers.{l}.mlp.up_proj.weight",
    "blk.{l}.ffn_down.weight": "model.layers.{l}.mlp.down_proj.weight",
}


def gguf_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A GGUF file's ``llama.*`` metadata -> config.json. Raises ValueError with every fault."""
    ledger = Ledger({name.removeprefix("llama."): v for name, v in metadata.items() if name.startswith("llama.")})
    faults: list[str] = []
    width, heads = ledger.need("embedding_length", faults), ledger.need("attention.head_count", faults)
    head_width = ledger.need("attention.key_length", faults, width // heads)
    raw = dict(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        hidden_act="silu",
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        num_hidden_layers=ledger.need("block_count", faults),
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=ledger.need("attention.head_count_kv", faults, heads),
        head_dim=head_width,
        intermediate_size=ledger.need("feed_forward_length", faults),
        max_position_embeddings=ledger.take("context_length", 2048),
        rms_norm_eps=ledger.take("attention.layer_norm_rms_epsilon", 1e-6),
        rope_parameters={"rope_type": "default", "rope_theta": ledger.take("rope.freq_base", 10_000.0)},
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=metadata.get("tokenizer.ggml.padding_token_id"),
    )
    harmless = {"rope.dimension_count": head_width, "attention.value_length": head_width, "rope.scaling.type": "none"}
    faults += ledger.unread(harmless, frozenset({"vocab_size"}))
    if faults:
        raise ValueError("; ".join(faults))
    return raw


FAMILY = Family(read_config, rules, ("rotary_emb.inv_freq",), _GGUF_NAMES, gguf_config)
