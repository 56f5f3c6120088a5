"""The conductor: one call per stage, in the order of the method. No arithmetic of its own."""

import importlib.metadata
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxpatch.measuring import devices, instrument, outcomes, read_outs, sweep, tree_pairs, writing
from jaxpatch.measuring.attribution import REPAIRS
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.inputs import checked as checked_inputs
from jaxpatch.measuring.memory import default_budget
from jaxpatch.measuring.read_outs import Anchor, ReadOut
from jaxpatch.measuring.tree_pairs import Read, TreePair
from jaxpatch.models import layers, layout
from jaxpatch.models.checkpoints import Pair, refuse_others
from jaxpatch.numbers import is_number, is_whole
from jaxpatch.patching import components
from jaxpatch.patching import exchange as exchanges
from jaxpatch.scoring import ACTIVATION_METHODS, EXACT, METHODS, SCREENED, normalise, scores
from jaxpatch.scoring.method import DEFAULTS, Answer, Options, all_silent
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import paths
from jaxpatch.trees.fingerprint import fingerprint
from jaxpatch.validating import controls, curves, smallest


def gates(pair: Pair | TreePair, chosen, value: float = 1.0) -> Gates:
    """Gates for this pair: `value` at the chosen components, 0 elsewhere.

    Args: chosen: kind -> list of (layer, index), "all", or an array of the kind's shape.

    Raises: KeyError for unknown kinds, IndexError for components that do not exist, ValueError for anything else, or more than one
        of these; every fault is named.

    Example:
        >>> from jaxpatch import testing
        >>> gates(testing.tiny_pair(), {"head": [(2, 1)]})["head"].shape
        (3, 4)
    """
    return components.gates(partition_of(pair), chosen, value)


