"""The study of pictures: its commands on a tiny model."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_schemas import check

from asd_policy.errors import AsdPolicyError, InputError


def test_features_are_standardized_by_the_training_pictures():
    from asd_policy.eval.studies.pictures.features import standardized

    data = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    ours = standardized(lambda x: x.double().numpy(), data)
    assert ours(data).tolist() == [[-1, 0], [1, 0]]
    assert ours(torch.tensor([[5.0, 6.0]])).tolist() == [[3, 1]]


# ---- the commands --------------------------------------------------------------------------------

TINY = {"blocks": (8, 8), "groups": 4, "steps": 6, "batch": 4, "chain": 20}


@pytest.fixture
def study(monkeypatch):
    """The command, with a tiny model of digits and short trainings."""
    pytest.importorskip("diffusers")
    pytest.importorskip("diffusers.pipelines.ddpm")
    pytest.importorskip("sklearn")
    from asd_policy.eval.studies.pictures import distances, models, train
    from asd_policy.eval.studies.pictures.__main__ import main

    tiny = dataclasses.replace(models.MODELS["digits"], **TINY)
    monkeypatch.setitem(models.MODELS, "digits", tiny)
    monkeypatch.setattr(train, "KEEP_EVERY", 2)
    monkeypatch.setattr(train, "PASSES", 1)
    monkeypatch.setattr(distances, "REPEATS", 20)
    return lambda *words: main(list(words))


def test_one_command_makes_a_pipeline_of_diffusers(study, tmp_path, capsys):
    from diffusers import DDPMPipeline

    import asd_policy.integrations.diffusers as asd

    out = f"--out={tmp_path}"
    assert study("calls", "digits", out) == 2
    assert "train digits` makes it" in capsys.readouterr().err
    assert study("train", "digits", out) == 0
    assert study("train", "digits", out) == 0, "it is there"
    assert not (tmp_path / "digits" / "training.pt").exists()
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "digits" / "pipeline")
    found = asd.sample(pipeline, 2, torch.Generator().manual_seed(0), output_type="np")
    assert found.images.shape == (2, 8, 8, 1)
    assert 1 < int(found.stats.calls.max()) < 20


def test_costs_are_counted_and_gone_on_with(study, tmp_path, capsys):
    out, file = f"--out={tmp_path}", tmp_path / "digits" / "calls.json"
    few = ("--steps", "5", "10", "20", "--window=8", "--chains=3")
    study("train", "digits", out)
    assert study("calls", "digits", out, *few, "--windows", "4") == 0
    first = json.loads(file.read_text())
    check("pictures_calls", first, [("cells/0/calls", "9"), ("cells/0/rejected", [0.0])])
    assert study("calls", "digits", out, *few, "--windows", "4", "20") == 0
    found = json.loads(file.read_text())
    assert found["cells"][: len(first["cells"])] == first["cells"], "they are not drawn again"
    cells = {(c["sampler"], c["steps"], c["window"]): c for c in found["cells"]}
    assert len(cells) == len(found["cells"]) == 3 * 5
    for (sampler, steps, window), each in cells.items():
        assert 1 <= each["calls"] <= each["evaluations"]
        assert each["calls"] <= steps * (2 if sampler == "asd-paper" else 1)
        assert sum(each["decided"]) == pytest.approx(steps - 1, abs=0.1), "each step but the last"
        # A round of one call ends at a rejection or at its window's end.
        if sampler != "asd-paper":
            assert each["calls"] <= sum(each["rejected"]) + steps / window + 1.1
    assert set(found["growth"]) == {"asd", "asd-frozen", "asd-paper"}
    logs = [np.log([cells["asd", k, min(8, k)]["calls"], k]) for k in (5, 10, 20)]
    slope = np.polyfit([k for _, k in logs], [c for c, _ in logs], 1)[0]
    assert found["growth"]["asd"]["exponent"] == pytest.approx(slope)
    assert (tmp_path / "digits" / "calls.svg").exists()
    told = capsys.readouterr().out
    assert "about as K^" in told
    assert all(len(line.rstrip()) <= 80 for line in told.splitlines() if "Kept" not in line)
    assert study("calls", "digits", out, "--steps", "5", "--window=3", "--chains=4") == 0
    again = json.loads(file.read_text())
    of = {(tuple(each["steps"]), each["window"]) for each in again["growth"].values()}
    assert of == {((5, 10, 20), 8)}, "with which steps were counted"
    assert study("calls", "digits", out, *few[:-1], "--chains=4", "--windows", "4") == 0
    again = {
        (c["sampler"], c["steps"], c["window"]): c for c in json.loads(file.read_text())["cells"]
    }
    assert again.keys() > cells.keys()
    assert {c["chains"] for (_, _, window), c in again.items() if window < 20} == {4}
    changed = found | {"settings": found["settings"] | {"parameters": 1}}
    file.write_text(json.dumps(changed))
    assert study("calls", "digits", out, *few) == 2
    assert "--parameters: 1 there" in capsys.readouterr().err


def test_pictures_are_drawn_judged_and_more_of_them(study, tmp_path, capsys):
    out, file = f"--out={tmp_path}", tmp_path / "digits" / "quality.json"
    study("train", "digits", out)
    few = ("--batch=3", "--window=8", "--samplers", "ddpm", "ddpm-again", "asd", "ddim-50")
    assert study("quality", "digits", out, "--pictures=5", *few[:3], "ddpm", "asd") == 2
    assert "ddpm-again among them" in capsys.readouterr().err
    words = [w.replace("ddim-50", "ddim-10") for w in few]
    assert study("quality", "digits", out, "--pictures=5", *words) == 2, "others than these"
    assert study("quality", "digits", out, "--pictures=5", *few[:-1]) == 0
    kept = sorted((tmp_path / "digits" / "samples").glob("*/*.npz"))
    times = [path.stat().st_mtime_ns for path in kept]
    assert study("quality", "digits", out, "--pictures=7", *few[:-1]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == times, "they are not drawn again"
    found = json.loads(file.read_text())
    check("pictures_quality", found, [("samplers/asd/to_ddpm/frechet/ci95", [0.0])])
    assert list(found["samplers"]) == ["ddpm", "ddpm-again", "asd"]
    assert {s["pictures"] for s in found["samplers"].values()} == {7}
    assert found["samplers"]["ddpm"]["to_ddpm"] is None
    assert found["samplers"]["ddpm"]["calls"] == 20
    assert found["samplers"]["asd"]["calls"] < 20
    assert found["data"] == 1797
    assert (tmp_path / "digits" / "quality_samples.webp").stat().st_size > 1000
    with np.load(kept[0]) as one, np.load(kept[-1]) as other:
        assert one["pictures"].dtype == np.uint8
        assert not np.array_equal(one["pictures"], other["pictures"]), "streams of their own"
    capsys.readouterr()
    assert study("quality", "digits", out, "--pictures=7", "--batch=2", *few[1:-1]) == 2
    assert "--batch: 3 there, 2 now" in capsys.readouterr().err
    kept[0].write_bytes(b"half")
    assert study("quality", "digits", out, "--pictures=7", *few[:-1]) == 2
    assert "0000.npz is damaged" in capsys.readouterr().err


def test_time_is_kept_turn_by_turn(study, tmp_path, capsys):
    study("train", "digits", f"--out={tmp_path}")
    words = (
        "clock",
        "digits",
        f"--out={tmp_path}",
        "--batches",
        "1",
        "2",
        "--windows",
        "4",
        "--steps=20",
    )
    assert study(*words, "--turns=1") == 0
    assert study(*words, "--turns=2") == 0
    found = json.loads((tmp_path / "digits" / "clock.json").read_text())
    check("pictures_clock", found, [("cells/0/wall_s", [-1.0])])
    assert len(found["cells"]) == 6
    assert study(*words, "--turns=2", "--windows", "4", "50") == 0  # 50 of 20 steps are 20
    assert study(*words, "--turns=2", "--windows", "50") == 0
    wide = json.loads((tmp_path / "digits" / "clock.json").read_text())["cells"]
    assert sorted(c["window"] for c in wide if c not in found["cells"] and not c["auto"]) == [
        20,
        20,
    ]
    assert {len(c["wall_s"]) for c in found["cells"]} == {2}
    sequential = [c for c in found["cells"] if c["window"] == 1 and not c["auto"]]
    assert [c["calls"] for c in sequential] == [20, 20]
    assert study(*words[:-1], "--steps=10") == 2
    assert "--steps: 20 there, 10 now" in capsys.readouterr().err
    assert study(*words, "--engine=openvino") == 2
    assert "--engine: eager there, openvino now" in capsys.readouterr().err


def test_on_a_gpu_the_clock_on_the_wall_counts(capsys):
    """There the processor waits, and what it takes says little."""
    from asd_policy.console import plain_console
    from asd_policy.eval.studies.pictures.tables import print_clock

    cell = {"batch": 1, "auto": False, "evaluations": 9.0}
    cells = [
        cell | {"window": 1, "calls": 20.0, "processor_s": [1.0], "wall_s": [8.0]},
        cell | {"window": 4, "calls": 6.0, "processor_s": [0.5], "wall_s": [2.0]},
    ]
    settings = {"model": "digits", "parameters": 5, "cpu": "a processor", "threads": 1}
    for gpu, told, shown in (None, "a processor", "2.00x"), ("a GPU", "a GPU", "4.00x"):
        found = {"cells": cells, "steps": 20, "settings": settings | {"gpu": gpu}}
        print_clock(plain_console(), found)
        said = capsys.readouterr().out
        assert shown in said
        assert f"5 parameters; {told}, 1 thread" in said
        assert ("CPU s" in said) == (gpu is None)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


KILLED = """
import dataclasses, sys, time
from asd_policy.eval.studies.pictures import models, train
from asd_policy.eval.studies.pictures.__main__ import main
tiny = dataclasses.replace(models.MODELS["digits"], **{tiny})
models.MODELS["digits"], train.KEEP_EVERY, loss = tiny, 2, train._loss
def slow(*given):
    time.sleep(60 * (given[-1] == 5))  # in the sixth step
    return loss(*given)
