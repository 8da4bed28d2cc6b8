"""A policy whose chunks a server draws, in a loop here."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from websockets.exceptions import ConnectionClosed, InvalidStatus

from asd_policy.errors import ConnectionLostError, ServerError, check_kind
from asd_policy.policy.checkpoint import check_rows
from asd_policy.policy.draws import ChunkStats
from asd_policy.policy.environment import Frame
from asd_policy.policy.horizon import Chunks, ChunkSource, Observation, RecedingHorizon
from asd_policy.samplers.result import Stats
from asd_policy.serving.client import Client
from asd_policy.serving.protocol import IDLE, VERSION
from asd_policy.serving.requests import MOST_DRAWN, Seen

# What another server at the same address must say, too, for streams to go on there.
_OF_THE_POLICY = (
    "checkpoint_sha256", "sampler", "sampler_config", "steps", "observations",
    "observation_horizon", "action_horizon", "prediction_horizon", "limits",
)  # fmt: skip


class RemoteStream:
    """A random stream that the server keeps: told there by the robot's number.

    ``connection``: in which it was begun; ``drawn``: chunks that it has given.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.robot = self.connection = self.drawn = 0


class RemoteSource(ChunkSource):
    """Chunks that a server draws. Whole histories are sent: the server needs to remember nothing,
    and one that was started anew goes on with every stream where it was.

    Attributes:
        last_timing: milliseconds of the last draw: ``network``, ``queue``, ``draw``, ``total``.

    Raises:
        ServerError: a server of another protocol, or of one without batches (openpi's own).
    """

    def __init__(self, client: Client) -> None:
        check_kind("client", client, Client, "a serving.Client(address)")
        self.client, self._known_as = client, client.connections
        told = self._told = client.metadata
        if told.get("protocol") != VERSION:
            raise ServerError(
                f"expected a server of asd-policy, protocol {VERSION}; {client.address} says "
                f"{told.get('protocol')!r}"
            )
        self.horizons = (
            told["observation_horizon"], told["action_horizon"], told["prediction_horizon"],
        )  # fmt: skip
        shapes = {key: tuple(shape) for key, shape in told["observations"].items()}
        self.pictures = {key: (shapes[key][0], shapes[key][1]) for key in told["pictures"]}
        self.texts = tuple(told.get("texts", ()))
        self.seen = Seen(shapes, self.horizons[0], self.texts)
        self.last_timing: dict[str, float] = {}

    def stream(self, seed: int | None) -> RemoteStream:
        """At the server. Its number there is another's when nobody here has it any more."""
        made = RemoteStream(secrets.randbits(63) if seed is None else int(seed))
        made.robot = self.client.robot(made)
        return made

    def frames(self, observations: Observation, batch: int) -> Sequence[Sequence[Frame]]:
        times = self.seen.frames(observations, (batch,))
        # Copies: robots use their buffers again, and histories keep these.
        return [
            [{k: np.array(v[row]) for k, v in rows.items()} for rows in times]
            for row in range(batch)
        ]

    @property
    def conditions(self) -> bool:  # type: ignore[override]
        """Whether the server's chunks can be given committed actions."""
        return bool(self.client.metadata["conditions"])

    def reconnect(self) -> None:
        """Connect anew, and go on with every stream where it was.

        Raises:
            ConnectionLostError: nobody is there, or nobody who has room now.
            ServerError: another policy is, or the client is not let in.
        """
        try:
            self.client.reconnect()
        except ServerError as error:
            if _for_now(error.__cause__):
                raise ConnectionLostError(str(error)) from error
            raise
        self._check_policy()

    def _check_policy(self) -> None:
        """Of a connection that is new: streams can go on there. Else it is closed."""
        if self._known_as == self.client.connections:
            return
        for key in _OF_THE_POLICY:
            was, now = (_compared(key, told) for told in (self._told, self.client.metadata))
            if now != was:
                self.client.close()
                raise ServerError(
                    f"{self.client.address} serves another policy now: {key} was {was!r}, and is "
                    f"{now!r}"
                )
        self._known_as = self.client.connections

    def draw(self, histories: Sequence[Sequence[Frame]], streams: Sequence[RemoteStream]) -> Chunks:
        return self._draw(histories, streams)

    def draw_after(
        self,
        histories: Sequence[Sequence[Frame]],
        streams: Sequence[RemoteStream],
        committed: Sequence[np.ndarray],
    ) -> Chunks:
        return self._draw(histories, streams, committed=list(committed))

    def _draw(
        self,
        histories: Sequence[Sequence[Frame]],
        streams: Sequence[RemoteStream],
        **asked: Any,
    ) -> Chunks:
        stacked = {
            key: np.stack([np.stack([frame[key] for frame in history]) for history in histories])
            for key in self.seen.shapes
        }
        with self.client.taking_turns:  # another thread may reconnect: then all are new
            try:
                answer = self._ask(stacked, streams, asked)
            except ConnectionLostError as error:
                if not _was_idle(error.__cause__):
                    raise
                self.reconnect()
                answer = self._ask(stacked, streams, asked)
            for stream in streams:
                stream.connection, stream.drawn = self.client.connections, stream.drawn + 1
        self.last_timing = _timing(answer)
        actions = answer["actions"]
        batch, _, width = actions.shape
        past = np.full((batch, self.horizons[0] - 1, width), np.nan, actions.dtype)  # is not sent
        return Chunks(np.concatenate([past, actions], axis=1), _stats(answer))

    def _ask(
        self,
        stacked: Mapping[str, np.ndarray],
        streams: Sequence[RemoteStream],
        asked: Mapping[str, Any],
    ) -> dict[str, Any]:
        self._check_policy()
        new = [stream for stream in streams if stream.connection != self.client.connections]
        return self.client.infer_batch(
            stacked,
            robots=[stream.robot for stream in streams],
            begin=[self._begin(stream) for stream in new],
            detail=True,
            **asked,
        )

    def _begin(self, stream: RemoteStream) -> list[int]:
        """Where a stream cannot be gone on with, it is left for a new one: the same noise a second
        time would be no sample. Nor can one that has given too many chunks."""
        resumes = self.client.metadata["resumes"] and stream.drawn <= MOST_DRAWN
        if stream.drawn and not resumes:
            stream.seed, stream.drawn = secrets.randbits(63), 0
        return [stream.robot, stream.seed, stream.drawn]


