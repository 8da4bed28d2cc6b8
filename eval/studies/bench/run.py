"""`asd-policy bench` from options to tables, JSON and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from asd_policy.device import resolve_device
from asd_policy.envs.requirements import installed_version
from asd_policy.eval.demonstrations import load_demonstrations
from asd_policy.eval.runs.files import alone_in, check_output_folder
from asd_policy.eval.runs.machine import describe_machine
from asd_policy.eval.studies.bench.cells import Group, plan
from asd_policy.eval.studies.bench.options import BenchOptions, check_device, check_options
from asd_policy.eval.studies.bench.runner import Runner
from asd_policy.eval.studies.bench.scaling import FORMS, calls_against_steps
from asd_policy.eval.studies.bench.store import BenchFile, read_bench
from asd_policy.eval.studies.bench.subjects import Subject, load_subject, seen_by
from asd_policy.eval.studies.bench.tables import print_benchmark
from asd_policy.progress import Stage
from asd_policy.threads import choose_threads

Json = dict[str, Any]
Say = Callable[[str], None]


def run_bench(options: BenchOptions, say: Say = print) -> int:
    """Do what is asked. Returns the exit status: 1 where a cell failed.

    Raises:
        ValueError, OutputExistsError, OutputError, CheckpointError, DatasetError: what the user can
            fix.
    """
    if options.figures is not None:
        say_figures(options.figures, say)
        return 0
    check_options(options)
    check_output_folder(options.out or Path("outputs/bench"))
    name = resolve_device(options.device)
    check_device(options, name)
    with alone_in(options.out):
        return _bench(options, name, say)


def _bench(options: BenchOptions, name: str, say: Say) -> int:
    # tyro's, which eval/gpu.py does without
    from asd_policy.eval.options import command_line
    from asd_policy.eval.resume import continued_with

    device = torch.device(name)
    with Stage(f"loading {', '.join(options.networks)}"):
        subjects = {} if options.calls_against_steps else load_subjects(options, device)
    steps = {name: subject.schedule.num_steps for name, subject in subjects.items()}
    groups = plan(options, steps) if subjects else []
    largest = max((subject.parameters for subject in subjects.values()), default=0)
    torch.set_num_threads(options.threads or choose_threads(largest))
    store = open_store(options, name, {})
    again = command_line(dataclasses.replace(options, out=store.folder, resume=True), "bench")
    with continued_with(again, f" in {store.folder}", lambda: bool(store.done)):
        if options.calls_against_steps:
            owes = store.owes or any("error" in cell for cell in store.content["cells"])
            scale(store, options.quick, say)
            store.write(complete=not owes)
        else:
            measure(store, subjects, groups, options, device, say)
    return finish(store, say)


def load_subjects(options: BenchOptions, device: torch.device) -> dict[str, Subject]:
    """Every network that the options name."""
    replay = None
    if options.data is not None:
        replay = load_demonstrations(options.data, *seen_by(options.networks))
    return {name: load_subject(name, device, replay, options.seed) for name in options.networks}


def open_store(options: BenchOptions, device: str, more: Json) -> BenchFile:
    """The output folder; ``more`` is added to what is said of the machine."""
    settings = {
        key: str(value) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(options).items()
        if key not in ("out", "resume", "figures")
    } | {"device": device}
    settings = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    return BenchFile.claim(options.out, settings, bench_machine(device) | more, options.resume)


def bench_machine(device: str) -> Json:
    """What the figures depend on besides the settings."""
    cuda = device.startswith("cuda")
    gpu = torch.cuda.get_device_name(device) if cuda else None
    machine = describe_machine({"threads": torch.get_num_threads(), "gpu": gpu})
    if cuda:
        properties = torch.cuda.get_device_properties(device)
        machine |= {
            "gpu_memory_bytes": properties.total_memory,
            "gpu_multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    machine["versions"] |= {"torch": torch.__version__, "triton": installed_version("triton")}
    return machine


def measure(
    store: BenchFile,
    subjects: dict[str, Subject],
    groups: Sequence[Group],
    options: BenchOptions,
    device: torch.device,
    say: Say,
    deadline: float = float("inf"),
) -> bool:
    """Measure the cells that are not in the store. False if the deadline came first."""
    chunks = min(options.chunks, 5) if options.quick else options.chunks
    quick = options.quick
    runner = Runner(store, subjects, device, chunks, options.seed, quick, say, deadline)
    complete = runner.run(groups)
    store.write(complete=complete and not store.owes)
    return complete


def scale(store: BenchFile, quick: bool, say: Say, deadline: float = float("inf")) -> bool:
    """Calls against K of the forms that the store lacks. False if the deadline came first."""
    settings: Json = {"steps": (20, 40), "seeds": 2, "chains": 2} if quick else {}
    for form in FORMS:
        kept = store.content["calls_against_steps"]
        if form in {result["form"] for result in kept}:
            continue
        if not kept:
            say("Calls against K, on a mixture of Gaussians")
        result = calls_against_steps(form, **settings, say=say, deadline=deadline)
        if result is None:
            return False
        store.write(calls_against_steps=[*kept, result])
    return True


def finish(store: BenchFile, say: Say) -> int:
    """Tables, figures, and where everything is."""
    print_benchmark(store.content, say)
    say_figures(store.folder, say)
    say(f"Kept: {store.folder}/bench.json")
    failed = [cell for cell in store.content["cells"] if "error" in cell]
    return 1 if failed else 0


def say_figures(folder: Path, say: Say) -> None:
    """Plot the figures beside the JSON, where matplotlib is installed."""
    content = read_bench(folder)
    try:
        from asd_policy.eval.studies.bench.figures import save_figures
    except ImportError:
        say("No figures: matplotlib is not installed. `asd-policy bench --figures` plots them.")
        return
    saved = save_figures(content, folder.parent if folder.suffix == ".json" else folder)
    if saved:
        say("Figures: " + ", ".join(map(str, saved)))
