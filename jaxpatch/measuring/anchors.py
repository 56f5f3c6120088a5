"""Finding the vector anchor, and making it earn its use.

The anchor is the unit vector of the mean difference, with minus without the instruction, of special's residual stream at the last
prompt token (ours, after Stolfo et al., arXiv 2410.12877). It is used only if it passes its checks: the halves of the prompts agree
on it, special stands further along it than base, and adding it to base moves what base says.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxpatch.measuring import effect, inputs, read_outs, sweep, writing
from jaxpatch.measuring.inputs import Inputs
from jaxpatch.measuring.read_outs import Anchor
from jaxpatch.models.checkpoints import Pair, refuse_others

CONTRASTS = ("instruction", "models")
SEARCH_DEPTH = (0.35, 0.9)
"""Share of the depth in which a layer is looked for: where published searches found these constraints."""
SMALLEST_COSINE = 0.5
SMALLEST_SIGNAL = 1.0

Verdict = Callable[[str], bool]


class Check(NamedTuple):
    """One thing an anchor must show. value: what was measured; wanted: in words."""

    name: str
    value: float
    wanted: str
    is_passed: bool


class Candidate(NamedTuple):
    """One layer that was looked at. split_half: cosine between the directions of the two halves of the prompts.

    separation: distance of the two clouds along the direction, in their pooled standard deviations. signal: mean gap between special
    and base along it, over its standard deviation. success: share of steered answers that show the behaviour (NaN where there is no
    verdict).
    """

    layer: int
    split_half: float
    separation: float
    signal: float
    success: float

    @property
    def is_sound(self) -> bool:
        """Whether the direction is stable and special stands further along it than base."""
        return self.split_half >= SMALLEST_COSINE and self.signal >= SMALLEST_SIGNAL


class AnchorInfo(NamedTuple):
    """What a human needs to trust an anchor.

    checks: all must be passed. candidates: the layers looked at. gap: [B] F(special) - F(base) on the prompts with the
    instruction. strength: how far steering pushes. behaviour_before, behaviour_after: share of base's answers to plain prompts that
    show the behaviour, without and with steering (NaN without a verdict). kl_before, kl_after: mean KL(special || base) of next
    tokens on the prompts with the instruction, without and with steering, nats.
    """

    checks: tuple[Check, ...]
    candidates: tuple[Candidate, ...]
    gap: np.ndarray
    strength: float
    behaviour_before: float
    behaviour_after: float
    kl_before: float
    kl_after: float

    @property
    def is_trusted(self) -> bool:
        """Whether every check is passed."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that are not passed."""
        return tuple(check for check in self.checks if not check.is_passed)


class States(NamedTuple):
    """The residual stream after each block at the last token of each prompt, [L, B, D]: of both models with the instruction, and of
    special without it."""

    special: jax.Array
    base: jax.Array
    plain: jax.Array

    def contrasted(self, layer: int, contrast: str) -> tuple[np.ndarray, np.ndarray]:
        """The two clouds whose middles a direction joins: [B, D] each."""
        low = self.plain if contrast == "instruction" else self.base
        return np.asarray(self.special[layer], np.float64), np.asarray(low[layer], np.float64)


def states(pair: Pair, with_instruction: Inputs, without_instruction: Inputs) -> States:
    """All that anchors of one set of prompts are made of, whatever their layer, contrast and read-out."""
    asked, plainly = (inputs.checked(i, pair.config) for i in (with_instruction, without_instruction))
    runs = ((pair.special, asked), (pair.base, asked), (pair.special, plainly))
    return States(*(_every_last_state(pair.config, params, prompts) for params, prompts in runs))


def along(seen: States, layer: int, *, contrast: str = "instruction", read_out: str = "projection") -> Anchor:
    """The anchor after one block, as `fit_anchor` makes it; none of its checks."""
    direction, _ = _direction(*seen.contrasted(layer, contrast))
    middle = sum(np.asarray(side[layer], np.float64).mean(axis=0) for side in (seen.special, seen.base)) / 2
    return Anchor(
        layer=layer,
        direction=jnp.asarray(direction, jnp.float32),
        read_out=read_out,
        centre=jnp.asarray(middle, jnp.float32) if read_out == "centred" else None,
    )


