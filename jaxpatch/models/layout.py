"""Where a model lies on a mesh: heads and neurons along the axis "model", where they divide evenly; all else copied to every device."""

from jax.sharding import Mesh, NamedSharding, PartitionSpec

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


def sharding(path: str, shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of the leaf at a path.

    >>> import jax
    >>> mesh = jax.make_mesh((1, 1), (CANDIDATES, MODEL))
    >>> sharding("layers/mlp/up/kernel", (3, 16, 24), mesh).is_fully_replicated
    True
    """
    parts = mesh.shape.get(MODEL, 1)
    axis = len(shape) + CUT_AXIS.get(path, -len(shape))
    is_cut = parts > 1 and path in CUT_AXIS and shape[axis] % parts == 0
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, MODEL) if is_cut else PartitionSpec())
