"""report.html: what it shows is what the run kept."""

import copy
import dataclasses
import html.parser
import io
import json
import re
import shutil
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from eval_standin import prepare
from rich.console import Console

from asd_policy.eval.options import EvalOptions
from asd_policy.eval.runs.folder import read_run
from asd_policy.eval.show import page as module
from asd_policy.eval.show import page_figures
from asd_policy.eval.show.page import FORMATS, PAGE, render_page, write_page
from asd_policy.eval.show.terminal import print_report
from asd_policy.eval.stats.summary import summarize
from asd_policy.eval.studies.evaluate import evaluate

NAMES = ("asd", "ddpm", "ddim")
FIGURES = (
    "success/count", "success/ci95/0", "chunk_latency_ms/p99", "speedup/wall_clock",
    "overhead_ms_per_chunk/draft", "time/share/rendering", "chunks_over/step",
)  # fmt: skip


def content(folder):
    """The run's files, as JSON."""
    files = {n: json.loads((folder / n).read_text()) for n in ("results.json", "config.json")}
    files["env.json"] = json.loads((folder / "env.json").read_text())
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    return files | {"episodes.jsonl": [json.loads(line) for line in lines]}


# --- every number on the page is in a file of the run ---------------------------------------------


class Reader(html.parser.HTMLParser):
    """`numbers`: attributes and text of each <data>; `other`: all other text that is read."""

    SILENT = ("style", "svg", "script")

    def __init__(self, text):
        super().__init__()
        self.numbers, self.other, self.tags, self.captions = [], [], [], []
        self._open = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("data", *self.SILENT):
            self._open.append(tag)
        if tag == "data":
            self.numbers.append([dict(attributes), ""])

    def handle_endtag(self, tag):
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data):
        if not self._open:
            self.other.append(data)
        elif self._open[-1] == "data":
            self.numbers[-1][1] += data


def resolve(files, reference):
    """The value at a JSON pointer, by the standard (RFC 6901)."""
    name, _, pointer = reference.partition("#")
    value = files[name]
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def untraced(page, files):
    """What the page shows that the files do not say."""
    reader = Reader(page)
    wrong = []
    for attributes, text in reader.numbers:
        value = resolve(files, attributes["title"])
        expected = "–" if value is None else FORMATS[attributes["data-as"]](value)
        if text != expected or json.loads(attributes["value"]) != value:
            wrong.append((attributes["title"], text, expected))
    known = re.compile(r"95%|\bp(50|95|99)\b|SHA-256")  # words of the page, not figures
    rest = known.sub("", " ".join(reader.other))
    return wrong + re.findall(r"\S*\d\S*", rest)


def test_every_number_on_the_page_is_in_a_file_of_the_run(folder, page):
    assert untraced(page, content(folder)) == []
    shown = Reader(page).numbers
    for name in NAMES:  # and the figures that matter are shown
        places = {attributes["title"] for attributes, _ in shown}
        for figure in FIGURES:
            assert f"results.json#/samplers/{name}/{figure}" in places


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (r'(data-as="number">)[\d.]+', r"\g<1>77.7"),  # a figure that no file holds
        (r'(samplers/asd/success/)count"', r'\1n" '),  # the right figure of another place
        ("</h1>", " 4.02x faster</h1>"),  # a number that is not taken from anywhere
    ],
)
def test_a_number_that_no_file_holds_is_found(folder, page, before, after):
    changed, count = re.subn(before, after, page, count=1)
    assert count == 1
    assert untraced(changed, content(folder))


def numbers_of(value):
    """Every way in which the table writes the numbers of a JSON value."""
    if isinstance(value, dict):
        return set().union(*map(numbers_of, [*value, *value.values()]))
    if isinstance(value, list):
        return set().union(*map(numbers_of, value))
    if isinstance(value, bool) or value is None:
        return set()
    if isinstance(value, (int, float)):
        size, percent = abs(value), 100 * abs(value)  # a sign is no part of what is looked for
        forms = f"{size:.0f}", f"{size:.1f}", f"{size:.2f}", f"{percent:.0f}", f"{percent:.1f}"
        return {str(size), *forms}
    return set(re.findall(r"\d+(?:\.\d+)?", value))


def printed_but_not_in(printed, results):
    """Numbers of the printed table, given what it was printed from, that `results` lacks."""
    console = Console(file=io.StringIO(), width=120)
    print_report(console, printed, folder=Path("run"))
    text = re.sub(r"95%|p50|p95", "", console.file.getvalue())
    return set(re.findall(r"\d+(?:\.\d+)?", text)) - numbers_of(results)


def test_every_number_that_is_printed_is_in_results_json(folder):
    results = content(folder)["results.json"]
    assert printed_but_not_in(results, results) == set()


