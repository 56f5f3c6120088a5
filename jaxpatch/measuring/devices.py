"""Many devices: candidates along one axis of a mesh, each block's heads and neurons along another. XLA inserts what they must exchange.

The axes are named "candidates" and "model"; a mesh may have either or both. Weights are cut where heads or neurons divide evenly, and
copied where they do not. The residual stream is never cut.

Among several processes (`jax.distributed`) each does all the work that is not cut, and gets all the numbers.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpatch.measuring.downstream import Models
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

CANDIDATES, MODEL = "candidates", "model"
CUT_AXIS = {
    "layers/attn/q/kernel": -2,
    "layers/attn/q/bias": -2,
    "layers/attn/k/kernel": -2,
    "layers/attn/k/bias": -2,
    "layers/attn/v/kernel": -2,
    "layers/attn/v/bias": -2,
    "layers/attn/o/kernel": -3,
    "layers/mlp/gate/kernel": -1,
    "layers/mlp/gate/bias": -1,
    "layers/mlp/up/kernel": -1,
    "layers/mlp/up/bias": -1,
    "layers/mlp/down/kernel": -2,
}
"""Leaf -> the axis of its heads or neurons, from the end: experts have an axis more before."""
NUM_PROCESSES, PROCESS_ID = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join() -> None:
    """Make this process one of several, as its cluster says (Slurm, Open MPI, Kubernetes, Cloud TPU), or else its environment.

    Before anything else is asked of JAX. Raises: ValueError where neither says how many there are, or which one this is.
    """
    number, own = (os.environ.get(name) for name in (NUM_PROCESSES, PROCESS_ID))
    try:
        jax.distributed.initialize(
            num_processes=None if number is None else int(number), process_id=None if own is None else int(own)
        )
    except ValueError as error:
        raise ValueError(
            f"several processes: {error} Where no cluster says it (Slurm, Open MPI, Kubernetes, Cloud TPU), set "
            f"JAX_COORDINATOR_ADDRESS=HOST:PORT and {NUM_PROCESSES} to the same in each process, and {PROCESS_ID} to 0, 1, ..."
        ) from error


def is_first() -> bool:
    """Whether this process writes what several have found."""
    return jax.process_index() == 0


def grid(shape: tuple[int, int] | None) -> Mesh:
    """The mesh of so many devices for candidates, times so many for each block; of all devices, for candidates, where None.

    Raises: ValueError for more devices than there are, or, among several processes, for fewer.
    """
    there = jax.device_count()
    shape = (there, 1) if shape is None else shape
    if math.prod(shape) > there or (jax.process_count() > 1 and math.prod(shape) < there):
        wanted = "all of them" if jax.process_count() > 1 else "no more"
        across, down = shape
        raise ValueError(f"a mesh of {across} x {down} = {across * down} devices; there are {there}, wanted {wanted}.")
    return jax.make_mesh(shape, (CANDIDATES, MODEL))


def told(words: bytes) -> list[bytes]:
    """What every process says here, in their order. All must come here."""
    if jax.process_count() == 1:
        return [words]
    from jax.experimental import multihost_utils

    lengths = np.asarray(multihost_utils.process_allgather(np.int32(len(words))))
    room = np.zeros(max(1, lengths.max()), np.uint8)
    room[: len(words)] = np.frombuffer(words, np.uint8)
    said = np.asarray(multihost_utils.process_allgather(room))
    return [row[:length].tobytes() for row, length in zip(said, lengths, strict=True)]


def agreed(identity: Mapping[str, str]) -> dict[str, str]:
    """What all processes go by: the smallest budget, and for the rest what each of them says.

    Raises: ValueError, in all of them, naming what differs.
    """
    first, *others = every = [json.loads(said) for said in told(json.dumps(dict(identity)).encode())]
    for number, other in enumerate(others, start=1):
        if differ := [name for name in first if name != "budget" and other[name] != first[name]]:
            what = ", ".join(f"{name} ({other[name]}, and {first[name]} in process 0)" for name in differ)
            raise ValueError(f"process {number} has other {what}. Start each with the same pair, prompts and options.")
    return first | {"budget": str(min(int(each["budget"]) for each in every))}


def checked(mesh: Mesh) -> Mesh:
    """The mesh with axes over which XLA decides what is exchanged. Raises ValueError for axes that mean nothing here."""
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: wanted a jax.sharding.Mesh, as jax.make_mesh makes it; got {mesh!r}.")
    if unknown := [name for name in mesh.axis_names if name not in (CANDIDATES, MODEL)]:
        raise ValueError(
            f"mesh: unknown axes {', '.join(map(str, unknown))}; wanted {CANDIDATES!r}, {MODEL!r} or both. "
            f"Make it with jax.make_mesh((4, 2), ({CANDIDATES!r}, {MODEL!r}))."
        )
    return Mesh(mesh.devices, mesh.axis_names)


def spread(models: Models, mesh: Mesh) -> Models:
    """The models where the mesh wants them; prompts and read-outs are copied to every device."""
    host = _cut(models.host, mesh)
    donor = host if models.donor is models.host else _cut(models.donor, mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    others = models._replace(host={}, donor={})
    return jax.tree.map(lambda leaf: _put(leaf, whole), others)._replace(host=host, donor=donor)


def width(mesh: Mesh | None) -> int:
    """Devices along the axis of candidates."""
    return 1 if mesh is None else mesh.shape.get(CANDIDATES, 1)


def along_candidates(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis counts candidates."""
    return NamedSharding(mesh, PartitionSpec(CANDIDATES if CANDIDATES in mesh.axis_names else None))


def everywhere(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _cut(params: Params, mesh: Mesh) -> Params:
    parts = mesh.shape.get(MODEL, 1)
    placed = {}
    for path, leaf in paths.flatten(params).items():
        axis = leaf.ndim + CUT_AXIS.get(path, -leaf.ndim)
        is_cut = parts > 1 and path in CUT_AXIS and leaf.shape[axis] % parts == 0
        spec = PartitionSpec(*(None,) * axis, MODEL) if is_cut else PartitionSpec()
        placed[path] = _put(leaf, NamedSharding(mesh, spec))
    return paths.unflatten(placed)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Among several processes an array goes out from the host of each, which holds all of it."""
    if jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True):
        leaf = np.asarray(leaf)
    return jax.device_put(leaf, sharding)
