"""What a comparison is asked to do: the options of `asd-policy compare`, checked first."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from asd_policy.errors import InputError

_RUNS_HELP = (
    "Output folders of `asd-policy eval`: the one that is judged, then the one it is judged "
    "against; or one folder, two of whose samplers are compared."
)
_SAMPLERS_HELP = (
    "The sampler that is judged and the one it is judged against. Of two folders the default is "
    "each sampler that both have, of one folder its two samplers, ddpm last."
)
_MARGIN_HELP = (
    "A loss of success that would not matter, as a share of episodes: 0.05 is 5 in a hundred."
)


def _arg(metavar: str | None, text: str | None = None) -> Any:
    return tyro.conf.arg(metavar=metavar, help=text)


@dataclasses.dataclass(frozen=True)
class CompareOptions:
    """A comparison's settings. Nothing is checked here: see `check_compare_options`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, _arg("DIR [DIR]", _RUNS_HELP)]
    samplers: Annotated[tuple[str, ...], _arg("A B", _SAMPLERS_HELP)] = ()
    margin: Annotated[float, _arg("FLOAT", _MARGIN_HELP)] = 0.05
    seed: int = 0
    """Seed of the bootstrap."""
    allow_different_checkpoints: Annotated[bool, tyro.conf.FlagCreatePairsOff, _arg(None)] = False
    """Compare runs of different policies too."""
    json: Annotated[Path | None, _arg("FILE")] = None
    """Also write every figure to this file."""


def check_compare_options(options: CompareOptions) -> None:
    """Raise ValueError, naming the option, what it must be and what came."""
    if len(options.runs) not in (1, 2):
        raise InputError(
            f"compare takes one or two folders of `asd-policy eval`; got {len(options.runs)}"
        )
    if len(options.samplers) not in (0, 2):
        raise InputError(
            "--samplers takes two names, the sampler that is judged and the one it is judged "
            f"against; got {' '.join(options.samplers)}"
        )
    if not (0.0 < options.margin < 1.0 and math.isfinite(options.margin)):
        raise InputError(f"--margin must be above 0 and below 1, got {options.margin}")
    if len(options.runs) == 1 and options.samplers and len(set(options.samplers)) == 1:
        raise InputError(
            f"--samplers {' '.join(options.samplers)} of one folder are the same episodes; name "
            "two samplers"
        )
    if options.json is not None and options.json.is_dir():
        raise InputError(f"--json must be a file, got the folder {options.json}")
