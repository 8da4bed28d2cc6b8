"""The OpenVINO engine: the eager engine's chunks, chosen where faster, left where it fails."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import torch

import asd_policy
from asd_policy import DiffusionPolicy, SamplerConfig, Schedule
from asd_policy.checkpoints import shipped
from asd_policy.engine import Engine, make_engine, timing
from asd_policy.engine.openvino import OpenVinoEngine
from asd_policy.errors import EngineError
from asd_policy.networks import ConditionalUnet1D, openvino_layers
from asd_policy.networks.openvino_layers import ROWS, missing
from asd_policy.networks.prepare import PreparedUnet1D, prepare
from asd_policy.samplers.costs import Costs
from asd_policy.threads import limited_to
from reference.tiny import tiny_checkpoint

SHAPE = (8, 2)
SCHEDULE = Schedule.ddpm(20)
COND = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))
installed = pytest.mark.skipif(missing() is not None, reason="OpenVINO is not installed")


def prepared(**options: Any) -> Any:
    torch.manual_seed(0)
    unet = ConditionalUnet1D(2, 3, 8, (8, 16), n_groups=4)
    for parameter in unet.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return prepare(unet, SCHEDULE.timesteps, **options)


def engine(name: str, network: Any, **options: Any) -> Engine:
    return make_engine(name, network, SCHEDULE, SHAPE, cond=COND[:1], **options)


def draw(runs: Engine, batch: int = 1, sampler: str = "ddpm", **options: Any) -> torch.Tensor:
    options |= {"window": 4} if sampler == "asd" else {}
    return asd_policy.sample(
        runs.source, SCHEDULE, shape=(batch, *SHAPE), cond=COND[:batch], seed=0, engine=runs,
        sampler=sampler, **options,
    ).sample  # fmt: skip


@pytest.fixture
def costing(monkeypatch) -> Any:
    """costing(eager, openvino): what calls of the two are said to cost, in place of measuring."""

    def say(eager: float, openvino: float) -> None:
        def costs(of: Engine, cond: torch.Tensor | None) -> Costs:
            seconds = {"eager": eager, "openvino": openvino}[of.name]
            return Costs((1, 16), (seconds, 4 * seconds))

        monkeypatch.setattr("asd_policy.engine.network_costs", costs)

    return say


# ---- what it computes ----------------------------------------------------------------------------


@installed
@pytest.mark.parametrize(
    ("sampler", "batch"), [("ddpm", 1), ("paradigms", 2), ("asd", 1), ("asd", 3)]
)
def test_its_chunks_are_the_eager_engines(sampler: str, batch: int) -> None:
    network = prepared()
    expected = draw(engine("eager", network), batch, sampler)
    runs = engine("openvino", network)
    found = draw(runs, batch, sampler)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert runs.name == "openvino"
    for again in (runs, engine("openvino", network)):
        assert torch.equal(draw(again, batch, sampler), found), "the same bits, twice"


@installed
def test_a_shipped_policys_chain_of_a_hundred_steps() -> None:
    """Rounding does not add up along it: sequential DDPM, to 1e-5 of the actions' range."""
    found = {}
    for name in ("eager", "openvino"):
        policy = DiffusionPolicy.load(shipped("lift"), sampler="ddpm", engine=name)
        history = np.random.default_rng(0).uniform(-0.3, 0.3, (2, *history_shape(policy)))
        streams = [policy.stream(seed) for seed in (0, 1)]
        found[name], _ = policy.sample(history.astype(np.float32), streams)
        assert policy.engine.name == name
    np.testing.assert_allclose(found["openvino"], found["eager"], rtol=0, atol=1e-5)


def history_shape(policy: DiffusionPolicy) -> tuple[int, int]:
    return policy.source.horizons[0], sum(policy.observation_keys.values())


