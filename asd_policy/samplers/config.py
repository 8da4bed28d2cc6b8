"""Which sampler, with which options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from inspect import signature
from numbers import Real
from typing import Any

from asd_policy.drafts import DRAFTS
from asd_policy.errors import InputError, check_kind, check_names, whole, whole_from
from asd_policy.samplers.names import ASD_CALLS, ASD_DDIM_STEPS, ASD_DRAFT, sampler_form
from asd_policy.samplers.table import METHODS, Method
from asd_policy.schedule import Schedule, check_choice


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and its options.

    Attributes:
        name: "asd" (exact), "ddpm" (sequential), "ddim" or "paradigms" (approximate). Forms of
            them may be named as on the command line, and become one of the four with its options:
            "asd-slope", "asd-memory", "asd-frozen", "asd-rejoin", "asd-paper" (as published: the
            frozen draft, two calls a round), "asd-ddim" (10 steps unless said otherwise; needs
            ``eta``),
            "ddim-clipped" (the chain that it reproduces) and "ddim-16" (16 steps, or any other
            number).
        draft, calls_per_round, window: other samplers leave them aside.
        draft: of ASD: "secant" (None), "slope", "memory" or "frozen".
        calls_per_round: of ASD: 1 (None), or 2 (with ``draft="frozen"``, the paper's algorithm).
        window: θ, steps guessed ahead; "auto" chooses it from measured cost and acceptance.
        steps: steps of the chain, at most the training steps (default: all; "ddim": 10, or those
            of a schedule that is a DDIM's, and its eta).
        eta: noise of DDIM, 0 … 1 ("ddim": 0 by default; with "asd", the DDIM chain of that η that
            uses the clipped model output).
        use_clipped_model_output: of "ddim" (None: False): step along the ε that belongs to the
            clipped x̂0, in place of the network's own, which is what people run.
        tolerance: of ParaDiGMS.
        rejoin: of ASD with secant drafts and one call a round ("asd-rejoin"): let proposals return
            to points where the network was evaluated (None: no; :mod:`asd_policy.rejoin`).

    Raises:
        ValueError: an unknown name or option, or options that exclude each other.
    """

    name: str = "asd"
    draft: str | None = None
    calls_per_round: int | None = None
    window: int | str = "auto"
    steps: int | None = None
    eta: float | None = None
    tolerance: float = 0.1
    use_clipped_model_output: bool | None = None
    rejoin: bool | None = None

    @classmethod
    def named(
        cls,
        sampler: str | SamplerConfig,
        *,
        asked_of: Callable[..., Any] | None = None,
        **options: Any,
    ) -> SamplerConfig:
        """A sampler's name with options; or a ``SamplerConfig`` as it is, which has its own.

        Args:
            asked_of: the function that takes these options beside its own, for messages.

        Raises:
            ValueError: as for the class; an option that there is not, or options beside a
                ``SamplerConfig``.
        """
        known = [field.name for field in fields(cls)[1:]]
        if asked_of is None:
            check_names("options of a sampler", options, known)
        elif not options.keys() <= set(known):
            own = (
                p.name for p in signature(asked_of).parameters.values() if p.default is not p.empty
            )
            all_known = list(dict.fromkeys(("sampler", *own, *known)))
            check_names(f"options of {asked_of.__qualname__}", options, all_known)
        if not isinstance(sampler, SamplerConfig):
            return cls(sampler, **options)
        if options:
            raise InputError(
                f"a SamplerConfig has its options already; leave out {', '.join(options)}"
            )
        return sampler

    def __post_init__(self) -> None:
        for name in ("calls_per_round", "window", "steps"):
            object.__setattr__(self, name, whole(getattr(self, name)))
        self._spell_out()
        check_choice("draft", self.draft, DRAFTS)
        whole_from(1, "calls_per_round", self.calls_per_round)  # and no 1.0, which equals 1
        check_choice("calls_per_round", self.calls_per_round, (1, 2))
        check_choice("rejoin", self.rejoin, (False, True))
        window = self.window
        if window != "auto" and not (type(window) is int and window >= 1):
            raise InputError(f'window must be "auto" or a whole number from 1 on, got {window!r}')
        if self.steps is not None:
            whole_from(1, "inference steps", self.steps)
        if self.rejoin and (self.draft, self.calls_per_round) != ("secant", 1):
            raise InputError(
                'rejoin=True applies to draft="secant" and calls_per_round=1; got '
                f"draft={self.draft!r} and calls_per_round={self.calls_per_round}"
            )
        for name in ("eta", "use_clipped_model_output", "rejoin"):
            value = getattr(self, name)
            if value is not None and value is not False:
                self._check_applies(name)
        if not (isinstance(self.tolerance, Real) and self.tolerance > 0):
            raise InputError(f"tolerance must be positive, got {self.tolerance!r:.80}")

    def _check_applies(self, option: str) -> None:
        if option not in self.method.options:
            names = [f'"{name}"' for name, method in METHODS.items() if option in method.options]
            plural = "s" * (len(names) > 1)
            raise InputError(
                f"{option} applies to the sampler{plural} {' and '.join(names)}, "
                f"not to {self.name!r}"
            )

    def _spell_out(self) -> None:
        """In place of a form's name and of None, what they stand for."""
        asked, form = self.name, sampler_form(self.name)
        for option, value in form.items():
            given = getattr(self, option)
            if option != "name" and given not in (None, value):
                raise InputError(
                    f"sampler {asked!r} means {option}={value!r}; got {option}={given!r}"
                )
        if asked == "asd-ddim":
            form |= {"eta": self.eta or 0.0, "steps": self.steps or ASD_DDIM_STEPS}
        unset: dict[str, Any] = {"draft": ASD_DRAFT, "calls_per_round": ASD_CALLS}
        unset |= {"use_clipped_model_output": False, "rejoin": False}
        form = {k: v for k, v in unset.items() if getattr(self, k) is None} | form
        for option, value in form.items():
            object.__setattr__(self, option, value)

    @property
    def method(self) -> Method:
        """The sampler in the table."""
        return METHODS[self.name]

    def has_stored_calibration(self, trained: Schedule) -> bool:
        """Whether what is stored with checkpoints was learned with this sampler: the default one,
        of all steps of the chain, with any window, and with or without rejoining."""
        whole = self.steps in (None, trained.num_steps)
        return whole and replace(self, rejoin=False, steps=None) == SamplerConfig(
            window=self.window
        )

    def schedule(self, schedule: Schedule) -> Schedule:
        """The chain that this sampler runs on the network that ``schedule`` was trained for.

        Raises:
            ValueError: more steps than were trained, or ASD on a chain without noise.
        """
        wanted = "an asd_policy.Schedule, that which the network was trained for"
        check_kind("schedule", schedule, Schedule, wanted)
        return self.method.chain(self, schedule)
