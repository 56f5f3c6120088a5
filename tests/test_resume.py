"""A sweep that is stopped anywhere goes on where it was, and ends with the same bits; what was begun with something else is refused."""

import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxpatch as jp
from jaxpatch import resume, testing
from jaxpatch.measuring import memory, sweep
from jaxpatch.models.rope import Rope

CONFIG = testing.tiny_config(neurons=96)
PAIR, INPUTS = testing.tiny_pair(CONFIG), testing.tiny_inputs(CONFIG)
ANCHOR = jp.Anchor(layer=2, direction=np.float32(np.eye(16)[0]))
KINDS = ("neuron", "head")


@pytest.fixture(autouse=True)
def many_spans(monkeypatch):
    monkeypatch.setattr(memory, "FILL_CPU", 100)
    monkeypatch.setattr(sweep, "SPAN", 3)


def scored(journal=sweep.FORGETFUL, **changes):
    asked = {"kinds": KINDS, "method": "exact", "top": 10} | changes
    return jp.score(PAIR, INPUTS, ANCHOR, journal=journal, **asked)


def bits(scores):
    return b"".join(scores.effects[kind].tobytes() for kind in KINDS)


class Stopped(BaseException):
    """What a kill looks like from inside."""


def stopping_after(calls):
    """A progress that stops the run at its so-many-th call."""
    left = [calls]

    def step(done, total):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped

    return lambda kind: step


@pytest.mark.parametrize("method", ["exact", pytest.param("screened", marks=pytest.mark.slow)])
def test_stopped_anywhere_and_gone_on_with_the_bits_are_the_same(tmp_path, method):
    whole = bits(scored(method=method))
    draw = random.Random(0)
    resumed = []
    for number in range(10):
        folder = tmp_path / str(number)
        with pytest.raises(Stopped), resume.Journal(folder, period=0) as journal:
            scored(journal, method=method, progress=stopping_after(draw.randrange(2, 40)))
        with resume.Journal(folder) as journal:
            assert bits(scored(journal, method=method)) == whole
        resumed.append(journal.num_resumed)
    assert max(resumed) > 0 and len(set(resumed)) > 3, "it was stopped at different places, after some work"


def test_stopped_again_and_again_it_still_ends(tmp_path):
    whole, stops = bits(scored()), 0
    while True:
        try:
            with resume.Journal(tmp_path / "state", period=0) as journal:
                found = scored(journal, progress=stopping_after(9))
            break
        except Stopped:
            stops += 1
    assert stops > 3 and bits(found) == whole


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    with resume.Journal(tmp_path / "state") as journal:
        whole = bits(scored(journal))
    monkeypatch.setattr(sweep, "_span", None)
    with resume.Journal(tmp_path / "state") as journal:
        assert bits(scored(journal)) == whole
    journal.forget()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("special", dict(pair=testing.tiny_pair(CONFIG, change=0.2))),
        ("base", dict(pair=testing.tiny_pair(CONFIG, seed=1))),
        ("prompts", dict(inputs=testing.tiny_inputs(CONFIG, seed=1))),
        ("anchor", dict(anchor=jp.Anchor(layer=1, direction=np.float32(np.eye(16)[0])))),
        ("anchor", dict(anchor=jp.Anchor(layer=2, direction=np.float32(np.eye(16)[1])))),
        ("kinds", dict(kinds=("head",))),
        ("method", dict(method="screened")),
        ("seed", dict(seed=1)),
        ("mode", dict(mode="knockout")),
        (
            "norm_eps of the models",
            dict(pair=dataclasses.replace(PAIR, config=testing.tiny_config(neurons=96, norm_eps=1e-3))),
        ),
        (
            "rope of the models",
            dict(pair=dataclasses.replace(PAIR, config=testing.tiny_config(neurons=96, rope=Rope(theta=9e3)))),
        ),
    ],
)
def test_another_run_is_refused_by_name(tmp_path, name, change):
    with resume.Journal(tmp_path / "state") as journal:
        scored(journal)
    asked = {"pair": PAIR, "inputs": INPUTS, "anchor": ANCHOR, "kinds": KINDS} | change
    with (
        pytest.raises(jp.DifferentRunError, match=f"other .*{name} .was .*remove the folder"),
        jp.Journal(tmp_path / "state") as journal,
    ):
        jp.score(journal=journal, **asked)


