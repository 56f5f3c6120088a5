"""The board from pairs to page, on pairs that take no training; and that what is there is not made again."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from benchmarks.planted import board, door, families, page, pairs, promises, records, shelf
from benchmarks.planted.records import Record
from jaxpatch.measuring.inputs import Inputs

METHODS = ("weight patching", "activation patching", "knockout", "change", "random")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("board")
    arguments = ["--out", str(folder / "out"), "--docs", str(folder / "docs"), "--seeds", "2"]
    board.main([*arguments, "--families", "written", "--methods", *METHODS])
    return folder


def test_the_page_says_what_each_method_reaches(out):
    text = (out / "docs" / "planted.md").read_text(encoding="utf-8")
    assert "| written | Written by hand" in text and "| 2 of 2 |" in text
    line = next(line for line in text.splitlines() if line.startswith("| weight patching"))
    assert line.count("1.00 (1.00 to 1.00)") == 5 and line.endswith("| 4.00 (4.00 to 4.00) |")
    assert "activation patching puts a component that is no source above every source: 1.00" in text
    assert "* AUROC of weight patching, wanted at least 0.95: 1.00 (1.00 to 1.00); holds." in text
    assert "In those written by hand, with relays, that is so in 2 of 2: in the median" in text
    assert (out / "docs" / "planted.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_promises_are_kept_on_what_is_written_by_hand(out):
    for seed in (0, 1):
        said = json.loads(board.promise(out / "out", "written", seed).read_text(encoding="utf-8"))
        assert said["findings"] == {"sources": 3, "called": 3, "others": 0, "relays": 2, "called relays": 2}
        assert said["screen"]["missed"] == [0] * promises.TRIALS and said["anchor"]["is_trusted"]
        assert said["routes"]["traced"] == said["routes"]["wanted"] == said["routes"]["both"] >= 6


def test_what_is_there_is_not_made_again(out, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(pairs, "plant", refuse)
    monkeypatch.setattr(board, "CONTESTANTS", dict.fromkeys(METHODS, refuse))
    monkeypatch.setattr(promises, "kept", refuse)
    asked_for = ["--seeds", "2", "--families", "written", "--methods", *METHODS]
    board.main(["--out", str(out / "out"), *asked_for])
    assert not capsys.readouterr().out
    docs = out / "docs"
    before = (docs / "planted.md").read_text(encoding="utf-8").split("```")
    board.main(["--out", str(out / "nowhere"), "--docs", str(docs), *asked_for])
    after = (docs / "planted.md").read_text(encoding="utf-8").split("```")
    assert before[::2] == after[::2] and before[1] != after[1], "the same page, by another command"


def test_predictions_of_others_get_a_row(out, capsys):
    place = board.folder(out / "out", "written", 0)
    asked = door.problem(place)
    theirs = {
        "method": "ours",
        "cost": 1,
        "pair": asked.digest,
        "values": {kind: np.ones(shape).tolist() for kind, shape in asked.kinds.items()},
    }
    file = board.prediction(out / "out", "ours", "written", 0)
    file.parent.mkdir()
    file.write_text(json.dumps(theirs), encoding="utf-8")
    rows = {row["method"]: row for row in board.measured(out / "out", "written", 0).rows}
    assert rows["ours"]["auroc"] == 0.5 and rows["ours"]["commit"] is None and set(rows) == {*METHODS, "ours"}
    for name, said in (
        ("impostor", theirs | {"method": "knockout"}),
        ("likeness", theirs | {"method": "Weight-Patching"}),
        ("twin", theirs),
        ("other", theirs | {"pair": ""}),
    ):
        bad = board.prediction(out / "out", name, "written", 0)
        bad.parent.mkdir()
        bad.write_text(json.dumps(said), encoding="utf-8")
        assert {row["method"] for row in board.measured(out / "out", "written", 0).rows} == {*METHODS, "ours"}
        assert f"{name}/written-0.json is left out" in capsys.readouterr().err
        bad.unlink()


def test_what_was_measured_earlier_is_not_lost(out, tmp_path):
    docs = tmp_path / "docs"
    shutil.copytree(out / "docs", docs)
    asked_for = ["--out", str(out / "out"), "--docs", str(docs), "--seeds", "1", "--families", "written"]
    board.main([*asked_for, "--methods", "change"])
    before, after = (records.read(place / "planted.jsonl") for place in (out / "docs", docs))
    assert {r["method"] for r in after["written", 0].rows} >= {r["method"] for r in before["written", 0].rows}
    assert after["written", 1] == before["written", 1] and after["written", 0].held == before["written", 0].held


def test_pairs_of_another_recipe_are_not_mixed_with_these(out, tmp_path, monkeypatch, capsys):
    written = families.FAMILIES["written"]
    monkeypatch.setitem(families.FAMILIES, "written", dataclasses.replace(written, recipe=written.recipe + 1))
    asked_for = ["--seeds", "1", "--families", "written", "--methods", "change"]
    with pytest.raises(ValueError, match=r"planted by recipe .*; name an empty --out"):
        board.main(["--out", str(out / "out"), *asked_for])
    shutil.copytree(out / "docs", tmp_path / "docs")
    held = json.loads(board.promise(out / "out", "written", 0).read_text(encoding="utf-8"))
    monkeypatch.setattr(promises, "kept", lambda *_: held)
    board.main(["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), *asked_for])
    assert "are of another recipe" in capsys.readouterr().out
    assert len(records.read(tmp_path / "docs" / "planted.jsonl")["written", 0].rows) == 1


def test_a_pair_comes_back_from_the_shelf_as_it_was(tmp_path):
    planted = pairs.plant("written", 3)
    folder = shelf.put(planted, tmp_path / "pair")
    problem, beside = shelf.get(folder), shelf.beside(folder)
    assert planted.is_verified and not shelf.failed(folder)
    for one, other in ((problem.prompts, planted.prompts), (beside.more, planted.more), (beside.plain, planted.plain)):
        assert isinstance(one, Inputs) and all(map(np.array_equal, one, other))
    for kind, truth in planted.truth.items():
        np.testing.assert_array_equal(beside.known.sources[kind], truth > 0)
        np.testing.assert_array_equal(beside.known.relays[kind], planted.relays[kind])
    with pytest.raises(FileExistsError):
        shelf.put(planted, folder)


def test_where_there_is_no_source_predictions_are_scored_by_what_might_have_been_one(tmp_path):
    planted = pairs.plant("written", 4)
    nothing = {kind: 0 * truth for kind, truth in planted.truth.items()}
    folder = shelf.put(planted._replace(truth=nothing), tmp_path / "pair")
    values = {kind: group.astype(float).tolist() for kind, group in planted.groups[0].items()}
    said = {"method": "ours", "cost": 0, "pair": door.problem(folder).digest, "values": values}
    assert door.row(folder, said)["auroc"] == 1
    assert not any(each.any() for each in door.truth(folder).values())


def test_no_pair_to_judge_by_is_said(tmp_path, monkeypatch, capsys):
    planted = pairs.plant("written", 0)
    failed = planted._replace(checks=(planted.checks[0]._replace(is_passed=False),))
    monkeypatch.setattr(pairs, "plant", lambda *_: failed)
    with pytest.raises(SystemExit):
        board.main(["--out", str(tmp_path), "--docs", str(tmp_path / "docs"), "--seeds", "1", "--families", "written"])
    assert "no pair passed its checks" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        board.main(["--out", str(tmp_path), "--seeds", "0"])
    assert "--seeds: wanted at least 1; got 0" in capsys.readouterr().err
    (tmp_path / "docs" / "planted.jsonl").write_text('{"family": "written"}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"planted\.jsonl, line 1: no record of a planted pair"):
        board.main(["--out", str(tmp_path), "--docs", str(tmp_path / "docs"), "--seeds", "1"])


SCORES = dict(auroc=0.5, auroc_within=0.5, average_precision=0.5, precision=0.5, recall=0.5, first_miss=1.0)


def recorded(family, seed, **methods):
    """A pair's record. methods: name -> what differs from `SCORES`."""
    rows = [
        {"family": family, "seed": seed, "method": method, "cost": 1.0} | SCORES | said
        for method, said in methods.items()
    ]
    first = dict.fromkeys(methods, "head 0.0 1.00")
    return Record(family, seed, 5, "", commit="0123456789", rows=tuple(rows), first=first)


