"""Places that cannot be written to, and text that looks like markup: one line, and as it is."""

import ast
import dataclasses
import io
import json
import os
from pathlib import Path

import pytest
from eval_standin import prepare
from rich.console import Console

import asd_policy
from asd_policy import files
from asd_policy.errors import OutputError, OutputExistsError
from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.files import check_output_folder, reserved, write_json, writing
from asd_policy.eval.show.page import write_page
from asd_policy.eval.show.terminal import print_report
from asd_policy.eval.studies.compare.options import CompareOptions
from asd_policy.eval.studies.compare.outcome import compare_sides
from asd_policy.eval.studies.compare.pairing import pairs_of
from asd_policy.eval.studies.compare.tables import print_comparison
from asd_policy.eval.studies.evaluate import evaluate

ODD = "a[/b]:smile:[red]x"


@pytest.fixture
def kept(tmp_path, quiet, capsys):
    """The folder of a run."""
    evaluate(EvalOptions(episodes=2, out=tmp_path / "run"), prepare=prepare, console=quiet)
    capsys.readouterr()
    return tmp_path / "run"


# --- places -------------------------------------------------------------------------------------

COMMANDS = (["eval"], ["rates"], ["tasks"], ["bench", "--quick"], ["verify"])


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize("place", ["file", "file/x", "/proc/x"])
def test_a_place_for_no_folder_is_one_line(refused, run, tmp_path, words, place):
    if place == "/proc/x" and not Path("/proc/self").exists():
        pytest.skip("no /proc here")
    (tmp_path / "file").write_text("mine")
    status, output, errors = run(*words, "--out", tmp_path / place)
    assert (status, output) == (2, "")
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert "must be a folder" in line or "could not be written" in line
    assert str(tmp_path / place) in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["file/y.json", "file/x/y.json"])
def test_a_place_for_no_json_is_one_line(run, tmp_path, kept, name):
    (tmp_path / "file").write_text("mine")
    status, output, errors = run("compare", kept, "--json", tmp_path / name)
    assert (status, output, len(errors.splitlines())) == (2, "", 1)
    assert errors.startswith("error: ")


@pytest.fixture
def read_only(kept, monkeypatch):
    """The run's folder takes no new file. (Tests may be root's, whom no mode stops.)"""
    real = os.open

    def refuse(path, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR) and str(path).startswith(str(kept)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, flags, *rest, **more)

    def refuse_to_write(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(files, "open", refuse_to_write, raising=False)
    return kept


def test_without_permission_it_is_one_line(run, read_only):
    for words in (["report", read_only], ["eval", "--resume", "--out", read_only]):
        status, output, errors = run(*words)
        assert (status, output) == (2, "")
        (line,) = errors.splitlines()
        assert line.startswith("error: ")
        assert line.endswith("could not be written: Permission denied")


def test_replay_is_refused_before_it_draws(run, kept, request):
    config = json.loads((kept / "config.json").read_text())
    config["settings"]["record"] = True
    (kept / "config.json").write_text(json.dumps(config))
    request.getfixturevalue("read_only")
    status, output, errors = run("replay", kept)
    assert (status, output) == (2, "")
    assert errors == f"error: {kept} could not be written: Permission denied\n"


def test_a_run_without_episodes_is_one_line(run, kept):
    (kept / "episodes.jsonl").unlink()
    for command in ("report", "replay", "compare"):
        status, _, errors = run(command, kept)
        assert status == 2
        assert "holds no episodes: episodes.jsonl: No such file" in errors
        assert "Traceback" not in errors


def test_what_was_made_for_nothing_is_removed(tmp_path):
    place = tmp_path / "a" / "b" / "c"
    check_output_folder(place)
    assert not list(tmp_path.iterdir())
    with reserved(place):
        write_json(place / "x.json", {})
    check_output_folder(place)
    assert [path.name for path in place.iterdir()] == ["x.json"]
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir(), "it was there before"


def test_an_error_inside_another_is_said_once(tmp_path):
    with (
        pytest.raises(OutputError, match=r"^in could not be written: full$"),
        writing(Path("out")),
        writing(Path("in")),
    ):
        raise OSError(28, "full")
    with pytest.raises(OutputExistsError, match="mine"), writing(Path("out")):
        raise OutputExistsError("mine")


# --- text ---------------------------------------------------------------------------------------


def test_names_are_printed_as_they_are(kept):
    """On a console that knows markup, too: a caller may bring one."""
    odd = kept.rename(kept.parent / ODD.replace("/", "%"))
    results = json.loads((odd / "results.json").read_text())
    console = Console(file=io.StringIO(), width=110)
    results["samplers"][ODD] = results["samplers"]["asd"]
    results["resolved"]["steps"][ODD] = 10
    print_report(console, results, odd)
    assert f"Kept: {odd}/" in console.file.getvalue()
    assert ODD in console.file.getvalue()
    console = Console(file=io.StringIO(), width=200)
    ((a, b),) = pairs_of(CompareOptions((odd,)))
    found = compare_sides(dataclasses.replace(a, sampler=ODD), b, 0.05, 0)
    print_comparison(console, found)
    assert console.file.getvalue().count(ODD) >= 2


def test_no_console_reads_markup():
    """Wherever rich prints a user's text: in eval and training consoles are made in one place, or
    say that they have no markup and no emoji."""
    root = Path(asd_policy.__file__).parents[1]
    made = 0
    for folder in ("eval", "asd_policy/training", "asd_policy/console.py"):
        there = root / folder
        for path in [there] if there.is_file() else sorted(there.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console":
                    off = {k.arg for k in node.keywords if ast.unparse(k.value) == "False"}
                    assert {"markup", "emoji"} <= off, f"{path}:{node.lineno}"
                    made += 1
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "TextColumn":
                    markup = [k for k in node.keywords if k.arg == "markup"]
                    text = ast.unparse(node.args[0])
                    assert markup or "fields" not in text or ":." in text, f"{path}:{node.lineno}"
                    assert markup or "description" not in text, f"{path}:{node.lineno}"
    assert made == 2


def test_a_report_page_is_written_whole(kept):
    before = (kept / "report.html").read_bytes()
    assert write_page(kept).read_bytes() == before
    assert not list(kept.glob("*.part"))
