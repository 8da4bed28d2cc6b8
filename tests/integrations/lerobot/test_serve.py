"""`asd-policy serve --checkpoint FOLDER`: the actions of LeRobot's own policy, through a server."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lerobot", reason="needs LeRobot, in an environment of its own")
pytest.importorskip("websockets")
import asd_policy.integrations.lerobot as asd
from asd_policy.errors import CheckpointError, InputError, NonFiniteError
from asd_policy.integrations.loaders import open_policies
from asd_policy.policy.warmup import warm_up
from asd_policy.serving import Client, RemotePolicy
from asd_policy.serving.measure import server
from reference.lerobot_policies import ENVIRONMENT, SIDE, STATE, as_of_old, saved, trained
from reference.rounding import assert_same_draws
from reference.served import address, served

PLACE = {"device": "cpu", "engine": "eager", "precision": "fp32", "compile": False, "threads": 1}
TWO = ("observation.images.view0", "observation.images.view1")
Observation = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(trained(), tmp_path_factory.mktemp("states"))


@pytest.fixture(scope="module")
def with_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(trained(2, steps=5), tmp_path_factory.mktemp("pictures"))


def opened(folder: Path, sampler: str = "ddpm", **options: Any) -> Any:
    return open_policies(folder, PLACE)({"sampler": sampler, **options})


def observation(number: int, cameras: bool = False) -> Observation:
    """As a robot sends it: of this number, the same every time."""
    rng = np.random.default_rng(number)
    made = {STATE: rng.uniform(-1, 1, 2)}
    if cameras:
        shape = (SIDE, SIDE, 3)
        return made | {key: rng.integers(0, 256, shape, np.uint8) for key in TWO}
    return made | {ENVIRONMENT: rng.uniform(-1, 1, 3)}


def as_lerobot_has_it(seen: Observation) -> dict[str, torch.Tensor]:
    """What LeRobot's environments make of the same (``preprocess_observation``)."""
    return {
        key: (torch.from_numpy(value)[None].permute(0, 3, 1, 2).float() / 255)
        if key in TWO
        else torch.from_numpy(value)[None].float()
        for key, value in seen.items()
    }


def own_actions(
    folder: Path, episode: list[Observation], seed: int, patch: pytest.MonkeyPatch
) -> np.ndarray:
    """Of LeRobot's own policy and loop, on the noise that this seed's stream has here."""
    ours = opened(folder)
    stream, drawn = ours.source.stream(seed), list[torch.Tensor]()
    for _ in range(0, len(episode), 8):
        made = ours.source.sampler.noise([stream])
        rows = [made.initial, *made.steps.unbind(1)][: ours.schedule.num_steps]  # none in the last
        drawn.extend(row.reshape(1, 16, 2) for row in rows)
    policy, before, after = asd.load(folder, verbose=False)
    del policy.diffusion.conditional_sample
    policy.reset()
    with patch.context() as within:
        within.setattr(torch, "randn", lambda *given, **named: drawn.pop(0))
        rows = [after(policy.select_action(before(as_lerobot_has_it(seen)))) for seen in episode]
    assert not drawn
    return np.concatenate([row.numpy() for row in rows])


@pytest.mark.parametrize("cameras", [False, True])
def test_sequential_ddpm_through_a_server_is_lerobots_own_policy(
    cameras, folder, with_pictures, monkeypatch
) -> None:
    """Three chunks of an episode, each from two observations."""
    path = with_pictures if cameras else folder
    episode = [observation(t, cameras) for t in range(20)]
    with served(opened(path)) as there, Client(address(there)) as client:
        policy = RemotePolicy(client)
        policy.reset(3)
        got = np.stack([policy.act(seen) for seen in episode])
        told = client.metadata
    expected = own_actions(path, episode, 3, monkeypatch)
    difference = np.abs(got - expected).max() / max(1, np.abs(expected).max())
    assert difference < 5e-6
    assert np.abs(got[0] - got[1]).max() > 1e-3, "a chunk that stands still would be equal, too"
    assert told["pictures"] == (list(TWO) if cameras else [])
    assert told["observations"][STATE] == [2]
    assert (told["chunk"], told["action_horizon"]) == (15, 8)


