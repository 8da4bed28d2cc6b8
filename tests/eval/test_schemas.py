"""The JSON files of a run have the form that eval/schemas says, and no other form passes."""

import copy
import dataclasses
import io
import json
from importlib import resources

import jsonschema
import pytest
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval import doctor
from asd_policy.eval.evaluator import evaluate
from asd_policy.eval.folder import SCHEMA_VERSION
from asd_policy.eval.options import EvalOptions

NAMES = ("config", "env", "results", "episode", "doctor")


def validator(name):
    text = resources.files("asd_policy.eval").joinpath(f"schemas/{name}.json").read_text()
    return jsonschema.Draft202012Validator(
        json.loads(text), format_checker=jsonschema.FormatChecker()
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Schema name → what a run kept under it. One sampler drafts, and one does not."""
    out = tmp_path_factory.mktemp("schemas") / "run"
    options = EvalOptions(episodes=2, out=out)
    console = Console(file=io.StringIO(), width=100)
    evaluate(options, prepare=prepare, console=console)
    more = dataclasses.replace(options, episodes=3, resume=True)
    evaluate(more, prepare=prepare, console=console)
    kept = {name: json.loads((out / f"{name}.json").read_text()) for name in NAMES[:3]}
    lines = (out / "episodes.jsonl").read_text().splitlines()
    return kept | {"episode": json.loads(lines[0])}, [json.loads(line) for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_each_schema_is_one(name):
    jsonschema.Draft202012Validator.check_schema(validator(name).schema)


@pytest.mark.parametrize("name", ["config", "env", "results"])
def test_the_files_of_a_run_have_their_form_and_its_version(files, name):
    validator(name).validate(files[0][name])
    assert files[0][name]["schema_version"] == SCHEMA_VERSION
    assert validator(name).schema["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_every_line_of_episodes_has_its_form(files):
    assert len(files[1]) == 6
    for line in files[1]:
        validator("episode").validate(line)


def test_a_run_without_an_episode_has_the_form(files, tmp_path):
    from asd_policy.eval.results import summarize

    empty = json.loads(json.dumps(summarize(files[0]["config"], [])))
    validator("results").validate(empty)


def changed(value, path, new):
    """A copy with the value at a path replaced; `KeyError` as `new` removes it."""
    value = copy.deepcopy(value)
    *way, last = path.split("/")
    inner = value
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if new is KeyError:
        del inner[last]
    else:
        inner[last] = new
    return value


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
        ("results", "schema_version", "2"),
        ("results", "samplers/asd/success/rate", 1.5),
        ("results", "samplers/asd/chunk_latency_ms/p50", "fast"),
        ("results", "samplers/asd/chunk_latency_ms/p100", 1.0),
        ("results", "samplers/asd/time/share/policy", KeyError),
        ("results", "samplers/asd/acceptance_by_step", [2.0]),
        ("results", "samplers/asd/calls_by_chunk/0/mean", "3"),
        ("results", "samplers/asd/window", {}),
        ("results", "paired/0/p_value", -0.1),
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
    validator("doctor").validate(answer)
    with pytest.raises(jsonschema.ValidationError):
        validator("doctor").validate(changed(answer, "findings/0/status", "ill"))


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
