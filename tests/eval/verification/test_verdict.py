"""What a verification says, by its tests, its power and its controls."""

from types import SimpleNamespace

import pytest

from asd_policy.eval.studies.verify.verdict import verdict_json

OPTIONS = SimpleNamespace(sampler="asd", reference="ddpm", alpha=0.01, detect=0.2)
HARDEST = {"shift_deviations": 0.1, "shift": 0.01, "action": 0, "column": 0, "name": "x"}
POWER = {"enough": True, "hardest": HARDEST, "probability": 0.9, "chunks_needed": 100}


def verdict(differs: bool, *controls: tuple[str, str]):
    test = {"name": "mean", "p_holm": 0.001 if differs else 0.4, "p_value": 0.001}
    listed = [
        {"name": name, "expected": expected, "found": found, "as_expected": expected == found}
        for name, (expected, found) in zip(("ddpm-again", "shifted"), controls, strict=False)
    ]
    tests = [test | {"differs": differs}]
    return verdict_json(OPTIONS, tests, POWER, listed, 1000)


@pytest.mark.parametrize(
    ("differs", "controls", "status"),
    [
        (False, [("equal", "equal"), ("differs", "differs")], 0),
        (True, [("equal", "equal"), ("differs", "differs")], 1),
        (True, [("equal", "equal"), ("differs", "equal")], 1),
        (False, [("equal", "differs")], 2),
        # Both are held against one draw of ddpm: what is found in both may be that draw's.
        (True, [("equal", "differs")], 2),
    ],
)
def test_what_must_be_equal_and_is_not_leaves_it_open(differs, controls, status):
    found = verdict(differs, *controls)
    assert found["status"] == status
    if status == 2:
        assert found["word"] == "COULD NOT TELL, A CONTROL FAILED"
        assert "not to be trusted: ddpm-again was found different" in found["sentence"]
        assert ("1 of 1 tests reject" in found["sentence"]) == differs
