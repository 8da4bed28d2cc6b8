"""Whether the chunks that a policy executes in its loop are distributed as sequential DDPM's.

    python -m asd_policy.eval.studies.in_loop --task tool-hang --episodes 100

One sampler drives episodes; at each decision DDPM draws chunks for what was seen: one from the same
noise, which goes most of the way with an exact sampler's, and three from noise of their own. If
each decision's chunk has DDPM's distribution, whatever happened before, then episodes and successes
have it, too. So a sampler that changes successes is told apart here, sooner than by successes.

Each episode is kept: run again, it goes on where it stopped; with more --episodes, it adds some.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import scipy.stats
import torch
from rich.console import Console

from asd_policy.checkpoints import shipped
from asd_policy.console import plain_console, say
from asd_policy.data.replay import DAMAGED_NPZ
from asd_policy.envs.registration import register_envs
from asd_policy.envs.requirements import check_simulator
from asd_policy.envs.tasks import get_task
from asd_policy.errors import AsdPolicyError, InputError
from asd_policy.eval.runs.files import write_json
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.script import run_script
from asd_policy.eval.show.tables import print_lines, print_tables, table
from asd_policy.files import claimed, replacing
from asd_policy.policy import DiffusionPolicy, load_checkpoint
from asd_policy.progress import Stage
from asd_policy.samplers.config import SamplerConfig
from asd_policy.threads import limited_to

Json = dict[str, Any]
Array = np.ndarray
FRESH = 3  # of DDPM's from noise of their own: two to measure from, one as control
TOGETHER = 32  # of DDPM's chunks
LEVEL = 0.05
ENOUGH = 5  # decisions for each number of a chunk
FAR = 2.0  # times as far from both others as these are from each other
FLIPS, AT_ONCE = 1999, 200  # of signs
LEAST = 1e-300  # p


def study(
    task: str = "tool_hang", checkpoint: Path | None = None, sampler: str = "asd",
    window: int = 32, episodes: int = 100, seed: int = 103_000, engine: str = "auto",
    out: Path | None = None,
) -> None:  # fmt: skip
    """Drive episodes, draw DDPM's chunks for each decision, and compare.

    Args:
        task: One of the shipped simulators.
        checkpoint: A policy's folder; left out, the one that ships.
        sampler: What drives; "ddim-10", say, to see a difference found.
        window: Of a form of ASD; 0 is "auto".
        episodes: How many.
        seed: Seed of the first.
        engine: What runs the network.
        out: Folder of the results; left out, outputs/in_loop/<task>-<sampler>.
    """
    task = get_task(task).name
    if min(episodes, seed + 1) < 1 or window < 0:
        raise InputError("--episodes takes 1 or more, --seed and --window 0 or more")
    out = out or Path("outputs/in_loop") / f"{task}-{sampler}"
    check_simulator()
    with claimed(out), limited_to(1):
        loop = Loop(task, checkpoint or shipped(task), sampler, window, engine)
        settings = {**loop.settings, "seed": seed}
        file, kept = out / "in_loop.json", out / "episodes"
        if file.exists():
            check_same(out, read_json(file, "in_loop")["settings"], settings)
        kept.mkdir(exist_ok=True)
        found: list[dict[str, Array]] = []
        with Stage("episodes", episodes, measuring=True) as stage:
            for done in range(episodes):
                path = kept / f"{seed + done}.npz"
                if not path.exists():
                    with replacing(path) as opened:
                        np.savez(opened, **loop.episode(seed + done))
                found.append(_read(path))
                if not file.exists() or done + 1 == episodes:  # it also says what the folder is of
                    write_json(file, made := judge(found, settings, loop.step))
                stage.update(done + 1)
    print_found(plain_console(), made)
    say(f"Kept: {file}")


class Loop:
    """A simulator, the policy that drives it, and DDPM of the same network.

    Attributes: ``settings`` as kept; ``step``, actions of a chunk that are executed.
    """

    def __init__(self, task: str, folder: Path, sampler: str, window: int, engine: str) -> None:
        config = SamplerConfig.named(sampler)
        if "window" in config.method.options:
            config = SamplerConfig.named(sampler, window=window or "auto")
        made = load_checkpoint(folder)
        trained = made.schedule
        # A shorter chain takes fewer numbers of a stream: what it took for one chunk DDPM would
        # take for another.
        self._same = config.schedule(trained).num_steps == trained.num_steps
        self._driver = DiffusionPolicy(made, config, engine=engine, threads=1)
        self._ddpm = DiffusionPolicy(
            load_checkpoint(folder), SamplerConfig("ddpm"), engine=engine, threads=1
        )
        register_envs()
        self._env = gym.make(get_task(task).env_id, disable_env_checker=True)
        self._drawn: list[Any] = []
        self._driver.on_draw = self._drawn.append
        self._scale = made.action_normalizer
        self.step = made.config.horizons[1]
        drafts = "window" in config.method.options
        self.settings: Json = {
            "task": task, "checkpoint_sha256": made.card["sha256"], "sampler": sampler,
            "window": window or None if drafts else None, "engine": self._driver.engine.name,
        }  # fmt: skip

    def episode(self, seed: int) -> dict[str, Array]:
        """histories (n, To, Do); normalized, executed (n, Tp, Da), DDPM's of the same noise
        (n, Tp, Da) and of other noise (n, 3, Tp, Da); calls (n,); success."""
        self._drawn.clear()
        observation, _ = self._env.reset(seed=seed)
        self._driver.reset([seed])
        over = success = False
        while not over:
            action = self._driver.act(observation)
            observation, _, terminated, truncated, info = self._env.step(action)
            over, success = terminated or truncated, success or bool(info["is_success"])
        histories = np.concatenate([each.histories for each in self._drawn])
        executed = np.concatenate([each.chunks for each in self._drawn])
        first = (FRESH + 1) * seed
        fresh = [self._fresh(histories, first + i) for i in range(FRESH)]
        same = self._alike(histories, seed) if self._same else self._fresh(histories, first + FRESH)
        return {
            "histories": histories,
            "executed": self._normalized(executed),
            "same": self._normalized(same),
            "fresh": np.stack([self._normalized(each) for each in fresh], 1),
            "calls": np.array([each.stats[0].calls for each in self._drawn]),
            "success": np.array(success),
        }

    def _alike(self, histories: Array, seed: int) -> Array:
        """DDPM's chunks (n, Tp, Da) of histories, from the numbers that the driver had."""
        stream = self._ddpm.stream(seed)
        each = [self._ddpm.sample(row[None], [stream])[0] for row in histories]
        return np.concatenate(each)

    def _fresh(self, histories: Array, first: int) -> Array:
        """DDPM's chunks (n, Tp, Da) of histories, from streams of their own."""
        parts = []
        for begin in range(0, len(histories), TOGETHER):
            rows = histories[begin : begin + TOGETHER]
            # Of a seed, a CPU's generator heeds the lowest 32 bits alone: these are all of it.
            keys = ((first, begin + i) for i in range(len(rows)))
            seeds = [int(np.random.SeedSequence(key).generate_state(1)[0]) for key in keys]
            streams = [self._ddpm.stream(seed) for seed in seeds]
            parts.append(self._ddpm.sample(rows, streams)[0])
        return np.concatenate(parts)

    def _normalized(self, actions: Array) -> Array:
        return self._scale.normalize(torch.from_numpy(actions)).numpy()


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path) as kept:
            return {key: kept[key] for key in kept.files}
    except DAMAGED_NPZ as error:
        raise AsdPolicyError(
            f"{path} is damaged ({error}); remove it, and the episode is driven again"
        ) from error


