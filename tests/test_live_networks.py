"""A network that is still being trained is left as it is, and sampled with the weights of now."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import asd_policy
from asd_policy import DiffusionPolicy, Schedule
from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.networks import ConditionalUnet1D, products
from asd_policy.networks.openvino_layers import missing
from asd_policy.networks.prepare import PreparedUnet1D, prepare
from asd_policy.networks.weights import Watch
from asd_policy.training.ema import EMA
from reference.compiling import or_named
from reference.recorder import HostRecorder
from reference.tiny import tiny_checkpoint

SHAPE = (8, 2)
SCHEDULE = Schedule.ddpm(8)
COND = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))


def unet(seed: int = 0) -> ConditionalUnet1D:
    torch.manual_seed(seed)
    made = ConditionalUnet1D(2, 3, 8, (8, 16), n_groups=4)
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return made


def train(network: nn.Module, **options: object) -> None:
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, **options)
    x = torch.ones(2, *SHAPE)
    network(x, torch.tensor([1, 5]), COND).square().sum().backward()
    optimizer.step()


def average(network: nn.Module) -> None:
    averaged = EMA(network)
    averaged.network = network
    averaged.update(unet(1), 5)


def each(change: Callable[[nn.Parameter, Tensor], None]) -> Callable[[nn.Module], None]:
    def apply(network: nn.Module) -> None:
        for ours, new in zip(network.parameters(), unet(1).parameters(), strict=True):
            change(ours, new.detach())

    return apply


def assign(parameter: nn.Parameter, value: Tensor) -> None:
    parameter.data = value


def in_inference_mode(network: nn.Module) -> None:
    with torch.inference_mode():
        each(lambda ours, new: ours.copy_(new))(network)


def replaced(network: nn.Module) -> None:
    """One parameter by another object."""
    conv = network.final_conv[1]
    conv.weight = nn.Parameter(conv.weight.detach() * 2)


def exchanged(network: nn.Module) -> None:
    """A whole block by one of the same sizes."""
    network.mid_modules[0] = unet(1).mid_modules[0]


CHANGES: dict[str, Callable[[nn.Module], object]] = {
    "load_state_dict": lambda network: network.load_state_dict(unet(1).state_dict()),
    "assigning": lambda network: network.load_state_dict(unet(1).state_dict(), assign=True),
    "optimizer": train,
    "fused optimizer": lambda network: train(network, fused=True),  # counts no version
    "foreach optimizer": lambda network: train(network, foreach=True),
    "average": average,
    "data copied into": each(lambda ours, new: ours.data.copy_(new)),  # nor does this
    "data scaled": each(lambda ours, new: ours.data.mul_(0.9)),
    "data assigned": each(assign),
    "inference mode": in_inference_mode,
    "a parameter": replaced,
    "a block": exchanged,
}


def draw(engine: object, network: object, sampler: str = "asd") -> Tensor:
    options = {"window": 4} if sampler == "asd" else {}
    return asd_policy.sample(
        network, SCHEDULE, shape=(2, *SHAPE), cond=COND, seed=0, engine=engine, sampler=sampler,
        **options,
    ).sample  # fmt: skip


def runner(kind: str, network: object) -> object:
    if kind != "graph":
        return make_engine(kind, network, SCHEDULE, SHAPE)
    return CudaGraphEngine(network, SCHEDULE, SHAPE, recorder=HostRecorder(), kernels="torch")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_taken_over(change, packed, monkeypatch) -> None:
    if packed:
        monkeypatch.setattr(products, "_PACKED_FROM", 0)
    check_taken_over(change, "eager")


@pytest.mark.skipif(missing() is not None, reason="OpenVINO is not installed")
@pytest.mark.parametrize("change", ["fused optimizer", "data assigned", "a block"])
def test_changed_weights_are_compiled_again_by_openvino(change) -> None:
    check_taken_over(change, "openvino")


@pytest.mark.parametrize("put_in", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_that_is_put_in_later_is_refused(put_in) -> None:
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps)
    engine = runner("eager", prepared)
    before = draw(engine, prepared)
    hook = getattr(network.mid_modules[0], put_in)(lambda *given: None)
    with pytest.raises(ValueError, match=r"'mid_modules.0' is a .* with a hook .* expected none"):
        draw(engine, prepared)
    hook.remove()
    assert torch.equal(draw(engine, prepared), before)


def check_taken_over(change: str, kind: str) -> None:
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps)
    engine = runner(kind, prepared)
    before = draw(engine, prepared)
    CHANGES[change](network)
    found = draw(engine, prepared)
    fresh = prepare(network, SCHEDULE.timesteps)
    assert torch.equal(found, draw(runner(kind, fresh), fresh))
    assert not torch.equal(found, before)


def test_a_compiled_copy_goes_on_with_them(monkeypatch) -> None:
    graphs = []

    def backend(graph, inputs):  # type: ignore[no-untyped-def]
        graphs.append(graph)
        return graph.forward

    compiled = functools.partialmethod(nn.Module.compile, backend=backend)
    monkeypatch.setattr(nn.Module, "compile", compiled)
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps, compile=True)
    engine = runner("eager", prepared)
    with or_named():
        before = draw(engine, prepared, "ddpm")
    traced = len(graphs)
    assert traced
    CHANGES["fused optimizer"](network)
    found = draw(engine, prepared, "ddpm")
    plain = prepare(network, SCHEDULE.timesteps)
    expected = draw(runner("eager", plain), plain, "ddpm")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (found - before).abs().max() > 1e-3
    assert len(graphs) == traced, "nothing is compiled again"


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_captured_rounds_go_on_with_them(sampler) -> None:
    """Copied in place: nothing is captured again, and every tensor stays where it was."""
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps)
    assert isinstance(prepared, PreparedUnet1D)
    engine = runner("graph", prepared)
    before = draw(engine, prepared, sampler)
    places = [t.data_ptr() for t in prepared.unet.state_dict().values()]
    captured = list(engine._recorder.recorded)
    for change in ("fused optimizer", "data assigned"):
        CHANGES[change](network)
        found = draw(engine, prepared, sampler)
        fresh = prepare(network, SCHEDULE.timesteps)
        expected = draw(runner("graph", fresh), fresh, sampler)
        assert torch.equal(found, expected)
        assert not torch.equal(found, before)
    assert [t.data_ptr() for t in prepared.unet.state_dict().values()] == places
    assert engine._recorder.recorded == captured


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_of_a_plain_network_rounds_are_captured_again_where_its_weights_moved(sampler) -> None:
    """A graph reads them where they lay: in place is seen, elsewhere is not."""
    network = unet()
    engine = runner("graph", network)
    draw(engine, network, sampler)
    captured = len(engine._recorder.recorded)
    CHANGES["data copied into"](network)
    draw(engine, network, sampler)
    assert len(engine._recorder.recorded) == captured
    CHANGES["data assigned"](network)
    draw(engine, network, sampler)
    assert len(engine._recorder.recorded) == 2 * captured


def test_nothing_is_copied_where_nothing_changed(monkeypatch) -> None:
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps)
    engine = runner("eager", prepared)
    copies = []
    monkeypatch.setattr(
        PreparedUnet1D,
        "_copy",
        lambda self: copies.append(1) or (_ for _ in ()).throw(AssertionError),
    )
    network.train()
    network(torch.ones(2, *SHAPE), torch.tensor([1, 5]), COND).sum().backward()
    network.zero_grad()
    for _ in range(2):
        draw(engine, prepared)
    assert not copies


@pytest.mark.parametrize("change", ["wider", "moved"])
def test_another_network_is_refused(change) -> None:
    network = unet()
    prepared = prepare(network, SCHEDULE.timesteps)
    if change == "moved":
        network.double()
    else:
        network.final_conv[1] = nn.Conv1d(8, 3, 1)
    with pytest.raises(ValueError, match="other layers, sizes or another device than when it was"):
        draw(runner("eager", prepared), prepared)


@pytest.mark.parametrize("training", [True, False])
def test_a_policys_network_stays_as_it_is(training) -> None:
    made = tiny_checkpoint()
    made.network.train(training)
    for i, parameter in enumerate(made.network.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    wanted = [p.requires_grad for p in made.network.parameters()]
    policy = DiffusionPolicy(made, asd_policy.SamplerConfig(window=4))
    policy.act({key: np.zeros(dim) for key, dim in policy.observation_keys.items()})
    assert [p.requires_grad for p in made.network.parameters()] == wanted
    assert made.network.training == training
    assert policy.network is made.network


@pytest.mark.parametrize("change", ["optimizer", "data copied into"])
def test_a_policy_acts_with_the_weights_of_now(change) -> None:
    made = tiny_checkpoint()

    def act(policy: DiffusionPolicy) -> np.ndarray:
        policy.reset(0)
        return policy.act({key: np.zeros(dim) for key, dim in policy.observation_keys.items()})

    config = asd_policy.SamplerConfig("ddpm")
    policy = DiffusionPolicy(made, config)
    before = act(policy)
    with torch.no_grad():
        for parameter in made.network.parameters():
            changed = parameter if change == "optimizer" else parameter.data
            changed.mul_(1.3)
    found = act(policy)
    assert np.array_equal(found, act(DiffusionPolicy(made, config)))
    assert not np.array_equal(found, before)


def test_weights_that_were_made_in_inference_mode_are_watched() -> None:
    """They count no changes; the numbers that are sampled tell."""
    with torch.inference_mode():
        network = unet()
    watch = Watch(network)
    assert not watch.changed()
    with torch.inference_mode():
        each(lambda ours, new: ours.copy_(new))(network)
    assert watch.changed()
    assert not Watch(network).changed()
