"""Folders as LeRobot's releases wrote them, and folders that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
import torch
from safetensors.torch import load_file, save_file

import asd_policy.integrations.lerobot as asd
from asd_policy.errors import CheckpointError
from asd_policy.integrations.lerobot.folders import PROCESSORS, built, renewed
from reference.lerobot_policies import as_of_old, encoded, observation, saved, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return saved(trained(), tmp_path_factory.mktemp("saved"))


@pytest.fixture
def mine(folder, tmp_path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "mine"))


def edit(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def act(loaded) -> torch.Tensor:
    policy, before, after = loaded
    policy.reset()
    torch.manual_seed(3)
    return after(policy.select_action(before(observation(2))))


def test_a_folder_is_loaded_and_accelerated(folder, tmp_path, capsys) -> None:
    assert renewed(folder, tmp_path / "new") == folder
    loaded = asd.load(folder, "asd", window=8, warmup=True)
    assert "asd on a DDPM of 100 steps" in capsys.readouterr().out
    action = act(loaded)
    assert action.shape == (2, 2)
    again = asd.load(folder, "ddpm", verbose=False)
    assert float(act(again).abs().max()) > 0
    policy = again[0]
    assert policy.diffusion.conditional_sample.stats.sampler == "ddpm"
    assert asd.difference_to_its_loop(policy, 2, encoded(policy, 2)) < 2e-5


def test_a_folder_of_our_own_type(mine) -> None:
    """Also in a process that has not imported the plugin, nor anything else that knows it."""
    edit(mine, type="asd_diffusion", sampler="asd", window=4)
    text = (
        "import sys; import asd_policy.integrations.lerobot as asd; "
        "print(type(asd.load(sys.argv[1])[0]).__name__)"
    )
    run = subprocess.run([sys.executable, "-c", text, str(mine)], capture_output=True, text=True)
    assert run.stdout.split()[-1:] == ["AsdDiffusionPolicy"], run.stderr


def test_old_folders_without_processors(folder, mine, tmp_path) -> None:
    """Their statistics come out of the weights: of names with underscores too."""
    expected = act(asd.load(folder, "ddpm", verbose=False))
    old = as_of_old(mine)
    assert torch.equal(act(asd.load(old, "ddpm", verbose=False)), expected)
    made = renewed(old, tmp_path / "new")
    assert made == tmp_path / "new"
    assert all((made / name).is_file() for name in PROCESSORS)
    kind = type(trained())
    assert torch.equal(
        kind.from_pretrained(made, strict=True).diffusion.unet.final_conv[1].weight,
        trained().diffusion.unet.final_conv[1].weight,
    )
    assert not (old / PROCESSORS[0]).exists(), "the folder itself stays as it was"


def test_old_folders_without_statistics_are_refused(mine) -> None:
    for path in mine.glob("policy_*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"no policy_preprocessor.json, and no statistics"):
        asd.load(mine)
    old = as_of_old(mine)
    weights = load_file(old / "model.safetensors")
    weights["normalize_inputs.buffer_observation_state.min"].fill_(float("inf"))
    save_file(weights, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"found infinite ones of observation\.state"):
        asd.load(old)
    some = {k: v for k, v in weights.items() if "buffer_action" not in k and v.isfinite().all()}
    some["normalize_inputs.buffer_observation_state.min"] = torch.zeros(2)
    save_file(some, old / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="found none of action in its weights"):
        asd.load(old)


def test_old_folders_that_normalize_nothing_need_no_statistics(mine) -> None:
    for path in mine.glob("policy_*"):
        path.unlink()
    edit(
        mine, normalization_mapping=dict.fromkeys(("VISUAL", "STATE", "ENV", "ACTION"), "IDENTITY")
    )
    _, _, after = asd.load(mine, verbose=False)
    assert torch.equal(after(torch.full((1, 2), 0.5)), torch.full((1, 2), 0.5))


def test_what_a_newer_lerobot_adds_is_left_out_where_it_is_off(folder, mine) -> None:
    """0.6 writes fields into config.json that 0.4 refuses."""
    edit(mine, added_later=None, gradient_checkpointing=True, another_one=False)
    expected = act(asd.load(folder, "ddpm", verbose=False))
    assert torch.equal(act(asd.load(mine, "ddpm", verbose=False)), expected)
    edit(mine, added_later="cosine")
    with pytest.raises(CheckpointError, match=r"sets added_later='cosine', which LeRobot 0\.\d"):
        asd.load(mine)


def test_a_config_that_contradicts_its_weights(mine) -> None:
    config = json.loads((mine / "config.json").read_text())
    edit(mine, down_dims=[16, 48])
    table = r"contradict its config.json:\n +name +problem +expected +got\n +diffusion\.unet"
    with pytest.raises(CheckpointError, match=table):
        asd.load(mine)
    edit(mine, down_dims=config["down_dims"])
    weights = load_file(mine / "model.safetensors")
    weights.pop("diffusion.unet.final_conv.1.weight")
    save_file(weights, mine / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"final_conv.1.weight +missing"):
        asd.load(mine)


def test_an_encoder_is_not_downloaded(tmp_path, monkeypatch) -> None:
    """Its weights are in the folder. LeRobot's own loading asks for it all the same."""
    policy = trained(1, steps=2, use_group_norm=False)
    mine = saved(policy, tmp_path)
    named = "ResNet18_Weights.IMAGENET1K_V1"
    edit(mine, pretrained_backbone_weights=named)

    def offline(*given, **named):
        raise OSError("no route to host")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(OSError, match="no route"):
        type(policy).from_pretrained(mine)
    loaded, *_ = asd.load(mine, verbose=False)
    assert loaded.config.pretrained_backbone_weights == named
    assert torch.equal(encoded(loaded), encoded(policy))


