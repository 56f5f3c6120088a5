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
import urllib.parse
from pathlib import Path

import gguf_cases
import hf
import pytest

from jaxpatch.models import hub as hub_ids

TOKEN = "hf_thisIsNobodysToken"
COMMITS = {"main": "a" * 40, "v1": "b" * 40}
"""Revision -> commit. Each has a model of its own."""
QUANTISED = {"quantised": "c" * 40}
"""The same for the GGUF files of a model, and nothing else but how it reads text."""
REVISIONS = COMMITS | QUANTISED


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository, owner/name, its files by commit under `root`."""

    root: Path
    asked: list[str]

    def do_GET(self):
        self.asked.append(self.path)
        parts = urllib.parse.unquote(self.path.split("?")[0]).strip("/").split("/")
        if parts[:3] == ["api", "models", "owner"] and parts[3] == "name":
            commit = REVISIONS.get(parts[5] if len(parts) > 5 else "main", parts[-1])
            folder = self.root / commit
            found = sorted(file for file in folder.rglob("*") if file.is_file())
            files = {str(file.relative_to(folder)): file.read_bytes() for file in found}
            if files and "tree" in parts:
                tree = [dict(type="file", path=n, size=len(text), oid=_etag(text)) for n, text in files.items()]
                return self._send(json.dumps(tree).encode(), commit)
            if files:
                names = [{"rfilename": name} for name in files]
                return self._send(json.dumps({"id": "owner/name", "sha": commit, "siblings": names}).encode(), commit)
        if parts[:3] == ["owner", "name", "resolve"] and (file := self.root.joinpath(*parts[3:])).exists():
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
    whole = hf.save_tokenizer(hf.save(root / "whole", vocab_size=len(gguf_cases.VOCAB)))
    folder = root / QUANTISED["quantised"]
    (folder / "more").mkdir(parents=True)
    for name in ("[b].gguf", "more/a.gguf"):
        gguf_cases.write(folder / name, whole)
    shutil.copy(whole / "tokenizer.json", folder)
    handler = type("Handler", (Hub,), dict(root=root, asked=[]))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", root, handler.asked
    server.shutdown()
    thread.join()
    server.server_close()


LOAD = (
    "import sys; from jaxpatch.models import checkpoints\n"
    "for name in sys.argv[1:]:\n"
    "    path = checkpoints.local(name)\n"
    "    print(path, *sorted(file.name for file in (path if path.is_dir() else path.parent).iterdir()))\n"
    "    print(checkpoints.load(path, 'float32').config.vocab)\n"
)
OUTLINE = (
    "import sys; from jaxpatch.models import checkpoints, outlines\n"
    "for name in sys.argv[1:]:\n"
    "    print(outlines._model(checkpoints.local(name, weights=False)).config.vocab)\n"
)
REFUSED = (
    "import sys; from jaxpatch.models import checkpoints\n"
    "for name in sys.argv[1:]:\n"
    "    for weights in (True, False):\n"
    "        try:\n"
    "            checkpoints.local(name, weights=weights)\n"
    "        except FileNotFoundError as error:\n"
    "            print(str(error).splitlines()[0])\n"
)


def load(hub, cache, *names, code=LOAD, **changes):
    """What a process of its own says: huggingface_hub reads the environment as it is imported."""
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


@pytest.fixture(scope="module")
def quantised(hub, tmp_path_factory):
    """A cache into which one GGUF file was fetched, and what the process that read it said."""
    cache, number = tmp_path_factory.mktemp("cache"), len(hub[2])
    return cache, load(hub, cache, "owner/name@quantised/[b].gguf"), hub[2][number:]


def test_a_gguf_file_is_fetched_alone_with_the_tokenizer_beside_it(hub, quantised):
    _, said, asked = quantised
    assert said.returncode == 0, said.stderr
    (path, *beside), [rows] = map(str.split, said.stdout.splitlines())
    assert beside == ["[b].gguf", "tokenizer.json"] and rows == str(len(gguf_cases.VOCAB))
    assert Path(path).read_bytes() == (hub[1] / QUANTISED["quantised"] / "[b].gguf").read_bytes()
    assert not any("more/a" in path for path in asked)
    assert TOKEN not in said.stdout + said.stderr


def test_offline_a_gguf_file_that_is_there_serves_and_no_other_does(hub, quantised):
    number = len(hub[2])
    assert load(hub, quantised[0], "owner/name@quantised/[b].gguf", HF_HUB_OFFLINE="1").returncode == 0
    said = load(hub, quantised[0], "owner/name@quantised/more/a.gguf", HF_HUB_OFFLINE="1")
    assert said.returncode and "FileNotFoundError: owner/name@quantised/more/a.gguf: " in said.stderr
    assert len(hub[2]) == number, "offline, and the hub was asked"


def test_gguf_files_that_are_there_are_named_where_none_is_or_one_that_is_not(hub, tmp_path):
    named = "owner/name@quantised", "owner/name@quantised/c.gguf", "owner/name/c.gguf"
    said = load(hub, tmp_path, *named, code=REFUSED)
    files = "owner/name@quantised/[b].gguf, owner/name@quantised/more/a.gguf"
    lacking = f"owner/name@quantised/c.gguf: owner/name@quantised has no such file; it has {files}"
    assert said.stdout.splitlines() == [
        f"owner/name@quantised: it has no safetensors; name one of its GGUF files: {files}",
        f"owner/name@quantised: it has no config.json; name one of its GGUF files: {files}",
        *[lacking] * 2,
        *["owner/name/c.gguf: owner/name has no such file"] * 2,
    ], said.stderr
    assert TOKEN not in said.stdout + said.stderr


def test_what_is_known_before_weights_comes_without_them_but_for_a_gguf_file(hub, tmp_path):
    number = len(hub[2])
    said = load(hub, tmp_path, "owner/name", "owner/name@quantised/more/a.gguf", code=OUTLINE)
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == ["43", str(len(gguf_cases.VOCAB))]
    assert not any("safetensors" in path for path in hub[2][number:])


def test_a_name_is_a_path_where_there_is_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "models/owls/more/owl.gguf"
    assert hub_ids.id_of(name) == ("models/owls", None, "more/owl.gguf")
    (tmp_path / "models" / "owls").mkdir(parents=True)
    assert hub_ids.id_of(name) is None and hub_ids.id_of("models/owls@v1/owl.gguf") is not None


NO_IDS = """owner owner/name@ owner/name@v1/ owner/name/ a/b/c owner/name/../x.gguf /a/b/c.gguf ~/a/b.gguf ./a/b/c.gguf a/b.gguf
a.gguf @v1/b/c.gguf owner/name@v1/config.json"""


@pytest.mark.parametrize("name", NO_IDS.split())
def test_what_is_no_hub_id(name):
    assert hub_ids.id_of(name) is None


def test_a_repository_of_many_gguf_files_names_some(monkeypatch):
    class Api:
        def list_repo_files(self, repo, revision):
            return [f"{number:02}.gguf" for number in range(hub_ids.SHOWN + 3)]

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    assert hub_ids._listed(hub_ids.Id("a/b"), ": ").endswith("a/b/19.gguf, and 3 more")
