"""Model directories as GGUF files, the way llama.cpp's converter writes them. Nothing of jaxpatch is used."""

import gguf
import hf
import numpy as np
from safetensors.torch import load_file

VOCAB, MERGES, CONTROL = hf.byte_level_parts()
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {
    "llama": {"post_attention_layernorm": "ffn_norm"},
    "qwen2": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def inside_name(architecture: str, name: str) -> str:
    """What llama.cpp calls a tensor."""
    stem, _, kind = name.rpartition(".")
    if stem in OUTSIDE:
        return f"{OUTSIDE[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{(PARTS | NORMS[architecture])[part]}.{kind}"


def write(
    file,
    folder,
    *,
    architecture="llama",
    metadata=None,
    tokenizer="gpt2",
    pre="gpt-2",
    kinds=None,
    quantise=None,
    extra=None,
):
    """A .gguf file of a model directory, as llama.cpp's converter writes it. metadata: field -> value; None takes it out."""
    config = hf.transformers.AutoConfig.from_pretrained(folder)
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    fields = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": head_width,
        "attention.value_length": head_width,
        "rope.freq_base": float(rope["rope_theta"]),
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }
    if architecture == "llama":
        fields |= {"rope.dimension_count": head_width, "vocab_size": config.vocab_size}
    if architecture == "gemma3":
        fields["attention.sliding_window"] = config.sliding_window
    fields = {f"{architecture}.{name}": value for name, value in fields.items()}
    fields |= {
        "tokenizer.ggml.model": tokenizer,
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": VOCAB,
        "tokenizer.ggml.token_type": kinds or [3 if token in CONTROL else 1 for token in VOCAB],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in MERGES],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    } | (metadata or {})
    writer = gguf.GGUFWriter(file, fields.pop("general.architecture", architecture))
    for name, value in fields.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(name, value)
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.numpy()
        *_, module, _ = name.split(".")
        if module in heads and architecture == "llama":  # llama.cpp interleaves the two rotary halves
            halves = array.reshape(heads[module], 2, array.shape[0] // heads[module] // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if module.endswith("norm") and architecture == "gemma3":
            array = array + 1
        inside = inside_name(architecture, name)
        if quantise is not None and array.ndim == 2:
            writer.add_tensor(inside, gguf.quantize(array, quantise), raw_dtype=quantise)
        else:
            writer.add_tensor(inside, np.ascontiguousarray(array))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file
