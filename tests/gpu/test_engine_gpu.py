"""The graph engine on a CUDA device: captured rounds and steps are the eager ones."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from asd_policy import Calibration, NonFiniteError, SamplerConfig, Schedule
from asd_policy.checkpoints import shipped
from asd_policy.denoiser import Network
from asd_policy.drafts import DRAFTS
from asd_policy.engine import Engine, cuda_graph, make_engine
from asd_policy.engine.kernels import triton as triton_kernels
from asd_policy.errors import EngineError
from asd_policy.networks.prepare import prepare
from asd_policy.policy import load_checkpoint
from asd_policy.sampler import Sampler
from asd_policy.samplers.result import Noise, Stats, draw_noise
from reference.chains import bulk_noise, draw
from reference.mixture import Mixture

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DIM, STEPS = 6, 30
SCHEDULE = Schedule.ddpm(STEPS)
KERNELS = ["torch", *(["triton"] if triton_kernels.available() is None else [])]


def mixture(schedule: Schedule = SCHEDULE) -> Network:
    """ε of the mixture, from tables that lie on the device."""
    target, bars = Mixture(DIM), schedule.alphas_cumprod.to("cuda", torch.float64)
    target.means, target.scales = target.means.cuda(), target.scales.cuda()
    target._log_weights = target._log_weights.cuda()

    def predict(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        bar = bars[timesteps].unsqueeze(1)
        return (x - bar.sqrt() * target.x0(x, bar)) / (1 - bar).sqrt()

    return predict


def noise_of(batch: int, seed: int, steps: int = STEPS, dim: int = DIM) -> Noise:
    noise = bulk_noise(batch, steps, dim, seed)
    return Noise(*(t.cuda() for t in (noise.initial, noise.steps, noise.log_uniform)))


def engines(kernels: str, network: Network, schedule: Schedule = SCHEDULE) -> tuple[Engine, Engine]:
    """The captured one and the eager one."""
    captured, eager = (
        make_engine(name, network, schedule, (DIM,), "cuda", torch.float64, kernels)
        for name, kernels in (("cuda_graph", kernels), ("eager", "torch"))
    )
    return captured, eager


def assert_same(one: tuple[Tensor, Stats], other: tuple[Tensor, Stats]) -> None:
    torch.testing.assert_close(one[0], other[0], rtol=0, atol=1e-9)
    for name in ("calls", "evaluations", "accepted", "decided"):
        assert torch.equal(getattr(one[1], name), getattr(other[1], name)), name


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("window", [7, 20])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("draft", DRAFTS)
def test_captured_rounds_are_the_eager_ones(
    draft: str, calls: int, window: int, kernels: str
) -> None:
    """The same samples, calls and decisions for chunks in a row, in two sizes of batch; of the
    larger window in rounds of two widths."""
    captured, eager = engines(kernels, mixture())
    config = SamplerConfig("asd", draft, calls, window)
    learned = Calibration(), Calibration()
    for seed, batch in ((0, 3), (1, 1), (2, 3)):
        noise = noise_of(batch, seed)
        assert_same(
            draw(config, captured, noise, None, learned[0]),
            draw(config, eager, noise, None, learned[1]),
        )
    assert captured.name == "cuda_graph"
    captured.close()


@pytest.mark.skipif(not cuda_graph.can_skip(), reason="needs conditional nodes, PyTorch 2.13")
@pytest.mark.parametrize("kernels", KERNELS)
def test_rounds_that_are_left_out_change_nothing(
    kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditional nodes; also where the host would otherwise have paused."""
    monkeypatch.setattr(cuda_graph, "SKIPPED", True)
    captured, eager = engines(kernels, mixture())
    assert captured._recorder.skips  # type: ignore[attr-defined]
    config, learned = SamplerConfig("asd", window=7), (Calibration(), Calibration())
    for seed, batch in ((0, 3), (1, 1), (2, 3)):
        noise = noise_of(batch, seed)
        assert_same(
            draw(config, captured, noise, None, learned[0]),
            draw(config, eager, noise, None, learned[1]),
        )
    assert captured.name == "cuda_graph"
    captured.close()