@pytest.mark.parametrize(
    "place",
    [
        "success/count", "success/n", "network_calls_per_chunk", "network_evaluations_per_chunk",
        "chunk_latency_ms/p50", "chunk_latency_ms/p95", "control_step_latency_ms/p95",
        "speedup/wall_clock", "speedup/algorithmic", "overhead_ms_per_chunk/draft",
        "overhead_ms_per_chunk/network", "overhead_ms_per_chunk/verify", "time/total_s",
        "overhead_ms_per_chunk/other", "chunk_latency_ms/first", "time/share/policy",
        "window/chunks_by_window",
    ],
)  # fmt: skip
def test_a_printed_number_that_is_not_in_results_json_is_found(folder, place):
    results = content(folder)["results.json"]
    other = copy.deepcopy(results)
    *path, last = place.split("/")
    where = other["samplers"]["asd"]
    for key in path:
        where = where[key]
    strange = {int: 98765, float: 98765.4321, dict: {"98765": 1}}
    where[last] = strange[type(where[last])]
    assert printed_but_not_in(other, results)


def test_results_are_recomputed_from_episodes_and_a_changed_line_changes_them(folder, tmp_path):
    kept = content(folder)["results.json"]
    assert json.loads(json.dumps(summarize(*read_run(folder)))) == kept
    copied = shutil.copytree(folder, tmp_path / "copy")
    lines = (copied / "episodes.jsonl").read_text().splitlines()
    for key, change in (("success", lambda v: not v), ("steps", lambda v: v + 1),
                        ("policy_s", lambda v: v + 1.0)):  # fmt: skip
        line = json.loads(lines[0])
        line[key] = change(line[key])
        (copied / "episodes.jsonl").write_text("\n".join([json.dumps(line), *lines[1:]]) + "\n")
        assert summarize(*read_run(copied)) != kept, key


# --- the figures ----------------------------------------------------------------------------------


def test_the_figures_draw_the_results(folder):
    results = content(folder)["results.json"]
    samplers = results["samplers"]
    latency = page_figures.latency_figure(results)
    for axes, name in zip(latency.axes, NAMES, strict=True):
        values, edges, _ = axes.patches[0].get_data()
        assert list(values) == samplers[name]["chunk_latency_histogram"]
        assert list(edges) == results["latency_bins_ms"]
        assert [line.get_xdata()[0] for line in axes.lines] == [50.0, 200.0]
        assert sum(values) == samplers[name]["chunks"] > 0
    success = page_figures.success_figure(results).axes[0]
    for row, name in enumerate(NAMES):
        bar, dot = success.lines[2 * row : 2 * row + 2]
        assert list(bar.get_xdata()) == samplers[name]["success"]["ci95"]
        assert list(dot.get_xdata()) == [samplers[name]["success"]["rate"]]
    heat = page_figures.acceptance_figure(results).axes[0].collections[0].get_array()
    assert np.ravel(heat).tolist() == samplers["asd"]["acceptance_by_step"]
    calls = page_figures.calls_figure(results).axes[0]
    for line, name in zip(calls.lines, NAMES, strict=True):
        rows = [row for row in samplers[name]["calls_by_chunk"] if row["episodes"]]
        assert list(line.get_ydata()) == [row["mean"] for row in rows]


@pytest.mark.parametrize(
    ("draw", "key"),
    [
        (page_figures.chunk_time_figure, "overhead_ms_per_chunk"),
        (page_figures.run_time_figure, "time"),
    ],
)
def test_the_bars_draw_the_split_of_the_time(folder, draw, key):
    results = content(folder)["results.json"]
    for bars in draw(results).axes[0].containers:
        for bar, name in zip(bars, NAMES, strict=True):
            summary = results["samplers"][name][key]
            share = summary["share"] if key == "time" else summary
            assert bar.get_width() == pytest.approx(share[bars.get_label()])


def test_samplers_are_told_apart_by_colour():
    names = ("asd", "asd-slope", "asd-memory", "asd-frozen", "asd-paper", "ddpm", "ddim")
    shades = [matplotlib.colors.to_hex(page_figures.colour(name)) for name in names]
    assert len(set(shades)) == len(names)


# --- one file, the same every time, whatever the run holds ----------------------------------------


def test_the_same_run_gives_the_same_page(folder, page, tmp_path):
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    (elsewhere / "results.json").unlink()  # it is computed, from config.json and episodes.jsonl
    assert write_page(elsewhere).read_bytes() == page.encode()


