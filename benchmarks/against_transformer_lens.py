"""TransformerLens' activation-patching head sweep beside our weight-patching one, on the same models and prompts.

    pip install transformer-lens
    python -m benchmarks.against_transformer_lens

They are different patches: theirs puts the *activation* that special has in a head into base's run, ours puts special's *weights* of
that head into base. They ask for equal work: one run of base for each head. Theirs runs to the logits, as its utility does; ours to
the anchor. TransformerLens wraps the Hugging Face model of `torch_sweep`; it forces eager attention, to have its hooks.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from transformer_lens import patching  # pyright: ignore[reportMissingImports]
from transformer_lens.model_bridge.sources import (  # pyright: ignore[reportMissingImports]
    build_bridge_from_module,
)

from benchmarks import exact, pairs, report, timing, torch_sweep
from jaxpatch.measuring import instrument


def head_sweep(case: pairs.Case, indices: np.ndarray) -> Callable[[], torch.Tensor]:
    """Activation patches of these heads at all positions, by TransformerLens' own loop; read at the last token of each prompt."""
    sweep = torch_sweep.of_case(case)
    base = bridged(sweep.model)
    special = bridged(torch_sweep.llama(case.config, case.pair.special, sweep.tokens.device))
    with torch.inference_mode():
        _, cache = special.run_with_cache(sweep.tokens, names_filter=lambda name: name.endswith("hook_z"))
    rows = pd.DataFrame(indices, columns=["layer", "head"])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return logits[torch.arange(len(sweep.last), device=logits.device), sweep.last].float().max(dim=-1).values.mean()

    def run() -> torch.Tensor:
        with torch.inference_mode():
            return patching.generic_activation_patch(
                base,
                sweep.tokens,
                cache,
                metric,
                patching.layer_head_vector_patch_setter,
                "z",
                index_df=rows,
            ).cpu()

    return run


def bridged(model: torch.nn.Module):
    """A Hugging Face Llama with TransformerLens' hooks; changed in place."""
    return build_bridge_from_module(model, "LlamaForCausalLM", hf_config=model.config)


def main() -> None:
    options = pairs.parser(__doc__)
    options.add_argument("--sample", type=int, default=16, help="heads that TransformerLens patches; ours takes all")
    chosen = options.parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
    every = case.all("head")
    sample = case.some("head", chosen.sample, chosen.seed)
    theirs = head_sweep(case, sample)
    sides = [
        timing.Side("ours, weight patches", lambda: exact.ours(tool, "head", every), len(every)),
        timing.Side("TransformerLens, activation patches", theirs, len(sample)),
    ]
    timed = timing.in_turn(sides, repeats=chosen.repeats)
    claim = "ours / TransformerLens, patches a second (weights against activations: not one and the same patch)"
    report.publish(
        report.Report(
            name=f"transformer-lens-{chosen.pair}-{chosen.prompts}",
            title="Head sweeps: our weight patches beside TransformerLens' activation patches",
            shapes=case.shapes,
            groups={"heads, one run of base each": timed},
            figures=[timing.ratio(claim, timed[0].rates, timed[1].rates)],
            facts={},
        )
    )


if __name__ == "__main__":
    main()