def test_one_journal_keeps_one_call(tmp_path):
    other = jp.Anchor(layer=1, direction=np.float32(np.eye(16)[0]))
    with resume.Journal(tmp_path / "state") as journal:
        whole = bits(scored(journal))
        assert bits(scored(journal)) == whole, "the same call again is only read"
        with pytest.raises(jp.DifferentRunError, match="other anchor"):
            jp.score(PAIR, INPUTS, other, kinds=KINDS, journal=journal)
    with resume.Journal(tmp_path / "state") as journal:
        assert bits(scored(journal)) == whole


def test_another_call_of_the_same_run_is_kept_beside_the_first_and_goes_with_it(tmp_path):
    whole, relayed = bits(scored()), bits(scored(method="activation"))
    with pytest.raises(Stopped), resume.Journal(tmp_path / "state", period=0) as journal:
        scored(journal)
        with journal.following() as second:
            scored(second, method="activation", progress=stopping_after(9))
    with resume.Journal(tmp_path / "state") as journal:
        assert bits(scored(journal)) == whole
        with journal.following() as second:
            assert bits(scored(second, method="activation")) == relayed
    assert journal.num_resumed > second.num_resumed > 0
    thesis = tmp_path / "state" / "next" / "thesis.tex"
    thesis.write_text("mine")
    with pytest.raises(jp.DifferentRunError, match=r"state: next: it holds other things than a journal \(thesis.tex\)"):
        scored(resume.Journal(tmp_path / "state"))
    journal.forget()
    assert list((tmp_path / "state").rglob("*")) == [thesis.parent, thesis]
    thesis.unlink()
    journal.forget()
    assert not (tmp_path / "state").exists()


