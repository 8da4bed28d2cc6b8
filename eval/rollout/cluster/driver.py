"""The driver of an evaluation on a Ray cluster: it hands out the episodes and gathers them.

It alone writes the run's folder, so that resuming and records are what they are without a cluster.
An episode depends on its seed (and `--window`) alone, whoever rolls it out: a policy's actor that
is lost is replaced, and what it had not finished goes to whichever is free.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import ray
from ray.exceptions import RayError, RayTaskError

from asd_policy.errors import AsdPolicyError
from asd_policy.eval.plan import Parts
from asd_policy.eval.rollout.cluster import connect
from asd_policy.eval.rollout.cluster.host import (
    Finished,
    Job,
    Parcel,
    PolicyHost,
    Prepared,
    Started,
    Told,
)
from asd_policy.eval.rollout.loop import MAX_RESTARTS, Film, Listener, Setup
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.subject import checkpoint_of
from asd_policy.files import writing

PATIENCE_S = 300.0  # for an actor to have its place; a cluster may have to grow first
_LOOK_S = 0.25
_SENT_ON = ("MUJOCO_GL",)  # to the actors, unless their node has its own


@dataclasses.dataclass(frozen=True, kw_only=True)
class RaySetup(Setup):
    """A run whose policies and environments are elsewhere."""

    crew: Crew
    machine: dict[str, Any]

    def roll_out(
        self, jobs: Iterator[Job], film: Film, folder: Path, listener: Listener
    ) -> Generator[Episode, None, None]:
        return self.crew.episodes(jobs, film, folder, listener)

    def check_rendering(self) -> None:
        """Every policy's actor has done it."""

    def describe_machine(self) -> dict[str, Any]:
        return self.machine

    def close(self) -> None:
        self.crew.close()


def prepare_on_ray(
    parts: Parts,
    prepare: Callable[[Parts], Setup] | None = None,
    patience_s: float = PATIENCE_S,
) -> RaySetup:
    """Reach the cluster and start policies and environments there.

    Args:
        prepare: makes policies and environments, in the policies' actors, where it must be
            importable (default: `asd_policy.eval.rollout.setup.prepare`).
        patience_s: seconds for an actor to have its place.

    Raises:
        AsdPolicyError: no cluster, or no node with room for a policy and one environment.
        ValueError, CheckpointError: as `asd_policy.eval.rollout.setup.prepare`.
    """
    checkpoint = checkpoint_of(parts)
    parcel = Parcel.of(checkpoint) if checkpoint.exists() else None
    with connect.connected(parts) as ours:
        share = connect.share(parts)
        if share.num_envs < parts.num_envs:
            print(
                f"The cluster has room for {share.num_envs} of {parts.num_envs} environments "
                "for each policy.",
                file=sys.stderr,
            )
        device = "cuda" if share.gpus else "cpu"
        there = dataclasses.replace(parts, num_envs=share.num_envs, device=device)
        environ = {name: os.environ[name] for name in _SENT_ON if name in os.environ}
        asked = (there, prepare, ray.put(parcel), environ)
        crew = Crew(share, asked, patience_s, ours)
        try:
            first = crew.start()
        except BaseException:
            crew.close()
            raise
    hosts = [member.prepared.host for member in crew.members if member.prepared is not None]
    return RaySetup(
        policies={},
        slots=(),
        render_fps=first.render_fps,
        checkpoint_sha256=first.checkpoint_sha256,
        resolved=first.resolved | {"checkpoint": str(checkpoint), "policies": share.policies},
        places=share.policies,
        crew=crew,
        machine=first.machine | {"ray": connect.cluster_size() | {"policies_on": hosts}},
    )


class Member:
    """A policy's actor, now in its first or a later life, and the episodes it was given.

    `asked`: what it is to answer next: that it is prepared, then what has happened; None where it
    has been answered.
    """

    def __init__(self, share: connect.Share, prepare: tuple[Any, ...]):
        self._share, self._prepare = share, prepare
        self.deaths = 0  # since an episode was finished
        self.open()

    def open(self) -> None:
        """Ask for an actor, and it to load."""
        actor = ray.remote(PolicyHost).options(
            num_cpus=self._share.cpus + self._share.num_envs,
            num_gpus=self._share.gpus,
            max_restarts=0,
        )
        self._actor = actor.remote()
        self.placed = self._actor.up.remote()
        self.asked: Any = self._actor.prepare.remote(*self._prepare)
        self.prepared: Prepared | None = None
        self.held: set[Job] = set()
        self._begun = False
        self._since = time.monotonic()

    @property
    def waited_s(self) -> float:
        """Since its actor was asked for."""
        return time.monotonic() - self._since

    @property
    def wanted(self) -> int:
        """Episodes to give it now: one in each environment, and some at hand for what ends."""
        num_envs = self._share.num_envs
        return num_envs + 1 + num_envs // 16 - len(self.held)

    def exchange(self, jobs: list[Job], film: Film) -> None:
        """Give it more episodes, and ask what has happened."""
        if not self._begun:
            self._actor.begin.remote(film)
            self._begun = True
        self.held.update(jobs)
        self.asked = self._actor.exchange.remote(jobs)

    def kill(self) -> None:
        """End the actor, and with it its environments."""
        with contextlib.suppress(Exception):  # it, or the whole cluster, may be gone
            ray.kill(self._actor)