train._loss = slow
main(["train", "digits", "--out", sys.argv[1]])
"""


def test_a_training_that_was_killed_ends_as_one_that_was_not(study, tmp_path, capsys):
    out, folder = tmp_path / "killed", tmp_path / "killed" / "digits"
    program = [sys.executable, "-c", KILLED.replace("{tiny}", repr(TINY)), str(out)]
    process = subprocess.Popen(program, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            if (folder / "training.pt").exists():
                there = torch.load(folder / "training.pt", weights_only=True)["step"]
                if there == 4:
                    break
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert torch.load(folder / "training.pt", weights_only=True)["step"] == 4
    assert study("train", "digits", f"--out={out}", "--seed=1") == 2
    assert "--seed: 0 there, 1 now" in capsys.readouterr().err
    assert study("train", "digits", f"--out={out}") == 0
    assert study("train", "digits", f"--out={tmp_path / 'whole'}") == 0
    ours, whole = weights(folder), weights(tmp_path / "whole" / "digits")
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    capsys.readouterr()


def test_mistakes_are_one_sentence(study, tmp_path, capsys):
    out = f"--out={tmp_path}"
    for words, said in [
        (("train", "digits", out, "--steps=0"), "are 1 or more; got 0"),
        (("quality", "scenes", out), "holds no pipeline"),
        (("clock", "digits", out, "--turns=0"), "numbers from 1 on"),
        (("calls", "digits", out, "--chains=0"), "numbers from 1 on"),
        (("calls", "digits", out, "--samplers", "asd", "nope"), "sampler must be one of asd, "),
        (("quality", "digits", out, "--samplers", "ddpm"), "some of ddpm, ddpm-again, asd, par"),
        (("quality", "digits", out, "--samplers", "ddpm", "asd"), "among them; got ddpm, asd"),
        (("clock", "digits", out, "--engine=nope"), "--engine is one of auto, eager, "),
        (("calls", "digits", out, "--device=cuda:9"), "can use here (cpu"),
        (("quality", "digits", out, "--device=gpu"), "got 'gpu'"),
    ]:
        assert study(*words) == 2
        told = capsys.readouterr().err
        assert told.startswith("error: ")
        assert said in told
        assert told.count("\n") == 1


@pytest.mark.parametrize("command", ["train", "calls", "quality", "clock"])
def test_help_and_mistakes_name_the_models(study, command, capsys):
    for words, status in (("--help",), 0), (("faces",), 2):
        with pytest.raises(SystemExit) as end:
            study(command, *words)
        assert end.value.code == status
        told = capsys.readouterr()
        assert all(name in told.out + told.err for name in ("digits", "scenes"))


def test_more_steps_than_were_trained_are_refused_before_any_work(study, tmp_path, capsys):
    out = f"--out={tmp_path}"
    study("train", "digits", out)
    for command in ("calls", "clock"):
        capsys.readouterr()
        assert study(command, "digits", out, "--steps=21") == 2
        assert "--steps takes numbers up to 20, those that" in capsys.readouterr().err
        assert not (tmp_path / "digits" / f"{command}.json").exists()


def test_missing_packages_are_named(study, tmp_path, capsys, monkeypatch):
    for missing in ("diffusers", "sklearn.datasets"):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, missing, None)
            assert study("train", "digits", f"--out={tmp_path}") == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert told.startswith("error: ")
        assert "pip install" in told


def test_inceptions_weights_are_taken_where_they_are(tmp_path):
    from asd_policy.eval.studies.pictures.features import inception_features

    path = tmp_path / "inception.pth"
    torch.save({"a": torch.zeros(1)}, path)
    try:
        from torchvision.models import inception_v3
    except ImportError:
        with pytest.raises(InputError, match="need torchvision"):
            inception_features(path)
        return
    with pytest.raises(InputError, match="no weights of Inception v3"):
        inception_features(path)
    torch.save(inception_v3(weights=None, init_weights=False).state_dict(), path)
    features = inception_features(path)(torch.zeros(2, 1, 8, 8))
    assert features.shape == (2, 2048)
    assert np.isfinite(features).all()


def test_scenes_are_rendered_once(tmp_path, monkeypatch):
    pytest.importorskip("robosuite")
    from gymnasium.error import DependencyNotInstalled

    from asd_policy.envs.rendering import choose_backend
    from asd_policy.eval.studies.pictures import scenes

    try:
        choose_backend()
    except DependencyNotInstalled as error:
        pytest.skip(str(error))
    monkeypatch.setattr(scenes, "TASKS", ("lift",))
    monkeypatch.setattr(scenes, "MOMENTS", 2)
    scenes.make_scenes(tmp_path, 1)
    pictures, labels, names = scenes.read_scenes(tmp_path, 1)
    assert pictures.shape == (4, 32, 32, 3)
    assert labels.tolist() == [0, 1, 0, 1]
    assert names == ("lift agentview", "lift frontview")
    assert len({picture.tobytes() for picture in pictures}) == 4
    (file,) = tmp_path.glob("*.npz")
    before = file.stat().st_mtime_ns
    scenes.make_scenes(tmp_path, 1)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(AsdPolicyError, match="is damaged"):
        scenes.read_scenes(tmp_path, 1)