def written(folder, *recorded):
    page.write(folder, "command", recorded)
    return (folder / "planted.md").read_text(encoding="utf-8")


def test_a_page_of_quiet_families_alone_has_no_figure(tmp_path):
    failed = Record("nothing", 1, 5, "", failed=("base: speaks 0.5 (0.9)",))
    text = written(tmp_path, recorded("nothing", 0, random={}), failed)
    assert "| random | 0.50 (0.50 to 0.50) |" in text and "| 1 of 2 | base: speaks (1) |" in text
    assert not (tmp_path / "planted.svg").exists()


@pytest.mark.parametrize(
    ("trusted", "count", "words"),
    [
        (0, 60, "0.0%, and below 4.9% with 95 % confidence (exact); holds."),
        (0, 40, "0.0%, and below 7.2% with 95 % confidence (exact); **not shown by so few**."),
        (4, 60, "6.7%, and below 14.6% with 95 % confidence (exact); **does not hold**."),
    ],
)
def test_controls_are_held_to_a_level(tmp_path, trusted, count, words):
    """Not to what was seen, but to what that leaves possible: (1 - 0.049) ** 60 = 0.05."""
    promised = {"intervals": {"held": 1, "all": 1}, "findings": {"sources": 0, "called": 0, "others": 1}}
    promised |= {"screen": {"missed": [0], "replaced": [1], "all": 2, "top": 10}, "passing on": None}
    quiet = [
        recorded("nothing", seed, random={})._replace(
            held=promised | {"family": "nothing", "anchor": {"is_trusted": seed < trusted}}
        )
        for seed in range(count)
    ]
    assert f"* False findings, wanted in at most 5% of such pairs: {words}" in written(tmp_path, *quiet)


