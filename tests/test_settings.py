"""What others have set in PyTorch changes nothing: autocast, gradients, defaults."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import asd_policy
import asd_policy.denoiser as denoising
from asd_policy import Schedule, chains
from asd_policy.drafts import DRAFTS
from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.networks import ConditionalUnet1D
from asd_policy.networks.inference import tensor_cores
from asd_policy.networks.prepare import prepare
from asd_policy.policy import Normalizer, save_checkpoint
from asd_policy.training.trainer import TrainConfig, Trainer
from reference.recorder import HostRecorder
from reference.tiny import tiny_checkpoint, tiny_config, tiny_replay

SHAPE = (8, 2)


@contextlib.contextmanager
def default_device(name: str = "meta") -> Iterator[None]:
    """On "meta" there are no numbers: whatever does not name its device is found out."""
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def shortened_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


SETTINGS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "shortened products": shortened_products,
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "default device": default_device,
    "default dtype": default_dtype,
}


@pytest.fixture(params=SETTINGS)
def setting(request) -> Callable[[], contextlib.AbstractContextManager]:
    return SETTINGS[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A policy that sees a quaternion as a matrix."""
    keys = {"object": 3, "turn": 4}
    made = tiny_checkpoint(observation_keys=keys, quaternions=(3,))
    return save_checkpoint(tmp_path_factory.mktemp("made") / "policy", made)


def test_threads_choose_tensor_cores_one_after_the_other() -> None:
    """The choice is the process's: else one thread's products are done as another's, and what was
    set before is lost."""
    seen, ready, before = [], threading.Event(), torch.backends.cudnn.allow_tf32

    def other() -> None:
        with tensor_cores(True):
            ready.wait(5)
            seen.append(torch.backends.cudnn.allow_tf32)

    thread = threading.Thread(target=other)
    with tensor_cores(False):
        thread.start()
        time.sleep(0.1)
        seen.append(torch.backends.cudnn.allow_tf32)
    ready.set()
    thread.join()
    assert seen == [False, True]
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_policy_acts_alike(setting, folder, precision) -> None:
    def act() -> np.ndarray:
        policy = asd_policy.DiffusionPolicy.load(folder, window=8, precision=precision)
        policy.reset([0, 1])
        keys = policy.observation_keys.items()
        return policy.act_batch({key: np.full((2, dim), 0.1) for key, dim in keys})

    expected = act()
    chains._made.clear()  # tables are made anew
    with setting():
        assert np.array_equal(act(), expected)
    chains._made.clear()


def test_a_policy_that_was_loaded_before_acts_alike(setting, folder) -> None:
    policy = asd_policy.DiffusionPolicy.load(folder, window=8)
    policy.calibration.frozen = True
    row = {"object": np.full(3, 0.1), "turn": np.array([0.1, 0.2, 0.3, 0.9])}
    policy.reset(0)
    first, chunk = policy.act(row), policy.predict()
    with setting():
        policy.reset(0)
        assert np.array_equal(policy.act(row), first)
        assert np.array_equal(policy.predict(), chunk)


