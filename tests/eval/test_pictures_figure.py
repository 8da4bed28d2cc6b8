"""The figure of the study of pictures, of kept cells alone."""

from __future__ import annotations

from asd_policy.eval.runs.pictures import BINS
from asd_policy.eval.studies.pictures.figures import plot_calls


def counts(sampler: str, steps: int, window: int, decided: float) -> dict:
    """A cell of calls.json."""
    return {
        "sampler": sampler, "steps": steps, "window": window, "chains": 1, "calls": 3.0,
        "calls_error": 0.0, "evaluations": 9.0, "decided": [decided] * BINS,
        "rejected": [0.0] * BINS,
    }  # fmt: skip


def test_the_figure_names_every_sampler_and_says_where_none_is(tmp_path):
    forms = [counts(name, 20, 20, 1.0) for name in ("asd", "asd-frozen", "asd-paper")]
    every = ["ddpm", "asd (default)", "asd-frozen (one call)", "asd-paper (published)"]
    for cells, wanted, empty in (
        ([counts("ddpm", 5, 5, 0.0), *forms], every, 0),
        ([counts("ddpm", 20, 8, 0.0)], ["ddpm", "accepted drafts:", "nothing to show"], 1),
    ):
        plot_calls({"cells": cells, "growth": {}}, tmp_path / "calls.svg")
        drawn = (tmp_path / "calls.svg").read_text()
        assert all(f"<!-- {text} -->" in drawn for text in wanted)
        assert drawn.count("<!-- nothing to show -->") == empty
