"""The table on disk holds every bit; the summary on the terminal says what matters and takes nothing as markup."""

import io
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from reporting_cases import HOSTILE, with_scores
from rich.console import Console

from jaxpatch.reporting import tables, wording


def printed(findings, width=200) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(tables.terminal(findings))
    return stream.getvalue().replace(wording.SPACE, " ")


def test_csv_gives_every_float32_back(screened, tmp_path):
    read = pd.read_csv(tables.write_scores(screened, tmp_path / "scores.csv"))
    for kind, values in screened.scores.values.items():
        rows = read[read.kind == kind]
        for column, wanted in (
            ("score", values),
            ("low", screened.scores.low[kind]),
            ("high", screened.scores.high[kind]),
        ):
            assert np.array_equal(rows[column].to_numpy(np.float32), wanted.ravel())
    assert read.name.tolist() == screened.scores.to_frame().name.tolist()
    assert read.is_exact.sum() == sum(part.replaced.sum() for part in screened.scores.screening.values())


def test_csv_leaves_missing_intervals_empty(exact, tmp_path):
    none = with_scores(exact, np.ones((3, 4)), low=np.full((3, 4), np.nan), high=np.full((3, 4), np.nan))
    path = tables.write_scores(none, tmp_path / "scores.csv")
    assert pd.read_csv(path).low.isna().all() and "nan" not in path.read_text()


def test_csv_of_roles_has_both_scores_of_every_component_that_has_a_role(exact, tmp_path):
    tables.write_roles(exact, tmp_path / "roles.csv")
    read = pd.read_csv(tmp_path / "roles.csv")
    frame = exact.roles.to_frame()
    for name in ("E_w", "E_a", "E_a low"):
        assert np.array_equal(read[name.replace(" ", "_")].to_numpy(np.float32), frame[name].to_numpy(np.float32))
    assert read["role"].tolist() == frame["role"].tolist() and read["name"].tolist() == frame["name"].tolist()
    assert read["E_a_is_exact"].all()


def test_graph_is_written_in_three_forms(exact, tmp_path):
    tables.write_flow(exact, tmp_path)
    frame = pd.read_csv(tmp_path / "flow.csv")
    pd.testing.assert_frame_equal(frame, exact.flow.to_frame(), check_dtype=False)
    assert json.loads((tmp_path / "flow.json").read_text(encoding="utf-8"))["nodes"][0]["name"] == "state"
    assert ElementTree.parse(tmp_path / "flow.graphml").getroot().tag.endswith("graphml")


def test_every_file_of_a_forced_run_says_so(exact, tmp_path):
    failing = exact.anchor_info.checks[0]._replace(
        name="split-half cosine", value=0.25, wanted="at least 0.5", is_passed=False
    )
    forced = exact._replace(anchor_info=exact.anchor_info._replace(checks=(failing,)))
    said = "split-half cosine is 0.25, wanted at least 0.5"
    tables.write_scores(forced, tmp_path / "scores.csv")
    tables.write_roles(forced, tmp_path / "roles.csv")
    tables.write_flow(forced, tmp_path)
    tables.write_curves(forced, tmp_path / "curves.csv")
    tables.write_smallest(forced, tmp_path / "smallest.csv")
    tables.write_answers(forced, tmp_path)
    written = ("scores", "roles", "flow", "curves", "smallest", "answers", "behaviour")
    for name in (f"{each}.csv" for each in written):
        assert set(pd.read_csv(tmp_path / name)["forced"]) == {said}
    assert json.loads((tmp_path / "flow.json").read_text(encoding="utf-8"))["note"] == f"forced: {said}"
    graph = ElementTree.parse(tmp_path / "flow.graphml").getroot()
    assert graph[0].tag.endswith("desc") and graph[0].text == f"forced: {said}"
    assert "forced" not in pd.read_csv(tables.write_scores(exact, tmp_path / "scores.csv"))


def test_terminal_says_what_was_found(exact):
    text = printed(exact)
    best = exact.scores.to_frame().nlargest(1, "score").iloc[0]
    assert wording.headline(exact).replace(wording.SPACE, " ").split(";")[0] in text
    assert best["name"] in text and wording.percent(best.score).replace(wording.SPACE, " ") in text
    assert text.count("passed") + text.count("FAILED") == len(exact.anchor_info.checks)
    assert "all heads and neurons" in text and "Restoration:" in text and "Knockout:" in text
    assert f"{exact.scores.is_kept.sum()} of 6 used" in text
    assert "base + top 10  not judged" in text
    for kind in exact.roles.roles:
        assert wording.sorted_out(exact.roles, kind).replace(wording.SPACE, " ") in printed(exact, width=1000)
    for line in wording.supplied(exact.flow):
        assert line.replace(wording.SPACE, " ") in printed(exact, width=1000)


def test_terminal_shows_failed_checks_and_missing_intervals(exact):
    info = exact.anchor_info
    failed = info._replace(checks=(info.checks[0]._replace(value=float("nan"), is_passed=False),))
    none = with_scores(exact, np.eye(3, 4), low=np.full((3, 4), np.nan), high=np.full((3, 4), np.nan))
    text = printed(none._replace(anchor_info=failed))
    assert "FAILED" in text and "—" in text and "nan" not in text


def test_terminal_takes_nothing_as_markup(hostile):
    assert HOSTILE in printed(hostile, width=400)


def test_terminal_works_with_nothing_but_scores(coarse):
    text = printed(coarse, width=60)
    assert coarse.scores.to_frame().nlargest(1, "score").name.item() in text
    assert (
        "No prompt was dropped" not in text
        and "checks" not in text
        and "Restoration" not in text
        and "relay" not in text
    )
