"""Who supplies whom: from a formed state back through the relays that aggregate it to the sources that make it.

The state's suppliers are placed by E_w and E_a (`roles`). A relay among them becomes a target: what it contributes takes the place of
the state, and its own suppliers are placed in the same way; and so on, until nothing stands out, little of the state is left, or the
deepest level is reached. That suppliers are traced from aggregation heads back to sources is known (Sun et al., arXiv 2604.13694); the
procedure, its stopping rule and the comparison with chance are ours.
"""

import collections
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd

from jaxpatch.numbers import is_whole
from jaxpatch.scoring.scores import Scores
from jaxpatch.tracing import roles
from jaxpatch.tracing.roles import Criteria

STATE = ("state", ())
"""The first node: what the anchor reads."""
OUTPUT = ("output", ())
"""The next token, where executors carry the state to."""

Component = tuple[str, tuple[int, ...]]
"""A kind, and a place in it."""


class Measured(NamedTuple):
    """weights, activations: E_w and E_a of whatever may supply a target. own: how much of its contribution the target's own parameters
    recover; NaN for the state, which has none."""

    weights: Scores
    activations: Scores
    own: float = math.nan


Measure = Callable[[tuple[Component, ...]], Measured | str]
"""(targets, from the first below the state to the one that is asked of) -> its suppliers' scores; or why it has none."""

INPUTS = ("query", "key", "value", "mlp")
"""Inputs of a target."""
READING = ("head", "attention")
"""Kinds of target that have the first three; the others have the last one alone."""
AFTER_HEADS = ("neuron", "expert", "mlp")
"""Kinds that read what heads of their own block write."""
Through = Callable[[tuple[Component, ...], Sequence[Component], bool], np.ndarray]
"""(targets as above; suppliers of the last of them, which is of `READING`; whether by activations) -> their scores through its queries,
keys and values alone, [n, 3]."""


class Rules(NamedTuple):
    """When tracing goes on.

    criteria: what stands out among the suppliers of one target. most: of these, so many relays and so many sources of each kind are
    kept at most. least: a relay is followed where its share of the state, along the path by which it was found, is no less. levels: of
    targets below the state, at most.
    """

    criteria: Criteria = roles.DEFAULTS
    most: int = 5
    least: float = 0.05
    levels: int = 2


DEFAULTS = Rules()
A_SOURCE = "a source"
MAKERS = ("source", "both")
"""Roles of components whose own parameters supply."""


def faults(rules: Rules) -> list[str]:
    """What is wrong with some.

    >>> faults(Rules(most=0, least=2.0))
    ['rules.most: wanted a whole number, at least 1; got 0.', 'rules.least: wanted a share from 0 to 1; got 2.0.']
    """
    if not isinstance(rules, Rules):
        return [f"rules: wanted Rules; got {rules!r}."]
    found = [
        f"rules.{name}: wanted a whole number, at least {fewest}; got {value!r}."
        for name, fewest in (("most", 1), ("levels", 0))
        if not is_whole(value := getattr(rules, name), fewest)
    ]
    shares = {"least": rules.least} | {f"criteria.{name}": value for name, value in rules.criteria._asdict().items()}
    return found + [
        f"rules.{name}: wanted a share from 0 to 1; got {value!r}."
        for name, value in shares.items()
        if not 0 <= value <= 1
    ]


@dataclass(frozen=True)
class Node:
    """A component, the state, or the output. role: of `roles.ROLES`, "both" as well where it is a source to one target and a relay to
    another; or "state", "executor", "output". level: 0 is the state, -1 executors above it, -2 the output.
    share: of the state, along the path by which it was found, or followed. own: `Measured.own`. end: why it was not followed further;
    "" where it was."""

    kind: str
    index: tuple[int, ...]
    role: str
    level: int
    share: float
    own: float
    end: str

    @property
    def name(self) -> str:
        """What it is called.

        >>> Node("head", (3, 1), "relay", 1, 0.4, 0.0, "").name
        'head 3.1'
        """
        return f"{self.kind} {'.'.join(map(str, self.index))}".strip()

    @property
    def layer(self) -> int:
        """Its block; -1 of the state and the output."""
        return self.index[0] if self.index else -1


