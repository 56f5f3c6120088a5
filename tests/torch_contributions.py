"""What one component contributes to a state, once more in PyTorch and by hand: what `contributions` and `targets` are held to.

The gradient of the state at what the target's attention or MLP writes is autograd's; then each supplier's weights are put into the base
model, and what the target writes is taken from what its output matrix gets. Nothing of jaxpatch is used.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
import torch_activations
import torch_oracle
import transformers
from torch_oracle import TorchPair

HALF = {"head": "attention", "neuron": "mlp", "attention": "attention", "mlp": "mlp"}
Kept = dict[str, torch.Tensor]
"""What modules gave in base's own run on one prompt."""
INPUTS = {"query": "q", "key": "k", "value": "v"}


class Target(NamedTuple):
    """kind, index: which component. anchor: the block after which the state is read."""

    kind: str
    index: tuple[int, ...]
    anchor: int


def module_of(model: transformers.PreTrainedModel, target: Target) -> str:
    """The matrix by which the target's half of the block writes; with experts the whole MLP."""
    c = model.config.get_text_config()
    layout, layer = torch_oracle.layout_of(model.config), target.index[0]
    if HALF[target.kind] == "mlp" and getattr(c, "num_local_experts", 0):
        return layout.block.format(l=layer) + "mlp"
    return layout.block.format(l=layer) + layout.matrices["o" if HALF[target.kind] == "attention" else "down"].module


def along(
    model: transformers.PreTrainedModel, prompt: Sequence[int], target: Target, direction: np.ndarray, path: str
) -> torch.Tensor:
    """The gradient of the state at what is written, [T, D]; by the direct path, of what joins the stream at the last token."""
    module = module_of(model, target)
    adds = torch_activations.added_by(model.config, target.index[0], HALF[target.kind])
    with torch_activations.watched(model, {module, adds}) as seen:
        states = torch_oracle.read(model, prompt, direction)
    written = seen.outputs[module]
    if path == "total":
        state = states[target.anchor]
    else:
        scale = getattr(model.config, "residual_multiplier", 1.0)
        added = seen.outputs[adds].reshape(len(prompt), -1)
        state = scale * (added[-1].double() @ torch.as_tensor(direction, dtype=torch.float64))
    return torch.autograd.grad(state, written)[0].reshape(len(prompt), -1)


def read(
    pair: TorchPair,
    prompt: Sequence[int],
    target: Target,
    direction: np.ndarray,
    through: str,
    listened: torch.Tensor,
    kept: Kept,
) -> float:
    """Of base as it is now. listened: [T, D]. through: the input that base's weights as they are now may reach."""
    model, module = pair.base, module_of(pair.base, target)
    with ExitStack() as held:
        if through != "all":
            _hold(held, model, target, through, kept)
        seen = held.enter_context(torch_activations.watched(model, {module}))
        with torch.no_grad():
            torch_oracle.read(model, prompt, direction)
    if target.kind in ("attention", "mlp"):
        return (seen.outputs[module].reshape(listened.shape) * listened).sum().item()
    name = {"head": "o", "neuron": "down"}[target.kind]
    own = torch_activations._features(model.config.get_text_config(), name, target.index[1])
    written = seen.inputs[module].reshape(len(prompt), -1)[:, own] @ torch_activations.matrix_of(model, module)[own]
    return (written * listened).sum().item()


def _hold(held: ExitStack, model: transformers.PreTrainedModel, target: Target, through: str, kept: Kept) -> None:
    """What the other inputs were in base's own run takes the place of what they would be."""
    c, layout = model.config.get_text_config(), torch_oracle.layout_of(model.config)
    stem = layout.block.format(l=target.index[0])
    for name in set(INPUTS.values()) - {INPUTS[through]}:
        module = stem + layout.matrices[name].module
        number = torch_activations.units(c, name)[0]
        own = np.concatenate([torch_activations._features(c, name, unit) for unit in range(number)])
        before = kept[module]

        def change(given, got, own=own, before=before):
            out = got.clone()
            out[..., own] = before[..., own]
            return out

        held.enter_context(torch_activations.changed(model, module, change))


def _kept(model: transformers.PreTrainedModel, prompt: Sequence[int], target: Target) -> Kept:
    layout = torch_oracle.layout_of(model.config)
    stem = layout.block.format(l=target.index[0])
    names = {stem + layout.matrices[name].module for name in "qkv"}
    with torch_activations.watched(model, names) as seen, torch.no_grad():
        model(torch.tensor([list(prompt)]), use_cache=False)
    return seen.outputs


def effects(
    pair: TorchPair,
    target: Target,
    kind: str,
    prompts: Sequence[Sequence[int]],
    direction: np.ndarray,
    *,
    path: str = "total",
    through: str = "all",
) -> np.ndarray:
    """THE loop: what each component below the target's block, put into base, changes of its contribution: [B, *shape]."""
    kept = [_kept(pair.base, prompt, target) for prompt in prompts]
    listened = [along(pair.base, prompt, target, direction, path) for prompt in prompts]

    def reads() -> np.ndarray:
        each = zip(prompts, listened, kept, strict=True)
        return np.array([read(pair, prompt, target, direction, through, *own) for prompt, *own in each])

    before, owned = reads(), torch_oracle.components(pair.base, kind)
    out = np.zeros((len(prompts), *np.max(list(owned), axis=0) + 1))
    for index, slices in owned.items():
        if kind == "embed" or index[0] < target.index[0]:
            with torch_oracle.replaced(pair, slices):
                out[(slice(None), *index)] = reads() - before
    return out
