"""The conductor of merging: a base and its experts in, one model out, a leaf at a time. No arithmetic."""

import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.merging import METHODS, Method, gating, magnitudes, tensors
from jaxpatch.merging.method import Asked, Choice
from jaxpatch.numbers import is_number, is_whole
from jaxpatch.patching import blend, components
from jaxpatch.patching.components import Partition
from jaxpatch.scoring.scores import Scores
from jaxpatch.shapes import Gates, Params
from jaxpatch.trees import compare, paths


def merge(
    method: str,
    base: Params,
    experts: Sequence[Params],
    *,
    weights: float | Sequence[float] = 1.0,
    density: float | Sequence[float] | None = None,
    scale: float = 1.0,
    seed: int = 0,
    gates: Sequence[Gates] | None = None,
    rest: float = 0.0,
    partition: Partition | None = None,
    statistics: Sequence[Params] | None = None,
    **options: Any,
) -> Params:
    """Several experts of one base made one model.

    ``tau_i = expert_i - base``; what becomes of these is the method's (`merging.METHODS`): which entries are kept, which of them go
    together, and how they are added up. It works in float32, tensor by tensor: layers, and experts of an MLP, each by themselves.

    Args:
        method: linear, slerp, task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties,
            localize_and_stitch, consensus, fisher or regmean.
        base: parameters, a nested dict of arrays or any other pytree. experts: a list of such trees, of the same structure.
        weights: one number, or one for each expert. For slerp, which takes one expert, the part of the way to it.
        density: share of its difference that an expert keeps, 0 to 1: one number, or one each; of methods that keep a part, which must
            be told how much.
        scale: lambda, by which the merged difference is multiplied.
        seed: of whatever is random.
        gates: of each expert, how far each of its components goes into the merge: kind -> array, 0 base, 1 the expert, NaN where
            nothing is said; such as `apportion` makes of scores. The method merges what they leave of the experts.
        rest: the gate of all that these say nothing of. partition: who owns what; a decoder's where it is not given.
        statistics: of each expert, what fisher (`fisher`) and regmean (`moments`) must know of it, and localize_and_stitch may
            (`learn_mask`; its density then says nothing): trees; leaves that these lack are averaged, or treated as without.
        options: the method's own; `merging.METHODS[method].options` says which, and what they mean. Where a published method and
            mergekit's differ, there is an option for both.

    Returns: a new tree of base's dtypes. Where nothing changes it is base to the last bit, and where all of one expert's change is
    taken, the expert. Leaves that hold no floats are base's, and where differences are added up those that all experts share with it
        (as one array: `with_one_base`).

    Raises: ValueError for a method or an option that there is not, for trees that do not match or hold NaN, for numbers out of range:
        all that is wrong at once.

    References: each method's file. The formulas of those that mergekit has are its own (Goddard et al., arXiv 2403.13257), checked
        against it in the tests.

    Example:
        >>> import jaxpatch as jp
        >>> base, one, two = ({"w": jnp.full((2, 2), value)} for value in (1.0, 3.0, 0.0))
        >>> jp.merge("task_arithmetic", base, [one, two], weights=0.5)["w"].tolist()
        [[1.5, 1.5], [1.5, 1.5]]
    """
    numbers = {"weights": weights, "density": density, "scale": scale, "seed": seed, "rest": rest}
    if faults := _faults(method, base, experts, numbers, options, gates, partition, statistics):
        raise _refusal(faults)
    known = METHODS[method]
    chosen = _chosen(known, options)
    leaves = paths.leaves(base)
    own = [paths.leaves(expert) for expert in experts]
    how_far = [{} for _ in own] if gates is None else [_by_leaf(each, rest, partition, base) for each in gates]

    def parts(path: str) -> list[jax.Array]:
        """What the gates leave of each expert's leaf."""
        if gates is None:
            return [jnp.asarray(expert[path]) for expert in own]
        each_gate = [gate.get(path, jnp.float32(rest)) for gate in how_far]
        return [_gated(leaves[path], expert[path], gate) for expert, gate in zip(own, each_gate, strict=True)]

    shares = [1.0] * len(own) if density is None else _each(density, len(own))
    known_of = None if statistics is None else [paths.leaves(each) for each in statistics]
    looks_at_all = known.looks_at_all(chosen) and statistics is None
    cutoffs = _cutoffs(leaves, parts, shares) if looks_at_all else [0.0] * len(own)
    layouts = tensors.layouts({path: np.shape(leaf) for path, leaf in leaves.items()})
    if known.by_entry:
        layouts = {path: layout._replace(inputs=0) for path, layout in layouts.items()}
    merged, is_finite = {}, {}
    for number, (path, leaf) in enumerate(sorted(leaves.items())):
        is_shared = "scale" in known.takes and all(expert[path] is leaf for expert in own)
        if is_shared or not _is_floating(leaf):
            merged[path], is_finite[path] = leaf, not _is_floating(leaf) or compare.is_finite(leaf)
            continue
        size = math.prod(np.shape(leaf)[layouts[path].stack :])
        asked = Asked(
            weights=jnp.asarray(_each(weights, len(own)), jnp.float32),
            density=jnp.asarray(shares, jnp.float32),
            counts=jnp.asarray([_count(share, size, known.least) for share in shares], jnp.int32),
            cutoffs=jnp.asarray(cutoffs, jnp.float32),
            scale=jnp.float32(scale),
            key=jax.random.fold_in(jax.random.key(seed), number),
            statistics=None if known_of is None else _known(known_of, path, known.needs, layouts[path]),
        )
        merged[path], is_finite[path] = _leaf(method, tuple(chosen.items()), layouts[path], leaf, parts(path), asked)
    if faults := [
        f"{who}: {path} holds NaN or infinity"
        for path, is_one in is_finite.items()
        if not is_one
        for who, each in (("base", leaves), *((f"expert {number}", each) for number, each in enumerate(own)))
        if not compare.is_finite(each[path])
    ]:
        raise _refusal(faults)
    return paths.with_leaves(base, merged)


