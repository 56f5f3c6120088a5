"""Benchmarks with public tools only. Each file is one comparison with its own command; see README.md."""

import os

# JAX would otherwise take most of an accelerator's memory for itself, and leave PyTorch none in the same process.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# PyTorch's threads wait for one another in a busy loop. Where another process wants a core too, that can make it 27 times slower than
# it is (measured), and us look better than we are. On a quiet machine threads that sleep while they wait are within a tenth as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
