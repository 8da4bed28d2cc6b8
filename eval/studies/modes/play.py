"""Episodes of a sampler on the board."""

from __future__ import annotations

from asd_policy.eval.runs.modes import ModesEpisode
from asd_policy.eval.studies.modes.board import Board
from asd_policy.policy import DiffusionPolicy


def play(board: Board, policy: DiffusionPolicy, sampler: str, seed: int) -> ModesEpisode:
    """One episode: the seed is that of the board and of the chunks."""
    observation, info = board.reset(seed=seed)
    policy.reset(seed)
    steps = chunks = calls = evaluations = 0
    over = False
    while not over:
        observation, _, terminated, truncated, info = board.step(policy.act(observation))
        over = terminated or truncated
        steps += 1
        for drawn in policy.last_chunks:
            if drawn is not None:
                chunks += 1
                calls, evaluations = calls + drawn.calls, evaluations + drawn.evaluations
    return {
        "sampler": sampler, "seed": seed, "success": bool(info["is_success"]),
        "touched": board.touched, "sides": list(board.sides), "steps": steps, "chunks": chunks,
        "calls": calls, "evaluations": evaluations,
    }  # fmt: skip
