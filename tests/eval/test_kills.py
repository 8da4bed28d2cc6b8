"""Fifty kills at random moments: what they leave, continued, is what an unkilled run leaves."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from eval_standin import timeless

from asd_policy.eval.rollout.flight import read_flight
from asd_policy.eval.runs.folder import read_run
from asd_policy.eval.stats.summary import summarize

# Each evaluation is a fork of a process that has imported everything, so that kills fall into the
# run and not into its imports.
NURSERY = """
import functools, json, os
from pathlib import Path
from eval_standin import prepare
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.options import EvalOptions

def run(out, workers, **fields):
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    options = EvalOptions(out=Path(out), resume=True, **fields)
    evaluate(options, prepare=functools.partial(prepare, step_s=0.002, workers=workers))

if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                run(**json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """Starts evaluations, and kills them."""

    def __init__(self, command):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, fields, kill_after_s=None) -> int:
        """The exit status of an evaluation."""
        self._process.stdin.write(json.dumps(fields) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            with contextlib.suppress(ProcessLookupError):  # it was done already
                os.kill(pid, signal.SIGKILL)
        return int(self._process.stdout.readline())

    def close(self):
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def nursery(script):
    nursery = Nursery(script(NURSERY))
    yield nursery
    nursery.close()


def whole_lines(folder: Path) -> list[str]:
    path = folder / "episodes.jsonl"
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def flights(folder: Path) -> dict:
    return {
        path.name: (flight.action.tobytes(), flight.chunk[:, :3].tobytes())
        for path in folder.glob("flight/*.npz")
        for flight in [read_flight(path)]
    }


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("kills", "share", "fields"),
    [
        (4, 0.3, {"episodes": 8}),
        slow(20, 0.3, {"episodes": 8}),
        slow(20, 0.3, {"episodes": 6, "record": True, "delay": 90.0}),
        slow(10, 0.9, {"episodes": 12, "record": True, "num_envs": 2, "workers": True}),
    ],
    ids=["few", "alone", "recorded", "workers"],
)
def test_kills_at_random_moments_change_nothing(tmp_path, nursery, kills, share, fields):
    fields = {"workers": False, **fields}
    begin = time.monotonic()
    assert nursery.run({"out": str(tmp_path / "whole"), **fields}) == 0
    takes = time.monotonic() - begin
    expected, recorded = timeless(tmp_path / "whole", "cold"), flights(tmp_path / "whole")
    assert len(expected) == 2 * fields["episodes"]
    assert len(recorded) == len(expected) * fields.get("record", False)
    rng = random.Random(0)
    killed = folders = 0
    while killed < kills:
        folder, kept, status = tmp_path / f"run{folders}", [], -signal.SIGKILL
        folders += 1
        while status != 0:
            # The last folder is finished in peace.
            moment = rng.uniform(0, share * takes) if killed < kills else None
            status = nursery.run({"out": str(folder), **fields}, moment)
            assert status in (0, -signal.SIGKILL)
            killed += status != 0
            lines = whole_lines(folder)
            assert lines[: len(kept)] == kept, "a finished episode was lost or changed"
            kept = lines
        assert timeless(folder, "cold") == expected
        assert flights(folder) == recorded
        results = json.loads((folder / "results.json").read_text())
        assert results["complete"]
        assert results == json.loads(json.dumps(summarize(*read_run(folder))))
    assert killed == kills
