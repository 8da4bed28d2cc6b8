"""bench.json: what is kept of a benchmark that goes on later, elsewhere, with other cells."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from asd_policy.eval.studies.bench import run as bench
from asd_policy.eval.studies.bench.store import BenchFile, read_bench
from asd_policy.eval.studies.bench.summary import add_speedups
from asd_policy.policy import save_checkpoint
from reference.tiny import tiny_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def test_a_cell_is_kept_once(tmp_path):
    kept = read_bench(ROOT / "eval" / "results" / "cpu-2-cores" / "one_chain.json")
    settings, machine = kept["settings"], kept["machine"][0] | {"cpu": "x"}
    store = BenchFile.claim(tmp_path / "out", settings, machine, resume=False)
    store.content["cells"].append({"key": "a", "latency_ms": {}})
    with pytest.raises(AssertionError, match="a was measured already"):
        store.add_cell({"key": "a"})
    again = BenchFile.claim(tmp_path / "out", settings, machine | {"cpu": "y"}, resume=True)
    assert [each["cpu"] for each in again.content["machine"]] == ["x", "y"]


def test_what_is_gone_on_with_is_not_complete_and_loses_no_setting(tmp_path):
    kept = read_bench(ROOT / "eval" / "results" / "cpu-2-cores" / "one_chain.json")
    settings, machine = kept["settings"] | {"samplers": ["ddpm", "ddim-2"]}, kept["machine"][0]
    first = BenchFile.claim(tmp_path, settings, machine, resume=False)
    assert not first.owes
    killed = BenchFile.claim(tmp_path, settings | {"samplers": ["ddpm"]}, machine, resume=True)
    assert killed.owes, "what was asked first is not done"
    first.write(complete=True)
    other = settings | {"samplers": ["asd", "ddim-2"]}
    again = BenchFile.claim(tmp_path, other, machine | {"threads": 7}, resume=True)
    assert not read_bench(tmp_path)["complete"]
    assert not again.owes
    assert again.content["settings"]["samplers"] == ["ddpm", "ddim-2", "asd"]
    again.add_cell({"key": "a", "error": "none"})
    assert again.content["cells"][0]["machine"] == 1


def test_speedups_are_of_one_machine():
    ddpm, asd = (
        {
            "network": "n", "batch": 1, "steps": 100, "precision": "fp32", "engine": "eager",
            "kernels": "torch", "compile": False, "sampler": sampler, "latency_ms": {"p50": ms},
            "algorithmic_speedup": 10.0,
        }
        for sampler, ms in (("ddpm", 100.0), ("asd", 20.0))
    )  # fmt: skip
    for there, expected in ({}, 5.0), ({"machine": 0}, 5.0), ({"machine": 1}, None):
        cells = [ddpm, asd | there]
        add_speedups(cells)
        assert cells[1]["speedup"]["over_ddpm"] == expected


def test_who_stops_a_benchmark_is_told_what_goes_on_with_it(tmp_path, monkeypatch, run):
    cell = read_bench(ROOT / "eval" / "results" / "cpu-2-cores" / "one_chain.json")["cells"][0]

    def stopped(store, *rest):
        store.add_cell(cell)
        raise KeyboardInterrupt

    save_checkpoint(tmp_path / "it's", tiny_checkpoint())
    monkeypatch.setattr(bench, "measure", stopped)
    monkeypatch.chdir(tmp_path)
    status, _, said = run("bench", "--networks", "it's", "--device", "cpu", "--quick")
    assert status == 130
    (folder,) = Path("outputs/bench").iterdir()
    again = said.split("continue with\n")[1].splitlines()[0].strip()
    assert f"kept in {folder}; continue with" in said
    assert shlex.split(again) == [
        "asd-policy", "bench", "--networks", "it's", "--device", "cpu", "--out", str(folder),
        "--resume", "--quick",
    ]  # fmt: skip


def test_calls_against_steps_end_with_their_time_and_are_kept_as_they_come(tmp_path, monkeypatch):
    kept = read_bench(ROOT / "eval" / "results" / "cpu-2-cores" / "one_chain.json")
    store = BenchFile.claim(tmp_path, kept["settings"], kept["machine"][0], resume=False)
    times = iter([0.0, 0.0, 2.0])  # two sizes of the first form, and nothing of the second
    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: next(times))
        assert not bench.scale(store, True, lambda text: None, deadline=1.0)
    (first,) = read_bench(tmp_path)["calls_against_steps"]
    assert bench.scale(store, True, lambda text: None)
    found = read_bench(tmp_path)["calls_against_steps"]
    assert [one["form"] for one in found] == ["asd-paper", "asd-memory", "asd"]
    assert found[0] == first
