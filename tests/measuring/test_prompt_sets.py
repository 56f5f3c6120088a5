"""Prompt sets: disjoint, dealt out as documented, and bad files named line by line."""

import json

import pytest

from jaxpatch.measuring import prompt_sets, prompts, tasks

COUNTS = {"anchor": 8, "layer": 4, "scoring": 6, "behaviour": 5}


@pytest.mark.parametrize("name", tasks.TASKS)
def test_no_topic_is_in_two_sets(name):
    sets = prompt_sets.of_task(name, COUNTS)
    topics = [
        {prompts.topic_of(text) for text in sets.plain},
        {prompts.topic_of(text) for text in sets.steered},
        {prompts.topic_of(text) for text in prompts.prompts("scoring", 6)},
        {prompts.topic_of(text) for text in prompts.prompts("behaviour", 5)},
    ]
    assert sum(map(len, topics)) == len(set.union(*topics))
    assert all(plain in asked for plain, asked in zip(sets.plain, sets.asked, strict=True))
    assert [len(s) for s in (sets.asked, sets.plain, sets.steered, sets.scoring, sets.behaviour)] == [8, 8, 4, 6, 5]


def test_verdicts_know_each_prompts_own_number():
    sets = prompt_sets.of_task("multiple_sections", COUNTS)
    many = "SECTION 1 a SECTION 2 b SECTION 3 c SECTION 4 d Section 1 a Section 2 b Section 3 c Section 4 d"
    assert sets.verdicts is not None and all(verdict(many) for verdict in sets.verdicts)
    assert not any(verdict("SECTION 1 only") for verdict in sets.verdicts)
    assert sets.loosely is not None and all(verdict(many) for verdict in sets.loosely)
    assert not any(verdict("SECTION 1 only") for verdict in sets.loosely)


def lines(count, **more):
    return [{"with": f"Say {n} loudly", "without": f"Say {n}", **more} for n in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_without_a_split_are_dealt_out(tmp_path):
    sets = prompt_sets.of_file(write(tmp_path / "loud.jsonl", lines(16)))
    assert sets.name == "loud" and sets.verdicts is None and sets.sign is None
    assert [len(s) for s in (sets.asked, sets.plain, sets.steered, sets.scoring, sets.behaviour)] == [8, 8, 2, 4, 2]
    assert len({*sets.asked, *sets.scoring, *sets.behaviour}) == 14


def test_lines_with_a_split_stay_where_they_are(tmp_path):
    rows = [row | {"split": split} for split, n in COUNTS.items() for row in lines(n)]
    for number, row in enumerate(rows):
        row |= {"with": f"{row['with']} {number}", "without": f"{row['without']} {number}"}
    sets = prompt_sets.of_file(write(tmp_path / "x.jsonl", rows))
    assert [len(s) for s in (sets.asked, sets.steered, sets.scoring, sets.behaviour)] == [8, 4, 6, 5]


def test_files_of_other_editors_are_read(tmp_path):
    """A byte order mark, Windows line ends, and the line separators that JSON may hold and Python would split at."""
    rows = [row | {"with": row["with"] + "\u2028now\x85"} for row in lines(16)]
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "x.jsonl").write_bytes(text.encode("utf-8-sig"))
    assert prompt_sets.of_file(tmp_path / "x.jsonl").asked[0] == rows[0]["with"]


def test_counts_are_the_most_that_is_taken_of_a_file(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(32))
    sets = prompt_sets.of_file(path, {"anchor": 5, "layer": 9, "scoring": 3, "behaviour": 1})
    assert [len(s) for s in (sets.asked, sets.plain, sets.steered, sets.scoring, sets.behaviour)] == [5, 5, 4, 3, 1]


@pytest.mark.parametrize(("content", "said"), [(b" \n", "is empty"), ("café".encode("latin-1"), "not UTF-8")])
def test_a_file_that_holds_no_lines_says_so(tmp_path, content, said):
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=f"x.jsonl.*{said}"):
        prompt_sets.of_file(tmp_path / "x.jsonl")


def test_one_broken_line_is_one_fault(tmp_path):
    path = write(tmp_path / "x.jsonl", lines(16))
    path.write_text("nonsense\nmore\n" + path.read_text())
    with pytest.raises(ValueError) as caught:
        prompt_sets.of_file(path)
    assert str(caught.value).count("  - ") == 2


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lines(3), "0 prompts for behaviour; wanted at least 1"),
        (lines(8) + lines(1), "stands in more than one line: '"),
        ([*lines(8, split="anchor")[:4], {"with": "a", "without": "b"}], "some lines have a split and some have none"),
        ([{"with": "a", "without": " "}], "line 1: wanted"),
        ([{"with": "a", "without": "b", "split": "test"}], "line 1: split 'test'"),
        (["a"], "line 1: wanted"),
        ([{"with": "a", "without": "a"}], "line 1: the same with and without the instruction"),
        ([*lines(9), lines(1)[0] | {"with": "other words"}], "'Say 0' is dealt to anchor and scoring"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        prompt_sets.of_file(write(tmp_path / "x.jsonl", rows))


def test_a_missing_file_names_the_tasks():
    with pytest.raises(FileNotFoundError, match="english_capital"):
        prompt_sets.of_file("nowhere.jsonl")


def test_wordings_of_one_request_may_stand_together(tmp_path):
    rows = [*lines(4, split="anchor"), lines(1)[0] | {"with": "other words", "split": "anchor"}]
    rows += [
        {"with": f"{name} x", "without": name, "split": split}
        for name, split in zip("abcd", ("layer", "scoring", "scoring", "behaviour"), strict=True)
    ]
    assert len(prompt_sets.of_file(write(tmp_path / "x.jsonl", rows)).asked) == 5