def test_noise_drawn_ahead_is_the_same() -> None:
    place = mixture(), SCHEDULE, (DIM,)
    made = Sampler(*place, SamplerConfig("asd", window=7), engine="cuda_graph", device="cuda")
    ours, plain = (torch.Generator("cuda").manual_seed(3) for _ in range(2))
    for _ in range(3):
        made.ahead([ours])
        found, expected = made.noise([ours]), draw_noise([plain], STEPS, made.engine.like)
        for one, other in zip(vars(found).values(), vars(expected).values(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("eta", [None, 0.0])
def test_captured_steps_are_the_eager_ones(eta: float | None, kernels: str) -> None:
    schedule = SCHEDULE if eta is None else SCHEDULE.ddim(10, eta)
    captured, eager = engines(kernels, mixture(schedule), schedule)
    for seed in range(2):
        noise = noise_of(4, seed, schedule.num_steps)
        x, stats = captured.sequential(noise, None)
        torch.testing.assert_close(x, eager.sequential(noise, None)[0], rtol=0, atol=1e-9)
        assert stats.calls.tolist() == [schedule.num_steps] * 4


@pytest.fixture
def lift() -> Iterator[tuple[Engine, Tensor]]:
    """An engine of the shipped Lift policy in float32 with conditions for three chains."""
    checkpoint = load_checkpoint(shipped("lift"))
    network = prepare(checkpoint.network.cuda(), checkpoint.schedule.timesteps, "fp32")
    shape = checkpoint.config.chunk_shape
    engine = make_engine("cuda_graph", network, checkpoint.schedule, shape, "cuda")
    generator = torch.Generator().manual_seed(0)
    cond = 2 * torch.rand(3, checkpoint.config.condition_dim, generator=generator) - 1
    yield engine, cond.cuda()
    engine.close()


def single(noise: Noise) -> Noise:
    return Noise(*(t.float() for t in (noise.initial, noise.steps, noise.log_uniform)))


def test_a_trained_network_is_drawn_alike_on_gpu_and_cpu(lift: tuple[Engine, Tensor]) -> None:
    """Rounding apart: sequential chunks agree, and so does the number of calls nearly."""
    engine, cond = lift
    checkpoint = load_checkpoint(shipped("lift"))
    network = prepare(checkpoint.network, checkpoint.schedule.timesteps, "fp32")
    host = make_engine("eager", network, checkpoint.schedule, checkpoint.config.chunk_shape)
    noise = single(noise_of(3, 0, 100, 112))
    there = Noise(noise.initial.cpu(), noise.steps.cpu(), noise.log_uniform.cpu())
    ours, theirs = engine.sequential(noise, cond)[0], host.sequential(there, cond.cpu())[0]
    torch.testing.assert_close(ours.cpu(), theirs, rtol=0, atol=5e-3)
    config = SamplerConfig("asd", window=32)
    (_, few), (_, many) = (
        draw(config, engine, noise, cond, Calibration()),
        draw(config, host, there, cond.cpu(), Calibration()),
    )
    assert (few.calls - many.calls).abs().max() <= 6, (few.calls, many.calls)


def test_threads_share_a_device(lift: tuple[Engine, Tensor]) -> None:
    """Two engines, and two threads on one of them: chunks are those drawn one after the other."""
    engine, cond = lift
    network = engine.source
    other = make_engine("cuda_graph", network, engine.schedule, engine.shape, "cuda")
    config, noise = SamplerConfig("asd", window=16), single(noise_of(3, 0, 100, 112))
    known = Calibration()
    draw(config, engine, noise, cond, known)
    known.frozen = True
    expected = draw(config, engine, noise, cond, known)[0]
    found: list[Tensor] = []

    def work(one: Engine) -> None:
        for _ in range(5):
            found.append(draw(config, one, noise, cond, known)[0])

    threads = [threading.Thread(target=work, args=(e,)) for e in (engine, engine, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for x in found:
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-3)
    other.close()


def test_a_nan_is_named() -> None:
    network = mixture()

    def broken(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        bad = ((timesteps == 6) & (cond[:, 0] == 1)).unsqueeze(1)
        return torch.where(bad, torch.nan, network(x, timesteps, None))

    cond = torch.arange(3.0, dtype=torch.float64, device="cuda").unsqueeze(1)
    for sampler in ("asd", "ddpm"):
        config = SamplerConfig(sampler, window=7)
        with pytest.raises(NonFiniteError, match=r"step 23 \(timestep 6\) of chain 1"):
            draw(config, engines("torch", broken)[0], noise_of(3, 0), cond, Calibration())


def test_a_capture_that_synchronizes_is_an_error_and_auto_goes_on() -> None:
    network = mixture()

    def waits(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert float(x.sum().item()) is not None
        return network(x, timesteps, None)

    config, noise = SamplerConfig("asd", window=7), noise_of(2, 0)
    with pytest.raises(EngineError, match=r"capturing .* as a CUDA graph failed"):
        draw(config, engines("torch", waits)[0], noise, None, Calibration())
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    auto = make_engine("auto", waits, SCHEDULE, (DIM,), "cuda", torch.float64, "torch")
    with pytest.warns(UserWarning, match="using the eager engine: capturing"):
        x, _ = draw(config, auto, noise, None, Calibration())
    assert auto.name == "eager"
    expected, _ = draw(config, engines("torch", network)[1], noise, None, Calibration())
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)


def test_out_of_memory_names_the_bucket_and_what_would_fit() -> None:
    def greedy(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        return x + torch.empty(len(x) * 2**34, dtype=torch.uint8, device="cuda")[:1]

    with pytest.raises(EngineError, match=r"out of GPU memory while capturing a round of 4 chains"):
        draw(
            SamplerConfig("asd", window=7), engines("torch", greedy)[0], noise_of(4, 0), None,
            Calibration(),
        )  # fmt: skip


def test_closing_releases_memory(lift: tuple[Engine, Tensor]) -> None:
    engine, cond = lift
    noise = single(noise_of(3, 0, 100, 112))
    draw(SamplerConfig("asd", window=32), engine, noise, cond, Calibration())
    assert sum(engine.bytes_by_bucket.values()) > 0
    held = torch.cuda.memory_allocated()
    engine.close()
    assert torch.cuda.memory_allocated() < held
