"""Control with a receding horizon: chunks of actions are drawn, and the first few executed."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from asd_policy.errors import InputError, listed_indices, listed_seeds, seed_number
from asd_policy.policy.draws import ChunkStats, Draw, chunk_stats
from asd_policy.policy.environment import Environment, Frame, Stream
from asd_policy.policy.observations import named, one_row
from asd_policy.samplers.result import Stats, go_back, states_of

Observation = Mapping[str, Any]


@dataclass(frozen=True)
class Chunks:
    """What a source draws for B environments at once.

    Attributes:
        actions: (B, Tp, action_dim). stats: what they cost; None where nothing is counted.
        histories: (B, To, Do) that they were drawn from, and slopes: (K,) that ASD drafted with,
            for :class:`Draw`; None where the source tells none.
    """

    actions: np.ndarray
    stats: Stats | None = None
    histories: np.ndarray | None = None
    slopes: np.ndarray | None = None


class ChunkSource(ABC):
    """What draws chunks of actions for a controller: histories in, chunks out.

    Attributes:
        horizons: (To, Ta, Tp): observations that a chunk is drawn from, actions of it that are
            executed, and its length. Its action To − 1 is that of the latest observation's time.
        pictures: observations that are pictures, key → (height, width).
        texts: observations that are text, a sentence each.
        conditions: whether it has :meth:`draw_after`.
    """

    horizons: tuple[int, int, int]
    pictures: Mapping[str, tuple[int, int]] = MappingProxyType({})
    texts: Sequence[str] = ()
    conditions: bool = False

    @abstractmethod
    def frames(self, observations: Observation, batch: int) -> Sequence[Sequence[Frame]]:
        """Of each of B environments, its new observation; or the To last, where all come at once.

        Raises:
            ValueError, NonFiniteError: observations that nothing can be drawn from.
        """

    @abstractmethod
    def draw(self, histories: Sequence[Sequence[Frame]], streams: Sequence[Stream]) -> Chunks:
        """One chunk for each of B histories of To frames, from its random stream, in one batch."""

    def stream(self, seed: int | None) -> Stream:
        """The random stream of an environment with this seed; None draws one."""
        generator = torch.Generator("cpu")
        generator.seed() if seed is None else generator.manual_seed(seed_number(seed))
        return generator

    def draw_after(
        self,
        histories: Sequence[Sequence[Frame]],
        streams: Sequence[Stream],
        committed: Sequence[np.ndarray],
    ) -> Chunks:
        """:meth:`draw`, given the actions (n, action_dim) of each from now on, n from 0 to H.

        Raises:
            ValueError: a source whose chunks cannot be conditioned.
        """
        raise InputError("this source's chunks cannot be conditioned on committed actions")

    def ahead(self, streams: Sequence[Stream]) -> None:  # noqa: B027
        """Be told which streams will be drawn from next, at a time when nothing is waited for. What
        is drawn from them must be the same with or without."""

    def reconnect(self) -> None:  # noqa: B027
        """Reach what draws anew, where that is elsewhere. Raises ConnectionLostError."""

    def expect(self, batch: int) -> None:  # noqa: B027
        """Be told how many environments there are, which a source need not care about."""


@dataclass
class _Cost:
    """What the last call cost: ``rows`` of ``batch`` had chunks drawn, which took ``seconds``."""

    batch: int = 0
    rows: Sequence[int] = ()
    stats: Stats | None = None
    seconds: float = 0.0
    _by_row: list[ChunkStats | None] | None = None

    def by_row(self) -> list[ChunkStats | None]:
        """Made when it is first read: a loop that does not ask pays nothing."""
        if self._by_row is None:
            self._by_row = [None] * self.batch
            if self.stats is not None:
                costs = chunk_stats(self.stats, self.seconds)
                for row, cost in zip(self.rows, costs, strict=True):
                    self._by_row[row] = cost
        return self._by_row


class RecedingHorizon:
    """Executes chunks of one source in any number of environments.

    Each environment has its own history, queue and random stream, so that its actions depend
    neither on how many others are stepped beside it nor on their order, but for the last bits of
    arithmetic (which turn a decision that falls on its edge).

    Attributes:
        source: of the chunks. environments: the state of each.
        on_draw: told of every batch of chunks, after it was drawn and timed (a flight recorder).
    """

    def __init__(self, source: ChunkSource) -> None:
        self.source = source
        self.on_draw: Callable[[Draw], None] | None = None
        self.environments: list[Environment] = []
        self._free: list[int] = []  # numbers of environments that have left
        self._cost = _Cost()

    def __getstate__(self) -> dict[str, Any]:
        """Without what listens: a flight recorder records one policy."""
        return vars(self) | {"on_draw": None}

    @property
    def horizons(self) -> tuple[int, int, int]:
        """(To, Ta, Tp)."""
        return self.source.horizons

    @property
    def pictures(self) -> Mapping[str, tuple[int, int]]:
        """Observations that are pictures, key → (height, width)."""
        return self.source.pictures

    @property
    def texts(self) -> Sequence[str]:
        """Observations that are text."""
        return self.source.texts

    @property
    def last_chunks(self) -> list[ChunkStats | None]:
        """What the chunks of the last call cost, None where none was drawn."""
        return self._cost.by_row()

    def reset(self, seeds: int | Sequence[int | None] | None = None) -> None:
        """Forget everything observed and queued.

        Args:
            seeds: one seed for each environment (their number sets how many there are); one int or
                None for a single environment. None draws a seed.

        Raises:
            ValueError: what is no seed; nothing is forgotten then. LimitError: a server's.
        """
        checked = listed_seeds(seeds)
        self.environments = []  # their streams, which may be numbered elsewhere, are free for these
        self.environments = [self._environment(seed) for seed in checked]
        self._free = []
        self.source.expect(len(self.environments))
        self._cost = _Cost(len(self.environments))

    def reset_env(self, index: int, seed: int | None = None) -> None:
        """Start a new episode in one environment; in one that had left, it is there again."""
        (index,) = listed_indices([index], len(self.environments))
        seed = None if seed is None else seed_number(seed)
        self.leave(index)  # its stream's number may be the last; and there may be no new one
        self.environments[index] = self._environment(seed)
        self._free.remove(index)

    def join(self, environment: Environment) -> int:
        """Take in one more environment, whatever the number that was expected; returns its index,
        one that has left where there is one."""
        if self._free:
            index = self._free.pop()
            self.environments[index] = environment
            return index
        self.environments.append(environment)
        return len(self.environments) - 1

    def leave(self, index: int) -> None:
        """Forget an environment; its index may become another's."""
        (index,) = listed_indices([index], len(self.environments))
        self.environments[index] = Environment(None, None)
        if index not in self._free:
            self._free.append(index)

    @property
    def present(self) -> int:
        """Environments that there are."""
        return len(self.environments) - len(self._free)

    def _listed(self, indices: Sequence[int] | None) -> Sequence[int]:
        return listed_indices(indices, len(self.environments), self._free)

    def _environment(self, seed: int | None) -> Environment:
        return Environment(seed, self.source.stream(seed))

    def queued(self, index: int) -> int:
        """How many actions of one environment are drawn and not yet taken: at 0, its next needs a
        chunk. Environments that need one together have it drawn in one batch."""
        (index,) = self._listed([index])
        return len(self.environments[index].queue)

    def coming(self, index: int) -> list[np.ndarray]:
        """Copies of one environment's queued actions (action_dim,), the next one first."""
        return [action.copy() for action in self.environments[index].queue]

    def act(self, observation: Observation) -> np.ndarray:
        """The action (action_dim,) of a single environment, for its observation.

        Raises:
            ValueError: observations that are not the source's, or more environments than one (use
                :meth:`act_batch`).
            NonFiniteError: a NaN or infinity in the observation, network output or action.
        """
        if len(self.environments) != 1:
            raise InputError(
                f"act() is for one environment, and this policy was reset for "
                f"{len(self.environments)}; use act_batch()"
            )
        return self.act_batch(one_row(observation))[0]

    def act_batch(
        self, observations: Observation, indices: Sequence[int] | None = None
    ) -> np.ndarray:
        """Actions (B, action_dim) of many environments.

        Args:
            observations: one row for each environment.
            indices: which environments the rows belong to (default: all, in order); numbers, no
                mask.

        Raises:
            ValueError, NonFiniteError: as :meth:`act`; nothing is drawn or remembered then, and
                the same observations can be acted on again.
        """
        indices = self._listed(indices)
        return self.act_on(self.frames(observations, len(indices)), indices)

    def act_on(self, frames: Sequence[Sequence[Frame]], indices: Sequence[int]) -> np.ndarray:
        """:meth:`act_batch` for what the source has made of observations already."""
        indices = self._listed(indices)
        before = self.remembered(indices)
        self.remember(frames, indices)
        try:
            return self.take(indices)
        except BaseException:  # acted on again, they would be seen twice
            self.restore(before, indices)
            raise

    def take(self, indices: Sequence[int]) -> np.ndarray:
        """:meth:`act_batch` for what has been observed already."""
        environments = [self.environments[i] for i in indices]
        if not environments:
            raise InputError("expected observations of one environment or more, got none")
        rows = [row for row, environment in enumerate(environments) if not environment.queue]
        cost = _Cost(len(environments))
        if rows:
            chunks = self.predict([indices[row] for row in rows])
            for row, actions in zip(rows, chunks, strict=True):
                self.enqueue(indices[row], actions)
            cost = _Cost(len(environments), rows, self._cost.stats, self._cost.seconds)
        self._cost = cost
        if not rows:  # a call that took no time
            self.source.ahead([e.stream for e in environments if len(e.queue) == 1])
        return np.stack([environment.queue.popleft() for environment in environments])

    def enqueue(self, index: int, actions: np.ndarray) -> None:
        """Have the first Ta of a chunk's actions executed by one environment."""
        self.environments[index].queue.extend(actions[: self.horizons[1]])

    def next(self, index: int) -> np.ndarray:
        """The next queued action (action_dim,) of one environment."""
        self._cost, environment = _Cost(1), self.environments[index]
        if len(environment.queue) == 1:
            self.source.ahead([environment.stream])
        return environment.queue.popleft()

    def observe(self, observations: Observation, indices: Sequence[int] | None = None) -> None:
        """Take in one observation of each environment, and draw nothing.

        Args, errors: as for :meth:`act_batch`, which begins with this.
        """
        indices = self._listed(indices)
        self.remember(self.frames(observations, len(indices)), indices)

    def frames(self, observations: Observation, batch: int) -> Sequence[Sequence[Frame]]:
        """:meth:`observe`'s first half: what the source makes of observations. Nothing is kept."""
        return self.source.frames(named(observations), batch)

    def remember(self, frames: Sequence[Sequence[Frame]], indices: Sequence[int]) -> None:
        """:meth:`observe` for what the source has made of observations already."""
        for index, new in zip(indices, frames, strict=True):
            self.environments[index].observe(new, self.horizons[0])

    def remembered(self, indices: Sequence[int]) -> list[deque[Frame]]:
        """The histories of these environments, for :meth:`restore`."""
        return [self.environments[index].history.copy() for index in indices]

    def restore(self, histories: Sequence[deque[Frame]], indices: Sequence[int]) -> None:
        """Forget what was observed since."""
        for index, history in zip(indices, histories, strict=True):
            self.environments[index].history = history

    def predict(
        self,
        indices: Sequence[int] | None = None,
        committed: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        """Draw a chunk for each environment from what it has observed so far; queues are left.

        Args:
            committed: actions (n, action_dim) of each from now on that chunks are given, if any.

        Returns:
            (B, Tp − To + 1, action_dim) actions, the first for the time of the latest observation.
            :meth:`act_batch` executes Ta of them; a loop in which a chunk comes late may want the
            others.

        Raises:
            NonFiniteError: a NaN or infinity in the network's output or an action.
        """
        indices = self._listed(indices)
        environments, start = [self.environments[i] for i in indices], time.perf_counter()
        histories, streams = [e.history for e in environments], [e.stream for e in environments]
        if not histories or not all(histories):
            raise InputError(
                "expected an observation of every environment, one or more, before a chunk; got "
                f"{sum(map(bool, histories))} for {len(histories)}"
            )
        if committed is not None and len(committed) != len(histories):
            raise InputError(
                f"expected committed actions of {len(histories)} environments, got {len(committed)}"
            )
        before, batch = states_of(streams), len(environments)
        try:
            if committed is None:
                made = self.source.draw(histories, streams)
            else:
                made = self.source.draw_after(histories, streams, committed)
            seconds = time.perf_counter() - start
            self._cost = _Cost(batch, range(batch), made.stats, seconds)
            if self.on_draw is not None:
                self.on_draw(self._told(environments, made))
        except BaseException:  # it is drawn again from the same noise
            go_back(streams, before)
            raise
        for environment in environments:
            environment.drawn += 1
        return made.actions[:, self.horizons[0] - 1 :]

    def _told(self, environments: Sequence[Environment], made: Chunks) -> Draw:
        costs = [cost for cost in self._cost.by_row() if cost is not None]
        seeds, drawn = [e.seed for e in environments], [e.drawn for e in environments]
        return Draw(seeds, drawn, made.histories, made.slopes, made.actions, costs)
