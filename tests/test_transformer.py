"""The transformer: who sees whom, its checkpoints, and its samples.

That it computes what Chi et al.'s own class does: integrations/test_diffusion_policy_files.py.
"""

import dataclasses

import pytest
import torch

from asd_policy.engine import make_engine
from asd_policy.engine.cuda_graph import CudaGraphEngine
from asd_policy.errors import CheckpointError, InputError
from asd_policy.networks import TransformerForDiffusion, TransformerSizes
from asd_policy.policy import DiffusionPolicy, PolicyConfig
from asd_policy.policy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from asd_policy.policy.normalizer import Normalizer
from asd_policy.samplers.calibration import Calibration
from asd_policy.samplers.config import SamplerConfig
from asd_policy.schedule import Schedule
from reference.chains import bulk_noise, draw
from reference.recorder import HostRecorder

ACTION, OBSERVED, CHUNK, SEEN = 2, 3, 6, 3


def network(**sizes):
    torch.manual_seed(0)
    made = TransformerForDiffusion(
        ACTION, OBSERVED, CHUNK, SEEN, TransformerSizes(**{"n_layer": 2, "n_emb": 8} | sizes)
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def config(**more):
    sizes = TransformerSizes(2, 2, 8)
    return PolicyConfig({"a": 2, "b": 1}, ACTION, 2, 4, 6, transformer=sizes, **more)


def policy_checkpoint():
    torch.manual_seed(0)
    made = config()
    ones = [Normalizer(-torch.ones(n), torch.ones(n)) for n in (3, ACTION)]
    return Checkpoint(made.build_network(), made, Schedule.ddpm(20), *ones)


def influence(made):
    """How much each input moves each action: of actions (T, T), and of observations (T, To)."""
    x = torch.randn(1, CHUNK, ACTION, requires_grad=True)
    cond = torch.randn(1, SEEN * OBSERVED, requires_grad=True)
    out = made(x, torch.tensor([3]), cond)
    rows = [
        torch.autograd.grad(out[0, t].sum(), (x, cond), retain_graph=True) for t in range(CHUNK)
    ]
    return (
        torch.stack([g[0].abs().sum(-1) for g, _ in rows]),
        torch.stack([g[0].unflatten(0, (SEEN, OBSERVED)).abs().sum(-1) for _, g in rows]),
    )


@pytest.mark.parametrize("n_cond_layers", [0, 1])
def test_an_action_sees_those_before_it_and_observations_up_to_its_time(n_cond_layers):
    actions, observations = influence(network(n_cond_layers=n_cond_layers))
    assert torch.equal(actions > 0, torch.ones(CHUNK, CHUNK).tril() > 0)
    if n_cond_layers == 0:  # else observations have seen one another before
        assert torch.equal(observations > 0, torch.ones(CHUNK, SEEN).tril() > 0)


def test_without_causal_attention_all_see_all():
    actions, observations = influence(network(causal_attn=False))
    assert bool((actions > 0).all())
    assert bool((observations > 0).all())


def test_the_time_matters():
    made, x, cond = network(), torch.randn(1, CHUNK, ACTION), torch.randn(1, SEEN * OBSERVED)
    with torch.no_grad():
        early, late = (made(x, torch.tensor([t]), cond) for t in (3, 77))
    assert float((early - late).abs().min()) > 1e-4


@pytest.mark.parametrize(
    ("sizes", "match"),
    [
        ({"n_head": 3}, "n_emb must be even and a multiple of n_head, got n_emb 8 and n_head 3"),
        ({"n_emb": 9, "n_head": 3}, "even"),
        ({"n_layer": 0}, "n_layer must be a whole number from 1 on"),
        ({"n_cond_layers": -1}, "n_cond_layers must be a whole number from 0 on"),
        ({"causal_attn": 1}, "causal_attn must be True or False"),
    ],
)
def test_sizes_that_make_no_transformer(sizes, match):
    with pytest.raises(InputError, match=match):
        network(**sizes)


def test_a_configuration_is_read_as_it_was_written():
    made = config()
    written = made.to_dict()
    assert PolicyConfig.from_dict(written) == made
    assert written["architecture"] == "TransformerForDiffusion"
    assert not {"down_dims", "kernel_size", "step_embed_dim"} & written.keys()
    for change, match in [
        ({"down_dims": [8]}, "got 'down_dims'"),
        ({"architecture": "Transformer"}, "did you mean 'TransformerForDiffusion'"),
        ({"transformer": {"n_layer": 2}}, "transformer must be a mapping of .*'n_head'"),
        ({"transformer": None}, "transformer must be a mapping of"),
        ({"transformer": written["transformer"] | {"n_layer": "two"}}, "n_layer must be a whole"),
    ]:
        with pytest.raises(InputError, match=match):
            PolicyConfig.from_dict(written | change)
    odd = config(down_dims=(8, 16), kernel_size=3)  # of a U-Net, which it has not
    assert odd == made
    with pytest.raises(InputError, match="transformer must be TransformerSizes or None"):
        PolicyConfig({"a": 2}, 2, transformer={"n_layer": 2})


def test_chunks_need_no_multiple_of_anything():
    assert config().chunk_shape == (6, 2)  # a U-Net of three resolutions takes multiples of 4


def test_a_checkpoint_is_saved_loaded_and_acts(tmp_path):
    saved = policy_checkpoint()
    save_checkpoint(tmp_path, saved)
    loaded = load_checkpoint(tmp_path)
    assert loaded.config == saved.config
    for name, value in saved.network.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)
    policy = DiffusionPolicy.load(tmp_path, sampler="asd", window=6)
    policy.reset(0)
    observation = {"a": torch.zeros(2).numpy(), "b": torch.zeros(1).numpy()}
    assert policy.act(observation).shape == (ACTION,)
    with pytest.raises(InputError, match="ConditionalUnet1D, got a TransformerForDiffusion"):
        DiffusionPolicy.load(tmp_path, precision="bf16")


