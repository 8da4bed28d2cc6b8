"""Evaluations that go on until a comparison is decided."""

import dataclasses
import functools
import json
import shlex

import pytest
import tyro
from eval_schemas import check
from eval_standin import prepare

from asd_policy.errors import ConnectionLostError, OutputExistsError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.resume import evaluation_in, find_evaluation, parse
from asd_policy.eval.studies.compare.decide import continue_until_decided, evaluate_and_compare
from asd_policy.eval.studies.compare.options import CompareOptions, EvalAndCompareOptions
from asd_policy.eval.studies.compare.run import run_compare
from asd_policy.eval.studies.evaluate import evaluate

standin = functools.partial(evaluate, prepare=prepare)


def seeds(folder) -> int:
    return json.loads((folder / "results.json").read_text())["seeds"]["count"]


def test_it_ends_when_it_is_decided_and_goes_on_later(tmp_path, quiet, capsys):
    """The stand-in always succeeds, so that 90 seeds tell that neither is worse by 5 points."""
    options = EvalAndCompareOptions(
        compare=("asd", "ddpm"), until_decided=True, out=tmp_path / "run", budget=40
    )
    assert evaluate_and_compare(options, run=standin, console=quiet) == 2, "too few"
    assert seeds(options.out) == 40
    said = capsys.readouterr().err
    assert "After 20 seeds: asd 20, ddpm 20; e-values (20 decide): not worse" in said
    again = CompareOptions(
        (options.out,), until_decided=True, budget=500, json=tmp_path / "compare.json"
    )
    assert continue_until_decided(again, run=standin, console=quiet) == 0
    content = json.loads(again.json.read_text())
    check("compare", content)
    (found,) = content["comparisons"]
    assert found["verdict"]["word"] == "NOT WORSE"
    assert 60 < found["seeds"]["common"] == seeds(options.out) < 120
    assert found["sequential"]["log10_e"]["not_worse"] > 1.3
    low, high = found["sequential"]["difference_ci95"]
    assert -0.06 < low < 0 < high < 0.06


def test_a_run_that_is_there_is_gone_on_with_only_if_asked(tmp_path, quiet):
    options = EvalAndCompareOptions(
        compare=("asd", "ddpm"), out=tmp_path / "run", until_decided=True, budget=20
    )
    evaluate_and_compare(options, run=standin, console=quiet)
    with pytest.raises(OutputExistsError, match="add --resume"):
        evaluate_and_compare(options, run=standin, console=quiet)
    evaluate_and_compare(
        dataclasses.replace(options, resume=True, budget=30), run=standin, console=quiet
    )
    assert seeds(options.out) == 30


def test_what_was_finished_is_kept_and_how_to_go_on_is_said(tmp_path, quiet, capsys):
    options = EvalAndCompareOptions(
        compare=("asd", "ddpm"), until_decided=True, out=tmp_path / "run", margin=0.1
    )

    def interrupted(evaluation, **how):
        if evaluation.episodes > 20:
            raise KeyboardInterrupt
        standin(evaluation, **how)

    with pytest.raises(KeyboardInterrupt):
        evaluate_and_compare(options, run=interrupted, console=quiet)
    assert (
        f"asd-policy compare {options.out} --until-decided --samplers asd ddpm --margin 0.1 "
        "--budget 1000" in capsys.readouterr().err
    )
    assert seeds(options.out) == 20


def test_two_runs_grow_together(tmp_path, quiet):
    folders = tmp_path / "a", tmp_path / "b"
    for folder, episodes in zip(folders, (6, 9), strict=True):
        standin(EvalOptions(samplers=("asd",), episodes=episodes, out=folder), console=quiet)
    options = CompareOptions(folders, until_decided=True, margin=0.2)
    assert continue_until_decided(options, run=standin, console=quiet) == 0
    assert seeds(folders[0]) == seeds(folders[1]) > 9


def test_runs_of_other_first_seeds_grow_by_what_they_have_in_common(tmp_path, quiet):
    folders = tmp_path / "a", tmp_path / "b"
    for folder, first in zip(folders, (0, 15), strict=True):
        options = EvalOptions(samplers=("asd",), seed=first, episodes=20, out=folder)
        standin(options, console=quiet)
    asked = CompareOptions(folders, until_decided=True, budget=30, json=tmp_path / "c.json")
    assert continue_until_decided(asked, run=standin, console=quiet) == 2, "too few"
    assert [seeds(folder) for folder in folders] == [45, 30]
    assert json.loads(asked.json.read_text())["comparisons"][0]["seeds"]["common"] == 30


def test_how_to_go_on_has_all_that_was_asked(tmp_path, quiet, capsys):
    standin(EvalOptions(samplers=("asd", "ddpm"), episodes=3, out=tmp_path / "a"), console=quiet)
    asked = CompareOptions(
        (tmp_path / "a",), until_decided=True, seed=3, json=tmp_path / "c.json",
        allow_different_checkpoints=True,
    )  # fmt: skip

    def interrupted(evaluation, **how):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        continue_until_decided(asked, run=interrupted, console=quiet)
    words = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert tyro.cli(CompareOptions, args=words[2:]) == asked


