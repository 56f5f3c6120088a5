"""Weight patching once more, in PyTorch and by hand: what the fast engine is held to.

A straight loop over components copies each one's slices out of the special Hugging Face model into the base one, runs every
prompt by itself, reads the hidden state after a block with a forward hook, and puts the slices back. Nothing of jaxpatch is used.
"""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import hf
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
    common = dict(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=10,
        num_hidden_layers=3,
        num_key_value_heads=kv_heads,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        rope_parameters=None,
        rms_norm_eps=1e-6,
    )
    config = hf.config(model_type, **(common | ({} if model_type in WITHOUT_HEAD_DIM else {"head_dim": 4}) | fields))
    config._experts_implementation = "eager"
    generator = torch.Generator().manual_seed(seed)
    base = transformers.AutoModelForCausalLM.from_config(config).eval()
    _add_noise(base, std, generator, around={"norm": 2.0, "ln_": 2.0})
    special = copy.deepcopy(base)
    _add_noise(special, noise, generator)
    folders = folder / "base", folder / "special"
    for model, place in zip((base, special), folders, strict=True):
        model.save_pretrained(place)
    return TorchPair(base, special, *folders)


def in_float64(pair: TorchPair) -> TorchPair:
    """The same weights, for sums in float64."""
    base, special = (hf.load(folder, torch.float64) for folder in (pair.base_folder, pair.special_folder))
    return pair._replace(base=base, special=special)


def _add_noise(
    model: torch.nn.Module, std: float, generator: torch.Generator, around: Mapping[str, float] | None = None
):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if around is not None:
                parameter.fill_(next((value for part, value in around.items() if part in name), 0.0))
            more = (
                3 if "norm" in name or "ln_" in name else 1
            )  # so that a norm's effect, too, stands clear of float32 rounding
            parameter.add_(more * std * torch.randn(parameter.shape, generator=generator))


class Matrix(NamedTuple):
    """Where one matrix of a block is.

    module: under the block. first: where its units begin along their axis. step: from one head to the next; None where they touch.
    is_transposed: stored with its inputs first.
    """

    module: str
    first: int = 0
    step: int | None = None
    is_transposed: bool = False


class Layout(NamedTuple):
    """Where a family keeps what. norms: in the order in which jaxpatch numbers them."""

    block: str
    matrices: Mapping[str, Matrix]
    norms: tuple[str, ...]
    embed: str
    positions: str | None = None


WITHOUT_HEAD_DIM = ("gpt2", "gpt_neox", "opt", "phi3", "olmoe")
FEEDFORWARD = ("post_attention_layernorm", "post_feedforward_layernorm")


def layout_of(c: transformers.PretrainedConfig) -> Layout:
    """Of a model of this config."""
    stem, c = "model.language_model." if c.model_type in hf.WHOLES else "model.", c.get_text_config()
    width = head_width(c)
    block, embed = stem + "layers.{l}.", stem + "embed_tokens.weight"
    matrices = {name: Matrix(f"self_attn.{name}_proj") for name in "qkvo"}
    matrices |= {name: Matrix(f"mlp.{name}_proj") for name in ("gate", "up", "down")}
    norms, positions = ("input_layernorm", "post_attention_layernorm"), None
    if c.model_type == "olmo2":
        norms = FEEDFORWARD
    if c.model_type in ("gemma2", "gemma3_text"):
        norms = ("input_layernorm", "pre_feedforward_layernorm", *FEEDFORWARD)
    if c.model_type in ("qwen3", "gemma3_text", "olmo2", "qwen3_moe", "olmoe"):
        norms += ("self_attn.q_norm", "self_attn.k_norm")
    if c.model_type == "phi3":
        starts = 0, c.num_attention_heads, c.num_attention_heads + c.num_key_value_heads
        matrices |= {n: Matrix("self_attn.qkv_proj", at * width) for n, at in zip("qkv", starts, strict=True)}
        matrices |= {"gate": Matrix("mlp.gate_up_proj"), "up": Matrix("mlp.gate_up_proj", c.intermediate_size)}
    if c.model_type == "gpt2":
        block, embed, positions = "transformer.h.{l}.", "transformer.wte.weight", "transformer.wpe.weight"
        matrices = {n: Matrix("attn.c_attn", at * c.n_embd, None, True) for at, n in enumerate("qkv")}
        matrices |= {"o": Matrix("attn.c_proj", is_transposed=True), "up": Matrix("mlp.c_fc", is_transposed=True)}
        matrices["down"] = Matrix("mlp.c_proj", is_transposed=True)
        norms = ("ln_1", "ln_2")
    if c.model_type == "gpt_neox":
        block, embed = "gpt_neox.layers.{l}.", "gpt_neox.embed_in.weight"
        matrices = {n: Matrix("attention.query_key_value", at * width, 3 * width) for at, n in enumerate("qkv")}
        matrices |= {
            "o": Matrix("attention.dense"),
            "up": Matrix("mlp.dense_h_to_4h"),
            "down": Matrix("mlp.dense_4h_to_h"),
        }
    if c.model_type == "opt":
        stem = "model.decoder."
        block, embed, positions = stem + "layers.{l}.", stem + "embed_tokens.weight", stem + "embed_positions.weight"
        matrices |= {"o": Matrix("self_attn.out_proj"), "up": Matrix("fc1"), "down": Matrix("fc2")}
        del matrices["gate"]
        norms = ("self_attn_layer_norm", "final_layer_norm")
    return Layout(block, matrices, norms, embed, positions)