def _for_now(refusal: BaseException | None) -> bool:
    """Whether a refused connection may be let in later: the server is full, or a proxy has none."""
    return (
        isinstance(refusal, InvalidStatus)
        and refusal.response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    )


def _was_idle(end: BaseException | None) -> bool:
    """Whether a connection ended because nothing had been asked for long."""
    return isinstance(end, ConnectionClosed) and end.rcvd is not None and end.rcvd.code == IDLE


def _compared(key: str, told: Mapping[str, Any]) -> Any:
    """What a server says, but of the window: with another one, samples have the same law."""
    if key == "limits":
        return told[key]["robots"]  # by which they are numbered
    said = told.get(key)
    return {k: v for k, v in said.items() if k != "window"} if isinstance(said, dict) else said


def _timing(answer: Mapping[str, Any]) -> dict[str, float]:
    timing, whole = answer["server_timing"], answer["round_trip_ms"]
    spent = {"queue": timing["queue_ms"], "draw": timing["draw_ms"], "total": whole}
    return {"network": max(0.0, whole - timing["total_ms"]), **spent}


def _stats(answer: Mapping[str, Any]) -> Stats:
    detail = answer["detail"]
    return Stats(
        detail["sampler"],
        detail["window"],
        calls=torch.tensor(answer["calls"], device="cpu"),
        evaluations=torch.tensor(answer["evaluations"], device="cpu"),
        accepted=torch.from_numpy(detail["accepted"].astype(np.int64)),
        decided=torch.from_numpy(detail["decided"].astype(np.int64)),
        seconds=dict(detail["seconds"]),
    )


class RemotePolicy(RecedingHorizon):
    """Receding-horizon control with chunks from a server, as a ``DiffusionPolicy`` from here.

    Seed by seed, it gives the actions that the server's policy would give in a loop there.
    """

    source: RemoteSource

    def __init__(self, client: Client) -> None:
        super().__init__(RemoteSource(client))
        self.client, told = client, client.metadata
        self.action_dim = int(told["action_dim"])
        self.parameters, self.threads = int(told["parameters"]), int(told["threads"])
        self.window, self.device = told["window"], told["device"]
        self.engine = SimpleNamespace(name=told["engine"], kernels=told["kernels"])
        self.schedule = SimpleNamespace(num_steps=int(told["steps"]))
        self.card = {"task": told["task"], "sha256": told["checkpoint_sha256"]}
        self.reset()

    @property
    def observation_keys(self) -> dict[str, int]:
        """Key → how many numbers it has."""
        shapes, texts = self.source.seen.shapes, self.source.texts
        return {key: int(np.prod(shapes[key])) for key in shapes if key not in texts}

    @property
    def last_chunks(self) -> list[ChunkStats | None]:
        """What the chunks of the last call cost, with ``remote``: seconds of it in the ``network``,
        in the server's ``queue``, in the ``draw``, and in all, ``total``."""
        spent = {name: 1e-3 * ms for name, ms in self.source.last_timing.items()}
        return [
            None
            if cost is None
            else cast("ChunkStats", SimpleNamespace(**vars(cost), remote=spent))
            for cost in super().last_chunks
        ]

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless the low-dimensional keys are there."""
        check_rows(self.observation_keys, self.pictures, keys)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
