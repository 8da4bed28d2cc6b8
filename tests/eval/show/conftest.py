"""One run for all that is said of a page."""

import io

import pytest
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.folder import read_run
from asd_policy.eval.show.page import PAGE
from asd_policy.eval.studies.evaluate import evaluate


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A run with films, in which some seeds fail and some do not."""
    out = tmp_path_factory.mktemp("report") / "run"
    options = EvalOptions(samplers=("asd", "ddpm", "ddim"), episodes=6, horizon=9, video=2, out=out)
    evaluate(options, prepare=prepare, console=Console(file=io.StringIO(), width=100))
    outcomes = {episode.success for episode in read_run(out)[1]}
    assert outcomes == {True, False}, "the stand-in's horizon is chosen so that both occur"
    return out


@pytest.fixture
def page(folder):
    return (folder / PAGE).read_text()
