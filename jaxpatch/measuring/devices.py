"""Many devices: candidates along one axis of a mesh, each block's heads and neurons along another. XLA inserts what they must exchange.

The axes are named "candidates" and "model"; a mesh may have either or both. Weights are cut where heads or neurons divide evenly, and
copied where they do not. The residual stream is never cut.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxpatch.measuring.downstream import Models
from jaxpatch.shapes import Params
from jaxpatch.trees import paths

CANDIDATES, MODEL = "candidates", "model"
CUT_AXIS = {
    "layers/attn/q/kernel": 2,
    "layers/attn/q/bias": 1,
    "layers/attn/k/kernel": 2,
    "layers/attn/k/bias": 1,
    "layers/attn/v/kernel": 2,
    "layers/attn/v/bias": 1,
    "layers/attn/o/kernel": 1,
    "layers/mlp/gate/kernel": 2,
    "layers/mlp/gate/bias": 1,
    "layers/mlp/up/kernel": 2,
    "layers/mlp/up/bias": 1,
    "layers/mlp/down/kernel": 1,
}
"""Leaf -> the axis of its heads or neurons."""


def checked(mesh: Mesh) -> Mesh:
    """The mesh with axes over which XLA decides what is exchanged. Raises ValueError for axes that mean nothing here."""
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
        axis = CUT_AXIS.get(path, 0)
        is_cut = parts > 1 and path in CUT_AXIS and leaf.shape[axis] % parts == 0
        spec = PartitionSpec(*(None,) * axis, MODEL) if is_cut else PartitionSpec()
        placed[path] = _put(leaf, NamedSharding(mesh, spec))
    return paths.unflatten(placed)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Among several processes an array goes out from the host of each, which holds all of it."""
    if jax.process_count() > 1 and getattr(leaf, "is_fully_addressable", True):
        leaf = np.asarray(leaf)
    return jax.device_put(leaf, sharding)
