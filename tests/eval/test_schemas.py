"""The JSON files of a run have the form that their types say, and no other form passes.

Those of the other commands are checked where the commands are tested, with `eval_schemas.check`.
"""

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from eval_schemas import changed, check, is_read, validator
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval.commands import doctor
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.schemas import FORMS, VERSION, read_json, schema
from asd_policy.eval.studies.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]
# Schema → the files under eval/results that are of it.
KEPT = {
    "bench": ("cpu-2-cores/*.json", "h200/bench.json"), "rates": ("rates/*.json",),
    "tasks": ("*.json", "ddim/*.json", "shipped/*.json"),
    "first_minutes": ("first_minutes/*.json",),
    "verify": ("verify/*.json",), "pusht": ("pusht/*.json",), "rejoining": ("rejoining/*.json",),
    "pictures_calls": ("pictures/*/calls.json",), "pictures_clock": ("pictures/*/clock.json",),
    "pictures_quality": ("pictures/*/quality.json",),
    "modes": ("modes/*.json",), "devices": ("devices/*.json",), "in_loop": ("in_loop/*.json",),
}  # fmt: skip
RESULTS = [
    pytest.param(name, path, id=f"{path.parent.name}/{path.stem}")
    for name, patterns in KEPT.items()
    for pattern in patterns
    for path in sorted((ROOT / "eval" / "results").glob(pattern))
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Schema name → what a run kept under it. One sampler drafts, and one does not."""
    out = tmp_path_factory.mktemp("schemas") / "run"
    options = EvalOptions(episodes=2, out=out)
    console = Console(file=io.StringIO(), width=100)
    evaluate(options, prepare=prepare, console=console)
    more = dataclasses.replace(options, episodes=3, resume=True)
    evaluate(more, prepare=prepare, console=console)
    kept = {
        name: json.loads((out / f"{name}.json").read_text())
        for name in ("config", "env", "results")
    }
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return kept | {"episode": json.loads(lines[0])}, [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", FORMS)
def test_each_schema_is_one_of_the_version_that_is_written(name):
    made = schema(name)
    jsonschema.Draft202012Validator.check_schema(made)
    if name == "episode":  # config.json's counts
        return
    for form in [made["$defs"][each["$ref"].split("/")[-1]] for each in made.get("anyOf", ())] or [
        made
    ]:
        assert form["properties"]["schema_version"]["const"] == VERSION[name]
        assert "schema_version" in form["required"]


def test_there_is_a_version_of_every_form():
    assert {*VERSION, "episode"} == FORMS.keys()


def test_schemas_are_written_for_those_who_want_files(tmp_path):
    command = [sys.executable, "-m", "asd_policy.eval.runs.schemas", tmp_path / "schemas"]
    subprocess.run(command, check=True)
    written = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "schemas").iterdir()}
    assert written == {name: schema(name) for name in FORMS}


def test_what_a_type_says_is_in_its_schema():
    """Descriptions, limits, patterns, and that an object has no other keys."""
    made = schema("results")
    assert made["additionalProperties"] is False
    assert made["description"].startswith("Computed from config.json")
    pair = schema("tasks")["$defs"]["Pair"]["properties"]
    assert pair["p_value"]["description"] == "Exact McNemar, two-sided."
    assert {"maximum": 1, "minimum": 0, "type": "number"} in pair["p_value"]["anyOf"]
    settings = schema("config")["$defs"]["Settings"]
    assert settings["additionalProperties"] is True, "other versions have other options"
    assert settings["properties"]["checkpoint_sha256"]["pattern"] == "^[0-9a-f]{64}$"
    assert settings["properties"]["samplers"]["uniqueItems"] is True


def test_a_file_of_another_form_is_refused_in_one_line(tmp_path, files):
    path = tmp_path / "config.json"
    for change, said in (
        (
            ("settings/seed", -1),
            r"config.json: settings/seed: .*or equal to 0, got -1",
        ),
        (("more", 1), r"config.json: more: .*not permitted, got 1"),
        (("schema_version", 1), r"config.json: expected schema_version 2, got 1"),
        (("started", "noon"), r'config.json: started: .*must be a date and time.*, got "noon"'),
    ):
        path.write_text(json.dumps(changed(files[0]["config"], *change)))
        with pytest.raises(ValueError, match=said):
            read_json(path, "config")
    path.write_text("{")
    with pytest.raises(ValueError, match=r"config.json: Expecting"):
        read_json(path, "config")
    with pytest.raises(ValueError, match=r"none.json: No such file"):
        read_json(tmp_path / "none.json", "config")


@pytest.mark.skipif(not RESULTS, reason="needs the checkout")
def test_every_file_of_results_that_is_kept_has_a_form():
    """But the server's and one of a network alone, which one script writes and nothing reads."""
    kept = {each.values[1] for each in RESULTS}
    others = {*(ROOT / "eval" / "results").rglob("*.json")} - kept
    assert {f"{path.parent.name}/{path.stem}" for path in others} == {
        "serving/roundtrip", "serving/soak", "h200/network_forms",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "path"), RESULTS)
