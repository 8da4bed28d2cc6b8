"""Samplers of one LeRobot policy on the same seeds, in LeRobot's own rollouts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import load_file

import asd_policy.integrations.lerobot as asd
from asd_policy.console import plain_console, say
from asd_policy.envs.requirements import installed_version
from asd_policy.errors import InputError
from asd_policy.eval.options import HELD_OUT_SEED
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.runs.schemas import read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.runs.studies import PushTEpisode
from asd_policy.eval.studies.pusht.demos import OUT, STEPS, pusht
from asd_policy.eval.studies.pusht.expert import Expert, state
from asd_policy.eval.studies.pusht.summary import SAMPLERS, print_comparison, summarize, tally
from asd_policy.eval.studies.pusht.train import LAST
from asd_policy.files import claimed
from asd_policy.progress import Stage
from asd_policy.threads import limited_to

Json = dict[str, Any]
Play = Callable[[int], PushTEpisode]


def compare(
    out: Path = OUT, policy: Path | None = None, file: Path | None = None,
    samplers: tuple[str, ...] = SAMPLERS, episodes: int = 100,
) -> None:  # fmt: skip
    """Play the same seeds with each sampler, and print the table of all that are kept.

    Args:
        out: Folder of all three steps.
        policy: Folder of a policy; left out, the last checkpoint in <out>/train.
        file: JSON file of the results, to begin or to go on with; left out, <out>/pusht.json.
        samplers: own and ddim-10 are LeRobot's loops, ddpm and asd this package's; expert taught.
        episodes: Seeds of each.
    """
    policy, file = policy or out / LAST, file or out / "pusht.json"
    if not samplers or not set(samplers) <= set(SAMPLERS):
        raise InputError(f"--samplers takes some of {SAMPLERS}; got {samplers}")
    if not (policy / "model.safetensors").is_file():
        raise InputError(f"{policy} holds no model.safetensors; `train` makes one")
    with claimed(file.parent), limited_to(1):
        settings = _settings(policy)
        kept: list[PushTEpisode] = []
        if file.exists():
            there = read_json(file, "pusht")
            check_same(file, there["settings"], settings)
            kept = there["episodes"]
        done = {(e["sampler"], e["seed"]) for e in kept}
        seeds = range(HELD_OUT_SEED, HELD_OUT_SEED + episodes)
        todo = [(s, seed) for seed in seeds for s in samplers if (s, seed) not in done]
        players: dict[str, Play] = {}
        with Stage("episodes", len(todo), measuring=True) as stage:
            for i, (sampler, seed) in enumerate(todo, start=1):
                if sampler not in players:
                    players[sampler] = _player(policy, sampler)
                kept.append(players[sampler](seed))
                write_json(file, summarize(settings, kept))
                stage.update(i, tally(kept))
    print_comparison(plain_console(), summarize(settings, kept))
    say(f"Kept: {file}")


def _settings(policy: Path) -> Json:
    weights = policy / "model.safetensors"
    kept = policy.parent / "training_state" / "training_step.json"
    if not kept.is_file():
        raise InputError(f"{kept} is missing; expected a policy where lerobot-train left it")
    training = json.loads(kept.read_text())
    machine = describe_machine({"threads": torch.get_num_threads(), "gpu": None})
    return {
        "policy_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(tensor.numel() for tensor in load_file(weights).values()),
        "training_steps": training["step"],
        "first_seed": HELD_OUT_SEED,
        "cpu": machine["cpu"],
        "threads": machine["threads"],
        "versions": {name: installed_version(name) for name in ("lerobot", "gym-pusht", "torch")},
    }


def _expert() -> Play:
    env, expert = pusht(), Expert()

    def play(seed: int) -> PushTEpisode:
        env.reset(seed=seed)
        expert.reset()
        rewards, over = [], False
        while not over:
            _, reward, success, truncated, _ = env.step(expert.act(*state(env)))
            rewards.append(reward)
            over = success or truncated
        return _episode("expert", seed, success, np.array(rewards), [])

    return play


def _player(folder: Path, sampler: str) -> Play:
    """LeRobot's `rollout`, with its environment and its processors; or the expert."""
    if sampler == "expert":
        return _expert()
    from lerobot.envs.configs import PushtEnv
    from lerobot.envs.factory import make_env, make_env_pre_post_processors
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.scripts import lerobot_eval

    policy = load_policy(folder, sampler)
    config = PushtEnv(obs_type="environment_state_agent_pos", episode_length=STEPS)
    env = make_env(config)["pusht"][0]
    around = (
        *make_env_pre_post_processors(env_cfg=config, policy_cfg=policy.config),
        *make_pre_post_processors(policy.config, pretrained_path=str(folder)),
    )
    meter = Meter(policy)
    # Each rollout would show a progress bar, and warn that PushT has no task descriptions.
    said: Any = {"inside_slurm": lambda: True, "check_env_attributes_and_types": lambda env: None}
    quiet = mock.patch.multiple(lerobot_eval, **said)

    def play(seed: int) -> PushTEpisode:
        torch.manual_seed(seed)
        meter.chunks = []
        with quiet:
            found = lerobot_eval.rollout(env, policy, *around, seeds=[seed])
        success, rewards = bool(found["success"].any()), found["reward"][0].numpy()
        return _episode(sampler, seed, success, rewards, meter.chunks)

    return play


