"""The whole suite with one command, each benchmark in a process of its own, one after the other.

    python -m benchmarks.suite cpu                              # hours on 2 cores
    python -m benchmarks.suite accelerator                      # JAX and PyTorch both with CUDA

What fails is said at the end, and the others go on.
"""

import argparse
import shlex
import subprocess
import sys

CPU = (
    "exact --candidates 200 --sample 4",
    "exact --prompts 1 --sample 8",
    "limit",
    "cheap",
    "precision",
    "screened",
    "screened --pair small",
    "screened --pair small --scale 20",
    "screened --pair small --scale 60",
    "peak_memory",
    "load",
    "plan",
    "growth",
    "tracing",
    "merging",
    "against_transformer_lens",
)
ACCELERATOR = (
    "exact --pair llama-3.2-1b --candidates 2048",
    "limit --pair llama-3.2-1b --candidates 2048",
    "cheap --pair llama-3.2-1b",
    "precision --pair llama-3.2-1b",
    "exact --pair llama-3.1-8b --prompts 16 --kinds neuron --candidates 1024",
)
SUITES = {"cpu": CPU, "accelerator": ACCELERATOR}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("suite", choices=SUITES)
    chosen = options.parse_args()
    failed = []
    for words in SUITES[chosen.suite]:
        command = [sys.executable, "-m", *shlex.split(f"benchmarks.{words}")]
        print(f"\n$ python -m benchmarks.{words}", flush=True)
        if subprocess.run(command, check=False).returncode:
            failed.append(words)
    if failed:
        sys.exit("failed: " + "; ".join(failed))


if __name__ == "__main__":
    main()
