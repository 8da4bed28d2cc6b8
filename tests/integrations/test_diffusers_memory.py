"""What pictures take of memory: the window's steps alone, said beforehand, with a bound."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, ClassVar

import pytest
import torch

import asd_policy.integrations.diffusers as asd
from asd_policy import sampler
from asd_policy.engine import Engine
from asd_policy.errors import AsdPolicyError
from asd_policy.integrations import diffusers
from asd_policy.integrations.diffusers_memory import (
    LaterNoise,
    Memory,
    free_bytes,
    picture_noise,
)
from asd_policy.integrations.hooked import human
from asd_policy.samplers.acceptance import Acceptance, choose_window
from asd_policy.samplers.costs import Costs
from asd_policy.samplers.result import streams

SHAPE = (2, 3, 4, 4)


class DDPMScheduler:
    """As diffusers' to whoever reads its settings."""

    config: ClassVar = {"num_train_timesteps": 30, "beta_end": 0.3}


class Network(torch.nn.Module):
    """By element, so that a row does not depend on those beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.8))

    def forward(self, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return torch.tanh(self.weight * x + t.view(-1, 1, 1, 1) / 30)


def draw(**options: Any) -> tuple[torch.Tensor, Any]:
    generator = torch.Generator().manual_seed(1)
    return asd.draw(Network(), DDPMScheduler(), SHAPE, generator=generator, **options)


@pytest.mark.parametrize("options", [{}, {"draft": "frozen", "calls_per_round": 2}])
@pytest.mark.parametrize("window", [1, 6, 29, 30, 64])
def test_keeping_a_window_draws_the_same_bit_for_bit(
    window: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "_LITTLE", 0)  # PyTorch's arithmetic in both
    lean, stats = draw(window=window, **options)
    monkeypatch.setattr(Engine, "lean", False)
    whole, costs = draw(window=window, **options)
    assert torch.equal(lean, whole)
    assert torch.equal(stats.calls, costs.calls)


def test_a_window_of_so_many_together_is_kept_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With "auto", two pictures' window is wider than that of one, where rows cost nothing."""
    costs = Costs((1, 1000), (1.0, 1.0), 0.3)
    monkeypatch.setattr(sampler, "network_costs", lambda *_, **__: costs)
    one, two = (choose_window(Acceptance.typical(60), costs, batch, 60) for batch in (1, 2))
    assert one < two < 58
    scheduler, drawn = DDPMScheduler(), {}
    scheduler.config = scheduler.config | {"num_train_timesteps": 60}
    for little in (2**28, 0):
        monkeypatch.setattr(diffusers, "_LITTLE", little)
        generator = torch.Generator().manual_seed(1)
        drawn[little], _ = asd.draw(Network(), scheduler, SHAPE, generator=generator, window="auto")
    torch.testing.assert_close(drawn[0], drawn[2**28], rtol=0, atol=1e-4)
    assert f"both of {two + 2} of 60 steps" in capsys.readouterr().out


def test_noise_that_is_forgotten_is_not_given_again() -> None:
    later = LaterNoise([torch.Generator().manual_seed(0)], 4, torch.empty(1, 2))
    first, row = later[torch.zeros(1, 1, dtype=torch.long), torch.tensor([[0]])], torch.arange(4)
    chain = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(later[chain, row[None]][:, 0], first[:, 0])
    later[chain, row[None] + 1]
    with pytest.raises(IndexError, match="4 are kept"):
        later[chain, row[None]]
    with pytest.raises(IndexError, match="4 are kept"):
        later[torch.zeros(1, 5, dtype=torch.long), torch.arange(1, 6)[None]]


def test_sequential_sampling_keeps_two_steps_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = draw(sampler="ddpm")
    monkeypatch.setattr(diffusers, "_LITTLE", 0)
    lean, _ = draw(sampler="ddpm")
    assert torch.equal(lean, whole)


def test_later_noise_is_what_all_of_it_would_be() -> None:
    """Windows that move unlike each other, and steps that are asked for twice."""
    like, whole = torch.empty(0, 5), Memory((2, 5), 20, 4, whole=True)
    every = picture_noise(streams(torch.Generator().manual_seed(0), 2), whole, like)
    lean = picture_noise(streams(torch.Generator().manual_seed(0), 2), Memory((2, 5), 20, 4), like)
    assert torch.equal(lean.initial, every.initial)
    assert torch.equal(lean.log_uniform, every.log_uniform)
    assert isinstance(lean.steps, LaterNoise)
    chain = torch.arange(2).unsqueeze(1)
    for starts in ([0, 0], [0, 0], [3, 1], [9, 2], [16, 16]):
        steps = torch.tensor(starts).unsqueeze(1) + torch.arange(4)
        assert torch.equal(lean.steps[chain, steps], every.steps[chain, steps])


def test_it_is_said_before_anything_is_drawn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diffusers, "_LITTLE", 0)
    draw(window=4)
    said = capsys.readouterr().out
    assert said.startswith("asd-policy: 2 samples of 3×4×4, which take at most ")
    assert "both of 6 of 30 steps at a time" in said
    draw(window=4, verbose=False)
    assert not capsys.readouterr().out


def test_a_picture_of_256_by_256_takes_what_its_window_does() -> None:
    lean, whole = (Memory((1, 3, 256, 256), 1000, 32, whole=kind) for kind in (False, True))
    assert lean.total < 0.5e9 < 3e9 < whole.total
    assert Memory((1, 3, 256, 256), 4000, 32).total == lean.total, "whatever K is"