class Edge(NamedTuple):
    """supplier, target: numbers of nodes. role: the supplier's, to this target. weights, activations: E_w and E_a of the supplier on
    the target's contribution, each as (score, low, high) with a 95 % interval; NaN where it was not scored so. An executor's on the
    output is E_a of what `executors` asks; that it reads the state is so by construction, and has no number. inputs: the supplier's
    score (E_w of a source, E_a of a relay) through each of `INPUTS` alone; NaN where nobody asked, or the target has no such input.
    Where attention is not linear in them, they need not add up to the score."""

    supplier: int
    target: int
    role: str
    weights: tuple[float, float, float]
    activations: tuple[float, float, float]
    inputs: tuple[float, ...] = (math.nan,) * len(INPUTS)

    @property
    def through(self) -> str:
        """The input through which most comes, of `INPUTS`; "" where nobody asked, or nothing comes through any.

        >>> Edge(1, 0, "source", (0.5, 0.4, 0.6), (math.nan,) * 3, (0.1, 0.0, 0.3, math.nan)).through
        'value'
        """
        known = {name: share for name, share in zip(INPUTS, self.inputs, strict=True) if share > 0}
        return max(known, key=lambda name: known[name]) if known else ""


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What tracing found.

    Attributes:
        nodes: the state first, then the others as they were found. edges: likewise.
        measured: number of a node -> the scores of its suppliers, for every node that was followed; with ceilings for the state alone.
        rules: by which.
        executed: what `executors` found, where it was asked.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    rules: Rules
    measured: Mapping[int, Measured] = field(repr=False)
    executed: Scores | None = field(default=None, repr=False)

    @property
    def direct(self) -> np.ndarray:
        """What of each edge does not pass through a relay that was followed: [E].

        Totals are sums over paths, so ``direct(s, t) = total(s, t) - sum_r total(s, r) direct(r, t)`` over the relays r between them.
        What s makes is E_w all along, where it is a source to t, and E_a all along where it is a relay or an executor; what r passes
        on is E_a. Exact where effects add up. NaN from the state; and where a neuron or an MLP was followed, from heads of its own
        block, of which nobody asked how much they supply to it, and from what passes through these. Ours.
        """
        out = np.full(len(self.edges), np.nan)
        edges = {(edge.supplier, edge.target): edge for edge in self.edges if edge.supplier}
        passed: dict[tuple[int, int], float] = {}

        def is_unasked(supplier: int, target: int) -> bool:
            """Whether a relay to the target reads what the supplier writes, and was not asked about it."""
            own, relays = self.nodes[supplier], (self.nodes[r] for r, t in edges if t == target and r in self.measured)
            return own.kind not in AFTER_HEADS and any(
                relay.kind in AFTER_HEADS and relay.layer == own.layer for relay in relays
            )

        def apart(supplier: int, target: int, by: Callable[[Edge], float]) -> float:
            """What is left of a total, by one measure."""
            if is_unasked(supplier, target):
                return math.nan
            beyond = ((r, own) for (r, t), own in passed.items() if t == target and (supplier, r) in edges)
            through = sum(np.nan_to_num(by(edges[supplier, r])) * own for r, own in beyond)
            return float(np.nan_to_num(by(edges[supplier, target])) - through)

        known = [number for number, edge in enumerate(self.edges) if edge.supplier]
        for number in sorted(known, key=lambda number: -self.nodes[self.edges[number].supplier].index[0]):
            edge = self.edges[number]  # from the highest supplier down, so that what stands between is known
            ends = edge.supplier, edge.target
            passed[ends] = apart(*ends, lambda each: each.activations[0])
            out[number] = apart(*ends, lambda each: each.weights[0]) if edge.role == "source" else passed[ends]
        return out

    def to_frame(self) -> pd.DataFrame:
        """One row an edge: supplier, role, target, level, E_w and E_a on the target with their intervals, `direct`, and the score
        through each of the target's inputs."""
        rows = [
            {
                "supplier": self.nodes[edge.supplier].name,
                "role": edge.role,
                "target": self.nodes[edge.target].name,
                "level": self.nodes[edge.target].level + 1,
                **dict(zip(("E_w", "E_w low", "E_w high"), edge.weights, strict=True)),
                **dict(zip(("E_a", "E_a low", "E_a high"), edge.activations, strict=True)),
                "direct": direct,
                **dict(zip(INPUTS, edge.inputs, strict=True)),
            }
            for edge, direct in zip(self.edges, self.direct, strict=True)
        ]
        names = ["supplier", "role", "target", "level"]
        names += ["E_w", "E_w low", "E_w high", "E_a", "E_a low", "E_a high", "direct", *INPUTS]
        return pd.DataFrame(rows, columns=names)

    def arrays(self) -> dict[str, np.ndarray]:
        """The graph as arrays: of nodes "name", "kind", "layer" (-1 for the state and the output), "role", "level", "share", "own" and
        "end"; of edges "supplier", "target", "edge_role", "direct", "E_w" and "E_a", [E, 3] each, score and interval, and "inputs",
        [E, 4], in the order of `INPUTS`."""
        of_nodes = ("name", "kind", "layer", "role", "level", "share", "own", "end")
        return {
            **{name: np.array([getattr(node, name) for node in self.nodes]) for name in of_nodes},
            **{name: np.array([getattr(edge, name) for edge in self.edges], int) for name in ("supplier", "target")},
            "edge_role": np.array([edge.role for edge in self.edges]),
            "direct": self.direct,
            "E_w": np.array([edge.weights for edge in self.edges]).reshape(-1, 3),
            "E_a": np.array([edge.activations for edge in self.edges]).reshape(-1, 3),
            "inputs": np.array([edge.inputs for edge in self.edges]).reshape(-1, len(INPUTS)),
        }

    def to_json(self, note: str = "") -> str:
        """Nodes and edges, and `overlap`, with null for what is not known. Of nodes that were followed "kept" is how many prompts
        counted, of "prompts". note: what a reader of the file must know."""
        nodes = [{"name": node.name, **asdict(node)} for node in self.nodes]
        for number, (weights, *_) in self.measured.items():
            nodes[number] |= {"kept": int(weights.is_kept.sum()), "prompts": len(weights.is_kept)}
        edges = [
            edge._asdict() | {"inputs": dict(zip(INPUTS, edge.inputs, strict=True)), "direct": own}
            for edge, own in zip(self.edges, self.direct.tolist(), strict=True)
        ]
        rules = {**self.rules._asdict(), "criteria": self.rules.criteria._asdict()}
        said = {"note": note} if note else {}
        shared = self.overlap().to_dict("records")
        return json.dumps(_known({**said, "rules": rules, "nodes": nodes, "edges": edges, "overlap": shared}), indent=1)

    def to_graphml(self, note: str = "") -> str:
        """For Gephi, yEd, NetworkX; "as" is an edge's role. What is not known has no data element. note: what a reader of the file must
        know."""
        root = ElementTree.Element("graphml", xmlns="http://graphml.graphdrawing.org/xmlns")
        if note:
            ElementTree.SubElement(root, "desc").text = note
        of_nodes = {
            name: getattr(self.nodes[0], name)
            for name in ("name", "kind", "layer", "role", "level", "share", "own", "end")
        }
        names = ("E_w", "E_w_low", "E_w_high", "E_a", "E_a_low", "E_a_high", "direct", *INPUTS)
        for domain, keys in (("node", of_nodes), ("edge", {"as": "", **dict.fromkeys(names, 0.0)})):
            for name, value in keys.items():
                kind = {str: "string", int: "int"}.get(type(value), "double")
                ElementTree.SubElement(root, "key", {"id": name, "for": domain, "attr.name": name, "attr.type": kind})
        graph = ElementTree.SubElement(root, "graph", edgedefault="directed")

        def data(element: ElementTree.Element, values: Mapping[str, object]) -> None:
            for name, value in values.items():
                if _known(value) is not None:
                    ElementTree.SubElement(element, "data", key=name).text = str(value)

        for number, node in enumerate(self.nodes):
            element = ElementTree.SubElement(graph, "node", id=f"n{number}")
            data(element, {name: getattr(node, name) for name in of_nodes})
        for edge, direct in zip(self.edges, self.direct.tolist(), strict=True):
            ends = {"source": f"n{edge.supplier}", "target": f"n{edge.target}"}
            element = ElementTree.SubElement(graph, "edge", ends)
            values = (*edge.weights, *edge.activations, direct, *edge.inputs)
            data(element, {"as": edge.role, **dict(zip(names, values, strict=True))})
        ElementTree.indent(root)
        return ElementTree.tostring(root, encoding="unicode")

    def overlap(self) -> pd.DataFrame:
        """How many of the sources that tracing found are among the first by E_w for the state itself: one row a kind.

        As many are taken from the ranking as were found, among the components that stand below the highest target. Columns: kind,
        traced, candidates, shared, share; chance, the share to be expected of so many drawn at random, each from below the highest of
        the targets that it supplies; p, of so many shared or more (each drawn by itself).

        References: Sun et al., arXiv 2604.13694, who report 75 % over neurons; the comparison with chance is ours.
        """
        rows, state = [], self.measured[0].weights
        for kind, values in state.values.items():
            below: dict[tuple[int, ...], int] = {}  # which block each source that was found stands below, the highest
            for edge in self.edges:
                supplier, target = self.nodes[edge.supplier], self.nodes[edge.target]
                if edge.target and supplier.kind == kind and edge.role in MAKERS:
                    below[supplier.index] = max(below.get(supplier.index, 0), target.index[0])
            if not below:
                continue
            pool = values[: max(below.values())]
            best = np.argsort(-pool.ravel(), kind="stable")[: len(below)]
            ranked = [tuple(map(int, np.unravel_index(place, pool.shape))) for place in best]
            shared, number = len(below.keys() & set(ranked)), len(below)
            chances = [sum(each[0] < top for each in ranked) / values[:top].size for top in below.values()]
            rows.append(
                {
                    "kind": kind,
                    "traced": number,
                    "candidates": pool.size,
                    "shared": shared,
                    "share": shared / number,
                    "chance": sum(chances) / number,
                    "p": _at_least(chances, shared),
                }
            )
        return pd.DataFrame(rows, columns=["kind", "traced", "candidates", "shared", "share", "chance", "p"])


