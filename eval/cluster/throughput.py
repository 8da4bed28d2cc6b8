"""What a cluster's parts cost, and how many episodes a second they make.

    python -m asd_policy.eval.cluster.throughput [--envs 1 2 4 8] [--out FOLDER] [--ray ADDRESS]

Measures (1) the processor time that a policy's loop spends on each message and each control step,
(2) episodes a second against the number of environments, whose steps sleep: as if each had a core
of its own, so that a small machine shows how far the loop goes. Writes throughput.json and
throughput.svg. `on_paper` in it is the model of SCALING.md, with these costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import tyro
from ray import cloudpickle

from asd_policy.envs.tasks import get_task
from asd_policy.eval.cluster import connect
from asd_policy.eval.cluster.driver import prepare_on_ray
from asd_policy.eval.cluster.idle import ACTIONS, IdleEnv, IdlePolicy, prepare_idle
from asd_policy.eval.cluster.slots import RaySlot
from asd_policy.eval.formats import duration
from asd_policy.eval.machine import describe_machine
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.plan import resolve
from asd_policy.eval.rollout import Listener, roll_out
from asd_policy.eval.runs.files import check_writable, write_json
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.slots import Moment
from asd_policy.files import writing

# Steps a second of one core (software, low-dimensional), measured: SCALING.md.
STEPS_PER_S = {"lift": 140.0, "can": 136.0, "square": 125.0, "tool_hang": 137.0, "transport": 62.0}
_CORES, _GPUS = 1000, 8
_CHUNKS_S = (0.01, 0.03, 0.1, 0.3)

Json = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one policy, in seconds of processor time of the thread that rolls out."""

    message_s: float
    """A message to an environment and its answer, of `ACTIONS` steps."""
    message_process_s: float
    """The same with Ray's own threads, which run beside it on other cores."""
    step_s: float
    """The rest of the loop, of one control step of one environment."""
    round_trip_s: float
    """Median by the clock, of a message whose steps take no time."""
    message_bytes: int
    answer_bytes: int


@dataclasses.dataclass(frozen=True)
class Options:
    """What to measure."""

    task: str = "lift"
    """Gives the observations their shapes."""
    envs: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of environments."""
    step_ms: float = 7.0
    """What a step sleeps."""
    chunk_ms: float = 30.0
    """What a batch of chunks sleeps."""
    chunks: int = 12
    """Chunks of an episode."""
    episodes: int = 3
    """Episodes of each environment."""
    ray: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[ADDRESS]")] = ()
    """The cluster; none is one that is started here."""
    out: Path = Path("outputs/throughput")
    """Folder of the JSON and the figure."""


def main(options: Annotated[Options, tyro.conf.arg(name="")]) -> None:
    """Measure, print and write."""
    if options.episodes < 2:
        raise ValueError(
            "--episodes must be 2 or more, since the first of each environment is not counted; "
            f"got {options.episodes}"
        )
    check_writable(options.out)
    asked = EvalOptions(task=options.task, num_envs=max(options.envs), ray=options.ray)
    most = resolve(asked).parts
    with connect.connected(most) as ours:
        costs = measure_costs(options.task)
        runs = [measure_run(options, num_envs) for num_envs in options.envs]
        content = {
            "schema_version": VERSION["throughput"],
            "machine": describe_machine({"threads": 1, "gpu": None})
            | {"ray": connect.cluster_size()},
            "settings": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
            "costs": dataclasses.asdict(costs),
            "runs": runs,
            "on_paper": [
                on_paper(costs, task, chunk_s, _GPUS, _CORES)
                for task, chunk_s in itertools.product(STEPS_PER_S, _CHUNKS_S)
            ],
        }
        if ours:
            ray.shutdown()
    with writing(options.out):
        options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "throughput.json", content)
    draw(content, options.out / "throughput.svg")
    _say(content, options.out)


# --- what is measured ---------------------------------------------------------------------------


def measure_costs(task: str, chunks: int = 200) -> Costs:
    """Of messages to one environment that takes no time, and of a loop without any."""
    slot = RaySlot(functools.partial(IdleEnv, task, 10**9, 0.0), {})
    try:
        slot.start(0, film=False)
        moment = slot.receive()
        first, *rest = np.zeros((ACTIONS, get_task(task).action_dim), np.float32)
        answer, trips = [moment], []
        busy, process = time.thread_time(), time.process_time()
        for _ in range(chunks):
            start = time.perf_counter()
            slot.send(first, rest)
            answer = [slot.receive()]
            trips.append(time.perf_counter() - start)
            for action in rest:
                slot.send(action)
                answer.append(slot.receive())
        busy, process = time.thread_time() - busy, time.process_time() - process
    finally:
        slot.close()
    return Costs(
        message_s=busy / chunks,
        message_process_s=process / chunks,
        step_s=_loop_step_s(task, moment),
        round_trip_s=float(np.median(trips)),
        message_bytes=len(cloudpickle.dumps(np.stack([first, *rest]))),
        answer_bytes=len(cloudpickle.dumps(answer)),
    )


class _Instant:
    """A slot whose environment answers at once, with the same moment until the episode's end."""

    def __init__(self, moment: Moment, steps: int):
        self._moment, self._steps = moment, steps
        self._last = dataclasses.replace(moment, over=True)

    def ready(self) -> bool:
        return True

    def start(self, seed: int, film: bool) -> None:
        self._left = self._steps

    def send(self, action: np.ndarray, coming: Sequence[np.ndarray] = ()) -> None:
        self._left -= 1

    def receive(self) -> Moment:
        return self._moment if self._left else self._last

    def restart(self) -> None:
        raise AssertionError("it cannot die")

    def close(self) -> None:
        """Nothing to let go of."""


