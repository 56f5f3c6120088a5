"""OPT: learned positions that begin at the third row, LayerNorm, a plain ReLU MLP. arXiv 2205.01068."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families.family import Family, Ledger, config_of, layer_norms, read_activation

_FIRST = 2
"""Rows of the table before that of the first token."""
_HARMLESS = {"do_layer_norm_before": True, "_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True}


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    width, heads = ledger.need("hidden_size", faults, 768), ledger.need("num_attention_heads", faults, 12)
    context = ledger.need("max_position_embeddings", faults, 2048)
    if width % heads:
        faults.append(f"num_attention_heads = {heads} does not divide hidden_size = {width}")
    has_bias = ledger.need("enable_bias", faults, True, kind=bool)
    fields = dict(
        family="opt",
        vocab=ledger.need("vocab_size", faults, 50_272),
        layers=ledger.need("num_hidden_layers", faults, 12),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        neurons=ledger.need("ffn_dim", faults, 3072),
        context=context,
        rope=None,
        positions=context + _FIRST,
        norm="layer",
        norm_eps=1e-5,
        tied=ledger.need("tie_word_embeddings", faults, True, kind=bool),
        attention_bias=has_bias,
        output_bias=has_bias,
        activation=read_activation(ledger, faults, "activation_function", "relu"),
        gated=False,
        mlp_bias=has_bias,
    )
    return config_of(fields, ledger, faults, _HARMLESS | {"word_embed_proj_dim": width})


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table."""
    stem, ours = "model.decoder.", "layers/"
    block = stem + "layers.{l}."
    table = [
        Rule(stem + "embed_tokens.weight", "embed/kernel", "V D -> V D"),
        Rule(stem + "embed_positions.weight", "positions/kernel", "P D -> P D"),
    ]
    layouts = {"q": ("NH", "N H"), "k": ("KH", "K H"), "v": ("KH", "K H")}
    for name, (flat, split) in layouts.items():
        table.append(
            Rule(f"{block}self_attn.{name}_proj.weight", f"{ours}attn/{name}/kernel", f"{flat} D -> D {split}")
        )
        if config.attention_bias:
            table.append(Rule(f"{block}self_attn.{name}_proj.bias", f"{ours}attn/{name}/bias", f"{flat} -> {split}"))
    after = {
        "self_attn.out_proj": ("attn/o", "D NH -> N H D", "D -> D", config.output_bias),
        "fc1": ("mlp/up", "F D -> D F", "F -> F", config.mlp_bias),
        "fc2": ("mlp/down", "D F -> F D", "D -> D", config.mlp_bias),
    }
    for theirs, (name, kernel, bias, has_bias) in after.items():
        table.append(Rule(f"{block}{theirs}.weight", f"{ours}{name}/kernel", kernel))
        if has_bias:
            table.append(Rule(f"{block}{theirs}.bias", f"{ours}{name}/bias", bias))
    norms = {
        block + "self_attn_layer_norm": ours + "attn_norm",
        block + "final_layer_norm": ours + "mlp_norm",
        stem + "final_layer_norm": "final_norm",
    }
    table += layer_norms(norms)
    if not config.tied:
        table.append(Rule("lm_head.weight", "unembed/kernel", "V D -> D V"))
    return tuple(table)


FAMILY = Family(read_config, rules)
