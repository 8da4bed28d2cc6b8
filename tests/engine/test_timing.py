"""What a network costs is measured once for a machine, and kept."""

from __future__ import annotations

import collections
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import DiffusionPolicy, Schedule
from asd_policy.checkpoints import shipped
from asd_policy.engine import make_engine, timing
from asd_policy.engine.timing import LADDER, cache_folder, measure_costs, network_costs
from asd_policy.networks import ConditionalUnet1D
from asd_policy.networks.prepare import prepare
from asd_policy.samplers.costs import Costs
from asd_policy.threads import limited_to

SCHEDULE = Schedule.ddpm(20)


def engine(dims: tuple[int, ...] = (8, 16), precision: str = "fp32"):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    unet = ConditionalUnet1D(3, 4, 8, dims).eval()
    prepared = prepare(unet, SCHEDULE.timesteps, precision)
    return make_engine("eager", prepared, SCHEDULE, (4, 3))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache folder; what this process knows is forgotten before and after."""
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "_in_process", {})
    return tmp_path


@pytest.fixture
def measured(monkeypatch) -> list[int]:
    """How often something was measured; it always comes to the same."""
    times: list[int] = []

    def measure(*_):  # type: ignore[no-untyped-def]
        times.append(1)
        return Costs((1, 64), (0.001, 0.001 + 1e-4 * len(times)))

    monkeypatch.setattr(timing, "measure_costs", measure)
    return times


def test_a_layer_s_code_is_looked_up_once(cache, measured, monkeypatch) -> None:
    """Python parses the module that it is in each time, which takes longer than many a sample."""
    network_costs(engine(), torch.zeros(1, 4))
    monkeypatch.setattr(timing.inspect, "getsource", lambda kind: pytest.fail(f"{kind} again"))
    network_costs(engine(), torch.zeros(1, 4))


def test_costs_are_kept_and_read_again(cache, measured, monkeypatch) -> None:
    cond = torch.zeros(1, 4)
    first = network_costs(engine(), cond)
    assert network_costs(engine(), cond) is first, "known in this process"
    timing._in_process.clear()
    assert network_costs(engine(), cond) == first, "read from the file"
    assert len(measured) == 1
    again = network_costs(engine(), cond, again=True)
    assert len(measured) == 2
    timing._in_process.clear()
    assert network_costs(engine(), cond) == again, "the newer ones are kept"
    (path,) = (cache / "costs").glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["key"]["threads"] == torch.get_num_threads()


def test_another_network_machine_or_setting_is_measured_anew(cache, measured, monkeypatch) -> None:
    cond = torch.zeros(1, 4)
    network_costs(engine(), cond)
    for number, change in enumerate(
        (
            lambda: network_costs(engine((8, 24)), cond),
            lambda: network_costs(engine(precision="bf16"), cond),
            lambda: network_costs(engine(), cond, compiled=True),
            lambda: _with_threads(3, cond),
            lambda: _on_another_processor(monkeypatch, cond),
        ),
        start=2,
    ):
        change()
        assert len(measured) == number
        change()
        assert len(measured) == number, "and then kept as well"


def _with_threads(threads: int, cond: torch.Tensor) -> None:
    with limited_to(threads):
        network_costs(engine(), cond)


def _on_another_processor(monkeypatch, cond: torch.Tensor) -> None:
    monkeypatch.setattr(timing, "cpu_model", lambda: "another")
    network_costs(engine(), cond)


def test_a_plain_function_is_not_kept(cache, measured) -> None:
    """Two functions cannot be told apart by their shapes."""
    made = make_engine("eager", lambda x, t, c: 0.3 * x, SCHEDULE, (4, 3))
    for _ in range(2):
        network_costs(made, None)
    assert len(measured) == 2
    assert not list(cache.rglob("*.json"))


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"costs": {"rows": [1]}}'])
def test_a_damaged_file_is_measured_again(cache, measured, damage: str) -> None:
    cond = torch.zeros(1, 4)
    network_costs(engine(), cond)
    (path,) = (cache / "costs").glob("*.json")
    path.write_text(damage)
    timing._in_process.clear()
    network_costs(engine(), cond)
    assert len(measured) == 2
    assert json.loads(path.read_text())["costs"]["rows"] == [1, 64]


def test_a_cache_that_cannot_be_written_is_said_and_does_not_stop_anything(
    cache, measured, monkeypatch
) -> None:
    (cache / "costs").write_text("a file in the way")
    with pytest.warns(UserWarning, match="could not be kept .* ASD_POLICY_CACHE names another"):
        network_costs(engine(), torch.zeros(1, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network_costs(engine(), torch.zeros(1, 4))  # known in this process all the same
    assert len(measured) == 1


def test_the_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ASD_POLICY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "asd-policy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "asd-policy"


def test_costs_rise_with_rows_and_end_where_they_go_on_alike() -> None:
    costs = measure_costs(engine(), torch.zeros(1, 4))
    assert costs.rows == LADDER[: len(costs.rows)]
    assert costs.rows[-1] >= 64
    assert list(costs.seconds) == sorted(costs.seconds)
    assert 0 < costs.seconds[0] < 1
    assert 0 < costs.overhead < 0.1
    assert not costs.whole


def test_an_interruption_is_not_taken_for_a_cost(monkeypatch) -> None:
    """A call that other work interrupts takes longer; the least of several turns counts."""
    made, rng = engine(), np.random.default_rng(0)

    def timer(rows: int, cond: object):  # type: ignore[no-untyped-def]
        def timed() -> float:
            return 0.001 + 1e-5 * rows + 0.05 * (rng.uniform() < 0.3)

        return timed

    monkeypatch.setattr(made, "timer", timer)
    costs = measure_costs(made, torch.zeros(1, 4))
    for rows, seconds in zip(costs.rows, costs.seconds, strict=True):
        assert seconds == pytest.approx(0.001 + 1e-5 * rows)


def test_an_interruption_does_not_end_the_ladder(monkeypatch) -> None:
    """A call of which a busy machine makes a slow one is not taken for a slow network."""
    made, calls = engine(), collections.Counter[int]()

    def timer(rows: int, cond: object):  # type: ignore[no-untyped-def]
        def timed() -> float:
            calls[rows] += 1
            return 0.3 if rows == 4 and calls[rows] == 2 else 0.001

        return timed

    monkeypatch.setattr(made, "timer", timer)
    assert measure_costs(made, torch.zeros(1, 4)).rows == LADDER


def test_a_slow_network_is_not_timed_at_every_size(monkeypatch) -> None:
    made = engine()
    monkeypatch.setattr(made, "timer", lambda rows, cond: lambda: 0.05 * rows)
    assert measure_costs(made, torch.zeros(1, 4)).rows == (1, 2, 4, 6)


def test_a_call_with_one_thread_is_timed_by_its_processor_time() -> None:
    """Waiting, as for a processor that other work has, is not counted."""
    made = engine()
    made._repeatable = lambda work, rows: lambda: time.sleep(0.05)
    with limited_to(1):
        assert made.seconds(1, torch.zeros(1, 4)) < 0.02
    with limited_to(2):
        assert made.seconds(1, torch.zeros(1, 4)) >= 0.05


def test_the_loop_measures_nothing(cache, monkeypatch) -> None:
    """A policy is timed when it is made, and never while it acts."""
    policy = DiffusionPolicy.load(shipped("lift"))

    def forbidden(*_):  # type: ignore[no-untyped-def]
        raise AssertionError("measured in the loop")

    monkeypatch.setattr(policy.engine, "timer", forbidden)
    monkeypatch.setattr(timing, "measure_costs", forbidden)
    for batch in (1, 3):
        policy.reset(list(range(batch)))
        window = policy.window
        zeros = {k: [[0.1] * dim] * batch for k, dim in policy.observation_keys.items()}
        policy.act_batch(zeros)
        assert {chunk.window for chunk in policy.last_chunks if chunk} == {window}


def test_a_policy_measures_again_when_asked(cache, measured) -> None:
    policy = DiffusionPolicy.load(shipped("lift"), engine="eager")
    DiffusionPolicy.load(shipped("lift"), engine="eager")
    assert len(measured) == 1
    policy.measure()
    assert len(measured) == 2
    DiffusionPolicy.load(shipped("lift"), window=16, engine="eager")
    assert len(measured) == 2, "a window that is given needs no costs"


SPIN = "while True: pass"
DRAW = """
import numpy as np, asd_policy
from asd_policy.checkpoints import shipped
policy = asd_policy.DiffusionPolicy.load(shipped("lift"))
policy.reset(0)
rng, actions = np.random.default_rng(0), []
for _ in range(17):
    obs = {k: rng.uniform(-0.1, 0.1, d) for k, d in policy.observation_keys.items()}
    actions.append(policy.act(obs))
