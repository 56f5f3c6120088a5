"""The command line, as its user meets it: a full run, and every way in which one goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxpatch import cli, reference, results, resume, run, validation
from jaxpatch.measuring import anchors, memory, sweep
from jaxpatch.scoring import archive

COMMAND = (sys.executable, "-u", "-m", "jaxpatch")
INTERRUPTIBLE = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from jaxpatch import cli; cli.main()"
)
"""The command line where Ctrl-C works even if the tests were started in the background, where it is ignored."""


def jaxpatch(*arguments, shell: str = "") -> subprocess.CompletedProcess:
    command = ["bash", "-c", f'{shell} exec "$@"', "bash", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def left_behind(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def in_process(monkeypatch, arguments):
    """Runs the command line here, without another interpreter; gives the exit status."""

    def call(*more) -> int:
        monkeypatch.setattr(sys, "argv", ["jaxpatch", *arguments, *more])
        try:
            cli.main()
        except SystemExit as end:
            return end.code
        return 0

    return call


def test_a_run_writes_everything_and_prints_the_report(in_process, tmp_path, capsys):
    assert in_process() == 0
    printed = capsys.readouterr().out
    out = tmp_path / "results"
    assert str(out / "report.html") in printed.replace("\n", "")
    assert set(left_behind(out)) == results.RESULTS - {"flow.csv", "flow.json", "flow.graphml"}
    frame = pd.read_csv(out / "scores.csv")
    assert frame.groupby("kind").size().to_dict() == {"head": 12, "neuron": 72}
    placed = pd.read_csv(out / "roles.csv")
    assert placed["name"].tolist() == frame["name"].tolist() and (placed["E_w"] == frame["score"]).all()
    assert set(placed["role"]) <= {"source", "relay", "both", "neither"} and "Sources and relays" in printed
    assert abs((load_file(out / "anchor.safetensors")["direction"] ** 2).sum() - 1) < 1e-5
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["seed"] == 0 and manifest["dtype"] == "float32" and manifest["forced"] == []
    assert manifest["exchanged"]["method"] == "screened_activation" and "score (screened_activation)" in printed
    assert all(manifest["pair"]["parity"][role]["apart"] < 1e-5 for role in ("base", "special"))
    assert "Logits of special: as transformers: at most" in (out / "report.html").read_text()
    assert manifest["anchor"]["checks"][0]["name"] == "split-half cosine" and manifest["anchor"]["candidates"]
    kept = archive.load_scores(out / "scores.safetensors")
    assert kept.to_frame()["score"].to_numpy().tolist() == frame["score"].astype("float32").tolist()
    assert archive.load_scores(out / "activations.safetensors").method == "screened_activation"
    curves = pd.read_csv(out / "curves.csv")
    names = {
        "top",
        "first order",
        "largest E_a",
        "largest change",
        "random",
        "random, same layers",
        "random, same changes",
    }
    assert set(curves["order"]) == names and set(curves["mode"]) == {"restoration", "knockout"}
    whole = curves[curves["k"] == curves["k"].max()].groupby("mode")["recovery"]
    assert (whole.max() - whole.min() < 1e-6).all(), "all of it, in whatever order"
    smallest = pd.read_csv(out / "smallest.csv")
    assert smallest["share"].tolist() == [0.5, 0.8, 0.95] and (smallest["value"].dropna() >= 0.5).all()
    answers, along = pd.read_csv(out / "answers.csv"), pd.read_csv(out / "behaviour.csv").set_index("model")
    assert answers["model"].unique().tolist() == along.index.tolist()
    assert along.loc["special", "to_special"] < 1e-6 < along.loc["base", "to_special"]
    assert along["size"].dropna().tolist() == [84], "of fewer than 100 components all write at once"
    assert left_behind(tmp_path) == ["results"]


def test_ctrl_c_while_scoring_keeps_the_sweep_and_the_same_command_goes_on(in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "FILL_CPU", 100)
    monkeypatch.setattr(sweep, "SPAN", 2)
    assert in_process("--method", "exact", "--out", str(tmp_path / "whole")) == 0
    spans, whole = [], sweep._span

    def interrupted(*arguments):
        spans.append(1)
        if len(spans) == 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(sweep, "_span", interrupted)
    assert in_process("--method", "exact") == 130
    said = " ".join(capsys.readouterr().err.split())
    assert "results.unfinished: the same command goes on" in said
    assert left_behind(tmp_path) == ["results.unfinished", "whole"]
    assert in_process("--method", "exact", "--top", "6") == 1, "another run"
    assert "other top (was 5, is 6)" in " ".join(capsys.readouterr().err.split())
    assert in_process("--method", "exact") == 0
    assert "components were known from an interrupted run" in capsys.readouterr().out
    assert left_behind(tmp_path) == ["results", "whole"]
    assert (tmp_path / "results" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()


def test_a_run_stopped_while_it_exchanges_activations_goes_on_there(in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "FILL_CPU", 100)
    monkeypatch.setattr(sweep, "SPAN", 2)
    short = ("--method", "exact", "--no-validation")
    assert in_process(*short, "--out", str(tmp_path / "whole")) == 0
    spans, whole = [], sweep._span

    def interrupted(config, kind, exchange, *arguments):
        spans.append(exchange)
        if len([each for each in spans if each is not None]) == 2:
            raise KeyboardInterrupt
        return whole(config, kind, exchange, *arguments)

    monkeypatch.setattr(sweep, "_span", interrupted)
    assert in_process(*short) == 130
    assert left_behind(tmp_path) == ["results.unfinished", "whole"]
    first = len([each for each in spans if each is None])
    assert in_process(*short) == 0
    assert len([each for each in spans if each is None]) == first, "weights were only read"
    assert capsys.readouterr().out.count("components were known from an interrupted run") == 2
    assert left_behind(tmp_path) == ["results", "whole"]
    for name in ("scores.csv", "roles.csv"):
        assert (tmp_path / "results" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_anchor_that_fails_its_checks_stops_a_run_and_force_marks_all_of_its_results(
    in_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(anchors, "SMALLEST_COSINE", 1.5)
    assert in_process("--no-validation") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "the anchor fails its checks, so nothing is scored" in said and "wanted at least 1.5" in said
    assert (
        "Blocks tried: 1, 2;" in said
        and "The same command with --force goes on all the same" in said
        and not left_behind(tmp_path)
    )
    assert in_process("--no-validation", "--force") == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "Forced: read nothing into these scores" in printed
    out = tmp_path / "results"
    for name in ("scores.csv", "roles.csv"):
        assert pd.read_csv(out / name)["forced"].str.contains("split-half cosine is").all()
    assert json.loads((out / "manifest.json").read_text(encoding="utf-8"))["forced"][0].startswith(
        "split-half cosine is"
    )
    with safe_open(out / "anchor.safetensors", "numpy") as file:
        assert file.metadata()["forced"].startswith("split-half cosine is")
    figures = list((out / "figures").iterdir())
    assert figures and all(
        "forced: the anchor fails its checks" in each.read_text(encoding="utf-8") for each in figures
    )
    assert "Forced: read nothing into these scores" in (out / "report.html").read_text(encoding="utf-8")


def test_trace_adds_the_graph_to_what_a_run_writes(arguments, tmp_path, monkeypatch, capsys):
    more = ["--no-validation", "--method", "local_linear", "--levels", "1", "--most", "2"]
    monkeypatch.setattr(sys, "argv", ["jaxpatch", "trace", *arguments[1:], *more])
    cli.main()
    out = tmp_path / "results"
    assert set(left_behind(out)) == results.RESULTS - {"curves.csv", "smallest.csv"}
    graph = json.loads((out / "flow.json").read_text(encoding="utf-8"))
    assert graph["rules"]["most"] == 2 and graph["rules"]["levels"] == 1
    edges = pd.read_csv(out / "flow.csv")
    assert {"state"} < set(edges["target"]) and edges["level"].max() == 2
    state = edges[(edges["target"] == "state") & (edges["role"] == "source")].iloc[0]
    scores = pd.read_csv(out / "scores.csv").set_index("name")
    assert state["E_w"] == pytest.approx(scores.loc[state["supplier"], "score"], rel=1e-5)
    assert "Suppliers of each target" in (out / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    wrong = ["--levels", "-1", "--most", "0", "--least", "2", "--path", "long", "--through", "kv", "mlp", "--no-relays"]
    wrong += ["--suppliers", "activation"]
    monkeypatch.setattr(sys, "argv", ["jaxpatch", "trace", *arguments[1:], "--overwrite", *wrong])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    for fault in (
        "--levels: wanted a whole number, at least 0; got -1",
        "--most: wanted a whole number, at least 1; got 0",
        "--least: wanted a share from 0 to 1; got 2.0",
        "--path 'long'; wanted one of total, direct",
        "--through kv:",
        "--through mlp: wanted one of --kinds, head, neuron",
        "--no-relays: there is nothing to trace through",
        "--suppliers 'activation':",
    ):
        assert fault in said


@pytest.mark.parametrize(
    ("more", "method"),
    [
        (("--method", "first_order"), "attribution"),
        (("--no-relays",), None),
        (("--kinds", "norm"), None),
        (("--kinds", "norm", "mlp", "--method", "exact"), "activation"),
    ],
)
def test_activations_are_exchanged_as_carefully_as_weights_where_that_is_asked_and_possible(
    in_process, tmp_path, more, method
):
    assert in_process("--no-validation", *more) == 0
    out = tmp_path / "results"
    exchanged = json.loads((out / "manifest.json").read_text())["exchanged"]
    page = (out / "report.html").read_text()
    if method is None:
        assert exchanged is None and not (out / "roles.csv").exists() and "No activations were exchanged" in page
    else:
        assert exchanged["method"] == method and "No activations were exchanged" not in page
        assert exchanged["kinds"] == sorted(set(pd.read_csv(out / "roles.csv")["kind"]))


def test_a_folder_that_only_looks_like_a_journal_is_refused(in_process, tmp_path, capsys):
    (tmp_path / "results.unfinished" / "thesis").mkdir(parents=True)
    assert in_process("--memory", "inf") == 1
    said = capsys.readouterr().err
    assert "results.unfinished: it holds other things than a journal (thesis)" in said and "--memory inf" in said
    assert left_behind(tmp_path / "results.unfinished") == ["thesis"]


def test_two_runs_into_one_place_do_not_meet(in_process, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run.checkpoints, "load_pair", lambda *args, **kw: pytest.fail("a model was read"))
    with resume.Journal(tmp_path / "results.unfinished"):
        assert in_process() == 1
        said = " ".join(capsys.readouterr().err.split())
        assert "results.unfinished: another run has it open. Wait until that has ended, or name another" in said
        assert left_behind(tmp_path / "results.unfinished") == ["lock"]


def test_the_same_seed_gives_the_same_scores(in_process, tmp_path):
    assert in_process() == 0
    first = (tmp_path / "results" / "scores.csv").read_bytes()
    assert in_process("--overwrite") == 0
    assert (tmp_path / "results" / "scores.csv").read_bytes() == first


def test_an_existing_out_is_refused_before_any_work(in_process, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine.txt").write_text("keep")
    assert in_process() == 1
    assert "--overwrite" in capsys.readouterr().err
    assert left_behind(tmp_path / "results") == ["mine.txt"]


def test_all_bad_options_are_named_at_once(in_process, tmp_path, capsys):
    assert in_process("--method", "exacct", "--kinds", "heads", "neuron", "--top", "0", "--dtype", "float23") == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in ("did you mean 'exact'", "did you mean 'head'", "--top 0", "did you mean 'float32'"):
        assert words in said
    assert left_behind(tmp_path) == []


def test_faults_of_places_are_named_with_those_of_options(in_process, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    wrong = (
        "--base",
        "no/such/base",
        "--special",
        "no/such/special",
        "--seed",
        "-1",
        "--layer",
        "-2",
        "--task",
        "none",
    )
    assert in_process("--method", "exacct", *wrong) == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in ("did you mean 'exact'", "no/such/base", "no/such/special", "--seed -1", "--layer -2", "--overwrite"):
        assert words in said
    assert "--task 'none'" in said


@pytest.mark.parametrize("what", ["base", "folder", "file", "results and more"])
def test_overwrite_replaces_nothing_but_results(in_process, arguments, checkpoints_folder, tmp_path, capsys, what):
    precious = tmp_path / "precious"
    if what == "base":
        shutil.copytree(checkpoints_folder / "base", precious)
        arguments += ["--base", str(precious)]
    elif what == "folder":
        shutil.copytree(checkpoints_folder, precious)
    elif what == "results and more":
        precious.mkdir()
        (precious / "report.html").write_text("old")
        (precious / "thesis.tex").write_text("precious")
    else:
        precious.write_text("precious")
    before = sorted(precious.rglob("*"))
    assert in_process("--out", str(precious), "--overwrite") == 1
    assert "holds other things than results of an earlier run" in " ".join(capsys.readouterr().err.split())
    assert precious.exists() and sorted(precious.rglob("*")) == before


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("file/results", "is a file, so nothing can be written below it"),
        ("file/a/b", "is a file, so nothing can be written below it"),
        ("x" * 250, "choose a shorter one"),
    ],
)
def test_a_place_that_cannot_be_is_refused_before_any_work(in_process, tmp_path, monkeypatch, capsys, out, words):
    monkeypatch.setattr(run.checkpoints, "load_pair", lambda *args, **options: pytest.fail("work was done"))
    (tmp_path / "file").write_text("")
    assert in_process("--out", str(tmp_path / out)) == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert left_behind(tmp_path) == ["file"]


def test_answers_that_do_not_fit_are_refused_before_the_anchor(in_process, monkeypatch, capsys):
    monkeypatch.setattr(run.anchors, "fit_anchor", lambda *args, **options: pytest.fail("work was done"))
    assert in_process("--max-new", "500") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "--max-new 500" in said and "context of 512" in said and "wanted at most" in said


def test_home_is_found(in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert in_process("--out", "~/mine") == 0
    assert left_behind(tmp_path) == ["mine"]


@pytest.mark.slow
def test_all_kinds_together_patch_every_parameter(in_process, tmp_path, monkeypatch):
    """Components above the anchor too: what is called "all" is the whole of special."""
    seen = {}
    monkeypatch.setattr(results.report, "render", lambda made, drawn: seen.setdefault("samples", made.samples) and "")
    assert (
        in_process(
            "--kinds",
            "layer",
            "embed",
            "unembed",
            "final_norm",
            "--layer",
            "1",
            "--contrast",
            "models",
            "--no-validation",
        )
        == 0
    )
    written = {}
    for sample in seen["samples"]:
        written.setdefault(sample.model, []).append(sample.text)
    assert set(written) == {"base", "special", "base + all layer + embed + unembed + final_norm"}
    assert written["special"] == written["base + all layer + embed + unembed + final_norm"] != written["base"]


@pytest.mark.slow
def test_float64_on_the_command_line(arguments, tmp_path):
    done = jaxpatch(*arguments, "--dtype", "float64", "--kinds", "head", "--no-validation")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "results" / "manifest.json").read_text())["dtype"] == "float64"
    assert validation.read(tmp_path / "results").scores.gap.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--base", "nowhere/at/all"), "no such directory"),
        (("--task", "english_capitol"), "did you mean 'english_capital'"),
        (("--layer", "9"), "this model has blocks 0 to 2"),
        (("--kinds", "head_k"), "keys and values belong to a group"),
        (("--kinds", "head", "final_nrom"), "did you mean 'final_norm'"),
    ],
)
def test_bad_input_says_what_to_do(in_process, tmp_path, capsys, change, words):
    assert in_process(*change) == 1
    assert words in " ".join(capsys.readouterr().err.split())
    assert left_behind(tmp_path) == []


def test_all_that_does_not_fit_the_pair_is_named_at_once(in_process, capsys):
    assert in_process("--layer", "9", "--kinds", "head", "head_k", "qkv") == 1
    said = " ".join(capsys.readouterr().err.split())
    for words in ("blocks 0 to 2", "'head_k'", "'qkv'"):
        assert words in said


def test_a_broken_task_file_names_every_line(in_process, tmp_path, capsys):
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"with": "a"}\nnot json\n{"with": "a", "without": "b", "split": "anchr"}\n')
    assert in_process("--task", str(broken)) == 1
    said = capsys.readouterr().err
    assert all(f"line {number}" in said for number in (1, 2, 3))


def test_two_chat_templates_are_refused_until_one_is_chosen_and_that_is_recorded(
    in_process, checkpoints_folder, tmp_path, capsys
):
    special = tmp_path / "own" / "special"
    shutil.copytree(checkpoints_folder / "special", special)
    (special / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    short = ("--special", str(special), "--kinds", "head", "--no-validation")
    assert in_process(*short, "--settings", "none") == 1
    assert "--settings 'none'" in capsys.readouterr().err
    assert in_process(*short) == 1
    assert "Choose: --template base, --template special" in " ".join(capsys.readouterr().err.split())
    assert in_process(*short, "--template", "base") == 0
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert manifest["options"]["template"] == "base" and manifest["pair"]["template"] is None
    [found] = manifest["pair"]["differences"]
    assert (found["name"], found["special"], found["chosen"]) == ("template", "has one of 29 characters", "base")
    assert manifest["pair"]["changes"]["head"]["changed"] == 12
    page = (tmp_path / "results" / "report.html").read_text()
    assert "has one of 29 characters" in page and "whose word counts" in page


def test_identical_models_are_refused(in_process, checkpoints_folder, capsys):
    assert in_process("--special", str(checkpoints_folder / "base")) == 1
    assert "identical" in capsys.readouterr().err


def test_logits_that_are_not_those_of_transformers_are_refused_unless_told_otherwise(
    in_process, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(reference, "TOLERANCE", 0.0)
    assert in_process() == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "logits of base: NOT as transformers" in said and "logits of special: NOT" in said and "--no-parity" in said
    assert left_behind(tmp_path) == []
    assert in_process("--no-parity", "--method", "local_linear", "--no-validation") == 0
    assert json.loads((tmp_path / "results" / "manifest.json").read_text())["pair"]["parity"] == {}


def test_an_anchor_that_fails_is_reported_and_not_scored(in_process, task_file, tmp_path, capsys):
    lines = [json.loads(line) for line in task_file.read_text().splitlines()]
    mixed = tmp_path / "mixed.jsonl"
    swapped = [
        {"with": a["with"], "without": b["with"] + " "} for a, b in zip(lines, lines[1:] + lines[:1], strict=True)
    ]
    mixed.write_text("".join(json.dumps(line) + "\n" for line in swapped))
    assert in_process("--task", str(mixed)) == 1
    assert "anchor fails its checks" in " ".join(capsys.readouterr().err.split())
    assert left_behind(tmp_path) == ["mixed.jsonl"]


def test_help_and_bad_usage():
    told = jaxpatch("run", "--help")
    assert told.returncode == 0 and "--special" in told.stdout and "LoRA" in told.stdout
    assert jaxpatch("run", "--bsae", "x").returncode == 2


def test_a_full_disk_is_refused_early(in_process, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOM_NEEDED", 10**18)
    assert in_process() == 1
    assert "free some space" in " ".join(capsys.readouterr().err.split())
    assert left_behind(tmp_path) == []


def test_a_disk_that_fills_up_leaves_nothing(arguments, tmp_path):
    done = jaxpatch(*arguments, shell="ulimit -f 20;")
    assert done.returncode == 1
    assert "nothing was left there" in " ".join(done.stderr.split()), done.stderr
    assert [name for name in left_behind(tmp_path) if not str(name).endswith(".unfinished")] == [], (
        "what was scored may stay"
    )


def start(arguments) -> subprocess.Popen:
    """A run in another process, stopped once it is at work."""
    command = [sys.executable, "-u", "-c", INTERRUPTIBLE, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "load the pair" in line:
            break
    return process


@pytest.mark.slow
def test_ctrl_c_says_what_to_do(arguments, tmp_path):
    process = start(arguments)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "nothing was written" in said and "starts again" in said
    assert left_behind(tmp_path) == []


@pytest.mark.slow
def test_a_run_killed_before_it_scored_leaves_a_lock_that_locks_nothing(arguments, in_process, tmp_path):
    process = start(arguments)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert left_behind(tmp_path) == ["results.unfinished"]
    assert left_behind(tmp_path / "results.unfinished") == ["lock"]
    assert in_process() == 0
    assert left_behind(tmp_path) == ["results"]
