"""Going on with a run by the command line: which one, with which options, and what is said of it.

The commands are the real ones, in processes that get real signals; only the world and the policy
are stand-ins.
"""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest

from asd_policy.checkpoints import shipped
from asd_policy.eval import resume
from asd_policy.eval.options import RatesOptions
from asd_policy.eval.resume import find_options, keep_options, parse, store_of
from asd_policy.eval.runs.folder import read_run
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.studies.tasks.command import TableOptions, evaluations, find_table

PROGRAM = """
import functools, os
from eval_standin import prepare
from asd_policy import cli
from asd_policy.eval.studies import evaluate as evaluator
evaluator._really_prepare = functools.partial(prepare, step_s=float(os.environ["STEP_S"]))
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""
EVAL = ["eval", "--episodes", "6", "--threads", "1", "--record", "--delay", "60"]
RATES = ["rates", "--rates", "20", "40", "--episodes", "6", "--samplers", "asd", "--horizon", "30"]
TASKS = ["tasks", "--tasks", "lift", "--episodes", "6", "--num-envs", "1", "--window", "16"]


class Shell:
    """Commands in a folder of their own."""

    def __init__(self, program, folder):
        self._program, self.folder = program, folder
        self.output = ""  # of the last command that ended by itself

    def start(self, *words, step_s=0.002):
        return subprocess.Popen(
            [*self._program, *map(str, words)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "STEP_S": str(step_s)},
        )

    def run(self, *words):
        """(exit status, stderr)."""
        process = self.start(*words)
        self.output, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors
        return process.returncode, errors

    def lines(self):
        return sum(f.read_bytes().count(b"\n") for f in self.folder.rglob("episodes.jsonl"))

    def cut(self, lines, number, *words):
        """The same of a command that gets a signal when so many episodes are there."""
        process = self.start(*words, step_s=0.01)  # so that much is left when the signal comes
        while process.poll() is None and self.lines() < lines:
            time.sleep(0.002)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        return process.returncode, errors


@pytest.fixture
def shell(script, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    return Shell(script(PROGRAM), folder)


def command_after(errors: str) -> list[str]:
    """The one command that the output says to continue with."""
    (found,) = re.findall(r"continue with\n  asd-policy (.*)\n", errors)
    return shlex.split(found)


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "folders"),
    [(EVAL, ["."]), (RATES, ["20hz", "40hz"]), (TASKS, ["lift/success-0of1", "lift/latency"])],
    ids=["eval", "rates", "tasks"],
)
@pytest.mark.parametrize(
    ("number", "status", "word", "out"),
    [
        (signal.SIGINT, 130, "interrupted", None),
        (signal.SIGTERM, 143, "terminated", "runs[/b]x :smile:"),
    ],
)
def test_the_command_that_is_said_goes_on(shell, words, folders, number, status, word, out):
    more = [] if out is None else ["--out", out]
    code, errors = shell.cut(3, number, *words, *more)
    assert code == status
    assert errors.endswith(f"{word}\n")
    said = re.match(r"Output folder: (.*)\n", errors)
    assert said, "in the first line"
    root = shell.folder / said[1]
    assert out in (None, said[1])
    again = command_after(errors)
    assert again[0] == words[0]
    before = shell.lines()
    if words is EVAL:
        assert f"{before} of 12 episodes were finished and are kept in {said[1]}" in errors
        results = json.loads((root / "results.json").read_text())
        assert not results["complete"]
        assert sum(s["success"]["n"] for s in results["samplers"].values()) == before
    code, errors = shell.run(*again)
    assert code == 0, errors
    assert "continued: " in errors
    assert f"Kept: {said[1]}/" in shell.output, "as it is: no markup, no emoji"
    for name in folders:
        config, episodes = read_run(root / name)
        assert len(episodes) == config["settings"]["episodes"] * len(config["settings"]["samplers"])
    assert before < shell.lines()


def test_an_end_before_anything_has_begun_leaves_nothing_and_says_no_command(shell):
    for words in (RATES, TASKS, EVAL):
        code, errors = shell.run(*words, "--device", "cpu", "--out", "o", *unknown(words))
        assert code == 2
        assert "continue with" not in errors
        assert not (shell.folder / "o").exists()


def unknown(words):
    return ["--tasks", "juggle"] if words is TASKS else ["--window", "0"]


# --- which run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [EVAL, RATES], ids=["eval", "rates"])
def test_resume_alone_takes_the_newest_unfinished_run(shell, words):
    for _ in range(2):
        shell.cut(shell.lines() + 2, signal.SIGKILL, *words)
        time.sleep(1.1)  # the time in a folder's name is of whole seconds
    assert shell.run(*words)[0] == 0, "the newest of all is finished"
    root = shell.folder / "outputs" / words[0]
    old, new, _ = sorted(root.iterdir())
    for expected in (new, old):
        code, errors = shell.run(words[0], "--resume")
        assert code == 0, errors
        first, second, *_ = errors.splitlines()
        assert re.fullmatch(rf"The newest unfinished .* is {expected.name}", first)
        assert second.startswith(f"Output folder: outputs/{words[0]}/{expected.name}")
        assert all(len(read_run(run.parent)[1]) in (6, 12) for run in expected.rglob("config.json"))
    code, errors = shell.run(words[0], "--resume")
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert "there is none (3 finished)" in errors


def test_rates_are_finished_when_every_execution_is(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    options = {
        "episodes": 5, "num_envs": 1, "device": "auto", "precision": "fp32", "threads": None,
        "task": "lift", "checkpoint": None, "samplers": ["asd"], "seed": 0, "window": "auto",
        "delay": "measured", "rates": [10.0, 20.0], "executions": ["late", "overlapped"],
    }  # fmt: skip
    began = {"command": "rates", "started": "2026-01-01T00:00:00+00:00", "options": options}
    (run / "options.json").write_text(json.dumps({"schema_version": VERSION["options"], **began}))
    parts = [(10.0, {}), (10.0, {"execution": "overlapped"}), (20.0, {})]  # late is not named
    parts += [(20.0, {"execution": "overlapped"})]
    for done in (3, 4):
        rates = [{"control_rate_hz": rate, "complete": True, **how} for rate, how in parts[:done]]
        (run / "rates.json").write_text(json.dumps({"seeds": {"count": 5}, "rates": rates}))
        assert resume._of_parts("rates", run).finished == (done == 4)


def test_a_run_that_another_process_is_at_is_not_taken(shell):
    fcntl = pytest.importorskip("fcntl")
    shell.cut(2, signal.SIGKILL, *EVAL)
    (run,) = (shell.folder / "outputs" / "eval").iterdir()
    with open(run / "episodes.jsonl", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, errors = shell.run("eval", "--resume")
    assert code == 2
    assert "there is none (1 at work in another process)" in errors


def test_without_any_run_it_is_one_sentence(shell):
    for command in ("eval", "rates", "tasks"):
        code, errors = shell.run(command, "--resume")
        assert code == 2
        assert re.fullmatch(rf"error: --resume.*outputs/{command}.*none.*\n", errors)
    assert not list(shell.folder.iterdir())


def test_a_folder_without_a_run_is_nothing_to_resume(shell):
    """Above all one whose name was mistyped; and a file that was cut short is called so."""
    for command in ("eval", "rates"):
        code, errors = shell.run(command, "--resume", "--out", "none")
        assert code == 2
        assert re.fullmatch(r"error: --resume: expected a run.* in none; found none.*\n", errors)
    shell.cut(2, signal.SIGKILL, *EVAL, "--out", "o")
    config = shell.folder / "o" / "config.json"
    config.write_text(config.read_text()[:200])
    for words in (("eval", "--resume", "--out", "o"), ("report", "o"), ("compare", "o")):
        code, errors = shell.run(*words)
        assert code == 2
        assert "o/config.json is damaged, or of something else: " in errors


# --- with which options -------------------------------------------------------------------------


def test_what_is_left_out_is_the_folders_and_what_differs_is_named(shell):
    shutil.copytree(shipped("lift"), shell.folder / "my policy")
    shell.cut(2, signal.SIGINT, *EVAL, "--out", "o", "--checkpoint", "my policy")
    config = json.loads((shell.folder / "o" / "config.json").read_text())
    code, errors = shell.run(
        "eval", "--resume", "--out", "o", "--realtime", "--seed", "5", "--samplers", "asd",
        "--threads", "2", "--episodes", "5", "--compile",
    )  # fmt: skip
    assert code == 2
    for named in (
        "--delay: 60.0 there, measured now", "--seed: 100000 there, 5 now", "--threads: 1 there, 2",
        "--samplers: asd ddpm there, asd now", "--episodes: 6 there, only 5 now",
        "--compile: False there, True now", "a run has one machine setting",
    ):  # fmt: skip
        assert named in errors
    for same in ("--record", "--window", "--checkpoint"):
        assert same not in errors
    assert json.loads((shell.folder / "o" / "config.json").read_text()) == config
    more = ["--record", "--episodes", "7", "--video", "0", "--name", "other"]
    code, errors = shell.run("eval", "--resume", "--out", "o", *more)
    assert code == 0, errors
    settings = json.loads((shell.folder / "o" / "config.json").read_text())["settings"]
    assert settings == config["settings"] | {"episodes": 7, "name": "other"}
    again = shlex.split(json.loads((shell.folder / "o" / "config.json").read_text())["command"])
    assert again[again.index("--checkpoint") + 1] == "my policy"


def test_rates_may_grow_and_other_options_are_named(shell):
    assert shell.run(*RATES, "--out", "o")[0] == 0
    code, errors = shell.run("rates", "--out", "o", "--resume", "--rates", "40", "--horizon", "9")
    assert code == 2
    assert "--rates: 20.0 40.0 there, only 40.0 now" in errors
    assert "--horizon: 30 there, 9 now" in errors
    code, errors = shell.run("rates", "--out", "o", "--resume", "--rates", "20", "40", "80")
    assert code == 0, errors
    assert len(json.loads((shell.folder / "o" / "rates.json").read_text())["rates"]) == 3
    assert shell.lines() == 3 * 6


def test_tasks_go_on_without_being_told_and_other_options_are_named(shell):
    shell.cut(3, signal.SIGKILL, *TASKS)
    code, errors = shell.run("tasks", "--window", "8", "--precision", "bf16", "--episodes", "5")
    assert code == 2
    for named in (
        "--window: 16 there, 8 now", "--precision: fp32 there, bf16 now",
        "--episodes: 6 there, only 5 now",
    ):  # fmt: skip
        assert named in errors
    code, errors = shell.run("tasks")
    assert code == 0, errors
    table = json.loads((shell.folder / "outputs" / "tasks" / "tasks.json").read_text())
    assert list(table["tasks"]) == ["lift"]
    assert table["tasks"]["lift"]["complete"]
    assert table["tasks"]["lift"]["samplers"]["asd"]["window"] == 16


def test_shards_of_one_table_are_alike(shell):
    assert shell.run(*TASKS, "--shard", "0/2", "--out", "o")[0] == 0
    for words, named in (
        (["--shard", "1/2", "--window", "8"], "--window: 16 there, 8 now"),
        (["--shard", "1/3"], "another number of parts"),
        (["--num-envs", "2"], "--num-envs: 1 there, 2 now"),  # the shard that is there
    ):
        code, errors = shell.run("tasks", "--tasks", "lift", "--out", "o", *words)
        assert (code, named in errors) == (2, True), errors
    words = [
        "--tasks",
        "lift",
        "--num-envs",
        "1",
    ]  # of a shard; window and episodes are the table's
    assert shell.run("tasks", *words, "--shard", "1/2", "--out", "o")[0] == 0
    table = json.loads((shell.folder / "o" / "tasks.json").read_text())
    assert table["tasks"]["lift"]["complete"]
    code, errors = shell.run("tasks", "--out", "o")
    assert code == 2
    assert "--shard: o holds 0/2, 1/2; name one of them" in errors


def test_a_run_that_goes_on_with_other_threads_says_so(shell):
    """Resolved by "auto": of the same options, on another machine."""
    shell.cut(2, signal.SIGKILL, *EVAL, "--out", "o")
    path = shell.folder / "o" / "config.json"
    config = json.loads(path.read_text())
    config["resolved"]["threads"] = 64
    path.write_text(json.dumps(config))
    code, errors = shell.run("eval", "--resume", "--out", "o")
    assert code == 0
    assert "begun on another machine setting (threads 64 then, 1 now)" in errors


def test_rates_through_servers_go_on_through_them(tmp_path):
    asked = RatesOptions(
        task="lift", rates=(20.0,), remote=("ws://h:1",), samplers=("asd",), out=tmp_path
    )
    keep_options(tmp_path, store_of("rates"), "rates", asked)
    words = ["--resume", "--out", str(tmp_path), "--rates", "20", "40"]
    find = functools.partial(find_options, RatesOptions, root=tmp_path, command="rates")
    again = parse("rates", words, RatesOptions, "", find)
    assert (again.remote, again.rates) == (("ws://h:1",), (20.0, 40.0))
    moved = parse("rates", [*words, "--remote", "ws://h:2"], RatesOptions, "", find)
    assert moved.remote == ("ws://h:2",)
    keep_options(tmp_path, store_of("rates", may_grow=("rates",)), "rates", moved)


def test_a_further_shard_is_of_the_tasks_that_were_named(tmp_path):
    first = TableOptions(tasks=("lift",), episodes=10, shard="0/2", out=tmp_path)
    keep_options(tmp_path, store_of("tasks", "options-0of2.json"), "tasks", first)
    words = ["--shard", "1/2", "--out", str(tmp_path)]
    second = parse("tasks", words, TableOptions, "", find_table)
    assert {run.task for run in evaluations(second)} == {"lift"}
    more = parse("tasks", [*words, "--tasks", "lift", "can"], TableOptions, "", find_table)
    assert {run.task for run in evaluations(more)} == {"lift", "can"}
