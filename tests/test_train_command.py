"""`asd-policy train`: the models kept on the way are those of the run, killed or not."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy.data.replay import join, load_replay, save_npz
from asd_policy.data.zarr_store import write_zarr
from asd_policy.envs.tasks import get_task
from asd_policy.errors import CheckpointError, DatasetError, InputError, OutputExistsError
from asd_policy.files import LOCK_FILE, claimed
from asd_policy.integrations.robomimic_convert import to_robomimic
from asd_policy.networks import TransformerSizes
from asd_policy.policy import DiffusionPolicy
from asd_policy.policy.checkpoint import load_checkpoint
from asd_policy.training.main import main_train
from asd_policy.training.trainer import Trainer

zarr = pytest.importorskip("zarr")


def write_store(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    rows = 30
    root = zarr.open_group(str(path), mode="w")
    for key, size in get_task("lift").observation_keys.items():
        root[f"data/{key}"] = rng.normal(size=(rows, size)).astype(np.float32)
    root["data/action"] = rng.uniform(-1, 1, size=(rows, 7)).astype(np.float32)
    root["meta/episode_ends"] = np.array([12, rows])
    return path


def train(store: Path, out: Path, **changes: object) -> None:
    main_train(
        out=out, batch_size=4, diffusion_steps=4, device="cpu",
        **{"data": (store,), "steps": 10, "keep": 2, "down_dims": (8, 16)} | changes,
    )  # fmt: skip


def test_the_last_models_are_kept(tmp_path: Path, capsys) -> None:
    store = write_store(tmp_path / "lift.zarr")
    train(store, tmp_path / "out")
    kept = sorted(path.name for path in (tmp_path / "out").glob("step-*"))
    assert kept == ["step-000009", "step-000010"]
    nine, ten, final = (
        load_checkpoint(path) for path in [*(tmp_path / "out" / k for k in kept), tmp_path / "out"]
    )
    assert capsys.readouterr().out.count("Calibrating") == 2, "the last is in two places"
    assert nine.card["recipe"]["steps_done"] == 9
    assert nine.card["sha256"] != ten.card["sha256"] == final.card["sha256"]


def test_a_transformer_is_trained_calibrated_and_gone_on_from(tmp_path: Path) -> None:
    store = write_store(tmp_path / "lift.zarr")
    train(store, tmp_path / "first", down_dims=(), transformer=(1, 2, 8))
    first = load_checkpoint(tmp_path / "first")
    assert first.config.transformer == TransformerSizes(1, 2, 8)
    assert first.card["calibration"]["chunks"] > 0
    small = {"down_dims": (), "transformer": (1, 2, 8)}
    train(store, tmp_path / "next", start_from=tmp_path / "first", seed=1, **small)
    started = load_checkpoint(tmp_path / "next").card["recipe"]["started_from"]
    assert started == first.card["sha256"]
    with pytest.raises(CheckpointError, match="of another kind"):
        train(store, tmp_path / "unet", start_from=tmp_path / "first")


def test_one_file_holds_what_a_store_does(tmp_path: Path) -> None:
    store, packed = write_store(tmp_path / "lift.zarr"), tmp_path / "lift.npz"
    save_npz(load_replay(store, list(get_task("lift").observation_keys)), packed)
    for name, data in (("store", store), ("packed", packed)):
        train(data, tmp_path / name)
    one, other = (load_checkpoint(tmp_path / name).card["sha256"] for name in ("store", "packed"))
    assert one == other


def test_a_killed_run_keeps_the_same_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while the model of step 9 was being saved: it is saved when the run goes on."""
    store = write_store(tmp_path / "lift.zarr")
    train(store, tmp_path / "whole")
    calibration = Trainer.calibration
    monkeypatch.setattr(Trainer, "calibration", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        train(store, tmp_path / "torn")
    assert not list((tmp_path / "torn").glob("step-*"))
    monkeypatch.setattr(Trainer, "calibration", calibration)
    train(store, tmp_path / "torn")
    for name in ("step-000009", "step-000010"):
        one, other = (
            load_checkpoint(tmp_path / run / name).card["sha256"] for run in ("whole", "torn")
        )
        assert one == other


def test_two_at_once_into_one_folder_are_told_apart(tmp_path: Path) -> None:
    store, out = write_store(tmp_path / "lift.zarr"), tmp_path / "out"
    with claimed(out), pytest.raises(OutputExistsError, match="another process is at work in"):
        train(store, out)
    train(store, out)
    assert not (out / LOCK_FILE).exists()


def test_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """With hardly any learning the weights stay those of the start; the scale is the data's own."""
    store, other = write_store(tmp_path / "lift.zarr"), write_store(tmp_path / "other.zarr", seed=1)
    start = {"start_from": tmp_path / "first", "learning_rate": 1e-12}
    train(store, tmp_path / "first")
    train(store, tmp_path / "second", **start)
    train(other, tmp_path / "third", **start)
    first, second, third = (load_checkpoint(tmp_path / n) for n in ("first", "second", "third"))
    for later in (second, third):
        assert later.card["recipe"]["started_from"] == first.card["sha256"]
        for one, two in zip(first.network.parameters(), later.network.parameters(), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=0)
    scales = [c.observation_normalizer.to_dict() for c in (first, second, third)]
    assert scales[0] == scales[1] != scales[2]
    with pytest.raises(CheckpointError, match=r"kind \(step_embed_dim 64 there, 16 now\)"):
        train(store, tmp_path / "fourth", **start, step_embed_dim=16)


def test_two_stores_are_one(tmp_path: Path) -> None:
    stores = [write_store(tmp_path / f"{seed}.zarr", seed) for seed in (0, 1)]
    keys = list(get_task("lift").observation_keys)
    first, second = (load_replay(store, keys) for store in stores)
    both = join([first, second])
    assert both.episode_ends.tolist() == [12, 30, 42, 60]
    np.testing.assert_array_equal(both.actions[30:], second.actions)
    for key in keys:
        np.testing.assert_array_equal(both.observations[key][:30], first.observations[key])
    assert both.attributes == {"stores": [first.attributes, second.attributes]}
    train(stores[0], tmp_path / "out", data=tuple(stores), keep=0)
    data = load_checkpoint(tmp_path / "out").card["training_data"]
    assert (data["episodes"], data["rows"], len(data["store"]["stores"])) == (4, 60, 2)
    wider = dataclasses.replace(second, actions=second.actions[:, :6])
    with pytest.raises(DatasetError, match=r"do not go together: .*'action', 7.* and .*, 6"):
        join([first, wider])


def test_models_that_are_past_are_said_not_to_be_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "lift.zarr")
    train(store, tmp_path / "out", keep=0)
    assert "Not kept" not in capsys.readouterr().out
    train(store, tmp_path / "out", keep=2)
    assert "Not kept, for they are past: the networks of steps 9." in capsys.readouterr().out


