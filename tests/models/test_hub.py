"""Hub ids, against a stand-in for the hub on this machine's own loopback: revisions, offline mode, and what is never printed."""

import contextlib
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import hf
import pytest

TOKEN = "hf_thisIsNobodysToken"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
"""Revision -> commit. Each has a model of its own."""


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, owner/name, its files by commit under `root`."""

    root: Path
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:3] == ["api", "models", "owner"] and parts[3] == "name":
            commit = COMMITS.get(parts[5] if len(parts) > 5 else "main", parts[-1])
            folder = self.root / commit
            files = sorted(folder.iterdir()) if folder.exists() else []
            if files and "tree" in parts:
                tree = [dict(type="file", path=f.name, size=f.stat().st_size, oid=_etag(f.read_bytes())) for f in files]
                return self._send(json.dumps(tree).encode(), commit)
            if files:
                names = [{"rfilename": file.name} for file in files]
                return self._send(json.dumps({"id": "owner/name", "sha": commit, "siblings": names}).encode(), commit)
        if parts[:3] == ["owner", "name", "resolve"] and (file := self.root / parts[3] / parts[4]).exists():
            return self._send(file.read_bytes(), parts[3])
        self.send_response(401)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def _send(self, content: bytes, commit: str):
        self.send_response(200)
        for name, value in {
            "ETag": f'"{hash(content)}"',
            "X-Repo-Commit": commit,
            "Content-Length": len(content),
        }.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Its address, and the two models."""
    root = tmp_path_factory.mktemp("hub")
    for seed, commit in enumerate(COMMITS.values()):
        folder = hf.save_tokenizer(hf.save(root / commit, seed=seed))
        (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    handler = type("Handler", (Hub,), dict(root=root, asked=[]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


def load(hub, cache, *names, **changes):
    """What a process of its own says: huggingface_hub reads the environment as it is imported."""
    code = (
        "import sys; from jaxpatch.models import checkpoints, outlines\n"
        "for name in sys.argv[1:]:\n"
        "    path = checkpoints.local(name)\n"
        "    print(path, *sorted(file.name for file in path.iterdir()))\n"
        "    print(checkpoints.load(path, 'float32').config.vocab)\n"
    )
    settings = {"HF_ENDPOINT": hub[0], "HF_HOME": str(cache), "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0"} | changes
    environment = os.environ | settings | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True)


def test_ids_are_fetched_at_their_revisions_and_never_a_pickle(hub, tmp_path):
    _, root, asked = hub
    said = load(hub, tmp_path, "owner/name", "owner/name@v1")
    assert said.returncode == 0, said.stderr
    main, _, v1, _ = said.stdout.splitlines()
    for line, commit in ((main, COMMITS["main"]), (v1, COMMITS["v1"])):
        path, *names = line.split()
        assert names == [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
        assert (Path(path) / "model.safetensors").read_bytes() == (root / commit / "model.safetensors").read_bytes()
    assert not any("pytorch_model" in path for path in asked)
    assert TOKEN not in said.stdout + said.stderr


def test_offline_what_is_there_serves_and_nothing_else_does(hub, tmp_path):
    assert load(hub, tmp_path, "owner/name").returncode == 0
    number = len(hub[2])
    assert load(hub, tmp_path, "owner/name", HF_HUB_OFFLINE="1").returncode == 0
    said = load(hub, tmp_path, "owner/name@v1", HF_HUB_OFFLINE="1")
    assert said.returncode and "owner/name@v1: no such directory here, and the hub did not give it" in said.stderr
    assert len(hub[2]) == number, "offline, and the hub was asked"


@pytest.mark.parametrize("name", ["owner/other", "owner/name@v7"])
def test_what_the_hub_has_not_is_refused_without_the_token(hub, tmp_path, name):
    said = load(hub, tmp_path, name)
    assert said.returncode and f"FileNotFoundError: {name}: no such directory here, and the hub did not" in said.stderr
    assert "Check the spelling" in said.stderr
    assert TOKEN not in said.stdout + said.stderr


def test_nothing_but_weights_in_safetensors_can_come(hub, tmp_path):
    """A repository with a pickle alone."""
    _, root, _ = hub
    for folder in (root / commit for commit in COMMITS.values()):
        shutil.move(folder / "model.safetensors", folder / "aside")
    with contextlib.ExitStack() as stack:
        for folder in (root / commit for commit in COMMITS.values()):
            stack.callback(shutil.move, folder / "aside", folder / "model.safetensors")
        said = load(hub, tmp_path, "owner/name")
    assert said.returncode and "no weights; wanted model.safetensors" in said.stderr