# ---- what is asked of chunks ---------------------------------------------------------------------


def questions(chunks: Array, episode: Mapping[str, Array], step: int) -> dict[str, Array]:
    """What is asked → (n, m): the answers for chunks minus those for DDPM's of the same noise. Of
    equal distributions their mean is 0, given all that came before.

    Args:
        chunks: (n, Tp, Da), of the decisions of an episode, in order. episode: as `Loop.episode`
            has it. step: actions of a chunk that are executed.
    """
    near, far = (episode["fresh"][:, i] for i in range(2))
    middle = (near + far) / 2
    before = (episode["executed"] - middle)[:-1, step:]  # how the chunk before went its own way
    rest = before.shape[1]

    def answers(x: Array) -> dict[str, Array]:
        lone = np.minimum(_distance(x, near), _distance(x, far)) > FAR * _distance(near, far)
        on = ((x - middle)[1:, :rest] * before).sum((1, 2))
        jerk = np.square(np.diff(x, n=3, axis=1)).sum((1, 2))
        return {
            "each number": x.reshape(len(x), -1),
            "each number's spread": np.square(x - near).reshape(len(x), -1),
            "distance to another": _distance(x, near)[:, None],
            "far from two others": lone.astype(np.float64)[:, None],
            "jerk": jerk[:, None],
            "as the chunk before went": np.append(0.0, on)[:, None],
        }

    ours, theirs = (answers(each.astype(np.float64)) for each in (chunks, episode["same"]))
    return {name: ours[name] - theirs[name] for name in ours}


def _distance(x: Array, y: Array) -> Array:
    return np.sqrt(np.square(x - y).sum((1, 2)))


