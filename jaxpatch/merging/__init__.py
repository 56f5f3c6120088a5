"""Several experts of one base made one model. An open set: each file is one published method, a pure function of tensors."""

from jaxpatch.merging import (
    breadcrumbs,
    consensus,
    dare,
    della,
    fisher,
    linear,
    localize_and_stitch,
    regmean,
    slerp,
    task_arithmetic,
    ties,
)
from jaxpatch.merging.method import Method

METHODS: dict[str, Method] = {
    "linear": linear.METHOD,
    "slerp": slerp.METHOD,
    "task_arithmetic": task_arithmetic.METHOD,
    "ties": ties.METHOD,
    "dare_linear": dare.LINEAR,
    "dare_ties": dare.TIES,
    "della": della.TIES,
    "della_linear": della.LINEAR,
    "breadcrumbs": breadcrumbs.LINEAR,
    "breadcrumbs_ties": breadcrumbs.TIES,
    "localize_and_stitch": localize_and_stitch.METHOD,
    "consensus": consensus.METHOD,
    "fisher": fisher.METHOD,
    "regmean": regmean.METHOD,
}
"""Name -> method. Those that mergekit has bear its names, and its defaults."""

__all__ = ["METHODS", "Method"]
