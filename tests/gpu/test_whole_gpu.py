"""Whole layers on a CUDA device: they are the network, and a call gives the same bits each time."""

from __future__ import annotations

import dataclasses
import threading

import pytest
import torch
from torch import Tensor

from asd_policy import Calibration, SamplerConfig
from asd_policy.checkpoints import shipped
from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaRecorder
from asd_policy.networks import ConditionalUnet1D, InferenceUnet1D, tiling, whole
from asd_policy.networks.prepare import prepare
from asd_policy.policy import load_checkpoint
from asd_policy.samplers.result import Noise
from reference import whole_cases
from reference.chains import bulk_noise, draw

REASON = "needs a CUDA device"
if torch.cuda.is_available():
    REASON = str(tiling.why_not(torch.device("cuda"), torch.float32) or "")
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON)
PRECISIONS = ("fp32", "tf32", "bf16")


@pytest.fixture(params=[False, True], ids=["apart", "overlapping"])
def launches(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("programmatic dependent launch needs compute capability 9.0")
    monkeypatch.setattr(whole, "PDL", request.param)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", whole_cases.CASES)
def test_whole_layers_are_the_network(name: str, precision: str, launches: None) -> None:
    case = dataclasses.replace(whole_cases.CASES[name], precision=precision)
    whole_cases.check(case, "cuda")


def large(precision: str) -> tuple[ConditionalUnet1D, InferenceUnet1D]:
    torch.manual_seed(0)
    network = ConditionalUnet1D(7, 46).cuda().requires_grad_(False)
    timesteps = torch.arange(99, -1, -1, device="cuda")
    return network, InferenceUnet1D(network, timesteps, precision, "whole")


def inputs(prepared: InferenceUnet1D, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator("cuda").manual_seed(rows)
    x = torch.randn(rows, 16, 7, generator=generator, device="cuda")
    cond = torch.randn(rows, 46, generator=generator, device="cuda")
    film = prepared.timestep_film[:1] + prepared.condition(cond, rows)
    return x, cond, film


@pytest.mark.parametrize("rows", [1, 2, 5, 32, 128, 1000])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_large_network_gives_the_same_bits_each_time(
    precision: str, rows: int, launches: None
) -> None:
    """Captured and launched, many times over; and close to PyTorch."""
    network, prepared = large(precision)
    x, cond, film = inputs(prepared, rows)
    with torch.no_grad():
        expected = network(x, torch.full((rows,), 99, device="cuda"), cond)
    out = torch.empty_like(x)
    recorder = CudaRecorder(torch.device("cuda"))
    replay, _ = recorder.record(lambda: out.copy_(prepared(x, film)), "a call")
    first = prepared(x, film)
    error = float((first - expected).abs().max() / expected.abs().max())
    assert error < {"fp32": 2e-3, "tf32": 0.02, "bf16": 0.1}[precision], error
    for _ in range(200):
        out.fill_(float("nan"))
        replay()
        assert torch.equal(out, first)


def test_streams_do_not_disturb_each_other() -> None:
    """Counters and partial sums belong to a call."""
    _, prepared = large("bf16")
    given = [inputs(prepared, rows) for rows in (3, 8)]
    expected = [prepared(x, film) for x, _, film in given]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def work(which: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(100):
                found = prepared(given[which][0], given[which][2])
                stream.synchronize()
                if not torch.equal(found, expected[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_chunks_of_a_captured_engine_are_those_of_the_other_form(launches: None) -> None:
    """Rounding apart; and closing gives back what was captured."""
    checkpoint = load_checkpoint(shipped("lift"))
    noise = bulk_noise(2, 100, 112, seed=0)
    noise = Noise(*(t.cuda().float() for t in (noise.initial, noise.steps, noise.log_uniform)))
    generator = torch.Generator().manual_seed(0)
    cond = (2 * torch.rand(2, checkpoint.config.condition_dim, generator=generator) - 1).cuda()
    found = {}
    for layers in ("fused", "whole"):
        network = prepare(
            checkpoint.network.cuda(), checkpoint.schedule.timesteps, "fp32", layers=layers
        )
        shape = checkpoint.config.chunk_shape
        engine = make_engine("cuda_graph", network, checkpoint.schedule, shape, "cuda")
        x, _ = engine.sequential(noise, cond)
        again, _ = engine.sequential(noise, cond)
        assert torch.equal(x, again)
        _, stats = draw(SamplerConfig("asd", window=16), engine, noise, cond, Calibration())
        held = torch.cuda.memory_allocated()
        engine.close()
        assert torch.cuda.memory_allocated() < held
        found[layers] = x, stats.calls
    torch.testing.assert_close(found["whole"][0], found["fused"][0], rtol=0, atol=5e-3)
    assert (found["whole"][1] - found["fused"][1]).abs().max() <= 6
