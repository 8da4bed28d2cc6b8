"""A small diffusion policy of the demonstrations, by the package's own trainer."""

from __future__ import annotations

from pathlib import Path

from asd_policy.console import say
from asd_policy.errors import InputError
from asd_policy.eval.studies.modes.demos import DEMOS, OUT
from asd_policy.policy import update_card
from asd_policy.training.main import main_train

POLICY = "policy"


def train(
    out: Path = OUT, steps: int = 4000, batch_size: int = 64,
    learning_rate: float = 1.5e-3, channels: tuple[int, ...] = (24, 48, 96),
    start_from: Path | None = None,
) -> None:  # fmt: skip
    """Train a policy as `asd-policy train` does, in <out>/policy, or go on with it.

    Args:
        out: Folder of all three steps.
        steps: Steps of the optimizer, in all.
        batch_size: Windows in a step.
        learning_rate: The highest.
        channels: Of the U-Net.
        start_from: Folder of a policy of the same shape, to begin with its weights.
    """
    data = out / DEMOS
    if not data.is_file():
        raise InputError(f"{data} is missing; `demos` makes it")
    main_train(  # Lift's observations and actions, on another board
        "lift", data=(data,), out=out / POLICY, steps=steps, batch_size=batch_size, threads=1,
        learning_rate=learning_rate, down_dims=channels, step_embed_dim=32,
        start_from=start_from,
    )  # fmt: skip
    update_card(out / POLICY, task="board")
    say(f"Policy: {out / POLICY}")