def head_width(c: transformers.PretrainedConfig) -> int:
    return getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads


def num_groups(c: transformers.PretrainedConfig) -> int:
    return getattr(c, "num_key_value_heads", None) or c.num_attention_heads


def num_neurons(c: transformers.PretrainedConfig) -> int:
    names = {"gpt2": "n_inner", "opt": "ffn_dim", "qwen3_moe": "moe_intermediate_size"}
    return getattr(c, names.get(c.model_type, "intermediate_size"))


def components(model: transformers.PreTrainedModel, kind: str) -> dict[tuple[int, ...], Slices]:
    """Every component of a kind: its index -> the (parameter, index into it) it owns."""
    names, c, layout = dict(model.named_parameters()), model.config.get_text_config(), layout_of(model.config)
    wide, everything = head_width(c), slice(None)
    units = {"q": (c.num_attention_heads, wide), "o": (c.num_attention_heads, wide)}
    units |= {name: (num_groups(c), wide) for name in "kv"}
    units |= {name: (num_neurons(c), 1) for name in ("gate", "up", "down")}

    def part(layer: int, name: str, which: int | None) -> Slices:
        """A matrix, or one unit of it; and of its bias what belongs to that alone."""
        matrix, (number, size) = layout.matrices[name], units[name]
        own = np.arange(number) if which is None else np.array([which])
        along = (matrix.first + own[:, None] * (matrix.step or size) + np.arange(size)).ravel()
        is_output, stem = name not in ("o", "down"), layout.block.format(l=layer) + matrix.module
        found: Slices = [(f"{stem}.weight", (along,) if is_output != matrix.is_transposed else (everything, along))]
        if f"{stem}.bias" in names and (is_output or which is None):
            found.append((f"{stem}.bias", along if is_output else everything))
        return found

    def parts(layer: int, which: int | None, *matrices: str) -> Slices:
        return [item for name in matrices if name in layout.matrices for item in part(layer, name, which)]

    def of_experts(layer: int, which: Any, neuron: int | None, *matrices: str) -> Slices:
        """Of one expert, or of all of them; a matrix, or one neuron's part of it."""
        stem, start = layout.block.format(l=layer) + "mlp.experts.", {"gate": 0, "up": num_neurons(c)}
        own = np.arange(num_neurons(c)) if neuron is None else np.array([neuron])
        return [
            (f"{stem}down_proj", (which, everything, own))
            if name == "down"
            else (f"{stem}gate_up_proj", (which, own + start[name]))
            for name in matrices
        ]

    def router(layer: int) -> Slices:
        return [(f"{layout.block.format(l=layer)}mlp.gate.weight", everything)]

    def norm(layer: int, name: str) -> Slices:
        stem = layout.block.format(l=layer) + name
        return [(f"{stem}.{leaf}", everything) for leaf in ("weight", "bias") if f"{stem}.{leaf}" in names]

    found: dict[tuple[int, ...], Slices] = {}
    if kind in ("embed", "positions"):
        return {(0,): [(layout.embed if kind == "embed" else layout.positions, everything)]}
    counts = {"head": c.num_attention_heads, "kv": num_groups(c), "neuron": num_neurons(c)}
    of_unit = {"head": ("q", "o"), "kv": ("k", "v"), "neuron": ("gate", "up", "down")}
    num_experts, neurons = getattr(c, "num_local_experts", 0), ("gate", "up", "down")
    for layer in range(c.num_hidden_layers):
        if kind == "router":
            found[(layer,)] = router(layer)
        elif kind == "expert":
            found |= {(layer, e): of_experts(layer, e, None, *neurons) for e in range(num_experts)}
        elif kind == "neuron" and num_experts:
            places = itertools.product(range(num_experts), range(num_neurons(c)))
            found |= {(layer, e, unit): of_experts(layer, e, unit, *neurons) for e, unit in places}
        elif kind == "matrix" and num_experts:
            made = [part(layer, name, None) for name in "qkvo"] + [router(layer)]
            made += [of_experts(layer, everything, None, name) for name in neurons]
            found |= {(layer, n): matrix for n, matrix in enumerate(made)}
        elif kind in counts:
            found |= {(layer, unit): parts(layer, unit, *of_unit[kind]) for unit in range(counts[kind])}
        elif kind == "matrix":
            found |= {(layer, n): part(layer, name, None) for n, name in enumerate(layout.matrices)}
        elif kind == "norm":
            found |= {(layer, number): norm(layer, name) for number, name in enumerate(layout.norms)}
        else:
            inner = [item for name in layout.norms if "self_attn." in name for item in norm(layer, name)]
            outer = [item for name in layout.norms if "self_attn." not in name for item in norm(layer, name)]
            attention, mlp = parts(layer, None, *"qkvo") + inner, parts(layer, None, *neurons)
            if num_experts:
                mlp = router(layer) + of_experts(layer, everything, None, *neurons)
            found[(layer,)] = {"attention": attention, "mlp": mlp, "layer": attention + mlp + outer}[kind]
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

    hooks = [block.register_forward_hook(keep) for block in hf.blocks(model)]
    try:
        model(torch.tensor([list(prompt)]), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(states).double() @ torch.as_tensor(np.asarray(direction, np.float64))


def reads(model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]], direction: np.ndarray) -> np.ndarray:
    """[L, B], computed in the model's own type."""
    own_type = hf.in_float64(model) if model.dtype == torch.float64 else nullcontext()
    with torch.no_grad(), own_type:
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
    out = np.full((len(hf.blocks(pair.base)), len(prompts), *shape), np.nan)
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
