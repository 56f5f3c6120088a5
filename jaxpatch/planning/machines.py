"""How fast machines are: accelerators by what their makers publish, and what a piece of work takes at a pace."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxpatch.planning.cost import Bill, Work

ASSUMED_SHARE = 0.4
"""Of the peak that the engine reaches on an accelerator. An assumption: large matrix products reach more, a small model less."""


class Pace(NamedTuple):
    """How fast one part of the engine goes. flops: a second. moved: bytes a second. piece: seconds that each one takes beside them."""

    flops: float
    moved: float = float("inf")
    piece: float = 0.0

    def seconds(self, work: Work) -> float:
        """Whichever takes longer, the arithmetic or the weights' way to it, and what the pieces take.

        >>> Pace(flops=10.0, moved=2.0, piece=1.0).seconds(Work(flops=20, moved=8, pieces=3))
        7.0
        """
        return max(work.flops / self.flops, work.moved / self.moved) + work.pieces * self.piece


def seconds(bill: Bill, paces: Mapping[str, Pace]) -> float:
    """Of all parts, one after another."""
    return sum(paces[part].seconds(work) for part, work in bill.items())


class Machine(NamedTuple):
    """One accelerator. peak: dense operations a second, by what is multiplied: "bfloat16", or float32 at a precision of
    `layers.PRECISIONS`. memory: bytes. moved: bytes a second between it and the processor. source: where the numbers stand."""

    name: str
    peak: Mapping[str, float]
    memory: float
    moved: float
    source: str

    def pace(self, dtype: str, precision: str) -> Pace:
        """Of every part of the engine, at the assumed share of the peak."""
        return Pace(ASSUMED_SHARE * self.peak[precision if dtype == "float32" else "bfloat16"], self.moved)


def _nvidia(bfloat16: float, tf32: float, float32: float) -> dict[str, float]:
    return {"bfloat16": bfloat16, "highest": float32, "high": tf32, "default": tf32}


def _tpu(bfloat16: float) -> dict[str, float]:
    """A TPU multiplies bfloat16 alone; XLA makes float32 of six products, or of three, or takes one."""
    return {"bfloat16": bfloat16, "highest": bfloat16 / 6, "high": bfloat16 / 3, "default": bfloat16}


MACHINES: dict[str, Machine] = {
    "h100": Machine(
        "NVIDIA H100 SXM 80 GB",
        _nvidia(bfloat16=989e12, tf32=494e12, float32=67e12),
        80e9,
        3.35e12,
        "NVIDIA H100 Tensor Core GPU datasheet, SXM column; its tensor figures are with sparsity, halved here",
    ),
    "a100": Machine(
        "NVIDIA A100 SXM 80 GB",
        _nvidia(bfloat16=312e12, tf32=156e12, float32=19.5e12),
        80e9,
        2.039e12,
        "NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM column, without sparsity",
    ),
    "tpu-v5e": Machine("Google TPU v5e", _tpu(197e12), 16e9, 819e9, "Google Cloud documentation, TPU v5e, per chip"),
    "tpu-v5p": Machine("Google TPU v5p", _tpu(459e12), 95e9, 2.765e12, "Google Cloud documentation, TPU v5p, per chip"),
}
"""By the names of `--device`."""
