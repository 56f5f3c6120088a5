"""Several devices, and several processes, give the scores of one."""

import os
import re
import socket
import subprocess
import sys

import jax
import pytest

from jaxpatch.measuring import devices

COMPARE = """
import dataclasses, os, sys
import jax
import numpy as np
if len(sys.argv) > 3:
    jax.distributed.initialize(sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
import jaxpatch as jp
from jaxpatch import testing
more = dict(experts=3, chosen=2) if os.environ.get("EXPERTS") else {}
pair, prompts = testing.tiny_pair(testing.tiny_config(**more)), testing.tiny_inputs()
sides = [jax.tree.map(lambda leaf: leaf.astype(os.environ["DTYPE"]), side) for side in (pair.base, pair.special)]
pair = dataclasses.replace(pair, base=sides[0], special=sides[1])
anchor = jp.Anchor(layer=2, direction=np.float32(np.eye(16)[0]))
mesh = jax.make_mesh((int(sys.argv[1]), int(sys.argv[2])), ("candidates", "model"))
kinds = ("head", "neuron", "kv", "expert" if more else "layer")
one, many = (jp.score(pair, prompts, anchor, kinds=kinds, mesh=each) for each in (None, mesh))
for kind in kinds:
    print("apart", np.abs(one.effects[kind] - many.effects[kind]).max() / np.abs(one.effects[kind]).max())
    print("scores apart", np.abs(one.values[kind] - many.values[kind]).max())
print("devices", len(jax.devices()))
"""


AMONG = """
import sys
import jax
import numpy as np
folder, address, number, own = sys.argv[3], sys.argv[4], int(sys.argv[5]), int(sys.argv[6])
jax.distributed.initialize(address, number, own)
import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.measuring import devices, memory, sweep
memory.FILL_CPU, sweep.SPAN = 100, 3
config = testing.tiny_config(neurons=96)
pair, prompts = testing.tiny_pair(config), testing.tiny_inputs(config)
anchor = jp.Anchor(layer=2, direction=np.float32(np.eye(16)[0]))
def scored(**more):
    return jp.score(pair, prompts, anchor, kinds=("neuron",), mesh=devices.grid(None), **more).effects["neuron"]
left = [20]
def step(done, total):
    left[0] -= 1
    if left[0] < 0:
        raise KeyboardInterrupt
whole = scored()
try:
    with jp.Journal(folder + str(own), period=0) as journal:
        scored(journal=journal, progress=lambda kind: step)
except KeyboardInterrupt:
    pass
with jp.Journal(folder + str(own)) as journal:
    same = np.array_equal(scored(journal=journal), whole)
print("same", same, "resumed", journal.num_resumed, "folder", journal.folder.exists())
print("told", devices.told(b"a" * own))
try:
    scored(seed=own)
except ValueError as error:
    print("refused", error)
try:
    devices.grid((1, 1))
except ValueError as error:
    print("refused", error)
"""


def processes(shape, number, others=(), *, script=COMPARE, dtype="float32", experts=False):
    """The same command in so many processes; each sees its share of the devices. Returns what they print."""
    here = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(shape[0] * shape[1] // number),
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_X64": str(int(dtype == "float64")),
        "DTYPE": dtype,
        "EXPERTS": "1" if experts else "",
    }
    commands = [
        [sys.executable, "-c", script, *map(str, shape), *others, *([str(n)] if others else [])] for n in range(number)
    ]
    started = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=here) for c in commands
    ]
    said = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        said.append(out)
    return said


def check(said, num_devices, tolerance, of_gap=1e-6):
    """Scores within 1e-6 of the gap; effects within the tolerance, of the largest."""
    scores, effects = (
        [float(number) for number in re.findall(rf"^{name} (\S+)", said, re.M)] for name in ("scores apart", "apart")
    )
    assert len(scores) == len(effects) == 4
    assert max(scores) <= of_gap and max(effects) <= tolerance
    assert f"devices {num_devices}" in said


@pytest.mark.parametrize(
    ("shape", "dtype", "tolerance", "experts"),
    [
        pytest.param((8, 1), "float32", 3e-6, False, marks=pytest.mark.slow),
        ((4, 2), "float64", 1e-12, False),
        pytest.param((4, 2), "float64", 1e-12, True, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_scores_of_one(shape, dtype, tolerance, experts):
    """In float32 a sum over devices is rounded in another order; in float64 nothing is left of that."""
    check(processes(shape, 1, dtype=dtype, experts=experts)[0], 8, tolerance)


@pytest.mark.slow
def test_eight_devices_of_a_narrow_model_give_the_scores_of_one():
    """Each device has a host of its own beside its candidates. What float32 rounds in another order may be rounded up or down again."""
    check(processes((4, 2), 1, dtype="bfloat16")[0], 8, 2**-8, of_gap=2**-8)


@pytest.fixture
def address():
    """Where two processes of this machine can meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_two_processes_give_the_scores_of_one(address):
    for said in processes((2, 2), 2, (address, "2"), dtype="float64"):
        check(said, 4, 1e-12)


def test_two_processes_share_one_journal_and_agree_on_what_they_do(tmp_path, address):
    """The second has no folder of its own, and is told what the first one's holds."""
    said = processes((2, 1), 2, (str(tmp_path / "of-"), address, "2"), script=AMONG)
    known = [re.search(r"same True resumed (\d+) folder (\w+)", each) for each in said]
    assert all(known) and [each[2] for each in known] == ["True", "False"]
    assert known[0][1] == known[1][1] != "0"
    for each in said:
        assert "told [b'', b'a']" in each
        assert "refused process 1 has other seed (1, and 0 in process 0)" in each
        assert "refused a mesh of 1 x 1 = 1 devices; there are 2, wanted all of them" in each


def test_alone_a_process_agrees_with_itself():
    identity = {"seed": "0", "budget": "5"}
    assert devices.told(b"words") == [b"words"] and devices.agreed(identity) == identity


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    assert dict(devices.grid(None).shape) == {"candidates": jax.device_count(), "model": 1}
    with pytest.raises(ValueError, match=r"9 x 9 = 81 devices; there are .*, wanted no more"):
        devices.grid((9, 9))
