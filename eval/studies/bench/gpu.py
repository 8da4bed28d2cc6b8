"""The whole benchmark on one GPU: trains a network, then measures, the headline figures first."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from asd_policy.data.replay import load_replay, save_npz
from asd_policy.device import resolve_device
from asd_policy.engine.kernels import KERNELS
from asd_policy.errors import AsdPolicyError, InputError, say_to_user
from asd_policy.eval.demonstrations import load_demonstrations, store_keys
from asd_policy.eval.studies.bench.cells import Cell, Group, cell
from asd_policy.eval.studies.bench.layers import compile_ahead, compile_for, measure_layers
from asd_policy.eval.studies.bench.options import EAGER_LOOP, BenchOptions
from asd_policy.eval.studies.bench.rounds import measure_rounds
from asd_policy.eval.studies.bench.run import bench_machine, finish, measure, open_store, scale
from asd_policy.eval.studies.bench.subjects import UNTRAINED, Subject, load_subject
from asd_policy.eval.studies.bench.training import OutOfTime, train_for

HEADLINE = ("asd", "ddpm", "ddim-10", "asd-paper")
WINDOWS = ("8", "16", "32", "64", "100")
STEPS = (25, 50, 200, 400, 800)
CHI = UNTRAINED["chi"]["down_dims"]  # channels of Chi et al. (2023), 64 M parameters
TINY = (16, 32)  # with --quick
COMPILING, TRAINING = 1 / 3, 1 / 5  # of the minutes, at most; the latter for each network


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 stopped by the clock or a cell failed, 2 a mistake of the
    user's."""
    options = _parser().parse_args(words)
    try:
        if options.export:
            source, target = map(Path, options.export)
            save_npz(load_replay(source, store_keys(source)), target)
            print(f"Demonstrations: {target}")
            return 0
        if options.compile:
            network, precision, launched = options.compile.rsplit(":", 2)
            device = torch.device(resolve_device(options.device))
            compile_for(load_subject(network, device, None), precision, launched)
            return 0
        return run_parts(options) if options.layers or options.rounds else run(options)
    except OutOfTime as error:
        print(f"Training stopped at {error}; run the same command to go on.")
        return 1
    except (AsdPolicyError, ModuleNotFoundError) as error:
        return say_to_user(error, "eval/gpu.py")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu.py", description=__doc__)
    add = parser.add_argument
    add("--export", nargs=2, metavar=("STORE", "NPZ"), help="only write a zarr store as one .npz")
    add("--data", type=Path, help="demonstrations: .npz, or a zarr store where zarr is installed")
    add("--out", type=Path, default=Path("outputs/gpu"), help="folder for bench.json and tables")
    add("--work", type=Path, help="folder for the network and its training (default: OUT/training)")
    add("--train-minutes", type=float, help="of each network (default: a fifth of --minutes)")
    add("--minutes", type=float, default=20.0, help="for everything; then it stops cleanly")
    add("--chunks", type=int, default=40, help="rounds of measurement a group")
    add("--batch-size", type=int, default=256, help="of training")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1")
    add("--kernels", default="auto", choices=KERNELS, help="of a round's arithmetic")
    add("--commit", help="what to record where the checkout has no .git")
    add("--layers", action="store_true", help="only forms of the layers: calls by rows, and chunks")
    add("--rounds", action="store_true", help="only what a round costs beside its network call")
    add(
        "--networks",
        nargs="+",
        default=["shipped", "chi", "lerobot"],
        help="of --layers and --rounds",
    )
    add("--compile", metavar="NETWORK:PRECISION:LAUNCHED", help="only compile whole layers")
    add("--quick", action="store_true", help="a tiny network, few chunks: to see that it works")
    return parser


def run(options: argparse.Namespace) -> int:
    """Train, measure, report."""
    deadline = time.monotonic() + 60 * options.minutes
    if options.data is None:
        raise InputError("--data is needed: demonstrations to train on")
    name = resolve_device(options.device)
    device = torch.device(name)
    replay = load_demonstrations(options.data)
    channels = TINY if options.quick else CHI
    network = f"{replay.attributes.get('task')} {'-'.join(map(str, channels))}"
    settings = BenchOptions(
        networks=(network,), device=options.device, chunks=options.chunks, out=options.out,
        kernels=(options.kernels,), quick=options.quick, data=options.data, resume=True,
    )  # fmt: skip
    # Before the training: a folder of another benchmark is refused at once.
    store = open_store(settings, name, {"commit_given": options.commit} if options.commit else {})
    folder = train_for(
        _train_minutes(options), replay, channels, 32 if options.quick else options.batch_size,
        options.work or options.out / "training", device, _say, deadline,
    )  # fmt: skip
    subject = dataclasses.replace(load_subject(str(folder), device, replay), name=network)
    groups = stages(
        subject.name, subject.schedule.num_steps, device, options.kernels, options.quick
    )
    subjects = {subject.name: subject}
    if not options.quick:
        subjects["shipped"] = load_subject("shipped", device, None)
    complete = measure(store, subjects, groups, settings, device, _say, deadline)
    complete = complete and scale(store, options.quick, _say, deadline)
    store.write(complete=complete and not store.owes)
    status = finish(store, _say)
    if not complete:
        _say("Stopped by the clock; run the same command to go on.")
    return status if complete else 1