class Crew:
    """The policies' actors, and the episodes that none of them has finished."""

    def __init__(
        self, share: connect.Share, prepare: tuple[Any, ...], patience_s: float, shut_down: bool
    ):
        self._patience_s, self._shut_down = patience_s, shut_down
        self._returned: collections.deque[Job] = collections.deque()
        self._lost: collections.Counter[Job] = collections.Counter()
        self.members = [Member(share, prepare) for _ in range(share.policies)]

    def start(self) -> Prepared:
        """Wait for the policies: all of them, or those that have their place in time."""
        while not all(member.prepared for member in self.members):
            for _ in self._answers():
                pass
            if any(member.prepared for member in self.members) and self._all_late():
                break
        return next(member.prepared for member in self.members if member.prepared)

    def episodes(
        self, jobs: Iterator[Job], film: Film, folder: Path, listener: Listener
    ) -> Generator[Episode, None, None]:
        """As `asd_policy.eval.rollout.loop.roll_out`, by many."""
        for member in self.members:
            if member.prepared:
                member.exchange(self._next(jobs, member.wanted), film)
        while any(member.held for member in self.members) or self._returned:
            for member, told in self._answers():
                for one in told:
                    if isinstance(one, Started):
                        listener.started(one.sampler, one.seed)
                    elif isinstance(one, Finished):
                        yield self._finished(member, one, folder)
                if member.prepared:
                    member.exchange(self._next(jobs, member.wanted), film)
            listener.ticked()

    def _next(self, jobs: Iterator[Job], count: int) -> list[Job]:
        taken = [self._returned.popleft() for _ in range(min(count, len(self._returned)))]
        return [*taken, *itertools.islice(jobs, count - len(taken))]

    def _finished(self, member: Member, one: Finished, folder: Path) -> Episode:
        key = (one.episode.sampler, one.episode.seed)
        member.held.remove(key)
        member.deaths = 0
        for name, film in one.films.items():
            _write_film(folder / "videos" / name, film)
        return dataclasses.replace(
            one.episode, restarts=one.episode.restarts + self._lost.pop(key, 0)
        )

    def _answers(self) -> Iterator[tuple[Member, list[Told]]]:
        """Members that have answered, if any has now."""
        asked = {member.asked: member for member in self.members if member.asked is not None}
        for answered in ray.wait(list(asked), timeout=_LOOK_S)[0]:
            member = asked[answered]
            member.asked = None  # else it would be what is ready first, again and again
            try:
                answer = ray.get(answered)
            except RayTaskError as error:
                if isinstance(error.cause, (AsdPolicyError, gym.error.Error)):
                    raise error.cause from error  # it says what is wrong
                raise RuntimeError(f"a policy failed in its actor: {error.cause!r}") from error
            except RayError as error:
                self._replace(member, error)
                continue
            if isinstance(answer, Prepared):
                member.prepared = answer
            yield member, answer if isinstance(answer, list) else []
        self._check_places()

    def _replace(self, member: Member, death: RayError) -> None:
        reason = str(death).partition("\n")[0]
        member.deaths += 1
        self._lost.update(member.held)
        given_up = [job for job in sorted(member.held) if self._lost[job] > MAX_RESTARTS]
        if member.deaths > MAX_RESTARTS or given_up:
            where = f" with {given_up[0][0]}, seed {given_up[0][1]}" if given_up else ""
            raise AsdPolicyError(f"a policy's actor was lost again and again{where}: {reason}")
        self._returned.extend(sorted(member.held))
        member.kill()
        member.open()

    def _check_places(self) -> None:
        if any(member.prepared for member in self.members) or not self._all_late():
            return
        if not ray.wait([member.placed for member in self.members], timeout=0)[0]:
            raise AsdPolicyError(
                f"the cluster placed no policy in {self._patience_s:g} seconds; free now: {_free()}"
            )

    def _all_late(self) -> bool:
        """Whether those that are not there yet have had their time."""
        absent = [member for member in self.members if not member.prepared]
        return all(member.waited_s > self._patience_s for member in absent)

    def close(self) -> None:
        """End every actor; leave the cluster, or end it where it was started for this."""
        for member in self.members:
            member.kill()
        if self._shut_down:
            ray.shutdown()


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs"


def _write_film(path: Path, film: bytes) -> None:
    partial = path.with_name(f".{path.name}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(film)
        os.replace(partial, path)
