"""The PyTorch sides: a loop over candidates that swaps slices of a Hugging Face Llama in place, in two grades of care.

Both run the very weights, tokens and candidates of the JAX side. Special's slices are laid ready on the device before the clock
starts, and base's own read-out is not timed: what is timed is swap, run, read, restore.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers

from benchmarks.pairs import Case
from jaxpatch.models import convert
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.families import FAMILIES


class Swap(NamedTuple):
    """One component: views into base's weights, and special's values for them."""

    views: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]


class Sweep(NamedTuple):
    """Base on torch, and what it takes to patch and read it.

    model: a LlamaForCausalLM; submodules of torch have no types. tokens, mask: [B, T]. last: [B], the position that is read.
    direction: [D], float32. depth: blocks up to the anchor.
    """

    config: DecoderConfig
    model: Any
    tokens: torch.Tensor
    mask: torch.Tensor
    last: torch.Tensor
    direction: torch.Tensor
    depth: int

    def read(self, states: torch.Tensor) -> torch.Tensor:
        """``<h[last], u>`` of hidden states [B, T, D]: [B], in float32."""
        return states[torch.arange(len(self.last), device=states.device), self.last].float() @ self.direction


Read = Callable[[], torch.Tensor]
"""Runs the model as it stands, and reads the anchor: [B]."""


def of_case(case: Case) -> Sweep:
    """Base as a Hugging Face model on the device that JAX uses, with all threads."""
    torch.set_num_threads(os.cpu_count() or 1)
    device = _device()
    lengths = np.asarray(case.prompts.lengths)
    return Sweep(
        config=case.config,
        model=llama(case.config, case.pair.base, device),
        tokens=_tensor(np.asarray(case.prompts.tokens, np.int64), device),
        mask=_tensor((np.arange(case.prompts.tokens.shape[1]) < lengths[:, None]).astype(np.int64), device),
        last=_tensor(lengths.astype(np.int64) - 1, device),
        direction=_tensor(np.asarray(case.anchor.direction, np.float32), device),
        depth=int(case.anchor.layer) + 1,
    )


def llama(config: DecoderConfig, params: Any, device: torch.device) -> Any:
    """One of our trees as a Hugging Face model, in its own dtype."""
    tensors = {
        name: _tensor(array, torch.device("cpu"))
        for name, array in convert.to_tensors(params, FAMILIES["llama"].rules(config), config)
    }
    with device:
        model = transformers.AutoModelForCausalLM.from_config(
            _their_config(config), dtype=next(iter(tensors.values())).dtype, attn_implementation="sdpa"
        ).eval()
    strangers = model.load_state_dict(tensors, strict=False)
    if strangers.unexpected_keys or set(strangers.missing_keys) > {"lm_head.weight"}:
        raise RuntimeError(f"the weights do not fit the Hugging Face model: {strangers}")
    return model


def _their_config(config: DecoderConfig) -> transformers.LlamaConfig:
    return transformers.LlamaConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        intermediate_size=config.neurons,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_width,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        tie_word_embeddings=config.tied,
        attention_bias=config.attention_bias,
        mlp_bias=config.mlp_bias,
    )


def loop_people_write(sweep: Sweep) -> Read:
    """The whole model on the padded batch with its mask, to logits; all hidden states are kept, and one is read."""

    def read() -> torch.Tensor:
        out = sweep.model(sweep.tokens, attention_mask=sweep.mask, output_hidden_states=True, use_cache=False)
        return sweep.read(out.hidden_states[sweep.depth])

    return read


def best_loop(sweep: Sweep) -> Read:
    """The same blocks, cut at the anchor: no logits, no list of states, no final norm, and no mask, for padding stands right."""
    whole, shallow = sweep.model.model, dataclasses.replace(sweep.config, layers=sweep.depth)
    with torch.device("meta"):
        cut: Any = transformers.AutoModel.from_config(_their_config(shallow), attn_implementation="sdpa").eval()
    cut.embed_tokens, cut.rotary_emb, cut.norm = whole.embed_tokens, whole.rotary_emb, torch.nn.Identity()
    cut.layers = whole.layers[: sweep.depth]

    def read() -> torch.Tensor:
        return sweep.read(cut(sweep.tokens, use_cache=False).last_hidden_state)

    return read


def swaps(case: Case, sweep: Sweep, kind: str, indices: np.ndarray) -> list[Swap]:
    """What each candidate (layer, index) exchanges, ready on the device."""
    return [_SWAPS[kind](case, sweep, int(layer), int(index)) for layer, index in indices]


def _neuron(case: Case, sweep: Sweep, layer: int, index: int) -> Swap:
    theirs, ours = sweep.model.model.layers[layer].mlp, case.pair.special["layers"]["mlp"]
    return _swap(
        (theirs.gate_proj.weight[index], ours["gate"]["kernel"][layer, :, index]),
        (theirs.up_proj.weight[index], ours["up"]["kernel"][layer, :, index]),
        (theirs.down_proj.weight[:, index], ours["down"]["kernel"][layer, index]),
    )


def _head(case: Case, sweep: Sweep, layer: int, index: int) -> Swap:
    theirs, ours = sweep.model.model.layers[layer].self_attn, case.pair.special["layers"]["attn"]
    width = case.config.head_width
    mine = slice(index * width, (index + 1) * width)
    return _swap(
        (theirs.q_proj.weight[mine], ours["q"]["kernel"][layer, :, index].T),
        (theirs.o_proj.weight[:, mine], ours["o"]["kernel"][layer, index].T),
    )


_SWAPS = {"head": _head, "neuron": _neuron}


def _swap(*pairs: tuple[torch.Tensor, jax.Array]) -> Swap:
    views, values = zip(*pairs, strict=True)
    return Swap(
        tuple(view.detach() for view in views),
        tuple(_tensor(np.asarray(value), views[0].device) for value in values),
    )


@contextmanager
def swapped(swap: Swap) -> Iterator[None]:
    """Inside, base holds special's slices."""
    kept = [view.clone() for view in swap.views]
    for view, value in zip(swap.views, swap.values, strict=True):
        view.copy_(value)
    try:
        yield
    finally:
        for view, value in zip(swap.views, kept, strict=True):
            view.copy_(value)


def effects(read: Read, base: torch.Tensor, candidates: Sequence[Swap]) -> np.ndarray:
    """``F_a(patched) - F_a(base)``, [C, B]; fetched together at the end, so that an accelerator never waits for the host."""
    with torch.inference_mode():
        found = []
        for swap in candidates:
            with swapped(swap):
                found.append(read())
        return (torch.stack(found) - base).cpu().numpy()


def base_read(read: Read) -> torch.Tensor:
    """F_a of base: [B]."""
    with torch.inference_mode():
        return read()


def _device() -> torch.device:
    if jax.default_backend() != "gpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RuntimeError("JAX uses a GPU and this PyTorch cannot: install a build of PyTorch with CUDA.")
    return torch.device("cuda")


def _tensor(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy; bfloat16, which torch does not take from numpy, goes by way of its bits."""
    if array.dtype == jax.numpy.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)
