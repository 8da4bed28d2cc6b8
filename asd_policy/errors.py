"""Errors a user can act on. Each is also the builtin that callers would expect to catch."""

from __future__ import annotations

import difflib
import operator
import platform
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class AsdPolicyError(Exception):
    """Base of this package's errors: the command line prints them without a traceback."""


class NonFiniteError(AsdPolicyError, ArithmeticError):
    """A NaN or infinity in an observation, a network output or an action."""


class InputError(AsdPolicyError, ValueError):
    """A value, an option or an observation that cannot be used here. Functions of this package
    raise it where their docstrings say ValueError."""


class CheckpointError(AsdPolicyError, ValueError):
    """A checkpoint that is missing, damaged, unsafe, or made for something else."""


class DatasetError(AsdPolicyError, ValueError):
    """A demonstration store that is missing, incomplete, or holds unusable data."""


class DatasetWarning(UserWarning):
    """Demonstrations that may not be what was meant; the command line prints it on one line."""


class OutputExistsError(AsdPolicyError, FileExistsError):
    """An output folder that already holds another run."""


class OutputError(AsdPolicyError, OSError):
    """A file that could not be written: the disk is full, or the like."""


class EngineError(AsdPolicyError, RuntimeError):
    """An engine that cannot do here what was asked of it."""


class LayersError(EngineError):
    """A form of a network's layers that this GPU, or its compiler, does not take."""


class CopyError(AsdPolicyError, TypeError):
    """An object that can neither be copied nor pickled."""


class IntegrationError(AsdPolicyError, ImportError):
    """Another library, of a version that this package does not know."""


class MessageError(AsdPolicyError, ValueError):
    """A message that is not of the protocol between a policy's server and its clients."""


class LimitError(AsdPolicyError, RuntimeError):
    """A client that asks for more than the policy's server allows it."""


class ServerError(AsdPolicyError, RuntimeError):
    """A policy's server that failed at, or refuses, what it was asked."""


class ConnectionLostError(AsdPolicyError, ConnectionError):
    """A policy's server that cannot be reached, or that has gone."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what was finished is kept."""


class MissingExtraError(AsdPolicyError, ImportError):
    """A module that one of this package's extras brings and that is not installed."""


class EnvironmentVariableError(AsdPolicyError, ValueError):
    """An environment variable whose value cannot be used here."""


def plain(name: str) -> str:
    """A name without case, spaces, hyphens and underscores: "Tool-Hang" → "toolhang"."""
    return re.sub(r"[\s_-]", "", name.casefold())


def whole(value: Any) -> Any:
    """A whole number of any kind (NumPy's, PyTorch's) as an int; anything else as it is."""
    if isinstance(value, (int, float, str)) or value is None or getattr(value, "ndim", None):
        return value
    if str(getattr(value, "dtype", "")).endswith("bool"):  # which NumPy takes for 0 or 1
        return value
    try:
        return operator.index(value)
    except TypeError:
        return value


def whole_from(least: int, name: str, value: Any) -> int:
    """A whole number of any kind as an int. Raises ValueError for less, and for anything else."""
    number = whole(value)
    if isinstance(number, bool) or not isinstance(number, int) or number < least:
        raise InputError(f"{name} must be a whole number from {least} on, got {value!r:.80}")
    return number


def listed_indices(
    indices: Sequence[int] | None, count: int, left: Collection[int] = ()
) -> Sequence[int]:
    """Different numbers from 0 to count − 1; None are all. Raises ValueError for others, and for
    those of environments that have left."""
    found = range(count) if indices is None else _numbers(indices, count)
    if left and (gone := sorted({*left} & {*found})):
        raise InputError(
            f"of the environments, {', '.join(map(str, gone))} left; reset_env() brings one back, "
            "and indices name the others"
        )
    return found


def _numbers(indices: Sequence[int], count: int) -> list[int]:
    several = isinstance(indices, Iterable) and getattr(indices, "ndim", 1) != 0
    found = [whole(index) for index in indices] if several else []
    right = several and all(type(index) is int and 0 <= index < count for index in found)
    if not right or len(set(found)) < len(found):
        raise InputError(
            f"indices must be different numbers from 0 to {count - 1}, and no mask; "
            f"got {list(indices) if several else indices!r:.80}"
        )
    return found


def check_kind(name: str, value: object, kind: type | tuple[type, ...], wanted: str) -> None:
    """Raise a ValueError that says what was wanted unless a value is of this kind."""
    if not isinstance(value, kind):
        raise InputError(f"{name} must be {wanted}; got {type(value).__name__}")


