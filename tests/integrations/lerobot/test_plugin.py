"""The policy type ``asd_diffusion`` in LeRobot's settings, and the distribution that brings it."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asd_policy.errors import InputError

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
from asd_policy.integrations import lerobot as asd
from asd_policy.integrations.lerobot.configuration_asd_diffusion import AsdDiffusionConfig
from asd_policy.integrations.lerobot.loading import loader
from asd_policy.integrations.lerobot.modeling_asd_diffusion import AsdDiffusionPolicy
from asd_policy.integrations.lerobot.policy_type import register
from integrations.lerobot.small_checkpoints import ENV, STATE, save

FRAME = {STATE: torch.full((2, 2), 0.25), ENV: torch.full((2, 16), -0.5)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    register()
    return save(tmp_path_factory.mktemp("lerobot") / "own", STATE, ENV)


def chunk(policy: Any, seed: int = 0) -> torch.Tensor:
    policy.reset()
    torch.manual_seed(seed)
    made = policy.select_action(dict(FRAME))
    return torch.stack([made, *policy._queues["action"]], 1)


def hook(policy: Any) -> Any:
    return vars(policy.diffusion)["conditional_sample"]


def test_lerobot_knows_the_type(checkpoint: Path) -> None:
    """Its factories find settings, policy and processors by names of modules."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_policy_config

    assert PreTrainedConfig.get_choice_class("asd_diffusion") is AsdDiffusionConfig
    assert get_policy_class("asd_diffusion") is AsdDiffusionPolicy
    config = make_policy_config("asd_diffusion", sampler="asd", window=8, device="cpu")
    assert (config.type, config.sampler, config.window) == ("asd_diffusion", "asd", 8)
    from asd_policy.integrations.lerobot import processor_asd_diffusion as processors

    assert callable(processors.make_asd_diffusion_pre_post_processors)