@pytest.mark.parametrize(
    ("shape", "bytes_", "fits"),
    [
        ((8, 3, 256, 256), 2 * 10**9, "a batch of 4 fits"),
        ((8, 3, 256, 256), 3 * 10**8, "one sample with window=15 fits"),
        ((8, 3, 256, 256), 10**7, "one sample with window=1 fits"),
        ((8, 3, 256, 256), 10**6, "not even one sample fits: 7.5 MiB is the least, with .*'ddpm'"),
        ((8, 1, 4, 4), 10, "not even one sample fits: 640 B is the least"),
    ],
)
def test_a_bound_is_held_before_anything_is_drawn(
    shape: tuple[int, ...], bytes_: int, fits: str
) -> None:
    with pytest.raises(AsdPolicyError, match=rf"8 samples .* max_memory is .*: {fits}"):
        asd.draw(Network(), DDPMScheduler(), shape, max_memory=bytes_, verbose=False)


@pytest.mark.parametrize(
    ("bytes_", "fits"),
    [
        (10**9, "a batch of 2 fits with sampler='asd' and engine='eager', of which"),
        (10**7, "a batch of 1 fits with sampler='ddpm' and engine='eager', of which"),
        (10, "not even one sample fits: 7.5 MiB is the least, with sampler='ddpm' and engine="),
    ],
)
def test_what_keeps_all_steps_is_told_what_keeps_a_window(bytes_: int, fits: str) -> None:
    with pytest.raises(AsdPolicyError, match=fits):
        Memory((1, 3, 256, 256), 1000, 32, whole=True, rejoin=True).check(bytes_, "max_memory")


def test_all_steps_are_kept_where_they_fit_and_a_window_s_where_they_do_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    most = Memory(SHAPE, 30, 4).total
    whole, _ = draw(window=4)
    lean, _ = draw(window=4, max_memory=most)
    assert "both of 6 of 30 steps at a time" in capsys.readouterr().out.splitlines()[1]
    torch.testing.assert_close(lean, whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_memory": -10}, "max_memory must be a whole number from 1 on, got -10"),
        ({"rows_at_once": "2"}, "rows_at_once must be a whole number from 1 on, got '2'"),
        (
            {"shape": (0, 3, 4, 4)},
            r"shape must be .*; got \(0, 3, 4, 4\)",
        ),
        ({"generator": 3}, "generator must be a torch.Generator, .* or None; got int"),
        ({"generator": [1, 2]}, "generator must be .* or None; got int"),
        ({"engine": "openvino"}, r"it takes a ConditionalUnet1D .*, got Network"),
    ],
)
def test_what_is_no_number_or_generator_is_said_before_anything_else(
    options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"shape": SHAPE} | options
    with pytest.raises(AsdPolicyError, match=message):
        asd.draw(Network(), DDPMScheduler(), **options)
    assert not capsys.readouterr().out


def test_an_allocator_that_has_no_more_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's real one, asked for more than there is by a network, and by the noise."""

    def greedy(self: Network, x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return x + torch.zeros(2**55 if len(x) > 1 else 1)[0]

    monkeypatch.setattr(Network, "forward", greedy)
    message = r"memory of cpu has no room for the network on 2 rows of \(3, 4, 4\) at once; rows_at"
    with pytest.raises(AsdPolicyError, match=message + "_once=1 takes half of it"):
        draw(sampler="ddpm")
    draw(sampler="ddpm", rows_at_once=1)
    monkeypatch.setattr(diffusers, "free_bytes", lambda device: None)
    with pytest.raises(AsdPolicyError, match="no room for 1 sample of 3×16777216×16777216"):
        asd.draw(Network(), DDPMScheduler(), (1, 3, 2**24, 2**24), sampler="ddpm", verbose=False)


MEASURED = """
import resource, sys
import torch
sys.path.insert(0, {folder!r})
import asd_policy.integrations.diffusers as asd
from test_diffusers_memory import DDPMScheduler, Network
DDPMScheduler.config = {{"num_train_timesteps": 300, "beta_end": 0.05}}

def peak(side):
    shape = 1, 3, side, side
    asd.draw(Network(), DDPMScheduler(), shape, window=8, max_memory={most}, verbose=False)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak(4)
print(peak(192) - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_the_bound_is_what_is_measured() -> None:
    """All 300 steps of noise and of the memory would be 470 MB."""
    memory = Memory((1, 3, 192, 192), 300, 8)
    source = MEASURED.format(folder=str(__file__).rpartition("/")[0], most=memory.total)
    done = subprocess.run(
        [sys.executable, "-c", source], text=True, capture_output=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    taken, rows = int(done.stdout), 2 * 9 * 3 * 192 * 192 * 4  # what the network itself makes
    assert taken < memory.total + rows
    assert memory.total + rows < 100e6


def test_what_pytorch_holds_and_does_not_use_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a second batch of pictures has no room where the first had it."""
    given = {"mem_get_info": (1000, 9000), "memory_reserved": 7000, "memory_allocated": 500}
    for name, value in given.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert free_bytes(torch.device("cuda")) == 7500


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0 B"), (999, "999 B"), (1023, "0.999 KiB"), (1010 * 2**10, "0.986 MiB"),
        (261_000_000, "249 MiB"), (1023 * 2**20, "0.999 GiB"), (3000 * 2**30, "2.93 TiB"),
    ],
)  # fmt: skip
def test_bytes_as_people_read_them(size: int, said: str) -> None:
    assert human(size) == said
