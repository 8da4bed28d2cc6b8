"""Collections that are stopped: by one Ctrl-C, by two, by kill -9; real signals to real groups."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled

from asd_policy.envs import demos, rendering
from asd_policy.envs.attempts import saved_numbers
from asd_policy.envs.films import FilmWriter
from asd_policy.envs.workers import interrupts_held
from reference.files import files_of

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs POSIX process groups")


MANY = ["--episodes", "300", "--noise", "0.1", "--seed", "5", "--workers", "2"]


class Run:
    """`asd-policy demos` in a process group of its own."""

    def __init__(self, out: Path, log: Path, *words: str) -> None:
        self._log, self._out = log, out
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-m", "asd_policy", "demos", *words, "--out", str(out)],
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self._log.read_text()

    def wait_for(self, condition) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)

    def wait_for_words(self, words: str) -> None:
        self.wait_for(lambda: words in self.said())

    def wait_for_attempts(self, number: int) -> None:
        folder = self._out.with_name(self._out.name + ".partial")
        self.wait_for(lambda: len(saved_numbers(folder)) >= number)

    def says(self, words: str) -> bool:
        """Whether it does before it ends."""
        deadline = time.monotonic() + 120
        while words not in self.said() and self.process.poll() is None:
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.02)
        return words in self.said()

    def press_ctrl_c(self) -> None:
        """As a terminal does: every process of the group gets the signal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends_within(self, seconds: float, status: int = 130, last: str = "interrupted") -> None:
        """Stopped, with nothing left of it and no traceback of any of its processes."""
        assert self.process.wait(timeout=seconds) == status
        self.leaves_no_process()
        said = self.said()
        assert "Traceback" not in said
        assert said.endswith(f"\n{last}\n")

    def leaves_no_process(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            assert time.monotonic() < deadline
            time.sleep(0.05)


def interrupted(out: Path, log: Path, words: str, times: int) -> int:
    """Ctrl-C so many times while attempts run, and these words are said; how many attempts were
    finished before. Between two attempts there is nothing to wait for: then it is tried again."""
    folder = out.with_name(out.name + ".partial")
    for _ in range(3):
        run = Run(out, log, *MANY)
        run.wait_for_attempts(len(saved_numbers(folder)) + 1)
        run.wait_for_words("demonstrations")
        time.sleep(0.3)  # the next ones have begun
        before = len(saved_numbers(folder))
        run.press_ctrl_c()
        waited = run.says(words)
        if waited and times == 2:
            run.press_ctrl_c()
        run.ends_within(60)
        if waited:
            return before
    raise AssertionError(run.said())


def test_stopped_and_killed_collections_go_on_to_the_same_store(store, tmp_path):
    """Ctrl-C while processes start; Ctrl-C once; twice; kill -9; then the rest, of which only three
    episodes are asked for in the end. With two workers, where `store` was made by one."""
    out, folder = tmp_path / "lift.zarr", tmp_path / "lift.zarr.partial"

    run = Run(out, tmp_path / "starting", *MANY)
    run.wait_for_words("starting worker processes")
    run.press_ctrl_c()
    run.ends_within(60)
    assert "No new attempt was finished; the same command begins again." in run.said()
    assert not folder.exists()

    before = interrupted(out, tmp_path / "once", "to end (about ", 1)
    assert len(saved_numbers(folder)) > before  # what was running was waited for
    assert not list(folder.glob("*.tmp"))
    finished = f"Kept in {folder}: {len(saved_numbers(folder))} finished attempts; the same command"
    assert finished in (tmp_path / "once").read_text()
    kept = files_of(folder)

    run = Run(out, tmp_path / "terminated", *MANY)
    run.wait_for_attempts(len(saved_numbers(folder)) + 1)
    run.process.terminate()  # as `kill` does, or a cluster whose time is over
    run.ends_within(60, 143, "terminated")
    assert "finished attempts; the same command goes on." in run.said()

    interrupted(out, tmp_path / "twice", "Stopping: waiting for", 2)
    assert "kept of an earlier run: " in (tmp_path / "twice").read_text()

    run = Run(out, tmp_path / "killed", *MANY)
    run.wait_for_attempts(len(saved_numbers(folder)) + 1)
    run.process.kill()
    run.process.wait()
    run.leaves_no_process()
    assert not out.exists()
    found = files_of(folder)
    assert {name: found[name] for name in kept if name.startswith("attempt")} == {
        name: content for name, content in kept.items() if name.startswith("attempt")
    }

    summary = demos.collect("lift", 3, 0.1, out, workers=2, seed=5, progress=False)
    assert summary.episodes == 3
    assert files_of(out) == files_of(store)
    assert min(saved_numbers(folder)) == 3  # more than three were made: they are for a larger store


def test_a_process_that_dies_is_one_message(tmp_path):
    out = tmp_path / "lift.zarr"
    run = Run(out, tmp_path / "died", *MANY)
    run.wait_for_attempts(1)
    os.kill(youngest_child(run.process.pid), signal.SIGKILL)
    assert run.process.wait(timeout=120) == 2
    run.leaves_no_process()
    assert "error: a worker process died (was memory short?" in run.said()
    assert "Traceback" not in run.said()
    assert saved_numbers(tmp_path / "lift.zarr.partial")


def youngest_child(parent: int) -> int:
    words = ["ps", "-A", "-o", "pid=", "-o", "ppid="]
    rows = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    return max(int(pid) for pid, of in map(str.split, rows) if int(of) == parent)


def test_what_a_process_cannot_write_is_one_message(tmp_path):
    """A limit on the size of files stands for a full disk."""
    limited = f"ulimit -f 8; exec {sys.executable} -m asd_policy demos --episodes 2 --out lift.zarr"
    uncached = os.environ | {"NUMBA_DISABLE_JIT": "1"}  # numba's own files would be limited, too
    done = subprocess.run(
        ["bash", "-c", limited], cwd=tmp_path, env=uncached, capture_output=True, text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert re.search(r"attempt-00000\d\.npz could not be written: File too large", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_film_that_is_stopped_leaves_no_half_of_it(store, tmp_path):
    try:
        rendering.choose_backend()
    except DependencyNotInstalled:
        pytest.skip("needs OpenGL (libosmesa6, or libegl1 with a driver)")
    film = tmp_path / "lift.mp4"
    run = Run(store, tmp_path / "filming", "--render", str(film))
    run.wait_for(lambda: list(tmp_path.glob(".lift.part.mp4")))
    run.press_ctrl_c()
    run.ends_within(60)
    assert f"{store} is whole; the same command makes what is missing." in run.said()
    assert [path.name for path in tmp_path.iterdir()] == ["filming"]


class Stopped(BaseException):
    """What a signal's handler raises."""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ffmpeg_is_started_is_not_lost(tmp_path, number):
    """ffmpeg is started by a fork that runs Python's hooks, and an exception that a handler raises
    in one of those (threading has some) is printed and forgotten."""
    forked = []

    def signalled() -> None:
        if not forked:
            forked.append(True)
            os.kill(os.getpid(), number)

    def stop(number: int, frame: object) -> None:
        raise Stopped

    before = signal.signal(number, stop)
    try:
        with FilmWriter(tmp_path / "film.mp4", 20) as film:
            os.register_at_fork(after_in_parent=signalled)
            with pytest.raises(Stopped):
                film.add(np.zeros((8, 8, 3), np.uint8))
    finally:
        signal.signal(number, before)
        hooked, forked[:] = list(forked), [True]  # a hook cannot be taken back
    assert hooked
    assert (tmp_path / "film.mp4").exists()


def test_a_held_interrupt_comes_when_the_block_is_left():
    passed = []

    def hold():
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            passed.append("the end of the block")

    with pytest.raises(KeyboardInterrupt):
        hold()
    assert passed


def test_an_interrupt_that_another_thread_takes_is_held_too():
    """The mask is of one thread; a progress bar's takes the signal, and the handler runs here."""
    ends = threading.Event()
    threading.Thread(target=ends.wait, daemon=True).start()
    passed = []

    def hold():
        with interrupts_held():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            passed.append("the end of the block")

    try:
        with pytest.raises(KeyboardInterrupt):
            hold()
    finally:
        ends.set()
    assert passed


def test_a_process_that_is_started_while_interrupts_are_held_gets_none():
    with interrupts_held():
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
    finally:
        process.kill()
        process.wait()
