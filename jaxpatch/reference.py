"""Shell: what transformers makes of a checkpoint, where torch is installed; and what it made of some known ones, where it is not.

Nothing else in the library imports torch, and this does only when it is asked to.
"""

import contextlib
import importlib.util
import io
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.models import checkpoints, decoder, lora, orbax_dir
from jaxpatch.models.checkpoints import Pair
from jaxpatch.models.config import DecoderConfig
from jaxpatch.models.differences import Difference
from jaxpatch.shapes import Params

TOLERANCE = 1e-4
"""Of the largest logit."""
NUM_TOKENS = 24


class Golden(NamedTuple):
    """What transformers computed of a checkpoint once. at: ids whose logits after the last token these are."""

    name: str
    tokens: tuple[int, ...]
    at: tuple[int, ...]
    logits: tuple[float, ...]


def _whole(words: str) -> tuple[int, ...]:
    return tuple(map(int, words.split()))


GOLDEN = {
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53": Golden(
        name="SmolLM2-135M-Instruct.Q4_1",
        tokens=_whole(
            "41809 31307 25123 13260 15130 2013 3698 812 8614 39973 31920 44863 24754 29817 47713 35856"
            " 31077 26720 27521 45960 13632 40100 32974 134"
        ),
        at=_whole("162 198 216 53 85 30 297 29 23258 25157 37117 46717 1713 7085 40449 46628"),
        logits=(
            *(26.164, 25.3098, 25.2744, 25.1815, 25.175, 24.7321, 24.7142, 24.7031),
            *(14.1654, 17.1828, 17.1576, 13.8288, 20.5908, 16.9434, 15.567, 16.2798),
        ),
    ),
}
"""sha256 of the weights -> what transformers made of them: `python -m jaxpatch.reference FILE` prints an entry."""


class NoReferenceError(RuntimeError):
    """There is nothing to compare with, and why."""


class Parity(NamedTuple):
    """How far logits are from a reference. apart: over the largest logit; NaN where not all are finite. agree: the most likely next
    tokens are the same."""

    reference: str
    apart: float
    agree: bool

    @property
    def is_passed(self) -> bool:
        return self.apart <= TOLERANCE and self.agree


def probe(config: DecoderConfig) -> list[int]:
    """Token ids that any model of this vocabulary can read."""
    return np.random.default_rng(0).integers(0, config.vocab, min(NUM_TOKENS, config.context)).tolist()


def of_transformers(path: Path, under: Path | None, config: DecoderConfig, params: Params) -> Parity:
    """Against the model that transformers loads from the same place, in float32, at every position of a probe.

    Args: path: a model directory, a .gguf file, or an adapter for `under`. params: float32, of this config.

    Raises: NoReferenceError naming what is not installed, or saying why transformers cannot read it.
    """
    needed = ("torch", "transformers") + ("peft",) * lora.is_adapter(path) + ("accelerate",) * (path.suffix == ".gguf")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise NoReferenceError(f"not installed: {', '.join(missing)}")
    import torch

    tokens = probe(config)
    try:
        with torch.no_grad(), _quiet():
            logits = _model(path, under)(torch.tensor([tokens])).logits[0]
    except Exception as error:  # transformers raises what its parsers raise
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise NoReferenceError(f"transformers cannot read it: {said}") from error
    return apart("transformers", logits.float().numpy()[:, : config.vocab], _own(config, params, tokens))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what others' loaders say of their progress and of each other."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _model(path: Path, under: Path | None):
    import torch
    import transformers

    if lora.is_adapter(path):
        import peft

        if under is None:
            raise ValueError(f"{path} is an adapter, and the model that it goes into is not given.")
        with warnings.catch_warnings():
            # an adapter of a whole for its text model alone, or the other way round, which PEFT then goes on without
            warnings.filterwarnings("error", "Found missing adapter keys")
            return peft.PeftModel.from_pretrained(_model(under, None), str(path)).eval()
    if path.suffix == ".gguf":
        whole = transformers.GgufConfig(dequantize=True)
        more = {"gguf_file": path.name, "quantization_config": whole}
        return transformers.AutoModelForCausalLM.from_pretrained(path.parent, dtype=torch.float32, **more).eval()
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


class Side(NamedTuple):
    """One model as it was read. name: where from, as its user says it. left_out: as `checkpoints.Checkpoint` has it."""

    name: str
    config: DecoderConfig
    params: Params
    files: tuple[Path, ...]
    left_out: tuple[str, ...] = ()


def sides_of(pair: Pair, base: str, special: str) -> dict[str, Side]:
    """Both models of a pair, read from there."""
    both = {"base": (base, pair.base), "special": (special, pair.special)}
    return {
        role: Side(name, pair.config, params, pair.files[role], pair.left_out[role])
        for role, (name, params) in both.items()
    }