def test_a_run_through_servers_goes_on_through_them(tmp_path, quiet):
    out = tmp_path / "run"
    standin(EvalOptions(samplers=("asd", "ddpm"), remote=("h:1", "h:2"), out=out), console=quiet)
    assert evaluation_in(out).remote == ("h:1", "h:2")
    words = ["--resume", "--out", str(out)]
    assert parse("eval", words, EvalAndCompareOptions, "", find_evaluation).remote == ("h:1", "h:2")


def test_an_evaluation_of_two_is_compared_at_its_end(tmp_path, quiet):
    options = EvalAndCompareOptions(compare=("asd", "ddpm"), out=tmp_path / "run", margin=0.5)
    assert evaluate_and_compare(options, run=standin, console=quiet) == 0
    assert seeds(options.out) == 20


def test_letters_of_several_samplers(tmp_path, quiet):
    names = ("asd", "ddpm", "ddim")
    standin(EvalOptions(samplers=names, out=tmp_path / "run"), console=quiet)
    kept = tmp_path / "run" / "episodes.jsonl"
    failed = [line.replace('"success":true', '"success":false') for line in kept.open()]
    lines = [f if '"sampler":"ddim"' in f else t for f, t in zip(failed, kept.open(), strict=True)]
    assert lines != list(kept.open())
    kept.write_text("".join(lines))
    options = CompareOptions((tmp_path / "run",), names, json=tmp_path / "c.json")
    run_compare(options, quiet)
    content = json.loads(options.json.read_text())
    check("compare", content)
    assert {row["sampler"]: row["letters"] for row in content["letters"]} == {
        "asd": "a", "ddpm": "a", "ddim": "b",
    }  # fmt: skip
    assert len(content["comparisons"]) == 3


def test_mistakes_are_one_sentence(run, tmp_path):
    for words, message in [
        (("eval", "--until-decided"), "needs --compare A B"),
        (("eval", "--margin", 0.2), "--margin needs --compare A B"),
        (("eval", "--budget", 5), "--budget needs --compare A B"),
        (("eval", "--compare", "asd", "dppm"), "--compare takes one or more of"),
        (("eval", "--compare", "asd"), "takes two samplers, got asd"),
        (("eval", "--compare", "asd", "asd"), "takes two samplers, got asd asd"),
        (
            ("compare", tmp_path, "--until-decided", "--budget", 0),
            "--budget must be a whole number",
        ),
        (("compare", tmp_path, "--budget", 5), "--budget needs --until-decided"),
        (("eval", "--compare", "asd", "ddpm", "--budget", 5), "--budget needs --until-decided"),
        (("compare", tmp_path, "--seed", -1), "--seed must be a whole number, 0 or more; got -1"),
        (("compare", tmp_path, "--until-decided", "--samplers", "a", "b", "c"), "also more"),
    ]:
        status, _, errors = run(*words)
        assert status == 2
        assert message in errors, errors
        assert errors.count("\n") <= 2, errors


@pytest.mark.parametrize("until", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ConnectionLostError])
def test_what_cut_it_short_leaves_the_comparison_to_go_on_with(
    tmp_path, quiet, capsys, until, error
):
    def cut(options, **given):
        standin(dataclasses.replace(options, episodes=4), **{**given, "console": quiet})
        raise error("x")

    options = EvalAndCompareOptions(
        compare=("asd", "ddpm"), margin=0.1, episodes=30, until_decided=until, out=tmp_path / "run"
    )
    with pytest.raises(error):
        evaluate_and_compare(options, run=cut, console=quiet)
    words = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert words[0] == "asd-policy"
    if until:
        again = tyro.cli(CompareOptions, args=words[2:])
        assert (again.samplers, again.margin) == (("asd", "ddpm"), 0.1)
        return
    asked = parse("eval", words[2:], EvalAndCompareOptions, "", find_evaluation)
    assert (asked.compare, asked.margin, asked.episodes) == (("asd", "ddpm"), 0.1, 30)
    assert evaluate_and_compare(asked, run=standin, console=quiet) == 0
    assert seeds(options.out) == 30


@pytest.mark.parametrize("until", [True, False])
def test_what_ended_before_it_began_leaves_nothing_to_go_on_with(tmp_path, quiet, capsys, until):
    def gone(options, **given):
        raise ConnectionLostError("nobody is there")

    options = EvalAndCompareOptions(
        compare=("asd", "ddpm"), until_decided=until, out=tmp_path / "run"
    )
    with pytest.raises(ConnectionLostError):
        evaluate_and_compare(options, run=gone, console=quiet)
    assert "continue with" not in capsys.readouterr().err