def test_clients_have_seeds_and_histories_of_their_own(with_pictures) -> None:
    """Four at once, in whatever batches come about; as one alone, up to the last bits."""
    path, steps = with_pictures, 10
    alone, got = {}, {}
    for seed in range(4):
        policy = opened(path, "asd", window=8)
        policy.reset(seed)
        alone[seed] = [policy.act(observation(100 * seed + t, True)) for t in range(steps)]
    with served(opened(path, "asd", window=8), wait_s=0.2) as there:

        def drive(seed: int) -> None:
            with Client(address(there)) as client:
                policy = RemotePolicy(client)
                policy.reset(seed)
                got[seed] = [policy.act(observation(100 * seed + t, True)) for t in range(steps)]

        threads = [threading.Thread(target=drive, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        health = there.health()
    for seed in range(4):
        assert_same_draws(got[seed], alone[seed])
    assert health["batches"] < health["chunks"] == 8, "nothing was drawn together"


def test_a_lost_connection_goes_on_with_the_stream(folder) -> None:
    policy = opened(folder, "asd", window=8)
    policy.reset(5)
    expected = [policy.act(observation(t)) for t in range(18)]
    with served(opened(folder, "asd", window=8)) as there, Client(address(there)) as client:
        policy = RemotePolicy(client)
        policy.reset(5)
        got = [policy.act(observation(t)) for t in range(9)]
        policy.source.reconnect()
        got += [policy.act(observation(t)) for t in range(9, 18)]
    np.testing.assert_array_equal(got, expected)


def test_old_folders_and_our_own_type(folder, tmp_path) -> None:
    expected = _first(opened(folder))
    old = as_of_old(Path(shutil.copytree(folder, tmp_path / "old")))
    np.testing.assert_array_equal(_first(opened(old)), expected)
    ours = Path(shutil.copytree(folder, tmp_path / "ours"))
    _edit(ours, type="asd_diffusion", sampler="asd", window=4)
    np.testing.assert_array_equal(_first(opened(ours)), expected)


def _first(policy: Any) -> np.ndarray:
    policy.reset(1)
    return policy.act(observation(0))


def _edit(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_folder_that_samples_by_ddim(tmp_path) -> None:
    path = saved(trained(noise_scheduler_type="DDIM", num_inference_steps=10), tmp_path)
    make = open_policies(path, PLACE)
    policies = [make({"sampler": name}) for name in ("ddim", "asd", "ddpm")]
    assert [policy.schedule.num_steps for policy in policies] == [10, 100, 100]
    assert len({id(policy.source._policy) for policy in policies}) == 1, "read once"
    for policy in policies:
        assert np.isfinite(_first(policy)).all()


def test_other_folders_are_refused(folder, tmp_path) -> None:
    mine = Path(shutil.copytree(folder, tmp_path / "mine"))
    _edit(mine, beta_schedule="sigmoid", clip_sample_range=-1.0)
    with pytest.raises(InputError, match="clip"):
        opened(mine)
    _edit(mine, type="diffuser")
    with pytest.raises(CheckpointError, match="type 'diffuser', which LeRobot"):
        opened(mine)
    (folder_of_act := tmp_path / "act").mkdir()
    (folder_of_act / "config.json").write_text('{"type": "act"}')
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        opened(folder_of_act)
    _edit(mine, type="diffusion", clip_sample_range=1.0)
    path = mine / "policy_preprocessor.json"
    values = json.loads(path.read_text())
    values["steps"].insert(0, {"registry_name": "observation_processor", "config": {}})
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="have the step observation_processor, which"):
        opened(mine)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda seen: seen[TWO[0]] / 255, InputError, r"must be of uint8, 0 to 255, got float64"),
        (lambda seen: seen[TWO[0]].transpose(2, 0, 1), InputError, r"wrong shape"),
        (lambda seen: seen[STATE] * np.nan, NonFiniteError, r"NaN or infinite"),
        (lambda seen: seen[STATE][:1], InputError, r"wrong shape"),
    ],
)
def test_wrong_observations_are_named_to_their_client(
    with_pictures, change: Callable[..., Any], error: type[Exception], message: str
) -> None:
    seen = observation(0, True)
    key = TWO[0] if "uint8" in message or change(seen).ndim == 3 else STATE
    with served(opened(with_pictures)) as there, Client(address(there)) as client:
        with pytest.raises(error, match=message):
            client.infer({**seen, key: change(seen)})
        assert client.infer(seen)["actions"].shape == (15, 2)


def test_the_command_serves_it(folder) -> None:
    """In a process of its own; warmed up, and equal to the policy here."""
    words = ["--checkpoint", str(folder), "--window", "8", "--device", "cpu"]
    with server(words) as (_, where), Client(where + "/?seed=2") as client:
        got = client.infer(observation(0))
        assert len(client.metadata["checkpoint_sha256"]) == 64
    policy = opened(folder, "asd", window=8)
    warm_up(policy, 2)
    policy.reset(2)
    policy.observe({key: value[None] for key, value in observation(0).items()})
    np.testing.assert_allclose(got["actions"], policy.predict()[0], atol=1e-5)
    assert got["calls"] < 100
