"""A disk that fills in the middle of a line: a clear error, nothing false kept, and resuming."""

import dataclasses
import errno
import functools
import json
import os
import shutil
import subprocess
import sys

import pytest
from eval_standin import prepare

from asd_policy.errors import OutputError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.rollout.flight import read_flight
from asd_policy.eval.studies.evaluate import evaluate

PROGRAM = """
import errno, resource
from pathlib import Path
from eval_standin import prepare
from asd_policy.errors import OutputError
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.options import EvalOptions
limit = {limit}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
options = EvalOptions(episodes={episodes}, out=Path({out!r}), resume=True, record={record})
try:
    evaluate(options, prepare=prepare)
except OutputError as error:
    print("refused:", errno.errorcode[error.__cause__.errno], error)
    sys.exit(3)
"""


def numbers(folder):
    """(sampler, seed) of every line, all of which must be whole."""
    text = (folder / "episodes.jsonl").read_text()
    assert not text or text.endswith("\n"), "a torn line was left"
    return [(e["sampler"], e["seed"]) for e in map(json.loads, text.splitlines())]


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_limit_that_is_reached_in_the_middle_of_a_line(tmp_path, script, quiet):
    """The system writes a part of the line, and refuses the rest."""
    out, limit = tmp_path / "run", 9000
    fields = {"out": str(out), "episodes": 30, "record": False}
    done = subprocess.run(
        script(PROGRAM.format(limit=limit, **fields)), capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
    assert f"refused: EFBIG {out / 'episodes.jsonl'} could not be written: File too large" in (
        done.stdout
    )
    finished = numbers(out)
    assert 3 < len(finished) < 60
    size = (out / "episodes.jsonl").stat().st_size
    assert limit - 3000 < size < limit
    assert f"{len(finished)} of 60 episodes were finished and are kept" in done.stderr
    assert "Traceback" not in done.stderr
    options = EvalOptions(episodes=30, out=out, resume=True)
    assert evaluate(options, prepare=prepare, console=quiet)["complete"]
    assert numbers(out)[: len(finished)] == finished
    assert len(set(numbers(out))) == len(numbers(out)) == 60


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    words = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs -o size=64k none /mnt"]
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a file system of its own")
@pytest.mark.parametrize("record", [False, True])
def test_a_disk_that_is_full(tmp_path, script, record):
    """A real file system of a few pages, which is enlarged before the run is continued."""
    disk, out = tmp_path / "disk", tmp_path / "disk" / "run"
    disk.mkdir()
    program = PROGRAM.format(limit=0, episodes=15, out=str(out), record=record)
    words = " ".join(script(program))
    shell = f"""
        mount -t tmpfs -o size={96 if record else 24}k none {disk}
        {words}; echo status $?
        cp -r {out} {tmp_path}/full
        mount -o remount,size=4m {disk}
        {words}; echo status $?
        cp -r {out} {tmp_path}/continued
    """
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell], capture_output=True, text=True, timeout=500
    )
    assert done.stdout.count("status") == 2, done.stderr
    assert "refused: ENOSPC" in done.stdout
    assert "could not be written: No space left on device" in done.stdout
    assert "status 3" in done.stdout
    assert done.stdout.endswith("status 0\n"), done.stderr
    assert "Traceback" not in done.stderr
    finished, every = numbers(tmp_path / "full"), numbers(tmp_path / "continued")
    assert 0 < len(finished) < 30
    assert every[: len(finished)] == finished
    assert len(set(every)) == len(every) == 30
    assert not list((tmp_path / "full").rglob("*.part"))
    if record:
        kept = {f"{name}_seed{seed}.npz" for name, seed in every}
        assert {p.name for p in (tmp_path / "continued" / "flight").iterdir()} == kept
        for path in (tmp_path / "full" / "flight").iterdir():
            read_flight(path)


@pytest.mark.parametrize("refused", [3, 4])
def test_a_line_that_does_not_reach_the_disk_is_taken_back(tmp_path, quiet, monkeypatch, refused):
    fsync, calls = os.fsync, []

    def full(descriptor):
        if os.path.samestat(os.fstat(descriptor), os.stat(options.out / "episodes.jsonl")):
            calls.append(descriptor)
            if len(calls) == refused:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    options = EvalOptions(episodes=3, out=tmp_path / "run")
    monkeypatch.setattr(os, "fsync", full)
    run = functools.partial(evaluate, prepare=prepare, console=quiet)
    with pytest.raises(OutputError, match=r"episodes\.jsonl could not be written: No space left"):
        run(options)
    assert len(numbers(options.out)) == refused - 1
    results = json.loads((options.out / "results.json").read_text())
    assert sum(s["success"]["n"] for s in results["samplers"].values()) == refused - 1
    assert run(dataclasses.replace(options, resume=True))["complete"]
    assert len(set(numbers(options.out))) == 6
