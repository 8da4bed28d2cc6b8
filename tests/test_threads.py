"""How many CPU threads a policy uses, and that they wait without spinning."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from asd_policy import DiffusionPolicy, cli
from asd_policy.checkpoints import shipped
from asd_policy.networks import ConditionalUnet1D
from asd_policy.networks.prepare import prepare
from asd_policy.threads import LARGE, choose_threads, limited_to


@pytest.fixture
def four_threads():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_a_small_network_gets_one_thread_and_a_large_one_all(four_threads) -> None:
    assert choose_threads(2_500_000) == 1
    assert choose_threads(LARGE) == 4


def test_the_limit_ends_with_the_block(four_threads) -> None:
    def fail() -> None:
        assert torch.get_num_threads() == 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), limited_to(2):
        fail()
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize(("asked", "used"), [(None, 1), (3, 3)])
def test_a_policy_draws_with_its_own_number(four_threads, asked, used) -> None:
    policy = DiffusionPolicy.load(shipped("lift"), window=16, threads=asked)
    seen, network = [], policy.engine.network
    evaluate = network.evaluate

    def spy(*args):  # type: ignore[no-untyped-def]
        seen.append(torch.get_num_threads())
        return evaluate(*args)

    network.evaluate = spy
    policy.act({k: np.full(dim, 0.1) for k, dim in policy.observation_keys.items()})
    assert policy.threads == used
    assert set(seen) == {used}
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("steps", [10, 100])
def test_how_many_a_program_has_where_a_policy_is_made_changes_no_bit(four_threads, steps) -> None:
    """What is computed once, when a network is prepared: matrix products over all timesteps."""
    network = ConditionalUnet1D(2, 6, 16, (8, 16)).eval()
    films = []
    for threads in (1, 2, 4):
        with limited_to(threads):
            films.append(prepare(network, torch.arange(steps)).unet.timestep_film)
    assert all(torch.equal(film, films[0]) for film in films)


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's count of processor time")
def test_commands_threads_do_not_spin_while_they_wait() -> None:
    """Of OpenMP's second thread: its processor time while the first one does other things."""
    code = """
import asd_policy.cli, sys
asd_policy.cli.main(["--version"])
import time, torch
from pathlib import Path
torch.set_num_threads(2)
x = torch.randn(512, 512)
def others_s(pause):
    before, start = ticks(), time.thread_time()
    for _ in range(200):
        x[:64, :64] @ x[:64, :64]
        x.add(1.0)
        pause()
    return ticks() - before - (time.thread_time() - start)
def work_alone():
    end = time.perf_counter() + 0.002
    while time.perf_counter() < end: pass
def ticks():
    stats = [(t / "schedstat").read_text().split() for t in Path("/proc/self/task").iterdir()]
    return sum(int(s[0]) for s in stats) * 1e-9
for _ in range(50): x @ x
print(others_s(work_alone) - others_s(lambda: None))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    others = float(done.stdout.split()[-1])
    assert others < 0.2, "seconds of other threads in 0.4 s of mostly waiting"


def test_the_users_choice_of_waiting_stands(monkeypatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli.main(["--version"])
    import os

    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
