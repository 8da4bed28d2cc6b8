"""What an evaluation is asked to do: the options of `asd-policy eval`, checked before it runs."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from asd_policy.errors import InputError, did_you_mean
from asd_policy.samplers.names import SAMPLER_NAMES, ddim_steps_of

# Demonstrations use seeds from 0 up; evaluation starts far above, so no episode was trained on.
HELD_OUT_SEED = 100_000
DelayOption = Literal["measured"] | float | tuple[float, ...]
Engine = Literal["auto", "eager", "cuda_graph", "openvino", "distributed"]
Execution = Literal["waiting", "late", "overlapped"]

_SAMPLERS_HELP = (
    "Samplers to compare, all on the same seeds: asd (autospeculative decoding: ddpm's "
    "distribution in fewer calls), asd-slope, asd-memory, asd-frozen (with plainer drafts), "
    "asd-rejoin (whose guesses return to points that are evaluated already), "
    "asd-paper (as published: frozen draft, two calls a round), ddpm (sequential, the reference), "
    "ddim and paradigms (both approximate), ddim-clipped (ddim along the noise that belongs to the "
    "clipped sample, in place of the network's own), asd-ddim (its distribution, --eta above 0, in "
    "fewer calls). "
    "ddim-16 is ddim in 16 steps, whatever --ddim-steps says; so is any other number."
)
_SEED_HELP = (
    "Seed of the first episode; the others count up from it. Demonstrations use small seeds, so "
    "the default is held out. A seed fixes scene and random stream, the same for every sampler."
)
_WINDOW_HELP = (
    "Steps that asd and paradigms put into one network call; auto chooses for asd from what calls "
    "cost on this machine and from the acceptance that is stored with the policy."
)
_MEASURE_HELP = (
    "Time the network anew for --window auto. Without this, --window auto uses the times of the "
    "network's first use on this machine, which are kept in the user's cache folder."
)
_COMPILE_HELP = (
    "Compile the network at the first chunks: seconds on a GPU, up to some minutes on a CPU."
)
_DELAY_HELP = (
    "The world goes on while the policy thinks: every chunk comes this many milliseconds late, or "
    "as late as it took here (measured); several numbers are of one sampler each. Meanwhile the "
    "robot goes on with the last chunk, and holds still when that is used up. The exact rules are "
    "at the top of asd_policy/eval/rollout/delay.py."
)
_RATE_HELP = (
    "With --delay: control steps in a second of the wall clock. Faster leaves less time to think; "
    "the simulation still steps by what the policy was trained for."
)
_EXECUTION_HELP = (
    "With --delay: late goes on with the last chunk until the next one comes; waiting holds still "
    "until it comes, and executes it from its first action on; overlapped is late with chunks that "
    "are given the actions executed meanwhile (inpainting: another distribution)."
)
_RECORD_HELP = (
    "Keep what every chunk was sampled from, and its actions, in flight/ (a .npz an episode), for "
    "`asd-policy replay`."
)
_RESUME_HELP = (
    "Continue the run in --out, or without --out the newest unfinished one; nothing is lost or "
    "counted twice. Options that are left out are the run's own (but --ray, which says where it "
    "goes on); --episodes may grow, --video and --name may change."
)


_RAY_HELP = (
    "Run on a Ray cluster (auto, HOST:PORT or ray://HOST:PORT; with no ADDRESS one is started "
    "here): a policy on every GPU, or one on a CPU, each with --num-envs environments on CPUs of "
    "its node."
)


_REMOTE_HELP = (
    "Have chunks drawn by `asd-policy serve`, one server for each of --samplers, in their order; "
    "window and steps must be the servers'. Seed by seed, episodes are as with the policy here. "
    "Where servers ask for a token, it is the environment's ASD_POLICY_TOKEN."
)
_NUM_ENVS_HELP = (
    "Robots driven at once by one batched policy; more than 1 are each simulated in a process "
    "of their own. Measure latency with 1."
)
ENGINE_HELP = (
    "What runs the sampler; auto is cuda_graph on a GPU, and openvino on a CPU, where it is "
    "installed and faster; distributed is for the ranks of torchrun."
)
THREADS_HELP = (
    "CPU threads of the policy; None is one for a network that more make hardly faster, and as "
    "many as torch takes for a large one."
)
_ALL_HELP = (
    "All of these chunks. (Without this and --sample: all where --seed names an episode, else 10.)"
)


def arg(metavar: str | None, text: str | None = None) -> Any:
    """How an option is shown: what stands for its value, and its help."""
    return tyro.conf.arg(metavar=metavar, help=text)


@dataclasses.dataclass(frozen=True)
class EvalOptions:
    """An evaluation's settings. Nothing is checked here: see `check_options`."""

    task: Annotated[str | None, arg("NAME")] = None
    """The task to do; None is the checkpoint's, else lift."""
    checkpoint: Annotated[Path | None, arg("NAME|DIR|FILE.pth")] = None
    """A shipped policy (lift, can …), a folder, or robomimic's file; None is the task's."""
    samplers: Annotated[tuple[str, ...], arg("NAME [NAME ...]", _SAMPLERS_HELP)] = (
        "asd",
        "ddpm",
    )
    episodes: int = 20
    """Episodes of each sampler."""
    seed: Annotated[int, arg("INT", _SEED_HELP)] = HELD_OUT_SEED
    window: Annotated[Literal["auto"] | int, arg("auto|INT", _WINDOW_HELP)] = "auto"
    steps: Annotated[int | None, arg("INT")] = None
    """Denoising steps, except of ddim; None is as trained."""
    ddim_steps: int = 10
    """Denoising steps of ddim and asd-ddim."""
    eta: float = 0.0
    """Noise of ddim and asd-ddim, from 0 (none) to 1 (as much as ddpm)."""
    tolerance: float = 0.1
    """Tolerance of paradigms; a larger one is faster and less exact."""
    horizon: Annotated[int | None, arg("INT")] = None
    """Steps after which an episode has failed; None is the task's."""
    num_envs: Annotated[int, arg(None, _NUM_ENVS_HELP)] = 1
    ray: Annotated[tuple[str, ...] | None, arg("[ADDRESS]", _RAY_HELP)] = None
    remote: Annotated[tuple[str, ...], arg("ADDRESS [ADDRESS ...]", _REMOTE_HELP)] = ()
    device: str = "auto"
    """Where the policy runs: auto, cpu, cuda, cuda:1."""
    engine: Annotated[Engine, arg(None, ENGINE_HELP)] = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Number format of the network (tf32 on a GPU only)."""
    compile: Annotated[bool, arg(None, _COMPILE_HELP)] = False
    threads: Annotated[int | None, arg("INT", THREADS_HELP)] = None
    measure: Annotated[bool, arg(None, _MEASURE_HELP)] = False
    delay: Annotated[DelayOption | None, arg("measured|MS [MS ...]", _DELAY_HELP)] = None
    control_rate: Annotated[float, arg("HZ", _RATE_HELP)] = 20.0
    realtime: bool = False
    """The same as --delay measured."""
    execution: Annotated[Execution, arg(None, _EXECUTION_HELP)] = "late"
    record: Annotated[bool, arg(None, _RECORD_HELP)] = False
    video: int = 0
    """Film the first N episodes of each sampler as mp4 (needs OpenGL)."""
    name: Annotated[str | None, arg("STR")] = None
    """End of the output folder's name; None is the task."""
    out: Annotated[Path | None, arg("DIR")] = None
    """Output folder; None is outputs/<this command>/<date>-<time>-<name>."""
    resume: Annotated[bool, arg(None, _RESUME_HELP)] = False


