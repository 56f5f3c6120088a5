"""Everything a run found, in one value that the tables, figures and the page are made from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jaxpatch.measuring.anchors import AnchorInfo
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.scoring.scores import Scores
from jaxpatch.tracing.flow import Flow
from jaxpatch.tracing.roles import Roles
from jaxpatch.validating.curves import Curve
from jaxpatch.validating.smallest import Smallest


class Sample(NamedTuple):
    """What one model wrote to one prompt. model: "base", "special", or a patched one. follows, loosely: whether the answer obeys by the
    strict and by the loose rule; None where unjudged."""

    prompt: str
    model: str
    text: str
    follows: bool | None
    loosely: bool | None = None


class Along(NamedTuple):
    """How a model follows others along their answers, on average over prompts. to_special: KL(special || it) along special's answers to
    the behaviour prompts, nats a token. to_base: KL(base || it) along base's answers to prompts without the instruction: side
    effects. perplexity: of those answers of base's. order: whose first components it has of special's, "top" for the ranking, or a
    control's name; "" of base, special and all components together. size: how many of them."""

    to_special: float
    to_base: float
    perplexity: float
    order: str = ""
    size: int | None = None


class Findings(NamedTuple):
    """One run. task: its name; question: option -> value as asked for.

    roles: of the components that E_a was asked of; None where of none. curves and samples may be empty (not asked for). pair: what
    `likeness.of_pair` says. manifest: versions, hashes, dtype, seed, commit, times. flow: who supplies whom; None where not traced.
    smallest: sets of the ranking that recover some shares; empty without curves. along: model -> how it follows the others; of those
    that wrote samples. judged_on: which prompts curves and smallest sets are of.
    """

    task: str
    question: Mapping[str, Any]
    anchor: Anchor
    anchor_info: AnchorInfo | None
    scores: Scores
    roles: Roles | None
    curves: tuple[Curve, ...]
    samples: tuple[Sample, ...]
    pair: Mapping[str, Any]
    manifest: Mapping[str, Any]
    flow: Flow | None = None
    smallest: tuple[Smallest, ...] = ()
    along: Mapping[str, Along] = MappingProxyType({})
    judged_on: str = "the scored prompts"

    @property
    def forced(self) -> tuple[str, ...]:
        """Checks that the anchor fails although it was used: then all of this says little, and every file says so."""
        info = self.anchor_info
        return () if info is None else tuple(f"{c.name} is {c.value:.3g}, wanted {c.wanted}" for c in info.failed)