def score(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: ReadOut | Read,
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    mode: str = "restoration",
    site: str = "contribution",
    positions: str = "all",
    repairs: Sequence[str] = (),
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    alpha: float = 0.05,
    sample: int = 200,
    steps: int = 16,
    limit: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    mesh: Mesh | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> scores.Scores:
    """How far each component's own parameters recover the control state: E_w; or its activations: E_a.

    ``E_w(c) = mean_x [F_a(M_c, x) - F_a(base, x)] / [F_a(special, x) - F_a(base, x)]``, M_c the base with special's weights in c. For
    E_a (methods of activation patching) M_c is the base's run with what c writes in special's run on the same input. A component of
    high E_w is a source; one of high E_a and low E_w only passes on what others made of the input: a relay (`place`).

    Args:
        pair: the two models; or a `TreePair`, of which there is no engine: each patch is a run of the whole model.
        inputs: fixed prompts, [B, T] tokens and [B] lengths. Of a `TreePair`: any pytree of arrays [B, ...].
        anchor: where and along what the control state is read; or a `NextToken`. Of a `TreePair`: a pure function
            (params, inputs) -> [B] that reads each input by itself, such as a hidden state along a direction.
        kinds: of component: "head", "kv", "neuron", "attention", "mlp", "layer", "matrix", "norm", "final_norm", "embed",
            "positions", "unembed"; of E_a "head", "neuron", "expert", "attention", "mlp", "layer", and "query", "key", "value", "kv".
            Of a `TreePair`: those of its partition.
        method: "exact", "first_order", "local_linear", "integrated" or "screened". A `TreePair` is screened by first order, and has no
            "local_linear". For E_a "activation" (activation patching, exact), "attribution" (first order), or
            "screened_activation", which ranks by the second and replaces by the first.
        mode: "restoration", or "knockout": base's weights are put into special, and the score is the share that is lost. Of
            activations: denoising, and noising.
        site: of E_a, what is exchanged: "contribution", what a component adds to the residual stream by each model's own output
            matrix; or "vector", a head's vector before W_O or a neuron's activation, which the host's matrix writes.
        positions: of E_a, "all", or the "last" token of each prompt.
        repairs: of "attribution", AtP*'s: "qk_fix" recomputes the softmax for queries, keys, values and kv; "grad_drop" averages
            sizes of effects with one block left out on the way back, so such scores have no sign.
        aggregate: "mean_of_ratios" or "ratio_of_means".
        top: how many of the best components must be found (screened only). alpha: the level of that (see `scoring.screened`).
        sample: components drawn at random for it, at least; a larger one notices rarer ones to which the cheap score is blind.
        steps: points along the path (integrated only).
        limit: of each kind no more are truly replaced than so many (screened only), beside the first sample and the first `top`; what
            is promised then is in `Scores.screening`.
        seed: of the bootstrap and of what is drawn.
        memory: bytes that the engine may hold beside the two models, on each device; half of what is free where None.
        mesh: devices that share exact sweeps: ``jax.make_mesh((4, 2), ("candidates", "model"))`` cuts each batch of candidates in four
            and each block's heads and neurons in two. Among several processes each makes the same call and gets all the scores.
        journal: a `Journal`, so that a killed run can be gone on with. The same call with the same folder gives the same bits. A
            `TreePair` takes neither mesh nor journal.
        progress: called with a kind, gives a function called with (done, total).

    Returns: `Scores`.

    Raises: KeyError, ValueError for unknown kinds or methods, bad inputs, a bad anchor, or gaps that are all near zero;
        MemoryError where not even one candidate fits.

    References: Sun et al., arXiv 2604.13694; the normaliser is ours. Activation patching across two models: the same paper; attribution
        patching: Syed et al., arXiv 2310.10348; its repairs: Kramár et al., arXiv 2403.00745.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchor = Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",))
        >>> found.values["head"].shape, found.effects["head"].shape
        ((3, 4), (4, 3, 4))
        >>> relayed = score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",), method="activation")
        >>> relayed.values["head"].shape
        (3, 4)
    """
    return score_each(
        pair,
        inputs,
        (anchor,),
        kinds=kinds,
        method=method,
        mode=mode,
        site=site,
        positions=positions,
        repairs=repairs,
        aggregate=aggregate,
        top=top,
        alpha=alpha,
        sample=sample,
        steps=steps,
        limit=limit,
        seed=seed,
        memory=memory,
        mesh=mesh,
        journal=journal,
        progress=progress,
    )[0]


def score_each(
    pair: Pair | TreePair,
    inputs: Any,
    wanted: Sequence[ReadOut | Read],
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "exact",
    mode: str = "restoration",
    site: str = "contribution",
    positions: str = "all",
    repairs: Sequence[str] = (),
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    alpha: float = 0.05,
    sample: int = 200,
    steps: int = 16,
    limit: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    mesh: Mesh | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> tuple[scores.Scores, ...]:
    """`score` for several read-outs at once: one patched run serves them all.

    Args: wanted: anchors, at any layers, and `NextToken`; or functions that read a `TreePair`. Of several, the first one ranks where a
        method ranks (screened). The rest as for `score`.

    Returns: `Scores` for each read-out, in their order.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchors = [Anchor(layer=layer, direction=jnp.eye(16)[0]) for layer in (1, 2)]
        >>> found = score_each(testing.tiny_pair(), testing.tiny_inputs(), anchors, kinds=("layer",))
        >>> [int((scores.effects["layer"] != 0).any(0).sum()) for scores in found]
        [2, 3]
    """
    options = Options(top, alpha, sample, steps, aggregate, seed, progress, limit)
    kinds = tuple(kinds) if isinstance(kinds, Iterable) and not isinstance(kinds, str) else kinds
    wanted = tuple(wanted) if isinstance(wanted, Iterable) else wanted
    exchange = exchanges.Exchange(site, positions)
    repairs = (repairs,) if isinstance(repairs, str) else tuple(repairs)
    refuse_bad_options(pair, inputs, wanted, kinds, method, mode, exchange, repairs, options, memory, mesh, journal)
    if isinstance(pair, TreePair):
        reads = tree_pairs.several(wanted)
        tool = tree_pairs.instrument_of(pair, inputs, reads, mode=mode, budget=None if memory is None else int(memory))
        return scores_with(tool, kinds=tuple(kinds), method=method, layers=[-1] * len(reads), options=options)
    wanted = read_outs.several(wanted)
    budget = default_budget(pair.base) if memory is None else int(memory)
    asked = {"kinds": kinds, "method": method, "mode": mode, "mesh": None if mesh is None else dict(mesh.shape)}
    if method in ACTIVATION_METHODS:
        asked |= {**exchange._asdict(), "repairs": repairs}
    told = devices.agreed(identity(pair, inputs, wanted, budget, options=options, **asked))
    budget = int(journal.begin(told)["budget"])
    tool = instrument.of_pair(
        pair,
        inputs,
        wanted,
        mode=mode,
        exchange=exchange if method in ACTIVATION_METHODS else None,
        repairs=repairs,
        budget=budget,
        mesh=mesh,
        journal=journal,
    )
    layers = [int(read_outs.stop(pair.config, [each])) - 1 for each in wanted]
    return scores_with(tool, kinds=tuple(kinds), method=method, layers=layers, options=options)


def score_with(
    tool: instrument.Instrument, *, kinds: tuple[str, ...], method: str = "exact", options: Options = DEFAULTS
) -> scores.Scores:
    """`score` for anything that has an instrument of one read-out: a toy, or any parameter tree (`instrument.of_effect`)."""
    return scores_with(tool, kinds=kinds, method=method, layers=[-1], options=options)[0]


def scores_with(
    tool: instrument.Instrument,
    *,
    kinds: tuple[str, ...],
    method: str,
    layers: Sequence[int],
    options: Options,
    ceilings: bool = True,
) -> tuple[scores.Scores, ...]:
    """The scores of each read-out of an instrument. layers: where each reads. ceilings: whether whole kinds are patched as well."""
    rows = np.split(np.arange(len(tool.base)), tool.num_read_outs)
    kept = [normalise.kept_inputs(tool.gap[own], tool.base[own]) for own in rows]
    answers = (METHODS | ACTIVATION_METHODS)[method](tool, kinds, options)
    together = _ceilings(tool, kinds) if ceilings else {}
    apart = _noise(tool, answers, method)
    made = []
    for own, is_kept, layer, seen in zip(rows, kept, layers, tool.seen, strict=True):
        gap = tool.gap[own]
        effects = {kind: np.where(seen[kind], answer.effects[own], 0) for kind, answer in answers.items()}

        def value(effect, gap=gap, is_kept=is_kept):
            return normalise.normalised(effect, gap, is_kept, options.aggregate)

        ends = {k: normalise.intervals(e, gap, is_kept, options.aggregate, options.seed) for k, e in effects.items()}
        whole = {name: patched[own] - tool.base[own] for name, patched in together.items()}
        made.append(
            scores.Scores(
                values={kind: value(effect) for kind, effect in effects.items()},
                effects=effects,
                low={kind: end[0] for kind, end in ends.items()},
                high={kind: end[1] for kind, end in ends.items()},
                gap=gap,
                is_kept=is_kept,
                ceilings={name: float(value(effect)) for name, effect in whole.items()},
                whole=whole,
                noise={k: float(np.abs(value(each[own])).max()) for k, each in apart.items() if seen[k].any()},
                method=method,
                mode=tool.mode,
                aggregate=options.aggregate,
                layer=layer,
                partition=tool.partition,
                exchange=tool.exchange,
                repairs=tool.repairs,
                screening={kind: a.screening for kind, a in answers.items() if a.screening is not None},
            )
        )
    for each in made:
        for kind in each.drowned:
            warnings.warn(
                f"{kind}: rounding alone moves scores by up to {each.noise[kind]:.2g}, and the largest is "
                f'{np.abs(each.values[kind]).max():.2g}. Compute in float32: load the pair with dtype="float32", or cast '
                'both trees of your own. Of decoders method="local_linear" is float32 inside the blocks in any case.',
                stacklevel=2,
            )
        for kind, values in each.values.items():
            if bad := int((~np.isfinite(values)).sum()):
                warnings.warn(
                    f"{kind}: {bad} of {values.size} scores are not numbers: their patched runs overflow. Load the pair with "
                    'dtype="float32" or "bfloat16", or cast both trees of your own.',
                    stacklevel=2,
                )
    return tuple(made)


def validate(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    *,
    others: Mapping[str, scores.Scores] | None = None,
    sizes: Sequence[int] | None = None,
    modes: Sequence[str] = curves.MODES,
    num_random: int = 3,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> tuple[curves.Curve, ...]:
    """Restoration and knockout curves of a ranking, with controls of equal size.

    The first k components by score, special's into base (restoration) or base's into special (knockout), read by anchor recovery
    and by ``KL(special || patched)`` of next tokens. Controls: random orders, random ones in which each component gives way to one of
    its own layer (where each has several of a kind) or to one that special changed as much, largest ``|W_special - W_base|``, and what
    else is given; all take as many components of each kind as the ranking does.

    Args:
        inputs, anchor: as for `score`; the inputs of the scores, or better, others.
        found: what `score` returned. Of overlapping kinds (a head and its layer) only the finer take part.
        others: name -> scores of the same kinds by which other orders are drawn: E_a, first order. "top" and the controls' own names
            are taken.
        sizes: k that are patched; on a log grid up to all that can reach the anchor where None.
        modes: "restoration", "knockout", or both.
        num_random: random orders that are averaged, of each sort; at least 1.

    Returns: a `Curve` for each order and mode; none where no scored component can reach the anchor. Of a `TreePair`, which has no next
        token, `kl` is NaN.

    Raises: ValueError for bad options, all at once; for sizes beyond all that there is; and for others' scores that lack a kind.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> drawn = validate(pair, prompts, anchor, score(pair, prompts, anchor))
        >>> sorted({curve.name for curve in drawn})
        ['largest change', 'random', 'random, same changes', 'random, same layers', 'top']
    """
    wrong = number_faults({"num_random": (num_random, 1), "seed": (seed, 0)})
    strange = curves.size_faults(sizes)
    wrong += strange
    if sizes is not None and not strange and list(sizes) != sorted(set(sizes)):
        wrong.append(f"sizes: wanted each larger than the one before; got {list(sizes)}.")
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if not modes or set(modes) - set(curves.MODES) or len(set(modes)) < len(modes):
        wrong.append(f"modes: wanted some of {', '.join(curves.MODES)}; got {', '.join(map(repr, modes)) or 'none'}.")
    others = others or {}
    if taken := [name for name in others if name in ("top", *controls.NAMES)]:
        wrong.append(f"others: {', '.join(map(repr, taken))} is there by itself; give yours another name.")
    if wrong:
        raise ValueError("validate: " + " ".join(wrong))
    judged = _judged("validate", pair, inputs, anchor, found)
    if judged is None:
        return ()
    tool, outcome_fn, order, shapes = judged
    kinds = tuple(shapes)
    if missing := [
        f"{name}: no {kind!r}" for name, each in others.items() for kind in kinds if kind not in each.values
    ]:
        raise ValueError(f"others: wanted scores of {', '.join(kinds)}; {'; '.join(missing)}.")
    if apart := [
        fault for name, each in others.items() for fault in shape_faults(f"others: {name}", each, tool.partition, kinds)
    ]:
        raise ValueError("validate: " + " ".join(apart))
    if sizes is not None and sizes[-1] > len(order.places):
        raise ValueError(
            f"validate: sizes: wanted no more than were scored and can reach the anchor, {len(order.places):,}; got {sizes[-1]:,}."
        )
    changes = {k: np.asarray(components.delta_norms(pair.base, pair.special, tool.partition[k])) for k in kinds}
    ranked = {name: each.values for name, each in others.items()}
    beside = controls.of_equal_size(order, shapes, changes, ranked, range(seed, seed + num_random))
    return curves.draw(
        outcome_fn,
        {"top": [order], **beside},
        shapes,
        curves.sizes(len(order.places)) if sizes is None else np.array(sizes),
        tool.base,
        tool.gap,
        modes=modes,
        aggregate=found.aggregate,
        seed=seed,
        progress=progress,
    )


SAME = 1e-3
"""Shares of the gap that two runs of the same patch may be apart."""


class Ranking(NamedTuple):
    """Components by falling score, and what measures them. order: those that can matter. shapes: of its kinds' gates."""

    tool: instrument.Instrument
    order: controls.Order
    shapes: Mapping[str, tuple[int, ...]]


def ranking(
    asker: str,
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    budget: int | None = None,
) -> Ranking:
    """The ranking of some scores, as another call (asker) goes by it. Of overlapping kinds only the finer take part."""
    if isinstance(pair, TreePair) and callable(anchor):
        tool = tree_pairs.instrument_of(pair, inputs, anchor, budget=budget)
    elif isinstance(pair, Pair) and isinstance(anchor, Anchor):
        tool = instrument.of_pair(pair, inputs, anchor, budget=budget)
    else:
        raise ValueError(
            f"{asker}: wanted an Anchor, or of a TreePair a function (params, inputs) -> [B], along which recovery is read; got "
            f"{type(anchor).__name__}."
        )
    if wrong := shape_faults("found", found, tool.partition):
        raise ValueError(f"{asker}: " + " ".join(wrong))
    kinds = components.disjoint(tool.partition, tuple(found.values))
    order = controls.ranked({kind: found.values[kind] for kind in kinds}, tool.reach)
    return Ranking(tool, order, {kind: tool.partition[kind].shape for kind in kinds})


def shape_faults(
    name: str, found: scores.Scores, partition: components.Partition, kinds: Iterable[str] | None = None
) -> list[str]:
    """What shows that scores are of other models than those of a partition. kinds: those that matter; all where None."""
    faults = []
    for kind in found.values if kinds is None else kinds:
        if kind not in partition:
            faults.append(
                f"{name}: its {kind!r} is no kind of this pair's weights; score with weights of these models."
            )
        elif (shape := found.values[kind].shape) != (wanted := partition[kind].shape):
            faults.append(f"{name}: {kind!r} has shape {shape}; this pair's has {wanted}: score these models.")
    return faults


class _Judged(NamedTuple):
    """What sets of components are judged by: the order of those that can matter, and a way to patch some of them."""

    tool: instrument.Instrument
    outcome_fn: Callable[[Any, str], outcomes.Outcome]
    order: controls.Order
    shapes: Mapping[str, tuple[int, ...]]


def _judged(
    asker: str, pair: Pair | TreePair, inputs: Any, anchor: Anchor | Read, found: scores.Scores
) -> _Judged | None:
    """None where no scored component can reach the anchor."""
    tool, order, shapes = ranking(asker, pair, inputs, anchor, found)
    outcome_of: Any = tree_pairs.outcome_of if isinstance(pair, TreePair) else outcomes.of_pair
    return _Judged(tool, outcome_of(pair, inputs, anchor), order, shapes) if len(order.places) else None


def smallest_sets(
    pair: Pair | TreePair,
    inputs: Any,
    anchor: Anchor | Read,
    found: scores.Scores,
    drawn: Sequence[curves.Curve],
    *,
    shares: Sequence[float] = smallest.SHARES,
    seed: int = 0,
    progress: sweep.Progress = sweep.silent,
) -> tuple[smallest.Smallest, ...]:
    """How many of a ranking's first components it takes to recover 50, 80 and 95 % of the gap, special's into base.

    Halves between two sizes of the drawn curve, so a share takes some ten runs. Where recovery falls again as more are patched, there
    are several such sizes, and this is one of the first rise on the curve's grid.

    Args:
        pair, inputs, anchor, found: as they were given to `validate`.
        drawn: what `validate` returned; its restoration curve "top" is where the search begins.
        shares: of the gap, each above 0.
        seed: of the bootstrap over inputs.

    Returns: a `Smallest` for each share; none where no scored component can reach the anchor.

    Raises: ValueError for shares that are not above 0, and for curves that are not of this ranking, or of other inputs.

    Example:
        >>> from jaxpatch import testing
        >>> import jax.numpy as jnp
        >>> pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = score(pair, prompts, anchor)
        >>> half, *_ = smallest_sets(pair, prompts, anchor, found, validate(pair, prompts, anchor, found, num_random=1))
        >>> sum(half.counts.values()) == half.size, bool(half.recovered.value >= 0.5)
        (True, True)
    """
    if wrong := [share for share in shares if not 0 < share < math.inf]:
        raise ValueError(f"shares: wanted numbers above 0, of the gap; got {', '.join(map(str, wrong))}.")
    judged = _judged("smallest_sets", pair, inputs, anchor, found)
    if judged is None:
        return ()
    tool, outcome_fn, order, shapes = judged
    top = [curve for curve in drawn if (curve.name, curve.mode) == ("top", "restoration")]
    if len(top) != 1 or top[0].ks[-1] != len(order.places):
        got = ", ".join(f"{curve.name} ({curve.mode}) of {int(curve.ks[-1]):,}" for curve in drawn) or "none"
        raise ValueError(
            f"smallest_sets: wanted the curves that validate drew of these scores, of its own sizes, one called top (restoration) of "
            f"{len(order.places):,} components; got {got}."
        )
    is_kept = normalise.kept_inputs(tool.gap, tool.base)

    def recover(count: int) -> smallest.Recovered:
        effects = outcome_fn(controls.mask(order, count, shapes), "restoration").read - tool.base
        value = normalise.normalised(effects, tool.gap, is_kept, found.aggregate)
        return smallest.Recovered(
            float(value), *map(float, normalise.intervals(effects, tool.gap, is_kept, found.aggregate, seed))
        )

    points = zip(top[0].ks.tolist(), top[0].recovery, top[0].low, top[0].high, strict=True)
    tried = {k: smallest.Recovered(*map(float, each)) for k, *each in points}
    first = int(top[0].ks[0])
    if not math.isclose(again := recover(first).value, tried[first].value, rel_tol=SAME, abs_tol=SAME):
        raise ValueError(
            f"smallest_sets: wanted the curves that validate drew on these inputs, along this anchor; the first {first} of theirs "
            f"recover {tried[first].value:.3g}, and here {again:.3g}."
        )
    ends = smallest.search(recover, tried, shares, progress)
    return tuple(
        smallest.Smallest(share, None, {}, None)
        if end is None
        else smallest.Smallest(share, end[0], controls.counts(order, end[0]), end[1])
        for share, end in zip(shares, ends, strict=True)
    )


def generate(pair: Pair, params: Params, inputs: Inputs, *, max_new: int = 64) -> Sequence[str]:
    """What a model writes after each prompt, greedily.

    Args: params: pair.base, pair.special, or what `patch` made. max_new: tokens at most.

    Returns: B texts. Raises: ValueError without a tokenizer, or for a pair that is not of decoders.
    """
    refuse_others(
        pair, "generate", "Let models of your own write by your own code, on the parameters that patch makes."
    )
    return writing.write(pair, params, inputs, max_new=max_new)


def identity(pair: Pair, inputs: Inputs, wanted: Sequence[ReadOut], budget: int, **asked: Any) -> dict[str, str]:
    """All that the numbers depend on, in words."""
    base = jax.tree.leaves(pair.base)[0]
    options = asked.pop("options")._asdict()
    del options["progress"]
    tokens, lengths = map(np.asarray, checked_inputs(inputs, pair.config))
    tokens = np.where(np.arange(tokens.shape[1]) < lengths[:, None], tokens, 0)
    return {
        "base": fingerprint(pair.base),
        "special": fingerprint(pair.special),
        **{f"{name} of the models": str(value) for name, value in vars(pair.config).items()},
        "dtype": str(base.dtype),
        "prompts": f"{len(tokens)}, {fingerprint({'tokens': tokens, 'lengths': lengths})}",
        "anchor": ", ".join(map(read_outs.described, wanted)),
        "precision": layers.precision(),
        "device": next(iter(base.devices())).device_kind,
        "jax": jax.__version__,
        "jaxpatch": importlib.metadata.version("jaxpatch"),
        "budget": str(budget),
        **{name: str(value) for name, value in (asked | options).items()},
    }


NUM_NOISE = 4
"""Components of each kind on which the noise floor is measured."""


def among(tool: instrument.Instrument, kinds: Sequence[str], gates: Gates) -> Gates:
    """The same, with 0 for all others of some kinds, and of the paper's two: gates of the same kinds share one compilation."""
    every = (kind for kind in dict.fromkeys((*kinds, "head", "neuron")) if kind in tool.partition)
    return {kind: gates.get(kind, np.zeros(tool.partition[kind].shape, np.float32)) for kind in every}


def _noise(tool: instrument.Instrument, answers: Mapping[str, Answer], method: str) -> dict[str, np.ndarray]:
    """How far correct computations of the same effects are apart, [X, 2 n]; nothing for kinds without an exact effect.

    What the engine found stands against the definition in the highest precision, the same arithmetic in another order; and that against
    itself, a second time. What lies between them is rounding.
    """
    apart, kinds = {}, tuple(answers)
    for kind, answer in answers.items():
        known = tool.reach[kind] if answer.screening is None else answer.screening.replaced
        places = np.argwhere(known) if method in (*EXACT, *SCREENED) else np.zeros((0, known.ndim), int)
        some = places[np.linspace(0, len(places) - 1, min(NUM_NOISE, len(places))).astype(int)]
        if not len(some):
            continue
        with jax.default_matmul_precision("highest"):
            read = [
                np.stack([tool.read(among(tool, kinds, components.gates(tool.partition, {kind: at}))) for at in which])
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
        name: tool.read(among(tool, kinds, {kind: tool.reach[kind].astype(np.float32) for kind in together}))
        for name, together in wanted.items()
    }
    return patched | {"everything": tool.special}


def partition_of(pair: Pair | TreePair) -> components.Partition:
    """Who owns what of either sort of pair."""
    return pair.partition if isinstance(pair, TreePair) else components.of_decoder(pair.base)


def refuse_bad_options(
    pair: Pair | TreePair,
    inputs: Any,
    wanted: Any,
    kinds: Sequence[str],
    method: str,
    mode: str,
    exchange: exchanges.Exchange,
    repairs: tuple[str, ...],
    options: Options,
    memory: float | None,
    mesh: Mesh | None,
    journal: sweep.Journal,
) -> None:
    """Raises for all that can be refused before any work: KeyError where only kinds are unknown, else ValueError."""
    faults, unknown = _kind_faults(pair, kinds, method)
    faults += exchanges.faults(exchange) + _exchange_faults(exchange, repairs, method)
    if isinstance(pair, TreePair):
        faults += _tree_faults(pair, inputs, wanted, method, mesh, journal)
    else:
        faults += _prompt_faults(pair, inputs, wanted, mesh)
    for name, value, known in (
        ("mode", mode, instrument.MODES),
        ("method", method, METHODS | ACTIVATION_METHODS),
        ("aggregate", options.aggregate, normalise.AGGREGATES),
    ):
        if value not in known:
            faults.append(f"unknown {name} {value!r}; {paths.did_you_mean(value, known)}")
    fewest = {"top": 1, "sample": 1, "steps": 1, "seed": 0} | ({} if options.limit is None else {"limit": 1})
    faults += number_faults({name: (getattr(options, name), least) for name, least in fewest.items()}, memory)
    if not is_number(options.alpha) or not 0 < options.alpha < 1:
        faults.append(f"alpha: wanted a number between 0 and 1; got {options.alpha!r}.")
    if not isinstance(journal, sweep.Journal):
        faults.append(f"journal: wanted a Journal, as in Journal({str(journal)!r}); got {type(journal).__name__}.")
    if faults:
        raise ValueError("\n".join(unknown + faults))
    if unknown:
        raise KeyError(unknown[0])


def _exchange_faults(exchange: exchanges.Exchange, repairs: tuple[str, ...], method: str) -> list[str]:
    """Options that this method would not look at, and repairs that there are none of."""
    faults = [
        f"{name}={value!r} is for {' and '.join(map(repr, ACTIVATION_METHODS))}; method {method!r} exchanges weights."
        for name, value in exchange._asdict().items()
        if method in METHODS and value != getattr(exchanges.Exchange(), name)
    ]
    faults += [
        f"repairs: unknown {each!r}; {paths.did_you_mean(each, REPAIRS)}" for each in repairs if each not in REPAIRS
    ]
    if repairs and method in METHODS | ACTIVATION_METHODS and method != "attribution":
        faults.append(f"repairs={repairs!r} are for 'attribution', and not for {method!r}.")
    return faults


def _prompt_faults(pair: Pair, inputs: Any, wanted: Any, mesh: Mesh | None) -> list[str]:
    """What is wrong with prompts, read-outs and mesh."""
    faults, asked = [], ()
    try:
        asked = read_outs.several(wanted)
    except ValueError as error:
        faults.append(str(error))
    checks: list[Callable[[], object]] = [lambda: checked_inputs(inputs, pair.config)]
    checks += [lambda each=each: read_outs.checked_for(inputs, each, pair.config) for each in asked]
    checks += [] if mesh is None else [lambda: layout.checked(mesh)]
    for check in checks if isinstance(inputs, Inputs) else checks[:0]:
        try:
            check()
        except ValueError as error:
            faults.append(str(error))
    if not isinstance(inputs, Inputs):
        faults.append(f"inputs: wanted Inputs(tokens, lengths), such as encode makes; got {type(inputs).__name__}.")
    return faults


def _tree_faults(
    pair: TreePair, inputs: Any, wanted: Any, method: str, mesh: Mesh | None, journal: sweep.Journal
) -> list[str]:
    """What is wrong with inputs and the functions that read them; and what only decoders have."""
    faults = []
    try:
        faults += tree_pairs.faults(pair, inputs, tree_pairs.several(wanted))
    except ValueError as error:
        faults.append(str(error))
    if method in ACTIVATION_METHODS:
        faults.append(
            f"method {method!r} exchanges what components write, and of a TreePair's only the parameters are known; take 'exact' or "
            "'first_order'."
        )
    if method == "local_linear":
        faults.append(
            "method 'local_linear' needs each component's own form, and a TreePair has none; take 'first_order', 'integrated', "
            "'screened' or 'exact'."
        )
    if mesh is not None:
        faults.append("mesh: a TreePair takes none; put the arrays of both trees on the devices yourself.")
    if journal is not sweep.FORGETFUL:
        faults.append("journal: a TreePair keeps none; score one kind after the other instead.")
    return faults


def _kind_faults(pair: Pair | TreePair, kinds: Sequence[str], method: str) -> tuple[list[str], list[str]]:
    """What is wrong with the kinds, and a sentence on those that this model lacks."""
    if not isinstance(kinds, tuple) or not kinds or not all(isinstance(kind, str) for kind in kinds):
        return [f"kinds: wanted a tuple of names such as {tuple(partition_of(pair))[:2]}; got {kinds!r}."], []
    faults = [f"kinds: {kind} named more than once." for kind in components.repeated(kinds)]
    try:
        if method in ACTIVATION_METHODS and isinstance(pair, Pair):
            exchanges.refuse_unknown(exchanges.of_decoder(pair.base), kinds)
        else:
            components.refuse_unknown(partition_of(pair), kinds)
    except KeyError as error:
        return faults, [error.args[0]]
    return faults, []


def number_faults(whole: Mapping[str, tuple[Any, int]], memory: float | None = None) -> list[str]:
    """What is wrong with memory= and with options that are whole numbers. whole: name -> value, and the least that it may be.

    >>> number_faults({"top": (0, 1), "seed": (3, 0), "steps": (2.0, 1)})
    ['top: wanted a whole number, at least 1; got 0.', 'steps: wanted a whole number, at least 1; got 2.0.']
    """
    faults = []
    if memory is not None and not (is_number(memory) and memory >= 1):
        faults.append(f"memory: wanted a number of bytes; got {memory!r}.")
    for name, (value, fewest) in whole.items():
        if not is_whole(value, fewest):
            faults.append(f"{name}: wanted a whole number, at least {fewest}; got {value!r}.")
    return faults
