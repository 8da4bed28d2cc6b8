"""U-Nets of other packages and other construction: read from the module itself, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import asd_policy
from asd_policy import DiffusionPolicy, Schedule
from asd_policy.engine import make_engine
from asd_policy.networks import ConditionalUnet1D, InferenceUnet1D, OthersUnet1D
from asd_policy.networks.layers import check_layers
from asd_policy.networks.prepare import PreparedUnet1D, copied_bytes, prepare
from asd_policy.networks.unet1d import ConditionalResidualBlock1D, Conv1dBlock
from asd_policy.policy import Checkpoint, load_checkpoint, save_checkpoint
from reference.others_unet import PublishedUnet1D, RenamedUnet1D
from reference.tiny import tiny_checkpoint

SCHEDULE = Schedule.ddpm(8)
SHAPE, WIDTH = (8, 2), 3


def randomized(network: nn.Module) -> Any:
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return network


def published(**changes: Any) -> PublishedUnet1D:
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "kernel_size": 5}
    return randomized(PublishedUnet1D(2, global_cond_dim=WIDTH, **{**sizes, **changes}))


def ours(**changes: Any) -> ConditionalUnet1D:
    return randomized(ConditionalUnet1D(2, WIDTH, 8, **{"down_dims": (8, 16), **changes}))


def check_equal(network: Callable, prepared: Any) -> None:
    """What is sampled is what the network itself says, at every step."""
    x = torch.randn(SCHEDULE.num_steps, *SHAPE, generator=torch.Generator().manual_seed(1))
    steps, chains = torch.arange(8), torch.zeros(8, dtype=torch.int64)
    cond = torch.linspace(-1, 1, WIDTH)[None]
    with torch.no_grad():
        expected = network(x, SCHEDULE.timesteps, cond.expand(8, -1))
    found = prepared.evaluate(x, steps, chains, prepared.condition(cond, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scales", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
def test_a_published_network_is_read_layer_by_layer(scales, groups, kernel_size) -> None:
    """Its last block has 8 groups whatever ``n_groups`` is, and by default it shifts only."""
    source = published(n_groups=groups, cond_predict_scale=scales, kernel_size=kernel_size)
    network = OthersUnet1D(source)
    prepared = prepare(network, SCHEDULE.timesteps)
    assert isinstance(prepared, PreparedUnet1D)
    check_equal(network, prepared)
    cond = torch.ones(2, WIDTH)
    options: dict[str, Any] = {"shape": (2, *SHAPE), "cond": cond, "seed": 0, "sampler": "ddpm"}
    expected = asd_policy.sample(network, SCHEDULE, **options).sample
    engine = make_engine("eager", prepared, SCHEDULE, SHAPE)
    found = asd_policy.sample(prepared, SCHEDULE, engine=engine, **options).sample
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_weights_alone_would_be_read_wrongly() -> None:
    """The control: ``n_groups`` in every block, as the argument seems to say."""
    source = published(n_groups=4)
    wrong = ConditionalUnet1D(2, WIDTH, 8, (8, 16), n_groups=4, cond_predict_scale=False)
    wrong.load_state_dict(source.state_dict())
    with pytest.raises(AssertionError, match="not close"):
        check_equal(OthersUnet1D(source), prepare(wrong, SCHEDULE.timesteps))
    right = ConditionalUnet1D(
        2, WIDTH, 8, (8, 16), n_groups=4, cond_predict_scale=False, final_n_groups=8
    )
    right.load_state_dict(source.state_dict())
    check_equal(OthersUnet1D(source), prepare(right, SCHEDULE.timesteps))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("scales", [True, False])
def test_lerobots_names_are_read_too(scales, compiled) -> None:
    """And a network behind ``torch.compile``, without compiling it."""
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "kernel_size": 5, "n_groups": 4}
    source = randomized(RenamedUnet1D(2, global_cond_dim=WIDTH, cond_predict_scale=scales, **sizes))
    names = source.state_dict().keys()
    assert "mid_modules.0.conv1.block.0.weight" in names
    assert "down_modules.0.2.weight" in names

    def never(graph, inputs):
        raise AssertionError("it was compiled")

    given = torch.compile(source, backend=never) if compiled else source
    check_equal(OthersUnet1D(source), prepare(OthersUnet1D(given), SCHEDULE.timesteps))
    assert source.state_dict().keys() == names


def test_what_a_copy_takes_is_known_before_it_is_made() -> None:
    for network in (ours(), ours(cond_predict_scale=False), OthersUnet1D(published())):
        unet = InferenceUnet1D(
            network.as_unet() if isinstance(network, OthersUnet1D) else network, SCHEDULE.timesteps
        )
        held = sum(t.numel() * t.element_size() for t in [*unet.parameters(), *unet.buffers()])
        assert copied_bytes(network, SCHEDULE.num_steps) == held


def test_other_epsilons_and_half_weights_are_read_too() -> None:
    source = published()
    for module in source.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 0.1
    check_equal(OthersUnet1D(source), prepare(OthersUnet1D(source), SCHEDULE.timesteps))
    expected = OthersUnet1D(published().bfloat16().float())
    check_equal(expected, prepare(OthersUnet1D(published().bfloat16()), SCHEDULE.timesteps))


def test_it_stays_as_it_is_and_may_be_trained_on() -> None:
    source = published().train()
    names = {name: parameter.requires_grad for name, parameter in source.named_parameters()}
    network = OthersUnet1D(source)
    prepared = prepare(network, SCHEDULE.timesteps)
    assert source.training
    assert names == {name: p.requires_grad for name, p in source.named_parameters()}
    assert not any(p.is_meta for p in source.parameters())
    check_equal(network, prepared)
    optimizer = torch.optim.AdamW(source.parameters(), lr=0.1, fused=True)
    source(torch.ones(2, *SHAPE), torch.tensor([1, 5]), global_cond=torch.ones(2, WIDTH)).square(
    ).sum().backward()  # fmt: skip
    optimizer.step()
    check_equal(network, prepared)
    source.load_state_dict(published(n_groups=8).state_dict(), assign=True)
    check_equal(network, prepared)


def test_a_policy_of_it_acts_and_is_saved(tmp_path) -> None:
    made = tiny_checkpoint()
    sizes = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "n_groups": 4}
    source = randomized(PublishedUnet1D(2, global_cond_dim=10, **sizes))
    network = OthersUnet1D(source)
    config = asd_policy.policy.PolicyConfig(
        **{
            **{name: getattr(made.config, name) for name in (
                "observation_keys", "action_dim", "obs_horizon", "action_horizon", "pred_horizon",
                "down_dims", "step_embed_dim", "n_groups",
            )},
            "kernel_size": 3, "cond_predict_scale": False, "final_n_groups": 8,
        }
    )  # fmt: skip
    rest = made.schedule, made.observation_normalizer, made.action_normalizer
    policies = [
        DiffusionPolicy(Checkpoint(network, config, *rest), asd_policy.SamplerConfig("ddpm"))
    ]
    folder = save_checkpoint(tmp_path / "made", Checkpoint(network, config, *rest))
    assert load_checkpoint(folder).config == config
    policies.append(DiffusionPolicy.load(folder, sampler="ddpm"))
    actions = []
    for policy in policies:
        policy.reset(0)
        keys = policy.observation_keys.items()
        actions.append(
            torch.from_numpy(policy.act({k: 0.1 * torch.ones(n).numpy() for k, n in keys}))
        )
    torch.testing.assert_close(*actions)


def test_a_checkpoint_does_not_keep_another_number_of_groups(tmp_path) -> None:
    """Weights do not tell it, so that it would be loaded as another function."""
    made = tiny_checkpoint()
    made.network.final_conv[0].block[1].num_groups = 8
    message = r"final_conv\.0\.block\.1\.num_groups +wrong shape +\(4,\) +\(8,\)"
    with pytest.raises(asd_policy.CheckpointError, match=message):
        save_checkpoint(tmp_path / "made", made)
    assert not (tmp_path / "made").exists()


class Reordered(PublishedUnet1D):
    """The same weights, another function."""

    def forward(self, sample: Tensor, timestep: Tensor, **conditions: Any) -> Tensor:
        return -super().forward(sample, timestep, **conditions)


def relu(network: nn.Module) -> nn.Module:
    network.mid_modules[0].blocks[0].block[2] = nn.ReLU()
    return network


def without_norm(network: nn.Module) -> nn.Module:
    network.mid_modules[0].blocks[0].block[1] = nn.BatchNorm1d(16)
    return network


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: relu(published()), "computes something else"),
        (lambda: without_norm(published().eval()), r"of another construction|expected a GroupNorm"),
        (lambda: Reordered(2, global_cond_dim=3, down_dims=(8, 16)), "computes something else"),
        (lambda: published(local_cond_dim=3), "with local conditions"),
        (lambda: nn.Linear(2, 2), "got a Linear without diffusion_step_encoder, down_modules"),
        (lambda: published(kernel_size=4), "odd"),
    ],
)
def test_another_construction_is_refused(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        OthersUnet1D(make())


# ---- ours, changed after it was made ------------------------------------------------------------


def test_shift_only_modulation_is_folded() -> None:
    network = ours(cond_predict_scale=False)
    assert network.mid_modules[0].cond_encoder[1].out_features == 16
    check_equal(network, prepare(network, SCHEDULE.timesteps))
    scale = InferenceUnet1D(network, SCHEDULE.timesteps).timestep_film[:, :8]
    assert torch.equal(scale, torch.ones_like(scale)), "exactly 1"


@pytest.mark.parametrize("layers", ["products", "fused"])
@pytest.mark.parametrize("scales", [True, False])
def test_groups_may_differ_from_block_to_block(layers, scales) -> None:
    network = ours(n_groups=4, final_n_groups=8, cond_predict_scale=scales)
    network.down_modules[0][0].blocks[1].block[1].num_groups = 2
    unet = InferenceUnet1D(network, SCHEDULE.timesteps, layers=layers)
    x, cond = torch.ones(1, *SHAPE), torch.ones(1, WIDTH)
    with torch.no_grad():
        expected = network(x, SCHEDULE.timesteps[:1], cond)
    found = unet(x, unet.timestep_film[:1] + unet.condition(cond, 1))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class Doubled(ConditionalUnet1D):
    def forward(self, x: Tensor, timesteps: Tensor, cond: Tensor | None = None) -> Tensor:
        return 2 * super().forward(x, timesteps, cond)


class Gated(Conv1dBlock):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + self.block(x).sigmoid()


def activation(network: ConditionalUnet1D) -> None:
    network.final_conv[0].block[2] = nn.SiLU()


def of_the_condition(network: ConditionalUnet1D) -> None:
    network.mid_modules[1].cond_encoder[0] = nn.ReLU()


def kernel(network: ConditionalUnet1D) -> None:
    network.mid_modules[0].blocks[0].block[0] = nn.Conv1d(16, 16, 9, padding=4)


def dilated(network: ConditionalUnet1D) -> None:
    network.mid_modules[0].blocks[0].block[0] = nn.Conv1d(16, 16, 5, padding=4, dilation=2)


def circular(network: ConditionalUnet1D) -> None:
    network.mid_modules[0].blocks[0].block[0].padding_mode = "circular"
    network.mid_modules[0].blocks[0].block[0] = nn.Conv1d(16, 16, 5, 1, 2, padding_mode="circular")


def resampling(network: ConditionalUnet1D) -> None:
    network.down_modules[0][2] = nn.AvgPool1d(2)


def wider_resampling(network: ConditionalUnet1D) -> None:
    network.down_modules[0][2].conv = nn.Conv1d(8, 8, 5, 2, 2)


def hooked(network: ConditionalUnet1D) -> None:
    network.mid_modules[0].register_forward_hook(lambda module, given, out: 2 * out)


def patched(network: ConditionalUnet1D) -> None:
    network.mid_modules[0].forward = lambda x, cond: x


def gated(network: ConditionalUnet1D) -> None:
    network.final_conv[0] = Gated(8, 8, 5, 8)


def parametrized(network: ConditionalUnet1D) -> None:
    torch.nn.utils.parametrizations.weight_norm(network.final_conv[1])


CHANGED = {
    change.__name__: change
    for change in (activation, of_the_condition, kernel, dilated, circular, resampling,
                   wider_resampling, hooked, patched, gated, parametrized)
}  # fmt: skip


@pytest.mark.parametrize("change", [*CHANGED, "subclass"])
def test_what_cannot_be_folded_is_sampled_as_it_is(change) -> None:
    network = randomized(Doubled(2, WIDTH, 8, (8, 16))) if change == "subclass" else ours()
    if change != "subclass":
        CHANGED[change](network)
    assert prepare(network, SCHEDULE.timesteps) is network
    with pytest.raises(ValueError, match=r"^the U-Net's .* expected "):
        check_layers(network)
    with pytest.raises(ValueError, match=r"^the U-Net's .* expected "):
        InferenceUnet1D(network, SCHEDULE.timesteps)
    with pytest.raises(ValueError, match=r"for a ConditionalUnet1D, the U-Net's .* expected "):
        prepare(network, SCHEDULE.timesteps, "bf16")


def test_what_the_class_makes_can_be_folded() -> None:
    for network in (ours(), ours(down_dims=(8,)), ours(kernel_size=1), ours(n_groups=1)):
        check_layers(network)
        assert isinstance(network.mid_modules[0], ConditionalResidualBlock1D)


def test_the_last_blocks_groups_must_divide_its_channels() -> None:
    with pytest.raises(ValueError, match="final_n_groups=3 must divide 8"):
        ours(final_n_groups=3)
