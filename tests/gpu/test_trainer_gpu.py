"""Training on a CUDA device: captured passes are the launched ones, and a checkpoint comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import Schedule
from asd_policy.training.trainer import TrainConfig, Trainer
from reference.tiny import tiny_config, tiny_replay

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def make(precision: str = "fp32", device: str = "cuda") -> Trainer:
    config = TrainConfig(60, 32, 3e-3, warmup_steps=4, precision=precision)
    return Trainer(tiny_replay(), tiny_config(), Schedule.ddpm(20), config, device)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_captured_steps_are_the_launched_ones(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, launched = make(precision), make(precision)
    ours = [captured.train_step() for _ in range(20)]
    monkeypatch.setattr(Trainer, "_captured", lambda self, first: self._gradients)
    theirs = [launched.train_step() for _ in range(20)]
    np.testing.assert_allclose(ours, theirs, rtol=0.02 if precision == "fp32" else 0.1)
    networks = captured.ema.network, launched.ema.network
    for a, b in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


def test_the_cpu_sees_the_same_batches() -> None:
    ours, theirs = make(), make(device="cpu")
    assert ours.train_step() == pytest.approx(theirs.train_step(), rel=1e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_another_gpu_learns_alike() -> None:
    ours, theirs = make(device="cuda:1"), make()
    for _ in range(10):
        assert ours.train_step() == pytest.approx(theirs.train_step(), rel=0.02)


def test_a_run_resumes_and_calibrates(tmp_path: Path) -> None:
    trainer = make()
    losses = [trainer.train_step() for _ in range(30)]
    trainer.save_state(tmp_path / "state.pt")
    again = make()
    again.load_state(tmp_path / "state.pt")
    losses += [again.train_step() for _ in range(30)]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    assert again.calibration()["chunks"] > 0
