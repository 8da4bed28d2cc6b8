"""Checkpoint folders: what is written comes back; what is damaged or unsafe is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from asd_policy import CheckpointError
from asd_policy.policy import (
    Checkpoint,
    DiffusionPolicy,
    load_checkpoint,
    save_checkpoint,
    update_card,
)
from reference.tiny import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "toy", tiny_checkpoint())


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps(card | changes))


def put_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Other weights with a card that vouches for them."""
    blob = save(weights)
    (folder / "model.safetensors").write_bytes(blob)
    edit(folder, sha256=hashlib.sha256(blob).hexdigest())


def refused(folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


def test_round_trip(folder: Path) -> None:
    made, read = tiny_checkpoint(), load_checkpoint(folder)
    assert read.config == made.config
    assert read.schedule.config == made.schedule.config
    assert read.card["task"] == "toy"
    for name in ("observation_normalizer", "action_normalizer"):
        assert getattr(read, name).to_dict() == getattr(made, name).to_dict()
    expected = made.network.state_dict()
    assert list(read.network.state_dict()) == list(expected)
    assert all(torch.equal(v, expected[k]) for k, v in read.network.state_dict().items())
    assert not read.network.training
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_the_card_says_what_the_policy_is(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    assert card["policy"]["observation_keys"] == [
        {"name": "object", "shape": [3]},
        {"name": "arm", "shape": [2]},
    ]
    assert card["policy"]["architecture"] == "ConditionalUnet1D"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert card["sha256"] == digest


def test_reported_entries_can_be_added_and_structure_cannot(folder: Path) -> None:
    update_card(folder, success={"rate": 0.97}, sha256="0", policy={})
    assert load_checkpoint(folder).card["success"] == {"rate": 0.97}
    assert load_checkpoint(folder).card["task"] == "toy"


def test_saving_a_loaded_checkpoint_changes_nothing(folder: Path, tmp_path: Path) -> None:
    again = save_checkpoint(tmp_path / "again", load_checkpoint(folder))
    for name in ("card.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


# ---- missing, damaged, unsafe -------------------------------------------------------------------


def test_missing_folder(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", r"no checkpoint at .*nothing: it has no card\.json")


@pytest.mark.parametrize("name", ["card.json", "model.safetensors"])
def test_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"it has no {name}")


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, r"changed or cut short: expected SHA-256 [0-9a-f]{64}, got [0-9a-f]{64}")


def test_tampered_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    refused(folder, "changed or cut short")


def test_a_card_without_a_hash_vouches_for_nothing(folder: Path) -> None:
    edit(folder, sha256=None)
    refused(folder, "sha256 must be text, got None")


def test_weights_that_are_not_safetensors(folder: Path) -> None:
    blob = b"not a tensor in sight"
    (folder / "model.safetensors").write_bytes(blob)
    edit(folder, sha256=hashlib.sha256(blob).hexdigest())
    refused(folder, "is not a safetensors file")


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["policy.pth", "policy.ckpt", "policy.pkl", "policy"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    mark, path = tmp_path / "it ran", tmp_path / name
    path.write_bytes(pickle.dumps(Bomb(mark)))
    refused(path, "expected a folder .* pickled files are never opened")
    with pytest.raises(CheckpointError, match="never opened"):
        DiffusionPolicy.load(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the pickle would have run"


def test_a_pickle_in_place_of_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "it ran"
    blob = pickle.dumps(Bomb(mark))
    (folder / "model.safetensors").write_bytes(blob)
    edit(folder, sha256=hashlib.sha256(blob).hexdigest())
    refused(folder, "is not a safetensors file")
    assert not mark.exists()


def test_one_table_of_all_that_does_not_fit(folder: Path) -> None:
    weights = tiny_checkpoint().network.state_dict()
    del weights["final_conv.1.bias"]
    weights["extra.weight"] = torch.zeros(2, 3)
    weights["final_conv.1.weight"] = torch.zeros(5, 5, 1)
    put_weights(folder, weights)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    rows = [line.split() for line in str(caught.value).splitlines()[1:]]
    assert rows == [
        ["name", "problem", "expected", "got"],
        ["final_conv.1.bias", "missing", "(2,)", "-"],
        ["extra.weight", "unexpected", "-", "(2,", "3)"],
        ["final_conv.1.weight", "wrong", "shape", "(2,", "8,", "1)", "(5,", "5,", "1)"],
    ]


def test_another_architecture_s_weights(folder: Path) -> None:
    put_weights(folder, tiny_checkpoint(down_dims=(8, 32)).network.state_dict())
    refused(folder, r"(?s)does not fit its card.*wrong shape")


# ---- the card -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "", "\x00\x01", "card"])
def test_invalid_json(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    refused(folder, r"card\.json is not valid JSON")


def test_a_card_that_is_not_text(folder: Path) -> None:
    (folder / "card.json").write_bytes(b"\xff\xfe\xfa")
    refused(folder, r"card\.json is not valid JSON")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_unknown_versions(folder: Path, version: object) -> None:
    edit(folder, format_version=version)
    refused(folder, f"expected format_version 1, got {version!r}")


@pytest.mark.parametrize("text", ["[]", "{}", "3", "null"])
def test_a_card_of_something_else(folder: Path, text: str) -> None:
    (folder / "card.json").write_text(text)
    refused(folder, r"card\.json is no card of an asd-policy checkpoint: expected a mapping with ")


@pytest.mark.parametrize("entry", ["policy", "schedule", "normalizer", "sha256"])
def test_missing_entries_are_named(folder: Path, entry: str) -> None:
    card = json.loads((folder / "card.json").read_text())
    del card[entry]
    (folder / "card.json").write_text(json.dumps(card))
    refused(folder, f"missing entry '{entry}'")


@pytest.mark.parametrize("junk", [3, "text", [], {}, None, [1], {"a": 1}])
@pytest.mark.parametrize("entry", ["policy", "schedule", "normalizer"])
def test_entries_that_make_no_sense_are_refused(folder: Path, entry: str, junk: object) -> None:
    if (entry, junk) == ("schedule", {}):
        pytest.skip("every field of a schedule has a default")
    edit(folder, **{entry: junk})
    refused(folder, r"card\.json")


@pytest.mark.parametrize(
    "change",
    [
        {"observation_keys": [{"name": "object", "shape": []}]},
        {"observation_keys": "object"},
        {"n_groups": 0},
        {"n_groups": 3},
        {"action_dim": -1},
        {"action_dim": "two"},
        {"down_dims": []},
        {"pred_horizon": 7},
        {"action_horizon": 0},
        {"step_embed_dim": 3},
        {"architecture": "Transformer"},
        {"quaternions": [2]},
        {"colour": "red"},
    ],
    ids=str,
)
def test_policies_that_make_no_sense_are_refused(folder: Path, change: dict) -> None:
    card = json.loads((folder / "card.json").read_text())
    edit(folder, policy=card["policy"] | change)
    refused(folder, r"card\.json")


def test_normalizer_of_another_size(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    bounds = {"low": [0.0] * 4, "high": [1.0] * 4}
    edit(folder, normalizer=card["normalizer"] | {"observation": bounds})
    refused(folder, "expected 5 observation normalizer columns, got 4")
    edit(folder, normalizer=card["normalizer"] | {"action": {"low": [0.0], "high": [0.0]}})
    refused(folder, "non-zero range")


# --- replaced as a whole, or not at all ---------------------------------------------------------


def state(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    made = load_checkpoint(folder)
    return made.card, made.network.state_dict()


def trained_on() -> Checkpoint:
    made = tiny_checkpoint()
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(1.0)
    return made


def test_numbers_of_numpy_and_paths_are_written_as_json_knows_them(folder: Path) -> None:
    made = tiny_checkpoint()
    made.card |= {
        "success": np.float32(0.5),
        "episodes": np.int64(200),
        "store": Path("demos/lift.zarr"),
        "rates": np.arange(3),
        "loss": torch.tensor(0.25),
    }
    save_checkpoint(folder, made)
    update_card(folder, seen=np.bool_(True))
    card = load_checkpoint(folder).card
    assert (card["success"], card["episodes"], card["seen"]) == (0.5, 200, True)
    assert (card["store"], card["rates"], card["loss"]) == ("demos/lift.zarr", [0, 1, 2], 0.25)


@pytest.mark.parametrize("entry", [object(), {1, 2}, {(1, 2): 3}, lambda: 0])
def test_a_card_that_is_no_json_leaves_the_old_checkpoint(folder: Path, entry: object) -> None:
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = trained_on()
    made.card["note"] = entry
    with pytest.raises(CheckpointError, match="the card cannot be written as JSON"):
        save_checkpoint(folder, made)
    with pytest.raises(CheckpointError, match="the card cannot be written as JSON"):
        update_card(folder, note=entry)
    with pytest.raises(CheckpointError, match="the card cannot be written as JSON"):
        save_checkpoint(folder.parent / "new", made)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert not (folder.parent / "new").exists()


class Killed(BaseException):
    pass


@pytest.mark.parametrize("there", [True, False], ids=["over another", "the first"])
@pytest.mark.parametrize("survived", range(6))
def test_a_kill_at_any_write_leaves_the_old_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int, there: bool
) -> None:
    """Each file opened, synchronised or put in place counts; the process ends at one of them."""
    folder, new = tmp_path / "toy", trained_on()
    if there:
        save_checkpoint(folder, tiny_checkpoint())
    left = iter([None] * survived)

    def mortal(function):  # type: ignore[no-untyped-def]
        def call(*args: object, **kwargs: object) -> object:
            if next(left, Killed) is Killed:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("asd_policy.policy.checkpoint.os.fsync", mortal(os.fsync))
        patch.setattr(Path, "replace", mortal(Path.replace))
        try:
            save_checkpoint(folder, new)
        except Killed:
            finished = False
        else:
            finished = True
    assert finished is (survived >= 4)  # two files, each synchronised and put in place
    if not there and survived < 3:
        with pytest.raises(CheckpointError, match=r"no checkpoint at .*toy: it has no"):
            load_checkpoint(folder)
    else:
        weights = state(folder)[1]
        expected = (new if survived >= 3 else tiny_checkpoint()).network.state_dict()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        update_card(folder, seen=1)  # finishes what was begun
        assert load_checkpoint(folder).card["seen"] == 1
    save_checkpoint(folder, new)
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "model.safetensors"]
    load_checkpoint(folder)


def test_a_wrapped_network_is_saved_as_what_was_wrapped(tmp_path: Path) -> None:
    plain = tiny_checkpoint().network
    compiled_inside = tiny_checkpoint().network
    compiled_inside.final_conv = torch.compile(compiled_inside.final_conv)
    for number, network in enumerate(
        (torch.compile(plain), torch.nn.DataParallel(plain), compiled_inside,
         torch.nn.DataParallel(torch.compile(plain)))
    ):  # fmt: skip
        folder = tmp_path / str(number)
        save_checkpoint(folder, replace(tiny_checkpoint(), network=network))
        assert list(state(folder)[1]) == list(tiny_checkpoint().network.state_dict())


def test_another_network_than_the_config_s_is_refused_before_anything_is_written(
    folder: Path,
) -> None:
    before = state(folder)[0]
    other = replace(tiny_checkpoint(), network=torch.nn.Linear(2, 2))
    with pytest.raises(
        CheckpointError, match=r"(?s)not the one that the config describes:.*weight"
    ):
        save_checkpoint(folder, other)
    assert state(folder)[0] == before


def test_a_folder_may_be_named_like_a_pickled_file(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "mine.ckpt", tiny_checkpoint())
    load_checkpoint(tmp_path / "mine.ckpt")
