"""The conductor: one call per stage, in the order of the method. No arithmetic of its own."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxpatch.measuring import instrument, outcomes, read_outs, sweep, writing
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.inputs import checked as checked_inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.scoring import METHODS, scores
from jaxpatch.scoring.method import DEFAULTS, Options, all_silent
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths
from jaxpatch.validating import controls, curves


def gates(pair: Pair, chosen, value: float = 1.0) -> Gates:
    """Gates for this pair: `value` at the chosen components, 0 elsewhere.

    Args: chosen: kind -> list of (layer, index), "all", or an array of the kind's shape.

    Raises: KeyError, IndexError naming every component that does not exist.

    Example:
        >>> from jaxpatch import testing
        >>> gates(testing.tiny_pair(), {"head": [(2, 1)]})["head"].shape
        (3, 4)
    """
    return components.gates(components.of_decoder(pair.base), chosen, value)


def score(
    pair: Pair,
    inputs: Inputs,
    anchor: Anchor,
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    aggregate: str = "mean_of_ratios",
    top: int = 150,
    steps: int = 16,
    seed: int = 0,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> scores.Scores:
    """How far each component's own parameters recover the control state: E_w.

    ``E_w(c) = mean_x [F_a(M_c, x) - F_a(base, x)] / [F_a(special, x) - F_a(base, x)]``, M_c the base with special's weights in c.

    Args:
        pair: the two models.
        inputs: fixed prompts, [B, T] tokens and [B] lengths.
        anchor: where and along what the control state is read.
        kinds: of component: "head", "kv", "neuron", "attention", "mlp", "layer", "matrix", "norm", "final_norm", "embed",
            "unembed".
        method: "exact", "first_order", "local_linear", "integrated" or "screened".
        aggregate: "mean_of_ratios" or "ratio_of_means".
        top: components replaced because they rank high, and as many random ones (screened only).
        steps: points along the path (integrated only).
        seed: of the bootstrap and of what is drawn.
        progress: called with a kind, gives a function called with (done, total).

    Returns: `Scores`.

    Raises: KeyError, ValueError for unknown kinds or methods, bad inputs, a bad anchor, or gaps that are all near zero.

    References: Sun et al., arXiv 2604.13694; the normaliser is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchor = Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",))
        >>> found.values["head"].shape, found.effects["head"].shape
        ((3, 4), (4, 3, 4))
    """
    _refuse_bad_options(pair, inputs, anchor, kinds, method, aggregate, top, steps, seed)
    return score_with(
        instrument.of_pair(pair, inputs, anchor),
        kinds=tuple(kinds),
        method=method,
        layer=int(anchor.layer),
        aggregate=aggregate,
        options=Options(top, steps, seed, progress),
    )


def score_with(
    tool: instrument.Instrument,
    *,
    kinds: tuple[str, ...],
    method: str = "exact",
    layer: int = -1,
    aggregate: str = "mean_of_ratios",
    options: Options = DEFAULTS,
) -> scores.Scores:
    """`score` for anything that has an instrument: a toy, or any parameter tree (`instrument.of_effect`)."""
    is_kept = scores.kept_inputs(tool.gap, tool.base)
    answers = METHODS[method](tool, kinds, options)
    ends = {k: scores.intervals(a.effects, tool.gap, is_kept, aggregate, options.seed) for k, a in answers.items()}
    return scores.Scores(
        values={k: scores.normalised(a.effects, tool.gap, is_kept, aggregate) for k, a in answers.items()},
        effects={k: a.effects for k, a in answers.items()},
        low={k: end[0] for k, end in ends.items()},
        high={k: end[1] for k, end in ends.items()},
        gap=tool.gap,
        is_kept=is_kept,
        ceilings=_ceilings(tool, kinds, is_kept, aggregate),
        method=method,
        aggregate=aggregate,
        layer=layer,
        partition=tool.partition,
        screening={k: a.screening for k, a in answers.items() if a.screening is not None},
    )


def validate(
    pair: Pair,
    inputs: Inputs,
    anchor: Anchor,
    found: scores.Scores,
    *,
    num_random: int = 3,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> tuple[curves.Curve, ...]:
    """Restoration and knockout curves of a ranking, with controls of equal size.

    The first k components by score, special's into base (restoration) or base's into special (knockout), read by anchor recovery
    and by ``KL(special || patched)`` of next tokens. Controls: random orders, and largest ``|W_special - W_base|``; both take as many
    components of each kind as the ranking does.

    Args:
        inputs: prompts; those of the scores, or better, others.
        found: what `score` returned. Of overlapping kinds (a head and its layer) only the finer take part.
        num_random: random orders that are averaged.

    Returns: a `Curve` for each order and mode; none where no scored component can reach the anchor.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> drawn = validate(pair, prompts, anchor, score(pair, prompts, anchor))
        >>> sorted({curve.name for curve in drawn})
        ['largest change', 'random', 'top']
    """
    outcome_fn = outcomes.of_pair(pair, inputs, anchor)
    tool = instrument.of_pair(pair, inputs, anchor)
    kinds = components.disjoint(tool.partition, tuple(found.values))
    values = {kind: found.values[kind] for kind in kinds}
    order = controls.ranked(values, tool.reach)
    if not len(order.places):
        return ()
    changes = {k: np.asarray(components.delta_norms(pair.base, pair.special, tool.partition[k])) for k in kinds}
    orders = {
        "top": [order],
        "largest change": [controls.matched(order, changes)],
        "random": [controls.shuffled(order, seed + number) for number in range(num_random)],
    }
    return curves.draw(
        outcome_fn,
        orders,
        {kind: tool.partition[kind].shape for kind in kinds},
        curves.sizes(len(order.places)),
        tool.base,
        tool.gap,
        aggregate=found.aggregate,
        seed=seed,
        progress=progress,
    )


def generate(pair: Pair, params: Params, inputs: Inputs, *, max_new: int = 64) -> Sequence[str]:
    """What a model writes after each prompt, greedily.

    Args: params: pair.base, pair.special, or what `patch` made. max_new: tokens at most.

    Returns: B texts. Raises: ValueError without a tokenizer.
    """
    return writing.write(pair, params, inputs, max_new=max_new)


def _ceilings(
    tool: instrument.Instrument, kinds: tuple[str, ...], is_kept: np.ndarray, aggregate: str
) -> dict[str, float]:
    """What patching whole kinds, the paper's two kinds together, all that can be patched together, and everything recovers."""
    wanted: dict[str, tuple[str, ...]] = {f"all {kind}": (kind,) for kind in kinds}
    if {"head", "neuron"} <= tool.partition.keys():
        wanted["head + neuron"] = ("head", "neuron")
    if len(together := components.disjoint(tool.partition, kinds)) > 1:
        wanted[" + ".join(together)] = together
    rows = np.arange(tool.base.shape[0])
    recovered = {}
    for name, together in wanted.items():
        patched = tool.effect(components.gates(tool.partition, dict.fromkeys(together, "all")), rows)
        recovered[name] = float(scores.normalised(np.asarray(patched) - tool.base, tool.gap, is_kept, aggregate))
    return recovered | {"everything": float(scores.normalised(tool.gap, tool.gap, is_kept, aggregate))}


