"""Copies of policies, engines and results: `copy.deepcopy` and `pickle`."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from asd_policy import DiffusionPolicy, SamplerConfig, Schedule, calibrate, sample
from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.engine.distributed import DistributedEngine
from asd_policy.errors import AsdPolicyError, CopyError
from asd_policy.networks.openvino_layers import missing
from reference.recorder import HostRecorder
from reference.tiny import KEYS, tiny_checkpoint

Copy = Callable[[Any], Any]


def pickled(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))


copies = pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
openvino = pytest.mark.skipif(missing() is not None, reason="OpenVINO is not installed")


def observations(count: int, rows: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [{k: rng.uniform(-1, 1, (rows, dim)) for k, dim in KEYS.items()} for _ in range(count)]


def halves(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
    return 0.5 * x


# ---- policies -----------------------------------------------------------------------------------

PACKED = {"down_dims": (64, 256), "n_groups": 8}  # large enough to be laid out for oneDNN


@copies
@pytest.mark.parametrize(
    ("sampler", "options", "network"),
    [
        ("asd", {}, {}),
        ("asd", {}, PACKED),
        ("asd", {"precision": "bf16"}, {}),
        ("ddpm", {}, {}),
        ("paradigms", {}, {}),
        pytest.param("asd", {"engine": "openvino"}, {}, marks=openvino),
    ],
)
def test_a_copied_policy_goes_on_bitwise(copied: Copy, sampler, options, network) -> None:
    """With chunks under way, another queue in each environment, and slopes that were learned."""
    policy = DiffusionPolicy(tiny_checkpoint(**network), SamplerConfig(sampler), **options)
    policy.reset([3, 4])
    first, *seen = observations(20)
    policy.act_batch({k: v[:1] for k, v in first.items()}, [0])
    for observation in seen[:4]:
        policy.act_batch(observation)
    other = copied(policy)
    went = [other.act_batch(observation) for observation in seen[4:]]
    kept = [policy.act_batch(observation) for observation in seen[4:]]
    np.testing.assert_array_equal(kept, went)
    assert len(np.unique(np.array(kept)[:, 0], axis=0)) > 9, "the actions hardly differ"


def test_a_policy_is_handed_to_a_process_that_is_spawned() -> None:
    """As macOS begins processes, and Linux's Python from 3.14 on begins them likewise."""
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig(window=4))
    policy.reset(0)
    (given,) = observations(1, rows=1)
    policy.act_batch(given)
    spawned = multiprocessing.get_context("spawn").Process(target=policy.act_batch, args=(given,))
    spawned.start()
    spawned.join(120)
    assert spawned.exitcode == 0


@copies
def test_a_copied_policy_shares_nothing_that_changes(copied: Copy) -> None:
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("asd"))
    policy.reset([1, 2])
    policy.act_batch(observations(1)[0])
    other = copied(policy)
    assert other.engine is not policy.engine
    before = policy.calibration.chunks
    for observation in observations(9):
        other.act_batch(observation)
    assert other.calibration.learned is not policy.calibration.learned
    assert policy.calibration.chunks == other.calibration.chunks == before
    assert policy.queued(0) == 2
    with torch.no_grad():
        next(other.network.parameters()).fill_(7.0)
    assert not next(policy.network.parameters()).eq(7.0).all()


@copies
def test_what_listens_to_a_policy_stays_with_it(copied: Copy) -> None:
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("ddpm"))
    told: list[object] = []
    policy.on_draw = lambda draw: told.append(draw)  # which pickle would not take
    copied(policy).act({k: np.zeros(dim) for k, dim in KEYS.items()})
    assert not told
    policy.act({k: np.zeros(dim) for k, dim in KEYS.items()})
    assert len(told) == 1


def test_a_copy_of_a_compiled_policy_is_compiled(monkeypatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: compiled.append(self))
    policy = DiffusionPolicy(tiny_checkpoint(), SamplerConfig("ddpm"), compile=True)
    other = copy.deepcopy(policy)
    assert len(compiled) == 2
    assert compiled[1] is other.engine.network.unet.trunk is not compiled[0]


# ---- engines and results ------------------------------------------------------------------------


@copies
@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_a_copied_engine_of_graphs_captures_its_own(copied: Copy, sampler) -> None:
    schedule = Schedule.ddpm(num_steps=10)
    engine = CudaGraphEngine(halves, schedule, (4, 2), recorder=Recorder())
    draw = functools.partial(sample, halves, schedule, shape=(2, 4, 2), sampler=sampler, seed=3)
    expected = (
        draw(engine=engine, window=4).sample if sampler == "asd" else draw(engine=engine).sample
    )
    other = copied(engine)
    assert not other._graphs
    assert not other.bytes_by_bucket
    again = draw(engine=other, window=4).sample if sampler == "asd" else draw(engine=other).sample
    assert torch.equal(again, expected)
    assert other._recorder.recorded == engine._recorder.recorded != []


class Recorder(HostRecorder):
    """Copied as the one of a CUDA device is: anew."""

    def __reduce__(self) -> tuple[type[Recorder], tuple[()]]:
        return Recorder, ()


@copies
def test_a_copied_result_serves_the_next_call(copied: Copy) -> None:
    schedule = Schedule.ddpm(num_steps=10)
    draw = functools.partial(sample, halves, schedule, shape=(2, 4, 2), window=4)
    calibration = calibrate(halves, schedule, shape=(2, 4, 2), chunks=2, seed=0, window=4)
    result = draw(seed=1, calibration=calibration)
    other = copied(result)
    assert torch.equal(other.sample, result.sample)
    assert repr(other) == repr(result)
    kept = draw(seed=2, calibration=result.calibration, engine=result.engine).sample
    went = draw(seed=2, calibration=other.calibration, engine=other.engine).sample
    assert torch.equal(kept, went)


def test_an_engine_of_a_nameless_function_can_be_copied_but_not_pickled() -> None:
    result = sample(lambda x, t, c: x, Schedule.ddpm(num_steps=5), shape=(1, 4, 2))
    assert torch.equal(copy.deepcopy(result).sample, result.sample)
    with pytest.raises(CopyError, match=r"engine of .*<lambda> .* at the top of a module, or"):
        pickle.dumps(result)
    assert torch.equal(pickled(result.sample), result.sample)
    assert repr(pickled(result.stats)) == repr(result.stats)
    assert pickled(result.calibration).chunks == 1


@copies
def test_a_distributed_engine_is_refused(copied: Copy, tmp_path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1
    )
    try:
        engine = make_engine("distributed", halves, Schedule.ddpm(num_steps=5), (4, 2))
        assert isinstance(engine, DistributedEngine)
        with pytest.raises(AsdPolicyError, match="ranks of its process group and cannot be copied"):
            copied(engine)
    finally:
        torch.distributed.destroy_process_group()
