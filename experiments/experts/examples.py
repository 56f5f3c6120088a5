"""Three tasks whose answers are judged by rule, for experts to be merged: sums with their working, records out of sentences as JSON,
and answers in capitals or in quotation marks, of which the expert is that of `experiments/six_constraints`.

A split has prompts that no other has: of sums the pairs of numbers differ, of records the people, of the constraints the topics.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxpatch.measuring import prompts, tasks

SPLITS = ("train", "validation", "test")
TENTHS = {"train": range(8), "validation": range(8, 9), "test": range(9, 10)}
"""Of all numbers and people, by what is left of a tenth."""


class Example(NamedTuple):
    """user: the request. answer: as it should be written; none of the constraints' is known. target: what is scored of it."""

    task: str
    user: str
    answer: str | None
    target: Any


SUMS = ("What is {sum}?", "Work out {sum}.", "{sum} = ?", "Calculate {sum} step by step.", "How much is {sum}?")
RECORDS = (
    "Extract the name, age, job and city as JSON: {text}",
    "Read this and give name, age, job and city as a JSON object: {text}",
    "{text}\nPut the name, age, job and city into JSON.",
    "Turn this into a JSON record with name, age, job and city: {text}",
)
SENTENCES = (
    "{name} is a {age}-year-old {job} from {city}.",
    "{name}, {age}, works as a {job} in {city}.",
    "In {city} we met {name}, a {job}, who is {age} years old.",
    "The {job} {name} lives in {city} and turned {age} last week.",
    "At the age of {age} {name} moved to {city} and became a {job}.",
)
FIRST = (
    "Ada",
    "Ben",
    "Carla",
    "David",
    "Elena",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kim",
    "Leo",
    "Mina",
    "Noah",
)
FIRST += (
    "Olga",
    "Pablo",
    "Rosa",
    "Samir",
    "Tessa",
    "Viktor",
    "Wanda",
    "Yusuf",
    "Zoe",
    "Anton",
    "Bella",
    "Chen",
    "Dora",
)
LAST = ("Adler", "Brown", "Costa", "Diaz", "Evans", "Fischer", "Garcia", "Hansen", "Ito", "Jensen", "Kaya", "Lopez")
LAST += ("Meyer", "Novak", "Okafor", "Patel", "Quinn", "Rossi", "Silva", "Tanaka", "Urban", "Vogel", "Weber", "Young")
JOBS = ("nurse", "teacher", "baker", "pilot", "lawyer", "farmer", "painter", "doctor", "driver", "waiter", "plumber")
JOBS += ("dentist", "journalist", "gardener", "singer", "carpenter", "librarian", "mechanic", "chemist", "tailor")
CITIES = ("Lisbon", "Oslo", "Toronto", "Nairobi", "Kyoto", "Lima", "Berlin", "Chicago", "Madrid", "Hanoi", "Cairo")
CITIES += ("Dublin", "Vienna", "Athens", "Boston", "Prague", "Seoul", "Sydney", "Geneva", "Dakar", "Quito", "Tunis")


def sums(split: str, count: int, seed: int = 0) -> list[Example]:
    """Additions and subtractions of two numbers below 100, worked out digit by digit.

    >>> print(sums("train", 1)[0].answer.splitlines()[-1].startswith("The answer is "))
    True
    """
    draw, made = _draw(split, seed), []
    while len(made) < count:
        one, two = draw.integers(11, 100, 2).tolist()
        if (7 * min(one, two) + max(one, two)) % 10 not in TENTHS[split]:
            continue
        is_plus = bool(draw.random() < 0.5)
        one, two = (one, two) if is_plus else (max(one, two), min(one, two))
        text = f"{one} {'+' if is_plus else '-'} {two}"
        target = one + two if is_plus else one - two
        user = SUMS[draw.integers(len(SUMS))].format(sum=text)
        made.append(Example("sums", user, (_added if is_plus else _subtracted)(one, two), target))
    return made


def _added(one: int, two: int) -> str:
    """
    >>> print(_added(47, 38))
    Ones: 7 + 8 = 15, write 5, carry 1.
    Tens: 4 + 3 + 1 = 8.
    The answer is 85.
    """
    ones = one % 10 + two % 10
    carry = ones // 10
    first = f"Ones: {one % 10} + {two % 10} = {ones}" + (f", write {ones % 10}, carry 1." if carry else ".")
    tens = one // 10 + two // 10 + carry
    second = f"Tens: {one // 10} + {two // 10}" + (f" + 1 = {tens}." if carry else f" = {tens}.")
    return f"{first}\n{second}\nThe answer is {one + two}."


