"""Weight patching once more, in PyTorch and by hand: what the fast engine is held to.

A straight loop over components copies each one's slices out of the special Hugging Face model into the base one, runs every
prompt by itself, reads the hidden state after a block with a forward hook, and puts the slices back. Nothing of jaxpatch is used.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

KINDS = ("head", "kv", "neuron", "attention", "mlp", "layer", "matrix", "norm", "embed")
Slices = list[tuple[str, Any]]
torch.set_num_threads(1)  # matrices this small only lose by threads
transformers.utils.logging.disable_progress_bar()


PROMPTS = ([3, 1, 4, 1, 5, 9], [2, 6], [5, 3, 5, 8])


def direction(seed: int = 0) -> np.ndarray:
    """A unit vector as wide as the models."""
    drawn = np.random.default_rng(seed).standard_normal(16)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)


def padded(fill: int = 0) -> tuple[np.ndarray, list[int]]:
    """The prompts, right-padded, and their lengths."""
    tokens = np.full((len(PROMPTS), max(map(len, PROMPTS))), fill)
    for row, prompt in zip(tokens, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    return tokens, [len(prompt) for prompt in PROMPTS]


class TorchPair(NamedTuple):
    """Two models, and the directories they were saved in."""

    base: transformers.PreTrainedModel
    special: transformers.PreTrainedModel
    base_folder: Path
    special_folder: Path


def make(
    folder: Path,
    *,
    model_type: str = "llama",
    kv_heads: int = 2,
    tied: bool = False,
    seed: int = 0,
    std: float = 0.25,
    noise: float = 0.1,
    **fields: Any,
) -> TorchPair:
    """Three layers, four heads; every parameter of special is base's plus noise, norms and biases too. fields: of the config."""
    config = transformers.AutoConfig.for_model(
        model_type,
        vocab_size=31,
        hidden_size=16,
        intermediate_size=10,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        head_dim=4,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        **fields,
    )
    generator = torch.Generator().manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    _add_noise(base, std, generator, around={"norm": 2.0})
    special = copy.deepcopy(base)
    _add_noise(special, noise, generator)
    folders = folder / "base", folder / "special"
    for model, place in zip((base, special), folders, strict=True):
        model.save_pretrained(place)
    return TorchPair(base, special, *folders)


def _add_noise(
    model: torch.nn.Module, std: float, generator: torch.Generator, around: Mapping[str, float] | None = None
):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if around is not None:
                parameter.fill_(next((value for part, value in around.items() if part in name), 0.0))
            more = 3 if "norm" in name else 1  # so that a norm's effect, too, stands clear of float32 rounding
            parameter.add_(more * std * torch.randn(parameter.shape, generator=generator))


def components(model: transformers.PreTrainedModel, kind: str) -> dict[tuple[int, ...], Slices]:
    """Every component of a kind: its index -> the (parameter, index into it) it owns."""
    names, c = dict(model.named_parameters()), model.config
    wide, everything = c.head_dim, slice(None)

    def rows(layer: int, part: str, which: Any) -> Slices:
        """Rows of a weight, which are its outputs, and the same entries of its bias."""
        stem = f"model.layers.{layer}.{part}"
        return [(f"{stem}.{leaf}", which) for leaf in ("weight", "bias") if f"{stem}.{leaf}" in names]

    def columns(layer: int, part: str, which: Any) -> Slices:
        return [(f"model.layers.{layer}.{part}.weight", (everything, which))]

    def whole(layer: int, *parts: str) -> Slices:
        return [item for part in parts for item in rows(layer, part, everything)]

    attention = tuple(f"self_attn.{m}_proj" for m in "qkvo")
    mlp = tuple(f"mlp.{m}_proj" for m in ("gate", "up", "down"))
    inner = tuple(f"self_attn.{n}_norm" for n in "qk" if f"model.layers.0.self_attn.{n}_norm.weight" in names)
    norms = ("input_layernorm", "post_attention_layernorm", *inner)
    found: dict[tuple[int, ...], Slices] = {}
    if kind == "embed":
        return {(0,): [("model.embed_tokens.weight", everything)]}
    for layer in range(c.num_hidden_layers):
        if kind == "head":
            for h in range(c.num_attention_heads):
                mine = slice(h * wide, (h + 1) * wide)
                found[layer, h] = rows(layer, "self_attn.q_proj", mine) + columns(layer, "self_attn.o_proj", mine)
        elif kind == "kv":
            for g in range(c.num_key_value_heads):
                mine = slice(g * wide, (g + 1) * wide)
                found[layer, g] = rows(layer, "self_attn.k_proj", mine) + rows(layer, "self_attn.v_proj", mine)
        elif kind == "neuron":
            for j in range(c.intermediate_size):
                found[layer, j] = (
                    rows(layer, "mlp.gate_proj", j) + rows(layer, "mlp.up_proj", j) + columns(layer, "mlp.down_proj", j)
                )
        elif kind in ("matrix", "norm"):
            for number, part in enumerate(attention + mlp if kind == "matrix" else norms):
                found[layer, number] = whole(layer, part)
        else:
            parts = {"attention": attention + inner, "mlp": mlp, "layer": attention + mlp + norms}[kind]
            found[(layer,)] = whole(layer, *parts)
    return found