def run_parts(options: argparse.Namespace) -> int:
    """Measure forms of the layers, of rounds, or both. With --data, "chi" and "lerobot" are trained
    before."""
    start = time.monotonic()
    deadline = start + 60 * options.minutes
    name = resolve_device(options.device)
    device = torch.device(name)
    if device.type == "cuda" and options.layers:
        script = [sys.argv[0], "--device", name]
        compile_ahead(script, options.networks, _say, start + 60 * COMPILING * options.minutes)
    subjects = {
        network: _subject(network, options, device, deadline) for network in options.networks
    }
    settings = {"device": name, "chunks": options.chunks, "quick": options.quick}
    machine = bench_machine(name) | ({"commit_given": options.commit} if options.commit else {})
    parts = [(options.rounds, measure_rounds), (options.layers, measure_layers)]
    given = options.out, subjects, settings, machine, _say, deadline
    return max(measure(*given) for wanted, measure in parts if wanted)


def _subject(
    network: str, options: argparse.Namespace, device: torch.device, deadline: float
) -> Subject:
    if options.data is None or network not in UNTRAINED:
        return load_subject(network, device, None)
    replay, channels = load_demonstrations(options.data), UNTRAINED[network]["down_dims"]
    folder = train_for(
        _train_minutes(options), replay, TINY if options.quick else channels,
        32 if options.quick else options.batch_size,
        (options.work or options.out / "training") / network, device, _say, deadline,
    )  # fmt: skip
    return dataclasses.replace(load_subject(str(folder), device, replay), name=network)


def _train_minutes(options: argparse.Namespace) -> float:
    given: float | None = options.train_minutes
    return TRAINING * options.minutes if given is None else given


def _say(text: str) -> None:
    print(text, flush=True)


def stages(
    network: str, steps: int, device: torch.device, kernels: str, quick: bool
) -> list[Group]:
    """Groups in the order of what one would miss most."""
    cuda = device.type == "cuda"
    engine, best = ("cuda_graph", "tf32") if cuda else ("eager", "fp32")

    def make(
        samplers: Sequence[str], batch: int = 1, k: int = steps, precision: str = best,
        engine: str = engine, kernels: str = kernels, window: str = "auto", compile: bool = False,
        network: str = network,
    ) -> Group:  # fmt: skip
        return tuple(
            cell(network, batch, k, precision, engine, kernels, window, sampler, compile)
            for sampler in samplers
        )

    plan = [make((*HEADLINE, EAGER_LOOP))]
    if quick:
        plan += [make(HEADLINE, 2), make(("asd",), window="8")]
        return _once(plan)
    if cuda:
        plan += [make(HEADLINE, precision=p) for p in ("bf16", "fp32")]
    plan += [make((*HEADLINE, EAGER_LOOP), network="shipped")]
    plan += [make((*HEADLINE, EAGER_LOOP), batch) for batch in (8, 32, 128)]
    plan.append(tuple(one for w in WINDOWS for one in make(("asd", "asd-paper"), window=w)))
    plan += [make(("asd", "ddpm", "asd-paper"), k=k) for k in STEPS]
    if cuda:
        forms = [name for name in ("triton", "torch") if name in KERNELS]
        plan.append(tuple(one for form in forms for one in make(HEADLINE[:2], kernels=form)))
        plan.append(make(HEADLINE, engine="eager"))
    plan.append(make(("asd-memory", "asd-slope", "asd-frozen", "paradigms")))
    if cuda:
        plan += [make(HEADLINE[:3], precision=p, compile=True) for p in (best, "bf16")]
        plan += [make(HEADLINE, batch, precision="bf16") for batch in (8, 32, 128)]
    return _once(plan)


def _once(plan: Sequence[Group]) -> list[Group]:
    """Each cell in the first group that has it."""
    seen: set[Cell] = set()
    groups = []
    for group in plan:
        fresh = tuple(one for one in dict.fromkeys(group) if one not in seen)
        seen.update(fresh)
        groups.append(fresh)
    return [group for group in groups if group]