@installed
@pytest.mark.parametrize("rows", [1, 3, 5, 40, 64, 65, 150])
def test_any_number_of_rows(rows: int) -> None:
    """Filled up to the next that is compiled, and beyond the last in several calls."""
    network = prepared()
    other = network.in_openvino()
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, *SHAPE, generator=generator)
    steps, chains = torch.arange(rows) % 20, torch.arange(rows) % 3
    expected, found = (n.evaluate(x, steps, chains, n.condition(COND, 3)) for n in (network, other))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    compiled = {key[0] for key in other.unet.trunk._calls}
    assert compiled == {
        r for r in ROWS if r <= rows or r == min(q for q in ROWS if q >= min(rows, 64))
    }


@installed
def test_nothing_of_a_call_is_left_for_the_next() -> None:
    trunk = prepared().in_openvino().unet.trunk
    film = torch.ones(3, sum(trunk.course.sizes))
    x = torch.ones(3, *SHAPE)
    before = trunk(x, film)
    assert trunk(x * torch.nan, film).isnan().all()
    assert torch.equal(trunk(x, film), before)
    two = trunk(x[:2], film[:2])
    assert torch.equal(two, before[:2]) or torch.allclose(two, before[:2], rtol=1e-5, atol=1e-6)
    assert not two.isnan().any()


@installed
def test_it_takes_the_policys_number_of_threads() -> None:
    network = prepared().in_openvino()
    trunk = network.unet.trunk
    film = torch.ones(1, sum(trunk.course.sizes))
    outs = []
    for threads in (1, 2):
        with limited_to(threads):
            outs.append(trunk(torch.ones(1, *SHAPE), film))
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-6)
    assert {key[2] for key in trunk._calls} == {1, 2}


@installed
def test_what_surrounds_a_call_changes_nothing() -> None:
    runs = engine("openvino", prepared())
    expected = draw(runs)
    runs.close()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(draw(runs), expected)
    assert torch.equal(draw(runs), expected), "tensors made in inference mode are filled again"


@installed
def test_what_was_compiled_is_released() -> None:
    runs = engine("openvino", prepared())
    expected = draw(runs)
    trunk = runs._compiled.unet.trunk
    assert trunk._calls
    runs.close()
    assert not trunk._calls
    assert torch.equal(draw(runs), expected)


# ---- when it is chosen ---------------------------------------------------------------------------


@installed
@pytest.mark.parametrize(
    ("eager", "openvino", "chosen"),
    [(2.0, 1.0, "openvino"), (1.0, 2.0, "eager"), (1.0, 0.97, "eager")],
)
def test_auto_takes_the_faster_one(costing, eager, openvino, chosen) -> None:
    costing(eager, openvino)
    assert engine("auto", prepared()).name == chosen
    assert engine("eager", prepared()).name == "eager"


@installed
def test_auto_chooses_for_a_ddim_too_which_has_no_rounds_to_time() -> None:
    policy = DiffusionPolicy.load("lift", sampler="ddim")
    assert policy.schedule.c.any(), "steps along the network's own prediction"
    assert policy.engine.name in ("eager", "openvino")
    action = policy.act({k: np.zeros(n, np.float32) for k, n in policy.observation_keys.items()})
    assert np.isfinite(action).all()


@installed
def test_costs_are_measured_once_for_each_engine(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "_in_process", {})
    measured: list[str] = []

    def measure(of: Engine, cond: torch.Tensor | None) -> Costs:
        measured.append(of.name)
        return Costs((1, 16), (1.0 + len(measured), 2.0))

    monkeypatch.setattr(timing, "measure_costs", measure)
    chosen = {engine("auto", prepared()).name for _ in range(3)}
    assert sorted(measured) == ["eager", "openvino"]
    assert len(chosen) == 1
    monkeypatch.setattr(openvino_layers, "version", lambda: "2099.1")
    engine("auto", prepared())
    assert sorted(measured) == ["eager", "openvino", "openvino"], "another OpenVINO is timed anew"


@installed
def test_a_policy_measures_and_says_what_runs_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "_in_process", {})
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("ddpm"))
    assert policy.engine.name in ("eager", "openvino")
    assert len(list((tmp_path / "costs").glob("*.json"))) == 2
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("ddpm"), precision="bf16")
    assert policy.engine.name == "eager"


# ---- where it cannot be had ----------------------------------------------------------------------


