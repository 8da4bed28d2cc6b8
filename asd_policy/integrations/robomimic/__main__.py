"""robomimic's own scripts, with the algorithm registered and the fixes in place.

    python -m asd_policy.integrations.robomimic train --config lift.json
    python -m asd_policy.integrations.robomimic run_trained_agent --agent model.pth --sampler asd
    python -m asd_policy.integrations.robomimic playback --dataset demos.hdf5
    python -m asd_policy.integrations.robomimic overhead
    python -m asd_policy.integrations.robomimic check

Options are those of the script. ``run_trained_agent`` has four more: ``--sampler NAME`` (asd,
asd-paper, ddpm, ddim-10 …, the names of ``asd-policy eval``; without it, robomimic's policy acts
as it is), ``--window N``, ``--steps N``, and ``--record FILE``, which writes each episode's outcome
and times (JSON). With ``--seed S`` episode i has the seed S+i, whatever policy acts: ``asd-policy
compare`` pairs two such files.
``overhead`` says what the wrapper costs beyond the sampler; ``check`` whether this package and the
robomimic that is installed agree, in one table: exit status 0, or 1.
"""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from asd_policy.errors import AsdPolicyError, InputError, OutputExistsError, say_to_user
from asd_policy.samplers.config import SamplerConfig

SCRIPTS = {
    "run_trained_agent": "robomimic.scripts.run_trained_agent",
    "train": "robomimic.scripts.train",
    "playback": "robomimic.scripts.playback_dataset",
}
OURS = {name: f"asd_policy.integrations.robomimic.{name}" for name in ("overhead", "check")}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one script; exit status 2 for a mistake of the user's, said in one message."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in {**SCRIPTS, **OURS}:
        print(__doc__, file=sys.stderr)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        if words[0] in OURS:
            status: int | None = importlib.import_module(OURS[words[0]]).main(words[1:])
            return status or 0
        if words[0] == "run_trained_agent":
            _run_trained_agent(words)
        else:
            _run(words)
    except (AsdPolicyError, ModuleNotFoundError) as error:
        return say_to_user(error, f"robomimic's {words[0]}")
    return 0


def _run(words: Sequence[str]) -> None:
    sys.argv = list(words)
    with torch.set_grad_enabled(words[0] == "train"):
        runpy.run_module(SCRIPTS[words[0]], run_name="__main__", alter_sys=True)


def _run_trained_agent(words: Sequence[str]) -> None:
    from asd_policy.integrations.robomimic.record import Recording

    ours, rest = _options(words[1:])
    out: Path | None = ours.record
    if out is not None and out.exists():
        raise OutputExistsError(f"{out} exists already; expected a path for a new file")
    recording = Recording(ours.seed, out, {"words": list(words), "sampler": ours.sampler})
    sampler = {
        name: getattr(ours, name)
        for name in ("sampler", "window", "steps")
        if getattr(ours, name) is not None
    }
    if "sampler" in sampler:
        SamplerConfig.named(**sampler)  # refused before anything is loaded
    elif sampler:
        raise InputError(f"--{' and --'.join(sampler)} are options of --sampler NAME; got none")
    with _recorded(sampler, recording):
        _run([words[0], *rest])
    recording.save()
    if recording.episodes:
        print(recording)


def _options(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Ours, and the words that are left for the script (with ``--seed``, which is both's)."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--sampler")
    parser.add_argument("--window", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--seed", type=int)
    ours, rest = parser.parse_known_args(words)
    return ours, rest if ours.seed is None else [*rest, "--seed", str(ours.seed)]


@contextmanager
def _recorded(sampler: dict[str, Any], recording: Any) -> Iterator[None]:
    """Have robomimic load policies that are accelerated, and record them and their environments."""
    import robomimic.utils.file_utils as file_utils

    from asd_policy.integrations import robomimic as integration
    from asd_policy.integrations.robomimic.record import RecordedEnvironment

    load, make = file_utils.policy_from_checkpoint, file_utils.env_from_checkpoint

    def policy_from_checkpoint(*args: Any, **kwargs: Any) -> Any:
        policy, checkpoint = load(*args, **kwargs)
        if "sampler" in sampler:
            policy = integration.accelerate(policy, **sampler)
        recording.about["policy"] = getattr(policy, "description", "robomimic's own")
        return recording.policy(policy), checkpoint

    def env_from_checkpoint(*args: Any, **kwargs: Any) -> Any:
        env, checkpoint = make(*args, **kwargs)
        return RecordedEnvironment(env, recording), checkpoint

    file_utils.policy_from_checkpoint = policy_from_checkpoint
    file_utils.env_from_checkpoint = env_from_checkpoint
    try:
        yield
    finally:
        file_utils.policy_from_checkpoint, file_utils.env_from_checkpoint = load, make


if __name__ == "__main__":
    sys.exit(main())
