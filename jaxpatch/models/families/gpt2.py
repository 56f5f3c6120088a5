"""GPT-2: learned positions, LayerNorm, a plain GELU MLP; its matrices stored with their inputs first. Radford et al. 2019."""

from collections.abc import Mapping
from typing import Any

from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.convert import Rule
from jaxpatch.models.families.family import Family, Ledger, config_of, layer_norms, read_activation

_HARMLESS = {
    **{"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    "n_special": 0,  # rows of the embedding beside the vocabulary
}
_IGNORED = frozenset(
    """n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout predict_special_tokens
    layer_norm_eps""".split()
)


def read_config(raw: Mapping[str, Any]) -> DecoderConfig:
    """config.json -> our config. Raises ConfigError with every fault."""
    ledger, faults = Ledger(raw), []
    width, heads = ledger.need("n_embd", faults, 768), ledger.need("n_head", faults, 12)
    context = ledger.need("n_positions", faults, 1024)
    if width % heads:
        faults.append(f"n_head = {heads} does not divide n_embd = {width}")
    fields = dict(
        family="gpt2",
        vocab=ledger.need("vocab_size", faults, 50_257),
        layers=ledger.need("n_layer", faults, 12),
        width=width,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        neurons=ledger.need("n_inner", faults, 4 * width),
        context=context,
        rope=None,
        positions=context,
        norm="layer",
        norm_eps=ledger.need("layer_norm_epsilon", faults, 1e-5, kind=float),
        tied=ledger.need("tie_word_embeddings", faults, True, kind=bool),
        attention_bias=True,
        output_bias=True,
        activation=read_activation(ledger, faults, "activation_function", "gelu_new"),
        gated=False,
        mlp_bias=True,
    )
    return config_of(fields, ledger, faults, _HARMLESS, _IGNORED)


def rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """The conversion table."""
    block, ours = "transformer.h.{l}.", "layers/"
    table = [
        Rule("transformer.wte.weight", "embed/kernel", "V D -> V D"),
        Rule("transformer.wpe.weight", "positions/kernel", "P D -> P D"),
        Rule(block + "attn.c_proj.weight", ours + "attn/o/kernel", "NH D -> N H D"),
        Rule(block + "attn.c_proj.bias", ours + "attn/o/bias", "D -> D"),
        Rule(block + "mlp.c_fc.weight", ours + "mlp/up/kernel", "D F -> D F"),
        Rule(block + "mlp.c_fc.bias", ours + "mlp/up/bias", "F -> F"),
        Rule(block + "mlp.c_proj.weight", ours + "mlp/down/kernel", "F D -> F D"),
        Rule(block + "mlp.c_proj.bias", ours + "mlp/down/bias", "D -> D"),
    ]
    for part, (name, letter) in enumerate(zip("qkv", "NKK", strict=True)):
        table += [
            Rule(block + "attn.c_attn.weight", f"{ours}attn/{name}/kernel", f"D [NKK]H -> D {letter} H", part),
            Rule(block + "attn.c_attn.bias", f"{ours}attn/{name}/bias", f"[NKK]H -> {letter} H", part),
        ]
    norms = {block + "ln_1": ours + "attn_norm", block + "ln_2": ours + "mlp_norm", "transformer.ln_f": "final_norm"}
    table += layer_norms(norms)
    if not config.tied:
        table.append(Rule("lm_head.weight", "unembed/kernel", "V D -> D V"))
    return tuple(table)


FAMILY = Family(read_config, rules, (".attn.bias", ".attn.masked_bias"), inputs_first=True, prefix="transformer.")
