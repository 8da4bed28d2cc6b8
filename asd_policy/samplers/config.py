"""Which sampler, with which options."""

from __future__ import annotations

from dataclasses import dataclass

from asd_policy.drafts import DRAFTS
from asd_policy.schedule import Schedule, check_choice

SAMPLERS = ("asd", "ddpm", "ddim", "paradigms")


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and its options.

    Attributes:
        name: "asd" (exact), "ddpm" (sequential), "ddim" or "paradigms" (approximate).
        draft: of ASD: "secant", "slope", "memory" or "frozen".
        calls_per_round: of ASD: 1, or 2 (with ``draft="frozen"``, the paper's own algorithm).
        window: θ, steps guessed ahead; "auto" chooses it from measured cost and acceptance.
        steps: steps of the chain, at most the training steps (default: all; "ddim": 10).
        eta: noise of DDIM, 0 … 1 ("ddim": 0 by default; with "asd", the DDIM chain of that η that
            uses the clipped model output).
        use_clipped_model_output: of "ddim": step along the ε that belongs to the clipped x̂0, in
            place of the network's own, which is what people run.
        tolerance: of ParaDiGMS.

    Raises:
        ValueError: an unknown name or option, or options that exclude each other.
    """

    name: str = "asd"
    draft: str = "secant"
    calls_per_round: int = 1
    window: int | str = "auto"
    steps: int | None = None
    eta: float | None = None
    tolerance: float = 0.1
    use_clipped_model_output: bool = False

    def __post_init__(self) -> None:
        check_choice("sampler", self.name, SAMPLERS)
        check_choice("draft", self.draft, DRAFTS)
        check_choice("calls_per_round", self.calls_per_round, (1, 2))
        window = self.window
        if window != "auto" and not (isinstance(window, int) and window >= 1):
            raise ValueError(f'window must be "auto" or a whole number from 1 on, got {window!r}')
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"inference steps must be at least 1, got {self.steps}")
        if self.eta is not None and self.name not in ("asd", "ddim"):
            raise ValueError(f'eta applies to the samplers "ddim" and "asd", not to {self.name!r}')
        if self.use_clipped_model_output and self.name != "ddim":
            raise ValueError(
                f'use_clipped_model_output applies to the sampler "ddim", not to {self.name!r}'
            )
        if not self.tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {self.tolerance}")

    def schedule(self, schedule: Schedule) -> Schedule:
        """The chain that this sampler runs on the network that ``schedule`` was trained for.

        Raises:
            ValueError: more steps than were trained, or ASD on a chain without noise.
        """
        if self.name == "ddim":
            steps = self.steps or min(10, schedule.config.num_steps)
            schedule = schedule.ddim(steps, self.eta or 0.0, self.use_clipped_model_output)
        elif self.eta is not None:
            steps = self.steps or schedule.num_steps
            schedule = schedule.ddim(steps, self.eta, use_clipped_model_output=True)
        elif self.steps is not None:
            schedule = schedule.respaced(self.steps)
        if self.name == "asd" and not bool((schedule.sigma[:-1] > 0).all()):
            raise ValueError(
                "ASD needs noise in every step but the last, and DDIM with eta=0 has none: there "
                'is nothing to couple. Use sampler="ddim", or eta above 0, or the DDPM itself'
            )
        if self.name in ("asd", "paradigms"):
            schedule.check_speculation(self.name)
        return schedule
