"""The conductor: one call per stage, in the order of the method. No arithmetic of its own."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpatch.measuring import devices, instrument, outcomes, read_outs, sweep, writing
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.inputs import checked as checked_inputs
from jaxpatch.measuring.memory import default_budget
from jaxpatch.measuring.read_outs import Anchor, ReadOut
from jaxpatch.models import layers
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import components
from jaxpatch.scoring import METHODS, normalise, scores
from jaxpatch.scoring.method import DEFAULTS, Answer, Options, all_silent
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths
from jaxpatch.trees.fingerprint import fingerprint
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
    anchor: ReadOut,
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    mode: str = "restoration",
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    alpha: float = 0.05,
    steps: int = 16,
    seed: int = 0,
    memory: int | None = None,
    mesh: Mesh | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> scores.Scores:
    """How far each component's own parameters recover the control state: E_w.

    ``E_w(c) = mean_x [F_a(M_c, x) - F_a(base, x)] / [F_a(special, x) - F_a(base, x)]``, M_c the base with special's weights in c.

    Args:
        pair: the two models.
        inputs: fixed prompts, [B, T] tokens and [B] lengths.
        anchor: where and along what the control state is read; or a `NextToken`.
        kinds: of component: "head", "kv", "neuron", "attention", "mlp", "layer", "matrix", "norm", "final_norm", "embed",
            "unembed".
        method: "exact", "first_order", "local_linear", "integrated" or "screened".
        mode: "restoration", or "knockout": base's weights are put into special, and the score is the share that is lost.
        aggregate: "mean_of_ratios" or "ratio_of_means".
        top: how many of the best components must be found (screened only). alpha: the level of that (see `scoring.screened`).
        steps: points along the path (integrated only).
        seed: of the bootstrap and of what is drawn.
        memory: bytes that the engine may hold beside the two models, on each device; half of what is free where None.
        mesh: devices that share exact sweeps: ``jax.make_mesh((4, 2), ("candidates", "model"))`` cuts each batch of candidates in four
            and each block's heads and neurons in two. Among several processes each makes the same call and gets all the scores.
        journal: a `Journal`, so that a killed run can be gone on with. The same call with the same folder gives the same bits.
        progress: called with a kind, gives a function called with (done, total).

    Returns: `Scores`.

    Raises: KeyError, ValueError for unknown kinds or methods, bad inputs, a bad anchor, or gaps that are all near zero;
        MemoryError where not even one candidate fits.

    References: Sun et al., arXiv 2604.13694; the normaliser is ours.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchor = Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",))
        >>> found.values["head"].shape, found.effects["head"].shape
        ((3, 4), (4, 3, 4))
    """
    return score_each(
        pair,
        inputs,
        (anchor,),
        kinds=kinds,
        method=method,
        mode=mode,
        aggregate=aggregate,
        top=top,
        alpha=alpha,
        steps=steps,
        seed=seed,
        memory=memory,
        mesh=mesh,
        journal=journal,
        progress=progress,
    )[0]


def score_each(
    pair: Pair,
    inputs: Inputs,
    wanted: Sequence[ReadOut],
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    mode: str = "restoration",
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    alpha: float = 0.05,
    steps: int = 16,
    seed: int = 0,
    memory: int | None = None,
    mesh: Mesh | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> tuple[scores.Scores, ...]:
    """`score` for several read-outs at once: one patched run serves them all.

    Args: wanted: anchors, at any layers, and `NextToken`. Of several, the first one ranks where a method ranks (screened). The rest
        as for `score`.

    Returns: `Scores` for each read-out, in their order.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchors = [Anchor(layer=layer, direction=jnp.eye(16)[0]) for layer in (1, 2)]
        >>> found = score_each(testing.tiny_pair(), testing.tiny_inputs(), anchors, kinds=("layer",))
        >>> [int((scores.effects["layer"] != 0).any(0).sum()) for scores in found]
        [2, 3]
    """
    options = Options(top, alpha, steps, aggregate, seed, progress)
    _refuse_bad_options(pair, inputs, wanted, kinds, method, mode, options, memory)
    wanted = read_outs.several(wanted)
    budget = default_budget(pair.base) if memory is None else int(memory)
    asked = {"kinds": tuple(kinds), "method": method, "mode": mode, "mesh": None if mesh is None else dict(mesh.shape)}
    identity = devices.agreed(_identity(pair, inputs, wanted, budget, options=options, **asked))
    budget = int(journal.begin(identity)["budget"])
    tool = instrument.of_pair(pair, inputs, wanted, mode=mode, budget=budget, mesh=mesh, journal=journal)
    layers = [int(each.layer) if isinstance(each, Anchor) else pair.config.layers - 1 for each in wanted]
    return scores_with(tool, kinds=tuple(kinds), method=method, layers=layers, options=options)


def score_with(
    tool: instrument.Instrument, *, kinds: tuple[str, ...], method: str = "exact", options: Options = DEFAULTS
) -> scores.Scores:
    """`score` for anything that has an instrument of one read-out: a toy, or any parameter tree (`instrument.of_effect`)."""
    return scores_with(tool, kinds=kinds, method=method, layers=[-1], options=options)[0]


def scores_with(
    tool: instrument.Instrument, *, kinds: tuple[str, ...], method: str, layers: Sequence[int], options: Options
) -> tuple[scores.Scores, ...]:
    """The scores of each read-out of an instrument. layers: where each reads."""
    rows = np.split(np.arange(len(tool.base)), tool.num_read_outs)
    kept = [normalise.kept_inputs(tool.gap[own], tool.base[own]) for own in rows]
    answers = METHODS[method](tool, kinds, options)
    together = _ceilings(tool, kinds)
    apart = _noise(tool, answers, method)
    made = []
    for own, is_kept, layer in zip(rows, kept, layers, strict=True):
        gap, effects = tool.gap[own], {kind: answer.effects[own] for kind, answer in answers.items()}

        def value(effect, gap=gap, is_kept=is_kept):
            return normalise.normalised(effect, gap, is_kept, options.aggregate)

        ends = {k: normalise.intervals(e, gap, is_kept, options.aggregate, options.seed) for k, e in effects.items()}
        made.append(
            scores.Scores(
                values={kind: value(effect) for kind, effect in effects.items()},
                effects=effects,
                low={kind: end[0] for kind, end in ends.items()},
                high={kind: end[1] for kind, end in ends.items()},
                gap=gap,
                is_kept=is_kept,
                ceilings={name: float(value(patched[own] - tool.base[own])) for name, patched in together.items()},
                noise={kind: float(np.abs(value(each[own])).max()) for kind, each in apart.items()},
                method=method,
                mode=tool.mode,
                aggregate=options.aggregate,
                layer=layer,
                partition=tool.partition,
                screening={kind: a.screening for kind, a in answers.items() if a.screening is not None},
            )
        )
    for each in made:
        for kind in each.drowned:
            warnings.warn(
                f"{kind}: rounding alone moves scores by up to {each.noise[kind]:.2g}, and the largest is "
                f'{np.abs(each.values[kind]).max():.2g}. Compute in float32 (load the pair with dtype="float32"), or take '
                'method="local_linear", which is float32 inside the blocks in any case.',
                stacklevel=2,
            )
        for kind, values in each.values.items():
            if bad := int((~np.isfinite(values)).sum()):
                warnings.warn(
                    f"{kind}: {bad} of {values.size} scores are not numbers: their patched runs overflow. Load the pair with "
                    'dtype="float32" or "bfloat16".',
                    stacklevel=2,
                )
    return tuple(made)


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
    if not isinstance(anchor, Anchor):
        raise ValueError(f"validate: wanted an Anchor, along which curves are drawn; got {type(anchor).__name__}.")
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


def _identity(pair: Pair, inputs: Inputs, wanted: Sequence[ReadOut], budget: int, **asked: Any) -> dict[str, str]:
    """All that the numbers depend on, in words."""
    device = next(iter(jax.tree.leaves(pair.base)[0].devices()))
    options = asked.pop("options")._asdict()
    del options["progress"]
    read = {
        f"{number}/{place}": leaf
        for number, each in enumerate(wanted)
        for place, leaf in enumerate(jax.tree.leaves(each))
    }
    about = [repr(jax.tree.structure(each)) for each in wanted]
    return {
        "base": fingerprint(pair.base),
        "special": fingerprint(pair.special),
        "prompts": fingerprint(checked_inputs(inputs, pair.config)._asdict()),
        "anchor": f"{fingerprint(read)} {about}",
        "precision": layers.precision(),
        "device": device.device_kind,
        "jax": jax.__version__,
        "budget": str(budget),
        **{name: str(value) for name, value in (asked | options).items()},
    }


NUM_NOISE = 4
"""Components of each kind on which the noise floor is measured."""


def _noise(tool: instrument.Instrument, answers: Mapping[str, Answer], method: str) -> dict[str, np.ndarray]:
    """How far correct computations of the same effects are apart, [X, 2 n]; nothing for kinds without an exact effect.

    What the engine found stands against the definition in the highest precision, the same arithmetic in another order; and that against
    itself, a second time. What lies between them is rounding.
    """
    apart = {}
    for kind, answer in answers.items():
        known = tool.reach[kind] if answer.screening is None else answer.screening.replaced
        places = np.argwhere(known) if method in ("exact", "screened") else np.zeros((0, known.ndim), int)
        some = places[np.linspace(0, len(places) - 1, min(NUM_NOISE, len(places))).astype(int)]
        if not len(some):
            continue
        with jax.default_matmul_precision("highest"):
            read = [
                np.stack([tool.read(components.gates(tool.partition, {kind: at})) for at in which])
                for which in ([[]], some[:, None], some[:, None])
            ]
        first, again = (reads - read[0] for reads in read[1:])
        engine = np.stack([answer.effects[(slice(None), *place)] for place in some])
        apart[kind] = np.concatenate([engine - first, again - first]).T
    return apart


def _ceilings(tool: instrument.Instrument, kinds: tuple[str, ...]) -> dict[str, np.ndarray]:
    """F with whole kinds patched, the paper's two kinds together, all that can be patched together, and everything: [X] each."""
    wanted: dict[str, tuple[str, ...]] = {f"all {kind}": (kind,) for kind in kinds}
    if {"head", "neuron"} <= tool.partition.keys():
        wanted["head + neuron"] = ("head", "neuron")
    if len(together := components.disjoint(tool.partition, kinds)) > 1:
        wanted[" + ".join(together)] = together
    patched = {
        name: tool.read(components.gates(tool.partition, dict.fromkeys(together, "all")))
        for name, together in wanted.items()
    }
    return patched | {"everything": tool.special}


