"""What the wrapper of a robomimic policy costs beyond the sampler it wraps."""

from __future__ import annotations

import argparse
import cProfile
import pstats
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from asd_policy.checkpoints import shipped
from asd_policy.integrations.robomimic.rollout import AcceleratedPolicy, accelerate
from asd_policy.integrations.robomimic_convert import to_robomimic
from asd_policy.policy.checkpoint import load_checkpoint

PARTS = ("sampler", "encoder", "wrapper")


def main(words: Sequence[str]) -> None:
    """Chunk after chunk of one policy: the control steps of a chunk, less the sampler's time."""
    parser = argparse.ArgumentParser(prog="python -m asd_policy.integrations.robomimic overhead")
    parser.add_argument("--agent", help="model.pth (default: the Lift policy that is shipped)")
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--profile", action="store_true", help="and what the wrapper calls")
    options = parser.parse_args(words)
    policy = _load(options.agent)
    frames = _observations(policy)
    costs = measure(policy, frames, options.chunks)
    print(f"{options.chunks} chunks of {policy.horizons[1]} control steps, {policy.description}")
    for name, values in zip(PARTS, costs.T, strict=True):
        p5, p50, p95 = 1e3 * np.percentile(values, [5, 50, 95])
        print(f"{name:8} p5 {p5:7.3f}  p50 {p50:7.3f}  p95 {p95:7.3f} ms a chunk")
    if options.profile:
        _profile(policy, frames)


def _load(agent: str | None) -> AcceleratedPolicy:
    import robomimic.utils.file_utils as file_utils

    source: dict[str, Any] = {"ckpt_path": agent}
    if agent is None:
        content = to_robomimic(load_checkpoint(shipped("lift")))
        source = {"ckpt_dict": content}
    policy, _ = file_utils.policy_from_checkpoint(device=torch.device("cpu"), **source)
    return accelerate(policy, verbose=False)


def _observations(policy: AcceleratedPolicy) -> list[dict[str, np.ndarray]]:
    """Stacked frames as an environment gives them, one of each control step of a chunk."""
    rng, shapes = np.random.default_rng(0), policy.source.shapes
    return [
        {key: rng.normal(size=(policy.horizons[0], *shape)) for key, shape in shapes.items()}
        for _ in range(policy.horizons[1])
    ]


def measure(
    policy: AcceleratedPolicy, frames: Sequence[dict[str, np.ndarray]], chunks: int
) -> np.ndarray:
    """(chunks, 3) seconds of each chunk in sampler, encoder and everything else."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            made = function(*args, **kwargs)
            spent[name] += time.perf_counter() - start
            return made

        return call

    source, draw, encode = policy.source, policy.chunks.draw, policy.source.encode
    policy.chunks.draw = timed("sampler", draw)  # type: ignore[method-assign]
    source.encode = timed("encoder", encode)  # type: ignore[method-assign]
    policy.start_episode(seeds=0)
    rows = []
    try:
        for _ in range(chunks + 2):  # two, for what is prepared at first
            spent.update(dict.fromkeys(PARTS, 0.0))
            start = time.perf_counter()
            for ob in frames:
                policy(ob)
            whole = time.perf_counter() - start
            spent["wrapper"] = whole - spent["sampler"] - spent["encoder"]
            rows.append([spent[name] for name in PARTS])
    finally:
        policy.chunks.draw, source.encode = draw, encode  # type: ignore[method-assign]
    return np.array(rows[2:])


def _profile(policy: AcceleratedPolicy, frames: Sequence[dict[str, np.ndarray]]) -> None:
    """Calls and time of Python functions in 50 chunks, the sampler's own among them."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(50):
        for ob in frames:
            policy(ob)
    profile.disable()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(25)
