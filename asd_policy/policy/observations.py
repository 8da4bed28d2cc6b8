"""Observations as they come from a robot or a caller: what can be no observation is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from asd_policy.errors import InputError, NonFiniteError
from asd_policy.policy.checkpoint import difference_table

Shapes = Mapping[str, tuple[int, ...]]


class OneRow(dict[str, Any]):
    """One environment's observation, made a batch of one: errors speak of it as it was given."""


def shapes_seen(policy: Any) -> dict[str, tuple[int, ...]]:
    """Key → shape of one observation of what a policy sees: numbers, pictures, texts."""
    numbers = {key: (dim,) for key, dim in policy.observation_keys.items()}
    pictures = {key: (*size, 3) for key, size in policy.pictures.items()}
    texts: dict[str, tuple[int, ...]] = dict.fromkeys(policy.texts, ())
    return numbers | pictures | texts


def named(observation: Any) -> Mapping[str, Any]:
    """The observation. Raises ValueError unless it is a mapping."""
    if not isinstance(observation, Mapping):
        raise InputError(
            f"expected a mapping of names, an observation; got a {type(observation).__name__}"
        )
    return observation


def one_row(observation: Any) -> OneRow:
    """Of one environment, as a batch of one. What makes no array is left to the source, which need
    not see it. Raises ValueError unless it is a mapping."""
    return OneRow({key: _row(value) for key, value in named(observation).items()})


def _row(value: Any) -> Any:
    try:
        return np.asarray(value)[None]
    except (ValueError, TypeError, RuntimeError):
        return [value]


def check_shapes(observations: Mapping[str, Any], expected: Shapes, got: Shapes) -> None:
    """Raises ValueError, with one table, where shapes (B, …) of observations are not the expected
    ones; those of :func:`one_row` are told without the axis that it added."""
    if isinstance(observations, OneRow):
        expected, got = ({k: v[1:] for k, v in each.items()} for each in (expected, got))
    table = difference_table(expected, got)
    if table:
        raise InputError(f"these are not the observations that the policy expects:\n{table}")


def array(key: str, value: Any) -> np.ndarray:
    """Of a value that has this name. Raises ValueError where there can be none."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # the latter two of PyTorch's tensors
        raise InputError(f"observation {key!r} is no array: {error}") from error


def numbers(key: str, value: Any, dtype: type[np.floating[Any]] | None = None) -> np.ndarray:
    """An array of finite numbers, of a type where one is asked for.

    Raises:
        ValueError: it holds something else, complex numbers too.
        NonFiniteError: a NaN or infinity, also one that the type makes of a large number.
    """
    made = array(key, value)
    if made.dtype.kind not in "biuf":
        raise InputError(f"observation {key!r} must be of numbers, got {made.dtype}")
    if dtype is not None and made.dtype != dtype:
        with np.errstate(over="ignore"):  # found below, as an infinity
            made = made.astype(dtype)
    if made.dtype.kind == "f" and not np.isfinite(made).all():
        raise NonFiniteError(f"observation {key!r} holds a NaN or infinite value")
    return made


def text(key: str, value: Any) -> np.ndarray:
    """An array of strings. Raises ValueError where it holds something else."""
    made = array(key, value)
    if made.dtype.kind != "U":
        raise InputError(f"observation {key!r} must be text, got {made.dtype}")
    return made