def _refuse_bad_options(
    pair: Pair,
    inputs: Inputs,
    wanted: Sequence[ReadOut],
    kinds: Sequence[str],
    method: str,
    mode: str,
    options: Options,
    memory: float | None,
) -> None:
    """Raises for all that can be refused before any work: KeyError where only kinds are unknown, else ValueError."""
    if isinstance(kinds, str) or not kinds:
        raise ValueError(f"kinds: wanted a tuple of names such as ('head', 'neuron'); got {kinds!r}.")
    faults, unknown = [], []
    try:
        components.refuse_unknown(components.of_decoder(pair.base), kinds)
    except KeyError as error:
        unknown = [error.args[0]]
    checks: list[Callable[[], object]] = [lambda: checked_inputs(inputs, pair.config)]
    try:
        asked = read_outs.several(wanted)
    except ValueError as error:
        asked = ()
        faults.append(str(error))
    checks += [lambda each=each: read_outs.checked_for(inputs, each, pair.config) for each in asked]
    for check in checks:
        try:
            check()
        except ValueError as error:
            faults.append(str(error))
    if mode not in instrument.MODES:
        faults.append(f"unknown mode {mode!r}; {paths.did_you_mean(mode, instrument.MODES)}")
    if method not in METHODS:
        faults.append(f"unknown method {method!r}; {paths.did_you_mean(method, METHODS)}")
    if options.aggregate not in normalise.AGGREGATES:
        faults.append(
            f"unknown aggregate {options.aggregate!r}; {paths.did_you_mean(options.aggregate, normalise.AGGREGATES)}"
        )
    if memory is not None and not (isinstance(memory, int | float | np.number) and 1 <= memory < np.inf):
        faults.append(f"memory: wanted a number of bytes; got {memory!r}.")
    if repeated := sorted({kind for kind in kinds if list(kinds).count(kind) > 1}):
        faults.append(f"kinds: {', '.join(repeated)} named more than once.")
    if not all(isinstance(number, int | np.integer) for number in (options.top, options.steps, options.seed)):
        faults.append(
            f"top, steps and seed must be whole numbers; got {options.top!r}, {options.steps!r}, {options.seed!r}."
        )
    if options.top < 1 or options.steps < 1:
        faults.append(f"top and steps must be at least 1; got top={options.top}, steps={options.steps}.")
    if not 0 < options.alpha < 1:
        faults.append(f"alpha must lie between 0 and 1; got {options.alpha}.")
    if options.seed < 0:
        faults.append(f"seed must not be negative; got {options.seed}.")
    if faults:
        raise ValueError("\n".join(unknown + faults))
    if unknown:
        raise KeyError(unknown[0])