def fit_anchor(
    pair: Pair,
    with_instruction: Inputs,
    without_instruction: Inputs,
    *,
    layer: int | None = None,
    contrast: str = "instruction",
    read_out: str = "projection",
    plain: Inputs | None = None,
    verdict: Verdict | None = None,
    max_new: int = 32,
    num_layers_tried: int = 8,
    progress: sweep.Progress = sweep.silent,
) -> tuple[Anchor, AnchorInfo]:
    """The anchor of a behaviour, and what speaks for it.

    ``u = normalise(mean h_special(with) - mean h_special(without))`` at layer a, last token.

    Args:
        pair: the two models.
        with_instruction, without_instruction: the same requests, asked with and without the instruction.
        layer: read after this block; None chooses among `num_layers_tried` layers: of those where the direction is stable and special
            stands further along it than base, by steering success on `plain`, ties and missing verdicts by separation.
        contrast: "instruction", or "models": special minus base on the prompts with the instruction.
        read_out: "projection", "cosine" or "centred" (on the middle between base and special).
        plain: requests without the instruction for steering, disjoint from the others; `without_instruction` where None.
        verdict: says whether an answer shows the behaviour.
        max_new: tokens that steered answers may have.
        progress: called with (layers done, layers tried).

    Returns: the anchor, and `AnchorInfo`; nothing is refused here: see `AnchorInfo.is_trusted` and `refuse_untrusted`.

    Raises: ValueError for a bad layer, contrast or read-out, too few prompts, or a pair that is not of decoders.
    """
    refuse_others(
        pair,
        "fit_anchor",
        "Models of your own need no anchor: give score a function (params, inputs) -> [B] that reads them.",
    )
    if contrast not in CONTRASTS:
        raise ValueError(f"contrast {contrast!r}; wanted one of {', '.join(CONTRASTS)}.")
    if read_out not in read_outs.READ_OUTS:
        raise ValueError(f"read_out {read_out!r}; wanted one of {', '.join(read_outs.READ_OUTS)}.")
    if layer is not None and not 0 <= layer < pair.config.layers:
        raise ValueError(f"layer {layer}: this model has blocks 0 to {pair.config.layers - 1}.")
    asked, plainly = (inputs.checked(i, pair.config) for i in (with_instruction, without_instruction))
    if min(asked.tokens.shape[0], plainly.tokens.shape[0]) < 4:
        raise ValueError(
            "an anchor needs at least 4 prompts with and 4 without the instruction, to compare two halves."
        )
    plain = plainly if plain is None else plain
    seen = states(pair, asked, plainly)
    tried = layers_to_try(pair.config.layers, num_layers_tried) if layer is None else (layer,)
    candidates = []
    for number in tried:
        clouds = seen.contrasted(number, contrast)
        direction, strength = _direction(*clouds)
        success = _success(pair, plain, verdict, (number, strength * direction), max_new)
        gap = np.asarray(seen.special[number] - seen.base[number], np.float64) @ direction
        candidates.append(Candidate(number, *_stability(*clouds), _signal(gap), success))
        progress(len(candidates), len(tried))
    best = best_of(candidates)
    anchor = along(seen, best.layer, contrast=contrast, read_out=read_out)
    strength = _direction(*seen.contrasted(best.layer, contrast))[1]
    return anchor, _examine(pair, anchor, strength, seen, asked, plain, verdict, max_new, tuple(candidates), best)


class UntrustedAnchorError(ValueError):
    """An anchor that fails its checks: the behaviour is reported, not scored. info: what was measured of it."""

    def __init__(self, message: str, info: AnchorInfo):
        super().__init__(message)
        self.info = info


def refuse_untrusted(info: AnchorInfo) -> None:
    """Raises UntrustedAnchorError naming every failed check."""
    if not info.failed:
        return
    sound = [str(each.layer) for each in info.candidates if each.is_sound]
    tried = ", ".join(str(each.layer) for each in info.candidates)
    where = (
        f"the direction is stable, and special further along it than base, after {', '.join(sound) or 'none of them'}"
    )
    raise UntrustedAnchorError(
        "the anchor fails its checks, so nothing is scored:\n"
        + "\n".join(f"  - {c.name} is {c.value:.3g}, wanted {c.wanted}" for c in info.failed)
        + f"\nBlocks tried: {tried}; {where}.\nTry another layer, another contrast, more prompts, or accept that this pair does not "
        "differ in this behaviour along one direction. The same command with --force goes on all the same, and every result says so.",
        info,
    )


def layers_to_try(num_layers: int, count: int) -> tuple[int, ...]:
    """Evenly spaced layers of the depth in which controlling directions were found.

    >>> layers_to_try(30, 4)
    (10, 15, 21, 26)
    """
    first, last = (share * (num_layers - 1) for share in SEARCH_DEPTH)
    return tuple(sorted({round(at) for at in np.linspace(first, last, count)}))


