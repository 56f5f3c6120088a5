"""Sentences say what the numbers say, also where the answer is no."""

import dataclasses

import numpy as np
import pytest
from reporting_cases import curve, with_scores

import jaxpatch as jp
from jaxpatch.reporting import wording
from jaxpatch.scoring import ACTIVATION_METHODS, METHODS

HEADS = np.array([[0.2, 0.1, 0.0, -0.1], [0.05, 0.3, 0.02, 0.01], [0, 0, 0, 0]])


def said(text: str) -> str:
    return text.replace(wording.SPACE, " ")


@pytest.fixture
def heads(exact):
    return with_scores(exact, HEADS)


def restored(findings, top, *others, ks=(1, 4, 8), spread=0.02):
    drawn = [curve("top", "restoration", top, ks=ks, spread=spread)]
    drawn += [curve(name, "restoration", recovery, ks=ks, spread=spread, top=top) for name, recovery in others]
    return findings._replace(curves=tuple(drawn))


def test_percent_keeps_small_scores_and_shows_no_number_as_a_dash():
    shown = [said(wording.percent(x)) for x in (1.0, 0.0996, 0.00099, 1e-9, 0.0, -0.5, float("nan"), float("-inf"))]
    assert shown == ["100 %", "10 %", "0.099 %", "0 %", "0 %", "−50 %", "—", "−∞ %"]


def test_headline_counts_what_recovers_half_and_names_the_best_control(heads):
    found = restored(heads, [0.3, 0.52, 0.6], ("random", [0.0, 0.1, 0.6]), ("largest change", [0.1, 0.2, 0.6]))
    assert said(wording.headline(found)) == (
        "4 heads at or below block 1 recover 52 % of the control state; all heads together 60 %. That is 50 % of all "
        "that can reach the anchor: the change is spread out, not localised. Controls of the same size recover at most "
        "20 % (largest change)."
    )


def test_headline_says_when_a_control_does_as_well(heads):
    found = restored(heads, [0.3, 0.52, 0.6], ("largest change", [0.1, 0.55, 0.6]))
    assert said(wording.headline(found)).endswith(
        "But a control of the same size does as well: largest change recovers 55 %."
    )


def test_headline_says_when_a_lead_may_be_chance(heads):
    found = restored(heads, [0.3, 0.52, 0.6], ("random", [0.1, 0.45, 0.6]), spread=0.05)
    assert said(wording.headline(found)).endswith("at most 45 % (random), and the lead may be chance.")


def test_headline_says_when_half_is_never_reached(heads):
    text = said(wording.headline(restored(heads, [0.1, 0.31, 0.3])))
    assert text.startswith("No number of components recovers half of the control state: 4 heads at or below block 1")
    assert "recover 31 %, the most; all heads together 60 %" in text


def test_headline_says_when_only_everything_reaches_half(heads):
    text = said(wording.headline(restored(heads, [0.1, 0.31, 0.6], ("random", [0.1, 0.1, 0.6]))))
    assert text.startswith("All 8 heads at or below block 1 recover 60 % of the control state.")
    assert "No smaller set on the grid reaches half" in text and "Controls" not in text


def test_headline_says_when_nothing_recovers(heads):
    assert wording.headline(restored(heads, [-0.1, -0.2, 0.0])).startswith("Nothing stands out")


def test_without_curves_the_headline_is_the_strongest_component(heads):
    assert said(wording.headline(heads)) == (
        "The strongest single component, head 1.1, recovers 30 % of the control state (95 % interval 29 to 31 %); "
        "all heads together 60 %."
    )


def test_the_ceiling_is_that_of_the_kind_it_stands_beside(coarse):
    kinds = {"layer": np.full(3, 0.2, np.float32), "kv": np.full((3, 2), 0.1, np.float32)}
    found = dataclasses.replace(
        coarse.scores,
        values=kinds,
        effects={k: v[None] for k, v in kinds.items()},
        ceilings={"all layer": 0.9, "all kv": 0.3},
    )
    both = coarse._replace(scores=found)
    assert said(wording.headline(both)).startswith("The strongest single component, layer 0, recovers 20 %")
    assert said(wording.headline(both)).endswith("all layers together 90 %.")
    assert wording.ceiling(both) == ("all key/value groups", 0.3)