print(policy.window, policy.threads, np.array(actions).tobytes().hex())
"""


def test_a_seed_gives_the_same_actions_on_a_busy_machine(cache) -> None:
    """Costs are kept: the load of the moment changes neither the window nor what a seed gives."""
    quiet = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True, check=True)
    rivals = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(2)]
    try:
        busy = subprocess.run(
            [sys.executable, "-c", DRAW], capture_output=True, text=True, check=True
        )
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert quiet.stdout == busy.stdout
    assert int(quiet.stdout.split()[0]) > 1


class Looped(torch.nn.Module):
    """Calls its layer so often."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.times = torch.nn.Linear(6, 6), times

    def forward(self, x, timesteps, cond):  # type: ignore[no-untyped-def]
        for _ in range(self.times):
            x = self.layer(x)
        return x


class Repeated(torch.nn.Module):
    """As ``Looped``, the times in a list; and one that calls it."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.times = torch.nn.Linear(6, 6), (times,)

    def forward(self, x, timesteps, cond):  # type: ignore[no-untyped-def]
        for _ in range(self.times[0]):
            x = self.layer(x)
        return x


class Wrapped(torch.nn.Module):
    def __init__(self, network) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.network = network

    def forward(self, x, timesteps, cond):  # type: ignore[no-untyped-def]
        if isinstance(self.network, torch.nn.Module):
            return self.network(x, timesteps, cond)
        return self.network(x)


@pytest.mark.parametrize("kind", [Looped, Repeated])
def test_networks_that_differ_in_more_than_shapes_have_costs_of_their_own(
    cache, measured, kind
) -> None:
    def costs(network) -> Costs:  # type: ignore[no-untyped-def]
        return network_costs(make_engine("eager", network, SCHEDULE, (6,)), None)

    assert costs(kind(1)) is costs(kind(1))
    assert costs(Wrapped(kind(1))) is costs(Wrapped(kind(1)))
    assert len(measured) == 2
    costs(kind(400))
    costs(Wrapped(kind(400)))
    assert len(measured) == 4
    with torch.autocast("cpu", torch.bfloat16):
        costs(kind(1))
    assert len(measured) == 5
    for _ in range(2):  # nothing tells two of these apart
        costs(Wrapped(torch.tanh))
    assert len(measured) == 7


def test_a_compiled_network_is_known_again(cache, measured) -> None:
    """PyTorch gives each a number of its own, another one in every process."""
    for _ in range(2):
        network = torch.compile(Looped(1))
        network_costs(make_engine("eager", network, SCHEDULE, (6,)), None)
    assert len(measured) == 1


class Noted(Looped):
    """With more in its state than tensors, as quantized layers have."""

    def get_extra_state(self) -> dict[str, int]:
        return {"scale": 1}


def test_a_state_that_is_more_than_tensors(cache, measured) -> None:
    for _ in range(2):
        network_costs(make_engine("eager", Noted(1), SCHEDULE, (6,)), None)
    assert len(measured) == 1
