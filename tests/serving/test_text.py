"""What a policy is told to do: text among its observations."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("msgpack")

from asd_policy.errors import InputError
from asd_policy.serving.requests import Seen, read_request

SEEN = Seen({"state": (3,), "task": ()}, 2, ("task",))
STATE = np.zeros(3)


def frames(message, call="infer"):
    return read_request({**message, "asd_policy": {"call": call}}, SEEN, 8).frames


@pytest.mark.parametrize("name", ["task", "prompt"])
def test_a_string_is_of_the_one_robot(name) -> None:
    (frame,) = frames({"state": STATE, name: "lift it"})
    assert frame["task"].tolist() == ["lift it"]
    assert not read_request({"state": STATE, name: "lift it"}, SEEN, 8).unused


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("both", [["both", "both"], ["both", "both"]]),
        (["one", "two"], [["one", "two"], ["one", "two"]]),
        (np.array([["a", "b"], ["c", "d"]]), [["a", "c"], ["b", "d"]]),
    ],
)
def test_of_each_robot_and_time(text, expected) -> None:
    """Two robots, two observations of each: times, then robots."""
    found = frames({"state": np.zeros((2, 2, 3)), "task": text}, "infer_batch")
    assert [frame["task"].tolist() for frame in found] == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "'task' must be text, got object"),
        (b"lift it", "'task' must be text, got"),
        (["one"], r"(?s)task.*wrong shape"),
        ([["one"], ["two", "three"]], "'task' is no array"),
    ],
)
def test_what_is_no_text_is_refused(text, message) -> None:
    with pytest.raises(InputError, match=message):
        frames({"state": np.zeros((2, 3)), "task": text}, "infer_batch")


def test_text_that_is_missing() -> None:
    with pytest.raises(InputError, match=r"(?s)task.*missing"):
        frames({"state": STATE})


def test_a_policy_without_text_does_not_see_a_prompt() -> None:
    asked = read_request({"state": STATE, "prompt": "lift it"}, Seen({"state": (3,)}, 2), 8)
    assert list(asked.unused) == ["prompt"]
