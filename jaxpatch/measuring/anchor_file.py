"""Shell: an anchor on disk."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from jaxpatch import array_file
from jaxpatch.measuring.read_outs import READ_OUTS, Anchor


def save_anchor(anchor: Anchor, path: str | Path, **about: str) -> Path:
    """One safetensors file: the direction, the centre where there is one, and in its metadata the layer, the read-out and `about`.

    Example:
        >>> import tempfile
        >>> path = save_anchor(Anchor(layer=1, direction=jnp.eye(4)[2]), Path(tempfile.mkdtemp()) / "anchor.safetensors")
        >>> load_anchor(path).layer, load_anchor(path).direction.tolist()
        (1, [0.0, 0.0, 1.0, 0.0])
    """
    arrays = {"direction": np.asarray(anchor.direction, np.float32)}
    if anchor.centre is not None:
        arrays["centre"] = np.asarray(anchor.centre, np.float32)
    metadata = {"layer": str(int(anchor.layer)), "read_out": anchor.read_out, **about}
    return array_file.write(path, arrays, metadata)


def load_anchor(path: str | Path) -> Anchor:
    """What `save_anchor` wrote, or a run: its anchor.safetensors.

    Raises: FileNotFoundError; ValueError for any other file.
    """
    about, arrays = array_file.read(path, "an anchor.safetensors")
    read_out = about.get("read_out", "")
    if "direction" not in arrays or read_out not in READ_OUTS or not about.get("layer", "").isdecimal():
        raise ValueError(f"{path} holds no anchor: wanted a direction, and in its metadata a layer and a read-out.")
    return Anchor(
        layer=int(about["layer"]),
        direction=jnp.asarray(arrays["direction"]),
        read_out=read_out,
        centre=jnp.asarray(arrays["centre"]) if "centre" in arrays else None,
    )
