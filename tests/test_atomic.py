"""Results appear whole or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from jaxpatch import atomic


def write(path, text="new", **options):
    with atomic.directory(path, **options) as folder:
        (folder / "result").write_text(text)


def test_a_folder_appears_when_the_block_ends(tmp_path):
    target = tmp_path / "deep" / "inside"
    with atomic.directory(target) as folder:
        (folder / "result").write_text("new")
        assert not target.exists()
        assert folder.parent == target.parent, "another disk could not be renamed from"
    assert (target / "result").read_text() == "new"
    assert os.listdir(target.parent) == ["inside"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_exists_is_refused_and_untouched(tmp_path, kind):
    target = tmp_path / "taken"
    make(target, kind)
    before = os.listdir(tmp_path)
    with pytest.raises(FileExistsError, match="overwrite"):
        write(target)
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize("kind", ["folder", "file", "link to a folder", "dangling link"])
def test_overwrite_replaces_what_is_there_and_nothing_else(tmp_path, kind):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    target = tmp_path / "taken"
    make(target, kind, elsewhere)
    write(target, overwrite=True)
    assert (target / "result").read_text() == "new" and not target.is_symlink()
    assert sorted(os.listdir(target)) == ["result"]
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "taken"]
    assert (elsewhere / "kept").read_text() == "kept"


def make(target, kind, elsewhere=None):
    if kind == "folder":
        target.mkdir()
        (target / "old").write_text("old")
    elif kind == "file":
        target.write_text("old")
    else:
        target.symlink_to(elsewhere if kind == "link to a folder" else target.parent / "nowhere")


@pytest.mark.parametrize(
    "error", [RuntimeError("oops"), KeyboardInterrupt(), SystemExit(3), OSError(errno.ENOSPC, "full")]
)
def test_nothing_is_left_when_the_block_raises(tmp_path, error):
    with pytest.raises(type(error)), atomic.directory(tmp_path / "result") as folder:
        (folder / "half").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_an_old_result_outlives_a_failed_overwrite(tmp_path):
    write(tmp_path / "result", "old")
    with pytest.raises(KeyboardInterrupt), atomic.directory(tmp_path / "result", overwrite=True) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["result"] and (tmp_path / "result" / "result").read_text() == "old"


def test_an_old_result_comes_back_when_the_new_one_cannot_be_put_in_its_place(tmp_path, monkeypatch):
    write(tmp_path / "result", "old")
    rename, calls = type(tmp_path).rename, []

    def failing(self, target):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(errno.EIO, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", failing)
    with pytest.raises(OSError, match="broken disk"):
        write(tmp_path / "result", overwrite=True)
    assert os.listdir(tmp_path) == ["result"] and (tmp_path / "result" / "result").read_text() == "old"


def test_folders_above_a_text_are_made(tmp_path):
    assert atomic.text(tmp_path / "a" / "b" / "text", "words").read_text() == "words"
    assert os.listdir(tmp_path / "a" / "b") == ["text"]


def test_a_full_disk_says_what_to_do(tmp_path):
    with pytest.raises(OSError) as error, atomic.directory(tmp_path / "result"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.errno == errno.ENOSPC
    message = str(error.value)
    assert str(tmp_path / "result") in message and "No space left" in message and "Free some space" in message


@pytest.mark.parametrize("name", ["result", "partial-result", "with [brackets]"])
def test_leftovers_of_the_dead_are_removed_and_those_of_the_living_stay(tmp_path, name):
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    done.wait()
    dead, namesake, alive = (tmp_path / f".{name}.partial-{pid}" for pid in (done.pid, os.getpid(), os.getppid()))
    other = tmp_path / f".another.partial-{done.pid}"
    for folder in (dead, namesake, alive, other, tmp_path / f".{name}.partial-{done.pid}-old"):
        folder.mkdir()
    write(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == sorted([alive.name, other.name, name])


KILLED = """
import os, signal, sys
from jaxpatch import atomic
with atomic.directory(sys.argv[1]) as folder:
    (folder / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_after_a_kill_the_next_one_cleans_up(tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "result")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert [name for name in os.listdir(tmp_path) if name.startswith(".result.partial-")]
    assert not (tmp_path / "result").exists()
    write(tmp_path / "result")
    assert os.listdir(tmp_path) == ["result"]
