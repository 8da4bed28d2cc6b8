"""Messages: openpi's encoding, in both directions, and nothing else."""

from __future__ import annotations

import contextlib
import pickle

import numpy as np
import pytest

msgpack = pytest.importorskip("msgpack")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from asd_policy.errors import (  # noqa: E402
    AsdPolicyError,
    InputError,
    LimitError,
    MessageError,
    NonFiniteError,
    ServerError,
)
from asd_policy.serving.protocol import error_of, error_text, pack, unpack  # noqa: E402

VALUES = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "picture": np.full((2, 2, 3), 255, np.uint8),
    "big": np.array([1.5], ">f8"),
    "scalar": np.float32(0.25),
    "whole": np.int64(-3),
    "none": np.zeros((0, 4)),
    "zero": np.array(2.0),
    "text": np.array(["push", "T"]),
    "prompt": "do it",
    "nested": {"list": [1, None, True, 2.5]},
    "columns": np.arange(6.0).reshape(2, 3).T,
}


def same(a: object, b: object) -> bool:
    if isinstance(a, (np.ndarray, np.generic)):
        assert isinstance(b, type(a))
        return a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return a == b


def test_messages_survive() -> None:
    made = unpack(pack(VALUES))
    assert made.keys() == VALUES.keys()
    assert all(same(value, made[key]) for key, value in VALUES.items())


def test_openpi_reads_ours_and_we_read_openpi_s() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    assert pack(VALUES) == theirs.packb(VALUES)
    read = theirs.unpackb(pack(VALUES))
    assert all(same(value, read[key]) for key, value in VALUES.items())
    ours = unpack(theirs.packb(VALUES))
    assert all(same(value, ours[key]) for key, value in VALUES.items())


@pytest.mark.parametrize(
    "value",
    [
        np.array([object()]),
        np.array([{}], dtype=object),
        np.array([1j]),
        np.zeros(2, [("a", "f4")]),
        np.array(["2020-01-01"], "M8[D]"),
        object(),
        {1, 2},
        2**70,
    ],
)
def test_what_cannot_be_sent_is_refused(value: object) -> None:
    with pytest.raises(MessageError):
        pack({"x": value})


def array(data: object, dtype: object, shape: object) -> bytes:
    entries = {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}
    return msgpack.packb({"x": entries})


BAD = {
    "text": "hello",
    "nothing": b"",
    "torn": pack({"x": np.zeros(4)})[:-3],
    "more": pack({"x": 1}) + b"\x00",
    "pickle": pickle.dumps({"x": 1}),
    "list": msgpack.packb([1, 2]),
    "number": msgpack.packb(3),
    "array alone": msgpack.packb({b"__ndarray__": True, b"data": b"", b"dtype": "<f4"}),
    "names of bytes": msgpack.packb({b"x": 1}),
    "numbers for names": msgpack.packb({1: 2}),
    "objects": array(b"12345678", "|O", [1]),
    "structures": array(b"12345678", "f4,f4", [1]),
    "void": array(b"12345678", "|V8", [1]),
    "complex": array(b"12345678", "<c8", [1]),
    "no type": array(b"12345678", "nonsense", [1]),
    "a number's type": array(b"12345678", 4, [1]),
    "short": array(b"1234", "<f4", [2]),
    "long": array(b"12345678", "<f4", [1]),
    "negative": array(b"", "<f4", [-1, 0]),
    "overflow": array(b"1234", "<f4", [2**62, 2**62]),
    "fraction": array(b"1234", "<f4", [1.0]),
    "flat": array(b"1234", "<f4", 1),
    "dimensions": array(b"1234", "<f4", [1] * 70),
    "sizeless": array(b"", "|S0", [2**40]),
    "data of text": array("1234", "<f4", [1]),
    "generic of objects": msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "|O"}}),
    "generic of nothing": msgpack.packb({"x": {b"__npgeneric__": True, b"dtype": "<f4"}}),
    "deep": b"\x91" * 5000 + b"\x90",
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_message_is_named_so(name: str) -> None:
    with pytest.raises(MessageError):
        unpack(BAD[name])


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_are_named(data: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert isinstance(unpack(data), dict)


def test_an_error_without_words_is_named_by_its_kind() -> None:
    with pytest.raises(MessageError, match="got 1 bytes of else: FormatError"):
        unpack(b"\xc1")


@pytest.mark.parametrize("kind", [InputError, LimitError, MessageError, NonFiniteError])
def test_errors_travel_by_name(kind: type[AsdPolicyError]) -> None:
    made = error_of(error_text(kind("what: came")))
    assert type(made) is kind
    assert str(made) == "what: came"


def test_a_fault_is_the_server_s() -> None:
    assert error_text(KeyError("x")) == "ServerError: KeyError: 'x'"
    assert type(error_of("Traceback (most recent call last) …")) is ServerError
    assert type(error_of("SystemExit: 3")) is ServerError
