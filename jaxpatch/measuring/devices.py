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
from jaxpatch.models import layout
from jaxpatch.models.layout import CANDIDATES, MODEL
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

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
    flat = paths.flatten(params)
    return paths.unflatten({path: _put(leaf, layout.sharding(path, leaf.shape, mesh)) for path, leaf in flat.items()})


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Among several processes an array goes out from the host of each, which holds all of it."""
    if jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True):
        leaf = np.asarray(leaf)
    return jax.device_put(leaf, sharding)
