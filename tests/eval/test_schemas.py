"""The JSON files of a run have the form that eval/schemas says, and no other form passes.

Those of the other commands are checked where the commands are tested, with `eval_schemas.check`.
"""

import dataclasses
import importlib
import io
import json
from pathlib import Path

import jsonschema
import pytest
from eval_schemas import changed, check, schemas, validator
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval import doctor
from asd_policy.eval.evaluator import evaluate
from asd_policy.eval.folder import SCHEMA_VERSION
from asd_policy.eval.options import EvalOptions

ROOT = Path(__file__).resolve().parents[2]
# Schema → the files under eval/results that are of it.
KEPT = {
    "bench": ("cpu-2-cores/*.json", "h200/bench.json"), "rates": ("rates/*.json",),
    "tasks": ("*.json",), "first_minutes": ("first_minutes/*.json",),
    "verify": ("verify/*.json",),
}  # fmt: skip
RESULTS = [
    pytest.param(name, path, id=f"{path.parent.name}/{path.stem}")
    for name, patterns in KEPT.items()
    for pattern in patterns
    for path in sorted((ROOT / "eval" / "results").glob(pattern))
]
# Schema → the module of asd_policy.eval whose SCHEMA_VERSION it is of.
WRITERS = {
    "config": "folder", "env": "folder", "results": "folder", "doctor": "doctor",
    "rates": "rates", "replay": "replay", "tasks": "table.compute",
    "compare": "comparison.outcome", "verify": "verification.store",
    "verify_config": "verification.store", "bench": "benchmarks.store",
    "plan": "benchmarks.training", "options": "resume",
    "recording": "comparison.recordings", "first_minutes": "benchmarks.first_minutes",
}  # fmt: skip


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


def test_each_schema_is_one():
    assert schemas().keys() == {f"{name}.json" for name in (*WRITERS, "episode")}
    for schema in schemas().values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", WRITERS)
def test_each_schema_is_of_the_version_that_is_written(name):
    module = importlib.import_module(f"asd_policy.eval.{WRITERS[name]}")
    version = {"const": module.SCHEMA_VERSION}
    assert validator(name).schema["properties"]["schema_version"] == version


@pytest.mark.parametrize(("name", "path"), RESULTS)
def test_the_results_that_are_kept_have_their_form(name, path):
    check(name, json.loads(path.read_text()))


@pytest.mark.parametrize("name", ["config", "env", "results"])
def test_the_files_of_a_run_have_their_form_and_its_version(files, name):
    check(name, files[0][name])
    assert files[0][name]["schema_version"] == SCHEMA_VERSION


def test_every_line_of_episodes_has_its_form(files):
    assert len(files[1]) == 6
    for line in files[1]:
        validator("episode").validate(line)


def test_a_run_without_an_episode_has_the_form(files, tmp_path):
    from asd_policy.eval.results import summarize

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
