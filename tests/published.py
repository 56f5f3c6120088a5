"""config.json of models on the Hugging Face hub, as their makers published them: whatever fields they hold, in whatever spelling.

What all files of a sort say alike stands once. Left out are fields that are null, and what `architectures` and `transformers_version`
say; of long lists of factors the number is theirs. Nothing of jaxpatch is used.
"""

from typing import Any

HELD = dict(torch_dtype="bfloat16", use_cache=True, initializer_range=0.02, transformers_version="4.45.0")
SILU = HELD | dict(hidden_act="silu", attention_dropout=0.0, tie_word_embeddings=False)


def sizes(
    width: int, layers: int, heads: int, groups: int, neurons: int, vocabulary: int, context: int
) -> dict[str, Any]:
    return dict(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        intermediate_size=neurons,
        vocab_size=vocabulary,
        max_position_embeddings=context,
    )


LLAMA = SILU | dict(
    model_type="llama", architectures=["LlamaForCausalLM"], bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5
)
LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192, rope_type="llama3"
)
LLAMA3_1 = LLAMA | dict(
    attention_bias=False, mlp_bias=False, pretraining_tp=1, rope_theta=500_000.0, rope_scaling=LLAMA3,
    bos_token_id=128_000, eos_token_id=[128_001, 128_008, 128_009],
)  # fmt: skip
LLAMA3_2 = LLAMA3_1 | sizes(2048, 16, 32, 8, 8192, 128_256, 131_072) | dict(
    head_dim=64, tie_word_embeddings=True, rope_scaling=LLAMA3 | dict(factor=32.0)
)  # fmt: skip
SMOLLM2 = LLAMA | sizes(576, 30, 9, 3, 1536, 49_152, 8192) | dict(
    attention_bias=False, is_llama_config=True, rope_interleaved=False, rope_theta=100_000, rope_scaling=None, pretraining_tp=1,
    tie_word_embeddings=True, initializer_range=0.041666666666666664,
)  # fmt: skip
MISTRAL = SILU | dict(model_type="mistral", bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5)
QWEN = SILU | dict(rms_norm_eps=1e-6, rope_theta=1_000_000.0, bos_token_id=151_643, use_sliding_window=False)
QWEN2 = QWEN | dict(model_type="qwen2", eos_token_id=151_643)
QWEN3 = QWEN | dict(attention_bias=False, head_dim=128, rope_scaling=None, sliding_window=None, eos_token_id=151_645)
GEMMA = HELD | dict(
    attention_bias=False, attention_dropout=0.0, bos_token_id=2, eos_token_id=1, pad_token_id=0, head_dim=256, rms_norm_eps=1e-6,
    rope_theta=10_000.0,
)  # fmt: skip
GEMMA2 = GEMMA | dict(
    model_type="gemma2", attn_logit_softcapping=50.0, final_logit_softcapping=30.0, cache_implementation="hybrid",
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", sliding_window=4096,
)  # fmt: skip
GEMMA3 = GEMMA | dict(
    model_type="gemma3_text", attn_logit_softcapping=None, final_logit_softcapping=None, hidden_activation="gelu_pytorch_tanh",
    query_pre_attn_scalar=256, rope_local_base_freq=10_000, rope_scaling=None, rope_theta=1_000_000, sliding_window=512,
)  # fmt: skip
PHI = SILU | dict(
    model_type="phi3", embd_pdrop=0.0, resid_pdrop=0.0, rms_norm_eps=1e-5, rope_theta=10_000.0, attention_bias=False,
    auto_map=dict(AutoConfig="configuration_phi3.Phi3Config", AutoModelForCausalLM="modeling_phi3.Phi3ForCausalLM"),
    original_max_position_embeddings=4096, rope_scaling=None, bos_token_id=1, eos_token_id=32_000, pad_token_id=32_000,
)  # fmt: skip
FACTORS = dict(short_factor=[1.0] * 24 + [1.1] * 24, long_factor=[1.0] * 16 + [32.5] * 32)
GRANITE = SILU | dict(
    model_type="granite", attention_bias=False, mlp_bias=False, attention_dropout=0.1, attention_multiplier=0.015625,
    embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22, rms_norm_eps=1e-5, rope_scaling=None,
    tie_word_embeddings=True, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
GPT2 = dict(
    model_type="gpt2", activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, initializer_range=0.02,
    layer_norm_epsilon=1e-5, bos_token_id=50_256, eos_token_id=50_256, n_ctx=1024, n_positions=1024, vocab_size=50_257,
    summary_activation=None, summary_first_dropout=0.1, summary_proj_to_labels=True, summary_type="cls_index", summary_use_proj=True,
    task_specific_params={"text-generation": dict(do_sample=True, max_length=50)},
)  # fmt: skip
NEOX = dict(
    model_type="gpt_neox", initializer_range=0.02, layer_norm_eps=1e-5, rotary_emb_base=10_000, rotary_pct=0.25, bos_token_id=0,
    eos_token_id=0, max_position_embeddings=2048, tie_word_embeddings=False, torch_dtype="float16", use_cache=True,
)  # fmt: skip
OPT = dict(
    model_type="opt", activation_dropout=0.0, activation_function="relu", attention_dropout=0.0, bos_token_id=2, eos_token_id=2,
    pad_token_id=1, do_layer_norm_before=True, dropout=0.1, init_std=0.02, layerdrop=0.0, max_position_embeddings=2048, prefix="</s>",
    torch_dtype="float16", use_cache=True, vocab_size=50_272,
)  # fmt: skip
ROUTED = dict(output_router_logits=False)

CONFIGS: dict[str, dict[str, Any]] = {
    "huggyllama/llama-7b": LLAMA
    | sizes(4096, 32, 32, 32, 11_008, 32_000, 2048)
    | dict(rms_norm_eps=1e-6, max_sequence_length=2048, pad_token_id=0, torch_dtype="float16"),
    "meta-llama/Llama-2-7b-hf": LLAMA
    | sizes(4096, 32, 32, 32, 11_008, 32_000, 4096)
    | dict(_name_or_path="meta-llama/Llama-2-7b-hf", pretraining_tp=1, rope_scaling=None, torch_dtype="float16"),
    "meta-llama/Llama-3.1-8B-Instruct": LLAMA3_1 | sizes(4096, 32, 32, 8, 14_336, 128_256, 131_072),
    "meta-llama/Llama-3.2-1B": LLAMA3_2,
    "meta-llama/Llama-3.3-70B-Instruct": LLAMA3_1
    | sizes(8192, 80, 64, 8, 28_672, 128_256, 131_072)
    | dict(head_dim=128),
    "unsloth/Llama-3.2-1B-Instruct": LLAMA3_2
    | dict(eos_token_id=128_009, pad_token_id=128_004, unsloth_fixed=True, unsloth_version="2025.3"),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": LLAMA
    | sizes(2048, 22, 32, 4, 5632, 32_000, 2048)
    | dict(attention_bias=False, pretraining_tp=1, rope_scaling=None, rope_theta=10_000.0),
    "HuggingFaceTB/SmolLM2-135M": SMOLLM2 | dict(bos_token_id=0, eos_token_id=0),
    "HuggingFaceTB/SmolLM2-135M-Instruct": SMOLLM2
    | {
        "mlp_bias": False,
        "pad_token_id": 2,
        "transformers.js_config": dict(kv_cache_dtype=dict(q4f16="float16", fp16="float16")),
    },
    "01-ai/Yi-6B": LLAMA
    | sizes(4096, 32, 32, 4, 11_008, 64_000, 4096)
    | dict(pad_token_id=0, pretraining_tp=1, rope_scaling=None, rope_theta=5_000_000.0),
    "deepseek-ai/deepseek-coder-1.3b-base": LLAMA
    | sizes(2048, 24, 16, 16, 5504, 32_256, 16_384)
    | dict(rms_norm_eps=1e-6, pretraining_tp=1, rope_theta=100_000, rope_scaling=dict(factor=4.0, type="linear")),
    "mistralai/Mistral-7B-v0.1": MISTRAL
    | sizes(4096, 32, 32, 8, 14_336, 32_000, 32_768)
    | dict(rope_theta=10_000.0, sliding_window=4096),
    "mistralai/Mistral-7B-v0.3": MISTRAL
    | sizes(4096, 32, 32, 8, 14_336, 32_768, 32_768)
    | dict(rope_theta=1_000_000.0, sliding_window=None),
    "mistralai/Mistral-Nemo-Base-2407": MISTRAL
    | sizes(5120, 40, 32, 8, 14_336, 131_072, 128_000)
    | dict(head_dim=128, rope_theta=1_000_000.0, sliding_window=None),
    "Qwen/Qwen1.5-0.5B": QWEN2
    | sizes(1024, 24, 16, 16, 2816, 151_936, 32_768)
    | dict(max_window_layers=21, sliding_window=32_768, tie_word_embeddings=True),
    "Qwen/Qwen2-7B": QWEN2
    | sizes(3584, 28, 28, 4, 18_944, 152_064, 131_072)
    | dict(max_window_layers=28, sliding_window=131_072),
    "Qwen/Qwen2.5-0.5B": QWEN2
    | sizes(896, 24, 14, 2, 4864, 151_936, 32_768)
    | dict(max_window_layers=24, sliding_window=32_768, tie_word_embeddings=True, use_mrope=False),
    "Qwen/Qwen2.5-7B-Instruct, with the card's yarn": QWEN2
    | sizes(3584, 28, 28, 4, 18_944, 152_064, 32_768)
    | dict(
        max_window_layers=28,
        sliding_window=131_072,
        rope_scaling=dict(factor=4.0, original_max_position_embeddings=32_768, type="yarn"),
    ),
    "Qwen/Qwen3-0.6B": QWEN3
    | sizes(1024, 28, 16, 8, 3072, 151_936, 40_960)
    | dict(model_type="qwen3", max_window_layers=28, tie_word_embeddings=True),
    "google/gemma-2b": GEMMA
    | sizes(2048, 18, 8, 1, 16_384, 256_000, 8192)
    | dict(model_type="gemma", hidden_act="gelu", hidden_activation=None, rope_scaling=None),
    "google/gemma-1.1-7b-it": GEMMA
    | sizes(3072, 28, 16, 16, 24_576, 256_000, 8192)
    | dict(
        model_type="gemma", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", rope_scaling=None
    ),
    "google/gemma-2-2b": GEMMA2 | sizes(2304, 26, 8, 4, 9216, 256_000, 8192) | dict(query_pre_attn_scalar=256),
    "google/gemma-2-9b": GEMMA2
    | sizes(3584, 42, 16, 8, 14_336, 256_000, 8192)
    | dict(query_pre_attn_scalar=256, sliding_window_size=4096),
    "google/gemma-3-1b-it": GEMMA3
    | sizes(1152, 26, 4, 1, 6912, 262_144, 32_768)
    | dict(cache_implementation="hybrid", eos_token_id=[1, 106], sliding_window_pattern=6),
    "google/gemma-3-270m": GEMMA3
    | sizes(640, 18, 4, 1, 2048, 262_144, 32_768)
    | dict(
        _sliding_window_pattern=6,
        layer_types=([*["sliding_attention"] * 5, "full_attention"] * 3),
        use_bidirectional_attention=False,
    ),
    "microsoft/Phi-3-mini-4k-instruct": PHI | sizes(3072, 32, 32, 32, 8192, 32_064, 4096) | dict(sliding_window=2047),
    "microsoft/Phi-3-mini-128k-instruct": PHI
    | sizes(3072, 32, 32, 32, 8192, 32_064, 131_072)
    | dict(sliding_window=262_144, rope_scaling=FACTORS | dict(type="longrope")),
    "microsoft/phi-4": PHI
    | sizes(5120, 40, 40, 10, 17_920, 100_352, 16_384)
    | dict(original_max_position_embeddings=16_384, rope_theta=250_000, auto_map=None),
    "microsoft/Phi-4-mini-instruct": PHI
    | sizes(3072, 32, 24, 8, 8192, 200_064, 131_072)
    | dict(
        full_attn_mod=1,
        interpolate_factor=1,
        lm_head_bias=False,
        mlp_bias=False,
        partial_rotary_factor=0.75,
        rope_scaling=FACTORS | dict(type="longrope"),
        sliding_window=262_144,
        tie_word_embeddings=True,
    ),
    "allenai/OLMo-2-1124-7B": SILU
    | sizes(4096, 32, 32, 32, 11_008, 100_352, 4096)
    | dict(
        model_type="olmo2",
        attention_bias=False,
        rms_norm_eps=1e-6,
        rope_theta=500_000,
        rope_scaling=None,
        pad_token_id=100_277,
    ),
    "ibm-granite/granite-3.0-2b-base": GRANITE | sizes(2048, 40, 32, 8, 8192, 49_152, 4096) | dict(rope_theta=10_000.0),
    "ibm-granite/granite-3.1-2b-instruct": GRANITE
    | sizes(2048, 40, 32, 8, 8192, 49_155, 131_072)
    | dict(rope_theta=5_000_000.0),
    "openai-community/gpt2": GPT2 | dict(n_embd=768, n_head=12, n_layer=12),
    "openai-community/gpt2-xl": GPT2
    | dict(n_embd=1600, n_head=25, n_layer=48, n_special=0, predict_special_tokens=True, output_past=True),
    "distilbert/distilgpt2": GPT2
    | dict(n_embd=768, n_head=12, n_layer=6, _num_labels=1, id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}),
    "EleutherAI/pythia-70m": NEOX
    | dict(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048, vocab_size=50_304)
    | dict(hidden_act="gelu", use_parallel_residual=True),
    "EleutherAI/gpt-neox-20b": NEOX
    | dict(hidden_size=6144, num_hidden_layers=44, num_attention_heads=64, intermediate_size=24_576, vocab_size=50_432)
    | dict(hidden_act="gelu_fast", attention_probs_dropout_prob=0, hidden_dropout_prob=0),
    "facebook/opt-125m": OPT
    | dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, ffn_dim=3072, word_embed_proj_dim=768),
    "facebook/opt-1.3b": OPT
    | dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192, word_embed_proj_dim=2048)
    | dict(_remove_final_layer_norm=False),
    "mistralai/Mixtral-8x7B-v0.1": MISTRAL
    | sizes(4096, 32, 32, 8, 14_336, 32_000, 32_768)
    | ROUTED
    | dict(model_type="mixtral", num_local_experts=8, num_experts_per_tok=2, router_aux_loss_coef=0.02)
    | dict(rope_theta=1_000_000.0, sliding_window=None),
    "Qwen/Qwen3-30B-A3B": QWEN3
    | sizes(2048, 48, 32, 4, 6144, 151_936, 40_960)
    | ROUTED
    | dict(
        model_type="qwen3_moe", num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True
    )
    | dict(decoder_sparse_step=1, max_window_layers=48, mlp_only_layers=[], router_aux_loss_coef=0.001),
    "allenai/OLMoE-1B-7B-0924": SILU
    | sizes(2048, 16, 16, 16, 1024, 50_304, 4096)
    | ROUTED
    | dict(
        model_type="olmoe",
        num_experts=64,
        num_experts_per_tok=8,
        norm_topk_prob=False,
        clip_qkv=None,
        attention_bias=False,
    )
    | dict(
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        rope_scaling=None,
        router_aux_loss_coef=0.01,
        eos_token_id=50_279,
        pad_token_id=1,
    ),
}
