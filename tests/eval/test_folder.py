"""The output folder: refusals, resuming, torn lines, locks."""

import dataclasses
import errno
import functools
import json
import re
from pathlib import Path

import pytest
from eval_standin import prepare

from asd_policy import files
from asd_policy.errors import OutputExistsError
from asd_policy.eval.options import EvalOptions, command_line
from asd_policy.eval.runs.files import default_folder, write_json
from asd_policy.eval.runs.folder import is_held, read_run
from asd_policy.eval.studies.evaluate import evaluate
from asd_policy.files import has_lock


@pytest.fixture
def options(tmp_path):
    return EvalOptions(episodes=3, out=tmp_path / "run")


@pytest.fixture
def run(quiet):
    return functools.partial(evaluate, prepare=prepare, console=quiet)


def keys(folder: Path) -> list[tuple[str, int]]:
    records = map(json.loads, (folder / "episodes.jsonl").read_text().splitlines())
    return [(record["sampler"], record["seed"]) for record in records]


def every(options: EvalOptions) -> set[tuple[str, int]]:
    seeds = range(options.seed, options.seed + options.episodes)
    return {(name, seed) for name in options.samplers for seed in seeds}


def again(options: EvalOptions, **changes: object) -> EvalOptions:
    return dataclasses.replace(options, resume=True, **changes)


# --- refusals -----------------------------------------------------------------------------------