def follow(
    measure: Measure,
    rules: Rules = DEFAULTS,
    *,
    targets: Sequence[str] = ("head", "neuron", "attention", "mlp"),
    through: Through | None = None,
) -> Flow:
    """Trace from the state back.

    Args:
        measure: what says how much each component supplies to a target. It is asked once for each.
        targets: kinds that can be followed.
        through: what says by which input of a target each of its suppliers acts, where that is asked.

    Raises: ValueError where not even the state's suppliers can be measured.
    """
    nodes = [Node(*STATE, role="state", level=0, share=1.0, own=math.nan, end="")]
    numbers: dict[Component, int] = {STATE: 0}
    followed = {0}
    edges: list[Edge] = []
    measured: dict[int, Measured] = {}
    waiting: list[tuple[int, tuple[Component, ...]]] = [(0, ())]
    while waiting:
        number, chain = waiting.pop(0)
        target, found = nodes[number], measure(chain)
        if isinstance(found, str):
            if not number:
                raise ValueError(f"the state has no suppliers to trace: {found}")
            nodes[number] = replace(target, end=found)
            continue
        measured[number] = found
        suppliers = _suppliers(found, rules)
        nodes[number] = replace(target, own=found.own, end="" if suppliers else _nobody(target))
        first, level = len(edges), target.level + 1
        for component, role, weights, activations in suppliers:
            edge = Edge(numbers.setdefault(component, len(nodes)), number, role, weights, activations)
            edges.append(edge)
            share = target.share * _total(edge)
            end = _end(component, role, share, level, rules, targets)
            if edge.supplier == len(nodes):
                nodes.append(Node(*component, role, level, share, math.nan, end))
            else:
                known = nodes[edge.supplier]
                is_found_anew = not end and edge.supplier not in followed  # by a path along which it counts
                if is_found_anew or (known.end == A_SOURCE and end != A_SOURCE):
                    known = replace(known, level=level, share=share, end=end)
                nodes[edge.supplier] = known if role == known.role else replace(known, role="both")
            if not end and edge.supplier not in followed:
                followed.add(edge.supplier)
                waiting.append((edge.supplier, (*chain, component)))
        if through is not None and chain:
            edges[first:] = _with_inputs(chain, nodes, edges[first:], through)
    return Flow(nodes=tuple(nodes), edges=tuple(edges), rules=rules, measured=measured)