@pytest.mark.parametrize(
    ("values", "low", "words"),
    [
        (
            HEADS,
            HEADS - 0.4,
            "Nothing stands out: the highest score, head 1.1 at 30 %, has an interval that includes 0",
        ),
        (-np.abs(HEADS) - 0.1, None, "Nothing stands out: no single component recovers any"),
        (HEADS, np.full((3, 4), np.nan), "no interval: too few prompts"),
    ],
)
def test_without_curves_the_headline_admits_doubt(exact, values, low, words):
    assert words in said(wording.headline(with_scores(exact, values, low=low)))


def test_an_untrusted_anchor_comes_first(heads):
    info = heads.anchor_info
    failed = info._replace(checks=(info.checks[0]._replace(is_passed=False), *info.checks[1:]))
    text = wording.headline(heads._replace(anchor_info=failed))
    assert text.startswith(
        "Forced: read nothing into these scores, for the anchor fails its checks (split-half cosine)."
    )


def test_stand_looks_only_where_orders_can_differ(heads):
    found = restored(heads, [0.05, 0.5, 0.6], ("random", [0.0, 0.3, 0.6]))
    assert wording.stand(found, "restoration") == ("restoration", (4,), (4,), (4,), (), (), 1)
    assert wording.stand(found, "knockout") is None and wording.stands(found, "knockout") == ""


def test_stands_names_the_k_at_which_a_control_wins(heads):
    ks = (1, 2, 4, 8)
    found = restored(heads, [0.2, 0.3, 0.5, 0.6], ("random", [0.1, 0.35, 0.47, 0.6]), ks=ks)
    assert said(wording.stands(found, "restoration")) == (
        "Restoration: where the top curve lies between 10 and 90 % (k = 1, 2 and 4), it stands above every control at "
        "k = 1 and 4, not at k = 2 (30 % against 35 % for random). Its lead over each is clear of 0 at k = 1 only."
    )


def test_in_knockout_less_is_better(heads):
    drawn = (
        curve("top", "knockout", [0.8, 0.5, 0.4], ks=(1, 4, 8)),
        curve("random", "knockout", [0.9, 0.9, 0.4], ks=(1, 4, 8), top=[0.8, 0.5, 0.4]),
    )
    assert wording.stand(heads._replace(curves=drawn), "knockout").clear == (1, 4)
    worse = (drawn[0]._replace(name="random"), drawn[1]._replace(name="top"))
    found = wording.stand(heads._replace(curves=worse), "knockout")
    assert found.above == () and found.beaten[0] == (1, 0.9, "random", 0.8)
    assert "no better than its controls" in wording.stands(heads._replace(curves=worse), "knockout")


@pytest.mark.parametrize(
    ("top", "others", "words"),
    [
        ([0.01, 0.05, 0.6], (("random", [0.0, 0.0, 0.6]),), "cannot tell the ranking from its controls"),
        ([0.1, 0.5, 0.6], (), "no controls to compare with"),
        ([0.2, 0.5, 0.6], (("random", [0.19, 0.49, 0.6]),), "nowhere clear of 0: with these prompts it may be chance"),
        (
            [0.2, 0.5, 0.6],
            (("first order", [0.19, 0.49, 0.6]), ("random", [0.0, 0.1, 0.6])),
            "Its lead is clear of 0 over each but first order: there it may be chance.",
        ),
        (
            [0.2, 0.5, 0.6],
            (("first order", [0.19, 0.3, 0.6]), ("random", [0.0, 0.1, 0.6])),
            "Its lead is clear of 0 over each at k = 4, and elsewhere over each but first order: there it may be chance.",
        ),
    ],
)
def test_stands_admits_what_the_curves_cannot_say(heads, top, others, words):
    assert words in wording.stands(restored(heads, top, *others), "restoration")


def test_composition_follows_the_order_of_the_validation(exact):
    order = wording.reachable(exact)
    assert len(order.places) == exact.curves[0].ks[-1]
    best = exact.scores.to_frame().nlargest(10, "score").kind.value_counts().to_dict()
    assert wording.composition(exact, 10) == wording.counted({"head": best.get("head", 0), "neuron": best["neuron"]})