def check_options(options: EvalOptions) -> None:
    """Raise ValueError, naming the option, what it must be and what came."""
    check_samplers(options.samplers, "--samplers")
    for name in ("episodes", "ddim_steps", "num_envs"):
        at_least(name, getattr(options, name), 1)
    for name in ("steps", "horizon", "threads"):
        if getattr(options, name) is not None:
            at_least(name, getattr(options, name), 1)
    for name in ("seed", "video"):
        at_least(name, getattr(options, name), 0)
    if options.seed + options.episodes > 2**64:
        raise InputError(f"--seed: seeds must be below 2^64, got {options.seed}")
    if options.record and options.seed + options.episodes > 2**63:
        raise InputError(f"--seed: with --record seeds must be below 2^63, got {options.seed}")
    if options.window != "auto":
        at_least("window", options.window, 1, "auto or ")
    if not 0.0 <= options.eta <= 1.0:
        raise InputError(f"--eta must be from 0 to 1, got {options.eta}")
    if "asd-ddim" in options.samplers and not options.eta:
        raise InputError("asd-ddim needs noise in every step: --eta above 0, up to 1; got 0.0")
    if not (options.tolerance > 0.0 and math.isfinite(options.tolerance)):
        raise InputError(f"--tolerance must be a positive number, got {options.tolerance}")
    _check_delay(options)
    if options.name is not None and (not options.name or Path(options.name).name != options.name):
        raise InputError(f"--name must be a plain file name, got {options.name!r}")
    _check_ray(options)
    _check_remote(options)
    if options.resume and options.out is None:
        raise InputError("--resume needs --out, the folder of the run to continue; got none")


