"""Tiny random Hugging Face models on disk, and what transformers itself says about them. Nothing of jaxpatch is used."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import modeling_rope_utils

torch.set_num_threads(1)  # matrices this small only lose by threads
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 24,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.5],
    "long_factor": [2.0, 5.0],
    "original_max_position_embeddings": 32,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 700.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
}
ROPES = {
    "gemma3_text": GEMMA3_ROPE,
    "gpt_neox": {"rope_type": "default", "rope_theta": 70.0, "partial_rotary_factor": 0.5},
}
"""Of families that have settings of their own."""
WHOLES = {"gemma3": "gemma3_text"}
"""model_type of a model that sees too -> that of the text model in it."""
SEEING = {
    "vision_config": dict(
        hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    ),
    "mm_tokens_per_image": 4,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "MHA untied": dict(num_key_value_heads=4),
    "GQA tied": dict(num_key_value_heads=2, tie_word_embeddings=True),
    "MQA untied wide heads": dict(num_key_value_heads=1, head_dim=6),
    "GQA untied biases": dict(num_key_value_heads=2, attention_bias=True, mlp_bias=True),
    "MHA tied attention bias": dict(num_key_value_heads=4, tie_word_embeddings=True, attention_bias=True),
    "GQA llama3 rope": dict(rope_parameters=LLAMA3_ROPE, max_position_embeddings=192),
    "GQA linear rope": dict(rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}),
    "Mistral, GQA": dict(model_type="mistral", sliding_window=None),
    "Mistral, window": dict(model_type="mistral", sliding_window=3, num_key_value_heads=1),
    "Qwen2, tied": dict(model_type="qwen2", tie_word_embeddings=True),
    "Qwen2, local layers": dict(model_type="qwen2", use_sliding_window=True, sliding_window=2, max_window_layers=1),
    "Qwen3, MHA": dict(model_type="qwen3", num_key_value_heads=4, head_dim=6),
    "Qwen3, biases, local layers": dict(
        model_type="qwen3",
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=2,
        layer_types=["sliding_attention", "full_attention"],
        head_dim=4,
    ),
    "MQA tied mlp bias": dict(num_key_value_heads=1, tie_word_embeddings=True, mlp_bias=True),
    "GQA yarn rope": dict(rope_parameters=YARN_ROPE, max_position_embeddings=96),
    "GQA gelu": dict(hidden_act="gelu", head_dim=8),
    "Gemma, MQA": dict(model_type="gemma", num_key_value_heads=1, head_dim=6, hidden_size=20),
    "Gemma, untied biases": dict(model_type="gemma", tie_word_embeddings=False, attention_bias=True, head_dim=4),
    "Gemma 2": dict(model_type="gemma2", head_dim=4, sliding_window=3, query_pre_attn_scalar=9),
    "Gemma 2, no caps": dict(
        model_type="gemma2", head_dim=4, sliding_window=2, attn_logit_softcapping=None, final_logit_softcapping=None
    ),
    "Gemma 3": dict(model_type="gemma3_text", head_dim=4, sliding_window=3, num_hidden_layers=7),
    "Gemma 3, cap": dict(
        model_type="gemma3_text",
        head_dim=6,
        sliding_window=2,
        layer_types=["full_attention", "sliding_attention"],
        final_logit_softcapping=2.5,
        rope_parameters=None,
    ),
    "Gemma 3 that sees": dict(model_type="gemma3", head_dim=4, sliding_window=3, num_hidden_layers=7),
    "Gemma 3 that sees, untied": dict(
        model_type="gemma3",
        head_dim=6,
        sliding_window=2,
        layer_types=["full_attention", "sliding_attention"],
        tie_word_embeddings=False,
        attention_bias=True,
        rope_parameters=None,
    ),
    "Phi-3, longrope": dict(
        model_type="phi3",
        rope_parameters=LONG_ROPE,
        max_position_embeddings=64,
        original_max_position_embeddings=32,
    ),
    "Phi-3, longrope beyond": dict(
        model_type="phi3",
        rope_parameters=LONG_ROPE | {"attention_factor": 1.2},
        num_key_value_heads=1,
        original_max_position_embeddings=1,
    ),
    "Phi-3, window": dict(model_type="phi3", sliding_window=3, tie_word_embeddings=True),
    "OLMo 2": dict(model_type="olmo2"),
    "OLMo 2, MHA biases tied": dict(
        model_type="olmo2", num_key_value_heads=4, attention_bias=True, tie_word_embeddings=True
    ),
    "Granite": dict(
        model_type="granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.3,
        logits_scaling=2.5,
    ),
    "Granite, biases": dict(model_type="granite", attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "GPT-2": dict(model_type="gpt2"),
    "GPT-2, untied relu": dict(
        model_type="gpt2", tie_word_embeddings=False, activation_function="relu", intermediate_size=None
    ),
    "NeoX": dict(model_type="gpt_neox", num_attention_heads=2, rope_parameters={"rope_theta": 500.0}),
    "NeoX, one after the other": dict(
        model_type="gpt_neox",
        use_parallel_residual=False,
        hidden_act="gelu_new",
        tie_word_embeddings=True,
    ),
    "NeoX, no attention bias": dict(
        model_type="gpt_neox",
        attention_bias=False,
        rope_parameters={"rope_type": "default", "rope_theta": 70.0, "partial_rotary_factor": 1.0},
    ),
    "OPT": dict(model_type="opt"),
    "OPT, no biases, untied": dict(
        model_type="opt", enable_bias=False, tie_word_embeddings=False, activation_function="gelu"
    ),
    "Mixtral": dict(model_type="mixtral", num_local_experts=3),
    "Mixtral, window, tied": dict(
        model_type="mixtral", num_local_experts=4, num_experts_per_tok=1, sliding_window=3, tie_word_embeddings=True
    ),
    "Qwen3-MoE": dict(model_type="qwen3_moe", num_experts=5, num_experts_per_tok=2, head_dim=6),
    "Qwen3-MoE, shares sum to one, window": dict(
        model_type="qwen3_moe",
        num_experts=4,
        num_experts_per_tok=3,
        norm_topk_prob=True,
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=2,
        tie_word_embeddings=True,
    ),
    "OLMoE": dict(model_type="olmoe", num_experts=4, num_experts_per_tok=4),
    "OLMoE, shares sum to one": dict(
        model_type="olmoe",
        num_experts=6,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        num_key_value_heads=4,
        attention_bias=True,
    ),
}
"""Heads per group, tying, biases and a head width of its own: every value of each, in few models; and every switch of each family."""

RENAMED: dict[str, dict[str, str | None]] = {
    "gpt2": dict(
        hidden_size="n_embd",
        intermediate_size="n_inner",
        num_hidden_layers="n_layer",
        num_attention_heads="n_head",
        num_key_value_heads=None,
        max_position_embeddings="n_positions",
        rms_norm_eps="layer_norm_epsilon",
        rope_parameters=None,
    ),
    "gpt_neox": dict(rms_norm_eps="layer_norm_eps", num_key_value_heads=None),
    "opt": dict(intermediate_size="ffn_dim", num_key_value_heads=None, rms_norm_eps=None, rope_parameters=None),
    "qwen3_moe": dict(intermediate_size="moe_intermediate_size"),
}
"""What common fields are called in some families; None where they have none."""


def config(model_type: str = "llama", **changes: Any) -> transformers.PretrainedConfig:
    """Two layers, four heads; any field can be changed. Of a model that sees too, its text model has them."""
    if model_type in WHOLES:
        top = {name: changes.pop(name) for name in ("tie_word_embeddings", "attn_implementation") if name in changes}
        text = config(WHOLES[model_type], **changes).to_dict()
        return transformers.AutoConfig.for_model(model_type, text_config=text, **SEEING, **top)
    fields = dict(
        vocab_size=43,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    fields["rope_parameters"] = ROPES.get(model_type, fields["rope_parameters"])
    renamed = RENAMED.get(model_type, {})
    wanted = {renamed.get(name, name): value for name, value in (fields | changes).items()}
    wanted.pop(None, None)
    return transformers.AutoConfig.for_model(model_type, **wanted)


def text_model(model: transformers.PreTrainedModel) -> torch.nn.Module:
    """What has the layers."""
    names = [name for name in ("decoder", "language_model") if hasattr(model.base_model, name)]
    return getattr(model.base_model, names[0]) if names else model.base_model


def blocks(model: transformers.PreTrainedModel) -> torch.nn.ModuleList:
    """The layers of any family."""
    inside = text_model(model)
    return inside.h if hasattr(inside, "h") else inside.layers


def save(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any
) -> Path:
    """A random model, no parameter at its initial value. shard: largest file, such as "3KB". Returns: the folder."""
    model = transformers.AutoModelForCausalLM.from_config(config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name or "ln_" in name else 0.0
            parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def retell(folder: Path, **changes: Any) -> Path:
    """Rewrite fields of a directory's config.json; a field set to `...` is taken out."""
    file = folder / "config.json"
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in fields.items() if value is not ...}))
    return folder


