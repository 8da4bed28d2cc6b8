"""Checkpoints that are being saved while they are read, and those that could not be read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from asd_policy import CheckpointError
from asd_policy.errors import OutputError
from asd_policy.policy import checkpoint as module
from asd_policy.policy import load_checkpoint, save_checkpoint, update_card
from reference.tiny import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_checkpoint(tmp_path / "toy", tiny_checkpoint())


def test_a_save_between_two_looks_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card was of the last save, and the weights are of this one."""
    read, saves = module._weights, []

    def reading(path: Path, expected: str) -> dict[str, torch.Tensor]:
        if not saves:
            saves.append(1)
            made = tiny_checkpoint()
            with torch.no_grad():
                next(made.network.parameters()).add_(1.0)
            save_checkpoint(folder, made)
        return read(path, expected)

    monkeypatch.setattr(module, "_weights", reading)
    before = next(tiny_checkpoint().network.parameters())
    after = next(load_checkpoint(folder).network.parameters())
    torch.testing.assert_close(after, before + 1.0)
    (folder / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(CheckpointError, match="was changed or cut short"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"calibration": {"chunks": 4}}, "calibration: missing entry 'slope_cross'"),
        ({"calibration": "of 7 steps"}, r"calibration: .* is for 7 steps, the schedule has 10"),
        ({"note": float("nan")}, "the card cannot be written as JSON"),
        ({"normalizer": 4}, "expected 5 observation normalizer columns, got 4"),
        ({"quaternions": (0,)}, r"quaternions at \(\) of an observation .* got \(0,\) and \(\)"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(folder: Path, change: dict, message: str) -> None:
    made, there = tiny_checkpoint(10), files(folder)
    if change.get("calibration") == "of 7 steps":
        steps = {name: [1.0] * 7 for name in ("slope_cross", "slope_square", "accepted", "decided")}
        change = {"calibration": {"chunks": 4, **steps}}
    if "normalizer" in change:
        normalizer = made.observation_normalizer
        normalizer.low, normalizer.high = normalizer.low[:4], normalizer.high[:4]
        change = {}
    if "quaternions" in change:  # the network would see another observation than once it is loaded
        made.observation_normalizer.quaternions = change.pop("quaternions")
    made.card.update(change)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(folder, made)
    assert files(folder) == there


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_calibration_that_could_not_be_loaded_is_not_put_into_a_card(folder: Path) -> None:
    there = files(folder)
    with pytest.raises(CheckpointError, match="calibration: missing entry 'slope_cross'"):
        update_card(folder, calibration={"chunks": 4})
    with pytest.raises(CheckpointError, match="cannot be written as JSON: note: "):
        update_card(folder, note=float("nan"))
    assert files(folder) == there


def test_a_card_without_its_chain_is_named_when_it_is_added_to(folder: Path) -> None:
    card = json.loads((folder / "card.json").read_text())
    del card["schedule"]
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="missing entry 'schedule'"):
        update_card(folder, note="x")


@pytest.mark.parametrize("room", [1_000, 90_000])
def test_a_full_disk_is_left_as_it_was(folder: Path, room: int) -> None:
    """Also by weights that were written whole where their card was not."""
    resource = pytest.importorskip("resource")
    made, there = tiny_checkpoint(), files(folder)
    made.card["note"] = "x" * 100_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OutputError, match="could not be written: File too large"):
            save_checkpoint(folder, made)
        with pytest.raises(OutputError, match="could not be written: File too large"):
            update_card(folder, note=made.card["note"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(folder) == there
