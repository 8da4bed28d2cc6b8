"""Whether this package and the robomimic that is installed agree: one table.

Small untrained policies are made as robomimic's files and loaded by robomimic; its own loop and
this package's sequential sampler are given the same noise. Files are converted and exported, there
and back; environments are made and seeded; the shipped Lift policy is rolled out by robomimic's
script. Exit status 0: nothing differs; 1: something does.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from asd_policy.integrations.robomimic import VERSION, AcceleratedPolicy, accelerate
from asd_policy.integrations.robomimic.check_environments import CHECKS as ENVIRONMENTS
from asd_policy.integrations.robomimic.check_files import CHECKS as FILES
from asd_policy.integrations.robomimic.check_verdict import DIFFERS, NONE, OK, Check, load, verdict
from asd_policy.integrations.robomimic.small_policies import (
    STEPS,
    Variant,
    make_file,
    observations,
)

ROWS = 3  # environments of a batch


class Row(NamedTuple):
    """A line of the table: what was compared, whether it agrees, and what was seen."""

    name: str
    status: str
    text: str


def main(words: Sequence[str]) -> int:
    """Run all checks, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m asd_policy.integrations.robomimic check", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="show tracebacks, and robomimic")
    options = parser.parse_args(words)
    print(f"robomimic {_version('robomimic')}, diffusers {_version('diffusers')}, "
          f"robosuite {_version('robosuite')}, torch {torch.__version__}\n")  # fmt: skip
    status = 0
    for row in run(options.verbose):
        print(f"{row.name:<27}{row.status:<9}{row.text}", flush=True)
        status |= row.status == DIFFERS
    print(f"\n{'Something differs.' if status else 'Nothing differs.'}")
    return status


def run(verbose: bool = False) -> Iterator[Row]:
    """The rows, each as it is known. An exception is a difference."""
    for name, check in {**_loops(), **FILES, **ENVIRONMENTS}.items():
        quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(io.StringIO())
        try:
            with quiet, torch.no_grad():
                row = Row(name, *check())
        except Exception as error:  # whatever another library raises
            if verbose:
                traceback.print_exc(file=sys.stderr)
            said = str(error).strip().split("\n")[0]
            row = Row(name, DIFFERS, f"{type(error).__name__}: {said}")
        yield row


def _version(name: str) -> str:
    import importlib.metadata as metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(none)"


# ---- loops --------------------------------------------------------------------------------------


def _loops() -> dict[str, Check]:
    ends = {"set_alpha_to_one": False, "steps_offset": 1}
    return {
        "DDPM, EMA": lambda: _one(Variant()),
        "DDPM, no EMA": lambda: _one(Variant(ema=False)),
        "DDPM, x0 prediction": lambda: _one(Variant(chain={"prediction_type": "sample"})),
        "DDPM, 2K steps asked for": lambda: _one(
            Variant(chain={"num_inference_timesteps": 2 * STEPS})
        ),
        "normalized": lambda: _one(Variant(normalized=True)),
        "rot_6d": lambda: _one(Variant(rotations=True)),
        "pictures": lambda: _one(Variant(pictures=True)),
        "batched": _batched,
        "DDIM": lambda: _one(Variant(ddim=True)),
        "DDIM, unclipped": lambda: _one(Variant(ddim=True, chain={"clip_sample": False})),
        "DDIM, its last step": lambda: _one(
            Variant(ddim=True, chain={"clip_sample": False, **ends})
        ),
        "DDIM, sampler asd": _asd_on_ddim,
        "goals, tensors, copies": _calls,
    }


def _sequential(variant: Variant, theirs: Any) -> AcceleratedPolicy:
    return accelerate(theirs, "ddim" if variant.ddim else "ddpm", verbose=False)


def _one(variant: Variant) -> tuple[str, str]:
    """A chunk's actions, as the policies give them to an environment."""
    if VERSION < (0, 5) and variant.rotations:
        return NONE, "robomimic 0.3 has no such actions"
    theirs = load(make_file(variant))
    ours = _sequential(variant, theirs)
    obs = observations(variant, 8)
    theirs.start_episode()
    ours.start_episode(seeds=5)
    with same_noise(ours, [5]):
        expected = [theirs(dict(ob)) for ob in obs]
    got = [ours(dict(ob)) for ob in obs]
    if got[0].dtype != expected[0].dtype:
        return DIFFERS, f"actions of {got[0].dtype}, expected {expected[0].dtype}"
    return verdict(got, expected, _whose())


def _whose() -> str:
    return "its own loop" if VERSION >= (0, 5) else "this package's algorithm (0.3 has none)"


def _batched() -> tuple[str, str]:
    """Each row of a batch; robomimic's own queue keeps the first row alone."""
    if VERSION < (0, 5):
        return NONE, "robomimic 0.3 takes no batches"
    variant = Variant(normalized=True)
    theirs = load(make_file(variant))
    ours, ob = _sequential(variant, theirs), observations(variant, 1, ROWS)[0]
    seeds = list(range(ROWS))
    ours.start_episode(seeds=seeds)
    theirs.start_episode()
    with same_noise(ours, seeds):
        prepared = theirs._prepare_observation(dict(ob), batched_ob=True)
        whole = theirs.policy._get_action_trajectory(obs_dict=prepared).numpy()
    stats = theirs.action_normalization_stats["actions"]
    expected = whole * stats["scale"] + stats["offset"]
    got = [ours(dict(ob), batched_ob=True) for _ in range(expected.shape[1])]
    return verdict(np.stack(got, 1), expected, f"{ROWS} rows of {_whose()}")


def _asd_on_ddim() -> tuple[str, str]:
    theirs = load(make_file(Variant(ddim=True)))
    try:
        accelerate(theirs, "asd", verbose=False)
    except ValueError as error:
        return OK, f"refused: {str(error)[:34]}…"
    return DIFFERS, "not refused, though it has no noise to couple"


def _calls() -> tuple[str, str]:
    """What 0.5's policies take: goals (unseen), tensors, copies."""
    ours = _sequential(Variant(), load(make_file(Variant())))
    (ob,) = observations(Variant(), 1)
    ours.start_episode(seeds=1)
    first = ours(ob)
    other = copy.deepcopy(ours)
    went = [ours(ob), other(ob, goal=ob)]
    ours.start_episode(seeds=1)
    again = ours({key: torch.from_numpy(value) for key, value in ob.items()})
    return verdict([again, went[0]], [first, went[1]], "act alike")


@contextlib.contextmanager
def same_noise(ours: AcceleratedPolicy, seeds: Sequence[int]) -> Iterator[None]:
    """Let robomimic's loop draw the numbers that our streams of these seeds draw.

    0.3's algorithm is this package's: it seeds a stream of its own, by ``torch.randint``.
    """
    chunks = ours.chunks
    device = chunks.engine.like.device
    noise = chunks.noise([torch.Generator(device).manual_seed(seed) for seed in seeds])
    shape = len(seeds), *chunks.shape
    queue = iter([noise.initial, *noise.steps.unbind(1)])
    randn, randint = torch.randn, torch.randint

    def drawn(*args: Any, **kwargs: Any) -> torch.Tensor:
        return next(queue).reshape(shape).clone()

    if VERSION >= (0, 5):
        torch.randn = drawn
    else:
        torch.randint = lambda *args, **kwargs: torch.tensor(seeds[0], device="cpu")  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.randn, torch.randint = randn, randint
