"""GPT-NeoX and Pythia: attention and MLP side by side, a share of each head turns, LayerNorm. arXiv 2204.06745, 2304.01373."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families.family import Family, Ledger, common_fields, config_of, layer_norms, read_rope


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    has_bias = ledger.need("attention_bias", faults, True, kind=bool)
    fields = common_fields(
        ledger, faults, context=2048, norm_eps=("layer_norm_eps", 1e-5), activation=("hidden_act", "gelu")
    )
    base, share = ("rotary_emb_base", 10_000.0), ("rotary_pct", 0.25)
    fields |= dict(
        family="gpt_neox",
        rope=read_rope(ledger, fields["context"], faults, theta=base, share=share),
        norm="layer",
        kv_heads=fields["heads"],  # transformers has no other here, whatever num_key_value_heads says
        parallel=ledger.need("use_parallel_residual", faults, True, kind=bool),
        attention_bias=has_bias,
        output_bias=has_bias,
        gated=False,
        mlp_bias=True,
    )
    return config_of(fields, ledger, faults)


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table."""
    block, ours = "gpt_neox.layers.{l}.", "layers/"
    table = [
        Rule("gpt_neox.embed_in.weight", "embed/kernel", "V D -> V D"),
        Rule(block + "attention.dense.weight", ours + "attn/o/kernel", "D NH -> N H D"),
        Rule(block + "mlp.dense_h_to_4h.weight", ours + "mlp/up/kernel", "F D -> D F"),
        Rule(block + "mlp.dense_h_to_4h.bias", ours + "mlp/up/bias", "F -> F"),
        Rule(block + "mlp.dense_4h_to_h.weight", ours + "mlp/down/kernel", "D F -> F D"),
        Rule(block + "mlp.dense_4h_to_h.bias", ours + "mlp/down/bias", "D -> D"),
    ]
    for part, (name, letter) in enumerate(zip("qkv", "NKK", strict=True)):
        theirs = block + "attention.query_key_value"
        table.append(Rule(f"{theirs}.weight", f"{ours}attn/{name}/kernel", f"{letter}[111]H D -> D {letter} H", part))
        if config.attention_bias:
            table.append(Rule(f"{theirs}.bias", f"{ours}attn/{name}/bias", f"{letter}[111]H -> {letter} H", part))
    if config.output_bias:
        table.append(Rule(block + "attention.dense.bias", ours + "attn/o/bias", "D -> D"))
    norms = {
        block + "input_layernorm": ours + "attn_norm",
        block + "post_attention_layernorm": ours + "mlp_norm",
        "gpt_neox.final_layer_norm": "final_norm",
    }
    table += layer_norms(norms)
    if not config.tied:
        table.append(Rule("embed_out.weight", "unembed/kernel", "V D -> D V"))
    return tuple(table)


_BUFFERS = ("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias")

FAMILY = Family(
    read_config, rules, _BUFFERS, prefix="gpt_neox.", unembed="embed_out.weight", modules={"lm_head": "embed_out"}
)
