"""Activation and attribution patching once more, in PyTorch and by hand: what `crossed`, `local_crossed` and `attribution` are held to.

A straight loop over components runs the special Hugging Face model, keeps what each module got and gave, and runs the base model with
hooks that put one component's part of it in; or takes autograd's word for what that would do. Nothing of jaxpatch is used.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch_oracle
import transformers
from torch_oracle import TorchPair

WRITES = {"head": "o", "neuron": "down"}
HALVES = {"attention": "o", "mlp": "down"}
READS = {"query": "q", "key": "k", "value": "v", "kv": "kv"}
KINDS = (*WRITES, *HALVES, "layer", *READS)


class Part(NamedTuple):
    """Some features of what a module gives, or of what it gets."""

    module: str
    features: np.ndarray | None
    is_input: bool = False


def units(c: transformers.PretrainedConfig, name: str) -> tuple[int, int]:
    """How many components share a matrix, and how wide each is."""
    wide = torch_oracle.head_width(c)
    if name in ("q", "o"):
        return c.num_attention_heads, wide
    return (torch_oracle.num_groups(c), wide) if name in ("k", "v") else (torch_oracle.num_neurons(c), 1)


def _features(c: transformers.PretrainedConfig, name: str, unit: int) -> np.ndarray:
    """Of one component in the output of q, k or v, or in the input of o or down."""
    size, matrix = units(c, name)[1], torch_oracle.layout_of(c).matrices[name]
    start = unit * size if name in ("o", "down") else matrix.first + unit * (matrix.step or size)
    return start + np.arange(size)


def added_by(whole: transformers.PretrainedConfig, layer: int, kind: str) -> str:
    """The module whose output joins the stream, but for a scale that both models share."""
    layout, c = torch_oracle.layout_of(whole), whole.get_text_config()
    stem = layout.block.format(l=layer)
    norms = ("gemma2", "gemma3_text", "olmo2")
    if c.model_type in norms:
        return stem + {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}[kind]
    if kind == "mlp" and getattr(c, "num_local_experts", 0):
        return stem + "mlp"
    return stem + layout.matrices["o" if kind == "attention" else "down"].module


def parts(model: transformers.PreTrainedModel, kind: str, site: str) -> dict[tuple[int, ...], list[Part]]:
    """Every component of a kind: its index -> where its activation is."""
    c, found = model.config.get_text_config(), {}
    layout = torch_oracle.layout_of(model.config)
    for layer in range(c.num_hidden_layers):
        stem = layout.block.format(l=layer)
        if kind in WRITES:
            name = WRITES[kind]
            module = stem + layout.matrices[name].module
            for unit in range(units(c, name)[0]):
                found[layer, unit] = [Part(module, _features(c, name, unit), is_input=True)]
        elif kind in READS:
            names = READS[kind]
            for unit in range(units(c, names[0])[0]):
                found[layer, unit] = [
                    Part(stem + layout.matrices[name].module, _features(c, name, unit)) for name in names
                ]
        elif site == "vector" and kind in HALVES:
            name = HALVES[kind]
            number, size = units(c, name)
            found[layer,] = [Part(stem + layout.matrices[name].module, np.arange(number * size), is_input=True)]
        elif kind == "layer":
            found[layer,] = [Part(stem.rstrip("."), None)]
        else:
            found[layer,] = [Part(added_by(model.config, layer, kind), None)]
    return found


def _first(output):
    return output[0] if isinstance(output, tuple) else output


class Seen(NamedTuple):
    """What modules got and gave in one run, by name."""

    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]


@contextmanager
def watched(model: transformers.PreTrainedModel, names: set[str]) -> Iterator[Seen]:
    """Inside, every run notes what these modules get and give, with gradients if they have any."""
    seen, modules = Seen({}, {}), dict(model.named_modules())

    def note(name: str):
        def hook(module, args, output):
            seen.inputs[name], seen.outputs[name] = args[0], _first(output)

        return hook

    hooks = [modules[name].register_forward_hook(note(name)) for name in names]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def changed(model: transformers.PreTrainedModel, module: str, change: Callable) -> Iterator[None]:
    """Inside, a module gives ``change(input, output)`` in place of its output."""

    def hook(module, args, output):
        new = change(args[0], _first(output))
        return (new, *output[1:]) if isinstance(output, tuple) else new

    handle = dict(model.named_modules())[module].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def matrix_of(model: transformers.PreTrainedModel, module: str) -> torch.Tensor:
    """[inputs, outputs]."""
    found = dict(model.named_modules())[module]
    return found.weight if isinstance(found, transformers.pytorch_utils.Conv1D) else found.weight.T


def _places(prompt: Sequence[int], positions: str) -> slice:
    return slice(None) if positions == "all" else slice(len(prompt) - 1, None)


def written(pair: TorchPair, part: Part, site: str, own: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """By how much a module's output changes where some of its inputs are exchanged. own, other: those of the two models."""
    features = part.features
    before, after = matrix_of(pair.base, part.module), matrix_of(pair.special, part.module)
    after = before if site == "vector" else after
    return other[..., features] @ after[features] - own[..., features] @ before[features]


