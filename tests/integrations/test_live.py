"""A robomimic policy that is still being trained, of other groups, within other settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("robomimic", reason="needs the extra 'robomimic'")
pytest.importorskip("diffusers")

import asd_policy.integrations.robomimic as asd
from asd_policy import CheckpointError
from asd_policy.integrations.robomimic import compat
from asd_policy.integrations.robomimic_checkpoint import read_checkpoint, to_checkpoint
from asd_policy.integrations.robomimic_format import NETWORK_PREFIX, groups_of
from asd_policy.networks import ConditionalUnet1D
from reference.others_unet import PublishedUnet1D
from reference.robomimic_standin import SHAPES, algo_config, small_policy

OBSERVATION = {key: np.full((2, *shape), 0.1) for key, shape in SHAPES.items()}


def act(policy: Any, seed: int = 0) -> np.ndarray:
    policy.start_episode(seeds=seed)
    return policy(dict(OBSERVATION))


def accelerate(theirs: Any) -> Any:
    return asd.accelerate(theirs, "ddpm", verbose=False)


def network_of(theirs: Any) -> torch.nn.Module:
    algo = theirs.policy
    nets = algo.nets if algo.ema is None else algo.ema.averaged_model
    return nets["policy"]["noise_pred_net"]


def in_place(theirs: Any) -> None:
    with torch.no_grad():
        for parameter in network_of(theirs).parameters():
            parameter.mul_(0.7)


def trained(theirs: Any) -> None:
    parameters = list(network_of(theirs).parameters())
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(parameters, lr=0.1, fused=True).step()


def loaded(theirs: Any) -> None:
    network = network_of(theirs)
    network.load_state_dict({k: 0.7 * v for k, v in network.state_dict().items()})


def replaced(theirs: Any) -> None:
    """Networks of another size, as loading a file into the algorithm puts them."""
    other = small_policy(down_dims=(8, 24), n_groups=8)
    theirs.policy.nets, theirs.policy.ema = other.policy.nets, other.policy.ema


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("change", [in_place, trained, loaded, replaced])
def test_the_next_chunk_is_of_the_weights_of_now(change: Callable, ema: bool) -> None:
    theirs = small_policy(ema=ema)
    for i, parameter in enumerate(network_of(theirs).parameters()):
        parameter.requires_grad_(i % 2 == 0)
    wanted = [p.requires_grad for p in network_of(theirs).parameters()]
    ours = accelerate(theirs)
    before = act(ours)
    assert [p.requires_grad for p in network_of(theirs).parameters()] == wanted
    change(theirs)
    found = act(ours)
    np.testing.assert_array_equal(found, act(accelerate(theirs)))
    assert np.abs(found - before).max() > 1e-3


def published(groups: int) -> Any:
    """0.5's own class: 8 groups in the last block, whatever ``n_groups`` is."""
    theirs = small_policy(ema=False)
    torch.manual_seed(0)
    network = PublishedUnet1D(
        7, None, 38, 8, (8, 16), kernel_size=5, n_groups=groups, cond_predict_scale=True
    )
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    theirs.policy.nets["policy"]["noise_pred_net"] = network
    return theirs


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_the_groups_of_every_block_are_read_from_the_network(groups, monkeypatch) -> None:
    """The sequential chain, in robomimic's own loop and in ours."""
    from integrations.test_accelerate import same_noise

    theirs = published(groups)
    ours = accelerate(theirs)
    theirs.start_episode()
    with monkeypatch.context() as patch, torch.no_grad():
        ours.start_episode(seeds=5)
        same_noise(patch, ours, 5)
        expected = [theirs(dict(OBSERVATION)) for _ in range(8)]
    got = [ours(dict(OBSERVATION)) for _ in range(8)]
    np.testing.assert_allclose(np.stack(got), np.stack(expected), atol=5e-5)


