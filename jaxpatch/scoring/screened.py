"""Screened: the best k components with an error rate, replacing no more of them than that takes.

A cheap score ranks; a random sample, truly replaced, shows by how much the cheap score may be too low; then components are replaced in
the order of their upper bounds until no bound of an unseen one lies above the k-th best that was found. Residuals are
``t = (exact - cheap) / scale``, bounds ``cheap + scale * q``, and q is the largest of three:

* split-conformal (Vovk et al., Algorithmic Learning in a Random World, 2005): the ceil((n + 1)(1 - level))-th smallest t of a sample of
  n. A further component exceeds its bound with probability at most `level`, if its t and the sample's are exchangeable. They are for a
  component drawn at random from the same kind, because the sample is; nothing else is assumed of the cheap score;
* the same quantile over the contenders replaced so far: near the threshold, where it matters, residuals may be larger;
* what it takes to have found every component of the sample that belongs among the top.

The first promises a bound for each unseen component, not for all of them at once: where the cheap score is good, few lie near enough to
the threshold for that to matter. A sample of n does not see what fewer than about 1 in n do: components that the cheap score is blind
to may be as many as a share ``1 - alpha^(1 / n)`` of all, 1.5 % for n = 200, and still leave no trace in the sample with probability
`alpha` (`Screening.unnoticed`); a larger `sample` notices rarer ones. Where it is poor (one of the sample is among the top though its
bound would have hidden it, residuals half as large as the spread of the exact scores, or more contenders above their bounds than alpha)
the components that exceed their bounds *are* the top, and the sample is enlarged to n = N / (alpha k). Then the third rule alone bounds
the expected number of missed ones, N / (n + 1), by alpha k, whatever the cheap score is worth: a random component that is missed would
have to need a larger q than all n of the sample. Both say nothing of other prompts, nor of components that were chosen because they are
special. An unseen component scores what the cheap score says, or its bound where that is lower, so that none stands among the top
without having been replaced. A `limit` on what may be replaced ends all this sooner; what is then promised is said with the answer
(`Screening.left`, `Screening.missed`). The procedure is ours.
"""

import math
import warnings
from collections.abc import Mapping

import numpy as np

from jaxpatch.measuring.instrument import Instrument
from jaxpatch.measuring.sweep import Progress
from jaxpatch.scoring import normalise
from jaxpatch.scoring.agreement import agreement
from jaxpatch.scoring.method import Answer, Options, Round, Screening

LARGEST_RESIDUAL = 0.5
"""Of the spread of exact scores: a cheap score that misses by more is not to be trusted."""


def effects(instrument: Instrument, kinds: tuple[str, ...], options: Options) -> Mapping[str, Answer]:
    """Exact effects of the best `options.top` components and of all that might have been among them; `local_linear` for the rest.

    Of several read-outs the first one ranks, and only components that it can see take part; the others keep `local_linear`.

    Raises: ValueError where a patched run gives no number.
    """
    draw = np.random.default_rng(options.seed)
    cheap = instrument.cheap(kinds, options.progress("cheap score"))
    weights = _weights(instrument, options.aggregate)
    answers = {}
    for kind in kinds:
        screen = _Screen(instrument, kind, weights, cheap[kind], draw, options)
        answers[kind] = screen.run()
        said = answers[kind].screening
        if not said.is_trusted and said.bound > -math.inf:
            warnings.warn(
                f"{kind}: the cheap score is not to be trusted on this pair (residual {said.residual:.3g}, slope {said.slope:.3g}, "
                f"{said.excess:.0%} of the contenders above their bound): {said.replaced.sum():,} of {instrument.reach[kind].sum():,} "
                "were replaced. What was replaced is exact; the scores of the others are rough.",
                stacklevel=2,
            )
    return answers


def _weights(instrument: Instrument, aggregate: str) -> np.ndarray:
    """What each reading counts in the score that ranks: E_w of the first read-out."""
    first = len(instrument.base) // instrument.num_read_outs
    gap, base = instrument.gap[:first], instrument.base[:first]
    out = np.zeros(len(instrument.base))
    out[:first] = normalise.weights(gap, normalise.kept_inputs(gap, base), aggregate)
    return out