def retensor(folder: Path, change: Mapping[str, torch.Tensor | None]) -> Path:
    """Replace tensors of a directory's single file; None takes one out."""
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in (load_file(file) | dict(change)).items() if tensor is not None}
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@contextlib.contextmanager
def in_float64(model: transformers.PreTrainedModel) -> Iterator[None]:
    """Lift what transformers' model computes in float32 whatever its weights are: norms, angles, softmax."""
    to_float = torch.Tensor.float

    class Lifted:
        float32 = float = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    lifted = (sys.modules[type(model).__module__], modeling_rope_utils)
    for module in lifted:
        module.torch = Lifted()
    torch.Tensor.float = torch.Tensor.double
    try:
        yield
    finally:
        torch.Tensor.float = to_float
        for module in lifted:
            module.torch = torch


def load(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The model as transformers reads it; with float64 rotary frequencies where it is float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    model.config._experts_implementation = "eager"  # grouped products have no float64 in torch
    inside = text_model(model)
    rotary = getattr(inside, "rotary_emb", None)
    if dtype == torch.float64 and rotary is not None:
        with in_float64(model):
            inside.rotary_emb = type(rotary)(inside.config)
    return model


def logits(
    model: transformers.PreTrainedModel | Path, prompts: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32
) -> list[np.ndarray]:
    """Next-token logits [T, V] of each prompt, one by one. model: loaded, or the directory of one."""
    model = load(model, dtype) if isinstance(model, Path) else model
    with torch.no_grad(), in_float64(model) if dtype == torch.float64 else contextlib.nullcontext():
        return [model(torch.tensor([list(prompt)])).logits[0].to(dtype).numpy() for prompt in prompts]


def states(model: transformers.PreTrainedModel | Path, prompt: Sequence[int]) -> np.ndarray:
    """The residual stream after each block: [L, T, D]."""
    model, found = load(model) if isinstance(model, Path) else model, []

    def keep(module, inputs, output):
        del module, inputs
        found.append((output[0] if isinstance(output, tuple) else output)[0].numpy())

    handles = [block.register_forward_hook(keep) for block in blocks(model)]
    try:
        logits(model, [prompt])
    finally:
        for handle in handles:
            handle.remove()
    return np.stack(found)


def continuation(model: transformers.PreTrainedModel, prompt: Sequence[int], *, max_new: int, stop: int) -> list[int]:
    """transformers' own greedy generation of one prompt, without the prompt."""
    ids = torch.tensor([list(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=max_new,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=stop,
    )
    return out[0, len(prompt) :].tolist()


@contextlib.contextmanager
def steered(model: transformers.PreTrainedModel, layer: int, vector: np.ndarray, first: int) -> Iterator[None]:
    """Add a vector to the residual stream after a block, at every position from `first` of the prompt on."""

    def add(module, inputs, output):
        del module, inputs
        stream = output[0] if isinstance(output, tuple) else output
        is_prompt = stream.shape[1] > 1
        stream[:, first if is_prompt else 0 :] += torch.tensor(vector)
        return output

    handle = blocks(model)[layer].register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def padded(prompts: Sequence[Sequence[int]], fill: int = 0) -> np.ndarray:
    """Right-padded token ids [B, T]."""
    tokens = np.full((len(prompts), max(map(len, prompts))), fill)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    return tokens


def assert_logits(
    pair, params, wanted: Sequence[np.ndarray], tolerance: float = 1e-5, prompts=([3, 1, 4, 1, 5], [9, 2])
) -> None:
    """Ours are those, up to a share of the largest of each prompt."""
    got = pair.apply(params, padded(prompts))
    for row, reference in zip(got, wanted, strict=True):
        np.testing.assert_allclose(row[: len(reference)], reference, atol=tolerance * np.abs(reference).max())


def save_adapter(
    folder: Path,
    base: Path,
    *,
    rank: int = 2,
    modules: Sequence[str] = ("q_proj", "down_proj"),
    layers: Sequence[int] = (0, 1),
    seed: int = 1,
    **settings: Any,
) -> Path:
    """A random LoRA adapter in PEFT's layout for a directory `save` made. settings: of adapter_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        *_, module, kind = name.split(".")
        layer = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if kind == "weight" and module in modules and (layer is None or layer in layers):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator)
            tensors[f"{stem}.lora_B.weight"] = 0.2 * torch.randn(weight.shape[0], rank, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return resettle(folder, **(dict(PEFT_DEFAULTS, r=rank, lora_alpha=3, target_modules=list(modules)) | settings))


def resettle(folder: Path, **settings: Any) -> Path:
    """Change settings of an adapter_config.json."""
    file = folder / "adapter_config.json"
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(old | settings))
    return folder


PEFT_DEFAULTS = dict(
    alora_invocation_tokens=None,
    alpha_pattern={},
    arrow_config=None,
    auto_mapping=None,
    base_model_name_or_path="tiny",
    bias="none",
    corda_config=None,
    ensure_weight_tying=False,
    eva_config=None,
    exclude_modules=None,
    fan_in_fan_out=False,
    inference_mode=True,
    init_lora_weights=True,
    layer_replication=None,
    layers_pattern=None,
    layers_to_transform=None,
    loftq_config={},
    lora_bias=False,
    lora_dropout=0.05,
    megatron_config=None,
    megatron_core="megatron.core",
    modules_to_save=None,
    peft_type="LORA",
    peft_version="0.19.0",
    qalora_group_size=16,
    rank_pattern={},
    revision=None,
    target_parameters=None,
    task_type="CAUSAL_LM",
    trainable_token_indices=None,
    use_dora=False,
    use_qalora=False,
    use_rslora=False,
)
"""What PEFT writes into adapter_config.json when nothing special is asked of it."""


def save_tokenizer(folder: Path) -> Path:
    """A byte-level tokenizer of 256 letters, eight merges and two control tokens, as transformers stores one."""
    vocab, merges, control = byte_level_parts()
    bpe = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=[tuple(m) for m in merges])
    made = tokenizers.Tokenizer(bpe)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(control)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=control[0], eos_token=control[1]
    ).save_pretrained(folder)
    return folder


def byte_level_parts() -> tuple[list[str], list[list[str]], list[str]]:
    """The tokens of `save_tokenizer` in the order of their ids, its merges, and which tokens are control tokens."""
    control = ["<|start|>", "<|end|>"]
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = [["t", "h"], ["th", "e"], ["Ġ", "the"], ["o", "w"], ["ow", "l"], ["i", "n"], ["Ġ", "o"], ["e", "r"]]
    return control + letters + ["".join(pair) for pair in merges], merges, control
