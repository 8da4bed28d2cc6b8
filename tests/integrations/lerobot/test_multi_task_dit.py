"""multi_task_dit, trained by diffusion: the same hook in another place. LeRobot 0.5 and later."""

from __future__ import annotations

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
pytest.importorskip("transformers", reason="needs the encoders of multi_task_dit")
pytest.importorskip("lerobot.policies.multi_task_dit", reason="needs LeRobot 0.5 or later")
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from transformers import CLIPTextConfig, CLIPTextModel

import asd_policy.integrations.lerobot as asd
from asd_policy.errors import CheckpointError, InputError
from asd_policy.integrations.lerobot.history import keep_history

TOKENS = "observation.language.tokens", "observation.language.attention_mask"


@pytest.fixture(autouse=True)
def no_download(monkeypatch) -> None:
    """A text encoder of 16 numbers in the place of the one that the Hub has."""
    small = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=64, max_position_embeddings=16, bos_token_id=62, eos_token_id=63,
    )  # fmt: skip

    def made(cls, name):
        return cls(small)

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", classmethod(made))


def make(**changes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = MultiTaskDiTPolicy(
            MultiTaskDiTConfig(
                input_features={
                    "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(3,))
                },
                output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))},
                device="cpu", hidden_dim=16, num_layers=2, num_heads=2, horizon=16,
                n_action_steps=8, timestep_embed_dim=16, **changes,
            )
        )  # fmt: skip
        for parameter in policy.noise_predictor.parameters():  # its last layers begin as zeros
            parameter.data.add_(torch.randn_like(parameter), alpha=0.05)
    return policy.eval()


def observation(batch):
    generator = torch.Generator().manual_seed(1)
    tokens, mask = TOKENS
    return {
        "observation.state": torch.rand(batch, 3, generator=generator),
        tokens: torch.randint(0, 60, (batch, 8), generator=generator),
        mask: torch.ones(batch, 8, dtype=torch.bool),
    }


def conditions(policy, batch=3):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, policy.observation_encoder.conditioning_dim, generator=generator)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"prediction_type": "sample"}, {"beta_schedule": "linear"}, {"clip_sample_range": 0.5},
        {"num_inference_steps": 20}, {"use_rope": False, "use_positional_encoding": True},
        {"noise_scheduler_type": "DDIM", "num_inference_steps": 10},
    ],
    ids=lambda options: ",".join(map(str, options.values())),
)  # fmt: skip
def test_the_sequential_chain_is_its_loop(options) -> None:
    policy = asd.accelerate(make(**options), verbose=False, window=8)
    given = policy.noise_predictor, 3, conditions(policy)
    worst, largest = policy.objective.conditional_sample.difference(*given)
    assert worst < 1e-4 * max(1.0, largest)
    policy.objective.conditional_sample(*given)
    calls = policy.objective.conditional_sample.stats.calls
    assert int(calls.max()) <= (10 if "noise_scheduler_type" in options else 60)


def test_actions_and_files_are_lerobots(tmp_path, capsys) -> None:
    policy = asd.accelerate(make(), warmup=True, check=True)
    assert "sequential ddpm equals your loop to" in capsys.readouterr().out
    names = policy.state_dict().keys()
    for time in range(9):
        torch.manual_seed(time)
        assert policy.select_action(observation(2)).shape == (2, 2)
    assert policy.objective.conditional_sample.stats.sampler == "asd"
    assert names == make().state_dict().keys()
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path, strict=True)
    del policy.objective.conditional_sample
    drawn = []
    for each in (policy, again):
        torch.manual_seed(0)
        with torch.no_grad():
            drawn.append(
                each.objective.conditional_sample(each.noise_predictor, 2, conditions(each, 2))
            )
    assert torch.equal(*drawn)


def test_flow_matching_is_refused() -> None:
    with pytest.raises(InputError, match="multi_task_dit samples by flow matching, an ODE"):
        asd.accelerate(make(objective="flow_matching"))


def test_training_is_its_own() -> None:
    policy = asd.accelerate(make(), verbose=False)
    policy.train()
    with pytest.warns(UserWarning, match="LeRobot's own loop runs: the policy is in training mode"):
        policy.objective.conditional_sample(policy.noise_predictor, 1, conditions(policy, 1))


def test_an_encoder_that_cannot_be_had(tmp_path, monkeypatch) -> None:
    policy = make()
    policy.save_pretrained(tmp_path)
    for name in ("policy_preprocessor.json", "policy_postprocessor.json"):
        (tmp_path / name).write_text('{"name": "none", "steps": []}')
    assert asd.load(tmp_path, verbose=False)[0].name == "multi_task_dit"

    def offline(cls, name):
        raise OSError(f"We couldn't connect to the Hub to load {name}\nand more")

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", classmethod(offline))
    message = r"an encoder of .* could not be had \(We couldn't connect .*\); load it once where"
    with pytest.raises(CheckpointError, match=message):
        asd.load(tmp_path)


def test_a_history_without_select_action() -> None:
    """As LeRobot's policy server asks for chunks; its own then finds no observations."""
    policy = asd.accelerate(make(num_inference_steps=5), sampler="ddpm", verbose=False)
    frames = [observation(2), {**observation(2), "observation.state": torch.zeros(2, 3)}]
    for frame in frames:
        policy._queues["action"].clear()
        torch.manual_seed(0)
        first = policy.select_action(dict(frame))
    expected = torch.stack([first, *policy._queues["action"]], 1)
    policy.reset()
    with pytest.raises(RuntimeError):
        policy.predict_action_chunk(dict(frames[0]))
    keep_history(policy)
    for frame in frames:
        torch.manual_seed(0)
        chunk = policy.predict_action_chunk(frame)
    assert torch.equal(chunk, expected)
