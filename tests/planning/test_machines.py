"""Paces and the table of accelerators."""

import math

import pytest

from jaxpatch.models import checkpoints, layers
from jaxpatch.planning.cost import Work
from jaxpatch.planning.machines import ASSUMED_SHARE, MACHINES, Pace, seconds


def test_the_parts_of_a_bill_follow_one_another():
    paces = {"head": Pace(10.0), "cheap": Pace(5.0, piece=1.0)}
    assert seconds({"head": Work(20, 10**9, 3), "cheap": Work(10, 0, 2)}, paces) == 2 + (2 + 2)


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_machine_knows_every_dtype_and_precision_and_says_from_where(machine):
    assert machine.source and machine.memory > 10e9
    half = machine.pace("bfloat16", "highest")
    assert half == machine.pace("float16", "default") and half.moved == machine.moved
    rates = [machine.pace("float32", precision).flops for precision in layers.PRECISIONS]
    assert rates == sorted(rates) and rates[-1] <= half.flops and all(map(math.isfinite, rates))
    assert set(checkpoints.DTYPES) - {"float64"} == {"float32", "bfloat16", "float16"}


def test_figures_of_the_datasheets():
    assert MACHINES["h100"].pace("float32", "highest").flops == ASSUMED_SHARE * 67e12
    assert MACHINES["a100"].pace("float32", "high").flops == ASSUMED_SHARE * 156e12
    assert MACHINES["tpu-v5e"].pace("bfloat16", "highest").flops == ASSUMED_SHARE * 197e12
    assert MACHINES["tpu-v5p"].memory == 95e9
