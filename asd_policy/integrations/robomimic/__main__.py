"""robomimic's own scripts, with the algorithm registered and the fixes in place.

    python -m asd_policy.integrations.robomimic train --config lift.json
    python -m asd_policy.integrations.robomimic run_trained_agent --agent model.pth --sampler asd
    python -m asd_policy.integrations.robomimic playback --dataset demos.hdf5

Options are those of the script. ``run_trained_agent`` has three more: ``--sampler NAME`` (asd,
ddpm, ddim, paradigms; without it, robomimic's policy acts as it is), ``--window N`` and
``--steps N``. It says at the end how long the policy took, apart from the simulation.
"""

from __future__ import annotations

import argparse
import runpy
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from asd_policy.errors import AsdPolicyError

SCRIPTS = {
    "run_trained_agent": "robomimic.scripts.run_trained_agent",
    "train": "robomimic.scripts.train",
    "playback": "robomimic.scripts.playback_dataset",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one script; exit status 2 for a mistake of the user's, said in one message."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in SCRIPTS:
        print(__doc__, file=sys.stderr)
        return 0 if words and words[0] in ("-h", "--help") else 2
    try:
        from asd_policy.integrations import robomimic as integration

        clock = Clock()
        options = _options(words[1:]) if words[0] == "run_trained_agent" else None
        rest = words[1:]
        if options is not None:
            chosen, rest = options
            _install(integration, chosen, clock)
        sys.argv = [words[0], *rest]
        with torch.set_grad_enabled(words[0] == "train"):
            runpy.run_module(SCRIPTS[words[0]], run_name="__main__", alter_sys=True)
        if clock.steps:
            print(clock)
    except AsdPolicyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _options(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Ours, and the words that are left for the script."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--sampler", choices=("asd", "ddpm", "ddim", "paradigms"))
    parser.add_argument("--window", type=int)
    parser.add_argument("--steps", type=int)
    ours, rest = parser.parse_known_args(words)
    return {name: value for name, value in vars(ours).items() if value is not None}, rest


class Clock:
    """Time in the policy, by control step."""

    def __init__(self) -> None:
        self.steps, self.seconds = 0, 0.0
        self.chunks: list[int] = []

    def __str__(self) -> str:
        text = (
            f"Policy: {self.seconds:.2f} s in {self.steps} control steps, "
            f"{1e3 * self.seconds / self.steps:.2f} ms each"
        )
        if self.chunks:
            text += (
                f"; {len(self.chunks)} chunks of {sum(self.chunks) / len(self.chunks):.1f} calls"
            )
        return text


def _install(integration: Any, options: dict[str, Any], clock: Clock) -> None:
    """Have ``FileUtils.policy_from_checkpoint`` return a policy that is accelerated and timed."""
    import robomimic.utils.file_utils as file_utils

    load = file_utils.policy_from_checkpoint

    def policy_from_checkpoint(*args: Any, **kwargs: Any) -> Any:
        policy, checkpoint = load(*args, **kwargs)
        if "sampler" in options:
            policy = integration.accelerate(policy, **options)
        return _timed(policy, clock), checkpoint

    file_utils.policy_from_checkpoint = policy_from_checkpoint


def _timed(policy: Any, clock: Clock) -> Any:
    """The same policy; Python looks ``__call__`` up on the class, so it gets one of its own."""
    kind = type(policy)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        action = kind.__call__(self, *args, **kwargs)
        clock.seconds += time.perf_counter() - start
        clock.steps += 1
        clock.chunks += [c.calls for c in getattr(self, "last_chunks", []) if c is not None]
        return action

    policy.__class__ = type(kind.__name__, (kind,), {"__call__": __call__})
    return policy


if __name__ == "__main__":
    sys.exit(main())