def test_more_models_than_tenths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--keep takes 0 to 10 models, got 11"):
        train(write_store(tmp_path / "lift.zarr"), tmp_path / "out", keep=11)


def test_how_the_network_sees_rotations(tmp_path: Path) -> None:
    """As quaternions (4 numbers) unless it is to be matrices (9); the card says which."""
    store = write_store(tmp_path / "lift.zarr")
    for name, options in (("matrix", {"rotations": "matrix"}), ("quaternion", {})):
        train(store, tmp_path / name, **options)
    matrix, quaternion = (load_checkpoint(tmp_path / name) for name in ("matrix", "quaternion"))
    assert matrix.config.quaternions == (3, 13)
    assert quaternion.config.quaternions == ()
    assert matrix.network.global_cond_dim == quaternion.network.global_cond_dim + 2 * 2 * 5
    keys = get_task("lift").observation_keys
    row = {key: np.full(size, 0.3, dtype=np.float32) for key, size in keys.items()}
    turned = {**row, "robot0_eef_quat": -row["robot0_eef_quat"]}
    for made, alike in ((matrix, True), (quaternion, False)):
        policy = DiffusionPolicy(made)
        actions = []
        for observation in (row, turned):
            policy.reset(0)
            actions.append(policy.act(observation))
        assert np.array_equal(*actions) == alike
    with pytest.raises(
        CheckpointError, match="--rotations quaternion, the default, can be written"
    ):
        to_robomimic(matrix)
    with pytest.raises(ValueError, match="rotations must be one of 'matrix', 'quaternion'"):
        train(store, tmp_path / "other", rotations="euler")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "gpu"], r"--device must be auto or one that torch can use .*; got 'gpu'"),
        (["--device", "cuda:77"], r"--device must be auto or one .*; got 'cuda:77'"),
        (["--threads", "0"], r"--threads must be 1 or more, got 0"),
        (["--seed", "-1"], r"--seed must be from 0 to 2\^64 - 1, got -1"),
        (["--seed", str(2**64)], r"--seed must be from 0 to 2\^64 - 1, got 18446744073709551616"),
        (["--steps", "0"], r"--steps must be a whole number from 1 on, got 0"),
        (["--down-dims", "0"], r"each of --down-dims must be a whole number from 1 on, got 0"),
        (["--down-dims", "-8", "16"], r"each of --down-dims must be a whole .* on, got -8"),
        (["--down-dims", "7"], r"--down-dims must be multiples of n_groups=8, got \(7,\)"),
        (["--down-dims", *"88888"], r"5 resolutions leave one action of 16, whose channels must"),
        (["--transformer", *"128", "--down-dims", "8"], r"--down-dims and .* are a U-Net's"),
        (["--transformer", *"128", "--step-embed-dim", "8"], r"--down-dims and .* are a U-Net's"),
        (["--transformer", *"138"], r"a transformer's n_emb must be even and a multiple of n_head"),
        (["--batch-size", "0"], r"--batch-size must be a whole number from 1 on, got 0"),
        (["--learning-rate", "-1"], r"--learning-rate must be"),
        (["--action-horizon", "16"], r"--action-horizon must be 1 to 15, got 16"),
        (["--out", "afile"], r"the output must be a folder, but afile is a file"),
        (["--out", "afile/x"], r"afile/x/card.json could not be written"),
        (["--out", "/proc/x"], r"/proc/x/card.json could not be written"),
    ],
)
def test_a_mistake_is_one_sentence(refused, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("mine")
    store = write_store(tmp_path / "lift.zarr")
    refused("error: " + message, "train", "--data", store, *words)
    assert (tmp_path / "afile").read_text() == "mine"


def test_demonstrations_of_another_task_are_refused(tmp_path: Path) -> None:
    """Those of Square and Can have the same shapes. A stranger's environment may be any task's."""
    store = write_store(tmp_path / "lift.zarr")
    made = zarr.open_group(str(store), mode="a")
    made.attrs["env_args"] = {"env_name": "PickPlaceCan"}
    with pytest.raises(InputError, match=r"--task lift: .*lift.zarr holds demonstrations of can"):
        train(store, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for name in ("Lift", "Lift_D1"):
        made.attrs["env_args"] = {"env_name": name}
        train(store, tmp_path / name, keep=0)


def test_what_differs_from_the_run_that_is_there_is_named(tmp_path: Path) -> None:
    store, other = write_store(tmp_path / "lift.zarr"), write_store(tmp_path / "b.zarr", seed=1)
    train(store, tmp_path / "out", keep=0)
    for changes, named in (
        ({"steps": 20}, "(steps 10 there, 20 now)"),
        (
            {"seed": 3, "step_embed_dim": 16},
            "(step_embed_dim 64 there, 16 now; seed 0 there, 3 now)",
        ),
        ({"data": (other,)}, "(other demonstrations)"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(named) + ".*--start-from .*out"):
            train(store, tmp_path / "out", **{"keep": 0} | changes)
    state = tmp_path / "out" / "train_state.pt"
    whole = state.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"notes"):
        state.write_bytes(damaged)
        with pytest.raises(
            CheckpointError, match=r"train_state.pt is damaged.*choose another --out"
        ):
            train(store, tmp_path / "out", keep=0)


SMALL = ("--steps", 2, "--batch-size", 4, "--down-dims", 8, 16, "--diffusion-steps", 4,
         "--threads", 1)  # fmt: skip


def remarks(errors: str) -> str:
    """What was said on stderr besides the progress."""
    return "".join(
        line for line in errors.splitlines(True) if not line.startswith(("step ", "calibrating"))
    )


def test_one_zip_file_trains_as_the_folder_does(tmp_path: Path, run) -> None:
    store = write_store(tmp_path / "lift.zarr")
    packed = shutil.make_archive(str(store), "zip", store)
    for name, data in (("folder", store), ("file", packed)):
        status, _, errors = run("train", "--data", data, "--out", tmp_path / name, *SMALL)
        assert (status, remarks(errors)) == (0, "")
    one, other = (load_checkpoint(tmp_path / name).card["sha256"] for name in ("folder", "file"))
    assert one == other


def test_a_store_that_is_not_whole_is_refused_in_a_line(tmp_path: Path, run) -> None:
    """Of ours and of others; where it cannot be told, training says so and goes on."""
    keys, marks = get_task("lift").observation_keys, np.zeros(30, bool)
    rng = np.random.default_rng(0)
    arrays = {f"data/{key}": rng.normal(size=(30, size)) for key, size in keys.items()}
    arrays |= {"data/action": rng.uniform(-1, 1, size=(30, 7)), "data/interrupted": marks}
    write_zarr(tmp_path / "ours.zarr", {**arrays, "meta/episode_ends": np.array([12, 30])}, {})
    theirs = write_store(tmp_path / "theirs.zarr")
    zarr.open_group(str(theirs), mode="r+")["data/interrupted"] = marks
    for file in (theirs / "data/interrupted").rglob("0"):  # where zarr 2 wrote it
        file.unlink()
    for file in theirs.rglob(".zarray"):
        told = json.loads(file.read_text())
        file.write_text(json.dumps({"dimension_separator": ".", **told}))
    status, _, errors = run("train", "--data", theirs, "--out", tmp_path / "a", *SMALL)
    assert status == 0
    assert re.fullmatch(
        r"warning: \S+theirs\.zarr: 1 of 1 chunks of data/interr.*\n", remarks(errors)
    )
    for path in (tmp_path / "ours.zarr", theirs):
        for file in [f for f in (path / "data/object").rglob("*") if f.is_file()]:
            if file.name[0].isdigit():
                file.unlink()
        status, said, errors = run("train", "--data", path, "--out", tmp_path / "b", *SMALL)
        assert (status, said) == (2, "")
        assert re.fullmatch(rf"error: {path}: 1 of 1 chunks of data/object is missing.*\n", errors)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("env_args", ['{"env_name": "Lift"}', "not JSON", {"env_name": "Lift"}, 3])
def test_what_a_store_says_of_its_environment_may_be_text(tmp_path: Path, env_args: object) -> None:
    store = write_store(tmp_path / "lift.zarr")
    zarr.open_group(str(store), mode="a").attrs["env_args"] = env_args
    train(store, tmp_path / "out", steps=2, keep=0)


def test_a_model_of_no_step_is_not_kept(tmp_path: Path) -> None:
    train(write_store(tmp_path / "lift.zarr"), tmp_path / "out", steps=4, keep=10)
    names = sorted(path.name for path in (tmp_path / "out").glob("step-*"))
    assert names == [f"step-{step:06d}" for step in (1, 2, 3, 4)]


def test_another_task_s_store_is_refused_where_it_says_so_in_text(tmp_path: Path) -> None:
    store = write_store(tmp_path / "lift.zarr")
    zarr.open_group(str(store), mode="a").attrs["env_args"] = '{"env_name": "PickPlaceCan"}'
    with pytest.raises(InputError, match=r"--task lift: .* holds demonstrations of can"):
        train(store, tmp_path / "out", steps=2)


def test_how_often_a_policy_looks_is_chosen_and_is_no_matter_of_its_weights(
    tmp_path: Path,
) -> None:
    store = write_store(tmp_path / "lift.zarr")
    train(store, tmp_path / "often", keep=0, action_horizon=4)
    assert load_checkpoint(tmp_path / "often").config.horizons == (2, 4, 16)
    train(store, tmp_path / "on", keep=0, start_from=tmp_path / "often")
    made = load_checkpoint(tmp_path / "on")
    assert made.config.horizons == (2, 8, 16)
    assert made.card["recipe"]["started_from"] == load_checkpoint(tmp_path / "often").card["sha256"]
    with pytest.raises(InputError, match="--action-horizon must be 1 to 15, got 0"):
        train(store, tmp_path / "never", action_horizon=0)


def test_what_others_made_is_not_taken_for_a_run_s(tmp_path: Path) -> None:
    store, out = write_store(tmp_path / "lift.zarr"), tmp_path / "out"
    train(store, out / "step-ablation", steps=1)
    train(store, out / "step-000003", steps=1)
    with pytest.raises(OutputExistsError, match=r"networks \(step-000003\) and no train_state"):
        train(store, out, steps=1)
    (out / "step-000003").rename(out / "third")
    train(store, out, steps=1)
    assert (out / "step-ablation" / "card.json").exists()
    with pytest.raises(OutputExistsError, match=r"lift\.zarr is a zarr store; choose another --"):
        train(store, store, steps=1)
    (tmp_path / "lerobot").mkdir()
    (out / "third" / "model.safetensors").rename(tmp_path / "lerobot" / "model.safetensors")
    with pytest.raises(OutputExistsError, match=r"hold a training; .*\(model.safetensors\)"):
        train(store, tmp_path / "lerobot", steps=1)


def test_stopped_while_it_calibrates_it_says_how_to_go_on(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    store, out = write_store(tmp_path / "lift.zarr"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "calibration", lambda self, progress: _interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(store, out, keep=0)
    assert "Stopped at step 10; the same command goes on." in capsys.readouterr().out
    train(store, out, keep=0)
    assert (out / "card.json").exists()


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_nothing_is_left_of_a_run_that_is_started_over(tmp_path: Path, monkeypatch, capsys) -> None:
    store, out = write_store(tmp_path / "lift.zarr"), tmp_path / "out"

    def stopped_after(step: int) -> None:
        take = Trainer.train_step

        def until(self: Trainer) -> float:
            if self.step == step:
                raise KeyboardInterrupt
            return take(self)

        monkeypatch.setattr(Trainer, "train_step", until)

    stopped_after(9)
    with pytest.raises(KeyboardInterrupt):
        train(store, out)
    assert (out / "step-000009").exists()
    assert "step 9; the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    stopped_after(3)
    with pytest.raises(KeyboardInterrupt):
        train(store, out, seed=1, resume=False)
    assert not list(out.glob("step-*"))
    assert "the same command without --no-resume goes on" in capsys.readouterr().out
