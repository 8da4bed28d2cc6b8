"""The flight recorder and `asd-policy replay`, with real small policies in a world that is free."""

import dataclasses
import functools
import json
import zipfile

import numpy as np
import pytest
import torch
from eval_schemas import check
from eval_standin import prepare as prepare_standin
from eval_tiny import make_checkpoint, prepare

from asd_policy.eval.options import EvalOptions, ReplayOptions
from asd_policy.eval.rollout.flight import (
    FlightDamagedError,
    flight_path,
    read_flight,
    write_flight,
)
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.eval.studies.replay import replay
from asd_policy.policy import save_checkpoint
from reference.tiny import tiny_checkpoint

SEED = 100_000
# What replay.json may not hold.
WRONG = [
    ("run", 1),
    ("chunks", 0),
    ("same", KeyError),
    ("machine/cpu", ["here"]),
    ("changed_since", {"cpu": ["another"]}),
    ("verdicts", []),
    ("verdicts/0/seed", "100000"),
    ("verdicts/0/batch", 0),
    ("verdicts/0/window", KeyError),
    ("verdicts/0/largest_difference", -1.0),
    ("verdicts/0/decisions_differ_at_steps", [2, 2]),
    ("verdicts/0/window_calls_evaluations/now", [4, 7]),
    ("verdicts/0/damaged", "and drawn"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def record(tmp_path, checkpoint, quiet):
    def run(**changes):
        options = EvalOptions(**{"episodes": 2, "record": True, "out": tmp_path / "run", **changes})
        make = functools.partial(prepare, checkpoint=checkpoint)
        return options, evaluate(options, prepare=make, console=quiet)

    return run


def kept(options, wrong=()):
    """The content of replay.json."""
    content = json.loads((options.out / "replay.json").read_text())
    check("replay", content, wrong)
    return content


def replayed(options, quiet, **which):
    which = which or {"all": True}
    result = replay(ReplayOptions(options.out, **which), console=quiet)
    assert kept(options) == result
    return result


def chunks_of(options):
    lines = (options.out / "episodes.jsonl").read_text().splitlines()
    return {(e["sampler"], e["seed"]): e["chunks"] for e in map(json.loads, lines)}


ALL = ("asd", "asd-slope", "asd-frozen", "asd-paper", "ddpm", "ddim", "paradigms", "asd-ddim")


@pytest.mark.parametrize(
    "changes",
    [
        {"samplers": ALL, "ddim_steps": 6, "eta": 0.5, "window": 4},
        {"samplers": ALL, "ddim_steps": 6, "eta": 0.5, "window": 4, "num_envs": 3, "episodes": 4},
        {"samplers": ("asd",), "window": "auto", "episodes": 4},
        {"samplers": ("asd", "asd-slope"), "steps": 6, "window": 3, "num_envs": 2, "episodes": 4},
        {"samplers": ("asd", "ddpm"), "window": 4, "delay": 80.0, "num_envs": 2},
        {"samplers": ("asd",), "window": 4, "delay": "measured"},
    ],
    ids=["one", "batches", "auto", "learning", "delayed", "measured"],
)
def test_every_chunk_is_drawn_again_bitwise(record, quiet, changes):
    options, _ = record(**changes)
    counts = chunks_of(options)
    result = replayed(options, quiet)
    assert result["chunks"] == sum(map(len, counts.values())) > 0
    assert result["same"] == result["chunks"], result["verdicts"]
    assert result["changed_since"] == {}
    batches = {verdict["batch"] for verdict in result["verdicts"]}
    assert max(batches) == options.num_envs
    kept(options, WRONG)
    assert f"{result['same']} of {result['same']} chunks are bitwise" in quiet.file.getvalue()


def test_a_recorded_run_is_the_same_run_as_one_that_is_not(record, tmp_path):
    _, with_it = record(samplers=("asd",), window=4)
    _, without = record(samplers=("asd",), window=4, record=False, out=tmp_path / "other")
    assert with_it["samplers"]["asd"]["success"] == without["samplers"]["asd"]["success"]
    assert not (tmp_path / "other" / "flight").exists()
    a, b = (
        [
            [(c["calls"], c["accepted"], c["window"]) for c in chunks]
            for chunks in chunks_of(EvalOptions(out=folder)).values()
        ]
        for folder in (tmp_path / "run", tmp_path / "other")
    )
    assert a == b


def test_a_flight_is_a_file_that_numpy_reads(record):
    options, _ = record(samplers=("asd",), window=4, num_envs=2)
    path = flight_path(options.out, "asd", SEED)
    root = np.load(path)
    attributes = json.loads(str(root["header"]))
    count = len(chunks_of(options)["asd", SEED])
    assert root["action"].shape == (count, 8, 2)
    assert root["accepted"].shape == root["decided"].shape == (count, 12)
    assert root["observation"].shape[1:] == (2, 5)
    assert attributes["seed"] == SEED
    # Of the package: the module adds its build (+cu130) where the index' wheel does not.
    assert torch.__version__.startswith(attributes["machine"]["versions"]["torch"])
    flight = read_flight(path)
    for number, chunk in enumerate(chunks_of(options)["asd", SEED]):
        assert flight.accepted[number].sum() == chunk["accepted"]
        assert flight.decided[number].sum() == chunk["decided"]
        names = ("window", "calls", "evaluations", "rows")
        kept = [flight.column(number, name) for name in names]
        assert kept == [chunk[k] for k in ("window", "calls", "evaluations", "batch")]
        own = flight.rows(number).start + flight.column(number, "row")
        assert flight.stream[own].tolist() == [SEED, number]
    assert path.stat().st_size < 12_000


def rewrite(path, change):
    """Put a changed flight in the place of one."""
    flight = read_flight(path)
    arrays = {
        field.name: np.array(getattr(flight, field.name))
        for field in dataclasses.fields(flight)
        if field.name != "header"
    }
    change(arrays)
    write_flight(path, flight.header, arrays)


@pytest.mark.parametrize(
    ("name", "where", "found"),
    [
        ("action", (1, 5, 0), "1 numbers differ, by at most"),
        ("observation", (2, 1, 2), "numbers differ"),
        ("accepted", (1, 3), "other decisions at steps [3]"),
        ("stream", (2, 0), "numbers differ"),
    ],
)
def test_a_flipped_bit_is_found_in_its_chunk_and_no_other(record, quiet, name, where, found):
    options, _ = record(samplers=("asd",), window=4, num_envs=2)
    path = flight_path(options.out, "asd", SEED)
    which = read_flight(path)
    assert which.rows(1).start + which.column(1, "row") == 2, "row 2 is this chunk's own"

    def flip(arrays):
        bits = arrays[name].view({4: np.uint32, 8: np.uint64, 1: np.uint8}[arrays[name].itemsize])
        bits[where] ^= bits.dtype.type(1 << 20 if bits.itemsize == 4 else 1)

    rewrite(path, flip)
    result = replayed(options, quiet)
    assert [(v["seed"], v["chunk"]) for v in result["verdicts"] if not v["same"]] == [(SEED, 1)]
    assert found in quiet.file.getvalue()
    assert "nothing that is recorded" in quiet.file.getvalue()


def test_a_file_that_is_damaged_is_found(record, quiet):
    options, _ = record(samplers=("asd",), window=4)
    path = flight_path(options.out, "asd", SEED)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("action.npy")
    at = member.header_offset + 60 + member.compress_size // 2
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(FlightDamagedError, match="cannot be read as a recorded flight"):
        read_flight(path)
    result = replayed(options, quiet)
    assert {v["seed"] for v in result["verdicts"] if not v["same"]} == {SEED}
    flight_path(options.out, "asd", SEED + 1).unlink()
    assert replayed(options, quiet)["same"] == 0
    kept(options, [("verdicts/0/same", True), ("verdicts/0/chunk", KeyError)])


def test_a_changed_weight_is_found_and_named(record, quiet, tmp_path):
    options, _ = record(samplers=("ddpm", "asd"), window=4)
    other = tiny_checkpoint(num_steps=12)
    with torch.no_grad():
        next(iter(other.network.parameters())).view(-1)[0] += 1e-3
    changed = save_checkpoint(tmp_path / "changed", other)
    result = replayed(options, quiet, all=True, checkpoint=changed)
    assert result["same"] == 0
    assert list(result["changed_since"]) == ["checkpoint_sha256"]
    assert all(0 < v["largest_difference"] < 1 for v in result["verdicts"])
    assert "Changed since the recording: checkpoint_sha256:" in quiet.file.getvalue()


def test_another_checkpoint_is_refused(record, quiet, tmp_path):
    options, _ = record(samplers=("ddpm",))
    other = save_checkpoint(tmp_path / "other", tiny_checkpoint(num_steps=9))
    with pytest.raises(ValueError, match=r"recorded chunks are of shape .* in 12 steps; .* 9"):
        replayed(options, quiet, all=True, checkpoint=other)


def test_which_chunks_are_replayed(record, quiet):
    options, _ = record(samplers=("ddpm", "ddim"), ddim_steps=3, episodes=4)
    counts = {key: len(chunks) for key, chunks in chunks_of(options).items()}

    def which(**asked):
        result = replayed(options, quiet, **asked)
        return [(v["sampler"], v["seed"], v["chunk"]) for v in result["verdicts"]]

    assert which(sampler="ddim", seed=SEED + 1, chunk=1) == [("ddim", SEED + 1, 1)]
    assert which(seed=SEED, sampler="ddpm") == [
        ("ddpm", SEED, n) for n in range(counts["ddpm", SEED])
    ]
    assert len(which(sample=3)) == 3
    assert which(sample=3) == which(sample=3)
    assert len(which(all=True)) == sum(counts.values())
    assert len(which(sampler=None)) == min(10, sum(counts.values()))
    with pytest.raises(ValueError, match=r"no chunk of sampler asd, chunk 99; its episodes"):
        which(sampler="asd", chunk=99)


def test_a_run_that_was_not_recorded_is_refused(record, quiet):
    options, _ = record(samplers=("ddpm",), record=False)
    with pytest.raises(ValueError, match="was not recorded; expected a run of `eval --record`"):
        replayed(options, quiet)


def test_the_exit_status_says_whether_all_are_the_same(record, run):
    options, _ = record(samplers=("asd",), window=4)
    assert run("replay", options.out, "--all")[0] == 0
    path = flight_path(options.out, "asd", SEED)
    rewrite(path, lambda arrays: arrays["action"].__setitem__((0, 0, 0), np.nan))
    status, output, _ = run("replay", options.out, "--sampler", "asd", "--seed", SEED)
    assert status == 1
    assert "1 numbers differ, by a number that is not finite" in output
    assert None in [verdict["largest_difference"] for verdict in kept(options)["verdicts"]]
    status, _, errors = run("replay", options.out / "nothing")
    assert status == 2
    assert "expected an evaluation's folder" in errors


# --- resuming -----------------------------------------------------------------------------------


def test_no_episode_is_recorded_twice_or_lost_when_resuming(tmp_path, quiet):
    options = EvalOptions(episodes=4, record=True, out=tmp_path / "run")
    evaluate(options, prepare=prepare_standin, console=quiet)
    before = {path.name: path.read_bytes() for path in (options.out / "flight").iterdir()}
    assert len(before) == 8
    lines = (options.out / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    # Killed between an episode's flight and its line, and in the middle of the next flight.
    (options.out / "episodes.jsonl").write_bytes(b"".join(lines[:5]))
    (options.out / "flight" / f"asd_seed{SEED + 3}.npz").unlink()
    (options.out / "flight" / f"asd_seed{SEED + 3}.npz.part").write_bytes(b"PK")
    again = dataclasses.replace(options, resume=True)
    evaluate(again, prepare=prepare_standin, console=quiet)
    after = {path.name: path.read_bytes() for path in (options.out / "flight").iterdir()}
    assert after == before


def test_a_worker_that_dies_leaves_one_flight(tmp_path, quiet):
    from eval_workers import Dies

    world = functools.partial(Dies, folder=tmp_path, seed=SEED + 1, at=6, times=1)
    options = EvalOptions(
        episodes=3, num_envs=2, samplers=("asd",), record=True, out=tmp_path / "run"
    )
    make = functools.partial(prepare_standin, env_class=world, workers=True)
    evaluate(options, prepare=make, console=quiet)
    plain = dataclasses.replace(options, num_envs=1, out=tmp_path / "plain")
    evaluate(plain, prepare=prepare_standin, console=quiet)
    for seed in range(SEED, SEED + 3):
        flights = [read_flight(flight_path(o.out, "asd", seed)) for o in (options, plain)]
        np.testing.assert_array_equal(flights[0].action, flights[1].action)


@pytest.mark.parametrize("sample", [0, -1])
def test_a_sample_of_no_chunk_is_refused(refused, tmp_path, sample):
    """Its exit status would say that all are the same, or that some differ."""
    message = f"--sample must be a whole number, 1 or more; got {sample}"
    refused(message, "replay", tmp_path, "--sample", sample)
