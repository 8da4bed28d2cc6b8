"""LeRobot's own commands, run by this package on small policies."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
from safetensors.torch import load_file, save_file

from asd_policy.errors import CheckpointError, InputError

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
from asd_policy.integrations import lerobot as asd
from asd_policy.integrations.lerobot import loading
from asd_policy.integrations.lerobot.__main__ import main
from asd_policy.integrations.lerobot.folders import built
from integrations.lerobot.small_checkpoints import ENV, INPUTS, OUTPUTS, STATE, save


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("lerobot") / "own", STATE, ENV)


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The policies that a command accelerates."""
    made: list[Any] = []
    accelerate = loading.accelerate
    monkeypatch.setattr(
        loading, "accelerate", lambda *a, **k: made.append(accelerate(*a, **k)) or made[-1]
    )
    return made


def pusht(checkpoint: Path, out: Path, *words: str) -> list[str]:
    return [
        "eval", f"--policy.path={checkpoint}", "--env.type=pusht",
        "--env.obs_type=environment_state_agent_pos", "--env.episode_length=10",
        "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false",
        f"--output_dir={out}", *words,
    ]  # fmt: skip


@pytest.fixture
def no_films(monkeypatch: pytest.MonkeyPatch) -> None:
    from lerobot.scripts import lerobot_eval

    monkeypatch.setattr(lerobot_eval, "write_video", lambda *_: None)


