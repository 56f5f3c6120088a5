"""`jaxpatch validate`: an earlier run's ranking on other prompts, and every way in which there is nothing to validate."""

import dataclasses
import json
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxpatch as jp
from jaxpatch import cli, results, run, testing, validation
from jaxpatch.measuring import prompt_sets
from jaxpatch.scoring import archive

WORDS = "oak fig yew elm ash bay may box gum fir".split()


def command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jaxpatch", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def earlier(checkpoints_folder, tmp_path_factory):
    """A short run on a file with more prompts than it uses."""
    folder = tmp_path_factory.mktemp("validate")
    base, special = (shutil.copytree(checkpoints_folder / name, folder / name) for name in ("base", "special"))
    splits = ["anchor"] * 4 + [
        "layer",
        "scoring",
        "scoring",
        "scoring",
        "scoring",
        "behaviour",
        "behaviour",
        "behaviour",
    ]
    lines = [
        {"with": f"Describe {word} {n}. Answer in capitals.", "without": f"Describe {word} {n}.", "split": split}
        for n, (word, split) in enumerate(zip(WORDS + WORDS[:2], splits, strict=True))
    ]
    (folder / "task.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    asked = ["run", "--base", str(base), "--special", str(special), "--task", str(folder / "task.jsonl")]
    asked += ["--out", str(folder / "results"), "--num-scoring", "2", "--num-behaviour", "1", "--max-new", "2"]
    asked += ["--method", "local_linear", "--no-validation", "--no-parity", "--force"]
    with pytest.MonkeyPatch.context() as patch:
        assert command(patch, *asked) == 0
    return folder


SHORT = ("--num-scoring", "2", "--num-behaviour", "2", "--num-random", "1", "--max-new", "2")


def test_the_earlier_ranking_is_judged_on_prompts_that_were_not_scored(earlier, tmp_path, monkeypatch, capsys):
    out = tmp_path / "validated"
    assert command(monkeypatch, "validate", str(earlier / "results"), "--out", str(out), *SHORT) == 0
    assert "report:" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} <= results.RESULTS
    before, after = (archive.load_scores(folder / "scores.safetensors") for folder in (earlier / "results", out))
    assert (before.values["head"] == after.values["head"]).all() and before.method == "local_linear"
    curves = pd.read_csv(out / "curves.csv")
    assert {"top", "first order", "largest E_a"} <= set(curves["order"])
    answers = pd.read_csv(out / "answers.csv")
    assert set(answers["prompt"]) == {f"Describe {w} {n}. Answer in capitals." for w, n in (("oak", 10), ("fig", 11))}
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["validates"].startswith("jaxpatch run") and manifest["command"].startswith("jaxpatch validate")
    assert manifest["options"]["task"].endswith("task.jsonl") and manifest["options"]["num_random"] == 1
    was = json.loads((earlier / "results" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["anchor"] == was["anchor"] and manifest["forced"] == was["forced"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Drawn on 2 prompts that were not scored." in page
    capsys.readouterr()
    assert command(monkeypatch, "validate", str(out), "--out", str(tmp_path / "again"), *SHORT) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "is of jaxpatch validate; name the folder of the run itself: jaxpatch run" in said


def test_the_earlier_prompts_are_taken_where_asked(earlier, tmp_path, monkeypatch):
    out = tmp_path / "validated"
    assert command(monkeypatch, "validate", str(earlier / "results"), "--out", str(out), "--no-fresh", *SHORT) == 0
    assert "Drawn on 2 of the scored prompts." in (out / "report.html").read_text(encoding="utf-8")
    assert set(pd.read_csv(out / "answers.csv")["prompt"]) == {
        f"Describe {w} {n}. Answer in capitals." for w, n in (("fir", 9), ("oak", 10))
    }


def test_everything_wrong_with_the_options_is_said_at_once(earlier, tmp_path, monkeypatch, capsys):
    wrong = ("--num-scoring", "1", "--num-behaviour", "0", "--seed", "-1", "--out", str(earlier))
    assert command(monkeypatch, "validate", str(tmp_path), *wrong) == 1
    said = " ".join(capsys.readouterr().err.split())
    for fault in (
        "--num-scoring 1: wanted at least 2",
        "--num-behaviour 0: wanted at least 1",
        "--seed -1: wanted at least 0",
        "has no manifest.json, scores.safetensors, anchor.safetensors; wanted what jaxpatch run",
        "it exists and is not overwritten",
    ):
        assert fault in said
    assert command(monkeypatch, "validate", str(tmp_path / "none"), "--out", str(tmp_path / "out")) == 1
    assert "no such folder; wanted what jaxpatch run" in " ".join(capsys.readouterr().err.split())


def test_too_few_prompts_left_are_refused(earlier, tmp_path, monkeypatch, capsys):
    many = shutil.copytree(earlier / "results", tmp_path / "results")
    said = json.loads((many / "manifest.json").read_text(encoding="utf-8"))
    sets = prompt_sets.of_file(earlier / "task.jsonl")
    said["prompts"] = sets.hashes({"scoring": 3, "behaviour": 3})
    (many / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    assert command(monkeypatch, "validate", str(many), "--out", str(tmp_path / "out")) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "scoring: 1 of 4 left, wanted at least 2; behaviour: 0 of 3 left, wanted at least 1" in told
    assert "--no-fresh" in told and not (tmp_path / "out").exists()


def test_other_models_than_those_that_were_scored_are_refused(earlier, tmp_path, monkeypatch, capsys):
    weights = earlier / "special" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + bytes([kept[-4] ^ 1]) + kept[-3:])
    try:
        assert command(monkeypatch, "validate", str(earlier / "results"), "--out", str(tmp_path / "out"), *SHORT) == 1
    finally:
        weights.write_bytes(kept)
    told = " ".join(capsys.readouterr().err.split())
    assert "these are not the models that were scored: - special: model.safetensors is not the same any more" in told
    assert "jaxpatch run" in told and not (tmp_path / "out").exists()


def test_a_task_file_that_was_shuffled_is_refused_and_one_that_has_grown_is_not(earlier, tmp_path, monkeypatch, capsys):
    task = earlier / "task.jsonl"
    kept = task.read_text(encoding="utf-8")
    lines = kept.splitlines()
    asked = ["validate", str(earlier / "results"), "--out", str(tmp_path / "out"), *SHORT]
    try:
        task.write_text("\n".join(lines[::-1]), encoding="utf-8")
        assert command(monkeypatch, *asked) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "not the prompts of the earlier run any more (asked, plain, scoring, behaviour)" in told
        assert "score again: jaxpatch run" in told and not (tmp_path / "out").exists()
        task.unlink()
        assert command(monkeypatch, *asked) == 1
        assert "Paths are as the earlier run was given them" in " ".join(capsys.readouterr().err.split())
        more = [{"with": f"Say {n} in capitals.", "without": f"Say {n}.", "split": "scoring"} for n in range(3)]
        task.write_text("\n".join([*lines, *map(json.dumps, more)]), encoding="utf-8")
        options = validation.Validate(results=earlier / "results", out=tmp_path, num_scoring=5)
        said = validation.read(earlier / "results").manifest
        fresh = validation._prompt_sets(options, said)
        assert fresh.scoring[-3:] == tuple(each["with"] for each in more) and len(fresh.scoring) == 5
    finally:
        task.write_text(kept, encoding="utf-8")


def test_scores_of_another_run_are_refused(earlier, tmp_path, monkeypatch, capsys):
    mixed = shutil.copytree(earlier / "results", tmp_path / "results")
    found = archive.load_scores(mixed / "scores.safetensors")
    (mixed / "scores.safetensors").unlink()
    turned = {kind: -effects for kind, effects in found.effects.items()}
    archive.save_scores(dataclasses.replace(found, effects=turned), mixed / "scores.safetensors")
    assert command(monkeypatch, "validate", str(mixed), "--out", str(tmp_path / "out"), *SHORT) == 1
    assert "these are not the scores that this run left" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_manifests_of_other_versions_are_refused(earlier, tmp_path, monkeypatch, capsys):
    old = shutil.copytree(earlier / "results", tmp_path / "results")
    said = json.loads((old / "manifest.json").read_text(encoding="utf-8"))
    del said["anchor"]
    (old / "manifest.json").write_text(json.dumps(said), encoding="utf-8")
    assert command(monkeypatch, "validate", str(old), "--out", str(tmp_path / "out")) == 1
    assert "lacks anchor: it is of another version; run again" in " ".join(capsys.readouterr().err.split())
    (old / "manifest.json").write_text("not json", encoding="utf-8")
    assert command(monkeypatch, "validate", str(old), "--out", str(tmp_path / "out")) == 1
    assert "is no manifest of a run" in " ".join(capsys.readouterr().err.split())


def test_prompts_of_a_task_are_the_earlier_runs_own_or_come_after_them(tmp_path):
    asked = {"task": "no_comma", "num_anchor": 6, "num_scoring": 4, "num_behaviour": 2, "seed": 3}
    own = run._prompt_sets(run.Run(base="b", special="s", out=tmp_path, **asked))
    options = validation.Validate(results=tmp_path, out=tmp_path, num_scoring=3, num_behaviour=2, fresh=False)
    said = {"options": asked, "prompts": own.hashes(), "command": "jaxpatch run"}
    again = validation._prompt_sets(options, said)
    assert again.scoring == own.scoring[:3] and again.behaviour == own.behaviour[:2]
    fresh = validation._prompt_sets(dataclasses.replace(options, fresh=True), said)
    assert len(fresh.scoring) == 3 and len(fresh.behaviour) == len(fresh.verdicts) == len(fresh.loosely) == 2
    assert not set(fresh.scoring) & set(own.scoring) and not set(fresh.behaviour) & set(own.behaviour)


def test_first_order_ranks_by_the_aggregate_of_the_scores_it_is_a_control_of():
    pair, prompts, anchor = testing.tiny_pair(), testing.tiny_inputs(), jp.Anchor(layer=1, direction=jnp.eye(16)[0])
    found = jp.score(pair, prompts, anchor, kinds=("head",), aggregate="ratio_of_means")
    made = validation._other_orders(pair, prompts, anchor, found, None, None)
    wanted = jp.score(pair, prompts, anchor, kinds=("head",), method="first_order", aggregate="ratio_of_means")
    assert list(made) == ["first order"]
    np.testing.assert_array_equal(made["first order"].values["head"], wanted.values["head"])
