"""A method in PyTorch, through the door: weight patching one component after the other, in transformers' own models.

    python -m benchmarks.planted.torch_patching FOLDER OUT.json

Nothing of jaxpatch is used: the pair is what `door.problem` says, the models are loaded by transformers, and each component's slices
are copied from special into base, read, and put back. It is slow, and its scores are those of the board's "weight patching".
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import transformers

from benchmarks.planted import door

METHOD = "weight patching (torch)"


def predictions(asked: door.Problem) -> dict:
    """Scores of all components: mean over prompts of the share of the gap that each recovers. Raises ValueError for models other than
    Llamas."""
    base, special = (
        transformers.AutoModelForCausalLM.from_pretrained(side, dtype=torch.float32).eval()
        for side in (asked.base, asked.special)
    )
    if base.config.model_type != "llama":
        raise ValueError(f"{asked.base}: wanted a Llama, of whose slices this knows; got {base.config.model_type!r}.")
    tokens, lengths = torch.tensor(asked.tokens).long(), torch.tensor(asked.lengths).long()
    direction = torch.tensor(asked.direction)

    @torch.no_grad()
    def read(model) -> np.ndarray:
        states = model(tokens, output_hidden_states=True).hidden_states[asked.layer + 1]
        last = states[torch.arange(len(tokens)), lengths - 1]
        return (last @ direction).double().numpy()

    start, runs = read(base), 2
    gap = read(special) - start
    kept = gap > 0.05 * np.median(gap[gap > 0])
    values = {kind: np.zeros(shape) for kind, shape in asked.kinds.items()}
    for kind, shape in asked.kinds.items():
        for layer, number in itertools.product(*map(range, shape)):
            if layer > asked.layer:
                continue
            before = []
            for ours, theirs in zip(*(slices(model, kind, layer, number) for model in (base, special)), strict=True):
                before.append(ours.clone())
                ours.copy_(theirs)
            runs += 1
            values[kind][layer, number] = ((read(base) - start) / gap)[kept].mean()
            for ours, old in zip(slices(base, kind, layer, number), before, strict=True):
                ours.copy_(old)
    return {
        "method": METHOD,
        "cost": runs,
        "pair": asked.digest,
        "values": {kind: each.tolist() for kind, each in values.items()},
    }


def slices(model, kind: str, layer: int, number: int) -> Iterator[torch.Tensor]:
    """What a component owns, as views into the model's parameters."""
    block = model.model.layers[layer]
    width = block.self_attn.head_dim
    rows = slice(number * width, (number + 1) * width)
    if kind == "head":
        yield block.self_attn.q_proj.weight.data[rows]
        yield block.self_attn.o_proj.weight.data[:, rows]
    elif kind == "kv":
        yield block.self_attn.k_proj.weight.data[rows]
        yield block.self_attn.v_proj.weight.data[rows]
    else:
        yield block.mlp.gate_proj.weight.data[number]
        yield block.mlp.up_proj.weight.data[number]
        yield block.mlp.down_proj.weight.data[:, number]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path, help="of a planted pair")
    options.add_argument("out", type=Path, help="JSON file of predictions")
    chosen = options.parse_args()
    try:
        said = predictions(door.problem(chosen.folder))
    except ValueError as error:
        options.exit(2, f"{error}\n")
    chosen.out.write_text(json.dumps(said) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