def best_of(candidates: Sequence[Candidate]) -> Candidate:
    """A sound one where there is one, then by success, then by separation.

    >>> far, here = Candidate(3, 0.9, 9.0, -2.0, 0.5), Candidate(5, 0.9, 1.0, 2.0, 0.25)
    >>> best_of([far, here]).layer, best_of([far]).layer
    (5, 3)
    """
    return max(candidates, key=lambda c: (c.is_sound, np.nan_to_num(c.success), c.separation))


def _direction(high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, float]:
    """Unit vector [D] of the mean difference, and its length."""
    difference = high.mean(axis=0) - low.mean(axis=0)
    length = float(np.linalg.norm(difference))
    if length == 0:
        raise ValueError("the prompts with and without the instruction give the same states: there is no direction.")
    return difference / length, length


def _signal(gap: np.ndarray) -> float:
    """Mean gap over its standard deviation: how far special stands from base beside what prompts do."""
    spread = gap.std(ddof=1)
    return float(gap.mean() / spread if spread else np.copysign(np.inf, gap.mean()))


def _stability(high: np.ndarray, low: np.ndarray) -> tuple[float, float]:
    """Cosine between the directions of even and odd prompts; separation of the odd prompts along the even ones' direction."""
    one, other = (_direction(high[half::2], low[half::2])[0] for half in (0, 1))
    along = [states[1::2] @ one for states in (high, low)]
    spread = np.sqrt(np.mean([a.var(ddof=1) if len(a) > 1 else 0.0 for a in along]))
    separation = (along[0].mean() - along[1].mean()) / spread if spread else np.inf
    return float(one @ other), float(separation)


def _success(
    pair: Pair, plain: Inputs, verdict: Verdict | None, steer: tuple[int, np.ndarray] | None, max_new: int
) -> float:
    """Share of base's answers that show the behaviour; NaN without a verdict."""
    if verdict is None or pair.tokenizer is None:
        return float("nan")
    pushed = None if steer is None else (steer[0], jnp.asarray(steer[1], jnp.float32))
    texts = writing.write(pair, pair.base, plain, max_new=max_new, steer=pushed)
    return float(np.mean([verdict(text) for text in texts]))


def _examine(
    pair: Pair,
    anchor: Anchor,
    strength: float,
    seen: States,
    asked: Inputs,
    plain: Inputs,
    verdict: Verdict | None,
    max_new: int,
    candidates: Sequence[Candidate],
    best: Candidate,
) -> AnchorInfo:
    """All checks of a chosen anchor."""
    gap = np.asarray(anchor.read(seen.special[anchor.layer]) - anchor.read(seen.base[anchor.layer]), np.float64)
    lift = gap.mean() if anchor.read_out != "cosine" else strength
    special_logits = _logits(pair.config, pair.special, seen.special[-1])
    base_logits = _logits(pair.config, pair.base, seen.base[-1])
    steered_logits = _steered(pair.config, pair.base, asked, anchor, lift * anchor.direction)
    kl_before = float(read_outs.next_token_kl(special_logits, base_logits).mean())
    kl_after = float(read_outs.next_token_kl(special_logits, steered_logits).mean())
    before = _success(pair, plain, verdict, None, max_new)
    signal = _signal(gap)
    checks = [
        Check("split-half cosine", best.split_half, f"at least {SMALLEST_COSINE}", best.split_half >= SMALLEST_COSINE),
        Check("mean gap G", gap.mean(), "above 0", bool(gap.mean() > 0)),
        Check("mean gap / its spread", signal, f"at least {SMALLEST_SIGNAL}", bool(signal >= SMALLEST_SIGNAL)),
    ]
    if np.isnan(best.success):
        is_causal = kl_after < kl_before
        checks.append(Check("KL(special || base) steered / not", kl_after / kl_before, "below 1", is_causal))
    else:
        rise = best.success - before
        checks.append(Check("behaviour of base steered - not", rise, "above 0", bool(rise > 0)))
    return AnchorInfo(
        checks=tuple(checks),
        candidates=tuple(candidates),
        gap=gap,
        strength=strength,
        behaviour_before=before,
        behaviour_after=best.success,
        kl_before=kl_before,
        kl_after=kl_after,
    )


@functools.partial(jax.jit, static_argnums=0)
def _every_last_state(config, params, prompts: Inputs) -> jax.Array:
    return effect.every_last_state(config, effect.unpatched(params), prompts)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, states: jax.Array) -> jax.Array:
    return effect.unpatched(params).logits(config, states)


@functools.partial(jax.jit, static_argnums=0)
def _steered(config, params, prompts: Inputs, anchor: Anchor, steer: jax.Array) -> jax.Array:
    """Next-token logits, [B, V]."""
    return effect.outcome(config, effect.unpatched(params), prompts, anchor, steer)[1]