def test_a_folder_with_a_run_is_refused(options, run):
    run(options)
    before = (options.out / "episodes.jsonl").read_bytes()
    with pytest.raises(OutputExistsError, match=r"already holds a run.*add --resume"):
        run(options)
    assert (options.out / "episodes.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, "seed: 100000 there, 5 now"),
        ({"samplers": ("asd",)}, "--samplers: asd ddpm there, asd now"),
        ({"episodes": 2}, "episodes: 3 there, only 2 now"),
        ({"window": 7}, "window: auto there, 7 now"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_another_run_is_refused_even_to_resume(options, run, change, said, resume):
    run(options)
    before = {p.name: p.read_bytes() for p in options.out.iterdir()}
    other = dataclasses.replace(options, resume=resume, **change)
    with pytest.raises(OutputExistsError, match=said):
        run(other)
    assert {p.name: p.read_bytes() for p in options.out.iterdir()} == before


def test_another_checkpoint_is_refused_to_resume(options, quiet, run):
    run(options)

    def retrained(options):
        return dataclasses.replace(prepare(options), checkpoint_sha256="f" * 64)

    with pytest.raises(OutputExistsError, match=r"weights: 0{8}… there, f{8}… now"):
        evaluate(again(options), prepare=retrained, console=quiet)


def test_another_action_horizon_is_refused_to_resume(options, quiet, run):
    """Of the same weights: a card that was changed since, say."""
    run(options)

    def shorter(options):
        made = prepare(options)
        return dataclasses.replace(made, resolved=made.resolved | {"horizons": [1, 2, 9]})

    with pytest.raises(OutputExistsError, match=r"\(horizons: 1 .* there, 1 2 9 now\)"):
        evaluate(again(options), prepare=shorter, console=quiet)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_refused(options, run, resume):
    options.out.mkdir()
    (options.out / "thesis.tex").write_text("mine")
    with pytest.raises(OutputExistsError, match="holds other files"):
        run(dataclasses.replace(options, resume=resume))
    assert [p.name for p in options.out.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(options, run):
    options.out.write_text("mine")
    with pytest.raises(OutputExistsError, match="must be a folder"):
        run(options)


def test_a_run_of_another_schema_is_refused(options, run):
    run(options)
    config = json.loads((options.out / "config.json").read_text())
    write_json(options.out / "config.json", config | {"schema_version": 0})
    with pytest.raises(OutputExistsError, match="schema_version: 0 there, 2 now"):
        run(again(options))


def test_a_folder_that_another_process_writes_to_is_refused(options, run, script):
    fcntl = pytest.importorskip("fcntl")
    run(options)
    with open(options.out / "episodes.jsonl", "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputExistsError, match="being written to by another process"):
            run(again(options))


# --- resuming -----------------------------------------------------------------------------------


def test_an_empty_folder_and_a_missing_one_are_started(options, run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run(dataclasses.replace(options, out=tmp_path / "empty"))["complete"]
    assert run(again(options))["complete"]


def test_a_folder_killed_before_its_config_is_started(options, run):
    options.out.mkdir()
    (options.out / "episodes.jsonl").touch()
    (options.out / "config.json.part").write_text("{")
    assert run(options)["complete"]


def test_resuming_a_finished_run_computes_the_same_results(options, run):
    first = run(options)
    before = (options.out / "episodes.jsonl").read_bytes()
    assert run(again(options)) == first
    assert (options.out / "episodes.jsonl").read_bytes() == before


def test_episodes_may_grow_when_resuming(options, run):
    run(options)
    results = run(again(options, episodes=5))
    assert results["samplers"]["asd"]["success"]["n"] == 5
    assert len(keys(options.out)) == 10
    assert json.loads((options.out / "config.json").read_text())["settings"]["episodes"] == 5


@pytest.mark.parametrize("torn", [b"{", b'{"sampler":"asd","seed":1000', b"\x00\x00\x00", None])
def test_a_torn_last_line_is_dropped_and_its_episode_run_again(options, run, torn):
    run(options)
    path = options.out / "episodes.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:4]) + (whole[4][:-30] if torn is None else torn))
    assert run(again(options))["complete"]
    assert path.read_bytes().startswith(b"".join(whole[:4]))
    assert sorted(keys(options.out)) == sorted(every(options))


def test_a_whole_record_without_its_end_of_line_is_kept(options, run):
    run(options)
    path = options.out / "episodes.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:4])[:-1])
    run(again(options))
    assert path.read_bytes().startswith(b"".join(whole[:4]))
    assert sorted(keys(options.out)) == sorted(every(options))


def test_damage_before_the_last_line_is_an_error(options, run):
    run(options)
    path = options.out / "episodes.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(whole[0] + b"{}\n" + whole[2])
    with pytest.raises(ValueError, match=r"line 2 of .*episodes\.jsonl: .*must hold"):
        run(again(options))
    path.write_bytes(whole[0] + whole[0] + whole[2])
    with pytest.raises(ValueError, match=r"line 2 of .*repeats asd, seed 100000"):
        run(again(options))


def test_reading_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected an evaluation's folder .*got"):
        read_run(tmp_path)


def test_resuming_on_another_machine_is_kept_in_env(options, run):
    run(options)
    path = options.out / "env.json"
    env = json.loads(path.read_text())
    write_json(path, env | {"cpu": "another"})
    run(again(options))
    kept = json.loads(path.read_text())
    assert (kept["cpu"], [e["cpu"] for e in kept["resumed"]]) == ("another", [env["cpu"]])
    run(again(options))
    assert json.loads(path.read_text()) == kept


def test_two_runs_in_one_second_have_two_folders(tmp_path):
    first = default_folder("x", tmp_path)
    first.mkdir()
    assert re.fullmatch(r"\d{8}-\d{6}-x", first.name)
    assert default_folder("x", tmp_path) != first


def test_the_command_to_continue_repeats_the_options():
    options = EvalOptions(samplers=("ddpm", "ddim"), eta=0.5, out=Path("a b"), resume=True)
    assert command_line(options) == (
        "asd-policy eval --samplers ddpm ddim --eta 0.5 --out 'a b' --resume"
    )


# --- locks --------------------------------------------------------------------------------------


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
def test_who_looks_needs_no_lock_of_a_writer_s(tmp_path, monkeypatch):
    """A network's file system gives those only to who may write; and a run that begins meanwhile
    is not refused."""
    real = files.fcntl.flock

    def network(file, how):
        if how & files.fcntl.LOCK_EX and not file.writable():
            raise OSError(errno.EBADF, "Bad file descriptor")
        return real(file, how)

    monkeypatch.setattr(files.fcntl, "flock", network)
    with open(tmp_path / "episodes.jsonl", "ab") as lines:
        assert not is_held(tmp_path)
        assert has_lock(lines, tmp_path)
        assert is_held(tmp_path)


@pytest.mark.skipif(files.fcntl is None, reason="needs file locks")
def test_who_looks_is_not_stopped_by_a_file_system_without_locks(tmp_path, monkeypatch):
    def refuse(file, how):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / "episodes.jsonl").touch()
    assert not is_held(tmp_path)


def test_what_torchrun_started_goes_on_with_as_many_ranks(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    several = "--nproc-per-node 2 -m asd_policy"
    for ranks, words in (
        ("1", "asd-policy"), ("2", f"torchrun {several}"), ("4", f"torchrun --nnodes 2 {several}"),
    ):  # fmt: skip
        monkeypatch.setenv("WORLD_SIZE", ranks)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(min(int(ranks), 2)))
        assert command_line(EvalOptions(resume=True)) == f"{words} eval --resume"
