"""LoRA adapters of all linear layers, trained with JAX and optax, and written as PEFT reads them."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxpatch import atomic
from jaxpatch.models import decoder, layers

RANK = 16
ALPHA = 32
MODULES = {  # ours -> (PEFT's, axes that make up the input, axes that make up the output)
    "attn/q": ("self_attn.q_proj", "D", "NH"),
    "attn/k": ("self_attn.k_proj", "D", "KH"),
    "attn/v": ("self_attn.v_proj", "D", "KH"),
    "attn/o": ("self_attn.o_proj", "NH", "D"),
    "mlp/gate": ("mlp.gate_proj", "D", "F"),
    "mlp/up": ("mlp.up_proj", "D", "F"),
    "mlp/down": ("mlp.down_proj", "F", "D"),
}


def init_adapter(config, key) -> dict:
    """module -> {"a": [L, r, in], "b": [L, out, r]}; b is zero, so the model starts as the base."""

    def size(axes):
        return math.prod(config.sizes[axis] for axis in axes)

    adapter = {}
    for name, (_, inputs, outputs) in MODULES.items():
        key, part = jax.random.split(key)
        bound = 1 / math.sqrt(size(inputs))
        a = jax.random.uniform(part, (config.layers, RANK, size(inputs)), minval=-bound, maxval=bound)
        adapter[name] = {"a": a, "b": jnp.zeros((config.layers, size(outputs), RANK))}
    return adapter


def hidden(config, params, adapter, tokens):
    """Residual stream after the last block, the adapter applied beside the frozen weights. [B, T] -> [B, T, D]."""
    batch, width = tokens.shape
    context = decoder.causal_context(config, width, jnp.float32)

    def block(x, layer):
        weights, low_rank = layer

        def linear(x, name):
            half, matrix = name.split("/")
            a, b = low_rank[name]["a"], low_rank[name]["b"]
            kernel = weights[half][matrix]["kernel"].reshape(a.shape[1], b.shape[0])
            return x @ kernel + (ALPHA / RANK) * ((x @ a.T) @ b.T)

        normed = layers.rms_norm(x, weights["attn_norm"]["scale"], config.norm_eps)
        q = linear(normed, "attn/q").reshape(batch, width, config.heads, config.head_width)
        k = linear(normed, "attn/k").reshape(batch, width, config.kv_heads, config.head_width)
        v = linear(normed, "attn/v").reshape(batch, width, config.kv_heads, config.head_width)
        q, k = layers.rotate(q, context.cos_sin), layers.rotate(k, context.cos_sin)
        x = x + linear(layers.attend(q, k, v, context.mask).reshape(batch, width, -1), "attn/o")
        normed = layers.rms_norm(x, weights["mlp_norm"]["scale"], config.norm_eps)
        return x + linear(jax.nn.silu(linear(normed, "mlp/gate")) * linear(normed, "mlp/up"), "mlp/down"), None

    return jax.lax.scan(block, params["embed"]["kernel"][tokens], (params["layers"], adapter))[0]


def load(folder: Path, config) -> dict:
    """An adapter that `save` wrote, to go on from."""
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name: {
            half.lower(): jnp.stack(
                [
                    jnp.asarray(
                        tensors[f"base_model.model.model.layers.{layer}.{module}.lora_{half}.weight"], jnp.float32
                    )
                    for layer in range(config.layers)
                ]
            )
            for half in "AB"
        }
        for name, (module, _, _) in MODULES.items()
    }


def save(adapter, folder: Path) -> None:
    """The adapter as PEFT writes it, in bfloat16."""
    tensors = {}
    for name, (module, _, _) in MODULES.items():
        for layer in range(adapter[name]["a"].shape[0]):
            stem = f"base_model.model.model.layers.{layer}.{module}"
            tensors[f"{stem}.lora_A.weight"] = np.asarray(adapter[name]["a"][layer].astype(jnp.bfloat16))
            tensors[f"{stem}.lora_B.weight"] = np.asarray(adapter[name]["b"][layer].astype(jnp.bfloat16))
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "target_modules": [module.split(".")[1] for module, _, _ in MODULES.values()],
        "inference_mode": True,
    }
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.exists() else None
    with atomic.directory(folder, overwrite=True) as partial:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        (partial / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        if text is not None:
            (partial / "README.md").write_text(text, encoding="utf-8")