def test_ids_are_unique_and_labels_point_to_them(page):
    tags = Reader(page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labels = {a["aria-labelledby"] for _, a in tags if "aria-labelledby" in a}
    assert labels
    assert labels <= set(ids)
    used = re.findall(r'(?:xlink:href="|url\()#([^")]+)', page)
    assert used
    assert set(used) <= set(ids)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")


def test_nothing_is_loaded_from_elsewhere(page):
    places = [a[k] for _, a in Reader(page).tags for k in ("src", "href", "xlink:href") if k in a]
    assert places
    assert all(place.startswith(("#", "data:")) for place in places)
    assert "script" not in {tag for tag, _ in Reader(page).tags}


def test_whatever_the_run_holds_is_text(folder):
    config, episodes = read_run(folder)
    evil = "<script>alert(1)</script>$\\frac{\"'&"
    config = json.loads(json.dumps(config).replace('"asd"', '"EVIL"'))
    config["settings"]["task"] = config["command"] = evil
    config = json.loads(json.dumps(config).replace("EVIL", json.dumps(evil)[1:-1]))
    renamed = [dataclasses.replace(e, sampler=e.sampler.replace("asd", evil)) for e in episodes]
    env = json.loads((folder / "env.json").read_text()) | {"cpu": evil, "versions": {evil: evil}}
    # Only a known name is looked for among the forms of ASD: the window of another is not shown.
    reader = Reader(
        render_page(config, env, renamed, folder / "videos", summarize(config, renamed))
    )
    assert "script" not in {tag for tag, _ in reader.tags}
    assert sum(evil in text for text in reader.other) > 5
    assert sum(evil in text for _, text in reader.numbers) > 3


def test_failures_come_first(folder, page):
    order = re.findall(r'<b class="(success|failure)">', page)
    assert order == sorted(order)  # "failure" < "success"
    table = page[page.index("Outcome and steps") :]
    rows = re.findall(r"<tr>.*?</tr>", table, re.S)[1:]
    failed = ["failure" in row for row in rows]
    assert failed == sorted(failed, reverse=True)
    assert any(failed)
    assert not all(failed)


def test_films_are_held_where_small_and_linked_where_large(folder, page, monkeypatch, tmp_path):
    films = [a["src"] for tag, a in Reader(page).tags if tag == "video"]
    assert len(films) == 2 * len(NAMES)
    assert all(film.startswith("data:video/mp4;base64,") for film in films)
    assert "films are part of this page" in page
    monkeypatch.setattr(module, "EMBEDDED_BYTES", 100)
    copied = shutil.copytree(folder, tmp_path / "copy")
    text = write_page(copied).read_text()
    films = [a["src"] for tag, a in Reader(text).tags if tag == "video"]
    assert all((copied / film).is_file() for film in films)
    assert "too large together" in text


def test_a_run_without_an_episode_has_a_page(folder):
    config, _ = read_run(folder)
    env = json.loads((folder / "env.json").read_text())
    text = render_page(config, env, [], folder / "none", summarize(config, []))
    assert "Not complete." in text
    assert "none finished yet" in text
    assert "No episode was filmed" in text


def test_a_busy_machine_and_a_batch_are_said(folder):
    config, episodes = read_run(folder)
    config["settings"]["num_envs"] = 3
    busy = [dataclasses.replace(e, processor_wait_s=0.5 * e.wall_s) for e in episodes]
    env = json.loads((folder / "env.json").read_text())
    page = render_page(config, env, busy, folder, summarize(config, busy))
    text = " ".join(" ".join(Reader(page).other).split())
    assert "The machine was busy with other work." in text
    assert "robots in one batch." in text


def test_how_late_chunks_came_is_on_the_page(tmp_path, quiet):
    """And where they came late by what they took, success is of the machine's load as well."""
    options = EvalOptions(
        samplers=("asd",), episodes=2, horizon=12, delay=120.0, control_rate=40.0,
        out=tmp_path / "run",
    )  # fmt: skip
    evaluate(options, prepare=prepare, console=quiet)
    config, episodes = read_run(options.out)
    env = json.loads((options.out / "env.json").read_text())
    busy = [dataclasses.replace(e, processor_wait_s=0.5 * e.wall_s) for e in episodes]
    found = summarize(config, busy)

    def told() -> str:
        page = Reader(render_page(config, env, busy, options.out, found))
        shown = {one["title"] for one, _ in page.numbers}
        for name in ("control_rate_hz", "delay_ms/p50", "held_steps", "useless_chunks"):
            assert any(place.endswith(f"samplers/asd/deadlines/{name}") for place in shown), shown
        return " ".join(" ".join(page.other).split())

    assert "calls, acceptance and success are." in told()
    found["samplers"]["asd"]["deadlines"]["delay"] = "measured"
    text = told()
    assert "How late chunks came, while the world went on" in text
    assert "nor, as chunks came late by what they took, is success" in text
    assert "so scenes come out the same" in text


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_the_page_again(run, folder, page, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    (copied / PAGE).unlink()
    status, output, errors = run("report", copied)
    assert (status, output) == (0, f"{copied / PAGE}\n"), errors
    assert (copied / PAGE).read_text() == page


def test_a_folder_without_a_run_is_refused(refused, tmp_path):
    refused(r"error: expected an evaluation's folder with a config.json", "report", tmp_path)
    refused(r"RUN-FOLDER|required", "report")


def test_a_run_of_another_form_is_refused(refused, folder, tmp_path):
    copied = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"schema_version": 1}))
    refused(r"error: expected a run of schema version 2, got 1", "report", copied)
