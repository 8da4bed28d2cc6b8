"""Which of the observations is wrong, where one is."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("msgpack")

from asd_policy.errors import InputError
from asd_policy.serving.requests import Seen, read_request

SEEN = Seen({"object": (3,), "arm": (2,), "hand": (1,)}, 2)


def arrays(*lead: int) -> dict[str, np.ndarray]:
    return {key: np.zeros((*lead, *shape)) for key, shape in SEEN.shapes.items()}


@pytest.mark.parametrize("lead", [(), (1,), (2,)])
@pytest.mark.parametrize("shape", [(1, 3000), (4,), (3,), (1, 1, 1, 3), ()])
@pytest.mark.parametrize("key", SEEN.shapes)
def test_only_the_wrong_one_is_in_the_table(lead, shape, key) -> None:
    """Whether it comes first or last, and however many axes it has."""
    given = arrays(*lead) | {key: np.zeros(shape)}
    if shape == (*lead, *SEEN.shapes[key]):
        return
    with pytest.raises(InputError, match="not the observations") as caught:
        SEEN.frames(given, ())
    (row,) = str(caught.value).splitlines()[2:]
    assert row.split()[0] == key
    assert str((*lead, *SEEN.shapes[key])) in row


def test_the_wrong_one_says_nothing_of_how_many_robots_there_are() -> None:
    given = arrays(4) | {"object": np.zeros((3000,))}
    with pytest.raises(InputError, match=r"object +wrong shape +\(4, 3\) +\(3000,\)$"):
        read_request({**given, "asd_policy": {"call": "infer_batch"}}, SEEN, 8)


def test_where_none_is_right_most_of_them_decide() -> None:
    given = {key: np.zeros((9, 9)) for key in SEEN.shapes}
    with pytest.raises(InputError, match=r"expected one observation, or the last 2; got 9"):
        SEEN.frames(given, ())


def test_of_one_robot_and_of_several_and_the_last_two_of_each() -> None:
    for lead, given, count in (((), (), 1), ((), (2,), 2), ((4,), (4,), 1), ((4,), (4, 2), 2)):
        frames = SEEN.frames(arrays(*given), lead)
        assert [frame["arm"].shape for frame in frames] == [(*(lead or (1,)), 2)] * count
