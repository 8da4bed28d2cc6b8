"""What is wrong in a checkpoint's card is named: the file, the entry, what came."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from asd_policy import CheckpointError, DiffusionPolicy, Schedule
from asd_policy.errors import InputError
from asd_policy.policy import PolicyConfig, load_checkpoint, save_checkpoint
from asd_policy.samplers.calibration import Calibration
from reference.tiny import tiny_checkpoint

CALIBRATION = {
    "chunks": 1,
    "slope_cross": [1.0] * 10,
    "slope_square": [1.0] * 10,
    "accepted": [1] * 10,
    "decided": [2] * 10,
}
WRONG = [
    (("calibration",), "foo", r"calibration must be a mapping, got 'foo'"),
    (("calibration",), {"chunks": 1}, r"calibration: missing entry 'slope_cross'"),
    (("calibration",), CALIBRATION | {"accepted": [1]}, r"calibration: .*"),
    (("calibration",), CALIBRATION | {"decided": "foo"}, r"calibration: .*"),
    (("task",), 3, r"task must be text, got 3"),
    (("sha256",), 3, r"sha256 must be text, got 3"),
    (("policy",), "foo", r"policy must be a mapping, got 'foo'"),
    (("schedule",), [], r"schedule must be a mapping, got \[\]"),
    (
        ("policy", "action_dim"),
        "x",
        r"policy: action_dim must be a whole number from 1 on, got 'x'",
    ),
    (("policy", "n_groups"), True, r"policy: n_groups must be a whole number from 1 on, got True"),
    (("policy", "kernel_size"), 2.5, r"policy: kernel_size must be .*, got 2\.5"),
    (("policy", "down_dims"), ["x"], r"policy: each of down_dims must be .*, got 'x'"),
    (("policy", "quaternions"), [-1], r"policy: each of quaternions must be .* 0 on, got -1"),
    (("policy", "cond_predict_scale"), "x", r"policy: cond_predict_scale must be one of .*'x'"),
    (
        ("policy", "action_dims"),
        3,
        r"policy: entries of a policy are .*; got 'action_dims'; did you mean 'action_dim'\?",
    ),
    (("schedule", "beta_begin"), 3, r"schedule: unknown schedule fields: beta_begin"),
    (("schedule", "clip_range"), "x", r"schedule: clip_range must be a number, got 'x'"),
    (("schedule", "eta"), "x", r"schedule: eta must be a number, got 'x'"),
]


def test_a_norm_of_single_numbers_is_no_matter_of_the_card() -> None:
    """Those that are there load; `train` makes none: PyTorch refuses one row of it in training."""
    made = PolicyConfig({"a": 2}, 2, down_dims=(32, 32, 32, 32, 8), step_embed_dim=8, n_groups=8)
    assert PolicyConfig.from_dict(made.to_dict()) == made


@pytest.mark.parametrize(("place", "value", "message"), WRONG)
def test_a_wrong_entry_is_named(tmp_path: Path, place, value, message) -> None:
    folder = save_checkpoint(tmp_path / "toy", tiny_checkpoint())
    card = json.loads((folder / "card.json").read_text())
    (card if len(place) == 1 else card[place[0]])[place[-1]] = value
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=rf"^.*card\.json: {message}$"):
        DiffusionPolicy.load(folder)


def test_a_missing_entry_of_the_policy_is_named(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "toy", tiny_checkpoint())
    card = json.loads((folder / "card.json").read_text())
    del card["policy"]["action_dim"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=r"card\.json: policy: missing entry 'action_dim'$"):
        load_checkpoint(folder)


def test_a_good_calibration_is_read(tmp_path: Path) -> None:
    made = tiny_checkpoint()
    made.card["calibration"] = CALIBRATION
    policy = DiffusionPolicy.load(save_checkpoint(tmp_path / "toy", made))
    assert (
        policy.calibration.to_dict() == CALIBRATION == Calibration.from_dict(CALIBRATION).to_dict()
    )


def test_numbers_of_other_libraries_are_taken_and_written_as_ints() -> None:
    made = PolicyConfig({"x": 3}, np.int64(2), down_dims=[np.int32(8)], n_groups=np.uint8(4))
    assert json.loads(json.dumps(made.to_dict()))["down_dims"] == [8]
    assert PolicyConfig.from_dict(made.to_dict()) == made


def test_an_option_that_a_schedule_has_not() -> None:
    with pytest.raises(InputError, match="got 'beta_strat'; did you mean 'beta_start'"):
        Schedule.ddpm(10, beta_strat=1e-4)


@pytest.mark.parametrize("folder", [None, 3, ["lift"]])
def test_what_names_no_folder(folder) -> None:
    with pytest.raises(CheckpointError, match=r"expected the folder of a checkpoint, or the name"):
        DiffusionPolicy.load(folder)
