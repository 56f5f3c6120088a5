"""From sources through relays to the output: the conductor of `tracing`, as `pipeline` is of the stages before it. No arithmetic."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from jaxpatch.measuring import contributions, devices, instrument, read_outs, sweep, targets
from jaxpatch.measuring.memory import default_budget
from jaxpatch.measuring.read_outs import Anchor, NextToken, ReadOut
from jaxpatch.models.checkpoints import Pair
from jaxpatch.patching import blend, components
from jaxpatch.patching import exchange as exchanges
from jaxpatch.pipeline import among, identity, refuse_bad_options, scores_with
from jaxpatch.scoring import ACTIVATION_METHODS, AS_CAREFUL, METHODS, normalise, scores
from jaxpatch.scoring.method import Options, all_silent
from jaxpatch.tracing import flow, roles
from jaxpatch.trees.fingerprint import fingerprint

NEXT_TOKEN = NextToken("kl")
"""What executors are read by, unless told otherwise."""


def trace(
    pair: Pair,
    inputs: Any,
    anchor: ReadOut,
    *,
    sources: Sequence[str] = ("head", "neuron"),
    relays: Sequence[str] = ("head",),
    method: str = "screened",
    path: str = "total",
    rules: flow.Rules = flow.DEFAULTS,
    state: roles.Roles | None = None,
    site: str = "contribution",
    positions: str = "all",
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    limit: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    by_input: bool = False,
    journal: sweep.Journal = sweep.FORGETFUL,
    started: Callable[[str], None] = lambda name: None,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> flow.Flow:
    """Who supplies the state: from it back through the relays that aggregate it to the sources that make it.

    Suppliers of the state are placed as `place` does, by E_w and E_a. Each relay that stands out becomes a target: its own contribution
    is read in place of the state (`contribution`), with base and special as its ends, and its suppliers are placed in the same way.

    Args:
        pair, inputs, anchor: as for `score`; of decoders alone.
        sources: kinds whose parameters may supply (E_w); of those that have activations, E_a is asked as well, so that it is known
            which of them pass on what others made. relays: kinds of which relays are followed, of "head", "neuron", "attention" and
            "mlp".
        method: for E_w; E_a is found as carefully: by "activation" where this is "exact", by "screened_activation" where it screens, by
            "attribution" otherwise.
        path: how a target reaches what it is a part of, "total" or "direct" (see `contribution`).
        rules: what stands out, how many suppliers are kept, and when tracing ends.
        state: E_w and E_a of the state's own suppliers, where `place` has them already: of this anchor and these prompts, by the same
            options. Which of them stand out is decided by ``rules.criteria``, and not by those that they were placed by.
        site, positions, aggregate, top, limit, seed, memory, journal: as for `score`.
        by_input: also ask through which of a target's inputs each supplier acts: a head's queries, keys or values alone, the others
            being base's own (path patching). One more exact replacement for each edge of the graph.
        started: called with a target's name when its suppliers are looked for.

    Returns: a `Flow`.

    Raises: ValueError for bad options, all at once, and where the state itself is no larger in special than in base.

    References: Sun et al., arXiv 2604.13694; the procedure is ours. Path patching: Wang et al., arXiv 2211.00593.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchor = Anchor(layer=1, direction=jnp.eye(8)[testing.STATE])
        >>> found = trace(testing.relay_pair((2.0, -1.0)), testing.tiny_inputs(), anchor, method="exact")
        >>> found.to_frame()[["supplier", "role", "target"]].values.tolist()
        [['neuron 0.0', 'both', 'state'], ['head 1.0', 'relay', 'state'], ['neuron 0.0', 'both', 'head 1.0']]
    """
    if not isinstance(pair, Pair):
        raise ValueError(
            "trace: contributions are read in decoders; a TreePair has none. Score it with read-outs of your own."
        )
    options = Options(top=top, aggregate=aggregate, seed=seed, progress=progress, limit=limit)
    sources, relays = _names(sources), _names(relays)
    crossing, passed = exchanges.Exchange(site, positions), AS_CAREFUL.get(method, "activation")
    faults = (
        flow.faults(rules)
        + targets.path_faults(path)
        + ([] if state is None else _state_faults(state, sources, relays, anchor, aggregate, crossing))
    )
    if method in ACTIVATION_METHODS:
        faults.append(f"method {method!r} is of activations; wanted one of {', '.join(METHODS)}.")
    for kinds, by, exchange in ((sources, method, exchanges.Exchange()), (relays, passed, crossing)):
        asked = kinds, by, "restoration", exchange, (), options, memory, None, journal
        try:
            refuse_bad_options(pair, inputs, (anchor,), *asked)
        except (KeyError, ValueError) as error:
            faults.append(
                str(error.args[0]).replace("kinds: wanted", f"{'sources' if kinds is sources else 'relays'}: wanted")
            )
    if faults:
        raise ValueError("trace:\n" + "\n".join(dict.fromkeys(faults)))
    there = exchanges.of_decoder(pair.base)
    crossed_kinds = (*relays, *(kind for kind in sources if kind in there and kind not in relays))
    budget = default_budget(pair.base) if memory is None else int(memory)
    said = {"sources": tuple(sources), "relays": tuple(relays), "method": method, "path": path, "rules": rules}
    said |= {"by_input": by_input, "state": _fingerprint(state), **crossing._asdict()}
    budget = int(
        journal.begin(devices.agreed(identity(pair, inputs, (anchor,), budget, options=options, **said)))["budget"]
    )
    listened: dict[tuple[flow.Component, ...], ReadOut] = {(): anchor}
    if state is not None:
        gap = instrument.of_pair(pair, inputs, anchor, budget=budget).gap
        if gap.shape != state.weights.gap.shape or not np.allclose(gap, state.weights.gap, rtol=1e-3):
            raise ValueError(
                "trace:\nstate: its gaps between base and special are not those along this anchor on these prompts; score both "
                "sides on them, or leave it out."
            )

    ends: dict[tuple[flow.Component, ...], tuple[np.ndarray, np.ndarray]] = {}

    def tool(
        chain: tuple[flow.Component, ...], exchange: exchanges.Exchange | None, through: Sequence[str] = ()
    ) -> instrument.Instrument:
        """Both models' own readings are the same whatever is exchanged, and whichever inputs of a target are told apart."""
        asked = [dataclasses.replace(listened[chain], through=name) for name in through] or [listened[chain]]
        known = ends.get(chain)
        if known is not None:
            known = np.tile(known[0], len(asked)), np.tile(known[1], len(asked))
        made = instrument.of_pair(pair, inputs, asked, exchange=exchange, ends=known, budget=budget, journal=journal)
        if not through:
            ends[chain] = made.base, made.special
        return made

    def measure(chain: tuple[flow.Component, ...]) -> flow.Measured | str:
        if state is not None and not chain:
            known = [kind for kind in crossed_kinds if kind in state.activations.values]
            return flow.Measured(state.weights.of(sources), state.activations.of(known))
        started(" < ".join(["state", *(f"{kind} {'.'.join(map(str, index))}" for kind, index in chain)]))
        if chain:
            *above, place = chain
            parent = listened[tuple(above)]
            try:
                listened[chain] = targets.contribution(pair, inputs, parent, *place, path=path, budget=budget)
            except read_outs.UnheardError:
                return "nothing listens to what it writes"
        own, crossed = tool(chain, None), tool(chain, crossing)
        try:
            is_kept = normalise.kept_inputs(own.gap, own.base)
        except normalise.NoGapError:
            if not chain:
                raise
            return "its contribution is no larger in special than in base"
        layers = [int(read_outs.stop(pair.config, [listened[chain]])) - 1]
        weights, activations = (
            scores_with(each, kinds=tuple(kinds), method=by, layers=layers, options=options, ceilings=not chain)[0]
            for each, kinds, by in ((own, sources, method), (crossed, crossed_kinds, passed))
        )
        recovered = math.nan
        if chain and chain[-1][0] in own.partition:
            itself = components.gates(own.partition, {chain[-1][0]: [chain[-1][1]]})
            alone = own.read(among(own, (*sources, *itself), itself)) - own.base
            recovered = float(normalise.normalised(alone, own.gap, is_kept, aggregate))
        return flow.Measured(weights, activations, recovered)

    def through(chain: tuple[flow.Component, ...], suppliers: Sequence[flow.Component], is_passed: bool) -> np.ndarray:
        apart = tool(chain, crossing if is_passed else None, tuple(contributions.INPUTS))
        rows = np.split(np.arange(len(apart.base)), apart.num_read_outs)
        is_kept = normalise.kept_inputs(apart.gap[rows[0]], apart.base[rows[0]])
        shares = np.empty((len(suppliers), len(rows)))
        for kind in dict.fromkeys(kind for kind, _ in suppliers):
            which = [number for number, each in enumerate(suppliers) if each[0] == kind]
            found = apart.exact(kind, np.array([suppliers[number][1] for number in which]), sweep.silent)
            for column, own in enumerate(rows):
                shares[which, column] = normalise.normalised(found[:, own].T, apart.gap[own], is_kept, aggregate)
        return shares

    followed = [kind for kind in relays if kind in read_outs.TARGETS and not (kind == "neuron" and pair.config.experts)]
    return flow.follow(measure, rules, targets=followed, through=through if by_input else None)


