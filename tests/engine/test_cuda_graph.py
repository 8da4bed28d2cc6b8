"""The graph engine's logic, with a stand-in for capture. On a device: tests/gpu."""

from __future__ import annotations

import gc
import warnings
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from asd_policy import Calibration, NonFiniteError, Sampler, SamplerConfig, Schedule
from asd_policy.chains import Chains
from asd_policy.denoiser import Denoiser
from asd_policy.drafts import DRAFTS, Form
from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.engine.kernels import make_kernels
from asd_policy.errors import EngineError
from asd_policy.networks import ConditionalUnet1D
from asd_policy.networks.prepare import prepare
from asd_policy.samplers.acceptance import Acceptance
from asd_policy.samplers.asd import AutospeculativeDecoding
from reference.chains import bulk_noise, draw
from reference.mixture import Mixture
from reference.recorder import HostRecorder, Launching

DIM, STEPS = 6, 30
SCHEDULE = Schedule.ddpm(STEPS)
NETWORK = Mixture(DIM).network(SCHEDULE)


def graph_engine(network=NETWORK, schedule: Schedule = SCHEDULE) -> CudaGraphEngine:  # type: ignore[no-untyped-def]
    return CudaGraphEngine(
        network, schedule, (DIM,), dtype=torch.float64, recorder=HostRecorder(), kernels="torch"
    )


def slopes(frozen: bool) -> Calibration:
    row = [1.0] * STEPS
    known = {"chunks": 1, "slope_cross": [0.5] * STEPS, "slope_square": row}
    calibration = Calibration.from_dict({**known, "accepted": row, "decided": row})
    calibration.frozen = frozen
    return calibration


