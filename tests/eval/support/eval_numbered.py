"""A policy whose actions say which they are, in a loop with delays."""

from types import SimpleNamespace

import numpy as np

from asd_policy.eval.rollout.delay import DelayedPolicy

TO, TA, TP = 2, 3, 6  # so H = 5 actions from now on, of which 3 are executed
HOLD = None


class Numbered:
    """Action k of chunk c, meant for k steps after it was asked for, is [100 c + k, c − 0.5]: a
    motion, and a gripper's command. Each chunk takes the next of `latencies`."""

    observation_keys = {"t": 1}  # noqa: RUF012
    horizons = (TO, TA, TP)

    def __init__(self, latencies=()):
        self.latencies = list(latencies)
        self.asked_at = []  # what was observed, at each chunk
        self.last_chunks = []

    def reset(self, seeds):
        self.seen, self.count = [0.0] * len(seeds), [0] * len(seeds)

    def reset_env(self, index, seed):
        self.count[index] = 0

    def observe(self, observations, indices):
        for index, t in zip(indices, observations["t"][:, 0], strict=True):
            self.seen[index] = t

    def predict(self, indices):
        ahead = np.arange(TP - TO + 1)
        chunks = []
        for index in indices:
            self.asked_at.append(self.seen[index])
            c = self.count[index]
            chunks.append(np.stack([100 * c + ahead, np.full(len(ahead), c - 0.5)], 1))
            self.count[index] += 1
        self.last_chunks = [
            SimpleNamespace(latency_s=self.latencies.pop(0) if self.latencies else 9.0, calls=1)
            for _ in indices
        ]
        return np.array(chunks, np.float32)


def table(delay_s, steps, latencies=(), execution="late"):
    """At 1 Hz: (chunk, action) executed at each step, HOLD where the robot held still; when the
    policy was asked; the chunks' costs."""
    inner = Numbered(latencies)
    policy = DelayedPolicy(inner, delay_s, 1.0, held=[1], execution=execution)
    policy.reset([0])
    executed, costs = [], []
    for t in range(steps):
        before = sum(cost.delay.held_steps for cost in costs)
        action = policy.act_batch({"t": np.array([[float(t)]])}, [0])[0]
        costs += [cost for cost in policy.last_chunks if cost is not None]
        held = sum(cost.delay.held_steps for cost in costs) > before
        c = round(float(action[1]) + 0.5)
        executed.append(HOLD if held else (c, round(float(action[0]) - 100 * c)))
        if held:
            assert action[0] == 0, "no motion"
    return executed, [int(t) for t in inner.asked_at], costs
