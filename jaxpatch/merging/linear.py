"""The weighted average of the experts' weights. Base is not looked at."""

from jaxpatch.merging import changes
from jaxpatch.merging.method import Method


def merge(base, experts, asked, options):
    """``sum_i w_i theta_i / sum_i w_i``; where experts hold one number, or all weight is one expert's, exactly that."""
    del base
    weights = asked.weights
    total = changes.total([expert * weight for expert, weight in zip(experts, weights, strict=True)])
    return changes.settled(total / weights.sum(), experts, weights) if options["normalize"] else total


def refuses(weights, density, options) -> list[str]:
    """A sum of nothing, by which nothing can be divided."""
    del density
    way_out = ", or normalize=False" if "normalize" in options else ""
    is_none = options.get("normalize", True) and abs(sum(weights)) < changes.NO_WEIGHT
    return [f"weights: they add up to 0, by which nothing can be divided; change them{way_out}."] if is_none else []


METHOD = Method(
    merge,
    says="weighted average of the experts (model soups: Wortsman et al., arXiv 2203.05482)",
    options={"normalize": changes.normalize(True)},
    refuses=refuses,
    by_entry=True,
)