def apportion(
    rule: str,
    scores: Sequence[Scores],
    base: Params,
    *,
    budget: float = 1.0,
    conflict: str = "all",
    kinds: Mapping[str, float] | None = None,
) -> list[Gates]:
    """Which components go into a merged model, from which expert, by what each expert's scores on its own task say: gates for `merge`.

    Args:
        rule: "hard": each component from the expert that scores it highest; "soft": from all, by their shares of its scores above 0;
            "mask": each expert's own best, whoever else takes them, for a method of merging to go on with.
        scores: of each expert, of the same kinds of component. Only components that score above 0 are taken.
        base: the parameters that the scores are of.
        budget: share of the parameters of all scored components that may be taken, 0 to 1; of each expert by "mask", together else.
            The highest scores go first, and the first that does not fit ends it.
        conflict: what "mask" does where several take a component: "all" of each, or "share", equal parts.
        kinds: kind -> what its scores are multiplied by, at least 0, before they are compared with other kinds'; 1 where nothing is
            said.

    Returns: gates of each expert, kind -> array; NaN for components that its anchor does not see.

    Raises: ValueError for all that is wrong at once.

    References: mechanism-aware merging of Sun et al., arXiv 2604.13694, of which the rule is not public; these three are ours.

    Example:
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> pair, prompts = testing.tiny_pair(), testing.tiny_inputs()
        >>> anchors = [jp.Anchor(layer=1, direction=np.eye(16)[number]) for number in (0, 1)]
        >>> scores = [jp.score(pair, prompts, anchor) for anchor in anchors]
        >>> gates = jp.apportion("hard", scores, pair.base, budget=0.1)
        >>> both = gates[0]["neuron"] * gates[1]["neuron"]
        >>> float(np.nansum(both)), jp.merge("task_arithmetic", pair.base, [pair.special] * 2, gates=gates).keys() == pair.base.keys()
        (0.0, True)
    """
    if faults := apportion_faults(rule, scores, budget, conflict, kinds):
        raise ValueError("nothing can be apportioned:\n" + "\n".join(f"  - {fault}" for fault in faults))
    by_kind = {} if kinds is None else kinds
    values = [
        {
            kind: np.where(each.reach[kind], np.asarray(own, float) * by_kind.get(kind, 1.0), np.nan)
            for kind, own in each.values.items()
        }
        for each in scores
    ]
    shapes = {path: np.shape(leaf) for path, leaf in paths.leaves(base).items()}
    sizes = {kind: components.sizes(scores[0].partition[kind], shapes) for kind in values[0]}
    gates = gating.RULES[rule](values, sizes, budget)
    return gating.shared(gates) if conflict == "share" else gates


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _leaf(
    method: str,
    options: tuple[tuple[str, Any], ...],
    layout: tensors.Layout,
    base: jax.Array,
    experts: Sequence[jax.Array],
    asked: Asked,
) -> tuple[jax.Array, jax.Array]:
    """One leaf, merged tensor by tensor, so that all that is made of one stays in the cache; and whether all that was looked at is
    finite."""
    known, inside = METHODS[method], base.shape[layout.stack :]

    def rows(tensor: jax.Array) -> jax.Array:
        return tensors.split(tensor, layout._replace(stack=0))[0]

    def one(tensor: tuple[jax.Array, Sequence[jax.Array], Sequence[jax.Array] | None]) -> tuple[jax.Array, jax.Array]:
        number, leaves, statistics = tensor
        if statistics is not None and known.needs != "moments":
            statistics = [rows(each) for each in statistics]
        own, *others = (rows(leaf.astype(jnp.float32)) for leaf in leaves)
        its = asked._replace(key=jax.random.fold_in(asked.key, number), statistics=statistics)
        made = tensors.joined(known.merge(own, others, its, dict(options))[None], layout._replace(stack=0), inside)
        is_finite = functools.reduce(operator.and_, (jnp.isfinite(leaf) for leaf in leaves)).all()
        return made.astype(base.dtype), is_finite

    leaves = [leaf.reshape(-1, *inside) for leaf in (base, *experts)]
    numbers = jnp.arange(len(leaves[0]), dtype=jnp.int32)
    made, is_finite = jax.lax.map(one, (numbers, leaves, asked.statistics))
    return made.reshape(base.shape), is_finite.all()