@pytest.mark.parametrize("saved_compiled", [False, True])
@pytest.mark.parametrize("kind", ["diffusion", "asd_diffusion"])
def test_a_unet_that_is_compiled_keeps_its_weights(
    tmp_path, monkeypatch, saved_compiled, kind
) -> None:
    """Compiled, they have other names, by which LeRobot finds none: it leaves them random.
    lerobot-rollout sets ``compile_model`` to its own option, whatever the folder says."""
    from lerobot.policies.factory import get_policy_class

    from asd_policy.integrations.lerobot.configuration_asd_diffusion import AsdDiffusionConfig

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda unet, mode: compiler(unet, backend="eager"))
    policy = trained(steps=2)
    if not hasattr(policy.config, "compile_model"):
        pytest.skip("this LeRobot compiles no U-Net")
    unet = policy.diffusion.unet
    if saved_compiled:
        policy.config.compile_model, policy.diffusion.unet = True, torch.compile(unet, mode=None)
    mine = saved(policy, tmp_path)
    config = AsdDiffusionConfig.from_pretrained(mine)
    config = config if kind == "asd_diffusion" else policy.config
    config.compile_model = not saved_compiled
    load = get_policy_class(kind).from_pretrained
    read = built(config, mine, lambda: load(mine, config=config))
    read = load(mine, config=config) if kind == "asd_diffusion" else read
    assert config.compile_model is not saved_compiled
    assert hasattr(read.diffusion.unet, "_orig_mod") is not saved_compiled
    found = getattr(read.diffusion.unet, "_orig_mod", read.diffusion.unet).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in unet.state_dict().items())
    _, before, after = asd.load(mine)
    made = asd.accelerate(read, "ddpm"), before, after
    assert torch.equal(act(made), act(asd.load(mine, "ddpm")))


def test_folders_that_are_none(tmp_path, mine) -> None:
    with pytest.raises(CheckpointError, match="neither a folder nor a repository on the Hub"):
        asd.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"holds no config\.json: expected a policy's folder"):
        asd.load(tmp_path)
    edit(mine, type="diffuser")
    with pytest.raises(CheckpointError, match=r"type 'diffuser', which LeRobot .* expected one of"):
        asd.load(mine)
    (mine / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        asd.load(mine)
    shutil.copy(Path(__file__), mine / "model.safetensors")
    (mine / "config.json").write_text('{"type": "diffusion"}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing or damaged"):
        asd.load(mine)


def test_processors_that_cannot_be_loaded(mine) -> None:
    (mine / PROCESSORS[1]).write_text('{"name": "after", "steps": [{"registry_name": "none"}]}')
    with pytest.raises(CheckpointError, match=r"the processors in .* cannot be loaded: .*none"):
        asd.load(mine)
    (mine / PROCESSORS[0]).write_text("{")
    with pytest.raises(CheckpointError, match=r"policy_preprocessor\.json is damaged"):
        asd.load(mine)


def test_a_normalizer_that_was_cut_short(mine) -> None:
    kept = next(mine.glob("policy_preprocessor*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match=r"the processors in .* cannot be loaded"):
        asd.load(mine)


@pytest.mark.parametrize("values", [{"horizon": "abc"}, {"horizon": 15}])
def test_settings_that_lerobot_refuses(mine, values) -> None:
    edit(mine, **values)
    with pytest.raises(CheckpointError, match=r"json holds what LeRobot refuses: .*horizon"):
        asd.load(mine)


def test_devices_that_are_not_there(folder) -> None:
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=device):
            asd.load(folder, device=device)


def test_the_processor_that_is_missing_is_named(mine) -> None:
    (mine / PROCESSORS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"has no {PROCESSORS[1]}, and no statistics"):
        asd.load(mine)


def test_a_noise_schedule_that_diffusers_lacks(mine) -> None:
    edit(mine, beta_schedule="cosine_of_mine")
    with pytest.raises(CheckpointError, match="asks for what cannot be had: cosine_of_mine"):
        asd.load(mine)
