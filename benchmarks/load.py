"""Loading, beside transformers' own loader: seconds, and the most memory held on the way.

    python -m benchmarks.load                           # Linux; SmolLM2-135M on the CPU

Each load is a process of its own, with everything imported and the files in the file cache. It counts until a byte of every page of
the parameters was read, because files can be mapped to memory and not read; a file that stays mapped is held too. The kernel says how
much the process held at most, and what it held before. As much memory as will be needed was used and given back before: a virtual
machine must ask its host for what it has not used lately, which can take longer than all the rest.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import jaxpatch as jp
from benchmarks import pairs, report, timing
from jaxpatch import fetch

FOLDER = report.FOLDER.parent / "build" / "load"
PAGE = 4096
"""Bytes of a page of memory."""
USED = 5 * 2**28
"""Bytes used and given back before: more than any of these loads needs."""
SHARD = "100MB"
MEASURE = """
import json, re, sys, time
from pathlib import Path
import numpy as np
def mebibytes(field):
    return int(re.search(rf"^{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) / 1024
import transformers
loader, dtype, *folders = sys.argv[1:]
transformers.utils.logging.disable_progress_bar()
transformers.AutoTokenizer.from_pretrained(folders[0])
if loader == "transformers":
    import torch
    torch.zeros(1)
    model_class = transformers.models.llama.LlamaForCausalLM
    def load():
        models = [model_class.from_pretrained(folder, dtype=getattr(torch, dtype)) for folder in folders]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folders[0]) if len(folders) == 2 else None
        return (models, tokenizer), [leaf.detach().view(torch.uint8).numpy() for model in models for leaf in model.parameters()]
else:
    import jax
    import jax.numpy as jnp
    import safetensors
    from jaxpatch.models import checkpoints
    jnp.zeros(1).block_until_ready()
    def load():
        if len(folders) == 2:
            pair = checkpoints.load_pair(*folders, dtype=dtype)
            kept, sides = pair, [pair.base, pair.special]
        else:
            kept = sides = [checkpoints.load(Path(folders[0]), dtype).params]
        own = {id(leaf): leaf for leaf in jax.tree.leaves(sides)}
        return kept, [np.asarray(leaf).view(np.uint8) for leaf in own.values()]
np.ones(USED, np.uint8)
Path("/proc/self/clear_refs").write_text("5")
before, began = mebibytes("VmRSS"), time.perf_counter()
kept, leaves = load()
touched = sum(int(leaf.reshape(-1)[::PAGE].sum()) for leaf in leaves)
seconds = time.perf_counter() - began
print(json.dumps([seconds, mebibytes("VmHWM") - before, sum(leaf.nbytes for leaf in leaves) / 2**20]))
""".replace("PAGE", str(PAGE)).replace("USED", str(USED))


class Load(NamedTuple):
    """Of one process. held: most memory beside what was held before; kept: bytes of the parameters, in MiB."""

    seconds: float
    held: float
    kept: float


def loading(loader: str, dtype: str, *folders: Path) -> Callable[[], Load]:
    command = [sys.executable, "-c", MEASURE, loader, dtype, *map(str, folders)]
    return lambda: Load(*json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def written() -> dict[str, tuple[str, tuple[Path, ...]]]:
    """What is loaded: words -> type in memory, directories."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    whole, special, shards, narrow = (FOLDER / name for name in ("float32", "special", "shards", "bfloat16"))
    sides = fetch.smollm2(report.FOLDER.parent / "models"), pairs.ADAPTER
    pair, halved = jp.load_pair(*sides), jp.load_pair(*sides, dtype="bfloat16")
    jp.save_checkpoint(pair, pair.base, whole)
    jp.save_checkpoint(pair, pair.special, special)
    jp.save_checkpoint(pair, pair.base, shards, max_shard_size=SHARD)
    jp.save_checkpoint(halved, halved.base, narrow)
    return {
        "float32": ("float32", (whole,)),
        f"float32 in files of {SHARD}": ("float32", (shards,)),
        "bfloat16": ("bfloat16", (narrow,)),
        "bfloat16 read as float32": ("float32", (narrow,)),
        "two models and their tokenizer, float32": ("float32", (whole, special)),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=timing.FEWEST_REPEATS)
    chosen = options.parse_args()
    groups: dict[str, list[timing.Timed]] = {}
    figures, facts = [], {}
    for what, (dtype, folders) in written().items():
        loads = {name: loading(name, dtype, *folders) for name in ("jaxpatch", "transformers")}
        firsts = {name: load() for name, load in loads.items()}
        rounds = [{name: load() for name, load in loads.items()} for _ in range(chosen.repeats)]
        for name in loads:
            side = timing.Side(name, loads[name], firsts[name].kept, "MiB")
            each = [one[name] for one in rounds]
            seconds = tuple(load.seconds for load in each)
            groups.setdefault(what, []).append(timing.Timed(side, firsts[name].seconds, seconds, None, float("nan")))
            held = float(np.median([load.held / load.kept for load in each]))
            facts[f"{what}, {name}: most memory held, times what is kept"] = held
        times = [[one[name].seconds for one in rounds] for name in ("transformers", "jaxpatch")]
        figures.append(timing.ratio(f"{what}: transformers' seconds over jaxpatch's", *times))
        print(figures[-1], list(facts.items())[-2:], flush=True)
    report.publish(
        report.Report(
            name="load",
            title="Loading a model, beside transformers: each load a fresh process, the files in the file cache",
            shapes={"pair": "SmolLM2-135M-Instruct and the six_constraints adapter, merged"},
            groups=groups,
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
