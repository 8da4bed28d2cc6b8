"""What a verification is asked to do: the options of `asd-policy verify`, checked first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from asd_policy.errors import InputError
from asd_policy.eval.options import (
    ENGINE_HELP,
    Engine,
    EvalOptions,
    arg,
    at_least,
    check_options,
    check_samplers,
)

_SAMPLER_HELP = (
    "The sampler under test, named as in `asd-policy eval`. The reference is sequential DDPM (for "
    "asd-ddim: sequential ddim-clipped of the same --eta)."
)
_SOURCE_HELP = (
    "Where the fixed observations come from. episodes: moments along episodes of the checkpoint's "
    "task, driven by the policy; synthetic: sampled within the checkpoint's normalizer; a file: "
    "demonstrations as .npz, zarr or robomimic's HDF5; auto: episodes where the task is known, "
    "else synthetic."
)
_DETECT_HELP = (
    "The shift of one action number, in its standard deviations, that must be caught with "
    "probability 0.9; if too few chunks were sampled for that, equality cannot be told (exit 2)."
)
_ORACLE_HELP = (
    "Use no checkpoint, but a mixture of Gaussians whose denoiser is known exactly, and a Gaussian "
    "whose chain has an exactly known distribution, with which both samplers are compared too."
)
_CONTROLS_HELP = (
    "Also test what must be found equal (DDPM sampled again) and what must be found different "
    "(that sample shifted, DDIM in 10 steps, and couplings with one thing wrong)."
)
_WINDOW_HELP = (
    "Steps guessed ahead. (auto would choose sequential sampling itself for a large batch.)"
)
_RESUME_HELP = (
    "Go on with the verification in --out: batches that were sampled are kept. Repeat the options; "
    "--chunks may grow, --controls may be added."
)
_WORKERS_HELP = (
    "Processes that sample side by side, on a CPU; with one for each core, hours become fewer than "
    "with threads. They draw the same chunks as one would."
)
LEAST_CHUNKS = 5  # at each observation
_PRECISION_HELP = (
    "Number format of the network (tf32 on a GPU only); fp64 is of everything, to rule out "
    "arithmetic."
)


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """A verification's settings. Nothing is checked here: see `check_verify_options`."""

    sampler: Annotated[str, arg("NAME", _SAMPLER_HELP)] = "asd"
    task: Annotated[str | None, arg("NAME")] = None
    """Whose shipped policy is sampled; None is the checkpoint's, else lift."""
    checkpoint: Annotated[Path | None, arg("NAME|DIR|FILE.pth|FILE.ckpt")] = None
    """A shipped policy (lift, can …), a folder, robomimic's file, or diffusion_policy's."""
    oracle: Annotated[bool, arg(None, _ORACLE_HELP)] = False
    chunks: int = 1000
    """Chunks of each sampler, over all observations (rounded up to whole batches)."""
    observations: int = 8
    """Number of fixed observations."""
    source: Annotated[
        Literal["auto", "episodes", "synthetic"] | Path,
        arg("auto|episodes|synthetic|FILE", _SOURCE_HELP),
    ] = "auto"
    controls: Annotated[bool, arg(None, _CONTROLS_HELP)] = False
    alpha: float = 0.01
    """Chance of calling equal samplers different, over all tests together (Holm)."""
    detect: Annotated[float, arg("FLOAT", _DETECT_HELP)] = 0.2
    gripper: Annotated[int | None, arg("INT|None")] = -1
    """Column of the action that opens and closes the gripper: its sign tells modes apart."""
    window: Annotated[int, arg("INT", _WINDOW_HELP)] = 24
    steps: Annotated[int | None, arg("INT")] = None
    """Denoising steps of both samplers, except of ddim; None is as trained."""
    ddim_steps: int = 10
    """Denoising steps of ddim and asd-ddim."""
    eta: float = 0.0
    """Noise of ddim and asd-ddim, from 0 (none) to 1 (as much as ddpm)."""
    tolerance: float = 0.1
    """Tolerance of paradigms; a larger one is faster and less exact."""
    seed: int = 0
    """Seed of noise, observations, random directions and permutations."""
    batch: int = 64
    """Chunks sampled together."""
    device: str = "auto"
    """Where the network runs: auto, cpu, cuda, cuda:1."""
    engine: Annotated[Engine, arg(None, ENGINE_HELP)] = "auto"
    precision: Annotated[Literal["fp32", "tf32", "bf16", "fp64"], arg(None, _PRECISION_HELP)] = (
        "fp32"
    )
    threads: Annotated[int | None, arg("INT")] = None
    """CPU threads of a process; None is torch's own choice, or an equal share for each worker."""
    workers: Annotated[int, arg("INT", _WORKERS_HELP)] = 1
    out: Annotated[Path | None, arg("DIR")] = None
    """Output folder; None is outputs/verify/<date>-<time>-<name>."""
    resume: Annotated[bool, arg(None, _RESUME_HELP)] = False

    @property
    def reference(self) -> str:
        """The sampler whose distribution the one under test must have."""
        return "ddim-clipped" if self.sampler == "asd-ddim" else "ddpm"

    @property
    def each(self) -> int:
        """Chunks of a batch at each observation."""
        return max(1, self.batch // self.observations)

    @property
    def batch_chunks(self) -> int:
        """Chunks of a batch."""
        return self.each * self.observations

    @property
    def batches(self) -> int:
        """Batches of each sampler."""
        return -(-self.chunks // self.batch_chunks)

    def sampling(self) -> EvalOptions:
        """The part that says how a sampler of a given name is set up."""
        names = ("window", "steps", "ddim_steps", "eta", "tolerance", "seed", "threads")
        return EvalOptions(
            samplers=(self.sampler,), **{name: getattr(self, name) for name in names}
        )


def check_verify_options(options: VerifyOptions) -> None:
    """Raise ValueError, naming the option, what it must be and what came."""
    check_samplers((options.sampler,), "--sampler")
    check_options(options.sampling())
    for name in ("observations", "batch", "workers"):
        at_least(name, getattr(options, name), 1)
    if isinstance(options.window, bool) or not isinstance(options.window, int):
        raise InputError(f"--window must be a whole number, 1 or more; got {options.window!r}")
    at_least("chunks", options.chunks, LEAST_CHUNKS * options.observations)
    if not 0.0 < options.alpha < 0.5:
        raise InputError(f"--alpha must be above 0 and below 0.5, got {options.alpha}")
    if not 0.0 < options.detect <= 8.0:
        raise InputError(f"--detect must be above 0 and at most 8, got {options.detect}")
    plain = type(options)()
    for name in ("checkpoint", "source", "task"):
        if options.oracle and getattr(options, name) != getattr(plain, name):
            raise InputError(f"--oracle needs no --{name}; leave it out")
    if options.workers > 1 and options.engine == "distributed":
        raise InputError("--workers is not for --engine distributed, whose ranks torchrun starts")
    if options.resume and options.out is None:
        raise InputError("--resume needs --out, the folder of the run to continue; got none")
