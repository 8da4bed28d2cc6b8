"""All of a LeRobot policy but its loop stays what it was; and what the hook heeds at each call."""

from __future__ import annotations

import copy
import re
import warnings

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
import torch

import asd_policy.integrations.lerobot as asd
from asd_policy.errors import InputError, NonFiniteError
from reference.lerobot_policies import encoded, observation, trained

LOOP = r"LeRobot's own loop runs: "


def quiet(policy, sampler="auto", **options):
    return asd.accelerate(policy, sampler, verbose=False, **options)


def chunk(policy, rows, seed=0, noise=None):
    generator = torch.Generator().manual_seed(seed)
    return policy.diffusion.conditional_sample(len(rows), rows, generator, noise)


def test_what_is_run_is_said_in_a_line(capsys) -> None:
    policy = trained()
    assert asd.accelerate(policy) is policy
    assert re.fullmatch(
        "asd-policy: asd on a DDPM of 100 steps, up to 100 network calls a chunk; "
        r"a copy of its U-Net takes \d+ KiB more \(copy=False: none\)\n",
        capsys.readouterr().out,
    )
    asd.accelerate(policy, copy=False, warmup=True, check=True)
    first, second = capsys.readouterr().out.splitlines()
    assert "copy" not in first
    calls = policy.diffusion.conditional_sample.calls
    assert first.endswith(f"steps, {calls:.3g} network calls a chunk")
    assert second.startswith("asd-policy: sequential ddpm equals your loop to ")
    assert float(second.split()[7].rstrip(";")) < 2e-5
    assert second.endswith(f"; {calls:.3g} calls in place of 100")
    assert calls < 50


@pytest.mark.parametrize("options", [{}, {"use_film_scale_modulation": False}])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_copy_takes_what_is_said(options, precision) -> None:
    policy = quiet(trained(**options), precision=precision)
    said = re.search(r"U-Net takes (\d+) KiB", policy.diffusion.conditional_sample.description)
    policy.diffusion.conditional_sample.warm()
    (made,) = policy.diffusion.conditional_sample._samplers.values()
    unet = made.engine.source.unet
    held = sum(t.numel() * t.element_size() for t in [*unet.parameters(), *unet.buffers()])
    laid_out = [getattr(module, "_packed", None) for module in unet.modules()]
    # by oneDNN, in bfloat16 where the processor has it, which does not say how much it holds
    held += sum(packed.numel() * 2 for packed in laid_out if packed is not None)
    assert int(said[1]) == pytest.approx(held / 1024, abs=0.5)


def test_a_network_that_was_compiled_draws_by_the_hook_too() -> None:
    """Its wrapper's methods are those of what it wraps, which does not look at the wrapper."""
    policy = trained()
    policy.diffusion = torch.compile(policy.diffusion, backend="eager")
    quiet(policy, "ddpm")
    policy.select_action(observation(2))
    assert policy.diffusion.conditional_sample.stats.sampler == "ddpm"


def test_what_asks_for_chunks_may_be_compiled() -> None:
    """As LeRobot's rollout does (--use_torch_compile), and number of steps changed since then."""
    drawn = []
    for compiled in (False, True):
        policy = quiet(trained(), "asd", window=4)
        policy.diffusion.num_inference_steps = 20
        if compiled:
            policy.predict_action_chunk = torch.compile(
                policy.predict_action_chunk, backend="eager"
            )
        torch.manual_seed(0)
        drawn.append(policy.select_action(observation(2)))
    assert torch.equal(*drawn)


def test_a_check_that_finds_a_difference_fails() -> None:
    policy = trained()
    policy.diffusion.noise_scheduler.one = torch.tensor(0.8)  # what a last step ends at
    with pytest.raises(
        InputError, match=r"the self-check failed: sequential ddpm equals .* to \S+, where"
    ):
        quiet(policy, check=True)


def test_a_network_whose_rows_are_rounded_together_is_refused_at_once() -> None:
    """Not at the robot's first chunk."""
    policy = trained()
    policy.diffusion.unet = torch.ao.quantization.quantize_dynamic(
        policy.diffusion.unet, {torch.nn.Linear}
    )
    with pytest.raises(InputError, match="rounds the rows of a call on a scale of all of them"):
        quiet(policy)
    policy = trained()
    policy.diffusion.unet = torch.ao.quantization.quantize_dynamic(
        policy.diffusion.unet, {torch.nn.Linear}, torch.float16
    )
    quiet(policy).select_action(observation(1))


def test_everything_else_stays_lerobots(tmp_path) -> None:
    policy = trained()
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    quiet(policy, window=8)
    policy.select_action(observation(1))
    assert policy.diffusion.conditional_sample.stats.sampler == "asd"
    assert policy.state_dict().keys() == weights.keys()
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path)
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    assert again.config == policy.config
    twin = copy.deepcopy(policy)
    assert twin.diffusion.conditional_sample.policy is twin
    assert not twin.diffusion.conditional_sample._samplers
    rows = encoded(policy)
    assert torch.equal(chunk(twin, rows), chunk(policy, rows))
    del policy.diffusion.conditional_sample
    with torch.no_grad():
        expected = trained()
        assert torch.equal(chunk(policy, rows), chunk(expected, rows))


