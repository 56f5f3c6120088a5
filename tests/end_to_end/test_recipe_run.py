"""A run done again from its own manifest."""

import json
import sys

from jaxpatch import cli


def test_a_manifest_as_options_gives_the_same_scores(arguments, tmp_path, monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["jaxpatch", *map(str, words)])
        cli.main()

    short = ("--kinds", "head", "--method", "local_linear", "--no-validation", "--no-parity", "--seed", "3")
    call(*arguments, *short)
    first, again = tmp_path / "results", tmp_path / "again"
    call("run", "--options", first / "manifest.json", "--out", again)
    for name in ("scores.csv", "roles.csv", "answers.csv"):
        assert (again / name).read_bytes() == (first / name).read_bytes()
    told = [json.loads((folder / "manifest.json").read_text(encoding="utf-8")) for folder in (first, again)]
    assert told[0]["options"] | {"out": str(again)} == told[1]["options"]
    assert "--options" in told[1]["command"]
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["jaxpatch", "run", "--options", str(first / "manifest.json")])
    try:
        cli.main()
    except SystemExit as end:
        assert end.code == 1
    assert "it exists and is not overwritten" in " ".join(capsys.readouterr().err.split())