def executors(
    pair: Pair,
    inputs: Any,
    anchor: Anchor,
    *,
    kinds: Sequence[str] = ("head", "neuron"),
    method: str = "activation",
    read_out: NextToken = NEXT_TOKEN,
    site: str = "contribution",
    positions: str = "all",
    aggregate: str = "mean_of_ratios",
    top: int = 100,
    limit: int | None = None,
    seed: int = 0,
    memory: int | None = None,
    journal: sweep.Journal = sweep.FORGETFUL,
    progress: Callable[[str], sweep.Progress] = all_silent,
) -> scores.Scores:
    """What carries a formed state to the output: execution components, above the anchor.

    The state is formed in base by special's parameters in everything up to the anchor's block, and in nothing above. What components
    above it write in that run is put into base's own run, one after the other: how much of what the formed state does to the next
    token comes back? All above the anchor is base's in both runs, so this is activation patching, and no E_w. Where the embedding is
    the unembedding as well, it stays base's, too. Beside the two models it holds a third, base with the state formed.

    Args:
        kinds: of activation patching. method: "activation", "screened_activation" or "attribution".
        read_out: of the next token; "kl" refers to the run in which the state is formed.
        pair, inputs, anchor, site, positions, aggregate, top, limit, seed, memory, journal: as for `score`.

    Returns: `Scores`; 0 for components up to the anchor. Ceilings, "everything" apart, are of all that stand above it.

    Raises: ValueError where nothing stands above the anchor, where forming the state changes no next token, and as `score`.

    References: ours; that execution follows aggregation is known (Sun et al., arXiv 2604.13694).

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxpatch import testing
        >>> anchor = Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = executors(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",))
        >>> found.values["head"].any(axis=1).tolist()
        [False, False, True]
    """
    if not isinstance(pair, Pair) or not isinstance(anchor, Anchor):
        raise ValueError("executors: wanted a Pair of decoders and an Anchor, above which they stand.")
    faults = (
        [] if method in ACTIVATION_METHODS else [f"method {method!r}; wanted one of {', '.join(ACTIVATION_METHODS)}."]
    )
    if not isinstance(read_out, NextToken):
        faults.append(f"read_out: wanted a NextToken; got {type(read_out).__name__}.")
    try:
        layer = int(read_outs.checked(anchor, pair.config).layer)
    except ValueError as error:
        faults.append(str(error))
        layer = -1
    if layer >= pair.config.layers - 1:
        faults.append(f"anchor: nothing stands above block {layer} of {pair.config.layers}; read it further down.")
    if faults:
        raise ValueError("executors:\n" + "\n".join(faults))
    options = Options(top=top, aggregate=aggregate, seed=seed, progress=progress, limit=limit)
    crossing = exchanges.Exchange(site, positions)
    asked = method, "restoration", crossing, (), options, memory, None, journal
    kinds = _names(kinds)
    refuse_bad_options(pair, inputs, (read_out,), kinds, *asked)
    partition = components.of_decoder(pair.base)
    is_below = np.arange(pair.config.layers) <= layer
    gates = {"layer": is_below.astype(np.float32)}
    entering = ("positions",) if pair.config.tied else ("embed", "positions")
    gates |= {kind: np.ones(partition[kind].shape, np.float32) for kind in entering if kind in partition}
    formed = dataclasses.replace(pair, special=blend.patch(pair.base, pair.special, gates))
    budget = default_budget(pair.base) if memory is None else int(memory)
    said = {"kinds": kinds, "method": method, "layer": layer, **crossing._asdict()}
    told = devices.agreed(identity(formed, inputs, (read_out,), budget, options=options, **said))
    budget = int(journal.begin(told)["budget"])
    tool = instrument.of_pair(formed, inputs, read_out, exchange=crossing, budget=budget, journal=journal)
    above = {kind: np.zeros(sort.shape, bool) for kind, sort in tool.partition.items()}
    for kind, sort in tool.partition.items():
        if sort.axes[0] == "layer":
            above[kind][layer + 1 :] = True
    tool = tool._replace(seen=(above,))
    return scores_with(tool, kinds=tuple(kinds), method=method, layers=[pair.config.layers - 1], options=options)[0]


