"""What a comparison is asked to do: the options of `asd-policy compare`, checked first."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated

import tyro

from asd_policy.errors import InputError
from asd_policy.eval.options import EvalOptions, arg, at_least, check_samplers
from asd_policy.eval.runs.files import default_folder

_RUNS_HELP = (
    "Output folders of `asd-policy eval`: the one that is judged, then the one it is judged "
    "against; or one folder, two of whose samplers are compared."
)
_SAMPLERS_HELP = (
    "The sampler that is judged and the one it is judged against. Of two folders the default is "
    "each sampler that both have, of one folder its two samplers, ddpm last. Of one folder more "
    "than two may be named: each pair is compared, and letters tell which cannot be told apart."
)
_MARGIN_HELP = (
    "A loss of success that would not matter, as a share of episodes: 0.05 is 5 in a hundred."
)
_UNTIL_HELP = (
    "Run more seeds, a few at a time, until it is decided: there is a difference, or the sampler "
    "that is judged is not worse by --margin. However often it looks, a decision is false in at "
    "most 5% of comparisons."
)
_COMPARE_HELP = (
    "In place of --samplers: the sampler that is judged and the one it is judged against. After "
    "the run they are compared as `asd-policy compare` does it, with its exit status."
)


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """A comparison's settings. Nothing is checked here: see `check_compare_options`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, arg("DIR [DIR]", _RUNS_HELP)]
    samplers: Annotated[tuple[str, ...], arg("A B [C ...]", _SAMPLERS_HELP)] = ()
    margin: Annotated[float, arg("FLOAT", _MARGIN_HELP)] = 0.05
    until_decided: Annotated[bool, arg(None, _UNTIL_HELP)] = False
    budget: int = 1000
    """With --until-decided: common seeds after which it ends, decided or not."""
    seed: int = 0
    """Seed of the bootstrap."""
    allow_different_checkpoints: bool = False
    """Compare runs of different policies too."""
    json: Annotated[Path | None, arg("FILE")] = None
    """Also write every figure to this file."""


@dataclasses.dataclass(frozen=True)
class EvalAndCompareOptions(EvalOptions):
    """An evaluation's settings, and a comparison that follows it."""

    compare: Annotated[tuple[str, ...], arg("A B", _COMPARE_HELP)] = ()
    margin: Annotated[float, arg("FLOAT", "With --compare: " + _MARGIN_HELP)] = 0.05
    until_decided: Annotated[bool, arg(None, "With --compare: " + _UNTIL_HELP)] = False
    budget: int = 1000
    """With --until-decided: seeds after which it ends, decided or not."""

    @property
    def evaluation(self) -> EvalOptions:
        """What is run.

        Raises:
            ValueError: --compare does not name two samplers, or there is none to go on with.
        """
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(EvalOptions)}
        if not self.compare:
            for name in ("margin", "until_decided", "budget"):
                if getattr(self, name) != getattr(EvalAndCompareOptions, name):
                    option = "--" + name.replace("_", "-")
                    raise InputError(f"{option} needs --compare A B; got no --compare")
            return EvalOptions(**values)
        if len(set(self.compare)) != 2 or len(self.compare) != 2:
            raise InputError(f"--compare takes two samplers, got {' '.join(self.compare)}")
        check_samplers(self.compare, "--compare")
        out = self.out or default_folder(self.name or "-".join(self.compare))
        return EvalOptions(**values | {"samplers": self.compare, "out": out})

    def comparison(self, folder: Path) -> CompareOptions:
        """Of the two samplers in the folder of a run."""
        return CompareOptions((folder,), self.compare, self.margin, self.until_decided, self.budget)


def check_compare_options(options: CompareOptions) -> None:
    """Raise ValueError, naming the option, what it must be and what came."""
    if len(options.runs) not in (1, 2):
        raise InputError(
            f"compare takes one or two folders of `asd-policy eval`; got {len(options.runs)}"
        )
    several = len(options.runs) == 1 and not options.until_decided
    if len(options.samplers) == 1 or (len(options.samplers) > 2 and not several):
        raise InputError(
            "--samplers takes two names, the sampler that is judged and the one it is judged "
            "against (of one folder and without --until-decided also more); got "
            f"{' '.join(options.samplers)}"
        )
    if not (0.0 < options.margin < 1.0 and math.isfinite(options.margin)):
        raise InputError(f"--margin must be above 0 and below 1, got {options.margin}")
    if len(options.runs) == 1 and len(set(options.samplers)) < len(options.samplers):
        raise InputError(
            f"--samplers {' '.join(options.samplers)} of one folder are the same episodes; name "
            "different samplers"
        )
    at_least("budget", options.budget, 1)
    at_least("seed", options.seed, 0)
    if options.budget != CompareOptions.budget and not options.until_decided:
        raise InputError("--budget needs --until-decided; got no --until-decided")
    if options.json is not None and options.json.is_dir():
        raise InputError(f"--json must be a file, got the folder {options.json}")
