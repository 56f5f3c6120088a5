"""Base and the weighted sum of what the experts differ from it by."""

from jaxpatch.merging import changes
from jaxpatch.merging.method import Method


def merge(base, experts, asked, options):
    """``base + lambda sum_i w_i tau_i``."""
    own = changes.of(base, experts)
    return changes.merged(base, experts, own, asked, by_sign=False, is_normalized=options["normalize"])


METHOD = Method(
    merge,
    says="base and the weighted sum of the differences (Ilharco et al., arXiv 2212.04089)",
    takes=("scale",),
    options={"normalize": changes.normalize(False)},
    by_entry=True,
)
