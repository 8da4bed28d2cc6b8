"""What is told of chunks that were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from asd_policy.samplers.result import Stats, one_line


@dataclass(frozen=True, repr=False)
class ChunkStats:
    """What one environment's chunk cost. Printed, it is one line.

    Attributes:
        latency_s: wall-clock seconds from observation to actions, shared by the batch.
        batch: chunks drawn together. sampler, window: how (window 1: sequentially).
        calls, evaluations, rejections: network calls and rows, rejected drafts of this chain.
        accepted, decided: (K,) by step.
        draft_s, network_s, verify_s, other_s: parts of ``latency_s``.
    """

    latency_s: float
    batch: int
    sampler: str
    window: int
    calls: int
    evaluations: int
    rejections: int
    accepted: np.ndarray
    decided: np.ndarray
    draft_s: float
    network_s: float
    verify_s: float
    other_s: float

    def __repr__(self) -> str:
        line = one_line(self.sampler, self.window, [self.calls], self.evaluations, self.latency_s)
        return line if self.batch == 1 else f"{line}, one of {self.batch} chunks drawn together"


@dataclass(frozen=True)
class Draw:
    """Chunks that were drawn in one batch, with all that they depend on besides the policy.

    Attributes:
        seeds: of each row's random stream (None: it was not given one). numbers: chunks that the
            stream had given before.
        histories: (B, To, Do) float32 observations, the newest last, keys in the policy's order;
            None of sources that see other things as well, and of chunks given committed actions.
        slopes: (K,) float64 that ASD drafted with; None of other samplers.
        chunks: (B, Tp, action_dim) float32, whole: also what is not executed.
        stats: of each row.
    """

    seeds: list[int | None]
    numbers: list[int]
    histories: np.ndarray | None
    slopes: np.ndarray | None
    chunks: np.ndarray
    stats: list[ChunkStats]


def chunk_stats(stats: Stats, latency_s: float) -> list[ChunkStats]:
    """Of each chain of a run."""
    seconds = stats.seconds
    other = latency_s - seconds["draft"] - seconds["network"] - seconds["verify"]
    accepted, decided = stats.accepted.numpy(), stats.decided.numpy()
    rejections = (decided.sum(1) - accepted.sum(1)).tolist()
    counts = zip(
        stats.calls.tolist(), stats.evaluations.tolist(), rejections, accepted, decided, strict=True
    )
    return [
        ChunkStats(
            latency_s,
            len(accepted),
            stats.sampler,
            stats.window,
            calls,
            evaluations,
            rejected,
            kept,
            drafts,
            seconds["draft"],
            seconds["network"],
            seconds["verify"],
            other,
        )
        for calls, evaluations, rejected, kept, drafts in counts
    ]
