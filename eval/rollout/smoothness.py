"""How smoothly an episode moved: jerk of the hands, and jumps of the actions where chunks join."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from asd_policy.eval.runs.episode import Smoothness

_HAND = "_eef_pos"  # end of the observations that are positions of hands, (3,) metres
_DIGITS = 6


class Motion:
    """An episode's actions and positions of hands, as they come.

    Args:
        rate: control steps in a second of the simulated world. held: numbers of an action that are
            no motion (a gripper's command).
    """

    def __init__(self, rate: float, held: Collection[int]) -> None:
        self._rate, self._held = rate, list(held)
        self._actions: list[np.ndarray] = []
        self._hands: list[np.ndarray] = []

    def add(self, observation: Mapping[str, np.ndarray], action: np.ndarray) -> None:
        """One control step: what was seen, and what was done."""
        hands = [value for key, value in observation.items() if key.endswith(_HAND)]
        self._hands.append(np.array(hands, dtype=np.float64))
        self._actions.append(np.delete(action, self._held))

    def summary(self, joins: Collection[int], still: Collection[int] = ()) -> Smoothness:
        """What it came to.

        Args:
            joins: steps at which the first action of a chunk followed another chunk's.
            still: steps in which the robot waited for a chunk: to, in and from them nothing is
                within one.
        """
        jumps = np.linalg.norm(np.diff(self._actions, axis=0), axis=-1) if self._actions else []
        at = [jump for step, jump in enumerate(jumps, 1) if step in joins]
        outside = {*joins, *still, *(step + 1 for step in still)}
        within = [jump for step, jump in enumerate(jumps, 1) if step not in outside]
        return {
            "jerk": self._jerk(),
            "jump_at_joins": _mean(at),
            "jump_within": _mean(within),
        }

    def _jerk(self) -> float | None:
        hands = np.array(self._hands)  # (T, arms, 3)
        if len(hands) < 4 or not hands.size:
            return None
        third = np.diff(hands, n=3, axis=0) * self._rate**3
        return round(float(np.sqrt((third**2).sum(-1).mean())), _DIGITS)


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), _DIGITS) if len(values) else None
