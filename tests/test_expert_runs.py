"""Several experts on the command line: what is refused before any work. Runs are in end_to_end/test_experts.py."""

import json
import sys

import pytest

from jaxpatch import cli, expert_runs, run


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Runs the command line here; gives the exit status."""
    monkeypatch.setattr(run, "run", lambda *_, **__: pytest.fail("work was done"))

    def experts(*more) -> int:
        words = ["jaxpatch", "experts", "--base", "owner/base", "--out", str(tmp_path / "results"), *map(str, more)]
        monkeypatch.setattr(sys, "argv", words)
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    return experts


GOOD = ("--experts", "a=owner/a:title", "b=owner/b@main:no_comma")


def test_all_faults_are_named_at_once_and_common_ones_once(call, capsys):
    wrong = ("--experts", "a=owner/a:title", "a=owner/b:no_coma", "b", "../c=owner/c:title", "d=no/such/model:title")
    assert call(*wrong, "--count", "0", "--method", "exacct", "--distributed") == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in (
        "--experts b: wanted NAME=SPECIAL:TASK",
        "--experts ../c=owner/c:title: wanted NAME=SPECIAL:TASK",
        "--experts a: named 2 times",
        "--count 0: wanted at least 1",
        "--distributed: not for several experts",
        "a: --task 'no_coma'",
        "d: --special no/such/model: no such directory",
    ):
        assert words in said
    assert said.count("did you mean 'exact'") == 1, "of all alike"


def test_one_is_a_run(call, capsys):
    assert call("--experts", "a=owner/a:title") == 1
    assert "wanted at least two" in " ".join(capsys.readouterr().err.split())


def test_a_recipe_gives_the_options_of_all_and_the_model_of_none(call, tmp_path, capsys):
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"special": "owner/a", "task": "title", "method": "exacct"}))
    assert call(*GOOD, "--options", file) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--special owner/a: each of --experts names its own" in said and "--task title: each of" in said
    assert "--method 'exacct'" in said
    assert call(*GOOD, "--special", "owner/a") == 2, "no option here"


def test_nobody_elses_folder_is_written_into(call, tmp_path, capsys):
    out = tmp_path / "results"
    for name in ("thesis", "a.unfinished", ".a.partial-3"):
        (out / name).mkdir(parents=True)
    assert call(*GOOD) == 1
    assert "it holds other things than experts (thesis); name another" in " ".join(capsys.readouterr().err.split())
    (out / "thesis").rmdir()
    (out / "a").mkdir()
    (out / "a" / "manifest.json").write_text("{}")
    assert call(*GOOD) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "other things" not in said and f"a: --out {out / 'a'}: it exists and is not overwritten" in said


def test_results_of_the_same_options_are_done(tmp_path):
    options = expert_runs.Experts(base="owner/base", out=tmp_path, experts=GOOD[1:])
    own = expert_runs._runs(options)["b"]
    assert (own.special, own.task, own.out) == ("owner/b@main", "no_comma", tmp_path / "b")
    own.out.mkdir()

    def left(forced=(), **changed) -> None:
        said = expert_runs.manifest.plain(run.asked(own)) | {"out": "elsewhere"} | changed
        (own.out / "manifest.json").write_text(json.dumps({"options": said, "forced": list(forced)}))

    left()
    assert not expert_runs._is_done(own), "the rest is missing"
    for name in ("scores.safetensors", "anchor.safetensors", "report.html"):
        (own.out / name).write_text("")
    assert expert_runs._is_done(own)
    left(force=True)
    assert expert_runs._is_done(own), "nothing had to be forced"
    left(force=True, forced=("too short",))
    assert not expert_runs._is_done(own)
    left(top=5)
    assert not expert_runs._is_done(own)
    (own.out / "manifest.json").write_text("[]")
    assert not expert_runs._is_done(own)


def test_interrupted(call, tmp_path, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "run", stop)
    assert call(*GOOD) == 130
    assert "what was scored is kept; the same command goes on" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "results").exists()
