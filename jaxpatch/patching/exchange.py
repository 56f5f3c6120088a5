"""Activation patching between two models: what may be exchanged, where, and who it belongs to.

Weight patching puts the donor's parameters into the host; activation patching puts in what a component of the donor makes in the
donor's own run on the same input. The components are the same ones, so scores of both have the same shapes and stand side by side.
Known: Sun et al., arXiv 2604.13694, compare the two; which activation is exchanged is ours, and a switch.
"""

from typing import NamedTuple

from jaxpatch.patching import components
from jaxpatch.patching.components import Kind, Partition
from jaxpatch.shapes import Params

SITES = ("contribution", "vector")
POSITIONS = ("all", "last")
WRITES = ("head", "neuron", "expert", "attention", "mlp", "layer")
"""Kinds that write into the residual stream: what they write is exchanged."""
READS = ("query", "key", "value", "kv")
"""What a head reads by: its queries, or its group's keys, values or both, as W_Q, W_K and W_V make them."""


class Exchange(NamedTuple):
    """How activations are exchanged.

    site: "contribution", what a component adds to the residual stream, by each model's own output matrix; or "vector", what meets
        the output matrix (a head's vector before W_O, a neuron's activation), and the host's own matrix writes it. Layers, queries,
        keys and values are the same under both.
    positions: of the prompt at which the donor's take the place of the host's: "all", or the "last" token alone.
    """

    site: str = "contribution"
    positions: str = "all"


def of_decoder(params: Params) -> dict[str, Kind]:
    """What can be exchanged between decoders of these shapes. Kinds own what they own as weights, so that overlaps are known.

    Example:
        >>> from jaxpatch import testing
        >>> exchanged = of_decoder(testing.tiny_pair().base)
        >>> exchanged["query"].shape, exchanged["key"].shape, "embed" in exchanged
        ((3, 4), (3, 2), False)
    """
    owned = components.of_decoder(params)
    parts = {"query": ("head", "q"), "key": ("kv", "k"), "value": ("kv", "v")}
    made = {name: kind for name, kind in owned.items() if name in (*WRITES, "kv")}
    for name, (kind, matrix) in parts.items():
        slots = tuple(slot for slot in owned[kind].slots if slot.leaf.startswith(f"layers/attn/{matrix}/"))
        made[name] = owned[kind]._replace(slots=slots)
    return made


def faults(exchange: Exchange) -> list[str]:
    """What is wrong with one.

    >>> faults(Exchange(site="z"))
    ["site: wanted 'contribution' or 'vector'; got 'z'."]
    """
    return [
        f"{name}: wanted {' or '.join(map(repr, known))}; got {value!r}."
        for name, value, known in (
            ("site", exchange.site, SITES),
            ("positions", exchange.positions, POSITIONS),
        )
        if value not in known
    ]


def refuse_unknown(partition: Partition, kinds: tuple[str, ...]) -> None:
    """Raises KeyError naming all kinds that have no activation of their own."""
    if missing := [kind for kind in kinds if kind not in partition]:
        raise KeyError(
            f"nothing to exchange for {', '.join(map(repr, missing))}: activation patching takes what components make in a run, "
            f"{', '.join(partition)}."
        )
