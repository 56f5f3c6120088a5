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
}
"""Heads per group, tying, biases and a head width of its own: every value of each, in few models."""


def config(model_type: str = "llama", **changes: Any) -> transformers.PretrainedConfig:
    """Two layers, four heads; any field can be changed."""
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
    )
    return transformers.AutoConfig.for_model(model_type, **(fields | changes))


def save(
    folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB", **changes: Any
) -> Path:
    """A random model, no parameter at its initial value. shard: largest file, such as "3KB". Returns: the folder."""
    model = transformers.AutoModelForCausalLM.from_config(config(**changes))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
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

    class Lifted:
        float32 = float = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    lifted = (sys.modules[type(model).__module__], modeling_rope_utils)
    for module in lifted:
        module.torch = Lifted()
    try:
        yield
    finally:
        for module in lifted:
            module.torch = torch


def load(folder: Path, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """The model as transformers reads it; with float64 rotary frequencies where it is float64."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    if dtype == torch.float64:
        rotary = model.model.rotary_emb
        stretched = modeling_rope_utils.ROPE_INIT_FUNCTIONS | {"default": rotary.compute_default_rope_parameters}
        with in_float64(model):
            rotary.inv_freq, _ = stretched[rotary.rope_type](model.config)
    return model


def logits(
    model: transformers.PreTrainedModel | Path, prompts: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32
) -> list[np.ndarray]:
    """Next-token logits [T, V] of each prompt, one by one. model: loaded, or the directory of one."""
    model = load(model, dtype) if isinstance(model, Path) else model
    with torch.no_grad(), in_float64(model) if dtype == torch.float64 else contextlib.nullcontext():
        return [model(torch.tensor([list(prompt)])).logits[0].to(dtype).numpy() for prompt in prompts]


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
        is_prompt = output.shape[1] > 1
        output[:, first if is_prompt else 0 :] += torch.tensor(vector)
        return output

    handle = model.model.layers[layer].register_forward_hook(add)
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