def _refuse_bad_options(
    pair: Pair,
    inputs: Inputs,
    anchor: Anchor,
    kinds: Sequence[str],
    method: str,
    aggregate: str,
    top: int,
    steps: int,
    seed: int,
) -> None:
    """Raises for all that can be refused before any work: KeyError where only kinds are unknown, else ValueError."""
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds: wanted a tuple of names such as ('head', 'neuron'); got {kinds!r}.")
    faults, unknown = [], []
    try:
        components.refuse_unknown(components.of_decoder(pair.base), kinds)
    except KeyError as error:
        unknown = [error.args[0]]
    for check in (lambda: checked_inputs(inputs, pair.config), lambda: read_outs.checked(anchor, pair.config)):
        try:
            check()
        except ValueError as error:
            faults.append(str(error))
    if method not in METHODS:
        faults.append(f"unknown method {method!r}; {paths.did_you_mean(method, METHODS)}")
    if aggregate not in scores.AGGREGATES:
        faults.append(f"unknown aggregate {aggregate!r}; {paths.did_you_mean(aggregate, scores.AGGREGATES)}")
    if top < 1 or steps < 1:
        faults.append(f"top and steps must be at least 1; got top={top}, steps={steps}.")
    if seed < 0:
        faults.append(f"seed must not be negative; got {seed}.")
    if faults:
        raise ValueError("\n".join(unknown + faults))
    if unknown:
        raise KeyError(unknown[0])