def with_executors(traced: Flow, executed: Scores) -> Flow:
    """The same graph with what carries the state on to the output: of each kind the first `rules.most` executors that stand out."""
    nodes, edges = [*traced.nodes, Node(*OUTPUT, "output", -2, math.nan, math.nan, "")], list(traced.edges)
    output, unknown = len(nodes) - 1, (math.nan, math.nan, math.nan)
    for kind, values in executed.values.items():
        places = np.argwhere(roles.is_high(executed, kind, traced.rules.criteria.share))
        best = sorted(map(tuple, places.tolist()), key=lambda index, values=values: -values[index])[: traced.rules.most]
        for index in best:
            score = _score(executed, kind, index)
            edges.append(Edge(0, len(nodes), "state", unknown, unknown))
            edges.append(Edge(len(nodes), output, "executor", unknown, score))
            nodes.append(Node(kind, index, "executor", -1, score[0], math.nan, ""))
    return replace(traced, nodes=tuple(nodes), edges=tuple(edges), executed=executed)


def _nobody(target: Node) -> str:
    """Why a target that was followed leads no further."""
    asks_own = target.kind in READING or not target.index
    return "no supplier stands out" + ("" if asks_own else " below its block; its own block's heads are not asked")


def _end(component: Component, role: str, share: float, level: int, rules: Rules, targets: Sequence[str]) -> str:
    """Why a supplier is not followed; "" where it is."""
    kind, index = component
    if role == "source":
        return A_SOURCE
    if kind not in targets:
        return f"no {kind} is followed"
    if index[0] == 0:
        return (
            "nothing but embeddings stands below block 0"
            if kind in READING
            else "below it stand only heads of block 0, not asked"
        )
    if level > rules.levels:
        return "the deepest level"
    return f"its share of the state is below {rules.least:g}" if share < rules.least else ""


