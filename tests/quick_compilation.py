"""Settings for hundreds of small programs, here and in other processes, each run for a moment: what counts is how soon they compile.

To be imported before jax.
"""

import os

os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ["XLA_FLAGS"] = " ".join(
    [
        *os.environ.get("XLA_FLAGS", "").split(),
        "--xla_cpu_use_fusion_emitters=false",  # narrow blocks compile in 4.7 s where it took 10.9, others in 3.0 for 7.1
        "--xla_cpu_parallel_codegen_split_count=1",  # and in 2.1
    ]
)
