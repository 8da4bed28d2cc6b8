"""`asd-policy compare`: two recordings, seed by seed."""

import json

import pytest

pytest.importorskip("tyro")
pytest.importorskip("scipy")

from eval_schemas import check


def recording(path, successes, policy="asd", first_seed=7, scene="{:064x}", **changes):
    episodes = [
        {"seed": first_seed + i, "scene": scene and scene.format(first_seed + i),
         "success": success, "steps": 10, "simulation_s": 0.5,
         "policy_s": 2.0 if i == 0 else 0.1, "calls": [9, 11], **changes}
        for i, success in enumerate(successes)
    ]  # fmt: skip
    path.write_text(json.dumps({"schema_version": 2, "policy": policy, "episodes": episodes}))
    return path


def test_a_recording_has_its_form(tmp_path) -> None:
    content = json.loads(recording(tmp_path / "a.json", [True, False]).read_text())
    wrong = [("episodes/0/scene", "abc"), ("episodes/0/scene", KeyError), ("episodes", [])]
    check("recording", content, wrong)


def test_unequal_scenes_are_not_called_the_same(tmp_path, run, refused) -> None:
    a = recording(tmp_path / "a.json", [True] * 3)
    b = recording(tmp_path / "b.json", [True] * 3, scene="f{:063x}")
    refused("3 of 3 common seeds began with different scenes .*first of seed 7", "compare", a, b)
    old = recording(tmp_path / "old.json", [True] * 3, scene=None)
    status, out, _ = run("compare", a, old)
    assert status == 2, "three seeds tell nothing"
    assert "Whether 3 of these seeds began with the same scene in both is not known" in out


def test_recordings_are_compared(tmp_path, run) -> None:
    a = recording(tmp_path / "a.json", [True] * 9 + [False])
    b = recording(tmp_path / "b.json", [False] + [True] * 9, policy="ddpm")
    status, out, _ = run("compare", a, b)
    assert status == 2
    assert "TOO FEW EPISODES: whether a is worse than b by more than 5 points is open" in out
    assert "a: asd\n   9/10 succeeded (60–98%)" in out
    assert "policy 0.9 s, 10.0 ms a control step, simulation 4.5 s; 10.0 calls a chunk" in out
    assert "both 8, only a 1, only b 1, neither 0; success of a minus b +0.0 points" in out
    low, high = out.split("95% interval ")[1].split("\n")[0].split(" to ")
    assert -40 < float(low) == -float(high) < -10


def test_what_cannot_be_compared_is_refused(tmp_path, refused) -> None:
    a = recording(tmp_path / "a.json", [True])
    other = recording(tmp_path / "b.json", [True], first_seed=90)
    refused("no seeds in common", "compare", a, other)
    recording(other, [True], seed=None)
    refused("episodes without seeds: record with --seed", "compare", a, other)
    recording(other, [])
    refused("no recording: .*at least 1 item", "compare", a, other)
    other.write_text("no JSON")
    refused("no recording: ", "compare", a, other)
    refused("--json is for evaluations", "compare", a, a, "--json", tmp_path / "c.json")
    refused("--margin must be above 0 and below 1, got 7", "compare", a, a, "--margin", "7")


def test_the_exit_status_is_what_they_show(tmp_path, run) -> None:
    good = recording(tmp_path / "a.json", [True] * 60)
    bad = recording(tmp_path / "b.json", [False] * 60)
    for first, second, status, word in ((bad, good, 1, "WORSE"), (good, bad, 0, "NOT WORSE")):
        found, out, _ = run("compare", first, second)
        assert found == status
        assert f"\n{word}: a is " in out