def families(of_episodes: Sequence[Mapping[str, Array]]) -> list[Json]:
    """The largest |z| of each kind, and the smallest p, corrected for all questions.

    z is the sum over decisions divided by the root of the sum of squares: about standard normal, as
    the answers are a martingale's differences. Of each kind with many questions also all at once,
    in whatever direction, where there are decisions enough. Numbers of neighbouring times hang
    together, so p is the share of flips of the decisions' signs whose largest |z| of all questions
    is as large (Westfall & Young, 1993).
    """
    parts = {}
    for name in of_episodes[0]:
        each = np.concatenate([one[name] for one in of_episodes])
        size = np.sqrt(np.square(each).sum(0))
        parts[name] = each / np.where(size > 0, size, 1.0)
    random = np.random.default_rng(0)
    n = len(next(iter(parts.values())))
    found = {name: abs(z[0]) for name, z in _scores(parts, np.ones((1, n))).items()}
    largest = []
    for begin in range(0, FLIPS, AT_ONCE):
        signs = random.choice([-1.0, 1.0], (min(AT_ONCE, FLIPS - begin), n))
        largest.append(np.hstack([abs(z) for z in _scores(parts, signs).values()]).max(1))
    flipped = np.concatenate(largest)
    return [
        {
            "name": name, "questions": len(z), "z": float(z.max()),
            "p": float((1 + (flipped >= z.max()).sum()) / (1 + FLIPS)),
        }
        for name, z in found.items()
    ]  # fmt: skip


def _scores(parts: Mapping[str, Array], signs: Array) -> dict[str, Array]:
    """Kind of question → (b, m) z, for signs (b, n) of the decisions."""
    found = {}
    for name, each in parts.items():
        found[name] = signs @ each
        if len(each) > ENOUGH * each.shape[1] > ENOUGH:
            found[f"{name}, all at once"] = _at_once(found[name], each)
    return found


def _at_once(z: Array, each: Array) -> Array:
    """(b, m) z → (b, 1): the z of the same p as their sum of squares, after what (n, m) differences
    have in common (Hotelling's T², 1931)."""
    n, m = each.shape
    squared = np.einsum("bi,ij,bj->b", z, np.linalg.pinv(each.T @ each), z)
    within = squared / (1 - squared / n)  # about the mean
    p = scipy.stats.f.sf(within * (n - m) / (m * n), m, n - m)
    return np.asarray(scipy.stats.norm.isf(p.clip(min=LEAST) / 2))[:, None]


def judge(found: Sequence[dict[str, Array]], settings: Json, step: int) -> Json:
    """The content of in_loop.json."""
    ours = [questions(each["executed"], each, step) for each in found]
    control = [questions(each["fresh"][:, FRESH - 1], each, step) for each in found]
    calls = np.concatenate([each["calls"] for each in found])
    apart = np.concatenate([each["fresh"][:, 0] - each["fresh"][:, 1] for each in found])
    off = np.concatenate([each["each number"] for each in ours])
    spread = np.sqrt(np.square(apart.reshape(len(apart), -1)).mean(0) / 2)
    width = 1.96 * np.sqrt(np.square(off).sum(0)) / len(off)
    return {
        "schema_version": VERSION["in_loop"],
        "settings": settings,
        "episodes": len(found),
        "succeeded": sum(bool(each["success"]) for each in found),
        "decisions": len(calls),
        "calls": float(calls.mean()),
        "executed": families(ours),
        "control": families(control),
        "precision": float(np.median(width[spread > 0] / spread[spread > 0])),
    }


def print_found(console: Console, made: Json) -> None:
    """A line for each kind of question, and what all of them come to."""
    settings, rows = made["settings"], []
    for ours, control in zip(made["executed"], made["control"], strict=True):
        row = [ours["name"], str(ours["questions"])]
        for each in (ours, control):
            row += [f"{each['z']:.2f}", f"{each['p']:.2g}"]
        rows.append(row)
    headers = (
        "",
        "questions",
        f"{settings['sampler']}:\nlargest |z|",
        "least p",
        "DDPM",
        "least p",
    )
    print_tables(console, [table(headers, rows, dense=True)])
    least = min(each["p"] for each in made["executed"])
    said = "is told apart from" if least <= LEVEL else "cannot be told apart from"
    print_lines(console, [
        f"{settings['task']}: {made['decisions']} chunks of {made['episodes']} episodes "
        f"({made['succeeded']} succeeded), {made['calls']:.1f} calls each.",
        "p is corrected for all questions of its column (Westfall-Young).",
        f"{settings['sampler']} {said} DDPM in its own loop (at {LEVEL:.0%}).",
        f"A number's mean is known to ±{made['precision']:.3f} of its standard deviations (95%).",
    ])  # fmt: skip


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status, as ``run_script``."""
    return run_script("in_loop", study, __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
