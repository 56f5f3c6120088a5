"""Options from a file: what it may hold, what wins over it, and what is refused. Runs are in end_to_end/test_recipe_run.py."""

import json
import sys
from pathlib import Path

import pytest
import tyro

from jaxpatch import cli, plan, recipe, run


@pytest.fixture
def written(tmp_path):
    """Writes a recipe; gives its path."""

    def write(said) -> Path:
        file = tmp_path / "recipe.json"
        file.write_text(said if isinstance(said, str) else json.dumps(said), encoding="utf-8")
        return file

    return write


@pytest.fixture
def asked(monkeypatch):
    """What the command line would do: the options of a run, a trace or a plan, which is not done; or the exit status."""

    def call(*arguments):
        seen = []
        monkeypatch.setattr(run, "run", lambda options, **_: seen.append(options) or Path("report.html"))
        monkeypatch.setattr(plan, "plan", seen.append)
        monkeypatch.setattr(sys, "argv", ["jaxpatch", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return seen[0]

    return call


SHORT = {"base": "owner/one", "special": "owner/two", "task": "no_comma"}
ALL = SHORT | {
    "kinds": ["head", "kv"],
    "layer": 3,
    "memory": 8,
    "mesh": [4, 2],
    "alpha": 0.1,
    "relays": False,
    "template": "special",
    "ending": None,
    "force": True,
}


def test_every_sort_of_option_comes_from_a_file(asked, written, tmp_path):
    made = asked("run", "--options", written(ALL), "--out", tmp_path / "results")
    assert type(made) is run.Run and made.base == "owner/one" and made.kinds == ("head", "kv") and made.mesh == (4, 2)
    assert (made.layer, made.memory, made.alpha, made.relays, made.force) == (3, 8.0, 0.1, False, True)
    assert isinstance(made.memory, float) and made.out == tmp_path / "results"
    assert (made.choices.template, made.choices.ending, made.choices.settings) == ("special", None, None)
    assert made.num_scoring == run.Run(**SHORT, out=tmp_path).num_scoring, "what is left out has its default"


def test_the_command_line_wins_wherever_the_file_stands(asked, written):
    more = ("--kinds", "neuron", "--no-force", "--relays", "--template", "base", "--out", "results", "--layer", "None")
    for arguments in (("--options", written(ALL), *more), (*more, f"--options={written(ALL)}")):
        made = asked("run", *arguments)
        assert made.kinds == ("neuron",) and not made.force and made.relays and made.layer is None
        assert made.choices.template == "base" and made.alpha == 0.1


def test_a_trace_takes_what_is_its_own(asked, written):
    made = asked("trace", "--options", written(SHORT | {"levels": 1, "through": ["mlp"], "out": "results"}))
    assert type(made) is run.Trace and made.levels == 1 and made.through == ("mlp",) and made.out == Path("results")


def test_what_is_required_is_still_required(asked, written, capsys):
    assert asked("run", "--options", written({"base": "owner/one"}), "--task", "title", "--out", "results") == 2
    said = capsys.readouterr().err
    assert "--special" in said and "--base" not in said
    assert recipe.read(written({}), "run").task is tyro.MISSING


def test_a_plan_takes_a_runs_recipe_and_its_own(asked, written):
    made = asked("plan", "--options", written(ALL | {"num_scoring": 16, "out": "results"}), "--device", "h100")
    assert type(made) is plan.Plan and made.num_prompts == 16 and made.device == "h100" and made.memory == 8.0
    assert made.choices.template == "special" and made.kinds == ("head", "kv")
    made = asked("plan", "--options", written(ALL | {"num_scoring": 16, "num_prompts": 4, "device": "a100"}))
    assert made.num_prompts == 4 and made.device == "a100"


def test_a_manifest_hands_on_its_options_but_no_leave_to_overwrite(written):
    file = written({"options": ALL | {"out": "results", "overwrite": True}, "seed": 7, "files": {}})
    made = recipe.read(file, "run")
    assert made.out == Path("results") and not made.overwrite and made.seed == 0 and made.alpha == 0.1


def test_all_that_is_wrong_with_a_file_is_named_at_once(asked, written, capsys):
    wrong = {"num_scorin": 4, "kinds": "head", "mesh": [1], "alpha": "high", "top": 2.5, "force": 1, "base": None}
    wrong |= {"seed": True, "device": "h100", "levels": 1, "template": 3, "memory": [1], "options": "other.json"}
    assert asked("run", "--options", written(wrong), "--out", "results") == 1
    said = " ".join(capsys.readouterr().err.split())
    for fault in (
        "num_scorin: no option of jaxpatch run; did you mean 'num_scoring'?",
        'kinds: wanted a list of texts; got "head"',
        "mesh: wanted a list of 2 whole numbers, or null; got [1]",
        'alpha: wanted a number; got "high"',
        "top: wanted a whole number; got 2.5",
        "force: wanted true or false; got 1",
        "base: wanted a text; got null",
        "seed: wanted a whole number; got true",
        "device: an option of jaxpatch plan, and not of jaxpatch run",
        "levels: an option of jaxpatch trace, and not of jaxpatch run",
        "template: wanted a text, or null; got 3",
        "memory: wanted a number, or null; got [1]",
        "options: no option of jaxpatch run",
    ):
        assert fault in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "it is no JSON"),
        ("[1]", "wanted an object of options"),
        ('{"top": 1, "seed": 1, "top": 2}', "top: said more than once"),
        (b"\xff\xfe", "it is no JSON"),
    ],
)
def test_files_that_are_no_recipes(asked, tmp_path, capsys, content, words):
    file = tmp_path / "recipe.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert asked("run", "--options", file) == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_files_that_are_not_there(asked, tmp_path, capsys):
    for arguments, words in (
        (("--options", tmp_path / "none.json"), "no such file; wanted a recipe, or the manifest.json of a run"),
        (("--options", tmp_path), "cannot be read"),
        (("--options",), "wanted a file behind it"),
        (("--options", "--out"), "wanted a file behind it"),
        (("--options", "a.json", "--options=b.json"), "wanted one file; got a.json, b.json"),
    ):
        assert asked("run", *arguments) == 1
        assert words in " ".join(capsys.readouterr().err.split())


def test_it_is_told_of_where_it_is_sought(asked, written, capsys):
    for command in recipe.COMMANDS:
        assert asked(command, "--help") == 0
        assert "--options FILE" in capsys.readouterr().out
    assert asked("run", "--options", written(ALL), "--help") == 0
    assert "owner/one" in capsys.readouterr().out, "the file's are the defaults"
    assert asked("check", "--options", written(ALL)) == 2
