"""The observations at which chunks are sampled, (M, To, Do) in data units, and their origin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np

from asd_policy.envs.registration import register_envs
from asd_policy.envs.tasks import TASKS
from asd_policy.errors import DatasetError, InputError, counted
from asd_policy.eval.demonstrations import load_demonstrations
from asd_policy.eval.options import HELD_OUT_SEED
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.policy import Checkpoint, DiffusionPolicy, SamplerConfig

WITHIN = 0.8  # synthetic observations: this part of the normalizer's range, around its centre
PER_EPISODE = 4
Array = np.ndarray
Say = Callable[[str], None]


def find_moments(
    options: VerifyOptions, made: Checkpoint, task: str | None, say: Say
) -> tuple[Array, str]:
    """(M, To, Do) observations and a sentence on their origin.

    Raises:
        ValueError: episodes of a task that is not known, or that the policy was not made for.
        DatasetError: a file that is missing, or of other observations.
    """
    if isinstance(options.source, Path):
        return _from_file(options.source, made, options.observations, task)
    if not from_episodes(options, made, task):
        return _synthetic(options, made)
    assert task is not None
    return _from_episodes(options, made, task, say)


def from_episodes(options: VerifyOptions, made: Checkpoint, task: str | None) -> bool:
    """Whether observations come from simulated episodes. Errors: as :func:`find_moments`."""
    known = (
        task is not None
        and task in TASKS
        and dict(made.config.observation_keys) == dict(TASKS[task].observation_keys)
    )
    if options.source == "episodes" and not known:
        raise InputError(
            "--source episodes needs a checkpoint of one of the tasks "
            f"({', '.join(TASKS)}) with its observations; this one is for {task!r}"
        )
    return known and options.source in ("auto", "episodes")


def _synthetic(options: VerifyOptions, made: Checkpoint) -> tuple[Array, str]:
    """Uniform within the normalizer's range; the same in all To of an observation's history, as
    at the start of an episode."""
    normalizer = made.observation_normalizer
    low, high = normalizer.low.cpu().numpy(), normalizer.high.cpu().numpy()
    uniform = np.random.default_rng(options.seed).uniform(-1, 1, (options.observations, len(low)))
    rows = (low + high) / 2 + WITHIN * uniform * (high - low) / 2
    windows = np.repeat(rows[:, None], made.config.obs_horizon, axis=1).astype(np.float32)
    return windows, f"synthetic, uniform within {WITHIN:.0%} of the normalizer's range"


def _from_file(path: Path, made: Checkpoint, count: int, task: str | None) -> tuple[Array, str]:
    """Moments spread evenly over demonstrations, read as `train` read them for the policy."""
    keys = list(made.config.observation_keys)
    replay = load_demonstrations(path, keys, task)
    try:
        rows = replay.stacked_observations(made.config.observation_keys)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error
    if len(rows) < count:
        have = counted(len(rows), "observation")
        raise InputError(f"{path} holds {have}, and --observations asks for {count}")
    history = made.config.obs_horizon
    starts = np.concatenate([[0], replay.episode_ends[:-1]])
    last = np.linspace(0, len(rows) - 1, count + 2)[1:-1].round().astype(int)
    first = starts[np.searchsorted(replay.episode_ends, last, side="right")]
    picks = np.maximum(last[:, None] + np.arange(1 - history, 1), first[:, None])
    return rows[picks].astype(np.float32), f"demonstrations in {path.name}"


def _from_episodes(
    options: VerifyOptions, made: Checkpoint, task: str, say: Say
) -> tuple[Array, str]:
    """Moments spread over held-out episodes that the policy drives, by DDIM in 10 steps: any
    driver will do, since the samplers are compared at whatever it came by."""
    register_envs()
    steps = min(10, made.schedule.num_steps)
    policy = DiffusionPolicy(made, SamplerConfig("ddim", steps=steps), options.device)
    env = gym.make(TASKS[task].env_id, disable_env_checker=True)
    episodes = -(-options.observations // PER_EPISODE)
    windows: list[Array] = []
    try:
        for seed in range(HELD_OUT_SEED + options.seed, HELD_OUT_SEED + options.seed + episodes):
            say(f"Observations: episode {seed - HELD_OUT_SEED - options.seed + 1} of {episodes}")
            history = _drive(policy, env, seed)
            wanted = min(PER_EPISODE, options.observations - len(windows))
            last = np.linspace(0, len(history) - 1, wanted + 1)[:-1].round().astype(int)
            back = np.arange(1 - made.config.obs_horizon, 1)
            windows += list(history[np.maximum(last[:, None] + back, 0)])
    finally:
        env.close()
    origin = f"moments of {counted(episodes, 'episode')} of {task} from seed "
    return np.stack(windows), origin + str(HELD_OUT_SEED + options.seed)


def _drive(policy: DiffusionPolicy, env: gym.Env, seed: int) -> Array:  # type: ignore[type-arg]
    """(T, Do) what was seen in an episode up to its end."""
    observation, _ = env.reset(seed=seed)
    policy.reset([seed])
    seen, over = [], False
    while not over:
        seen.append(np.concatenate([observation[key] for key in policy.observation_keys]))
        observation, _, terminated, truncated, _ = env.step(policy.act(observation))
        over = terminated or truncated
    return np.stack(seen).astype(np.float32)