@pytest.mark.parametrize("change", [{"n_head": 1}, {"causal_attn": False}])
def test_what_weights_do_not_tell_is_compared_when_saving(change, tmp_path):
    saved = policy_checkpoint()
    sizes = dataclasses.replace(saved.config.transformer, **change)
    saved.config = dataclasses.replace(saved.config, transformer=sizes)
    with pytest.raises(CheckpointError, match="not the one that the config describes") as error:
        save_checkpoint(tmp_path / "new", saved)
    assert ("num_heads" if "n_head" in change else "mask") in str(error.value)
    assert not (tmp_path / "new").exists()


def test_a_wrapped_one_is_saved_as_what_was_wrapped(tmp_path):
    saved = policy_checkpoint()
    plain = load_checkpoint(save_checkpoint(tmp_path / "plain", saved)).card["sha256"]
    for wrap in (torch.compile, torch.nn.DataParallel):
        wrapped = dataclasses.replace(saved, network=wrap(saved.network))
        save_checkpoint(tmp_path / "wrapped", wrapped)
        assert load_checkpoint(tmp_path / "wrapped").card["sha256"] == plain


def test_a_graph_can_hold_it_and_draws_the_same():
    checkpoint = policy_checkpoint()
    made, schedule = checkpoint.network.eval(), checkpoint.schedule
    shape = checkpoint.config.chunk_shape
    noise = bulk_noise(3, schedule.num_steps, 12, 0)
    noise = type(noise)(*(t.float() for t in (noise.initial, noise.steps, noise.log_uniform)))
    cond = torch.randn(3, checkpoint.config.condition_dim)
    captured = CudaGraphEngine(made, schedule, shape, recorder=HostRecorder(strict=True))
    eager = make_engine("eager", made, schedule, shape)
    for sampler in ("asd", "ddpm"):
        settings = SamplerConfig(sampler, window=6)
        (x, stats), (expected, costs) = (
            draw(settings, engine, noise, cond, Calibration()) for engine in (captured, eager)
        )
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-4)
        assert torch.equal(stats.calls, costs.calls)