def test_hard_families_say_who_finds_what_takes_away(tmp_path):
    said = {"weight patching": dict(cost=80.0, auroc_taking=0.5), "change": dict(cost=0.0, auroc_taking=0.25)}
    text = written(tmp_path, recorded("cancelling", 0, **said))
    before, after = text.split("Components that take the behaviour away")
    assert "| change | 0.25 (0.25 to 0.25) |" in after and "## Where it is not" in before
    assert text.index("| **change** | 1 | 0 |") < text.index("| weight patching | 1 | 80 |"), "by cost"
    assert "Measured at 0123456." in text and "recipe 5" in text


def test_who_answers_for_some_pairs_is_held_against_nobody(tmp_path):
    """However good, and cheap."""
    others = {"change": dict(cost=0.0), "random": dict(cost=0.0, average_precision=0.25)}
    best = dict(cost=0.0, average_precision=1.0)
    text = written(tmp_path, recorded("heads", 0, mine=best, **others), recorded("both", 0, **others))
    assert (
        "| **change** | 2 | 0 |" in text and "| random | 2 | 0 |" in text and "| mine, of some pairs | 1 | 0 |" in text
    )
    assert ">mine<" not in (tmp_path / "planted.svg").read_text(encoding="utf-8")


def test_a_reason_is_given_where_the_numbers_bear_it_out(tmp_path):
    def text(there, folder, seeds=page.FEWEST):
        pairs_ = [("both", 0.9), ("both needed", there)]
        return written(
            folder,
            *(
                recorded(name, seed, **{"weight patching": dict(average_precision=reached)})
                for name, reached in pairs_
                for seed in range(seeds)
            ),
        )

    reason = page.EXAMPLES[3].reason
    assert (
        f"| both needed | weight patching | 0.40 (0.40 to 0.40) | both: 0.90 (0.90 to 0.90) | head 0.0 1.00 | {reason} |"
        in text(0.4, tmp_path)
    )
    assert reason not in text(0.4, tmp_path, seeds=page.FEWEST - 1), "so few show nothing"
    assert reason not in text(0.9, tmp_path) and "| weight patching | both | 0.90" in text(0.9, tmp_path)


def test_what_is_ahead_beyond_chance_is_said(tmp_path):
    def text(*behind):
        return written(
            tmp_path,
            *(
                recorded("both", seed, **{"weight patching": dict(auroc=1.0), "change": dict(auroc=1 - each)})
                for seed, each in enumerate(behind)
            ),
        )

    assert "| change | **0.250 (0.200 to 0.300)** |" in text(0.2, 0.3)
    assert "| change | 0.100 (-0.100 to 0.300) |" in text(-0.1, 0.3)


def test_families_count_alike_and_seeds_are_drawn_for_all_of_them():
    def of(**values):
        pairs_ = [(name, seed) for name, each in values.items() for seed in each]
        numbers = [value for each in values.values() for value in each.values()]
        return page.over_families(pd.Series(numbers, pd.MultiIndex.from_tuples(pairs_, names=page.PAIR)))

    ones = dict.fromkeys(range(9), 1.0)
    assert of(a={0: 0.0}, b=ones).value == 0.5
    together, against = ({0: 0.0, 1: 1.0}, {0: 1.0, 1: 0.0})
    assert of(a=together, b=against)[1:] == (0.5, 0.5), "what one loses the other wins, whatever seeds are drawn"
    assert of(a=together, b=together)[1:] == (0.0, 1.0), "and here there is one trial, not two"


def test_lines_that_nobody_asked_about_stay(out, tmp_path, monkeypatch):
    docs = tmp_path / "docs"
    shutil.copytree(out / "docs", docs)
    old = Record("heads", 0, 1, "", failed=("special: obeys 0.5 (at least 0.9)",))
    known = records.read(docs / "planted.jsonl")
    records.write(docs / "planted.jsonl", [*known.values(), old])
    asked_for = ["--out", str(tmp_path / "out"), "--docs", str(docs), "--seeds", "2", "--families", "written"]
    board.main([*asked_for, "--methods", *METHODS])
    assert records.read(docs / "planted.jsonl") == known | {old.key: old}
    made = []
    monkeypatch.setattr(board, "made", lambda out, name, seed, methods: made.append((name, seed)))
    monkeypatch.setattr(board, "measured", lambda out, name, seed: known[name, seed])
    board.main([*asked_for, "--methods", "change", "gradient"])
    assert made == [("written", 0), ("written", 1)], "a method that has no row there is asked"


@pytest.mark.slow
def test_seeds_side_by_side_are_those_one_after_the_other(out, tmp_path):
    arguments = ["--out", str(tmp_path), "--docs", str(tmp_path), "--seeds", "2", "--processes", "2"]
    board.main([*arguments, "--families", "written", "--methods", "weight patching"])
    for key, record in records.read(tmp_path / "planted.jsonl").items():
        (row,) = record.rows
        assert row in records.read(out / "docs" / "planted.jsonl")[key].rows
