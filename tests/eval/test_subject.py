"""A command's task and checkpoint, each known from the other; names that are spelled otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from asd_policy.checkpoints import find_checkpoint, shipped, shipped_names
from asd_policy.envs.tasks import TASKS, agreed_task, get_task
from asd_policy.errors import CheckpointError
from asd_policy.eval.options import EvalOptions, RatesOptions, ReplayOptions
from asd_policy.eval.studies.replay import _check_task
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.subjects import open_checkpoint
from asd_policy.eval.subject import checkpoint_of, with_its_task
from asd_policy.policy import save_checkpoint
from reference.tiny import tiny_checkpoint


@pytest.fixture
def without_task(tmp_path: Path) -> Path:
    """The shipped Lift policy, with a card that names no task."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for file in shipped("lift").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    card = json.loads((folder / "card.json").read_text())
    del card["task"]
    (folder / "card.json").write_text(json.dumps(card))
    return folder


@pytest.mark.parametrize("kind", [EvalOptions, RatesOptions, VerifyOptions])
def test_the_task_is_the_checkpoints(kind: type) -> None:
    assert with_its_task(kind()).task == "lift"
    assert with_its_task(kind(task="ToolHang")).task == "tool_hang"
    assert with_its_task(kind(checkpoint=Path("can"))).task == "can"
    assert with_its_task(kind(checkpoint=shipped("can"), task="PickPlaceCan")).task == "can"
    with pytest.raises(ValueError, match=r"--task lift: the checkpoint can was trained for can"):
        with_its_task(kind(checkpoint=Path("can"), task="lift"))


def test_a_card_without_a_task_leaves_it_to_the_option(without_task: Path) -> None:
    assert with_its_task(EvalOptions(checkpoint=without_task)).task == "lift"
    assert with_its_task(EvalOptions(checkpoint=without_task, task="Can")).task == "can"


def test_a_folder_that_is_a_checkpoint_goes_before_the_shipped_one(
    without_task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(without_task.parent)
    (without_task.parent / "lift").mkdir()  # of something else
    assert find_checkpoint("lift") == shipped("lift")
    without_task.rename(without_task.parent / "can")
    assert find_checkpoint("can") == Path("can")
    assert checkpoint_of(EvalOptions(task="can")) == shipped("can")
    assert checkpoint_of(EvalOptions(checkpoint=Path("can"))) == Path("can")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "--checkpoint", "can", "--task", "lift"], r"was trained for can"),
        (["rates", "--checkpoint", "can", "--task", "lift"], r"was trained for can"),
        (["verify", "--checkpoint", "can", "--task", "lift"], r"was trained for can"),
        (
            ["demos", "--learner", "can", "--task", "lift", "--interrupt-every", "40"],
            r"was trained for can",
        ),
        (["eval", "--checkpoint", "lifft"], r"no checkpoint at lifft: .*did you mean 'lift'\?"),
        (["verify", "--checkpoint", "lifft"], r"did you mean 'lift'\?"),
        (["demos", "--learner", "lifft"], r"did you mean 'lift'\?"),
        (["bench", "--networks", "lifft"], r"did you mean 'lift'\?"),
        (["bench", "--samplers", "asd_paper"], r"got 'asd_paper'; did you mean 'asd-paper'\?"),
        (["eval", "--samplers", "asd_paper"], r"got asd_paper; did you mean 'asd-paper'\?"),
        (["verify", "--sampler", "ddmp"], r"got ddmp; did you mean 'ddpm'\?"),
        (["eval", "--task", "squar"], r"unknown task 'squar'; .*did you mean 'square'\?"),
        (["tasks", "--tasks", "Lfit"], r"unknown task 'Lfit'; .*did you mean 'lift'\?"),
        (["train", "--task", "tool-hnag"], r"unknown task .*did you mean 'tool_hang'\?"),
        (["evl"], r"got 'evl'; did you mean 'eval'\?"),
    ],
)
def test_commands_refuse_in_one_sentence(refused, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    refused(r"(^|\.\.\. )error: .*" + message, *words)
    assert not list(tmp_path.iterdir()), "refused before anything was written"


def test_verify_takes_the_checkpoints_task() -> None:
    made, path, task = open_checkpoint(VerifyOptions(checkpoint=Path("Tool-Hang")))
    assert (made.card["task"], path, task) == ("tool_hang", shipped("tool_hang"), "tool_hang")
    assert open_checkpoint(VerifyOptions(task="PickPlaceCan"))[1:] == (shipped("can"), "can")


# --- spellings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))
def test_a_task_goes_by_every_usual_name(task) -> None:
    spellings = (task.name, task.robosuite_name, task.env_id, f"asd_policy:{task.env_id}")
    for name in spellings:
        for spelling in (name, name.upper(), name.lower(), name.replace("_", "-")):
            assert get_task(spelling) is task


@pytest.mark.parametrize("name", sorted(shipped_names()))
def test_a_shipped_policy_goes_by_the_names_of_its_task(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not the checkout, where checkpoints/ is a folder of that name
    task = TASKS[name]
    for spelling in (name, name.upper(), name.replace("_", "-"), task.robosuite_name):
        assert shipped(spelling) == shipped(name)
        assert find_checkpoint(spelling) == shipped(name)
        assert find_checkpoint(Path("checkpoints") / spelling) == shipped(name)


@pytest.mark.parametrize("name", ["", "NutAssembly", "lift/", "/lift", "..", "lift.pth"])
def test_other_names_are_none(name: str) -> None:
    if name != "lift/":  # a path without its last slash
        with pytest.raises(CheckpointError, match=r"ships with this package; there is can, lift"):
            shipped(name.strip("/") + "?")
    with pytest.raises(ValueError, match=r"unknown task .*; expected one of: lift, can"):
        get_task(name)


def test_a_checkpoint_of_a_task_that_is_not_known_here() -> None:
    assert agreed_task(None, "pusht", "mine") == agreed_task("pusht", "pusht", "mine") == "pusht"
    with pytest.raises(ValueError, match=r"--task lift: the checkpoint mine was trained for pusht"):
        agreed_task("lift", "pusht", "mine")


def test_replay_refuses_a_checkpoint_of_another_task() -> None:
    options = ReplayOptions(Path("run"), checkpoint=Path("can"))
    with pytest.raises(ValueError, match=r"^run is a run of lift; can was trained for can$"):
        _check_task(options, "lift")
    _check_task(options, "can")


def test_a_folder_of_lerobots_is_for_other_commands(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "diffusion"}')
    with pytest.raises(CheckpointError, match=r"a policy of LeRobot's, and no task here has its"):
        with_its_task(EvalOptions(checkpoint=tmp_path))
    with pytest.raises(CheckpointError, match="runs with its own encoder and processors; exp"):
        open_checkpoint(VerifyOptions(task="lift", checkpoint=tmp_path))


def test_a_robot_of_one_s_own_is_not_simulated_here(
    tmp_path: Path, refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever has no simulator is not told to install it, which would not help."""
    made = tiny_checkpoint()
    del made.card["task"]
    folder = save_checkpoint(tmp_path / "mine", made)
    message = r"mine is of a robot that is not simulated here: it sees object \(3,\), arm \(2,\),"
    refused(message, "eval", "--checkpoint", folder)
    monkeypatch.setattr("asd_policy.envs.requirements.importlib.util.find_spec", lambda name: None)
    refused(message, "eval", "--checkpoint", folder)