def load_policy(folder: Path, sampler: str) -> Any:
    """The policy as LeRobot loads it, to be sampled by one of SAMPLERS."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    config: Any = PreTrainedConfig.from_pretrained(folder)
    if sampler == "ddim-10":
        config.noise_scheduler_type, config.num_inference_steps = "DDIM", 10
    policy = DiffusionPolicy.from_pretrained(folder, config=config).eval()
    if sampler in ("asd", "ddpm"):
        policy = asd.accelerate(policy, sampler=sampler, warmup=True, verbose=False)
    return policy


class Meter:
    """What chunks of a policy cost: (calls, evaluations, seconds of the processor, of the clock).

    Calls of LeRobot's own loop are counted where they arrive; ours are counted by the sampler.
    """

    def __init__(self, policy: Any) -> None:
        self.chunks: list[tuple[int, int, float, float]] = []
        self._policy, self._calls, self._draw = policy, 0, policy.predict_action_chunk
        policy.predict_action_chunk = self.draw
        policy.diffusion.unet.register_forward_hook(self._count)
        for _ in range(2):  # what the first chunk does once is not measured
            policy.reset()
            sizes = {"observation.state": 2, "observation.environment_state": 16}
            policy.select_action({k: torch.zeros(1, n, device="cpu") for k, n in sizes.items()})

    def _count(self, *_: Any) -> None:
        self._calls += 1

    def draw(self, *args: Any, **named: Any) -> torch.Tensor:
        self._calls = 0
        clock, processor = time.perf_counter(), time.process_time()
        actions: torch.Tensor = self._draw(*args, **named)
        took = time.process_time() - processor, time.perf_counter() - clock
        hook = vars(self._policy.diffusion).get("conditional_sample")
        calls = evaluations = self._calls
        if hook is not None:
            calls, evaluations = int(hook.stats.calls[0]), int(hook.stats.evaluations[0])
        self.chunks.append((calls, evaluations, *took))
        return actions


def _episode(
    sampler: str, seed: int, success: bool, rewards: np.ndarray, chunks: list[Any]
) -> PushTEpisode:
    calls, evaluations, processor, wall = np.sum(chunks, axis=0) if chunks else np.zeros(4)
    return {
        "sampler": sampler, "seed": seed, "success": bool(success),
        "overlap": float(rewards.max()), "steps": len(rewards), "chunks": len(chunks),
        "calls": int(calls), "evaluations": int(evaluations),
        "processor_s": float(processor), "wall_s": float(wall),
    }  # fmt: skip