def _refusal(faults: Sequence[str]) -> ValueError:
    return ValueError("these cannot be merged:\n" + "\n".join(f"  - {fault}" for fault in faults))


def _cutoffs(
    base: Mapping[str, Any], parts: Callable[[str], Sequence[jax.Array]], shares: Sequence[float]
) -> list[float]:
    """Of each expert, the magnitude that so large a share of its whole difference reaches."""
    floats = [path for path, leaf in base.items() if _is_floating(leaf)]
    size = sum(np.size(base[path]) for path in floats)

    def pairs_of(number: int) -> Callable[[], Iterator[tuple[jax.Array, jax.Array]]]:
        return lambda: ((jnp.asarray(base[path]), parts(path)[number]) for path in floats)

    return [magnitudes.kth_of_all(pairs_of(number), _count(share, size)) for number, share in enumerate(shares)]


def _by_leaf(gates: Gates, rest: float, partition: Partition | None, base: Params) -> dict[str, jax.Array]:
    """Leaf -> gate, of the leaves that some component owns."""
    said = {kind: np.where(np.isnan(gate), rest, gate).astype(np.float32) for kind, gate in gates.items()}
    ndims = {path: np.ndim(leaf) for path, leaf in paths.leaves(base).items()}
    return blend.leaf_gates(said, components.of_decoder(base) if partition is None else partition, ndims)


@jax.jit
def _gated(base: jax.Array, expert: jax.Array, gate: jax.Array) -> jax.Array:
    """In float32: the part of a small change that a gate leaves may be none in a narrower type."""
    return blend.blend(base.astype(jnp.float32), expert.astype(jnp.float32), gate)