Supplier = tuple[Component, str, tuple[float, float, float], tuple[float, float, float]]


def _suppliers(found: Measured, rules: Rules) -> list[Supplier]:
    """What stands out, of each kind the first: relays, then sources, each from the strongest down."""
    made = []
    for kind, number in _roles(found, rules.criteria).items():
        for index in map(tuple, np.argwhere(number).tolist()):
            role = roles.ROLES[number[index]]
            weights, activations = (_score(each, kind, index) for each in (found.weights, found.activations))
            made.append(((kind, index), role, weights, activations))
    made.sort(key=lambda each: (each[1] == "source", -(each[2] if each[1] == "source" else each[3])[0]))
    kept, counts = [], collections.Counter()
    for (kind, index), role, *scores in made:
        counts[kind, role == "source"] += 1
        if counts[kind, role == "source"] <= rules.most:
            kept.append(((kind, index), role, *scores))
    return kept


def _with_inputs(
    chain: tuple[Component, ...], nodes: Sequence[Node], edges: Sequence[Edge], through: Through
) -> list[Edge]:
    """The edges to one target, with `Edge.inputs`."""
    made = np.full((len(edges), len(INPUTS)), np.nan)
    if chain[-1][0] not in READING:
        made[:, INPUTS.index("mlp")] = [_total(edge) for edge in edges]
        return _replaced(edges, made)
    for is_passed in (False, True):
        which = [number for number, each in enumerate(edges) if (each.role != "source") == is_passed]
        suppliers = [(nodes[edges[number].supplier].kind, nodes[edges[number].supplier].index) for number in which]
        if which:
            made[which, :3] = through(chain, suppliers, is_passed)
    return _replaced(edges, made)


def _replaced(edges: Sequence[Edge], inputs: np.ndarray) -> list[Edge]:
    return [edge._replace(inputs=tuple(own)) for edge, own in zip(edges, inputs.tolist(), strict=True)]


def _total(edge: Edge) -> float:
    """E_w of a source, E_a of a relay or an executor."""
    return (edge.weights if edge.role == "source" else edge.activations)[0]


def _roles(found: Measured, criteria: Criteria) -> dict[str, np.ndarray]:
    """Of every kind. What was scored on one side alone can be a source, or a relay, alone."""
    weights, activations = found.weights.values.keys(), found.activations.values.keys()
    placed = dict(roles.place(found.weights, found.activations, criteria).roles) if weights & activations else {}
    for role, side, kinds in (
        ("source", found.weights, weights - activations),
        ("relay", found.activations, activations - weights),
    ):
        for kind in kinds:
            placed[kind] = np.where(roles.is_high(side, kind, criteria.share), roles.ROLES.index(role), 0)
    return placed


def _score(found: Scores, kind: str, index: tuple[int, ...]) -> tuple[float, float, float]:
    if kind not in found.values:
        return math.nan, math.nan, math.nan
    value, low, high = (float(each[kind][index]) for each in (found.values, found.low, found.high))
    return value, low, high


def _at_least(chances: Sequence[float], count: int) -> float:
    """Probability that of independent events, each with its own, so many or more come about.

    >>> round(_at_least([0.5, 0.5, 1.0], 2), 4)
    0.75
    """
    spread = functools.reduce(lambda made, p: np.convolve(made, [1 - p, p]), chances, np.ones(1))
    return float(min(1.0, spread[count:].sum()))


def _known(value):
    """With None for NaN, wherever it is."""
    if isinstance(value, Mapping):
        return {name: _known(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_known(each) for each in value]
    return None if isinstance(value, float) and math.isnan(value) else value
