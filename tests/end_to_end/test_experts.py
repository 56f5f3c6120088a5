"""Several experts, as their user meets them: runs, what they share, one that is refused, and the same command again."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from jaxpatch import cli, run


def test_experts_are_scored_compared_kept_and_refused(checkpoints_folder, task_file, tmp_path, monkeypatch, capsys):
    further = tmp_path / "further"
    shutil.copytree(checkpoints_folder / "special", further)
    base, special = (load_file(checkpoints_folder / name / "model.safetensors") for name in ("base", "special"))
    longer = {name: base[name] + np.float32(1.5) * (special[name] - base[name]) for name in base}
    save_file(longer, further / "model.safetensors", metadata={"format": "pt"})
    lines = [json.loads(line) for line in task_file.read_text().splitlines()]
    mixed = tmp_path / "mixed.jsonl"
    swapped = [
        {"with": a["with"], "without": b["with"] + " "} for a, b in zip(lines, lines[1:] + lines[:1], strict=True)
    ]
    mixed.write_text("".join(json.dumps(line) + "\n" for line in swapped))
    out = tmp_path / "results"
    asked = [
        *("--base", str(checkpoints_folder / "base"), "--out", str(out)),
        *("--experts", f"near={checkpoints_folder / 'special'}:{task_file}", f"far={further}:{task_file}"),
        f"odd={checkpoints_folder / 'special'}:{mixed}",
        *("--method", "local_linear", "--no-validation", "--no-relays", "--no-parity", "--max-new", "2"),
        *("--count", "5"),
    ]

    def call(*more):
        monkeypatch.setattr(sys, "argv", ["jaxpatch", "experts", *asked, *more])
        cli.main()
        return " ".join(capsys.readouterr().out.split())

    printed = call()
    assert "odd is left out: the anchor fails its checks" in printed
    assert sorted(path.name for path in out.iterdir()) == ["experts.csv", "far", "index.html", "near", "shared.csv"]
    frame = pd.read_csv(out / "experts.csv")
    assert frame["kind"].tolist() == ["head", "neuron"] and (frame["size"] == 5).all()
    assert frame[["one", "other"]].values.tolist() == [["near", "far"]] * 2
    assert (frame["shared"] >= 1).all() and np.allclose(frame["cosine"], 1, atol=1e-4)
    assert (frame["pulled_apart"] == 0).all() and (frame["signs_opposed"] == 0).all()
    shared = pd.read_csv(out / "shared.csv")
    assert shared.groupby("kind").size().to_dict() == dict(zip(frame["kind"], frame["shared"], strict=True))
    tops = [
        pd.read_csv(out / name / "scores.csv").query("kind == 'head' and effect != 0").nlargest(5, "score")
        for name in ("near", "far")
    ]
    assert set(tops[0]["name"]) & set(tops[1]["name"]) == set(shared.query("kind == 'head'")["name"])
    page = (out / "index.html").read_text(encoding="utf-8")
    assert 'href="near/report.html"' in page and "checks: odd" in page and 'href="odd/' not in page

    scored = []
    true_run = run.run
    monkeypatch.setattr(run, "run", lambda own, **more: scored.append(own.out.name) or true_run(own, **more))
    before = (out / "experts.csv").read_bytes()
    printed = call()
    assert scored == ["odd"] and "near was scored before with these options" in printed
    assert (out / "experts.csv").read_bytes() == before
    call("--force")
    assert scored == ["odd", "odd"]
    forced = pd.read_csv(out / "experts.csv")
    assert (
        len(forced) == 6 and forced["forced"].notna().sum() == 4 and forced["forced"].str.startswith("odd: ").sum() == 4
    )
    assert "odd was forced" in (out / "index.html").read_text(encoding="utf-8")