def test_queues_and_horizons_are_lerobots() -> None:
    """A chunk every eight actions, of which it executes those from the last observation on."""
    policy = quiet(trained(), window=8)
    drawn = []
    hook = policy.diffusion.conditional_sample
    draw = hook.draw
    hook.draw = lambda *given: drawn.append(draw(*given)) or drawn[-1]
    actions = [policy.select_action(observation(4, seed=t)) for t in range(9)]
    assert len(drawn) == 2
    for time in range(8):
        assert torch.equal(actions[time], drawn[0][:, 1 + time])
    assert int(hook.stats.calls.shape[0]) == 4


def test_noise_is_where_chains_start() -> None:
    policy = quiet(trained(), "ddpm")
    rows, noise = encoded(policy, 2), torch.randn(2, 16, 2)
    torch.manual_seed(3)
    with torch.no_grad():
        theirs = type(policy.diffusion).conditional_sample(policy.diffusion, 2, rows, noise=noise)
    ours = policy.diffusion.conditional_sample(2, rows, noise=noise)
    other = policy.diffusion.conditional_sample(2, rows, noise=-noise)
    quiet(policy, "ddim", steps=100)  # without other noise: the start alone decides
    starts = [noise, noise, -noise]
    one, same, mirrored = (
        policy.diffusion.conditional_sample(2, rows, torch.Generator().manual_seed(n), start)
        for n, start in enumerate(starts)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, mirrored, atol=0.01)
    assert ours.shape == theirs.shape == other.shape
    kept = quiet(trained(), window=8)
    kept.select_action(observation(2), noise=noise)
    assert kept.diffusion.conditional_sample.stats.sampler == "asd"
    with pytest.raises(InputError, match=r"must have shape \(2, 16, 2\), got \(2, 8, 2\)"):
        policy.diffusion.conditional_sample(2, rows, noise=torch.randn(2, 8, 2))


def test_noise_gives_what_lerobots_loop_gives() -> None:
    """DDIM, whose start is all its randomness."""
    policy = trained(noise_scheduler_type="DDIM", num_inference_steps=10)
    rows, noise = encoded(policy, 2), torch.randn(2, 16, 2)
    with torch.no_grad():
        theirs = policy.diffusion.conditional_sample(2, rows, noise=noise)
    ours = quiet(policy).diffusion.conditional_sample(2, rows, noise=noise)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_a_seed_gives_the_same_actions() -> None:
    """Whatever was observed or drawn before, warmed up or not."""
    policies = [trained() for _ in range(3)]
    quiet(policies[0])
    quiet(policies[1], warmup=True)
    quiet(policies[2])
    for seed in range(3):
        chunk(policies[2], 0.3 * encoded(policies[2], 1, seed=7), seed=9 + seed)
    rows = encoded(policies[0], 1)
    first, *others = [chunk(policy, rows, seed=4) for policy in policies]
    assert all(torch.equal(first, other) for other in others)
    hooks = [policy.diffusion.conditional_sample for policy in policies]
    assert len({hook.stats.window for hook in hooks}) == 1
    assert torch.equal(first, chunk(policies[0], rows, seed=4))
    torch.manual_seed(11)  # lerobot.utils.random_utils.set_seed
    one = policies[1].diffusion.conditional_sample(1, rows)
    torch.manual_seed(11)
    assert torch.equal(one, policies[2].diffusion.conditional_sample(1, rows))


def test_a_warmup_leaves_nothing_slow_to_the_first_chunk(monkeypatch) -> None:
    policy = quiet(trained(), warmup=True)
    state = torch.get_rng_state()
    quiet(policy, warmup=True, check=True)
    assert torch.equal(state, torch.get_rng_state()), "the caller's random numbers stay"
    hook = policy.diffusion.conditional_sample
    made = dict(hook._samplers)
    monkeypatch.setattr("asd_policy.sampler.Sampler.calibrate", None)
    monkeypatch.setattr("asd_policy.sampler.Sampler.measure", None)
    policy.select_action(observation(1))
    policy.reset()
    policy.select_action(observation(3))
    assert hook._samplers == made, "one sampler, of chunks one at a time and together"


