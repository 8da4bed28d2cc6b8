"""A remote policy acts as the local one does, whatever its caller does with arrays, clients and
horizons; and what cannot be is said by name."""

from __future__ import annotations

import time

import numpy as np
import pytest

pytest.importorskip("websockets")
from asd_policy.errors import ConnectionLostError, InputError, LimitError, ServerError
from asd_policy.policy import Controller, DiffusionPolicy, RecedingHorizon, SamplerConfig
from asd_policy.serving import Client, Limits, RemotePolicy, Server
from reference.rounding import assert_same_draws
from reference.served import address, observation, served, tiny_policy
from reference.tiny import KEYS, tiny_checkpoint


def acted(policy: RecedingHorizon, steps: int = 9) -> list[np.ndarray]:
    policy.reset(3)
    return [policy.act(observation(t)) for t in range(steps)]


def test_a_robot_may_use_its_buffers_again() -> None:
    """As cameras, drivers and vectorised environments do."""
    expected = acted(tiny_policy())
    with served() as server, Client(address(server)) as client:
        policy, buffers = RemotePolicy(client), {k: np.zeros(dim) for k, dim in KEYS.items()}
        policy.reset(3)
        got = []
        for t in range(9):
            for key, value in observation(t).items():
                buffers[key][:] = value
            got.append(policy.act(buffers))
    assert_same_draws(got, expected)


@pytest.mark.parametrize("horizons", [(6, 2, 8), (7, 2, 8)])
def test_histories_may_be_longer_than_what_comes_of_them(horizons: tuple[int, int, int]) -> None:
    names = ("obs_horizon", "action_horizon", "pred_horizon")
    made = tiny_checkpoint(10, **dict(zip(names, horizons, strict=True)))

    def policy() -> DiffusionPolicy:
        return DiffusionPolicy(made, SamplerConfig("ddpm"))

    expected = acted(policy())
    with served(policy()) as server, Client(address(server)) as client:
        assert_same_draws(acted(RemotePolicy(client)), expected)


def test_a_message_that_is_too_large_is_no_lost_connection() -> None:
    """A controller would try again for ever, the robot standing still."""

    class Robot:
        def observe(self) -> dict[str, np.ndarray]:
            return observation(0)

        def act(self, action: np.ndarray) -> None:
            raise AssertionError("there can be no action")

    with served(limits=Limits(message_bytes=200)) as server, Client(address(server)) as client:
        with pytest.raises(LimitError, match=r"takes messages of 200 bytes, and this has \d{3}$"):
            Controller(RemotePolicy(client), retry_s=0.1).run(Robot(), 20, steps=600)
        assert client.health()["status"] == "ok", "the connection stays"


def test_who_pauses_goes_on_where_it_was() -> None:
    """The server closes a connection on which nothing is asked for long."""
    expected = acted(tiny_policy())
    with served(limits=Limits(idle_s=0.3)) as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset(3)
        got = [policy.act(observation(t)) for t in range(4)]
        time.sleep(1.0)
        got += [policy.act(observation(t)) for t in range(4, 9)]
        assert client.connections == 2
    assert_same_draws(got, expected)


def test_messages_of_the_client_s_own_do_not_touch_its_policies() -> None:
    expected = acted(tiny_policy())
    with served() as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset(3)
        got = []
        for t in range(9):
            got.append(policy.act(observation(t)))
            client.infer(observation(90 + t))
            client.reset(t)
        with pytest.raises(
            InputError, match=r"reset\(\) would begin the robots of .* policies anew"
        ):
            client.reset()
    assert_same_draws(got, expected)


def test_as_many_robots_as_a_connection_may_have() -> None:
    with served(limits=Limits(robots=2)) as server, Client(address(server)) as client:
        policy = RemotePolicy(client)
        policy.reset([0, 1])
        policy.act_batch(observation(0, (2,)))
        policy.reset_env(1, 5)
        assert policy.act_batch(observation(1, (2,))).shape == (2, 2)
        with pytest.raises(LimitError, match="the server allows 2 robots of a connection"):
            RemotePolicy(client)


OTHERS = {
    "limits": lambda: tiny_policy("ddpm"),
    "steps": lambda: tiny_policy("ddpm", num_steps=7),
    "sampler_config": lambda: tiny_policy("ddim", steps=3),
    "action_horizon": lambda: DiffusionPolicy(
        tiny_checkpoint(10, action_horizon=2), SamplerConfig("ddpm")
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_server_that_draws_otherwise_is_not_gone_on_with(what: str) -> None:
    with served(tiny_policy("ddpm")) as server:
        policy, port = RemotePolicy(Client(address(server))), server.port
        policy.reset(0)
    limits = Limits(robots=5 if what == "limits" else Limits.robots)
    other = Server(OTHERS[what](), port=port, limits=limits)  # the port is free at once
    other.start()
    try:
        with pytest.raises(ServerError, match=f"another policy now: {what} was"):
            policy.source.reconnect()
        with pytest.raises(ServerError, match=f"another policy now: {what} was"):
            policy.act(observation(0))
        policy.client.reconnect()  # by another policy of the same client, say
        with pytest.raises(ServerError, match=f"another policy now: {what} was"):
            policy.act(observation(0))
    finally:
        policy.close()
        other.drain()


def test_a_fault_of_the_server_s_is_no_pause(caplog: pytest.LogCaptureFixture) -> None:
    policy = tiny_policy()
    with served(policy) as server, Client(address(server)) as client:
        remote = RemotePolicy(client)
        remote.reset(3)

        def fails(streams: object) -> None:
            raise RuntimeError("broken")

        policy.source.ahead = fails  # type: ignore[method-assign]
        with pytest.raises(ConnectionLostError, match="a fault of the server's"):
            [remote.act(observation(t)) for t in range(9)]
    assert "broken" in caplog.text
