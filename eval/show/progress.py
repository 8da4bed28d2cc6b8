"""How far a run is, as every stage of work is told (`asd_policy.progress`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from asd_policy.eval.runs.episode import Episode
from asd_policy.progress import Stage


class RunProgress(Stage):
    """Tells how far a run is. Use as a context; `begin` and `episode` in turn, `tick` often.

    No thread redraws the line: it would take the processor from the policy, whose latencies the run
    is there to measure.

    Args:
        samplers: of the run. episodes: of each of them.
        kept: episodes of earlier processes. What they took tells the time that is left until one
            of their sampler has ended here.
        places: how many policies run at once, each with environments of its own.
    """

    def __init__(
        self,
        samplers: Sequence[str],
        episodes: int,
        kept: Iterable[Episode] = (),
        places: int = 1,
    ) -> None:
        self._per_sampler, self._places = episodes, places
        self._outcomes: dict[str, list[bool]] = {name: [] for name in samplers}
        self._seconds: dict[str, list[float]] = {name: [] for name in samplers}
        self._earlier: dict[str, list[float]] = {name: [] for name in samplers}
        for episode in kept:
            self._outcomes[episode.sampler].append(episode.success)
            self._earlier[episode.sampler].append(self._takes(episode))
        total, done = episodes * len(samplers), sum(map(len, self._outcomes.values()))
        super().__init__("episodes", total, done, self._tally(), measuring=True)

    def begin(self, sampler: str, seed: int) -> None:
        """An episode starts now."""
        if self.live:
            self.update(self._done, self._note, f"{sampler}, seed {seed}")

    def episode(self, episode: Episode) -> None:
        """An episode has just ended."""
        self._outcomes[episode.sampler].append(episode.success)
        self._seconds[episode.sampler].append(self._takes(episode))
        self.update(self._done + 1, self._tally())

    def tick(self) -> None:
        """Between control steps: redraw the line, a few times a second at most."""
        self.update(self._done, self._note)

    def __exit__(self, *error: Any) -> None:
        self.update(self._done, self._note, "episodes")
        super().__exit__(*error)

    def _takes(self, episode: Episode) -> float:
        """Seconds of the run, where so many episodes run at once."""
        return episode.wall_s / (episode.num_envs * self._places)

    def _tally(self) -> str:
        """Successes of each sampler so far, of the episodes it has done."""
        return "  ".join(
            f"{name} {sum(done)}/{len(done)}" for name, done in self._outcomes.items() if done
        )

    def left_s(self) -> float | None:
        """Seconds to go, from each sampler's own mean, here or else in earlier processes; None
        until each has run."""
        total = 0.0
        for name, here in self._seconds.items():
            seconds = here or self._earlier[name]
            to_do = self._per_sampler - len(self._outcomes[name])
            if to_do and not seconds:
                return None
            total += to_do * sum(seconds) / max(len(seconds), 1)
        return total
