"""Who writes answers after a run, and when controls do. Texts and distances are made up: models obey by their share of special."""

from types import SimpleNamespace

import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import testing, validation
from jaxpatch.measuring import prompt_sets, read_outs
from jaxpatch.scoring import METHODS
from jaxpatch.validating import controls, curves

PAIR, PROMPTS = testing.tiny_pair(), testing.tiny_inputs()
ANCHOR = read_outs.Anchor(layer=2, direction=np.eye(16)[1])
SETS = prompt_sets.PromptSets(
    "owls", (), (), (), (), ("a", "b"), verdicts=(str.isupper, str.isupper), loosely=(str.isalpha, str.isalpha)
)


@pytest.fixture(scope="module")
def found():
    return jp.score(PAIR, PROMPTS, ANCHOR, method="first_order", aggregate="ratio_of_means")


def share(params) -> float:
    """Of what special's MLPs changed in W_down, how much is in a model."""
    wide = [np.asarray(side["layers"]["mlp"]["down"]["kernel"]) for side in (PAIR.base, params, PAIR.special)]
    return float(np.abs(wide[1] - wide[0]).sum() / np.abs(wide[2] - wide[0]).sum())


@pytest.fixture
def write(monkeypatch, found):
    """What `written` says where models with so much of special obey."""

    def asked(obeys, others):
        fake = SimpleNamespace(
            continuation=lambda pair, params, requests, max_new: None,
            divergence_from=lambda pair, side, told: (
                lambda params: SimpleNamespace(kl=np.array([abs(share(params) - share(side))]), perplexity=2.0)
            ),
            texts=lambda pair, told: ["OWLS", "OWLS"],
        )
        monkeypatch.setattr(validation, "continuations", fake)
        monkeypatch.setattr(validation.inputs, "encode", lambda pair, texts: PROMPTS)
        monkeypatch.setattr(validation, "FEWEST_ANSWERING", 3)
        monkeypatch.setattr(
            validation.pipeline,
            "generate",
            lambda pair, params, requests, max_new: ["OWLS" if obeys(share(params)) else "owls"] * 2,
        )
        return validation.written(
            PAIR, SETS, PROMPTS, found, others, max_new=4, seed=0, progress=lambda done, total: None
        )

    return asked


def orders(found):
    """Size and order of every set that wrote."""
    return [(each.order, each.size) for each in found[1].values() if each.size is not None]


def test_controls_write_where_the_ranking_first_comes_half_way(write, found):
    samples, along = write(lambda share: share > 0.2, {"another": found})
    sizes = [size for order, size in orders((samples, along)) if order == "top"]
    shares = {each.size: each.to_base for each in along.values() if each.order == "top"}
    first = next(size for size in sizes if shares[size] > 0.2)
    assert sizes[0] < first < sizes[-1], "the ranking neither begins nor ends half way"
    beside = [each for each in along.values() if each.order not in ("", "top")]
    assert [each.order for each in beside] == [
        "another",
        "largest change",
        "random, same changes",
        "random, same layers",
        "random",
    ]
    assert {each.size for each in beside} == {first}
    assert along[f"base + {first}, another"].to_base == pytest.approx(shares[first]), "the same ranking by another name"
    assert len({round(each.to_base, 5) for each in beside}) >= 3, "the others are other sets"
    assert [sample.model for sample in samples] == [name for name in along for _ in SETS.behaviour]


@pytest.mark.parametrize("least", [0.0, 0.1, 0.5, 1.1])
def test_beginnings_are_powers_of_ten_and_one_more_below_half_way(write, found, least):
    """So that a run need not let every size write; and in the order of their sizes."""
    _, along = write(lambda share: share > least, {})
    total = len(validation._order(found)[0].places)
    sizes, grid = [each.size for each in along.values() if each.order == "top"], curves.sizes(total).tolist()
    coarse = [k for k in grid if k in (10, 100, 1000, total)]
    shares = {each.size: each.to_base for each in along.values() if each.order == "top"}
    first = next((k for k in coarse if shares[k] > least), None)
    between = [] if first is None else [k for k in grid[: grid.index(first)][-1:] if k >= 3]
    assert sizes == sorted({*coarse, *between})
    assert set(coarse) < {k for k in grid if k >= 3}, "there is something to leave out"


@pytest.mark.parametrize(
    ("obeys", "others"), [(lambda share: False, {}), (lambda share: True, {}), (lambda share: True, None)]
)
def test_controls_are_silent_where_there_is_no_half_way(write, obeys, others):
    _, along = write(obeys, others)
    assert {each.order for each in along.values()} == ({""} if others is None else {"", "top"})


def test_controls_take_as_many_of_each_kind_as_the_ranking(found):
    order, shapes = validation._order(found)
    changes = {kind: np.ones(shape) for kind, shape in shapes.items()}
    beside = controls.of_equal_size(order, shapes, changes, {"another": found.values}, [0, 1])
    assert [len(several) for several in beside.values()] == [1, 1, 2, 2, 2]
    for several in beside.values():
        for other in several:
            for k in curves.sizes(len(order.places)):
                assert controls.counts(other, k) == controls.counts(order, k)
    assert found.method in METHODS
