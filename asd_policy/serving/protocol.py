"""The messages between a policy's server and its clients: msgpack, with NumPy arrays as openpi has
them (github.com/Physical-Intelligence/openpi, packages/openpi-client).

An array is a map of ``__ndarray__``, ``data``, ``dtype`` and ``shape``, these names as bytes; a
NumPy number one of ``__npgeneric__``, ``data`` and ``dtype``. Nothing is pickled: arrays of objects
are refused, in both directions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from asd_policy.errors import (
    AsdPolicyError,
    InputError,
    LimitError,
    MessageError,
    NonFiniteError,
    ServerError,
)

VERSION = 1
IDLE = 1000  # code (of RFC 6455) of a connection that is closed because nothing is asked
# The entry of an observation that says more than "a chunk for this": openpi's messages have none.
KEY = "asd_policy"
_KINDS = "biufSU"  # of arrays: numbers, truth values and text
_ERRORS = {e.__name__: e for e in (InputError, LimitError, MessageError, NonFiniteError)}


def pack(message: Mapping[str, Any]) -> bytes:
    """The bytes of a message.

    Raises:
        MessageError: something in it that is no number, text, list, mapping or array of such.
    """
    try:
        data: bytes = msgpack.packb(message, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise MessageError(f"this cannot be sent: {error}") from error
    return data


def unpack(data: bytes | str) -> dict[str, Any]:
    """The message that these bytes are; its arrays are read-only.

    Raises:
        MessageError: text, bytes that are no msgpack, no mapping, or an array that is none.
    """
    if isinstance(data, str):
        raise MessageError("expected a binary message, msgpack; got text")
    try:
        message = msgpack.unpackb(data, object_hook=_decode)
    except MessageError:
        raise
    except Exception as error:  # of anything that msgpack and NumPy say to arbitrary bytes
        said = str(error) or type(error).__name__  # some have no words
        raise MessageError(f"expected msgpack, got {len(data)} bytes of else: {said}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise MessageError(
            f"expected a mapping of names, an observation; got a {type(message).__name__}"
        )
    return message


def _encode(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        if value.dtype.kind not in _KINDS:
            raise MessageError(f"arrays of numbers and text can be sent, got one of {value.dtype}")
        if isinstance(value, np.generic):
            return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
        return {
            b"__ndarray__": True,
            b"data": value.tobytes(),
            b"dtype": value.dtype.str,
            b"shape": value.shape,
        }
    raise TypeError(f"a {type(value).__name__} is no number, text, list, mapping or array")


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        return _dtype(value).type(value[b"data"])
    return value


def _array(value: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(value), value.get(b"data"), value.get(b"shape")
    sizes = shape if isinstance(shape, list) else [-1]
    if not isinstance(data, bytes) or not all(type(n) is int and n >= 0 for n in sizes):
        raise MessageError("an array's data must be bytes, and its shape a list of whole numbers")
    if math.prod(sizes) * dtype.itemsize != len(data):
        raise MessageError(
            f"an array of shape {sizes} and type {dtype} has {math.prod(sizes) * dtype.itemsize} "
            f"bytes; got {len(data)}"
        )
    return np.ndarray(tuple(sizes), dtype, buffer=data)


def _dtype(value: dict[Any, Any]) -> np.dtype[Any]:
    name = value.get(b"dtype")
    if not isinstance(name, str):
        raise MessageError(f"an array's dtype must be NumPy's name of it, got {name!r}")
    dtype = np.dtype(name)
    if dtype.kind not in _KINDS or dtype.itemsize == 0:
        raise MessageError(f"arrays must be of numbers or text, got one of {dtype}")
    return dtype


# ---- errors: a text message, which openpi's client raises as a RuntimeError ----------------------


def error_text(error: BaseException) -> str:
    """What a client is told: the kind of error, and its message.

    A fault of the server's is a ServerError, and named."""
    if type(error).__name__ in _ERRORS:
        return f"{type(error).__name__}: {error}"
    own = isinstance(error, AsdPolicyError)
    return f"ServerError: {error}" if own else f"ServerError: {type(error).__name__}: {error}"


def error_of(text: str) -> AsdPolicyError:
    """The error that a text message tells of."""
    name, _, message = text.partition(": ")
    return _ERRORS.get(name, ServerError)(message or text)