def test_the_results_that_are_kept_have_their_form(name, path):
    check(name, json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["config", "env", "results"])
def test_the_files_of_a_run_have_their_form_and_its_version(files, name):
    check(name, files[0][name])
    assert files[0][name]["schema_version"] == VERSION[name]


def test_every_line_of_episodes_has_its_form(files):
    assert len(files[1]) == 6
    for line in files[1]:
        validator("episode").validate(line)


def test_a_run_without_an_episode_has_the_form(files, tmp_path):
    from asd_policy.eval.stats.summary import summarize

    empty = json.loads(json.dumps(summarize(files[0]["config"], [])))
    validator("results").validate(empty)


@pytest.mark.parametrize(
    ("name", "path", "new"),
    [
        ("config", "schema_version", 1),
        ("config", "command", KeyError),
        ("config", "settings/checkpoint_sha256", "abc"),
        ("config", "settings/samplers", []),
        ("config", "resolved/control_hz", 0),
        ("config", "resolved/horizons", [2, 8]),
        ("config", "more", 1),
        ("env", "schema_version", KeyError),
        ("env", "versions", "1.0"),
        ("env", "threads", -1),
        ("env", "resumed", [{}]),
        ("env", "ray", {}),
        ("results", "schema_version", "2"),
        ("results", "samplers/asd/success/rate", 1.5),
        ("results", "samplers/asd/chunk_latency_ms/p50", "fast"),
        ("results", "samplers/asd/chunk_latency_ms/p100", 1.0),
        ("results", "samplers/asd/time/share/policy", KeyError),
        ("results", "samplers/asd/acceptance_by_step", [2.0]),
        ("results", "samplers/asd/calls_by_chunk/0/mean", "3"),
        ("results", "samplers/asd/window", {}),
        ("results", "paired/0/p_value", -0.1),
        ("results", "paired/0/more", 1),
        ("episode", "seed", 1.5),
        ("episode", "success", "yes"),
        ("episode", "chunks/0/latency_s", -1),
        ("episode", "chunks/0/calls", KeyError),
        ("episode", "control_step_s", [None]),
        ("episode", "note", "mine"),
    ],
)
def test_a_wrong_file_is_refused(files, name, path, new):
    validator(name).validate(files[0][name])
    with pytest.raises(jsonschema.ValidationError):
        validator(name).validate(changed(files[0][name], path, new))
    assert not is_read(name, changed(files[0][name], path, new))


def test_the_doctor_has_its_form():
    finding = doctor.Finding("mujoco", "broken", "too new", "pip install 'mujoco<3.10'")
    answer = json.loads(json.dumps(doctor.as_json({}, [finding], False)))
    check("doctor", answer, [("findings/0/status", "ill")])


def test_an_env_of_several_machines_has_the_form(files):
    env = files[0]["env"]
    ray = {"version": "2.9", "nodes": 1, "cpus": 4, "gpus": 0, "policies_on": ["here"]}
    there = env | {"cpu": "another", "ray": ray}
    check("env", env | {"resumed": [there]}, [("resumed/0/ray/cpus", "4"), ("resumed/0/more", 1)])
    check("env", there, [("ray/more", 1), ("ray/policies_on", KeyError)])


def test_a_run_with_delays_has_the_form_too(tmp_path):
    options = EvalOptions(episodes=2, delay=90.0, control_rate=40.0, out=tmp_path / "run")
    console = Console(file=io.StringIO(), width=100)
    evaluate(options, prepare=prepare, console=console)
    for name in ("config", "results"):
        validator(name).validate(json.loads((options.out / f"{name}.json").read_text()))
    lines = (options.out / "episodes.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    validator("episode").validate(first)
    del first["chunks"][0]["delay_steps"]
    with pytest.raises(jsonschema.ValidationError):
        validator("episode").validate(first)