def test_training_is_lerobots_own_and_said_once() -> None:
    policy = quiet(trained(), window=8).train()
    rows = encoded(policy, 1)
    with pytest.warns(UserWarning, match=LOOP + "the policy is in training mode"):
        ours = chunk(policy, rows)
    with torch.no_grad():
        assert torch.equal(ours, chunk(trained(), rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chunk(policy, rows)
        policy.eval()
        chunk(policy, rows)
        assert policy.diffusion.conditional_sample.stats.sampler == "asd"
        chunk(policy.train(), rows)
    assert policy.diffusion.conditional_sample.stats is None, "not those of the chunk before"


@pytest.mark.parametrize("when", ["before", "after"])
def test_settings_that_are_not_known_are_lerobots_own(when) -> None:
    policy = trained()
    if when == "after":
        quiet(policy, window=8)
    scheduler = policy.diffusion.noise_scheduler
    policy.diffusion.noise_scheduler = type(scheduler).from_config(
        scheduler.config, thresholding=True, sample_max_value=1.5
    )
    said = LOOP + "thresholding of the DDPMScheduler"
    if when == "before":
        with pytest.warns(UserWarning, match=said):
            quiet(policy, window=8, warmup=True, check=True)
    with pytest.warns(UserWarning, match=said):
        ours = chunk(policy, encoded(policy, 1))
    with torch.no_grad():
        theirs = policy.diffusion.conditional_sample.own(
            1, encoded(policy, 1), torch.Generator().manual_seed(0)
        )
    assert torch.equal(ours, theirs)


def test_more_steps_than_were_trained_are_refused() -> None:
    policy = trained(num_inference_steps=101)
    with pytest.raises(ValueError, match=r"num_inference_steps=101 is more .* at most 100$"):
        quiet(policy, window=8)
    policy.diffusion.num_inference_steps = 100
    quiet(policy, window=8)
    policy.diffusion.num_inference_steps = 101
    with (
        pytest.warns(UserWarning, match=LOOP + "num_inference_steps=101"),
        pytest.raises(ValueError, match="cannot be larger than"),  # which is LeRobot's own error
    ):
        chunk(policy, encoded(policy, 1))


def test_steps_weights_and_networks_are_those_of_the_call() -> None:
    policy = quiet(trained(), "ddpm")
    rows = encoded(policy)
    chunk(policy, rows)
    policy.diffusion.num_inference_steps = 10
    chunk(policy, rows)
    assert int(policy.diffusion.conditional_sample.stats.calls.max()) <= 10
    policy.diffusion.num_inference_steps = 100
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01, fused=True)
    policy.diffusion.unet(torch.ones(1, 16, 2), torch.tensor([5]), rows[:1]).sum().backward()
    before = chunk(policy, rows)
    optimizer.step()
    after = chunk(policy, rows)
    assert not torch.allclose(before, after, atol=1e-3)
    assert asd.difference_to_its_loop(policy, 3, rows) < 2e-5
    fresh = quiet(trained(), "ddpm")
    fresh.load_state_dict(policy.state_dict())
    fresh.diffusion.unet = copy.deepcopy(policy.diffusion.unet)
    assert torch.equal(chunk(fresh, rows), after)


class LowRank(torch.nn.Module):
    """An adapter in the place of a layer, as peft puts it there."""

    def __init__(self, layer) -> None:
        super().__init__()
        self.base_layer = layer
        self.low = torch.nn.Conv1d(layer.in_channels, layer.out_channels, 1)

    def forward(self, x):
        return self.base_layer(x) + self.low(x)


def test_layers_are_those_of_the_call() -> None:
    policy = quiet(trained(), "ddpm")
    rows, block = encoded(policy), policy.diffusion.unet.mid_modules[0].conv1.block
    before = chunk(policy, rows)
    block[0] = LowRank(block[0])
    assert not torch.allclose(chunk(policy, rows), before, atol=1e-3)
    assert asd.difference_to_its_loop(policy, 3, rows) < 2e-5
    block[0] = block[0].base_layer
    assert torch.equal(chunk(policy, rows), before)


def test_hooks_are_those_of_the_call() -> None:
    policy = quiet(trained(), "ddpm")
    rows, layer = encoded(policy), policy.diffusion.unet.mid_modules[0]
    before = chunk(policy, rows)
    hook = layer.register_forward_hook(lambda module, given, out: 2 * out)
    assert not torch.allclose(chunk(policy, rows), before, atol=1e-3)
    assert asd.difference_to_its_loop(policy, 3, rows) < 2e-5
    hook.remove()
    assert torch.equal(chunk(policy, rows), before)
    seen = []
    layer.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    fresh = quiet(copy.deepcopy(policy), "ddpm")
    seen.clear()
    torch.testing.assert_close(chunk(fresh, rows), before, rtol=0, atol=1e-4)
    assert seen  # though it changes nothing


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_observations_that_are_not_finite_are_refused(bad) -> None:
    policy = quiet(trained(), window=8)
    with pytest.raises(NonFiniteError, match="a condition holds a NaN or infinite value"):
        policy.select_action({k: v * bad for k, v in observation(1).items()})


def test_options_are_a_closed_set() -> None:
    with pytest.raises(InputError, match="did you mean 'asd'"):
        quiet(trained(), "adsd")
    with pytest.raises(InputError, match="got 'windw'; did you mean 'window'"):
        quiet(trained(), windw=8)
    with pytest.raises(InputError, match="1 and the 100 training steps, got 200"):
        quiet(trained(), "asd", steps=200)