@contextmanager
def replaced(pair: TorchPair, slices: Slices) -> Iterator[None]:
    """Inside, these slices of base hold special's values."""
    into, out_of = dict(pair.base.named_parameters()), dict(pair.special.named_parameters())
    saved = [into[name][where].detach().clone() for name, where in slices]
    with torch.no_grad():
        for name, where in slices:
            into[name][where] = out_of[name][where]
    try:
        yield
    finally:
        with torch.no_grad():
            for (name, where), old in zip(slices, saved, strict=True):
                into[name][where] = old


def read(model: transformers.PreTrainedModel, prompt: Sequence[int], direction: np.ndarray) -> torch.Tensor:
    """``<h_a[last], u>`` after every block a: [L]."""
    states: list[torch.Tensor] = []

    def keep(module, args, output):
        states.append((output[0] if isinstance(output, tuple) else output)[0, -1])

    hooks = [block.register_forward_hook(keep) for block in model.model.layers]
    try:
        model(torch.tensor([list(prompt)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states).double() @ torch.as_tensor(np.asarray(direction, np.float64))


def reads(model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], direction: np.ndarray) -> np.ndarray:
    """[L, B]."""
    with torch.no_grad():
        return torch.stack([read(model, prompt, direction) for prompt in prompts], dim=1).numpy()


def effects(pair: TorchPair, kind: str, prompts: Sequence[Sequence[int]], direction: np.ndarray) -> np.ndarray:
    """THE loop: ``F_a(base with one component of special) - F_a(base)`` for every anchor a: [L, B, *shape]."""
    before = reads(pair.base, prompts, direction)
    owned = components(pair.base, kind)
    shape = tuple(np.max(list(owned), axis=0) + 1)
    out = np.full((*before.shape, *shape), np.nan)
    for index, slices in owned.items():
        with replaced(pair, slices):
            out[(..., *index)] = reads(pair.base, prompts, direction) - before
    assert np.array_equal(reads(pair.base, prompts, direction), before)
    return out


def first_order(pair: TorchPair, kind: str, prompts: Sequence[Sequence[int]], direction: np.ndarray) -> np.ndarray:
    """``< dF_a/dTheta(c), Theta_special(c) - Theta_base(c) >`` by autograd: [L, B, *shape]."""
    into, out_of = dict(pair.base.named_parameters()), dict(pair.special.named_parameters())
    owned = components(pair.base, kind)
    shape = tuple(np.max(list(owned), axis=0) + 1)
    out = np.full((pair.base.config.num_hidden_layers, len(prompts), *shape), np.nan)
    for number, prompt in enumerate(prompts):
        per_layer = read(pair.base, prompt, direction)
        for layer, value in enumerate(per_layer):
            grads = torch.autograd.grad(value, list(into.values()), retain_graph=True, allow_unused=True)
            change = {
                name: torch.zeros_like(into[name]) if grad is None else grad * (out_of[name] - into[name])
                for name, grad in zip(into, grads, strict=True)
            }
            for index, slices in owned.items():
                total = sum(change[name][where].double().sum().item() for name, where in slices)
                out[(layer, number, *index)] = total
    return out
