"""Whose run a folder holds: for every command that keeps one, in the same words."""

import json

import pytest

from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.resume import store_of
from asd_policy.eval.runs.folder import STORE as EVALUATION
from asd_policy.eval.runs.store import Store, differing
from asd_policy.eval.studies.bench.store import STORE as BENCHMARK
from asd_policy.eval.studies.verify.store import STORE as VERIFICATION

RATES = store_of("rates", may_grow=("rates", "episodes"))
STORES = pytest.mark.parametrize(
    "store", [EVALUATION, VERIFICATION, BENCHMARK, RATES], ids=lambda store: store.what
)
# An option of each that must be the same to go on, and of what marks it as that command's.
OPTIONS = {"seed": 1, "num_envs": 1, "oracle": False}
MARKS = {"a run": ["num_envs"], "a verification": ["oracle"]}


def keep(store: Store, folder, version=0, **options) -> None:
    """A file as another version wrote it, for whose form no type of today stands."""
    ours = {k: v for k, v in OPTIONS.items() if k == "seed" or k in MARKS.get(store.what, [])}
    content = {"schema_version": version, "command": "rates", store.key: ours | options}
    (folder / store.file).write_text(json.dumps(content))


@STORES
def test_what_differs_is_named(store, tmp_path):
    keep(store, tmp_path, seed=2)
    for resume in (False, True):
        with pytest.raises(OutputExistsError) as error:
            store.check(tmp_path, {"seed": 1}, resume)
        said = str(error.value)
        assert f"{tmp_path} holds {store.what} with other settings" in said
        assert "--seed: 2 there, 1 now" in said
        assert "schema_version: 0 there, " in said
        assert said.endswith("; choose another --out"), "leaving out does not change a version"


@STORES
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": 3}', "another's"])
def test_what_is_of_something_else_is_never_written_over(store, tmp_path, content):
    if content == "another's":
        other = VERIFICATION if store is EVALUATION else EVALUATION
        if other.file != store.file:
            pytest.skip("their files have different names")
        keep(other, tmp_path)
    else:
        (tmp_path / store.file).write_text(content)
    for resume in (False, True):
        for beside in (False, True):
            said = "is damaged, or of" if content == "{" else f"or hold {store.what}; .*other files"
            with pytest.raises((OutputExistsError, InputError), match=said):
                store.check(tmp_path, {"seed": 1}, resume, beside)


@STORES
def test_where_one_may_start(store, tmp_path):
    assert store.check(tmp_path / "new", {}, False) is None
    assert store.check(tmp_path, {}, True) is None
    (tmp_path / f"{store.file}.part").write_text("{")
    (tmp_path / "episodes.jsonl").touch()
    assert store.check(tmp_path, {}, False) is None
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other files"):
        store.check(tmp_path, {}, True)
    assert store.check(tmp_path, {}, True, beside=True) is None


def test_a_damaged_file_of_today_is_said_to_be(tmp_path):
    keep(EVALUATION, tmp_path, version=2)
    with pytest.raises(ValueError, match=r"config\.json: asd_policy: Field required"):
        EVALUATION.check(tmp_path, {}, True)


@pytest.mark.parametrize(
    ("there", "now", "said"),
    [
        ({"episodes": 3}, {"episodes": 5}, None),
        ({"episodes": 3}, {"episodes": 2}, "3 there, only 2 now"),
        ({"rates": [1, 2]}, {"rates": [2, 1, 3]}, None),
        ({"rates": [1, 2]}, {"rates": [2]}, "1 2 there, only 2 now"),
        ({"video": 0}, {"video": 3}, None),
        ({}, {"seed": 3}, "None there, 3 now"),
        ({"seed": 3}, {}, None),
    ],
)
def test_what_may_change(there, now, said):
    found = differing(there, now, ("video",), ("episodes", "rates"))
    assert list(found.values()) == ([] if said is None else [said])