def of_sides(
    sides: Mapping[str, Side], differences: Sequence[Difference] = (), *, is_quick: bool = False
) -> dict[str, dict[str, Any]]:
    """How far the logits of base, and of special if there is one, are from their reference, as plain values.

    Args:
        sides: params in float32 or float64.
        differences: of the pair; where both run under the settings of one, the other is not compared.
        is_quick: leave transformers out where it takes long: it reads a GGUF file many times slower than we do (benchmarks/load.py).

    Returns: base, special -> ``said``, a sentence's end, and ``is_passed``: None where there was no reference, and then it is said why.
    """
    runs_as = next((each.chosen for each in differences if each.name == "settings"), None)
    return {role: _of_side(role, sides, runs_as or role, is_quick) for role in sides}


def _of_side(role: str, sides: Mapping[str, Side], runs_as: str, is_quick: bool) -> dict[str, Any]:
    side = sides[role]
    if runs_as != role:
        return {"is_passed": None, "said": f"not compared: it runs under the settings of {runs_as}"}
    path = checkpoints.local(side.name)
    if orbax_dir.is_one(path):
        return {"is_passed": None, "said": "not compared: transformers reads no Orbax directories"}
    under = _under(sides["base"].name, path)
    try:
        if is_quick and ".gguf" in (path.suffix, under and under.suffix):
            raise NoReferenceError("transformers is slow to read GGUF files; `jaxpatch check` waits for it")
        if ".gguf" in (path.suffix, under and under.suffix) and _is_stretched(side.config):
            raise NoReferenceError("transformers reads no rotary scaling out of GGUF files")
        found = of_transformers(path, under, side.config, side.params)
    except NoReferenceError as error:
        found = of_golden(side.files, side.config, side.params)
        if found is None:
            return {"is_passed": None, "said": f"not compared ({error}), and no golden logits are known"}
    if math.isnan(found.apart):
        said = f"NOT as {found.reference}: some are NaN or infinite, so nothing that is made of them means anything"
        return {**found._asdict(), "is_passed": False, "said": said}
    verdict, tokens = "as" if found.is_passed else "NOT as", "the same" if found.agree else "other"
    said = f"{verdict} {found.reference}: at most {found.apart:.1e} of the largest logit apart, {tokens} next tokens"
    return {**found._asdict(), "is_passed": found.is_passed, "said": said}


def _is_stretched(config: DecoderConfig) -> bool:
    return any(rope is not None and rope.stretch is not None for rope in (config.rope, config.local_rope))


def _under(base: str, path: Path) -> Path | None:
    """The model that an adapter goes into."""
    if not lora.is_adapter(path):
        return None
    own = checkpoints.local(base)
    return checkpoints.underlying(own) if lora.is_adapter(own) else own


def of_golden(files: Iterable[Path], config: DecoderConfig, params: Params) -> Parity | None:
    """Against what is known of a checkpoint by the hash of its weights; None where nothing is, or they lie in several files."""
    weights = [file for file in files if file.suffix in (".gguf", ".safetensors")]
    known = GOLDEN.get(checkpoints.sha256(weights[0])) if len(weights) == 1 else None
    if known is None:
        return None
    own = _own(config, params, list(known.tokens))[-1]
    return apart(f"golden logits of {known.name}", np.array(known.logits), own[list(known.at)])


def _own(config: DecoderConfig, params: Params, tokens: list[int]) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(decoder.logits, static_argnums=0)(config, params, jnp.asarray([tokens]))[0])


def apart(name: str, wanted: np.ndarray, got: np.ndarray) -> Parity:
    """Of logits [T, V] from those of a reference."""
    if not (np.isfinite(wanted).all() and np.isfinite(got).all()):
        return Parity(name, math.nan, False)
    agree = bool((wanted.argmax(-1) == got.argmax(-1)).all())
    return Parity(name, float(np.abs(wanted - got).max() / np.abs(wanted).max()), agree)


def golden_of(file: Path) -> Golden:
    """What transformers computes of a checkpoint in one file: an entry for `GOLDEN`."""
    import torch

    config = checkpoints.load(file, "float32").config
    tokens = probe(config)
    with torch.no_grad(), _quiet():
        logits = _model(file, None)(torch.tensor([tokens])).logits[0, -1].numpy()
    best = np.argsort(-logits)[:8]
    at = (*best, *np.random.default_rng(1).integers(0, config.vocab, 8))
    return Golden(file.stem, tuple(tokens), tuple(map(int, at)), tuple(round(float(logits[each]), 4) for each in at))


if __name__ == "__main__":
    chosen = Path(sys.argv[1])
    print(repr(checkpoints.sha256(chosen)), golden_of(chosen))