def _names(kinds: Any) -> Any:
    """Any sequence of kinds as a tuple; what is none is left to be refused."""
    return tuple(kinds) if isinstance(kinds, Iterable) and not isinstance(kinds, str) else kinds


def _state_faults(
    state: roles.Roles,
    sources: Sequence[str],
    relays: Sequence[str],
    anchor: ReadOut,
    aggregate: str,
    crossing: exchanges.Exchange,
) -> list[str]:
    """Kinds that were to be placed and are not, and options by which the state was scored and the rest will not be."""
    wanted: dict[str, Any] = {"mode": "restoration", "aggregate": aggregate}
    if isinstance(anchor, Anchor):
        wanted["layer"] = anchor.layer
    faults = [
        f"state: its {name} is {got!r}; wanted {value!r}."
        for name, value in wanted.items()
        if (got := getattr(state.weights, name)) != value
    ]
    if state.activations.exchange != crossing:
        faults.append(f"state: its activations were exchanged by {state.activations.exchange}; wanted {crossing}.")
    return faults + [
        f"state: its {name} have no {kind!r}; score it as well, or leave it out of {what}."
        for name, what, kinds, found in (
            ("weights", "sources", sources, state.weights),
            ("activations", "relays", relays, state.activations),
        )
        for kind in kinds
        if kind not in found.values
    ]


def _fingerprint(state: roles.Roles | None) -> str:
    """Of what was known before."""
    if state is None:
        return "none"
    return fingerprint({"weights": dict(state.weights.values), "activations": dict(state.activations.values)})
