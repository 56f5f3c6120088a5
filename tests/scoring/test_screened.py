"""Screening: the best are found, no more is replaced than that takes, and it is said how far all this can be trusted."""

import warnings

import numpy as np
import pytest
import scoring_toys

import jaxpatch as jp
from jaxpatch import pipeline, testing
from jaxpatch.measuring import instrument
from jaxpatch.reporting import wording
from jaxpatch.scoring import exact, local_linear, screened
from jaxpatch.scoring.method import DEFAULTS

TOP = 50
NUMBER = 3000
SAMPLE = DEFAULTS.sample


def ladder(seed: int, noise: float = 0.3):
    """(exact, linear, first order): few components matter, and the more a component matters the further off its cheap score is."""
    draw = np.random.default_rng(seed)
    true = draw.laplace(size=NUMBER) ** 3 / 100
    spread = noise * (np.abs(true) + 0.002)
    linear = true + spread * draw.standard_normal(NUMBER)
    return true, linear, linear + spread * draw.standard_normal(NUMBER)


def screen(numbers, **changes):
    tool = scoring_toys.ladder(*numbers)
    return screened.effects(tool, ("part",), scoring_toys.options(**({"top": TOP} | changes)))["part"]


def quietly(numbers, **changes):
    """Whether it warns or not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return screen(numbers, **changes)


def recall(answer, true) -> float:
    """Share of the truly best that are among the best found."""
    best = np.argsort(-true)[:TOP]
    return answer.screening.replaced[best].mean()


def test_a_perfect_cheap_score_costs_its_sample_and_the_best():
    true = ladder(0)[0]
    answer = screen((true, true))
    said = answer.screening
    assert said.is_random.sum() == SAMPLE
    best = np.argsort(-true)[:TOP]
    assert set(np.flatnonzero(said.replaced)) == set(np.flatnonzero(said.is_random)) | set(best)
    assert set(np.argsort(-answer.effects.mean(0))[:TOP]) == set(best)
    assert said.is_trusted and said.excess == 0 and said.residual == pytest.approx(0, abs=1e-7)
    assert said.threshold == pytest.approx(true[best[-1]], rel=1e-5) and said.bound <= said.threshold
    assert [step.contenders for step in said.rounds] == [0]


def test_a_random_cheap_score_is_found_out():
    """Nothing is promised on it: it is said so, and nearly everything is replaced."""
    true = ladder(0)[0]
    cheap = np.random.default_rng(1).permutation(true)
    with pytest.warns(UserWarning, match="part: the cheap score is not to be trusted on this pair"):
        answer = screen((true, cheap))
    assert not answer.screening.is_trusted
    assert answer.screening.replaced.mean() > 0.9 and recall(answer, true) >= 0.98


def test_replaced_are_exact_and_the_others_linear():
    true, linear, _ = numbers = ladder(3)
    answer = quietly(numbers)
    replaced = answer.screening.replaced
    assert 0 < replaced.sum() < NUMBER
    scores = answer.effects.mean(0) / np.mean(scoring_toys.SIZES)
    np.testing.assert_allclose(scores[replaced], true[replaced], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(scores[~replaced], linear[~replaced], rtol=1e-5, atol=1e-7)


def test_the_best_are_found_at_a_fraction_of_the_cost():
    """Twenty ladders whose residuals grow with the effect, which the scales are there for."""
    answers = [(quietly(numbers := ladder(seed), seed=seed), numbers[0]) for seed in range(20)]
    assert np.mean([recall(*answer) for answer in answers]) >= 0.98
    assert np.mean([answer.screening.replaced.mean() for answer, _ in answers]) < 0.5
    assert {answer.screening.scale for answer, _ in answers} & {"disagreement", "size"}


@pytest.mark.parametrize("seed", range(5))
def test_nothing_unseen_may_be_above_the_threshold_at_the_end(seed):
    numbers = ladder(seed)
    said = quietly(numbers, seed=seed).screening
    assert said.bound <= said.threshold
    replaced = np.sort(said.exact)[::-1]
    assert said.threshold == pytest.approx(replaced[TOP - 1])
    assert said.rounds[-1].contenders == 0 and said.rounds[-1].replaced == said.replaced.sum() == len(said.exact)
    thresholds = [step.threshold for step in said.rounds]
    assert thresholds == sorted(thresholds), "what is found can only get better"


@pytest.mark.parametrize("aggregate", ["mean_of_ratios", "ratio_of_means"])
def test_no_estimate_stands_above_its_bound(aggregate):
    """A cheap score that is too high for all: bounds lie below it, and what was not replaced must not be taken for the best."""
    true = np.random.default_rng(0).normal(0.003, 0.01, NUMBER)
    tool = scoring_toys.ladder(true, true + 0.004)
    found = pipeline.score_with(
        tool, kinds=("part",), method="screened", options=scoring_toys.options(top=TOP, aggregate=aggregate)
    )
    said, values = found.screening["part"], found.values["part"]
    assert said.is_trusted and 0 < said.replaced.sum() < NUMBER / 2
    assert set(found.top("part", TOP)["index"]) == set(np.argsort(-true)[:TOP])
    assert values[~said.replaced].max() == pytest.approx(said.bound, abs=1e-6) and said.bound <= said.threshold
    np.testing.assert_allclose(values[said.replaced], true[said.replaced], atol=1e-6)
    assert (found.low["part"] <= values + 1e-6).all() and (values <= found.high["part"] + 1e-6).all()


def test_a_limit_ends_a_screen_and_says_what_is_left():
    """A cheap score that is blind to most of what is best: without a limit nearly all are replaced."""
    draw = np.random.default_rng(0)
    true, cheap = draw.standard_normal((2, NUMBER))
    whole = quietly((true, cheap), top=20, sample=SAMPLE, seed=0).screening
    assert whole.left == 0 and not whole.is_trusted and whole.replaced.sum() > NUMBER / 2
    for limit in (1, SAMPLE + 40, SAMPLE + 100):
        said = quietly((true, cheap), top=20, sample=SAMPLE, seed=0, limit=limit).screening
        assert said.replaced.sum() <= max(limit, SAMPLE + 20) and said.replaced[said.is_random].all()
        assert said.missed > said.left > 0 and said.bound > said.threshold
        assert "A limit ended the screen" in wording.promise("part", said)
    answer = quietly((true, cheap), top=20, sample=SAMPLE, seed=0, limit=NUMBER)
    assert (answer.screening.replaced == whole.replaced).all(), "a limit that is never met changes nothing"


def test_what_a_sample_does_not_notice():
    """Of components to which the cheap score is blind, a share of `unnoticed` is missed by the sample with probability alpha."""
    true = ladder(0)[0]
    answers = [screen((true, true), seed=seed, alpha=0.2).screening for seed in range(300)]
    number = round(answers[0].unnoticed * NUMBER)
    assert answers[0].unnoticed == pytest.approx(1 - 0.2 ** (1 / SAMPLE))
    missed = np.mean([not said.is_random[:number].any() for said in answers])
    assert missed == pytest.approx(0.2, abs=0.07)


def test_a_larger_sample_notices_what_a_small_one_does_not():
    """The truly best are ones to which the cheap score is blind, and all others are right."""
    true = np.random.default_rng(0).standard_normal(NUMBER)
    best = np.argsort(-true)[:20]
    true[best] += 5
    cheap = np.where(np.isin(np.arange(NUMBER), best), 0, true)
    few, many = ([quietly((true, cheap), top=20, sample=sample, seed=s) for s in range(10)] for sample in (30, 500))
    assert any(answer.screening.is_trusted for answer in few), "so rare are they that few do not see them"
    found = [answer.screening.replaced[best].mean() for answer in many]
    assert not any(answer.screening.is_trusted for answer in many) and min(found) == 1
    assert all(answer.screening.surprises for answer in many)


def test_a_smaller_alpha_replaces_at_least_as_many():
    for seed in range(5):
        replaced = [
            quietly(ladder(seed), alpha=alpha, seed=seed).screening.replaced.sum() for alpha in (0.3, 0.1, 0.03)
        ]
        assert replaced == sorted(replaced) and replaced[0] < replaced[-1]


def test_same_seed_same_bits_other_seed_other_sample():
    numbers = ladder(0)
    first, again, other = (quietly(numbers, seed=seed) for seed in (3, 3, 4))
    assert first.effects.tobytes() == again.effects.tobytes()
    assert (first.screening.is_random == again.screening.is_random).all()
    assert first.screening.rounds == again.screening.rounds
    assert (first.screening.is_random != other.screening.is_random).any()


@pytest.mark.parametrize("number", [1, 30, SAMPLE])
def test_few_components_are_all_replaced(number):
    """There is nothing left to be trusted, so nothing is warned of: these are exact scores, however bad the cheap one."""
    draw = np.random.default_rng(0)
    true = draw.standard_normal(number)
    answer = screen((true, draw.standard_normal(number)))
    assert answer.screening.replaced.all() and answer.screening.bound == -np.inf
    np.testing.assert_allclose(answer.effects[0], true, rtol=1e-5)


def test_components_out_of_reach_are_no_part_of_it():
    true = ladder(0)[0]
    tool = scoring_toys.ladder(true, true)
    reach = np.arange(NUMBER) < 1000
    answer = screened.effects(tool._replace(seen=({"part": reach},)), ("part",), scoring_toys.options(top=TOP))["part"]
    assert not answer.screening.replaced[~reach].any() and answer.screening.is_random.sum() == SAMPLE
    nothing = tool._replace(seen=({"part": np.zeros(NUMBER, bool)},))
    said = screened.effects(nothing, ("part",), scoring_toys.options(top=TOP))["part"].screening
    assert not said.replaced.any() and said.bound == said.threshold == -np.inf and said.is_trusted


def test_of_several_read_outs_the_first_one_ranks():
    """The second would rank the other way round; its effects come along exactly where the first asked for them."""
    true = ladder(0)[0]
    one = screen((true, true))
    both = screen((np.stack([true, -true]), np.stack([true, -true])))
    assert (one.screening.replaced == both.screening.replaced).all()
    assert both.effects.shape == (4, NUMBER)
    np.testing.assert_array_equal(both.effects[2:], -both.effects[:2])
    other = screen((np.stack([-true, true]), np.stack([-true, true])))
    assert (one.screening.replaced != other.screening.replaced).any()


@pytest.mark.parametrize("aggregate", ["mean_of_ratios", "ratio_of_means"])
def test_scores_of_a_screen_are_e_w(aggregate):
    numbers = ladder(1)
    said = quietly(numbers, aggregate=aggregate).screening
    np.testing.assert_allclose(said.exact, numbers[0][said.replaced], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(said.cheap, numbers[1][said.replaced], rtol=1e-5, atol=1e-7)
    misses = (numbers[0] - numbers[1])[said.is_random]
    assert said.residual == pytest.approx(misses.std(), rel=1e-4)


def test_progress_never_goes_back():
    seen = []
    quietly(ladder(2), progress=lambda kind: lambda *at: seen.append((kind, *at)))
    done = [at for kind, *at in seen if kind == "part"]
    assert len(done) > 1 and done == sorted(done)


@pytest.mark.parametrize(("number", "level"), [(19, 0.05), (60, 0.05), (200, 0.05 / 3), (200, 0.3)])
def test_a_further_value_exceeds_its_bound_no_more_often_than_promised(number, level):
    """20000 samples, each with one value more: the share above lies between level - 1/(n + 1) and level, within four errors."""
    draw = np.random.default_rng(0)
    values = draw.standard_t(2, size=(20_000, number + 1))
    share = np.mean([row[-1] > screened.upper_quantile(row[:-1], level) for row in values])
    error = 4 * np.sqrt(level * (1 - level) / len(values))
    assert level - 1 / (number + 1) - error <= share <= level + error


def test_too_small_a_sample_bounds_nothing():
    assert screened.upper_quantile(np.arange(18.0), 0.05) == np.inf
    assert screened.upper_quantile(np.zeros(0), 0.5) == np.inf


def test_a_real_pair_gets_exact_values_where_replaced():
    config = testing.tiny_config(neurons=250)
    pair = testing.tiny_pair(config, change=0.02)
    tool = instrument.of_pair(pair, testing.tiny_inputs(), jp.Anchor(layer=1, direction=np.eye(16)[0]))
    answer = screened.effects(tool, ("neuron",), scoring_toys.options(top=5))["neuron"]
    true = exact.effects(tool, ("neuron",), scoring_toys.options())["neuron"].effects
    cheap = local_linear.effects(tool, ("neuron",), scoring_toys.options())["neuron"].effects
    replaced = answer.screening.replaced
    assert SAMPLE <= replaced.sum() < 500 and not replaced[2:].any(), "nothing above the anchor is replaced"
    largest = np.abs(true).max()
    np.testing.assert_allclose(answer.effects[:, replaced], true[:, replaced], atol=1e-5 * largest, rtol=0)
    np.testing.assert_array_equal(answer.effects[:, ~replaced], cheap[:, ~replaced])
    weights = screened._weights(tool, "mean_of_ratios")
    best = np.argsort(-np.tensordot(weights, true, axes=1).ravel())[:5]
    assert replaced.ravel()[best].all()
    assert 0.9 < answer.screening.spearman <= 1 and answer.screening.slope == pytest.approx(1, abs=0.3)
