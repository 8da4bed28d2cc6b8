"""What a benchmark is asked to do: the options of `asd-policy bench`, checked before it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from asd_policy.errors import InputError, did_you_mean
from asd_policy.samplers.names import SAMPLER_FORMS, ddim_steps_of

ASD_FORMS = tuple(  # of the chain that was trained
    name for name, form in SAMPLER_FORMS.items() if form["name"] == "asd" and name != "asd-ddim"
)
EAGER_LOOP = "eager-loop"
SAMPLERS = (EAGER_LOOP, "ddpm", *ASD_FORMS, "paradigms")


@dataclass(frozen=True)
class BenchOptions:
    """A benchmark's settings. Lists are combined with each other. Checked by `check_options`."""

    # Comments, for their lines are joined in the help text, and those of docstrings are not.

    # Samplers to measure: eager-loop (as packages run today), ddpm, asd, asd-slope, asd-memory,
    # asd-frozen, asd-paper, paradigms, ddim-N.
    samplers: tuple[str, ...] = (EAGER_LOOP, "ddpm", "asd", "asd-paper", "ddim-10")
    # What runs the samplers: auto, eager, cuda_graph, openvino, distributed; auto is cuda_graph on
    # a GPU, and openvino on a CPU, where it is installed and faster; distributed is for the ranks
    # of torchrun.
    engines: tuple[str, ...] = ("auto",)
    # What does a round's arithmetic: auto, torch, native, triton.
    kernels: tuple[str, ...] = ("auto",)
    # Number formats of the network: fp32, tf32 (GPU), bf16.
    precisions: tuple[str, ...] = ("fp32",)
    # Chains sampled at once.
    batches: tuple[int, ...] = (1,)
    # Steps that ASD guesses ahead: auto, or whole numbers.
    windows: tuple[str, ...] = ("auto",)
    # Networks to measure: shipped (the Lift policy), chi (256-512-1024 channels, untrained),
    # lerobot (512-1024-2048, untrained), can and others that ship, or checkpoint folders.
    networks: tuple[str, ...] = ("shipped",)
    # Denoising steps K; none given, as trained. More are the same noise on a finer grid.
    steps: tuple[int, ...] = ()
    # Run networks through torch.compile (the time it takes is reported).
    compile: bool = False
    # Rounds of measurement; in each, fast samplers make several chunks and slow ones one.
    chunks: int = 40
    # Where the networks run: auto, cpu, cuda, cuda:1.
    device: str = "auto"
    # CPU threads; None is one for networks that more make hardly faster, and as many as torch takes
    # where one of them is large.
    threads: int | None = None
    # Demonstrations (.npz, zarr or robomimic's HDF5) whose observations condition the chunks.
    data: Path | None = None
    # Seed of the noise; the same for every sampler.
    seed: int = 0
    # Only count calls against K = 50 … 800 on a mixture whose denoiser is known exactly.
    calls_against_steps: bool = False
    # Only plot the figures of a finished benchmark in this folder.
    figures: Path | None = None
    # Output folder; None is outputs/bench/<date>-<time>.
    out: Path | None = None
    # Go on with the benchmark in --out: finished cells are kept, and the lists may grow.
    resume: bool = False
    # Measure a few chunks and small ceilings, to see that everything works. The numbers are not to
    # be quoted.
    quick: bool = False


def check_options(options: BenchOptions) -> None:
    """Raise ValueError, naming the option, what it must be and what came."""
    from asd_policy.engine import ENGINES
    from asd_policy.engine.kernels import KERNELS
    from asd_policy.networks.inference import PRECISIONS

    for sampler in options.samplers:
        if sampler not in SAMPLERS and ddim_steps_of(sampler) is None:
            known = ", ".join((*SAMPLERS, "ddim-N"))
            raise InputError(
                f"--samplers takes some of {known}; got {sampler!r}"
                + ("" if sampler.startswith("ddim-") else did_you_mean(sampler, SAMPLERS))
            )
    for window in options.windows:
        if window != "auto" and not re.fullmatch(r"[1-9]\d*", window):
            raise InputError(f"--windows takes auto and whole numbers from 1 on; got {window!r}")
    for name, known_values in (
        ("engines", ENGINES),
        ("kernels", KERNELS),
        ("precisions", PRECISIONS),
    ):
        for value in getattr(options, name):
            if value not in known_values:
                raise InputError(
                    f"--{name} takes some of {', '.join(known_values)}; got {value!r}"
                    f"{did_you_mean(value, known_values)}"
                )
    _check_numbers(options)
    if options.resume and options.out is None:
        raise InputError("--resume needs --out, the folder of the benchmark to go on with")


def _check_numbers(options: BenchOptions) -> None:
    for name in ("samplers", "engines", "kernels", "precisions", "batches", "windows", "networks"):
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise InputError(f"--{name} takes one or more values, each once; got {list(values)}")
    numbers = {
        "batches": options.batches,
        "steps": options.steps,
        "chunks": (options.chunks,),
        "threads": () if options.threads is None else (options.threads,),
    }
    for name, given in numbers.items():
        if any(value < 1 for value in given):
            raise InputError(f"--{name} must be 1 or more; got {min(given)}")


def check_device(options: BenchOptions, device: str) -> None:
    """Raise ValueError for what cannot be had on this device."""
    import torch

    from asd_policy.engine.kernels import choose_kernels
    from asd_policy.engine.ranks import check_group
    from asd_policy.networks.openvino_layers import missing

    if "openvino" in options.engines and (device != "cpu" or missing()):
        why = missing() or f"it runs on a CPU; this run is on {device}"
        raise InputError(f"--engines openvino cannot be had: {why}")
    if "distributed" in options.engines:
        check_group()
    if device.startswith("cuda"):
        return
    if "cuda_graph" in options.engines:
        raise InputError(f"--engines cuda_graph needs a CUDA device; this run is on {device}")
    if "tf32" in options.precisions:
        raise InputError(f"--precisions tf32 needs a CUDA device; this run is on {device}")
    for kernels in options.kernels:
        choose_kernels(kernels, torch.empty(0, device=device))