def test_trust_depends_on_the_method(exact, screened):
    assert "truly replaced; no score is an estimate" in wording.trust(exact)[0]
    first = exact._replace(scores=dataclasses.replace(exact.scores, method="first_order"))
    assert "nothing was replaced" in wording.trust(first)[0]
    lines = wording.trust(screened)
    heads = screened.scores.screening["head"]
    drawn = int(heads.is_random.sum())
    assert len(lines) == 1 and lines[0].startswith(
        f"{len(heads.exact)} heads were truly replaced ({drawn} drawn at random"
    )
    bad = heads._replace(spearman=0.2)
    assert "Trust only the replaced ones" in wording.agrees("head", bad)
    assert "Trust only the replaced ones" in wording.agrees("head", heads._replace(slope=float("nan")))


def test_what_is_promised_of_the_best(screened):
    heads = screened.scores.screening["head"]
    trusted = heads._replace(is_trusted=True, bound=0.01, threshold=0.02, top=7, alpha=0.1)
    said = wording.promise("head", trusted)
    assert said.startswith("The best 7 heads reach down to a score of 2.0") and "holds with probability 90" in said
    poor = wording.promise("head", trusted._replace(is_trusted=False, missed=0.7))
    assert "poor here" in poor and "at most 0.7" in poor
    assert "the order is exact" in wording.promise("head", trusted._replace(bound=float("-inf")))


def test_the_noise_floor_is_told_for_each_kind(exact):
    told = wording.noise(exact._replace(scores=dataclasses.replace(exact.scores, noise={"head": 1e-4, "neuron": 2e-6})))
    assert told.startswith("head ±0.01") and "neuron ±0.0002" in told and "rounding" not in told
    largest = float(np.abs(exact.scores.values["neuron"]).max())
    told = wording.noise(exact._replace(scores=dataclasses.replace(exact.scores, noise={"neuron": 0.11 * largest})))
    assert "the order of neurons is as much rounding as effect" in told


def hand_placed(exact, own, passed, low=0.01):
    """Roles of heads [3, 4] by scores that are given; the last layer is above the anchor."""
    sides = []
    for values, found in ((own, exact.roles.weights), (passed, exact.roles.activations)):
        values = np.array([values, [0.0] * 4, [0.0] * 4], np.float32)
        heads = dict(values={"head": values}, low={"head": values - low}, high={"head": values + low})
        sides.append(dataclasses.replace(found, **heads, effects={"head": np.stack([values] * 6)}))
    return jp.place(*sides)


def test_roles_are_counted_with_the_strongest_of_each(exact):
    roles = hand_placed(exact, [0.2, 0.1, 0.0, 0.08], [0.02, 0.3, 0.4, -0.1])
    assert said(wording.sorted_out(roles, "head")) == (
        "8 heads can reach the anchor: 2 sources, 1 relay, 1 that is both, 4 neither. "
        "Strongest relay: head 0.2, E_a 40 % (39 to 41 %) and E_w 0 % (−1.0 to 1.0 %). "
        "Strongest source: head 0.0, E_a 2.0 % (1.0 to 3.0 %) and E_w 20 % (19 to 21 %). "
        "Strongest of those that are both: head 0.1, E_a 30 % (29 to 31 %) and E_w 10 % (9.0 to 11 %). "
        "Spearman of E_a and E_w 0.203: where the state is seen says little of whose weights made it."
    )


def test_two_rankings_that_are_one_are_called_so_and_none_is_no_role(exact):
    alike = said(wording.sorted_out(hand_placed(exact, [0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8]), "head"))
    assert "no source, no relay, 4 that are both, 4 neither" in alike and alike.endswith(
        "1.000: the two rankings are nearly one."
    )
    unsure = said(wording.sorted_out(hand_placed(exact, [0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.6, 0.8], low=1), "head"))
    assert "no source, no relay, none that is both, 8 neither" in unsure and "Strongest" not in unsure


def test_criteria_are_said_as_they_are(exact):
    told = said(wording.criteria(dataclasses.replace(exact.roles, criteria=jp.Criteria(share=0.2, own=0.5))))
    assert "at least 20 % of the largest of its kind" in told and "less than 50 % of it" in told and "ours" in told


def test_every_method_has_words():
    assert set(wording.METHODS) == set(METHODS | ACTIVATION_METHODS)


def test_dropped_prompts_are_counted_and_named(exact):
    kept = np.array([True, False, True, True, False, True])
    found = exact._replace(scores=dataclasses.replace(exact.scores, is_kept=kept))
    assert "2 of 6 prompts were dropped (numbers 1 and 4)" in wording.dropped(found)
    assert wording.prompts_used(found) == "4 of 6 used"
    assert wording.dropped(with_scores(exact, HEADS)).startswith("No prompt was dropped")