@contextmanager
def exchanged(pair: TorchPair, own_parts: Sequence[Part], seen: Seen, site: str, where: slice) -> Iterator[None]:
    """Inside, base goes on with what special had there."""

    def change(part: Part):
        def put(got: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
            new = given.clone()
            if part.is_input:
                new[:, where] += written(pair, part, site, got, seen.inputs[part.module])[:, where]
            elif part.features is None:
                new[:, where] = seen.outputs[part.module][:, where]
            else:
                new[:, where, part.features] = seen.outputs[part.module][:, where][..., part.features]
            return new

        return put

    with ExitStack() as stack:
        for part in own_parts:
            stack.enter_context(changed(pair.base, part.module, change(part)))
        yield


def run(model: transformers.PreTrainedModel, prompt: Sequence[int], names: set[str]) -> Seen:
    with watched(model, names) as seen, torch.no_grad():
        model(torch.tensor([list(prompt)]), use_cache=False)
    return seen


def effects(
    pair: TorchPair,
    kind: str,
    prompts: Sequence[Sequence[int]],
    direction: np.ndarray,
    site: str = "contribution",
    positions: str = "all",
) -> np.ndarray:
    """THE loop: ``F_a(base with one activation of special) - F_a(base)`` for every anchor a: [L, B, *shape]."""
    owned = parts(pair.base, kind, site)
    names = {part.module for each in owned.values() for part in each}
    before = torch_oracle.reads(pair.base, prompts, direction)
    out = np.full((*before.shape, *(np.max(list(owned), axis=0) + 1)), np.nan)
    for number, prompt in enumerate(prompts):
        seen = run(pair.special, prompt, names)
        for index, own_parts in owned.items():
            with exchanged(pair, own_parts, seen, site, _places(prompt, positions)), torch.no_grad():
                read = torch_oracle.read(pair.base, prompt, direction).numpy()
            out[(slice(None), number, *index)] = read - before[:, number]
    return out


def attribution(
    pair: TorchPair,
    kind: str,
    prompts: Sequence[Sequence[int]],
    direction: np.ndarray,
    site: str = "contribution",
    positions: str = "all",
    *,
    qk_fix: bool = False,
    dropped: int | None = None,
) -> np.ndarray:
    """The same to first order, by autograd: [L, B, *shape].

    qk_fix: of queries, keys and values, what they change of head vectors is found by running base with them. dropped: a block whose
    attention and MLP no gradient passes.
    """
    c = pair.base.config
    owned, layout, num_layers = (
        parts(pair.base, kind, site),
        torch_oracle.layout_of(c),
        c.get_text_config().num_hidden_layers,
    )
    into_o = {layer: layout.block.format(l=layer) + layout.matrices["o"].module for layer in range(num_layers)}
    names = {part.module for each in owned.values() for part in each} | set(into_o.values())
    out = np.zeros((num_layers, len(prompts), *(np.max(list(owned), axis=0) + 1)))
    for number, prompt in enumerate(prompts):
        where, other = _places(prompt, positions), run(pair.special, prompt, names)
        with ExitStack() as stack:
            own = stack.enter_context(watched(pair.base, names))
            if dropped is not None:
                for half in ("attention", "mlp"):
                    cut = changed(pair.base, added_by(c, dropped, half), lambda _, given: given.detach())
                    stack.enter_context(cut)
            per_anchor = torch_oracle.read(pair.base, prompt, direction)
        ends = [*own.inputs.values(), *own.outputs.values()]
        for anchor, value in enumerate(per_anchor):
            grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
            slopes = [torch.zeros_like(end) if grad is None else grad for end, grad in zip(ends, grads, strict=True)]
            got = dict(zip(own.inputs, slopes, strict=False))
            gave = dict(zip(own.outputs, slopes[len(own.inputs) :], strict=True))
            with torch.no_grad():
                for index, own_parts in owned.items():
                    if qk_fix and kind in READS:
                        module = into_o[index[0]]
                        with exchanged(pair, own_parts, other, site, where):
                            anew = run(pair.base, prompt, {module}).inputs[module]
                        total = ((anew - own.inputs[module]) * got[module]).double().sum().item()
                    else:
                        total = sum(_along(pair, part, site, where, own, other, gave) for part in own_parts)
                    out[(anchor, number, *index)] = total
    return out


def _along(
    pair: TorchPair, part: Part, site: str, where: slice, own: Seen, other: Seen, gave: Mapping[str, torch.Tensor]
) -> float:
    """What one part of a component would change, along the gradient in its module's output."""
    if part.is_input:
        change = written(pair, part, site, own.inputs[part.module], other.inputs[part.module])
    else:
        change = other.outputs[part.module] - own.outputs[part.module]
        if part.features is not None:
            mask = torch.zeros(change.shape[-1])
            mask[part.features] = 1
            change = change * mask
    return (change * gave[part.module])[:, where].double().sum().item()


def grad_drop(
    pair: TorchPair,
    kind: str,
    prompts: Sequence[Sequence[int]],
    direction: np.ndarray,
    anchor: int,
    site: str = "contribution",
    *,
    qk_fix: bool = False,
) -> np.ndarray:
    """AtP*'s mean of sizes with each block but a component's own left out, over the blocks that one anchor needs: [B, *shape]."""
    total = 0
    for dropped in range(anchor + 1):
        found = np.abs(attribution(pair, kind, prompts, direction, site, qk_fix=qk_fix, dropped=dropped)[anchor])
        found[:, dropped] = 0
        total = total + found
    return total / anchor