def test_without_openvino_the_engine_is_eager(monkeypatch) -> None:
    monkeypatch.setattr("asd_policy.engine.version", lambda: None)
    monkeypatch.setattr(openvino_layers, "version", lambda: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine("auto", prepared()).name == "eager"
    with pytest.raises(EngineError, match=r"not installed: pip install 'asd-policy\[openvino\]'"):
        engine("openvino", prepared())


@installed
def test_nobody_is_told_that_it_is_used() -> None:
    """Importing OpenVINO sends an event to its makers, unless its telemetry package is missing."""
    program = """
import sys
from asd_policy.networks.openvino_layers import _library
_library()
assert "openvino" in sys.modules
assert "openvino_telemetry" not in sys.modules
ovc = sys.modules.get("openvino.tools.ovc.telemetry_utils")
assert ovc is None or ovc.tm.__name__.endswith("telemetry_stub"), ovc.tm
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_old_openvino_is_named(monkeypatch) -> None:
    monkeypatch.setattr("asd_policy.engine.version", lambda: "2024.6.0")
    monkeypatch.setattr(openvino_layers, "version", lambda: "2024.6.0")
    with pytest.warns(UserWarning, match=r"eager engine: .*OpenVINO 2025.0 or later is needed, fo"):
        assert engine("auto", prepared()).name == "eager"
    with pytest.raises(EngineError, match=r"2025\.0 or later is needed, found 2024\.6\.0"):
        engine("openvino", prepared())


def plain(x: torch.Tensor, timesteps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
    return 0.5 * x


class Linear(torch.nn.Linear):
    def forward(self, x: torch.Tensor, timesteps: Any, cond: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (plain, "ConditionalUnet1D .* got plain"),
        (Linear(2, 2), "ConditionalUnet1D .* got Linear"),
        (prepared(precision="bf16"), "computes in float32, and this network runs in bf16"),
        (prepared(compile=True), "this network runs in float32 through torch.compile"),
    ],
)
def test_other_networks_are_named(network: Any, said: str) -> None:
    with pytest.raises(EngineError, match=f"the OpenVINO engine cannot be had: .*{said}"):
        engine("openvino", network)
    assert engine("auto", network).name == "eager"


@installed
def test_a_failed_compilation_is_an_error_unless_auto_chose(costing, monkeypatch) -> None:
    """Under "auto", the very chunk is drawn again by the eager engine, which is then named."""
    network = prepared()
    costing(2.0, 1.0)
    expected = draw(engine("eager", network), 3, "asd")
    chosen, asked = engine("auto", network), engine("openvino", network)
    fails_from = 4  # rows: in the middle of what a chunk needs

    class Failing(openvino_layers._Call):
        def __init__(self, course: Any, shapes: Any, threads: int) -> None:
            if shapes[0][0] >= fails_from:
                raise RuntimeError("no such instruction")
            super().__init__(course, shapes, threads)

    monkeypatch.setattr(openvino_layers, "_Call", Failing)
    with pytest.raises(EngineError, match="cannot compile a call of 4 rows: no such instruction"):
        draw(asked, 3, "asd")
    with pytest.warns(UserWarning, match="using the eager engine: OpenVINO cannot compile") as told:
        found = draw(chosen, 3, "asd")
    assert torch.equal(found, expected)
    assert chosen.name == "eager"
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw(chosen, 3, "asd"), expected)


@installed
def test_a_broken_installation_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("ASD_POLICY_CACHE", str(tmp_path))
    monkeypatch.setattr(timing, "_in_process", {})

    really = importlib.import_module

    def broken(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "openvino":
            raise ImportError("libtbb.so.12 is missing")
        return really(name, *rest)

    openvino_layers._library.cache_clear()
    monkeypatch.setattr(importlib, "import_module", broken)
    network = prepared()
    with pytest.warns(UserWarning, match="using the eager engine: .*ImportError: libtbb"):
        assert engine("auto", network).name == "eager"
    assert isinstance(network, PreparedUnet1D)
    runs = engine("openvino", network)
    assert isinstance(runs, OpenVinoEngine)
    with pytest.raises(EngineError, match="cannot be imported: ImportError: libtbb"):
        draw(runs)