class _Screen:
    """The state of one kind's screen. Arrays over the components in reach, [N]."""

    def __init__(self, instrument: Instrument, kind: str, weights: np.ndarray, cheap, draw, options: Options):
        self.instrument, self.kind, self.weights, self.options = instrument, kind, weights, options
        self.places = np.flatnonzero(instrument.seen[0][kind])
        self.effects = cheap.linear.reshape(len(weights), -1).astype(instrument.base.dtype)
        self.cheap = weights @ self.effects[:, self.places]
        first_order = weights @ cheap.first_order.reshape(len(weights), -1)[:, self.places]
        self.scales = _scales(self.cheap, first_order)
        self.level = options.alpha / len(self.scales)
        self.exact = np.full(len(self.places), np.nan)
        self.drawn = draw.permutation(len(self.places))
        self.num_drawn = min(len(self.places), max(options.sample, math.ceil(1 / self.level)))
        self.num_contenders = self.num_exceeding = self.surprises = 0
        self.is_trusted = True
        self.rounds: list[Round] = []
        self.progress = options.progress(kind)

    @property
    def sample(self) -> np.ndarray:
        """The calibration sample; it grows at its end, so it is always a simple random one."""
        return self.drawn[: self.num_drawn]

    def run(self) -> Answer:
        """The screen, from the sample to the last contender."""
        best = np.argsort(-self.cheap, kind="stable")[: self.options.top]
        self._replace(np.union1d(self.sample, best))
        said = self._until_none_can_enter()
        self.is_trusted = self._is_trusted()
        if not self.is_trusted:
            enough = math.ceil(len(self.places) / (self.options.alpha * self.options.top))
            unseen = np.cumsum(np.isnan(self.exact[self.drawn[:enough]]))
            affordable = int(np.searchsorted(unseen, self.allowed, side="right"))
            self.num_drawn = min(len(self.places), max(self.num_drawn, affordable))
            self._replace(self.sample[np.isnan(self.exact[self.sample])])
            said = self._until_none_can_enter()
        return self._answer(*said)

    def _until_none_can_enter(self) -> tuple[str, np.ndarray]:
        """Replace contenders, highest bound first. Returns the scale, and all bounds."""
        while True:
            name, quantile, bound, self.surprises = self._sharpest()
            threshold, unseen = self._threshold(), np.isnan(self.exact)
            contenders = np.flatnonzero(unseen & (bound > threshold))
            self.rounds.append(Round(int((~unseen).sum()), threshold, quantile, len(contenders)))
            if not len(contenders) or not self.allowed:
                return name, bound
            chosen = contenders[np.argsort(-bound[contenders], kind="stable")][: min(self.options.top, self.allowed)]
            self._replace(chosen)
            self.num_contenders += len(chosen)
            self.num_exceeding += int((self.exact[chosen] > bound[chosen]).sum())

    @property
    def allowed(self) -> int:
        """How many more may be replaced."""
        limit = len(self.places) if self.options.limit is None else self.options.limit
        return max(0, limit - int((~np.isnan(self.exact)).sum()))

    @property
    def excess(self) -> float:
        """Share of the contenders that exceeded their bounds."""
        return self.num_exceeding / self.num_contenders if self.num_contenders else 0.0

    def _is_trusted(self) -> bool:
        true = self.exact[self.sample]
        if not len(true):
            return True
        misses = np.sqrt(np.mean((true - self.cheap[self.sample]) ** 2))
        is_near = bool(misses <= LARGEST_RESIDUAL * true.std())
        return is_near and self.excess <= self.options.alpha and not self.surprises

    def _replace(self, chosen: np.ndarray) -> None:
        if not len(chosen):
            return
        done = int((~np.isnan(self.exact)).sum())
        shape = self.instrument.reach[self.kind].shape
        indices = np.stack(np.unravel_index(self.places[chosen], shape), axis=1)
        found = self.instrument.exact(self.kind, indices, _after(self.progress, done))
        scores = found @ self.weights
        if len(bad := indices[~np.isfinite(scores)]):
            raise ValueError(
                f"{self.kind} {tuple(bad[0].tolist())}: its patched run gives no number, nor do {len(bad) - 1} others. Narrow numbers "
                'overflow: load the pair with dtype="float32" or "bfloat16", or cast both trees of your own.'
            )
        self.effects[:, self.places[chosen]] = found.T
        self.exact[chosen] = scores

    def _threshold(self) -> float:
        seen = np.sort(self.exact[~np.isnan(self.exact)])[::-1]
        return float(seen[min(self.options.top, len(seen)) - 1]) if len(seen) else -math.inf

    def _sharpest(self) -> tuple[str, float, np.ndarray, int]:
        """The scale that leaves the fewest contenders, with its quantile and bounds, and how many of the sample belong among the top
        though their bounds would have hidden them. Each scale has its share of alpha, so that choosing costs nothing of the level."""
        seen, threshold = ~np.isnan(self.exact), self._threshold()
        near = seen.copy()
        near[self.sample] = False
        top = self.sample[self.exact[self.sample] > threshold]
        made = []
        for name, scale in self.scales.items():
            residuals = (self.exact - self.cheap) / scale
            quantile = upper_quantile(residuals[self.sample], self.level)
            if near.sum() * self.level >= 1:
                quantile = max(quantile, upper_quantile(residuals[near], self.level))
            needed = (threshold - self.cheap[top]) / scale[top]
            surprises = int((needed > quantile).sum())
            quantile = max(quantile, needed.max(initial=-math.inf))
            bound = self.cheap + scale * quantile
            made.append((int((bound[~seen] > threshold).sum()), name, quantile, bound, surprises))
        return min(made, key=lambda each: each[0])[1:]

    def _keep_below(self, bound: np.ndarray) -> None:
        """Take from the effects of unseen components what their scores are above their bounds, from each input its share."""
        too_high = np.where(np.isnan(self.exact), np.maximum(self.cheap - bound, 0), 0)
        share = np.zeros(len(self.weights))
        first = len(share) // self.instrument.num_read_outs
        share[:first] = self.instrument.gap[:first]
        which = np.flatnonzero(too_high)
        self.effects[:, self.places[which]] -= np.outer(share, too_high[which]).astype(self.effects.dtype)

    def _answer(self, scale: str, bound: np.ndarray) -> Answer:
        self._keep_below(bound)
        seen = ~np.isnan(self.exact)
        residual = (self.exact - self.cheap)[self.sample]
        shape = self.instrument.reach[self.kind].shape
        replaced, is_random = np.zeros(math.prod(shape), bool), np.zeros(math.prod(shape), bool)
        replaced[self.places[seen]] = True
        is_random[self.places[self.sample]] = True
        said = Screening(
            replaced=replaced.reshape(shape),
            is_random=is_random.reshape(shape),
            cheap=self.cheap[seen],
            exact=self.exact[seen],
            top=self.options.top,
            alpha=self.options.alpha,
            threshold=self._threshold(),
            bound=float(bound[~seen].max(initial=-math.inf)),
            scale=scale,
            rounds=tuple(self.rounds),
            excess=self.excess,
            unnoticed=1 - self.options.alpha ** (1 / max(1, len(self.sample))) if not seen.all() else 0.0,
            surprises=self.surprises,
            is_trusted=self.is_trusted,
            left=(left := int((bound[~seen] > self._threshold()).sum())),
            missed=0.0 if seen.all() else left + len(self.places) / (len(self.sample) + 1),
            **agreement(self.cheap[seen], self.exact[seen])._asdict(),
            residual=float(residual.std()) if len(residual) else 0.0,
        )
        return Answer(self.effects.reshape(-1, *shape), said)


def upper_quantile(values: np.ndarray, level: float) -> float:
    """The split-conformal upper quantile: a further, exchangeable value exceeds it with probability at most `level`.

    >>> upper_quantile(np.arange(19.0), 0.05), upper_quantile(np.arange(18.0), 0.05)
    (18.0, inf)
    """
    rank = math.ceil((len(values) + 1) * (1 - level) - 1e-9)
    return float(np.sort(values)[rank - 1]) if rank <= len(values) else math.inf


def _scales(linear: np.ndarray, first_order: np.ndarray) -> dict[str, np.ndarray]:
    """What residuals may be measured in. Each but the constant grows where the cheap score is likely to be far off, and none is 0."""
    scales = {"constant": np.ones(len(linear))}
    for name, size in (("disagreement", np.abs(linear - first_order)), ("size", np.abs(linear))):
        middle = np.median(size) if len(size) else 0.0
        if middle > 0:
            scales[name] = size + middle
    return scales


def _after(progress: Progress, before: int) -> Progress:
    """The progress of one more batch."""
    return lambda done, total: progress(before + done, before + total)