def test_a_policy_of_another_network_is_in_full_precision_too() -> None:
    """A hook keeps the network from being folded: it is called as it is."""
    made = tiny_checkpoint()
    made.network.register_forward_hook(lambda module, given, out: 0.5 * out)
    policy = asd_policy.DiffusionPolicy(made, asd_policy.SamplerConfig("ddpm"))
    assert policy.engine.source is made.network
    row, found = {key: np.full(n, 0.1) for key, n in policy.observation_keys.items()}, []
    for inside in (False, True):
        policy.reset(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(policy.act(row))
    assert np.array_equal(*found)


def unet(**changes: object) -> ConditionalUnet1D:
    torch.manual_seed(0)
    sizes = {"input_dim": 2, "global_cond_dim": 3, "diffusion_step_embed_dim": 8}
    made = ConditionalUnet1D(**{**sizes, "down_dims": (8, 16), "n_groups": 4, **changes})
    for parameter in made.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return made.eval()


FORMS: dict[str, dict] = {
    **{draft: {"draft": draft, "window": 4} for draft in DRAFTS},
    "two calls": {"draft": "frozen", "calls_per_round": 2, "window": 4},
    "asd, DDIM with noise": {"steps": 6, "eta": 0.5, "window": 4},
    "ddpm": {"sampler": "ddpm"},
    "ddim": {"sampler": "ddim", "steps": 4},
    "paradigms": {"sampler": "paradigms", "window": 4},
}
COND = torch.randn(3, 3, generator=torch.Generator().manual_seed(1))


EVERY = [(form, "torch") for form in FORMS]
EVERY += [(form, engine) for engine in ("native", "graph") for form in ("secant", "ddpm")]


@pytest.mark.parametrize(("form", "engine"), EVERY)
def test_every_sampler_draws_alike(setting, form, engine) -> None:
    """With a prepared network, whatever is set; states that were kept from before serve, too."""
    trained = unet()

    def draw(runner: object = None) -> asd_policy.Result:
        options = {"shape": (3, *SHAPE), "cond": COND, "seed": 0, **FORMS[form]}
        schedule = Schedule.ddpm(12)
        if runner is None:
            config = asd_policy.SamplerConfig.named(
                options.get("sampler", "asd"),
                **{k: v for k, v in FORMS[form].items() if k != "sampler"},
            )
            chain = config.schedule(schedule)
            network = prepare(trained, chain.timesteps)
            given = network, chain, SHAPE
            runner = (
                CudaGraphEngine(*given, recorder=HostRecorder(), kernels="torch")
                if engine == "graph"
                else make_engine("eager", *given, kernels=engine)
            )
        return asd_policy.sample(runner.source, schedule, engine=runner, **options)

    expected = draw()
    with setting():
        anew, again = draw(), draw(expected.engine)
    for found in (anew, again):
        assert torch.equal(found.sample, expected.sample)
        assert found.sample.dtype == torch.float32
        assert not found.sample.requires_grad


@pytest.mark.parametrize(("form", "kernels"), EVERY[: len(FORMS) + 2])
def test_a_plain_network_keeps_the_autocast_that_its_owner_asked_for(form, kernels) -> None:
    network, seen = unet(), []

    def plain(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return network(x, timesteps, cond)

    def own(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(x, timesteps, cond)

    def draw(denoiser: Callable) -> Tensor:
        options = {"shape": (3, *SHAPE), "cond": COND, "seed": 0, **FORMS[form]}
        schedule = Schedule.ddpm(12)
        config = asd_policy.SamplerConfig.named(
            options.get("sampler", "asd"),
            **{k: v for k, v in FORMS[form].items() if k != "sampler"},
        )
        engine = make_engine("eager", denoiser, config.schedule(schedule), SHAPE, kernels=kernels)
        return asd_policy.sample(denoiser, schedule, engine=engine, **options).sample

    expected, without = draw(own), draw(plain)
    assert not any(seen)
    with torch.autocast("cpu", torch.bfloat16):
        found = draw(plain)
        assert torch.is_autocast_enabled("cpu")
    assert any(seen)
    assert torch.equal(found, expected)
    assert not torch.equal(found, without)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("sampler", ["asd", "ddpm"])
def test_captured_rounds_are_those_of_their_autocast(sampler) -> None:
    """A graph keeps the casts that it was captured with, so that another one is captured."""
    network, schedule = unet(), Schedule.ddpm(12)
    recorder = HostRecorder()
    engine = CudaGraphEngine(network, schedule, SHAPE, recorder=recorder, kernels="torch")
    options = {"shape": (3, *SHAPE), "cond": COND, "sampler": sampler, "engine": engine}
    options |= {"window": 4} if sampler == "asd" else {}
    counts = []
    for inside in (False, True, True, False):
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            asd_policy.sample(network, schedule, seed=0, **options)
        counts.append(len(recorder.recorded))
    assert counts[1] == counts[2] == counts[3] == 2 * counts[0]


def test_a_prepared_network_alone_keeps_its_precision(setting) -> None:
    network, timesteps = unet(), Schedule.ddpm(12).timesteps
    x, steps, chains = (
        torch.ones(4, *SHAPE),
        torch.tensor([0, 3, 3, 11]),
        torch.tensor([0, 1, 2, 0]),
    )
    made = prepare(network, timesteps)
    expected = made.evaluate(x, steps, chains, made.condition(COND, 3))
    with setting():
        for prepared in (made, prepare(network, timesteps)):
            found = prepared.evaluate(x, steps, chains, prepared.condition(COND, 3))
            assert torch.equal(found, expected)
    # Conditions of another type are taken in the network's.
    double = made.evaluate(x, steps, chains, made.condition(COND.double(), 3))
    assert torch.equal(double, expected)


@pytest.mark.parametrize("sampler", ["asd", "ddpm", "paradigms"])
def test_products_are_shortened_in_a_plain_network_alone(sampler, monkeypatch) -> None:
    """Where the processor does so; here the settings are looked at."""
    network, seen = unet(), []

    def plain(x: Tensor, timesteps: Tensor, cond: Tensor | None) -> Tensor:
        seen.append(torch.get_float32_matmul_precision())
        return network(x, timesteps, cond)

    clip = denoising.Denoiser.clip
    within = []
    monkeypatch.setattr(
        denoising.Denoiser,
        "clip",
        lambda *given: within.append(torch.get_float32_matmul_precision()) or clip(*given),
    )
    with shortened_products():
        asd_policy.sample(
            plain, Schedule.ddpm(8), shape=(3, *SHAPE), cond=COND, sampler=sampler,
            engine=make_engine("eager", plain, Schedule.ddpm(8), SHAPE, kernels="torch"),
        )  # fmt: skip
        assert torch.get_float32_matmul_precision() == "medium"
    assert set(seen) == {"medium"}
    assert set(within) == {"highest"}


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("name", ["older", "newer", "both parts by their newer names"])
def test_tensor_cores_are_chosen_whatever_name_others_used(name, allowed) -> None:
    if name != "older" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this PyTorch has no newer names")

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", TENSOR_CORES[name].format(allowed=allowed)],
            capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip

    before, inside, after = run().split()
    assert inside == ("True" if name == "older" else "tf32") or not allowed
    assert inside == ("False" if name == "older" else "ieee") or allowed
    assert after == before


_USED = """
import torch
from asd_policy.networks.inference import tensor_cores
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
{set}
look = lambda: {look}
print(look())
with tensor_cores({{allowed}}):
    print(look())
print(look())
"""
TENSOR_CORES = {
    "older": _USED.format(set="matmul.allow_tf32 = True", look="matmul.allow_tf32"),
    "newer": _USED.format(set="matmul.fp32_precision = 'tf32'", look="matmul.fp32_precision"),
    "both parts by their newer names": _USED.format(
        set="matmul.fp32_precision = cudnn.conv.fp32_precision = 'tf32'",
        look="cudnn.conv.fp32_precision",
    ),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_goes_on_alike(setting, precision) -> None:
    def train() -> tuple[dict[str, Tensor], dict]:
        config = TrainConfig(steps=4, batch_size=4, warmup_steps=1, precision=precision)
        trainer = Trainer(tiny_replay(), tiny_config(), Schedule.ddpm(10), config)
        for _ in range(3):
            trainer.train_step()
        known = trainer.calibration() if precision == "fp32" else {}
        return trainer.ema.network.state_dict(), known

    weights, calibration = train()
    with setting():
        found, again = train()
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert again == calibration


def test_what_is_made_in_inference_mode_can_be_trained_with(folder) -> None:
    with torch.inference_mode():
        policy = asd_policy.DiffusionPolicy.load(folder, window=4)
        schedule = Schedule.ddpm(10)
        network = tiny_config().build_network()
        bounds = Normalizer(torch.zeros(2), torch.ones(2))
    result = asd_policy.sample(lambda x, t, c: 0.3 * x, schedule, shape=(2, 4), seed=0)
    weight = torch.ones(2, 1, requires_grad=True)
    clean = weight * torch.ones(2, 4)
    noisy = schedule.add_noise(clean, torch.zeros(2, 4), torch.tensor([1, 5]))
    (schedule.a[:2, None] * weight).sum().backward()
    (noisy.sum() + (result.stats.accepted * weight).sum()).backward()
    (bounds.normalize(weight * torch.ones(2, 2))).sum().backward()
    assert weight.grad is not None
    for made in (policy.network, network):
        made.requires_grad_(True)
        width = made.global_cond_dim
        made(torch.ones(1, 8, 2), torch.tensor([1]), torch.ones(1, width)).sum().backward()
        assert all(p.grad is not None for p in made.parameters())


def test_sampling_builds_no_graph() -> None:
    network = unet()  # its parameters want gradients
    with torch.enable_grad():
        for denoiser in (network, prepare(network, Schedule.ddpm(12).timesteps)):
            engine = make_engine("eager", denoiser, Schedule.ddpm(12), SHAPE)
            cond = COND.clone().requires_grad_()
            found = asd_policy.sample(
                denoiser, Schedule.ddpm(12), shape=(3, *SHAPE), cond=cond, engine=engine
            )
            assert not found.sample.requires_grad
    assert all(p.requires_grad for p in network.parameters())