@pytest.mark.parametrize("kernels", ["torch", "native"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("draft", DRAFTS)
def test_static_rounds_are_the_eager_ones(
    draft: str, calls: int, frozen: bool, kernels: str
) -> None:
    """The same samples, calls and decisions for three chunks in a row, in two sizes of batch."""
    static = CudaGraphEngine(
        NETWORK, SCHEDULE, (DIM,), dtype=torch.float64, recorder=HostRecorder(), kernels=kernels
    )
    eager = make_engine("eager", NETWORK, SCHEDULE, (DIM,), dtype=torch.float64, kernels="torch")
    config = SamplerConfig("asd", draft, calls, 7)
    learned = slopes(frozen), slopes(frozen)
    for seed, batch in ((0, 3), (1, 1), (2, 3)):
        noise = bulk_noise(batch, STEPS, DIM, seed)
        (x, stats), (expected, costs) = (
            draw(config, engine, noise, None, calibration)
            for engine, calibration in zip((static, eager), learned, strict=True)
        )
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
        for name in ("calls", "evaluations", "accepted", "decided"):
            assert torch.equal(getattr(stats, name), getattr(costs, name)), name
    torch.testing.assert_close(learned[0].slopes(STEPS), learned[1].slopes(STEPS))


LOOKS = {
    "item": lambda x, t: x.sum().item(),
    "is_nonzero": lambda x, t: bool((t < 0).any()),
    "index": lambda x, t: x[t > 3],
    "nonzero": lambda x, t: (t > 3).nonzero(),
    "lift_fresh": lambda x, t: torch.tensor([5]),
    "equal": lambda x, t: torch.equal(x, x),
}  # fmt: skip


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_network_that_waits_for_the_host_is_not_captured(look: str, sampler: str) -> None:
    def waits(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        LOOKS[look](x, timesteps)
        return NETWORK(x, timesteps, cond)

    config, noise = SamplerConfig(sampler, window=7), bulk_noise(2, STEPS, DIM, 0)
    options = {"dtype": torch.float64, "recorder": HostRecorder(strict=True), "kernels": "torch"}
    engine = CudaGraphEngine(waits, SCHEDULE, (DIM,), **options)
    with pytest.raises(EngineError, match=f"capturing .* failed: .*{look}"):
        draw(config, engine, noise, None, slopes(True))


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("draft", DRAFTS)
def test_rounds_and_steps_wait_for_nothing(draft: str, calls: int, frozen: bool) -> None:
    recorder = HostRecorder(strict=True)
    options = {"dtype": torch.float64, "recorder": recorder, "kernels": "torch"}
    engine = CudaGraphEngine(NETWORK, SCHEDULE, (DIM,), **options)
    noise = bulk_noise(2, STEPS, DIM, 0)
    draw(SamplerConfig("asd", draft, calls, 7), engine, noise, None, slopes(frozen))
    engine.sequential(noise, None)
    assert "a round of 2 chains with window 7" in recorder.recorded
    assert "a sequential step of 2 chains" in recorder.recorded


@pytest.mark.parametrize("calls", [1, 2])
def test_rounds_are_no_wider_than_what_is_left(calls: int) -> None:
    """Near the end narrower graphs serve, and change nothing."""
    static = graph_engine()
    eager = make_engine("eager", NETWORK, SCHEDULE, (DIM,), dtype=torch.float64, kernels="torch")
    config = SamplerConfig("asd", calls_per_round=calls, window=20)
    for seed in range(3):
        noise = bulk_noise(2, STEPS, DIM, seed)
        (x, stats), (expected, costs) = (
            draw(config, engine, noise, None, slopes(True)) for engine in (static, eager)
        )
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
        assert torch.equal(stats.calls, costs.calls)
        assert torch.equal(stats.evaluations, costs.evaluations)
    recorder = static._recorder
    assert isinstance(recorder, HostRecorder)
    of = "a round of 2 chains with window "
    used = {int(what.removeprefix(of)): n for what, n in recorder.replays.items() if of in what}
    assert set(used) == {20, 10}
    assert min(used.values()) > 3
    assert list(static.bytes_by_bucket) == [f"{of}20", f"{of}10"]


@pytest.mark.parametrize(
    ("rejoin", "batch", "between"),
    [
        (False, 1, ["add", "index", "index", "add"]),
        (False, 3, ["add", "reshape", "index", "index", "index", "add"]),
        (True, 1, ["index", "index", "add"]),
        (True, 3, ["index", "index", "index", "add"]),
    ],
)
def test_what_a_round_launches_around_its_network(
    rejoin: bool, batch: int, between: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two kernels, and what finds the rows' steps and modulation; of several chains, what lays
    their rows side by side. Each is a launch in a captured round."""
    network = prepare(
        ConditionalUnet1D(3, 4, 8, (8, 16), n_groups=2).requires_grad_(False), SCHEDULE.timesteps
    )
    like = torch.zeros(batch, 12)
    denoiser = Denoiser(network, SCHEDULE, (4, 3), torch.zeros(batch, 4), like)
    chains = Chains(SCHEDULE, batch, 12, 8, like, rejoin)
    counted, kernels, hidden = Launching(), make_kernels("torch"), []

    def alone(work, name):  # type: ignore[no-untyped-def]
        def called(*args, **options):  # type: ignore[no-untyped-def]
            hidden.append(name)
            with _disable_current_modes():
                out = work(*args, **options)
                return tuple(t.contiguous() for t in out) if isinstance(out, tuple) else out

        return called

    names = ("propose", "verify", "walk", "settle")
    known = SimpleNamespace(**{name: alone(getattr(kernels, name), name) for name in names})
    trunk = network.unet.trunk
    monkeypatch.setattr(trunk, "forward", alone(trunk.forward, "network"))
    run = AutospeculativeDecoding(denoiser, chains, Form("secant", rejoin=rejoin), known)
    with torch.inference_mode():
        run.round(None)  # as before a capture
        hidden.clear()
        with counted:
            run.round(None)
    first, last = ("walk", "settle") if rejoin else ("propose", "verify")
    assert hidden == [first, "network", last]
    assert counted.names == between


@pytest.mark.parametrize("eta", [None, 0.0])
def test_captured_steps_are_the_eager_ones(eta: float | None) -> None:
    schedule = SCHEDULE if eta is None else SCHEDULE.ddim(10, eta)
    network = Mixture(DIM).network(schedule)
    for seed in range(2):
        noise = bulk_noise(4, schedule.num_steps, DIM, seed)
        static = graph_engine(network, schedule)
        expected, _ = make_engine(
            "eager", network, schedule, (DIM,), dtype=torch.float64
        ).sequential(noise, None)
        x, stats = static.sequential(noise, None)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
        assert stats.calls.tolist() == [schedule.num_steps] * 4


@pytest.mark.parametrize(("chance", "unneeded"), [(0.0, 1), (1.0, 0)])
def test_a_round_is_captured_once_and_one_is_ahead(
    chance: float, unneeded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds are launched ahead of what is read; not where the one before is likely the last."""
    ends = lambda self, window: np.full(STEPS + 1, chance)  # noqa: E731
    monkeypatch.setattr(Acceptance, "chance_of_the_end", ends)
    engine = graph_engine()
    recorder, config = engine._recorder, SamplerConfig("asd", window=7)
    assert isinstance(recorder, HostRecorder)
    what = "a round of 2 chains with window 7"
    calls = 0
    for seed in range(3):
        noise = bulk_noise(2, STEPS, DIM, seed)
        _, stats = draw(config, engine, noise, None, slopes(True))
        calls += int(stats.calls.max())
    assert recorder.recorded.count(what) == 1
    assert recorder.replays[what] == calls + 3 * unneeded
    assert recorder.reads == recorder.replays[what]
    assert list(engine.bytes_by_bucket) == [what]
    engine.close()
    assert not engine.bytes_by_bucket
    draw(config, engine, bulk_noise(2, STEPS, DIM, 0), None, slopes(True))
    assert recorder.recorded.count(what) == 2


@pytest.mark.parametrize(("chance", "waits"), [(0.0, 1), (1.0, 0)])
def test_a_round_that_nobody_needed_ends_before_its_chains_go(
    chance: float, waits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes to them on a stream of its own, and their memory would be the next tensor's."""
    ends = lambda self, window: np.full(STEPS + 1, chance)  # noqa: E731
    monkeypatch.setattr(Acceptance, "chance_of_the_end", ends)
    engine = graph_engine()
    recorder = engine._recorder
    assert isinstance(recorder, HostRecorder)
    given = SamplerConfig("asd", window=7), engine, bulk_noise(2, STEPS, DIM, 0), None, slopes(True)
    draw(*given)
    before = recorder.synchronized
    draw(*given)  # in whose states others may be put
    assert recorder.synchronized == before + waits
    del engine, given
    gc.collect()
    assert recorder.synchronized == before + 2 * waits


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_conditions_of_another_length_are_captured_anew(sampler: str) -> None:
    """A graph reads them where they lay when it was captured."""

    def network(x: Tensor, timesteps: Tensor, cond: Tensor) -> Tensor:
        return 0.1 * x + cond.mean(dim=(1, 2))[:, None]

    engine = graph_engine(network)
    eager = make_engine("eager", network, SCHEDULE, (DIM,), dtype=torch.float64, kernels="torch")
    recorder, config = engine._recorder, SamplerConfig(sampler)
    assert isinstance(recorder, HostRecorder)
    captured = []
    for length in (4, 5, 5):
        cond = torch.full((2, length, 3), float(length), dtype=torch.float64)
        noise = bulk_noise(2, STEPS, DIM, 0)
        found, _ = draw(config, engine, noise, cond, slopes(True))
        expected, _ = draw(config, eager, noise, cond, slopes(True))
        found, expected = found.clone(), expected.clone()
        torch.testing.assert_close(found, expected)
        captured.append(len(recorder.recorded))
    assert captured[0] < captured[1] == captured[2]


def test_where_rounds_can_be_left_out_the_host_never_pauses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every wait another round is launched already, at the last one too; what is
    launched too much does no work, and nothing else in a round waits for the host."""
    ends = lambda self, window: np.full(STEPS + 1, 1.0)  # noqa: E731
    monkeypatch.setattr(Acceptance, "chance_of_the_end", ends)
    recorder = HostRecorder(strict=True, skips=True)
    options = {"dtype": torch.float64, "recorder": recorder, "kernels": "torch"}
    static = CudaGraphEngine(NETWORK, SCHEDULE, (DIM,), **options)
    eager = make_engine("eager", NETWORK, SCHEDULE, (DIM,), dtype=torch.float64, kernels="torch")
    calls = 0
    for seed in range(3):
        noise, config = bulk_noise(2, STEPS, DIM, seed), SamplerConfig("asd", window=7)
        recorder.open = 0  # the last chunk's one too many, which nobody waits for
        x, stats = draw(config, static, noise, None, slopes(True))
        expected, costs = draw(config, eager, noise, None, slopes(True))
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-9)
        assert torch.equal(stats.calls, costs.calls)
        assert torch.equal(stats.evaluations, costs.evaluations)
        calls += int(stats.calls.max())
    what = "a round of 2 chains with window 7"
    assert recorder.replays[what] == calls + 3, "one too many a chunk"
    assert recorder.skipped[what] == 3, "which did nothing"
    assert len(recorder.ahead) == calls
    assert set(recorder.ahead) == {2}


def test_time_is_split() -> None:
    _, stats = draw(
        SamplerConfig("asd", window=7), graph_engine(), bulk_noise(2, STEPS, DIM, 0), None,
        slopes(True),
    )  # fmt: skip
    assert set(stats.seconds) == {"draft", "network", "verify", "other"}
    assert min(stats.seconds.values()) >= 0
    assert sum(stats.seconds.values()) > 0


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_a_nan_is_named(sampler: str) -> None:
    chain = torch.zeros(())

    def network(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        assert cond is not None
        bad = ((timesteps == 6) & (cond[:, 0] == 1)).unsqueeze(1)
        return torch.where(bad, torch.nan + chain, NETWORK(x, timesteps, None))

    cond = torch.arange(3.0, dtype=torch.float64).unsqueeze(1)
    with pytest.raises(NonFiniteError, match=r"step 23 \(timestep 6\) of chain 1"):
        draw(
            SamplerConfig(sampler, window=7), graph_engine(network), bulk_noise(3, STEPS, DIM, 0),
            cond, slopes(True),
        )  # fmt: skip


def test_graphs_need_a_device() -> None:
    with pytest.raises(EngineError, match="CUDA graphs need a CUDA device, got 'cpu'"):
        CudaGraphEngine(NETWORK, SCHEDULE, (DIM,))


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_a_capture_that_fails_is_an_error_unless_auto(sampler: str) -> None:
    class Broken(HostRecorder):
        def record(self, work, what, when=None):  # type: ignore[no-untyped-def]
            raise EngineError(f"capturing {what} as a CUDA graph failed: no")

    config, noise = SamplerConfig(sampler, window=7), bulk_noise(2, STEPS, DIM, 0)
    options = {"dtype": torch.float64, "recorder": Broken()}
    strict = CudaGraphEngine(NETWORK, SCHEDULE, (DIM,), **options)
    with pytest.raises(EngineError, match=r"capturing .* failed: no"):
        draw(config, strict, noise, None, slopes(True))
    auto = CudaGraphEngine(NETWORK, SCHEDULE, (DIM,), fallback=True, **options)
    with pytest.warns(UserWarning, match="using the eager engine: capturing"):
        x, _ = draw(config, auto, noise, None, slopes(True))
    assert auto.name == "eager"
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        draw(config, auto, noise, None, slopes(True))
    eager = make_engine("eager", NETWORK, SCHEDULE, (DIM,), dtype=torch.float64)
    torch.testing.assert_close(x, draw(config, eager, noise, None, slopes(True))[0])


@pytest.mark.parametrize("name", ["asd", "ddpm"])
def test_what_was_captured_for_every_batch_stays(name: str) -> None:
    """A server's batches come about by chance: none is captured while robots wait."""
    robots, rng = 12, np.random.default_rng(0)
    engine = graph_engine()
    sampler = Sampler(NETWORK, SCHEDULE, (DIM,), SamplerConfig(name), engine=engine)
    sampler.freeze()
    sampler.expect(robots)
    for batch in range(1, robots + 1):
        sampler.draw(bulk_noise(batch, STEPS, DIM, 0))
    recorder = engine._recorder
    assert isinstance(recorder, HostRecorder)
    captured = len(recorder.recorded)
    for batch in rng.integers(1, robots + 1, 30):
        sampler.draw(bulk_noise(int(batch), STEPS, DIM, 1))
    assert len(recorder.recorded) == captured
    sampler.expect(1)
    sampler.draw(bulk_noise(1, STEPS, DIM, 1))
    assert len(engine._denoisers) == 8
    assert len(engine._steps) <= 8


def test_what_a_timed_call_reads_stays_as_long_as_its_timer() -> None:
    """A graph knows addresses and keeps nothing: memory that was let go is another's soon."""

    class Forgetful(HostRecorder):
        def record(self, work, what, when=None):  # type: ignore[no-untyped-def]
            kept = weakref.ref(work)

            def replay() -> None:
                there = kept()
                assert there is not None, f"what {what} reads is gone"
                there()

            return replay, 0

    options = {"dtype": torch.float64, "recorder": Forgetful(), "kernels": "torch"}
    timers = [CudaGraphEngine(NETWORK, SCHEDULE, (DIM,), **options).timer(n, None) for n in (1, 8)]
    gc.collect()
    assert all(timer() > 0 for timer in timers)