def _loop_step_s(task: str, moment: Moment, num_envs: int = 64, steps: int = 96) -> float:
    """Processor time of the rollout's loop for one step of one of many environments."""
    slots = [_Instant(moment, steps) for _ in range(num_envs)]
    jobs = (("ddpm", seed) for seed in range(2 * num_envs))
    start = time.thread_time()
    done = sum(episode.steps for episode in roll_out({"ddpm": IdlePolicy(task, 0.0)}, slots, jobs))
    return (time.thread_time() - start) / done


def measure_run(options: Options, num_envs: int) -> Json:
    """Episodes a second of one policy with so many environments, once each has begun."""
    asked = EvalOptions(
        task=options.task,
        num_envs=num_envs,
        samplers=("ddpm",),
        episodes=options.episodes * num_envs,
        horizon=options.chunks * ACTIONS,
        ray=options.ray,
        device="cpu",
    )
    idle = functools.partial(
        prepare_idle, step_s=1e-3 * options.step_ms, chunk_s=1e-3 * options.chunk_ms
    )
    jobs = (("ddpm", seed) for seed in range(asked.episodes))
    ended = []
    _wait_for_room()
    with (
        contextlib.closing(prepare_on_ray(resolve(asked).parts, prepare=idle)) as setup,
        tempfile.TemporaryDirectory() as folder,
    ):
        for episode in setup.roll_out(jobs, _no_film, Path(folder), Listener()):
            ended.append((time.perf_counter(), episode.wall_s))
    # The first round's actors may still have been starting.
    round_one, rest = ended[:num_envs], ended[num_envs:]
    seconds = ended[-1][0] - max(when for when, _ in round_one)
    return {"num_envs": num_envs, "episodes": len(rest), "seconds": seconds,
            "episodes_per_s": len(rest) / seconds}  # fmt: skip


def _wait_for_room(patience_s: float = 30.0) -> None:
    """Until the actors of the run before have given their CPUs back, where it is a real cluster."""
    end = time.monotonic() + patience_s
    while ray.is_initialized() and time.monotonic() < end:
        if ray.available_resources().get("CPU") == ray.cluster_resources().get("CPU"):
            return
        time.sleep(0.1)


def _no_film(folder: Path, sampler: str, seed: int) -> None:
    return None


# --- the model ----------------------------------------------------------------------------------


def steps_per_s(costs: Costs, num_envs: int, env_step_s: float, chunk_s: float) -> float:
    """Control steps a second of one policy: one chunk for each environment in
    Ta·t_env + t_chunk + B·(t_message + Ta·t_loop) seconds (SCALING.md)."""
    loop = num_envs * (costs.message_s + ACTIONS * costs.step_s)
    return num_envs * ACTIONS / (ACTIONS * env_step_s + chunk_s + loop)


def on_paper(costs: Costs, task: str, chunk_s: float, gpus: int, cores: int) -> Json:
    """So many GPUs with the cores shared among them, a core for each policy's loop taken off."""
    num_envs = (cores - gpus) // gpus
    rate = steps_per_s(costs, num_envs, 1 / STEPS_PER_S[task], chunk_s)
    return {
        "task": task,
        "chunk_s": chunk_s,
        "gpus": gpus,
        "cores": cores,
        "num_envs": num_envs,
        "steps_per_s": gpus * rate,
        "of_the_cores": rate / (num_envs * STEPS_PER_S[task]),
        "loop_share": rate * (costs.message_s / ACTIONS + costs.step_s),
        "steps_per_s_at_most": gpus / (costs.message_s / ACTIONS + costs.step_s),
    }


# --- what is shown ------------------------------------------------------------------------------


def draw(content: Json, path: Path) -> None:
    """Episodes a second against environments, and on paper control steps a second of one GPU."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    settings, costs = content["settings"], Costs(**content["costs"])
    env_s, chunk_s = 1e-3 * settings["step_ms"], 1e-3 * settings["chunk_ms"]
    counts = [run["num_envs"] for run in content["runs"]]
    episode = settings["chunks"] * ACTIONS
    model = [steps_per_s(costs, count, env_s, chunk_s) / episode for count in counts]
    left.plot(counts, model, color="0.5", label="model")
    left.plot(counts, [run["episodes_per_s"] for run in content["runs"]], "o", label="measured")
    left.set(xlabel="environments", ylabel="episodes / s", title="Measured, one policy")
    left.legend(frameon=False)
    grid = np.unique(np.geomspace(1, 1000, 60).astype(int))
    for chunk_s in _CHUNKS_S:
        rates = [steps_per_s(costs, n, 1 / STEPS_PER_S["lift"], chunk_s) for n in grid]
        right.loglog(grid, rates, label=f"chunk {duration(1e3 * chunk_s)}")
    right.loglog(grid, grid * STEPS_PER_S["lift"], color="0.7", ls=":", label="cores alone")
    right.axvline((_CORES - _GPUS) // _GPUS, color="0.85", zorder=0)
    right.set(xlabel="environments of one policy", ylabel="steps / s", title="On paper, Lift")
    right.legend(frameon=False, fontsize=8)
    with writing(path):
        figure.savefig(path)


def _say(content: Json, folder: Path) -> None:
    costs = content["costs"]
    print(
        f"processor time: {1e3 * costs['message_s']:.2f} ms a message of {ACTIONS} steps, "
        f"{1e6 * costs['step_s']:.0f} µs a step of the loop"
    )
    for run in content["runs"]:
        print(f"{run['num_envs']:>5} environments: {run['episodes_per_s']:.3f} episodes/s")
    print(f"kept in {folder}")


if __name__ == "__main__":
    tyro.cli(main)
