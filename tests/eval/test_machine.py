"""What is written down about the machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asd_policy.engine.timing import cpu_model
from asd_policy.eval.runs import machine


def work_for(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.skipif(machine.processor_wait_s() is None, reason="the system does not say")
def test_waiting_for_a_processor_is_noticed():
    """Two processes on one processor, each wants all of it: each waits about half the time."""
    before = os.sched_getaffinity(0)
    mine = min(before)
    rivals = [
        subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{mine}}})\n"
                          "print(flush=True)\nwhile 1: pass"], stdout=subprocess.PIPE)
        for _ in range(2)
    ]  # fmt: skip
    try:
        for rival in rivals:
            assert rival.stdout is not None
            rival.stdout.readline()  # it runs
        os.sched_setaffinity(0, {mine})
        start = machine.processor_wait_s()
        work_for(0.6)
        waited = machine.processor_wait_s() - start
        slept = []
        for _ in range(5):  # other threads of the tests may work meanwhile
            start = machine.processor_wait_s()
            time.sleep(0.3)
            slept.append(machine.processor_wait_s() - start)
    finally:
        os.sched_setaffinity(0, before)
        for rival in rivals:
            rival.kill()
            rival.communicate()
    assert waited > 0.15, "waiting is counted"
    assert min(slept) < 0.15, "and sleep is not waiting"


def test_a_system_without_the_count_says_none(monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda path: False)
    assert machine.processor_wait_s() is None


def test_the_commit_is_that_of_this_packages_checkout_only(tmp_path):
    assert machine.git_commit(tmp_path / "asd_policy") is None
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    commit = ["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "x"]
    subprocess.run(commit, check=True)
    (tmp_path / "asd_policy").mkdir()
    head = ["git", "-C", str(tmp_path), "rev-parse", "HEAD"]
    expected = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert machine.git_commit(tmp_path / "asd_policy") == expected


DRAWING = (
    "asd_policy/drafts.py", "asd_policy/engine/kernels/native.py",
    "asd_policy/engine/_native.abi3.so", "asd_policy/integrations/loaders.py",
    "eval/studies/verify/draws.py",
)  # fmt: skip


def test_the_drawing_code_is_all_that_decides_what_chunks_are_drawn(tmp_path):
    others = ("asd_policy/README.md", "asd_policy/serving/server.py", "eval/results/lift.json")
    for name in (*DRAWING, *others):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")

    def now():
        return machine.drawing_code(tmp_path / "asd_policy", tmp_path / "eval")

    before = now()
    for name in others:
        (tmp_path / name).write_text("2")
        assert now() == before
    for name in DRAWING:
        (tmp_path / name).write_text("2")
        assert now() != before
        before = now()
    (tmp_path / DRAWING[0]).rename(tmp_path / "asd_policy/chains.py")
    assert now() != before


def test_the_drawing_code_of_this_package_holds_samplers_and_controls(monkeypatch):
    read = set()
    content = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path.name) or content(path))
    machine.drawing_code()
    assert {"drafts.py", "asd.py", "unet1d.py", "eager.py", "chunks.py", "rejoin.py"} <= read
    assert {"controls.py", "draws.py", "subject.py", "robomimic_checkpoint.py"} <= read


def test_the_processor_has_a_name():
    assert cpu_model()
