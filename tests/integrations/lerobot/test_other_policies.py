"""What is no diffusion policy of a known LeRobot is refused in a sentence that says what to do."""

from __future__ import annotations

import importlib.metadata
import types

import pytest

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
from torch import nn

import asd_policy.integrations.lerobot as asd
from asd_policy.errors import InputError, IntegrationError
from asd_policy.integrations.lerobot.version import check_version
from reference.lerobot_policies import ACTION, config


@pytest.mark.parametrize("name", ["pi0", "pi05", "smolvla", "groot"])
def test_flow_matching_is_an_ode(name) -> None:
    policy = nn.Linear(1, 1)
    policy.name = name
    with pytest.raises(InputError, match=rf"{name} samples by flow matching, an ODE: .* no noise"):
        asd.accelerate(policy)


def test_act_has_no_steps_to_save() -> None:
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    like = config(1)
    made = ACTConfig(
        input_features=like.input_features, output_features=like.output_features, device="cpu",
        dim_model=16, n_heads=2, dim_feedforward=16, n_encoder_layers=1, latent_dim=4,
        n_vae_encoder_layers=1, pretrained_backbone_weights=None,
    )  # fmt: skip
    assert ACTION in made.output_features
    with pytest.raises(InputError, match=r"of the type diffusion.* got act: only diffusion"):
        asd.accelerate(ACTPolicy(made))
    with pytest.raises(InputError, match="got Linear: only diffusion has steps to save"):
        asd.accelerate(nn.Linear(1, 1))


def test_a_version_that_is_too_old(monkeypatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.3.3")
    with pytest.raises(
        IntegrationError, match=r"this is 0.3.3: pip install 'asd-policy\[lerobot\]'"
    ):
        check_version()


@pytest.mark.parametrize(("found", "version"), [("0.7.0", (0, 7, 0)), ("1.0", (1, 0))])
def test_a_version_that_is_not_known_is_tried(monkeypatch, found, version) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: found)
    with pytest.warns(UserWarning, match=f"0.4.4 and 0.6.1 were tested, and this is {found}"):
        assert check_version() == version


def test_without_lerobot(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(IntegrationError, match="LeRobot is not installed: pip install"):
        check_version()


def test_a_flow_matching_transformer() -> None:
    policy = types.SimpleNamespace(
        name="multi_task_dit", objective=object(), noise_predictor=nn.Linear(1, 1),
        config=types.SimpleNamespace(objective="flow_matching"),
    )  # fmt: skip
    with pytest.raises(InputError, match="multi_task_dit samples by flow matching, an ODE"):
        asd.accelerate(policy)