def test_another_network_is_refused() -> None:
    theirs = published(4)
    theirs.policy.nets["policy"]["noise_pred_net"].mid_modules[0].blocks[0].block[2] = (
        torch.nn.ReLU()
    )
    with pytest.raises(CheckpointError, match="computes something else than Chi et al"):
        accelerate(theirs)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_autocast_changes_nothing(precision) -> None:
    ours = asd.accelerate(small_policy(), window=4, precision=precision, verbose=False)
    ours.chunks.calibration.frozen = True
    expected = act(ours)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_array_equal(act(ours), expected)
    torch.set_default_device("meta")
    try:
        np.testing.assert_array_equal(act(ours), expected)
        ours.start_episode()  # its seed is drawn
        ours(dict(OBSERVATION))
    finally:
        torch.set_default_device(None)


def test_autocast_does_not_reach_the_encoder() -> None:
    """Of pictures, which robomimic's network encodes."""
    shapes = {"agentview_image": [3, 8, 8], "robot0_eef_pos": [3]}
    ours = accelerate(small_policy(shapes=shapes))
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    row, found = {"agentview_image": picture, "robot0_eef_pos": np.full((2, 3), 0.1)}, []
    for inside in (False, True):
        ours.start_episode(seeds=0)
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            found.append(ours(dict(row)))
    np.testing.assert_array_equal(*found)


# ---- files ---------------------------------------------------------------------------------------


def weights(**sizes: Any) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return ConditionalUnet1D(7, 38, **sizes).state_dict()


@pytest.mark.parametrize(
    ("model", "sizes", "expected"),
    [
        ({}, {}, 8),  # 0.5 builds its default network, whatever the configuration says
        ({"n_groups": 4}, {}, 4),  # this package says what it built
        ({}, {"down_dims": (8, 16)}, 4),  # and built by the configuration before it did
        ({"n_groups": 8}, {"down_dims": (8, 16)}, 8),
    ],
)
def test_the_groups_of_a_file(model, sizes, expected) -> None:
    assert groups_of(model, {"unet": {"n_groups": 4}}, weights(**sizes)) == expected


def test_a_file_of_05_has_8_groups_whatever_its_configuration_says(tmp_path, monkeypatch) -> None:
    """Default sizes stood in for by small ones."""
    from asd_policy.integrations import robomimic_format
    from integrations.test_files import content

    small = {"diffusion_step_embed_dim": 8, "down_dims": (8, 16), "kernel_size": 5}
    monkeypatch.setattr(robomimic_format, "_BUILT_BY_05", small)
    torch.save(content(), tmp_path / "model.pth")  # whose configuration says 4
    made = to_checkpoint(read_checkpoint(tmp_path / "model.pth"))
    norms = [m.num_groups for m in made.network.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert set(norms) == {8} == {made.config.n_groups}


def test_groups_are_fitted_on_05_and_told_by_what_it_saves() -> None:
    """A file of default sizes and 4 groups, which 0.5 alone would take for 8."""
    theirs = published(8)
    algo = theirs.policy
    algo.algo_config = algo_config()

    class Algorithm(type(algo)):  # type: ignore[misc]
        def _create_optimizers(self) -> None:
            pass

        def deserialize(self, model: Any) -> None:
            self.nets.load_state_dict(model["nets"])

    compat.fit_networks(Algorithm)
    algo.__class__ = Algorithm
    saved = published(4).policy.nets.state_dict()
    algo.nets["policy"]["noise_pred_net"].__class__ = Adjustable
    algo.deserialize({"nets": saved, "n_groups": 4})
    norms = [m for m in network_of(theirs).modules() if isinstance(m, torch.nn.GroupNorm)]
    assert {norm.num_groups for norm in norms} == {4}
    assert algo.serialize()["n_groups"] == 4
    assert any(name.startswith(NETWORK_PREFIX) for name in saved)


class Adjustable(PublishedUnet1D):
    """With 0.5's arguments."""

    def __init__(
        self, input_dim: int, global_cond_dim: int, diffusion_step_embed_dim: int = 256,
        down_dims: Any = (256, 512, 1024), kernel_size: int = 5, n_groups: int = 8,
    ) -> None:  # fmt: skip
        super().__init__(
            input_dim, None, global_cond_dim, diffusion_step_embed_dim, down_dims, kernel_size,
            n_groups, cond_predict_scale=True,
        )  # fmt: skip