@pytest.mark.usefixtures("no_films")
def test_two_episodes_of_pusht(
    checkpoint: Path, tmp_path: Path, accelerated: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gym_pusht")
    words = pusht(checkpoint, tmp_path / "out", "--sampler=asd", "--window=8", "--check")
    assert main(words) == 0
    info = json.loads((tmp_path / "out" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    (policy,) = accelerated
    calls = vars(policy.diffusion)["conditional_sample"].stats.calls
    assert calls.shape == (2,)  # both environments in one chunk
    assert int(calls.max()) < 60
    said = capsys.readouterr().out
    assert "asd-policy: asd on a DDPM of 100 steps" in said
    assert "asd-policy: sequential ddpm equals your loop to" in said


@pytest.mark.usefixtures("no_films")
def test_without_a_sampler_it_is_lerobots_own_loop(
    checkpoint: Path, tmp_path: Path, accelerated: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gym_pusht")
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionModel

    own, ran = DiffusionModel.conditional_sample, []
    monkeypatch.setattr(
        DiffusionModel, "conditional_sample", lambda *a, **k: ran.append(1) or own(*a, **k)
    )
    assert main(pusht(checkpoint, tmp_path / "out", "--policy.num_inference_steps=3")) == 0
    assert not accelerated
    assert len(ran) == 2  # 10 steps, 8 actions a chunk


def test_what_comes_after_is_as_before(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command leaves LeRobot as it found it, however it ends."""
    from lerobot.scripts import lerobot_eval

    before = lerobot_eval.make_policy, list(sys.argv)
    seen: list[Any] = []

    def fails() -> None:
        seen.extend((lerobot_eval.make_policy, sys.argv))
        raise KeyboardInterrupt

    monkeypatch.setattr(lerobot_eval, "main", fails)
    words = [f"--policy.path={checkpoint}", "--policy.device", "cpu", "--seed=3"]
    assert main(["eval", *words[:2], "--sampler=asd", *words[2:]]) == 130
    assert (lerobot_eval.make_policy, sys.argv) == before
    assert seen[0] is not before[0]
    assert seen[1] == ["lerobot-eval", *words]  # all that is not ours, in its order


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--window=8"], "expected --sampler NAME beside --window; got none"),
        (["--sampler", "asdf"], "asdf"),
        (
            ["--sampler", "asd", "--steps", "0"],
            "inference steps must be a whole number from 1 on, got 0",
        ),
        (["--sampler", "asd", "--engine", "fast"], "engine"),
        (["--sampler", "asd", "--precision", "fp64"], "precision"),
        (
            ["--sampler", "asd", "--policy.path=/no/such/folder"],
            "/no/such/folder is neither a folder nor",
        ),
    ],
)
def test_mistakes_are_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--env.type=pusht", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("error: ")
    assert "Traceback" not in error


def load(folder: Path) -> Any:
    """As ``eval`` loads a policy; its command line takes seconds to read."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.envs.configs import PushtEnv
    from lerobot.scripts.lerobot_eval import make_policy

    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    env = PushtEnv(obs_type="environment_state_agent_pos")
    return loading.loader(make_policy, {"sampler": "asd"})(cfg=config, env_cfg=env)


def test_a_mistake_in_the_plugins_options_too(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = pusht(checkpoint, tmp_path, "--policy.type=asd_diffusion", "--policy.sampler=asdf")
    assert main(words) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: sampler must be one of")


def test_another_policy_is_refused(tmp_path: Path) -> None:
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    config = ACTConfig(
        input_features={key: INPUTS[key] for key in (STATE, ENV)}, output_features=dict(OUTPUTS),
        device="cpu", dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1,
        n_vae_encoder_layers=1, push_to_hub=False,
    )  # fmt: skip
    ACTPolicy(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="got act: only diffusion has steps to save"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("down_dims", [16, 32, 64]), ("use_film_scale_modulation", False)]
)
def test_settings_that_contradict_the_weights(
    checkpoint: Path, tmp_path: Path, name: str, value: Any
) -> None:
    shutil.copytree(checkpoint, tmp_path / "wrong")
    file = tmp_path / "wrong" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(CheckpointError, match=r"contradict its config\.json"):
        load(tmp_path / "wrong")


def test_weights_that_are_not_there(checkpoint: Path, tmp_path: Path) -> None:
    """LeRobot warns, and would act with random ones."""
    shutil.copytree(checkpoint, tmp_path / "wrong")
    file = tmp_path / "wrong" / "model.safetensors"
    weights = load_file(file)
    save_file({name: w for name, w in weights.items() if "final_conv" not in name}, file)
    with pytest.raises(CheckpointError, match=r"contradict its config\.json:[^$]*final_conv"):
        load(tmp_path / "wrong")


def test_a_download_that_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture encoder's first weights, which the checkpoint's replace at once."""
    from lerobot.policies.diffusion import modeling_diffusion

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr(modeling_diffusion.DiffusionModel, "__init__", offline)
    with pytest.raises(CheckpointError, match=r"an encoder .* could not be had .*no network"):
        load(checkpoint)


def hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[dict[str, Any]]:
    """A Hub that has this folder under every name; what it was asked."""
    asked: list[dict[str, Any]] = []

    def snapshot_download(name: str, **how: Any) -> str:
        asked.append({"name": name, **how})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return asked


@pytest.mark.parametrize("revision", [None, "v1"])
def test_a_revision_is_the_one_that_is_loaded(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    asked = hub(monkeypatch, checkpoint)
    words = ["--policy.path=me/pusht"]
    words += [f"--policy.pretrained_revision={revision}"] if revision else []
    with loading.readable(words) as read:
        assert f"--policy.path={checkpoint}" in read
    assert [each["revision"] for each in asked] == [revision]


def test_a_path_in_a_file_of_settings(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint is read as one on the command line is, which comes before it."""
    asked, file = hub(monkeypatch, checkpoint), tmp_path / "eval.yaml"
    file.write_text("policy:\n  path: me/pusht\n  pretrained_revision: v1\n", encoding="utf-8")
    words = [f"--config_path={file}"]
    with loading.readable(words) as read:
        assert read == [*words, f"--policy.path={checkpoint}"]
    assert [(each["name"], each["revision"]) for each in asked] == [("me/pusht", "v1")]
    words = [f"--config_path={file}", f"--policy.path={checkpoint}"]
    with loading.readable(words) as read:
        assert read == words
    for text in ("policy: {type: act}", "policy: 3", "- 1", "a: [", ""):
        file.write_text(text, encoding="utf-8")
        assert loading.policy_in_file(words) == {}


def test_a_name_on_the_hub_that_no_path_gives(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--policy.pretrained_path, or a configuration's file, names it."""
    asked = hub(monkeypatch, checkpoint)
    policy = asd.load(checkpoint)[0]
    config = SimpleNamespace(**vars(policy.config))
    config.pretrained_path, config.pretrained_revision = Path("me/pusht"), "v1"
    loaded = loading.loader(lambda cfg: policy, {"sampler": "ddpm"})(cfg=config)
    assert loaded is policy
    assert (asked[0]["name"], asked[0]["revision"]) == ("me/pusht", "v1")


def test_an_adapter_without_weights_is_named(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "adapter"))
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"use_peft": True}))
    with pytest.raises(CheckpointError, match="holds a PEFT adapter: expected a policy with"):
        asd.load(folder)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    policy = asd.load(checkpoint)[0]
    with pytest.raises(CheckpointError, match="holds a PEFT adapter: expected a policy with"):
        built(policy.config, folder, lambda: policy)


def test_a_command_that_this_release_lacks(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacks = "rollout" if asd.VERSION[:2] < (0, 5) else "record"
    assert main([lacks, "--sampler", "asd", f"--policy.path={checkpoint}"]) == 2
    assert "this LeRobot has no lerobot." in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'grpc'", name="grpc"),
        ImportError("'grpcio' is required but not installed"),  # LeRobot 0.6
    ],
)
def test_a_missing_module_is_named(
    error: ImportError, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from asd_policy.integrations.lerobot import __main__ as runner

    def missing(name: str) -> None:
        raise error

    monkeypatch.setattr(runner, "importlib", SimpleNamespace(import_module=missing))
    assert main(["policy_server", "--sampler", "asd"]) == 2
    said = capsys.readouterr().err
    assert f"needs more than is installed ({error}): pip install 'lerobot[async]'" in said


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["evil"]) == 2
    assert "policy_server --sampler asd" in capsys.readouterr().err
