"""Shell: whether the model that an adapter says it was trained on is known to be another one than the model it goes into.

Names tell little: the same model is a folder here and an id on the hub, mirrors have other owners, quantised copies other endings. So
two names are known to be of two models only where both are hub ids whose last parts differ by more than such endings, or one id at two
revisions; or where both are folders here whose weights differ by more than rounding. This rule is ours.
"""

import re
from pathlib import Path

import numpy as np

from jaxpatch.models import sources
from jaxpatch.models.sources import Tensors

_COPY = re.compile(
    r"([-_.](unsloth|bnb|[2-8]-?bits?|gguf|gptq|awq|exl2|mlx|fp8|bf16|fp?16|fp?32|int[48]|w[48]a(8|16)|dynamic|hf))+$"
)
"""How the names of copies end: quantised, cast, or stored for another program."""
_SAMPLE = 256
"""Entries of each tensor that are compared, evenly spread."""
_ROUNDING = {"bfloat16": 2.0**-8, "float16": 2.0**-10}
"""By what share of itself a number may be off after it was rounded to a type, and back."""
_SMALLEST = 2.0**-24
"""Of float16; smaller numbers are lost there."""


def are_two(name: str, path: Path, said: str) -> bool:
    """Whether these are known to be two models.

    Args:
        name: of the model that is there, a path or a hub id. path: where it lies.
        said: what an adapter says it was trained on, which need not be here.

    Example:
        >>> here = Path("no/such/folder")
        >>> are_two("Qwen/Qwen2.5-0.5B", here, "Qwen/Qwen2.5-1.5B")
        True
        >>> are_two("meta-llama/Llama-3.2-1B", here, "unsloth/llama-3.2-1b-unsloth-bnb-4bit")
        False
    """
    other = Path(said).expanduser()
    if other.exists():
        return path.exists() and not path.samefile(other) and _hold_two(path, other)
    one, two = _hub_id(name) or _hub_id(str(path)), _hub_id(said)
    if one is None or two is None:
        return False
    if one[0] == two[0]:
        known = (one[1], path.name)  # a folder in the hub's cache is named by its commit
        return None not in (one[1], two[1]) and two[1] not in known
    return len({_COPY.sub("", each.partition("/")[2]) for each in (one[0], two[0])}) > 1


def _hub_id(name: str) -> tuple[str, str | None] | None:
    """An id in small letters, and a revision or None; None where it is none. A folder in the hub's cache tells both."""
    if cached := re.search(r"models--([^/]+)--([^/]+)/snapshots/([^/]+)$", Path(name).as_posix()):
        owner, model, commit = cached.groups()
        return f"{owner}/{model}".lower(), commit
    found = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(?:@(.+))?", name)
    return None if found is None or name.endswith(".gguf") or Path(name).exists() else (found[1].lower(), found[2])


def _hold_two(one: Path, two: Path) -> bool:
    """Whether two folders hold other models. What cannot be compared, GGUF files and quantised weights, tells nothing."""
    if any((folder / "adapter_config.json").exists() for folder in (one, two)):
        return True  # an adapter, and so another model than the one that it goes into, or than another adapter
    try:
        own, other = (sources.safetensors_of(tuple(folder.glob("model*.safetensors"))) for folder in (one, two))
    except sources.CheckpointError:
        return False
    alike = [name for name, shape in own.shapes.items() if other.shapes.get(name) == shape]
    is_known = bool(own.shapes.keys() & other.shapes.keys())
    return is_known and not (alike and all(_is_rounding(own, other, name) for name in alike))


def _is_rounding(own: Tensors, other: Tensors, name: str) -> bool:
    """Whether two tensors of a name differ by no more than being stored in two types."""
    one, two = (tensors.some(name, _SAMPLE) for tensors in (own, other))
    if one.dtype == two.dtype:
        return np.array_equal(one, two)
    off = sum(_ROUNDING.get(str(each.dtype), 0) for each in (one, two))
    return np.allclose(one.astype(np.float64), two.astype(np.float64), rtol=off or 2.0**-23, atol=_SMALLEST)
