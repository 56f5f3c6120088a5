"""Shell: scores on disk, whole: what a notebook, or another run, goes on with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxpatch import array_file
from jaxpatch.patching.components import Kind, Slot
from jaxpatch.patching.exchange import Exchange
from jaxpatch.scoring.method import Round, Screening
from jaxpatch.scoring.scores import Scores

BY_KIND = ("values", "effects", "low", "high")
FORMAT = "jaxpatch scores 1"


def save_scores(found: Scores, path: str | Path, *, note: str = "") -> Path:
    """All that `score` returned, effects of single prompts too, as one safetensors file.

    Args: note: what a reader of the file must know; kept beside the numbers.

    Returns: the path.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import jaxpatch as jp
        >>> from jaxpatch import testing
        >>> anchor = jp.Anchor(layer=1, direction=jnp.eye(16)[0])
        >>> found = jp.score(testing.tiny_pair(), testing.tiny_inputs(), anchor, kinds=("head",))
        >>> again = load_scores(save_scores(found, Path(tempfile.mkdtemp()) / "scores.safetensors"))
        >>> bool((again.values["head"] == found.values["head"]).all()), again.method
        (True, 'exact')
    """
    arrays = _arrays(found)
    arrays |= {f"whole/{name}": effect for name, effect in found.whole.items()}
    said: dict[str, Any] = {name: getattr(found, name) for name in ("method", "mode", "aggregate", "layer", "repairs")}
    said |= {name: dict(getattr(found, name)) for name in ("ceilings", "noise")}
    said |= {"exchange": found.exchange, "kinds": list(found.values)}
    said["partition"] = {name: _kind_out(kind) for name, kind in found.partition.items()}
    said["screening"] = {}
    for kind, each in found.screening.items():
        fields = each._asdict()
        arrays |= {f"screening/{kind}/{name}": fields.pop(name) for name in ("replaced", "is_random", "cheap", "exact")}
        said["screening"][kind] = fields
    about = {"format": FORMAT, "scores": json.dumps(said, default=_plain)} | ({"note": note} if note else {})
    return array_file.write(path, arrays, about)


def load_scores(path: str | Path) -> Scores:
    """What `save_scores` wrote, bit for bit: `Scores` again.

    Raises: FileNotFoundError; ValueError for any other file.
    """
    about, arrays = array_file.read(path, "one that save_scores wrote, or a run's scores.safetensors")
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} holds no scores: its format is {about.get('format')!r}, wanted {FORMAT!r}.")
    said = json.loads(about["scores"])
    parts: dict[str, dict[str, np.ndarray]] = {part: {} for part in BY_KIND}
    screened: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        part, _, rest = name.partition("/")
        if part in parts:
            parts[part][rest] = array
        elif part == "screening":
            kind, _, field = rest.rpartition("/")
            screened.setdefault(kind, {})[field] = array
    screening = {}
    for kind, fields in said["screening"].items():
        rounds = tuple(Round(*each) for each in fields.pop("rounds"))
        screening[kind] = Screening(**screened[kind], **fields, rounds=rounds)
    return Scores(
        **{part: {kind: several[kind] for kind in said["kinds"]} for part, several in parts.items()},
        gap=arrays["gap"],
        is_kept=arrays["is_kept"],
        ceilings=said["ceilings"],
        noise=said["noise"],
        method=said["method"],
        mode=said["mode"],
        aggregate=said["aggregate"],
        layer=said["layer"],
        partition={name: _kind_in(kind) for name, kind in said["partition"].items()},
        screening=screening,
        exchange=None if said["exchange"] is None else Exchange(*said["exchange"]),
        repairs=tuple(said["repairs"]),
        whole={name: arrays[f"whole/{name}"] for name in said["ceilings"] if f"whole/{name}" in arrays},
    )


def digest(found: Scores) -> str:
    """What scores are recognised by: a hash of every bit of every array.

    >>> import jax.numpy as jnp
    >>> import jaxpatch as jp
    >>> from jaxpatch import testing
    >>> anchors = [jp.Anchor(layer=1, direction=jnp.eye(16)[axis]) for axis in (0, 0, 1)]
    >>> one, same, other = (digest(jp.score(testing.tiny_pair(), testing.tiny_inputs(), each, kinds=("head",))) for each in anchors)
    >>> one == same, one == other
    (True, False)
    """
    made = hashlib.sha256(str(found.layer).encode())
    for name, array in sorted(_arrays(found).items()):
        made.update(f"\n{name} {array.shape} {array.dtype}\n".encode() + np.ascontiguousarray(array).tobytes())
    return made.hexdigest()


def _arrays(found: Scores) -> dict[str, np.ndarray]:
    """All that is kept of every component, and of every prompt."""
    arrays = {f"{part}/{kind}": np.asarray(array) for part in BY_KIND for kind, array in getattr(found, part).items()}
    return arrays | {"gap": np.asarray(found.gap), "is_kept": np.asarray(found.is_kept)}


def _kind_out(kind: Kind) -> dict[str, Any]:
    slots = [[s.leaf, s.axes, ["..." if at is ... else at for at in s.select]] for s in kind.slots]
    return {**kind._asdict(), "slots": slots}


def _kind_in(said: dict[str, Any]) -> Kind:
    slots = tuple(
        Slot(leaf, tuple(axes), tuple(... if at == "..." else at for at in select))
        for leaf, axes, select in said["slots"]
    )
    return Kind(tuple(said["shape"]), tuple(said["axes"]), slots, tuple(said["members"]))


def _plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a file of scores")
