"""The cheap scores of every head and neuron, against one forward pass of base to the anchor.

    python -m benchmarks.cheap                                  # SmolLM2-135M on the CPU
    python -m benchmarks.cheap --pair llama-3.2-1b              # on an accelerator

The forward pass is the plain model on the padded batch, cut at the anchor.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import pairs, report, timing
from jaxpatch.measuring import effect, inputs, instrument
from jaxpatch.models.config import DecoderConfig
from jaxpatch.scoring import METHODS
from jaxpatch.scoring.method import DEFAULTS
from jaxpatch.shapes import Params

KINDS = ("head", "neuron")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _last_states(config: DecoderConfig, params: Params, prompts: inputs.Inputs, layer: int) -> jax.Array:
    return effect.every_last_state(config, effect.unpatched(params), prompts, layer + 1)[-1]


def scores(tool: instrument.Instrument, method: str) -> dict[str, np.ndarray]:
    """The effects of every component that one method gives, as `jp.score` asks for them."""
    return {kind: answer.effects for kind, answer in METHODS[method](tool, KINDS, DEFAULTS).items()}


def scoring(tool: instrument.Instrument, method: str, num_components: int) -> timing.Side:
    """The side of one method."""
    return timing.Side(f"{method}, all {' and '.join(KINDS)}s", lambda: scores(tool, method), num_components, "scores")


def forward(case: pairs.Case) -> Callable[[], jax.Array]:
    """Base up to the anchor: [B, D]."""
    return lambda: _last_states(case.config, case.pair.base, case.prompts, case.anchor.layer)


def main() -> None:
    chosen = pairs.parser(__doc__).parse_args()
    case = pairs.PAIRS[chosen.pair](chosen.prompts)
    tool = instrument.of_pair(case.pair, case.prompts, case.anchor)
    num_components = sum(len(case.all(kind)) for kind in KINDS)
    sides = [
        timing.Side("forward pass to the anchor", forward(case), case.prompts.tokens.shape[0], "prompts"),
        *(scoring(tool, method, num_components) for method in ("local_linear", "first_order")),
    ]
    timed = timing.in_turn(sides, repeats=chosen.repeats)
    figures = [
        timing.ratio(f"time of {other.side.name} / of the forward pass", other.seconds, timed[0].seconds)
        for other in timed[1:]
    ]
    report.publish(
        report.Report(
            name=f"cheap-{chosen.pair}-{chosen.prompts}",
            title="Cheap scores of every component, in forward passes",
            shapes=case.shapes,
            groups={"heads and neurons up to the anchor": timed},
            figures=figures,
            facts={},
        )
    )


if __name__ == "__main__":
    main()