def check_samplers(names: Sequence[str], option: str) -> None:
    """Raise ValueError unless they are samplers, each once."""
    unknown = [name for name in names if name not in SAMPLER_NAMES and ddim_steps_of(name) is None]
    if not names or unknown:
        got = ", ".join(unknown) or "none"
        raise InputError(
            f"{option} takes one or more of {', '.join(SAMPLER_NAMES)}, ddim-N; got {got}"
            + (did_you_mean(unknown[0], SAMPLER_NAMES) if unknown else "")
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise InputError(f"{option} names each sampler once; got {', '.join(repeated)} again")


def _check_ray(options: EvalOptions) -> None:
    if options.ray is None:
        return
    if len(options.ray) > 1:
        raise InputError(f"--ray takes one address or none; got {' '.join(options.ray)}")
    if options.device not in ("auto", "cpu", "cuda"):
        raise InputError(
            f"--device must be auto, cpu or cuda with --ray, which chooses among the GPUs; "
            f"got {options.device!r}"
        )
    if options.engine == "distributed":
        raise InputError(
            "--engine distributed splits a policy over the ranks of torchrun, and --ray has it in "
            "another process; leave one out"
        )
    if options.record or options.delay is not None:
        beside = "--record" if options.record else "--delay"
        raise InputError(
            f"{beside} needs the policy in this process, and --ray has it in another; leave one out"
        )


_THE_SERVER_S = (
    "checkpoint", "ray", "device", "engine", "precision", "compile", "threads", "measure", "record",
)  # fmt: skip


def _check_remote(options: EvalOptions) -> None:
    if not options.remote:
        return
    defaults = {field.name: field.default for field in dataclasses.fields(EvalOptions)}
    other = [name for name in _THE_SERVER_S if getattr(options, name) != defaults[name]]
    if other:
        raise InputError(
            f"--{other[0]} is of a policy in this process, not of --remote; leave it out"
        )
    if len(options.remote) != len(options.samplers):
        raise InputError(
            f"--remote takes one address for each of --samplers ({', '.join(options.samplers)}); "
            f"got {len(options.remote)}"
        )


def _check_delay(options: EvalOptions) -> None:
    delay, rate = options.delay, options.control_rate
    if not (rate > 0.0 and math.isfinite(rate)):
        raise InputError(f"--control-rate must be a positive number of hertz, got {rate}")
    if delay is None and rate != EvalOptions.control_rate:
        raise InputError(f"--control-rate needs --delay or --realtime; got {rate} alone")
    if delay is None and options.execution != EvalOptions.execution:
        raise InputError(f"--execution needs --delay or --realtime; got {options.execution} alone")
    if options.execution == "overlapped" and options.record:
        raise InputError("--record keeps no committed actions; leave out --execution overlapped")
    each = delay if isinstance(delay, tuple) else (delay,)
    if len(each) not in (1, len(options.samplers)):
        raise InputError(
            f"--delay takes one for all samplers, or one for each of {len(options.samplers)}; "
            f"got {len(each)}"
        )
    for one in each:
        if isinstance(one, (int, float)) and not (one >= 0.0 and math.isfinite(one)):
            raise InputError(f"--delay must be measured, or 0 or more milliseconds; got {one}")
    if delay == "measured" and options.num_envs > 1:
        raise InputError(
            "--delay measured needs --num-envs 1: what a batch takes is not what one robot waits; "
            f"got {options.num_envs} (a given --delay works with any number)"
        )


def with_realtime(options: EvalOptions) -> EvalOptions:
    """The options with --realtime spelled out as --delay measured.

    Raises:
        ValueError: they ask for another delay.
    """
    if not options.realtime:
        return options
    if options.delay not in (None, "measured"):
        raise InputError(f"--realtime is --delay measured; got --delay {options.delay} beside it")
    return dataclasses.replace(options, realtime=False, delay="measured")


def at_least(name: str, value: object, least: int, or_else: str = "") -> None:
    """Raise ValueError unless an option's value is a whole number, so large or larger."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        option = "--" + name.replace("_", "-")
        raise InputError(f"{option} must be {or_else}a whole number, {least} or more; got {value}")


def command_line(options: Any, command: str = "eval") -> str:
    """The command that asks for these options, of a dataclass (only those that differ from the
    defaults)."""
    words = [*_program(), command]
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        lift = field.name == "task" and value == "lift" and options.checkpoint is None
        if value == field.default or lift:  # the task where nothing else says one
            continue
        words.append("--" + field.name.replace("_", "-"))
        if isinstance(value, tuple):
            words.extend(map(str, value))
        elif value is not True:
            words.append(str(value))
    return shlex.join(words)


def _program() -> list[str]:
    """What starts this program as it was started: with as many ranks, where there are several."""
    ranks, here = (int(os.environ.get(n, "1")) for n in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if ranks == 1 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["asd-policy"]
    nodes = [] if ranks == here else ["--nnodes", str(ranks // here)]
    return ["torchrun", *nodes, "--nproc-per-node", str(here), "-m", "asd_policy"]


@dataclasses.dataclass(frozen=True)
class RatesOptions(EvalOptions):
    """An evaluation's settings, for several control rates."""

    rates: Annotated[tuple[float, ...], arg("HZ [HZ ...]")] = (10.0, 20.0, 40.0, 80.0)
    """Control steps in a second of the wall clock, one evaluation for each."""
    executions: Annotated[tuple[Execution, ...], arg(None, _EXECUTION_HELP)] = ("late",)
    samplers: Annotated[tuple[str, ...], arg("NAME [NAME ...]", _SAMPLERS_HELP)] = (
        "asd",
        "ddpm",
        "ddim",
    )
    delay: Annotated[DelayOption | None, arg("measured|MS [MS ...]", _DELAY_HELP)] = "measured"
    control_rate: tyro.conf.Suppress[float] = 20.0
    execution: tyro.conf.Suppress[Execution] = "late"
    realtime: tyro.conf.Suppress[bool] = False


@dataclasses.dataclass(frozen=True)
class ReplayOptions:
    """Which chunks of which recorded run to sample again."""

    run: tyro.conf.Positional[Path]
    """Folder of an evaluation that was made with --record."""
    sampler: Annotated[str | None, arg("NAME")] = None
    """Only chunks of this sampler."""
    seed: Annotated[int | None, arg("INT")] = None
    """Only chunks of the episode with this seed."""
    chunk: Annotated[int | None, arg("INT")] = None
    """Only the chunk of this number in its episode, counted from 0."""
    all: Annotated[bool, arg(None, _ALL_HELP)] = False
    sample: Annotated[int | None, arg("INT")] = None
    """Only so many of these chunks, chosen at random, the same ones each time."""
    checkpoint: Annotated[Path | None, arg("NAME|DIR|FILE.pth")] = None
    """The policy, where it lies elsewhere than it did."""
    device: Annotated[str | None, arg("NAME")] = None
    """Where to sample them; None is where they were sampled."""
