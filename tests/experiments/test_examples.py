"""Examples by rule: their answers are right, and no split has a prompt of another."""

import doctest
import importlib.util
import re
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "experiments" / "experts" / "examples.py"
spec = importlib.util.spec_from_file_location("experts_examples", PATH)
assert spec is not None and spec.loader is not None
examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(examples)


@pytest.mark.parametrize("task", ["sums", "records"])
def test_answers_are_right_by_their_own_rule(task):
    make, is_right = examples.TASKS[task]
    for split in examples.SPLITS:
        for example in make(split, 300):
            assert is_right(example.answer, example.target), example


def test_every_step_of_a_sum_is_right():
    for example in examples.sums("train", 300):
        for line in example.answer.splitlines()[:-1]:
            step = line.split(": ")[-1].split(",")[0].rstrip(".")
            left, _, right = step.partition(" = ")
            assert eval(left) == int(right), example.answer


def test_no_split_has_what_another_has():
    sums = {
        s: {tuple(sorted(map(int, re.findall(r"\d+", e.user)))) for e in examples.sums(s, 2000)}
        for s in examples.SPLITS
    }
    people = {s: {e.target["name"] for e in examples.records(s, 2000)} for s in examples.SPLITS}
    topics = {s: {e.user for e in examples.constraints(s, 60)} for s in examples.SPLITS}
    for one, two in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not topics[one] & topics[two]
        assert not people[one] & people[two]
        assert not sums[one] & sums[two]


def test_a_seed_makes_the_same_again():
    assert examples.sums("train", 5, 1) == examples.sums("train", 5, 1) != examples.sums("train", 5, 2)
    with pytest.raises(ValueError, match="split: wanted train, validation, test; got 'dev'"):
        examples.records("dev", 1)


def test_its_examples_are_true():
    assert doctest.testmod(examples).failed == 0
