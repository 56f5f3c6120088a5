"""Loading, beside transformers' own loader: seconds, and the most memory held on the way.

    python -m benchmarks.load                           # Linux; SmolLM2-135M on the CPU

Each load is a process of its own, with everything imported and the files in the file cache. It counts until a byte of every page of
the parameters was read, because files can be mapped to memory and not read; a file that stays mapped is held too. The kernel says how
much the process held at most, and what it held before. As much memory as will be needed was used and given back before: a virtual
machine must ask its host for what it has not used lately, which can take longer than all the rest.
"""

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxpatch as jp
from benchmarks import pairs, report, timing
from jaxpatch import fetch, testing
from jaxpatch.models import checkpoints

FOLDER = report.FOLDER.parent / "build" / "load"
PAGE = 4096
"""Bytes of a page of memory."""
USED = 5 * 2**28
"""Bytes used and given back before: more than any of these loads needs."""
SHARD = "100MB"


class Load(NamedTuple):
    """Of one process. held: most memory beside what was held before; kept: bytes of the parameters, in MiB."""

    seconds: float
    held: float
    kept: float


def ours(dtype: str, places: Sequence[Path]) -> tuple[Any, list[np.ndarray]]:
    """What is kept, and every array of it once, as bytes."""
    if len(places) == 1:
        kept = sides = checkpoints.load(places[0], dtype).params
    else:
        kept = jp.load_pair(*places, dtype=dtype)
        sides = [kept.base, kept.special]
    own = {id(leaf): leaf for leaf in jax.tree.leaves(sides)}
    return kept, [np.asarray(leaf).view(np.uint8) for leaf in own.values()]


def theirs(dtype: str, places: Sequence[Path]) -> tuple[Any, list[np.ndarray]]:
    """The same by transformers, which reads the base once more for an adapter."""
    import torch

    kept = [_model(place, places[0], getattr(torch, dtype)) for place in places]
    leaves = [leaf.detach().view(torch.uint8).numpy() for model in kept for leaf in model.parameters()]
    return (kept, _tokenizer(places[0]) if len(places) == 2 else None), leaves


def _model(place: Path, base: Path, dtype: Any) -> Any:
    import peft
    import transformers

    if place.suffix == ".gguf":
        whole = {"gguf_file": place.name, "quantization_config": transformers.GgufConfig(dequantize=True)}
        return transformers.AutoModelForCausalLM.from_pretrained(place.parent, dtype=dtype, **whole)
    if (place / "adapter_config.json").exists():
        return peft.PeftModel.from_pretrained(_model(base, base, dtype), str(place)).merge_and_unload()
    return transformers.AutoModelForCausalLM.from_pretrained(place, dtype=dtype)


def _tokenizer(place: Path) -> Any:
    import transformers

    if place.suffix == ".gguf":
        return transformers.AutoTokenizer.from_pretrained(place.parent, gguf_file=place.name)
    return transformers.AutoTokenizer.from_pretrained(place)


LOADERS = {"jaxpatch": ours, "transformers": theirs}


def once(loader: str, dtype: str, places: Sequence[Path]) -> Load:
    """Here and now, after a tiny pair has shown what must be imported."""
    importlib.import_module("gguf")
    importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    for warm in LOADERS.values():
        warm("float32", testing.tiny_checkpoints(tempfile.mkdtemp()))
    np.ones(USED, np.uint8)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _mebibytes("VmRSS"), time.perf_counter()
    kept, leaves = LOADERS[loader](dtype, places)
    sum(int(leaf.reshape(-1)[::PAGE].sum()) for leaf in leaves)
    seconds = time.perf_counter() - began
    del kept
    return Load(seconds, _mebibytes("VmHWM") - before, sum(leaf.nbytes for leaf in leaves) / 2**20)


def _mebibytes(field: str) -> float:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None, field
    return int(found[1]) / 1024


def loading(loader: str, dtype: str, places: Sequence[Path]) -> Callable[[], Load]:
    command = [sys.executable, "-m", "benchmarks.load", "--once", loader, dtype, *map(str, places)]
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
    jp.save_checkpoint(halved, halved.base, narrow, dtype="bfloat16")
    return {
        "float32": ("float32", (whole,)),
        f"float32 in files of {SHARD}": ("float32", (shards,)),
        "bfloat16": ("bfloat16", (narrow,)),
        "bfloat16 read as float32": ("float32", (narrow,)),
        "two models and their tokenizer, float32": ("float32", (whole, special)),
        "a GGUF file and an adapter for it, and their tokenizer, float32": ("float32", sides),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=timing.FEWEST_REPEATS)
    options.add_argument("--once", nargs="+", metavar="WORD", help="loader, type and places: measured in this process")
    chosen = options.parse_args()
    if chosen.once:
        loader, dtype, *places = chosen.once
        print(json.dumps(once(loader, dtype, list(map(Path, places)))))
        return
    groups: dict[str, list[timing.Timed]] = {}
    figures, facts = [], {}
    for what, (dtype, places) in written().items():
        loads = {name: loading(name, dtype, places) for name in LOADERS}
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
            shapes={"pair": "SmolLM2-135M-Instruct (Q4_1) and the six_constraints adapter"},
            groups=groups,
            figures=figures,
            facts=facts,
        )
    )


if __name__ == "__main__":
    main()
