"""Settings for hundreds of small programs, here and in other processes, each run for a moment: what counts is how soon they compile.

To be imported before jax.
"""

import importlib.metadata
import os

EMITTERS = ["--xla_cpu_use_fusion_emitters=false"] if importlib.metadata.version("jaxlib").startswith("0.10.") else []
"""Narrow blocks compile in 4.7 s without them where it took 10.9, others in 3.0 for 7.1. Later jaxlib know no such flag, and abort."""

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        *EMITTERS,
        "--xla_cpu_parallel_codegen_split_count=1",  # and in 2.1
    ]
)
