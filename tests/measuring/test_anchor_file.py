"""Anchors go to disk and come back as they were."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxpatch as jp


@pytest.mark.parametrize("centre", [None, jnp.array([0.5, -1.0, 2.0])])
def test_an_anchor_comes_back(centre, tmp_path):
    read_out = "projection" if centre is None else "centred"
    anchor = jp.Anchor(layer=7, direction=jnp.array([0.6, 0.0, 0.8]), read_out=read_out, centre=centre)
    again = jp.load_anchor(jp.save_anchor(anchor, tmp_path / "anchor.safetensors", task="owls"))
    assert (again.layer, again.read_out) == (7, read_out) and np.array_equal(again.direction, anchor.direction)
    assert (again.centre is None) == (centre is None) and (centre is None or np.array_equal(again.centre, centre))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file; wanted an anchor"):
        jp.load_anchor(tmp_path / "anchor.safetensors")
    (tmp_path / "torn").write_bytes(b"not one")
    with pytest.raises(ValueError, match="torn is no safetensors file"):
        jp.load_anchor(tmp_path / "torn")
    for metadata in (None, {"layer": "two", "read_out": "projection"}, {"layer": "2", "read_out": "taste"}):
        save_file({"direction": np.zeros(2, np.float32)}, tmp_path / "other", metadata)
        with pytest.raises(ValueError, match="other holds no anchor"):
            jp.load_anchor(tmp_path / "other")