def _count(share: float, size: int, least: int = 1) -> int:
    """So many of so many entries: at least one, or whatever a method says, unless none is asked for.

    >>> _count(0.5, 3), _count(0.01, 3), _count(0.01, 3, least=0), _count(0.0, 3)
    (1, 1, 0, 0)
    """
    return min(size, max(least, int(share * size))) if share > 0 else 0


def _known(
    statistics: Sequence[Mapping[str, Any]], path: str, needs: str | None, layout: tensors.Layout
) -> list[jax.Array] | None:
    """What is known of one leaf of each expert, tensor by tensor, [S, ...]; None where nothing is."""
    if not all(path in each for each in statistics):
        return None
    own = [jnp.asarray(each[path], jnp.float32) for each in statistics]
    inside = own[0].shape[-2:] if needs == "moments" else own[0].shape[layout.stack :]
    return [each.reshape(-1, *inside) for each in own]


def _chosen(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """All of a method's options, as they are said or by default."""
    return {name: options.get(name, option.default) for name, option in method.options.items()}


def _each(given: float | Sequence[float], count: int) -> list[float]:
    return np.broadcast_to(np.asarray(given, float), count).tolist()


def _is_floating(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def asked_faults(
    name: str, count: int, numbers: Mapping[str, Any], options: Mapping[str, Any], *, is_told: bool = False
) -> list[str]:
    """What is wrong with a merge of so many experts that can be seen without them, a sentence each.

    Args: numbers: "weights", "density", "scale", "seed" and "rest", as `merge` has them. is_told: whether statistics are there.

    >>> asked_faults("ties", 2, {"weights": 1.0, "density": 2, "scale": 1.0, "seed": 0, "rest": 0.0}, {})
    ['density: wanted shares from 0 to 1; got 2.']
    """
    faults = method_faults(name) + _number_faults(numbers, count)
    if name not in METHODS:
        return faults
    faults += _option_faults(name, METHODS[name], count, numbers, options, is_told)
    if not faults:
        weights, density = (
            _each(0.0 if numbers[each] is None else numbers[each], count) for each in ("weights", "density")
        )
        faults += METHODS[name].refuses(weights, density, _chosen(METHODS[name], options))
    return faults


def method_faults(name: str) -> list[str]:
    """A name that no method bears."""
    return [] if name in METHODS else [f"there is no method {name!r}; {paths.did_you_mean(name, METHODS)}"]


def _faults(
    name: str,
    base: Params,
    experts: Sequence[Params],
    numbers: Mapping[str, Any],
    options: Mapping[str, Any],
    gates: Sequence[Gates] | None,
    partition: Partition | None,
    statistics: Sequence[Params] | None,
) -> list[str]:
    """All that is wrong, a sentence each."""
    if not isinstance(experts, Sequence) or not len(experts):
        return [*method_faults(name), "experts: wanted a list of at least one tree of parameters; got none."]
    faults = asked_faults(name, len(experts), numbers, options, is_told=statistics is not None)
    needs = METHODS[name].needs if name in METHODS else None
    is_missing = statistics is None and name in METHODS and METHODS[name].is_needed
    if needs is not None and (is_missing or (statistics is not None and len(statistics) != len(experts))):
        got = "none" if statistics is None else len(statistics)
        faults.append(
            f"statistics: {name} wants those of each of {len(experts)} experts, as jp.{needs} makes them; got {got}."
        )
    elif needs is None and name in METHODS and statistics is not None:
        faults.append(f"statistics: {name} looks at no data; leave them out.")
    elif needs is not None and statistics is not None:
        faults += _statistics_faults(needs, base, statistics)
    if gates is None and numbers["rest"] != 0:
        faults.append("rest is the gate of what gates say nothing of: say gates, or leave it out.")
    if gates is not None and len(gates) != len(experts):
        faults.append(f"gates: wanted those of each of {len(experts)} experts; got {len(gates)}.")
    if gates is not None and partition is None and not tensors.is_decoder(paths.leaves(base)):
        faults.append(
            "partition: these are no decoder's parameters, so gates need to be told who owns what (jp.partition)."
        )
    elif gates is not None:
        faults += _gates_faults(gates, components.of_decoder(base) if partition is None else partition)
    for number, expert in enumerate(experts):
        faults += [
            f"expert {number}: {fault.replace('special', 'expert')}" for fault in compare.structure_faults(base, expert)
        ]
    if not faults:
        own = paths.leaves(base)
        faults += [
            f"expert {number}: {path} holds whole numbers, and others than base's; they cannot be merged"
            for number, expert in enumerate(experts)
            for path, leaf in paths.leaves(expert).items()
            if not _is_floating(leaf) and not compare.is_same(own[path], leaf)
        ]
    return faults


def _gates_faults(gates: Sequence[Gates], partition: Partition) -> list[str]:
    """Kinds that there are not, gates of another shape than a kind has, and those that are no share."""
    faults = []
    for number, each in enumerate(gates):
        for kind, gate in each.items():
            where, given = f"gates {number}: {kind}", np.asarray(gate)
            if kind not in partition:
                faults.append(f"{where}: there is no such kind; {paths.did_you_mean(kind, partition)}.")
            elif given.shape != partition[kind].shape:
                faults.append(f"{where}: wanted {partition[kind].shape}, one for each component; got {given.shape}.")
            elif not (np.isnan(given) | ((given >= 0) & (given <= 1))).all():
                faults.append(
                    f"{where}: wanted shares from 0 to 1, or NaN; got {np.nanmin(given):g} to {np.nanmax(given):g}."
                )
    return faults


def _statistics_faults(needs: str, base: Params, statistics: Sequence[Params]) -> list[str]:
    """Leaves that the model lacks, those of another shape than what is known of them must have, and what is not finite."""
    shapes, faults = {path: np.shape(leaf) for path, leaf in paths.leaves(base).items()}, []
    layouts = tensors.layouts(shapes)
    for number, each in enumerate(statistics):
        for path, leaf in paths.leaves(each).items():
            if path not in shapes:
                faults.append(f"statistics {number}: {path} is no leaf of these models.")
                continue
            stack, inputs = layouts[path]
            inside = math.prod(shapes[path][stack : stack + inputs] if inputs else shapes[path][-1:])
            wanted = (*shapes[path][:stack], inside, inside) if needs == "moments" else shapes[path]
            if np.shape(leaf) != wanted:
                faults.append(
                    f"statistics {number}: {path}: wanted {wanted}, as jp.{needs} makes it; got {np.shape(leaf)}."
                )
            elif _is_floating(leaf) and not compare.is_finite(leaf):
                faults.append(f"statistics {number}: {path} holds NaN or infinity.")
    return faults


def rule_faults(rule: str, budget: float, conflict: str) -> list[str]:
    """What is wrong with how scores are to become gates that can be seen without them, a sentence each.

    >>> rule_faults("hard", 1.5, "all")
    ['budget: wanted a share from 0 to 1; got 1.5.']
    """
    faults = [] if rule in gating.RULES else [f"there is no rule {rule!r}; {paths.did_you_mean(rule, gating.RULES)}"]
    if not is_number(budget) or not 0 <= budget <= 1:
        faults.append(f"budget: wanted a share from 0 to 1; got {budget!r}.")
    if conflict not in ("all", "share"):
        faults.append(f"conflict: wanted 'all' or 'share'; got {conflict!r}.")
    elif conflict == "share" and rule != "mask":
        faults.append(f"conflict='share' is for mask; by {rule} no two experts take a component whole.")
    return faults


def apportion_faults(
    rule: str, scores: Sequence[Scores], budget: float, conflict: str, kinds: Mapping[str, float] | None
) -> list[str]:
    """All that is wrong with what `apportion` is asked, a sentence each."""
    faults = rule_faults(rule, budget, conflict)
    if not len(scores):
        return [*faults, "scores: wanted those of at least one expert; got none."]
    shapes = [{kind: np.shape(own) for kind, own in each.values.items()} for each in scores]
    faults += [
        f"scores of expert {number}: wanted {shapes[0]}, as expert 0 has; got {own}"
        for number, own in enumerate(shapes)
        if own != shapes[0]
    ]
    if finer := [kind for kind in shapes[0] if kind not in components.disjoint(scores[0].partition, tuple(shapes[0]))]:
        faults.append(
            f"kinds that own the same parameters cannot be apportioned together: leave out {', '.join(finer)}."
        )
    for kind, factor in (kinds or {}).items():
        if kind not in shapes[0]:
            faults.append(f"kinds: no expert has scores of {kind!r}; {paths.did_you_mean(kind, shapes[0])}")
        elif not is_number(factor) or factor < 0:
            faults.append(f"kinds: {kind}: wanted a number of at least 0, to multiply its scores by; got {factor!r}.")
    return faults


def _number_faults(numbers: Mapping[str, Any], count: int) -> list[str]:
    faults = []
    for name in ("weights", "density"):
        if numbers[name] is None:
            continue
        try:
            given = np.asarray(numbers[name], float)
        except (TypeError, ValueError):
            faults.append(f"{name}: wanted a number, or one for each expert; got {numbers[name]!r}.")
            continue
        if given.shape not in ((), (count,)):
            faults.append(f"{name}: wanted one number, or {count}, one for each expert; got {given.size}.")
        elif not np.isfinite(given).all():
            faults.append(f"{name}: wanted finite numbers; got {numbers[name]!r}.")
        elif name == "density" and not ((given >= 0) & (given <= 1)).all():
            faults.append(f"density: wanted shares from 0 to 1; got {numbers[name]!r}.")
    if not is_number(numbers["scale"]):
        faults.append(f"scale: wanted a finite number; got {numbers['scale']!r}.")
    if not is_number(numbers["rest"]) or not 0 <= numbers["rest"] <= 1:
        faults.append(f"rest: wanted a share from 0 to 1; got {numbers['rest']!r}.")
    if not is_whole(numbers["seed"], 0):
        faults.append(f"seed: wanted a whole number of at least 0; got {numbers['seed']!r}.")
    return faults


def _option_faults(
    name: str, method: Method, count: int, numbers: Mapping[str, Any], options: Mapping[str, Any], is_told: bool
) -> list[str]:
    """What a method is asked that it does not know, and what it must be told. is_told: whether statistics are there."""
    faults = []
    if method.experts is not None and count != method.experts:
        faults.append(f"{name} takes {method.experts} expert; got {count}.")
    is_masked = is_told and method.needs == "learn_mask"
    if is_masked and numbers["density"] is not None:
        faults.append(f"{name}: its masks say what is kept, so density means nothing to it: leave it out.")
    if "density" in method.takes and numbers["density"] is None and not is_masked:
        faults.append(f"{name} keeps a part of each difference: say how much of it (density, from 0 to 1).")
    if "density" not in method.takes and numbers["density"] is not None:
        faults.append(f"{name} keeps all of each difference, so density means nothing to it: leave it out.")
    if "scale" not in method.takes and numbers["scale"] != 1:
        faults.append(f"{name} adds no difference to base, so scale means nothing to it: leave it out.")
    for option, given in options.items():
        if option not in method.options:
            faults.append(f"{name} has no option {option!r}; {paths.did_you_mean(option, method.options)}")
            continue
        known = method.options[option]
        if isinstance(known, Choice):
            if not any(given is value or (isinstance(value, str) and given == value) for value in known.values):
                faults.append(f"{option}: wanted {' or '.join(map(repr, known.values))}; got {given!r}.")
        elif not is_number(given) or not known.low <= given <= known.high:
            faults.append(f"{option}: wanted a number from {known.low:g} to {known.high:g}; got {given!r}.")
    return faults