def check_names(what: str, given: Iterable[object], known: Sequence[str]) -> None:
    """Raise a ValueError that lists ``known`` unless every name that is given is among them."""
    for name in given:
        if name not in known:
            raise InputError(
                f"{what} are {', '.join(known)}; got {name!r}{did_you_mean(name, known)}"
            )


def seed_number(seed: Any) -> int:
    """A seed as an int. Raises ValueError unless it is a whole number that PyTorch takes."""
    number = whole(seed)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**64:
        raise InputError(f"seed must be a whole number from 0 to 2^64 − 1, got {seed!r:.80}")
    return number


def listed_seeds(seeds: Any) -> list[int | None]:
    """One for each environment, of a list of them or of a single one."""
    seeds = whole(seeds)
    try:
        listed = [seeds] if isinstance(seeds, (str, bytes)) else list(seeds)
    except TypeError:
        listed = [seeds]
    return [None if seed is None else seed_number(seed) for seed in listed]


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """The end of a message on an unknown name, "; did you mean 'asd'?"; empty if none is near."""
    near: dict[str, str] = {}
    for choice in known:
        if isinstance(choice, str):
            near.setdefault(plain(choice), choice)
    found = difflib.get_close_matches(plain(name), list(near), 1) if isinstance(name, str) else []
    return f"; did you mean {near[found[0]]!r}?" if found else ""


def counted(number: int, thing: str) -> str:
    """ "1 thread" or "2 threads", of a thing whose plural ends in s."""
    return f"{number} {thing}" + "s" * (number != 1)


_PYTHON = platform.python_version()
# What to write in brackets for pip → the modules that it brings.
EXTRAS = {
    "sim": {
        "annotated_types", "gymnasium", "h5py", "imageio", "jinja2", "matplotlib", "mujoco", "PIL",
        "pydantic", "rich", "robosuite", "scipy", "tyro", "zarr",
    },
    "sim,robomimic": {"robomimic"},
    "ray": {"ray"},
    "lerobot": {"lerobot"},
    "serve": {"msgpack", "websockets"},
}  # fmt: skip


_FIRST_WITHOUT_SIMULATOR = (3, 13)


def wrong_python(version: str) -> str | None:
    """One sentence where the simulator is not for this Python; None where it is."""
    if tuple(int(part) for part in version.split(".")[:2]) < _FIRST_WITHOUT_SIMULATOR:
        return None
    return (
        f"the extra 'sim' brings it for Python 3.10 to 3.12 only, and this is {version} (robosuite "
        "needs a NumPy below 2, which has no wheels from 3.13 on): python3.12 -m venv sim && "
        "sim/bin/pip install 'asd-policy[sim]'"
    )


def missing_extra(error: ModuleNotFoundError, what: str) -> str | None:
    """One sentence with the pip command, where ``what`` needs a module that an extra brings.

    A module that no extra names counts for the library that imports it: what robosuite needs comes
    with robosuite. None where a module is missing for another reason.
    """
    if (error.name or "").partition(".")[0] == "asd_policy":
        return None
    importers: list[str] = []
    trace = error.__traceback__
    while trace is not None:
        importers.insert(0, str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        trace = trace.tb_next
    ours = importers.index("asd_policy") if "asd_policy" in importers else len(importers)
    for top in ((error.name or "").partition(".")[0], *importers[:ours]):
        for extra, brought in EXTRAS.items():
            if top in brought:
                if top in ("robosuite", "mujoco") and (why := wrong_python(_PYTHON)):
                    return f"{what} needs {error.name}; {why}"
                return (
                    f"{what} needs {error.name}, which is not installed: "
                    f"pip install 'asd-policy[{extra}]'"
                )
    return None


def for_user(error: BaseException, what: str) -> str | None:
    """The message for a user, of an error that ended ``what``; None for a fault of this package,
    whose traceback is wanted."""
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(error, what)
    return str(error) if isinstance(error, AsdPolicyError) else None


def say_to_user(error: BaseException, what: str) -> int:
    """Print the message of an error that ended ``what``; returns the exit status, 2. Raises the
    error itself where it is a fault."""
    message = for_user(error, what)
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)
    return 2


@contextmanager
def imported_as_command(package: str) -> Iterator[None]:
    """Around what a package imports: where that is `python -m PACKAGE`, whose __main__ could catch
    nothing yet, an error of the user's is printed, with exit status 2; elsewhere it is raised."""
    try:
        yield
    except (AsdPolicyError, ModuleNotFoundError) as error:
        if sys.argv[:1] != ["-m"]:  # which stands there until __main__ runs
            raise
        sys.exit(say_to_user(error, f"`python -m {package}`"))
