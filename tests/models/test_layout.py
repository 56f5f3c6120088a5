"""Heads and neurons are cut over a mesh and nothing else is; a pair is read straight into its parts."""

import os
import subprocess
import sys
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxpatch import testing
from jaxpatch.models import layout
from jaxpatch.trees import paths

LOAD = """
import sys
import jax
import numpy as np
import jaxpatch as jp
from jaxpatch import testing
from jaxpatch.models import layout
from jaxpatch.trees import paths
folders = testing.tiny_checkpoints(sys.argv[1])
mesh = jax.make_mesh((4, 2), ("candidates", "model"))
one, many = jp.load_pair(*folders), jp.load_pair(*folders, mesh=mesh)
for side in ("base", "special"):
    whole, parts = (paths.flatten(getattr(pair, side)) for pair in (one, many))
    for path, leaf in parts.items():
        assert len(leaf.addressable_shards) == 8
        assert np.array_equal(leaf, whole[path]), path
        times = 2 if path in layout.CUT_AXIS else 1
        assert all(times * shard.data.size == leaf.size for shard in leaf.addressable_shards), path
prompts = jp.encode(one, ["owls and snow", "bread"])
anchor = jp.Anchor(layer=1, direction=np.float32(np.eye(one.config.width)[0]))
scores = [jp.score(pair, prompts, anchor, kinds=("head", "layer"), mesh=mesh) for pair in (one, many)]
for kind in ("head", "layer"):
    print("apart", np.abs(scores[0].values[kind] - scores[1].values[kind]).max())
for save in (jp.save_checkpoint, jp.save_orbax):
    saved = save(many, many.special, f"{sys.argv[1]}/{save.__name__}")
    again = paths.flatten(jp.load_pair(folders[0], saved, mesh=mesh).special)
    print("saved", all(np.array_equal(leaf, again[path]) for path, leaf in paths.flatten(one.special).items()))
    assert all(again[path].sharding == leaf.sharding for path, leaf in paths.flatten(many.special).items())
"""


@pytest.mark.slow
def test_each_of_eight_devices_gets_its_part_of_a_pair(tmp_path):
    here = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=here, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *apart, tensors, orbax = done.stdout.splitlines()
    assert all(float(line.split()[1]) < 1e-5 for line in apart) and len(apart) == 2
    assert tensors == orbax == "saved True"


def test_every_matrix_of_a_block_is_cut_and_nothing_else():
    flat: Mapping = paths.flatten(
        testing.tiny_pair(testing.tiny_config(attention_bias=True, output_bias=True, mlp_bias=True)).base
    )
    kept = {path for path in flat if path not in layout.CUT_AXIS}
    assert set(layout.CUT_AXIS) <= set(flat)
    assert kept == {
        "embed/kernel",
        "unembed/kernel",
        "final_norm/scale",
        "layers/attn_norm/scale",
        "layers/mlp_norm/scale",
        "layers/attn/o/bias",
        "layers/mlp/down/bias",
    }
    sizes = {4, 2, 24}
    assert all(flat[path].shape[axis] in sizes for path, axis in layout.CUT_AXIS.items())


def test_unknown_axes_are_refused():
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    with pytest.raises(
        ValueError, match=r"unknown axes data; wanted 'candidates', 'model' or both\. Make it with jax.make_mesh"
    ):
        layout.checked(mesh)