def policy_of_eval(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """A policy's settings, as lerobot-eval makes them of its words."""
    from lerobot.configs import parser
    from lerobot.configs.eval import EvalPipelineConfig

    def policy(cfg: Any) -> Any:
        return cfg.policy

    policy.__annotations__["cfg"] = EvalPipelineConfig  # which LeRobot's parser looks up
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", *words])
    return parser.wrap()(policy)()


@pytest.mark.parametrize("equals", [True, False])
def test_a_checkpoint_of_type_diffusion_on_the_command_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, equals: bool
) -> None:
    if not equals and asd.VERSION[:2] < (0, 5):
        pytest.skip("LeRobot 0.4 reads --name=value only")
    options = {
        "policy.path": str(checkpoint), "policy.type": "asd_diffusion", "policy.sampler": "asd",
        "policy.window": "8", "policy.engine": "eager", "policy.precision": "fp32",
        "policy.num_inference_steps": "50", "env.type": "pusht",
    }  # fmt: skip
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}={value}"] if equals else [f"--{name}", value]
    config = policy_of_eval(monkeypatch, *words)
    assert isinstance(config, AsdDiffusionConfig)
    assert config.sampling() == {
        "sampler": "asd", "engine": "eager", "precision": "fp32", "window": 8,
    }  # fmt: skip
    assert (config.num_inference_steps, tuple(config.down_dims)) == (50, (16, 32))
    assert Path(config.pretrained_path) == checkpoint


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_checkpoint_of_type_diffusion_in_a_file_of_settings(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """LeRobot takes a path from there, and leaves out the type beside it without a word."""
    from lerobot.configs import parser

    if not hasattr(parser, "extract_path_fields_from_config"):
        pytest.skip("this LeRobot takes paths from the command line only")
    for name in ("_config_path_args", "_config_yaml_overrides"):  # LeRobot keeps them
        monkeypatch.setattr(parser, name, {})
    wanted = {"path": str(checkpoint), "type": "asd_diffusion", "sampler": "asd", "window": 8}
    file = tmp_path / f"eval.{suffix}"
    file.write_text(json.dumps({"policy": wanted, "env": {"type": "pusht"}}), encoding="utf-8")
    config = policy_of_eval(monkeypatch, f"--config_path={file}")
    assert isinstance(config, AsdDiffusionConfig)
    assert (config.sampler, config.window) == ("asd", 8)
    assert Path(config.pretrained_path) == checkpoint
    wanted = {"path": str(checkpoint)}
    monkeypatch.setattr(parser, "_config_yaml_overrides", {})
    file.write_text(json.dumps({"policy": wanted, "env": {"type": "pusht"}}), encoding="utf-8")
    assert policy_of_eval(monkeypatch, f"--config_path={file}").type == "diffusion"


def test_types_beside_a_path_are_refused_as_before(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from argparse import ArgumentError

    from lerobot.configs import parser
    from lerobot.configs.policies import PreTrainedConfig

    words = [f"--policy.path={checkpoint}", "--policy.type=act"]
    with pytest.raises(ArgumentError, match="Cannot specify both"):
        parser.filter_path_args(["policy"], words)
    monkeypatch.setattr(sys, "argv", ["lerobot-eval", f"--policy.path={checkpoint}"])
    assert PreTrainedConfig.from_pretrained(checkpoint).type == "diffusion"
    assert parser.filter_path_args(["policy"], [words[0], "--seed=1"]) == ["--seed=1"]
    before = parser.filter_path_args
    register()
    assert parser.filter_path_args is before


def test_it_samples_as_an_accelerated_policy_does(checkpoint: Path) -> None:
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config = AsdDiffusionConfig.from_pretrained(
        checkpoint, cli_overrides=["--sampler=asd", "--window=8"]
    )
    policy = AsdDiffusionPolicy.from_pretrained(checkpoint, config=config)
    own = asd.accelerate(DiffusionPolicy.from_pretrained(checkpoint), sampler="asd", window=8)
    assert torch.equal(chunk(policy), chunk(own))
    assert int(hook(policy).stats.calls.max()) < 60


def test_an_episode_begins_with_what_is_slow_at_first(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LeRobot makes a policy, loads it, moves it, and resets it before the robot moves."""
    policy = AsdDiffusionPolicy.from_pretrained(checkpoint)
    policy.train().reset()
    assert hook(policy).calls is None
    state = torch.get_rng_state()
    policy.eval().reset()
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr("asd_policy.sampler.Sampler.calibrate", None)
    monkeypatch.setattr("asd_policy.sampler.Sampler.measure", None)
    chunk(policy)


def test_so_do_those_of_a_copy_and_of_other_steps(checkpoint: Path) -> None:
    policy = AsdDiffusionPolicy.from_pretrained(checkpoint)
    policy.reset()
    made = copy.deepcopy(policy)
    made.reset()
    assert not hook(made).cold
    made.diffusion.num_inference_steps = 50
    assert hook(made).cold
    made.reset()
    assert not hook(made).cold
    assert not hook(policy).cold


def test_saved_and_read_again(checkpoint: Path, tmp_path: Path) -> None:
    """By LeRobot's own way through its settings, with weights that are not those of the start."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class

    policy = AsdDiffusionPolicy.from_pretrained(
        checkpoint,
        config=AsdDiffusionConfig.from_pretrained(checkpoint, cli_overrides=["--sampler=ddpm"]),
    )
    assert hook(policy).config.name == "ddpm"
    policy.save_pretrained(tmp_path / "ours")
    settings = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert (settings["type"], settings["sampler"]) == ("asd_diffusion", "ddpm")
    config = PreTrainedConfig.from_pretrained(tmp_path / "ours")
    again = get_policy_class(config.type).from_pretrained(tmp_path / "ours")
    assert isinstance(again, AsdDiffusionPolicy)
    assert torch.equal(chunk(again), chunk(policy))
    own = policy.state_dict()
    assert own.keys() == again.state_dict().keys()
    assert not any("sampl" in name for name in own)


def saved_as_ours(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """Of the type ``asd_diffusion``, with processors."""
    shutil.copytree(checkpoint, folder)
    values = json.loads((folder / "config.json").read_text()) | {"type": "asd_diffusion"}
    (folder / "config.json").write_text(json.dumps(values | settings))
    return folder


def test_load_draws_as_the_folder_says(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    """Where it is asked for nothing else; and says once what is run."""
    folder = saved_as_ours(checkpoint, tmp_path / "ours", sampler="asd", window=5, engine="eager")
    loaded = hook(asd.load(folder)[0])
    assert (loaded.config.window, loaded.place.engine) == (5, "eager")
    assert capsys.readouterr().out.count("asd-policy: ") == 1
    other = hook(asd.load(folder, "ddpm", verbose=False)[0])
    assert (other.config.name, other.config.window, other.place.engine) == ("ddpm", "auto", "eager")
    assert "asd-policy" not in capsys.readouterr().out


def test_commands_say_once_what_is_run(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    from lerobot.configs.policies import PreTrainedConfig

    folder = saved_as_ours(checkpoint, tmp_path / "ours", engine="eager")
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    load = loader(
        lambda cfg: AsdDiffusionPolicy.from_pretrained(folder, config=cfg), {"sampler": "ddpm"}
    )
    drawn_by = hook(load(config))
    assert (drawn_by.config.name, drawn_by.place.engine) == ("ddpm", "eager")
    assert capsys.readouterr().out.count("asd-policy: ") == 1


def test_settings_of_another_machine_are_not_in_the_way(checkpoint: Path, tmp_path: Path) -> None:
    """Saved with a GPU's engine, and asked for by another where there is none."""
    folder = saved_as_ours(checkpoint, tmp_path / "ours", engine="cuda_graph", device="cuda")
    assert hook(asd.load(folder, device="cpu", engine="eager")[0]).place.engine == "eager"
    with pytest.raises(InputError, match="'cuda_graph' needs a CUDA device"):
        asd.load(folder, device="cpu")


def test_a_newer_lerobots_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    """With settings that this release does not know, and that are off."""
    shutil.copytree(checkpoint, tmp_path / "newer")
    file = tmp_path / "newer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"a_new_thing": None}))
    own, newer = map(AsdDiffusionPolicy.from_pretrained, (checkpoint, tmp_path / "newer"))
    assert torch.equal(chunk(newer), chunk(own))


def test_a_repository_of_the_hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings come by LeRobot's own download, with what is asked of it."""
    from lerobot.configs.policies import PreTrainedConfig

    from asd_policy.integrations.lerobot import configuration_asd_diffusion as module

    own, asked = PreTrainedConfig.from_pretrained(checkpoint), []
    monkeypatch.setattr(module, "_read", lambda *a, **k: asked.append((a, k)) or own)
    made = AsdDiffusionConfig.from_pretrained("some/one", revision="v1")
    assert asked == [((PreTrainedConfig, "some/one"), {"revision": "v1"})]
    assert made == AsdDiffusionConfig.from_pretrained(checkpoint)


def test_defaults(checkpoint: Path) -> None:
    """A DDPM is sampled by ASD; a checkpoint that samples by DDIM keeps its chain."""
    policy = AsdDiffusionPolicy.from_pretrained(checkpoint)
    assert hook(policy).config.name == "asd"
    config = AsdDiffusionConfig.from_pretrained(
        checkpoint, cli_overrides=["--noise_scheduler_type=DDIM", "--num_inference_steps=4"]
    )
    assert hook(AsdDiffusionPolicy.from_pretrained(checkpoint, config=config)).config.name == "ddim"


def test_it_trains_by_lerobots_own_loss(checkpoint: Path) -> None:
    """And is sampled with the weights of then."""
    policy = AsdDiffusionPolicy.from_pretrained(
        checkpoint,
        config=AsdDiffusionConfig.from_pretrained(
            checkpoint, cli_overrides=["--sampler=ddpm", "--num_inference_steps=5"]
        ),
    )
    before = chunk(policy)
    policy.train()
    batch = {key: value[:, None].expand(-1, 2, -1) for key, value in FRAME.items()}
    batch |= {"action": torch.zeros(2, 16, 2), "action_is_pad": torch.zeros(2, 16).bool()}
    loss, _ = policy.forward(batch)
    loss.backward()
    torch.optim.SGD(policy.parameters(), 1.0).step()
    policy.eval()
    assert not torch.equal(chunk(policy), before)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["--sampler=asdf"], "asdf"),
        (["--window=0"], "window must be"),
        (["--engine=fast"], "engine"),
        (["--precision=fp64"], "precision"),
    ],
)
def test_mistakes_in_options(checkpoint: Path, overrides: list[str], sentence: str) -> None:
    """Said when settings are read, not when the robot moves."""
    with pytest.raises(InputError, match=sentence):
        AsdDiffusionConfig.from_pretrained(checkpoint, cli_overrides=overrides)


def test_other_checkpoints_are_refused(tmp_path: Path, checkpoint: Path) -> None:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.act.configuration_act import ACTConfig

    ACTConfig(device="cpu", push_to_hub=False).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"runs checkpoints of type diffusion; .* is of type act"):
        AsdDiffusionConfig.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected an AsdDiffusionConfig, got a DiffusionConfig"):
        AsdDiffusionPolicy(PreTrainedConfig.from_pretrained(checkpoint))


def test_lerobots_commands_find_the_distribution() -> None:
    """Where it is installed: they import what has its name's beginning."""
    try:
        importlib.metadata.distribution("lerobot_policy_asd")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pip install --no-deps asd_policy/integrations/lerobot/plugin")
    code = (
        "from asd_policy.integrations.torchvision_operators import import_torchvision as first\n"
        "first()\n"
        "from lerobot.utils.import_utils import register_third_party_plugins\n"
        "from lerobot.configs.policies import PreTrainedConfig\n"
        "assert 'asd_diffusion' not in PreTrainedConfig.get_known_choices()\n"
        "register_third_party_plugins()\n"
        "print(PreTrainedConfig.get_choice_class('asd_diffusion').__name__)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.stdout.strip() == "AsdDiffusionConfig", ran.stderr


@pytest.mark.parametrize("setting", [{"engine": "cuda_graph"}, {"precision": "tf32"}])
def test_a_gpu_s_settings_are_looked_at_where_the_policy_will_be(
    checkpoint: Path, setting: dict[str, str]
) -> None:
    """LeRobot makes it on the CPU, and moves it to its device."""
    config = AsdDiffusionConfig.from_pretrained(checkpoint)
    for name, value in setting.items():
        setattr(config, name, value)
    config.device = "cuda"
    AsdDiffusionPolicy(config)
    config.device = "cpu"
    with pytest.raises(InputError, match="needs a CUDA device, the policy is on cpu"):
        AsdDiffusionPolicy(config)