def test_only_a_journal_is_gone_on_with_and_removed(tmp_path):
    mine = tmp_path / "thesis" / "chapter"
    mine.mkdir(parents=True)
    with pytest.raises(jp.DifferentRunError, match=r"holds other things than a journal \(chapter\)"):
        scored(resume.Journal(tmp_path / "thesis"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(jp.DifferentRunError, match="it is a file, and a journal is a folder"):
        scored(resume.Journal(tmp_path / "file"))
    with resume.Journal(tmp_path / "state") as journal:
        scored(journal)
    (tmp_path / "state" / "note.txt").write_text("mine")
    journal.forget()
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["note.txt"] and mine.is_dir()


def test_the_budget_is_the_one_it_was_begun_with(tmp_path):
    with resume.Journal(tmp_path / "state") as journal:
        scored(journal, memory=10**8)
    assert resume.Journal(tmp_path / "state").begin({**journal._identity, "budget": "5"})["budget"] == str(10**8)


def test_padding_is_no_part_of_the_prompts(tmp_path):
    tokens = np.asarray(INPUTS.tokens)
    repadded = np.where(np.arange(tokens.shape[1]) < np.asarray(INPUTS.lengths)[:, None], tokens, 7)
    assert (repadded != tokens).any()
    with resume.Journal(tmp_path / "state") as journal:
        whole = bits(scored(journal))
    with resume.Journal(tmp_path / "state") as journal:
        again = jp.score(
            PAIR, INPUTS._replace(tokens=repadded), ANCHOR, kinds=KINDS, method="exact", top=10, journal=journal
        )
    assert bits(again) == whole and journal.num_resumed > 0


def test_when_there_is_room_again_it_is_saved(tmp_path, monkeypatch):
    """Only the first savings fail; what they left is no obstacle."""
    tried = []

    def fails_at_first(self, step, **kw):
        tried.append(step)
        if len(tried) < 3:
            raise ValueError("RESOURCE_EXHAUSTED: No space left on device")
        return save(self, step, **kw)

    save = resume.ocp.CheckpointManager.save
    monkeypatch.setattr(resume.ocp.CheckpointManager, "save", fails_at_first)
    with (
        pytest.warns(UserWarning, match="could not be saved in .*No space left"),
        resume.Journal(tmp_path / "state", period=0) as journal,
    ):
        whole = bits(scored(journal))
    with resume.Journal(tmp_path / "state") as journal:
        assert bits(scored(journal)) == whole and journal.num_resumed > 0


@pytest.mark.parametrize("part", ["about", "effects", "the whole step"])
def test_a_damaged_state_is_refused_by_name(tmp_path, part):
    with resume.Journal(tmp_path / "state") as journal:
        scored(journal)
    (step,) = (path for path in (tmp_path / "state").iterdir() if path.name.isdigit())
    if part == "the whole step":
        shutil.rmtree(step)
        step.mkdir()
    else:
        for file in (step / part).rglob("*"):
            if file.is_file():
                file.write_bytes(b"{ garbage")
    with (
        pytest.raises(
            jp.DifferentRunError, match=r"state holds a state that cannot be read \(.+\). Remove it to start again"
        ),
        resume.Journal(tmp_path / "state") as journal,
    ):
        scored(journal)


def test_a_folder_that_is_open_is_nobody_elses(tmp_path):
    with resume.Journal(tmp_path / "state") as journal:
        with pytest.raises(
            OSError, match=r"state: another run has it open. Wait until that has ended, or name another"
        ):
            scored(resume.Journal(tmp_path / "state"))
        whole = bits(scored(journal))
    with resume.Journal(tmp_path / "state") as journal:
        assert bits(scored(journal)) == whole


def test_a_journal_that_can_never_be_written_is_refused_before_any_work():
    with pytest.raises(OSError, match=r"cannot keep a journal in /proc/nothing: .*Name a folder that can be written"):
        scored(resume.Journal("/proc/nothing"))


def test_a_journal_in_which_nothing_was_saved_leaves_nothing(tmp_path):
    with resume.Journal(tmp_path / "state"):
        assert (tmp_path / "state").is_dir()
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("period", [-1, float("nan"), float("inf"), "soon"])
def test_a_bad_period_is_refused(tmp_path, period):
    with pytest.raises(ValueError, match="period: wanted seconds, at least 0; got"):
        resume.Journal(tmp_path, period=period)


KILLED = """
import hashlib, sys
from jaxpatch import resume
from jaxpatch.measuring import memory, sweep
import test_resume
memory.FILL_CPU, sweep.SPAN = 100, 3
print("started", flush=True)
with resume.Journal(sys.argv[1], period=0.01) as journal:
    found = test_resume.scored(journal)
print(hashlib.sha256(test_resume.bits(found)).hexdigest(), journal.num_resumed)
"""


def started(folder, shell=""):
    """The same sweep in a process of its own, which is past its imports. shell: what is said to bash before."""
    here = os.pathsep.join([os.path.dirname(__file__), os.getcwd()])
    process = subprocess.Popen(
        ["bash", "-c", f'{shell} exec "$@"', "bash", sys.executable, "-c", KILLED, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE if shell else None,
        env=os.environ | {"PYTHONPATH": here},
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


def test_a_full_disk_costs_the_state_and_not_the_sweep(tmp_path):
    """No file can be larger than nothing, which the storage under Orbax reports as it reports a disk that is full."""
    process = started(tmp_path / "state", shell="trap '' XFSZ; ulimit -f 0;")
    said, warned = process.communicate()
    assert process.returncode == 0, warned
    assert "UserWarning: the state of the sweep could not be saved in" in warned
    digest, known = said.split()
    assert (digest, int(known)) == ended(started(tmp_path / "whole"))


def ended(process):
    """The digest of its numbers, and how many it knew when it began."""
    digest, known = process.communicate()[0].split()
    assert process.returncode == 0
    return digest, int(known)


def killed(tmp_path, times):
    """Kill at random moments of the time that a whole run takes. Returns how much was known when each was gone on with."""
    began = time.monotonic()
    whole, known = ended(started(tmp_path / "whole"))
    lasts = time.monotonic() - began
    assert known == 0
    draw, resumed = random.Random(1), []
    for number in range(times):
        process = started(tmp_path / str(number))
        time.sleep(draw.uniform(0, lasts))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        digest, known = ended(started(tmp_path / str(number)))
        assert digest == whole
        resumed.append(known)
    return resumed


def test_kill_9_loses_nothing(tmp_path):
    killed(tmp_path, 1)


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(tmp_path):
    known = killed(tmp_path, 20)
    assert sum(each > 0 for each in known) > 3, "some were killed in the middle of the sweep"
