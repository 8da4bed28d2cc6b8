"""The measurements: seconds of what is run for an hour (`… soak --seconds 3600`)."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("websockets")
pytest.importorskip("tyro")
from asd_policy.errors import ServerError
from asd_policy.policy import save_checkpoint
from asd_policy.policy.warmup import warm_up
from asd_policy.serving import measure
from reference.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("served") / "tiny", tiny_checkpoint()))


def soaked(folder, tmp_path, clients, seconds):
    out = tmp_path / "soak.json"
    measure.main_soak(folder, "ddpm", clients, 20.0, seconds, out=out)
    return json.loads(out.read_text())


def check(found, clients):
    """Memory may not grow with what was served: a chunk's answer is more than 1 kB."""
    health = found["health"]
    assert health["errors"] == 0
    assert found["failures"] == []
    assert health["connections"] >= clients
    assert health["chunks"] >= found["steps"] / 3
    assert found["steps"] >= clients * 10
    assert found["growth_mb"] < 8 + health["chunks"] / 2000


def test_a_client_that_fails_is_told_and_the_rest_goes_on(folder, monkeypatch):
    act, lost = measure.RemotePolicy.act, []

    def fails_once(policy, observation):
        if not lost:
            lost.append(policy)
            raise ServerError("lost")
        return act(policy, observation)

    monkeypatch.setattr(measure.RemotePolicy, "act", fails_once)
    with measure.server(["--checkpoint", folder, "--sampler", "ddpm"]) as (process, address):
        found = measure.soak(process.pid, address, 2, 20.0, 4.0)
    (failure,) = found["failures"]
    assert failure.endswith("s: lost")
    assert found["steps"] > 20  # of about 140; few without the client that goes on
    assert len(found["memory_mb"]) >= 10


def test_a_soak_of_seconds(folder, tmp_path):
    check(soaked(folder, tmp_path, 8, 10.0), 8)


@pytest.mark.slow
def test_a_soak_of_minutes(folder, tmp_path):
    check(soaked(folder, tmp_path, 8, 120.0), 8)


def test_round_trips_beside_the_bare_policy(folder, tmp_path, monkeypatch):
    """Which has drawn its first chunks before, as the server has."""
    warmed = []
    monkeypatch.setattr(measure, "warm_up", lambda policy: warmed.append(warm_up(policy)))
    out = tmp_path / "roundtrip.json"
    measure.main_roundtrip(folder, "ddpm", (1, 3), 10, out=out)
    found = json.loads(out.read_text())
    assert warmed
    assert found["same_actions"]
    assert [each["clients"] for each in found["clients"]] == [1, 3]
    assert [each["chunks"] for each in found["clients"]] == [10, 30]
    assert found["round_trip_ms"]["p50"] >= found["round_trip_without_draw_ms"]["p50"] > 0
    assert found["bare_ms"]["p50"] >= found["bare_without_draw_ms"]["p50"] > 0
    assert found["round_trip_ms"]["p50"] > found["echo_ms"]["p50"] > 0


def test_a_server_that_does_not_start_is_named():
    with (
        pytest.raises(ServerError, match="--checkpoint nowhere` did not start"),
        measure.server(["--checkpoint", "nowhere"]),
    ):
        pass
