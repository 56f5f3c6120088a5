"""The board from pairs to page, on pairs that take no training; and that what is there is not made again."""

import dataclasses
import json
import shutil

import numpy as np
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
    assert line.count("1.00 (1.00 to 1.00)") == 4 and line.endswith("| 4.00 (4.00 to 4.00) |")
    assert "activation patching puts a component that is no source above every source: 1.00" in text
    assert "* AUROC of weight patching, wanted at least 0.95: 1.00 (1.00 to 1.00); holds." in text
    assert "in the 2 of 2 pairs where there is one, their activations recover" in text  # relays, by construction
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
    assert rows["ours"]["auroc"] == 0.5 and set(rows) == {*METHODS, "ours"}
    for name, said in (
        ("impostor", theirs | {"method": "knockout"}),
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
    board.main(["--out", str(tmp_path / "out"), "--docs", str(tmp_path / "docs"), *asked_for])
    assert "are of another recipe" in capsys.readouterr().out
    assert len(records.read(tmp_path / "docs" / "planted.jsonl")["written", 0].rows) == 1


def test_a_pair_comes_back_from_the_shelf_as_it_was(tmp_path):
    planted = pairs.plant("written", 3)
    folder = shelf.put(planted, tmp_path / "pair")
    problem, beside = shelf.get(folder, 3), shelf.beside(folder)
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


def test_a_page_of_quiet_families_alone_has_no_figure(tmp_path):
    row = {"family": "nothing", "seed": 0, "method": "random", "cost": 0.0, "auroc": 0.5}
    page.write(
        tmp_path,
        "command",
        [Record("nothing", 0, 2, "", rows=(row,)), Record("nothing", 1, 2, "", failed=("base: speaks 0.5 (0.9)",))],
    )
    assert "| random | 0.50 (0.50 to 0.50) |" in (tmp_path / "planted.md").read_text(encoding="utf-8")
    assert "| 1 of 2 | base: speaks (1) |" in (tmp_path / "planted.md").read_text(encoding="utf-8")
    assert not (tmp_path / "planted.svg").exists()


def test_hard_families_say_who_finds_what_takes_away(tmp_path):
    scores = dict(auroc=0.5, average_precision=0.5, precision=0.5, recall=0.5, first_miss=1.0)
    rows = [
        {"family": "cancelling", "seed": 0, "method": method, "cost": cost, "auroc_taking": taking} | scores
        for method, cost, taking in (("weight patching", 80.0, 0.5), ("change", 0.0, 0.25))
    ]
    page.write(tmp_path, "command", [Record("cancelling", 0, 3, "", commit="0123456789", rows=tuple(rows))])
    text = (tmp_path / "planted.md").read_text(encoding="utf-8")
    before, after = text.split("Components that take the behaviour away")
    assert "| change | 0.25 (0.25 to 0.25) |" in after and "## Where it is not" in before
    assert text.index("| **change** | 1 | 0 |") < text.index("| weight patching | 1 | 80 |"), "by cost"
    assert "Measured at 0123456." in text and "recipe 3" in text


def test_families_count_alike_however_few_of_their_pairs_were_used():
    values = [np.array([0.0]), np.ones(9)]
    assert page.mean_of_means(values).value == 0.5
    low, high = page.mean_of_means(values)[1:]
    assert low == high == 0.5
    spread = page.mean_of_means([np.array([0.0, 1.0]), np.ones(9)])
    assert spread.value == 0.75 and spread.low == 0.5 and spread.high == 1.0


@pytest.mark.slow
def test_seeds_side_by_side_are_those_one_after_the_other(out, tmp_path):
    arguments = ["--out", str(tmp_path), "--docs", str(tmp_path), "--seeds", "2", "--processes", "2"]
    board.main([*arguments, "--families", "written", "--methods", "weight patching"])
    for key, record in records.read(tmp_path / "planted.jsonl").items():
        (row,) = record.rows
        assert row in records.read(out / "docs" / "planted.jsonl")[key].rows