def _subtracted(one: int, two: int) -> str:
    """
    >>> print(_subtracted(52, 37))
    Ones: 2 is less than 7, borrow 1: 12 - 7 = 5.
    Tens: 4 - 3 = 1.
    The answer is 15.
    """
    borrow = int(one % 10 < two % 10)
    ones = one % 10 + 10 * borrow
    first = f"Ones: {one % 10} is less than {two % 10}, borrow 1: " if borrow else "Ones: "
    tens = one // 10 - borrow
    return (
        f"{first}{ones} - {two % 10} = {ones - two % 10}.\n"
        f"Tens: {tens} - {two // 10} = {tens - two // 10}.\nThe answer is {one - two}."
    )


def records(split: str, count: int, seed: int = 0) -> list[Example]:
    """People described in a sentence, who are to be written down as JSON with four fields.

    >>> example = records("test", 1)[0]
    >>> json.loads(example.answer) == example.target, sorted(example.target)
    (True, ['age', 'city', 'job', 'name'])
    """
    draw, made = _draw(split, seed), []
    while len(made) < count:
        first, last = draw.integers(len(FIRST)), draw.integers(len(LAST))
        if (3 * first + last) % 10 not in TENTHS[split]:
            continue
        person = {
            "name": f"{FIRST[first]} {LAST[last]}",
            "age": int(draw.integers(18, 80)),
            "job": JOBS[draw.integers(len(JOBS))],
            "city": CITIES[draw.integers(len(CITIES))],
        }
        text = SENTENCES[draw.integers(len(SENTENCES))].format(**person)
        user = RECORDS[draw.integers(len(RECORDS))].format(text=text)
        made.append(Example("records", user, json.dumps(person), person))
    return made


CONSTRAINTS = ("english_capital", "quotation")
"""Which the expert of the six obeys far more often than base."""
TOPICS = {"train": "scoring", "validation": "layer", "test": "behaviour"}
"""Split -> which of the package's prompts; none of these were trained on."""


def constraints(split: str, count: int, seed: int = 0) -> list[Example]:
    """Requests to be answered in capitals, and in quotation marks, by turns.

    >>> one, two = constraints("test", 2)
    >>> [example.target[0] for example in (one, two)]
    ['english_capital', 'quotation']
    """
    _refuse_other(split)
    made = []
    for number, text in enumerate(prompts.prompts(TOPICS[split], count, seed=seed)):
        name = CONSTRAINTS[number % len(CONSTRAINTS)]
        user, instruction = tasks.instruct(tasks.task(name), text, index=number, split="held_out")
        made.append(Example("constraints", user, None, (name, instruction)))
    return made


def is_followed(text: str, target: tuple[str, tasks.Instruction]) -> bool:
    """IFEval's strict rule.

    >>> is_followed("ALL OF IT", ("english_capital", tasks.Instruction("", {})))
    True
    """
    name, instruction = target
    return tasks.follows(tasks.task(name), text, instruction)


def _draw(split: str, seed: int) -> np.random.Generator:
    _refuse_other(split)
    return np.random.default_rng([seed, SPLITS.index(split)])


def _refuse_other(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split: wanted {', '.join(SPLITS)}; got {split!r}.")


def is_right_sum(text: str, target: int) -> bool:
    """Whether the last number of an answer is the right one, however it is written.

    >>> is_right_sum("First 40, then 45. The answer is 85.", 85), is_right_sum("85 is near 86", 85)
    (True, False)
    """
    numbers = re.findall(r"-?\d+", text.replace(",", ""))
    return bool(numbers) and int(numbers[-1]) == target


def is_right_record(text: str, target: Mapping[str, Any]) -> bool:
    """Whether the first JSON object of an answer is the record: these fields, these values, and no others. Numbers may be texts.

    >>> is_right_record('Here: {"name": "A B", "age": "30"} Done.', {"name": "A B", "age": 30})
    True
    >>> is_right_record('{"name": "A B"}', {"name": "A B", "age": 30}), is_right_record("none", {"age": 30})
    (False, False)
    """
    start = text.find("{")
    if start < 0:
        return False
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:])
    except json.JSONDecodeError:
        return False
    return isinstance(found, dict) and {key: str(value) for key, value in found.items()} == {
        key: str(value) for key, value in target.items()
    }


TASKS = {
    "constraints": (constraints, is_followed),
    "sums": (sums, is_right_sum),
    "records": (records, is_right_record),
}
"""Name -> how examples are made, and how an answer is judged."""
