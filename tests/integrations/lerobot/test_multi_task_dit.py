"""multi_task_dit, trained by diffusion: the same hook in another place. LeRobot 0.5 and later."""

from __future__ import annotations

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
pytest.importorskip("transformers", reason="needs the encoders of multi_task_dit")
pytest.importorskip("lerobot.policies.multi_task_dit", reason="needs LeRobot 0.5 or later")
pytest.importorskip("websockets")
import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
)

import asd_policy.integrations.lerobot as asd
from asd_policy.errors import CheckpointError, InputError
from asd_policy.integrations.lerobot.history import keep_history
from asd_policy.integrations.loaders import open_policies
from asd_policy.serving import Client, RemotePolicy
from reference.served import address, served

PLACE = {"device": "cpu", "engine": "eager", "precision": "fp32", "compile": False, "threads": 1}
VIEW = "observation.images.view"
WORDS = ["unknown", "pick", "up", "the", "cube", "push", "it", "away"]
TOKENS = "observation.language.tokens", "observation.language.attention_mask"


@pytest.fixture(autouse=True)
def no_download(monkeypatch) -> None:
    """Encoders of 16 numbers, and a tokenizer of a few words, in the place of the Hub's."""
    small = CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
        vocab_size=64, max_position_embeddings=16, bos_token_id=62, eos_token_id=63,
    )  # fmt: skip

    def made(cls, name):
        return cls(small)

    def seeing(cls, name):
        return cls(CLIPVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1,
            image_size=32, patch_size=16,
        ))  # fmt: skip

    def reading(name, **options):
        words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token=WORDS[0]))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=WORDS[0])

    monkeypatch.setattr(CLIPTextModel, "from_pretrained", classmethod(made))
    monkeypatch.setattr(CLIPVisionModel, "from_pretrained", classmethod(seeing))
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", reading)


def make(cameras=0, **changes):
    views = {
        f"{VIEW}{n}": PolicyFeature(type=FeatureType.VISUAL, shape=(3, 40, 40))
        for n in range(cameras)
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = MultiTaskDiTPolicy(
            MultiTaskDiTConfig(
                input_features={
                    "observation.state": PolicyFeature(type=FeatureType.STATE, shape=(3,)), **views
                },
                output_features={"action": PolicyFeature(type=FeatureType.ACTION, shape=(2,))},
                device="cpu", hidden_dim=16, num_layers=2, num_heads=2, horizon=16,
                n_action_steps=8, timestep_embed_dim=16, image_resize_shape=(32, 32),
                image_crop_shape=None, tokenizer_max_length=8, **changes,
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


def saved(policy, folder):
    """Its folder, with the processors that LeRobot makes."""
    statistics = {
        key: {name: torch.full((width,), value) for name, value in values.items()}
        for key, width in (("observation.state", 3), ("action", 2))
        for values in ({"min": -2.0, "max": 2.0, "mean": 0.0, "std": 1.0},)
    }
    policy.save_pretrained(folder)
    for each in make_pre_post_processors(policy.config, dataset_stats=statistics):
        each.save_pretrained(folder)
    return folder


def seen(time, cameras):
    """As a robot sends it, with what it is to do."""
    rng = np.random.default_rng(time)
    views = {f"{VIEW}{n}": rng.integers(0, 256, (40, 40, 3), np.uint8) for n in range(cameras)}
    return {"observation.state": rng.uniform(-1, 1, 3), "task": "pick up the cube", **views}


@pytest.mark.parametrize("cameras", [0, 2])
def test_a_served_folder_gives_lerobots_own_actions(cameras, tmp_path, monkeypatch) -> None:
    folder = saved(make(cameras), tmp_path)
    ours = open_policies(folder, PLACE)({"sampler": "ddpm"})
    episode = [seen(time, cameras) for time in range(12)]
    with served(ours) as there, Client(address(there)) as client:
        assert client.metadata["texts"] == ["task"]
        robot = RemotePolicy(client)
        robot.reset(3)
        got = np.stack([robot.act(each) for each in episode])
    stream, drawn = ours.source.stream(3), []
    for _ in range(2):
        made = ours.source.sampler.noise([stream])
        rows = [made.initial, *made.steps.unbind(1)][: ours.schedule.num_steps]
        drawn.extend(row.reshape(1, 16, 2) for row in rows)
    policy, before, after = asd.load(folder, verbose=False)
    del policy.objective.conditional_sample
    with monkeypatch.context() as within:
        within.setattr(torch, "randn", lambda *given, **named: drawn.pop(0))
        within.setattr(torch, "randn_like", lambda *given, **named: drawn.pop(0))
        expected = [
            after(policy.select_action(before(as_lerobot_has_it(each)))) for each in episode
        ]
    assert not drawn
    np.testing.assert_allclose(got, np.concatenate([row.numpy() for row in expected]), atol=2e-5)
    assert np.abs(got[0] - got[1]).max() > 1e-3


def as_lerobot_has_it(values):
    return {
        key: value if key == "task"
        else torch.from_numpy(value)[None].permute(0, 3, 1, 2).float() / 255 if key.startswith(VIEW)
        else torch.from_numpy(value)[None].float()
        for key, value in values.items()
    }  # fmt: skip


def test_openpis_own_client_says_what_is_to_be_done(tmp_path) -> None:
    """Its prompt, beside the observation, as its examples for ALOHA, DROID and LIBERO send it."""
    theirs = pytest.importorskip("openpi_client.websocket_client_policy")
    policy = open_policies(saved(make(2), tmp_path), PLACE)({"sampler": "asd", "window": 8})
    sent = seen(0, 2)
    text = sent.pop("task")
    with served(policy) as there:

        def first_chunk(**said):
            client = theirs.WebsocketClientPolicy(f"{address(there)}/?seed=3")
            return client.infer(sent | said)["actions"]

        prompted = first_chunk(prompt=text)
        np.testing.assert_array_equal(prompted, first_chunk(task=text))
        assert np.abs(prompted - first_chunk(prompt="push it away")).max() > 1e-4


def test_what_it_is_to_do_reaches_the_policy(tmp_path) -> None:
    """Each robot's own text, also as openpi's prompt; and none is refused by name."""
    policy = open_policies(saved(make(), tmp_path), PLACE)({"sampler": "asd", "window": 8})
    state, texts = seen(0, 0)["observation.state"], ["pick up the cube", "push it away"]
    with served(policy) as there, Client(address(there)) as client:

        def drawn(message, **asked):
            return client.infer_batch(message, begin=[[0, 1], [1, 1]], **asked)["actions"]

        both = drawn({"observation.state": np.stack([state, state]), "task": np.array(texts)})
        assert np.abs(both[0] - both[1]).max() > 1e-4
        client.ask({}, "reset", begin=[[0, 1]])
        alone = client.infer({"observation.state": state, "prompt": texts[0]})
        np.testing.assert_allclose(alone["actions"], both[0], atol=1e-5)
        assert "unused" not in alone
        with pytest.raises(InputError, match=r"task.*missing"):
            client.infer({"observation.state": state})
        with pytest.raises(InputError, match="'task' must be text, got int64"):
            client.infer({"observation.state": state, "task": 3})
