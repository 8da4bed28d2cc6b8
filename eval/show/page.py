"""report.html: a run as one page that needs nothing but itself (and films too large to hold).

Every number on it is taken from a file of the run by its JSON pointer, which the page keeps beside
the number: hover over one, or read its `title`. The same run gives the same page, byte for byte.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from PIL import Image

from asd_policy.eval.rollout.video import middle_frame
from asd_policy.eval.runs.episode import Episode
from asd_policy.eval.runs.evaluation import Results
from asd_policy.eval.runs.files import write_text
from asd_policy.eval.runs.folder import Run, open_run
from asd_policy.eval.runs.formats import MISSING, duration, number, times
from asd_policy.eval.samplers import law_of
from asd_policy.eval.show.headline import REFERENCE, STYLES, headlines
from asd_policy.eval.show.page_figures import page_figures
from asd_policy.eval.show.terminal import is_busy, load_counts
from asd_policy.eval.show.windows import (
    base_command,
    fixed_options,
    sampled_sequentially,
    window_text,
    windows_differ,
)
from asd_policy.eval.stats.summary import summarize

Json = dict[str, Any]
PAGE = "report.html"
EMBEDDED_BYTES = 4_000_000  # of films together: above it, a page becomes slow to open and to send
_SHOWN_SEEDS = 500  # rows of the table of episodes; failures come first
_POSTERS = 24  # films with a picture to start with: each takes a quarter of a second to read
_POSTER_WIDTH = 320  # pixels

FORMATS: dict[str, Callable[[Any], str]] = STYLES | {
    "text": str,
    "number": number,
    "times": times,
    "percent": lambda value: f"{100 * value:.0f}%",
    "rate": lambda value: f"{100 * value:.1f}%",
    "p": lambda value: "< 0.001" if value < 0.001 else f"{value:.{2 if value >= 0.01 else 3}f}",
    "wait": lambda value: f"{value:.2f}",
    "seconds": lambda value: duration(1e3 * value),
    "window": window_text,
    "command": base_command,
}


def write_page(folder: Path) -> Path:
    """Read the run in `folder`, compute its summary, and write its page; returns the page's path.

    Raises:
        ValueError: the folder holds no run, one of another schema version, or a damaged line.
        OutputError: the page cannot be written.
    """
    run = open_run(folder)
    return keep_page(run, summarize(run.config, run.episodes))


def keep_page(run: Run, results: Results) -> Path:
    """Write report.html of a run whose summary was computed; returns its path.

    Raises: as `write_page`.
    """
    page = render_page(run.config, run.env(), run.episodes, run.path / "videos", results)
    write_text(run.path / PAGE, page)
    return run.path / PAGE


def render_page(
    config: Json, env: Json, episodes: Sequence[Episode], videos: Path, results: Results
) -> str:
    """The page of a run.

    Args:
        config, env, episodes: content of config.json, env.json and episodes.jsonl.
        videos: the folder of the run's films; it need not exist.
        results: content of results.json.
    """
    files = {
        "results.json": results,
        "config.json": config,
        "env.json": env,
        "episodes.jsonl": [json.loads(episode.to_line()) for episode in episodes],
    }
    films, embedded = _films(config["settings"], episodes, videos)
    names, busy = list(results["samplers"]), is_busy(results)
    return (
        _template()
        .render(
            show=_Shower(files),
            results=results,
            config=config,
            env=env,
            names=names,
            headlines=headlines(results, busy),
            laws={name: law_of(name) for name in names},
            reference=REFERENCE if REFERENCE in names else names[0],
            figures={name: Markup(svg) for name, svg in page_figures(dict(results)).items()},
            busy=busy,
            load_counts=load_counts(results),
            sequential=sampled_sequentially(results),
            fixed=fixed_options(config, results),
            windows_differ=windows_differ(results),
            seeds=_by_seed(episodes)[:_SHOWN_SEEDS],
            more_seeds=len(_by_seed(episodes)) > _SHOWN_SEEDS,
            successes={i for i, episode in enumerate(episodes) if episode.success},
            films=films,
            embedded=embedded,
        )
        .lstrip()
    )


class _Shower:
    """`show(format, file, *keys)`: a value of a file of the run as text, with its pointer."""

    def __init__(self, files: Json):
        self._files = files

    def __call__(self, style: str, file: str, *keys: Any) -> Markup:
        value = self._files[file]
        for key in keys:
            value = value[key]
        text = MISSING if value is None else FORMATS[style](value)
        pointer = "".join("/" + str(k).replace("~", "~0").replace("/", "~1") for k in keys)
        return Markup('<data value="{}" title="{}#{}" data-as="{}">{}</data>').format(
            json.dumps(value), file, pointer, style, text
        )


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("asd_policy.eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _by_seed(episodes: Sequence[Episode]) -> list[Json]:
    """{"seed", "lines": sampler → index of its line}, seeds at which something failed first."""
    lines: dict[int, dict[str, int]] = {}
    failed: set[int] = set()
    for index, episode in enumerate(episodes):
        lines.setdefault(episode.seed, {})[episode.sampler] = index
        if not episode.success:
            failed.add(episode.seed)
    order = sorted(lines, key=lambda seed: (seed not in failed, seed))
    return [{"seed": seed, "lines": lines[seed]} for seed in order]


def _films(
    settings: Json, episodes: Sequence[Episode], videos: Path
) -> tuple[list[dict[str, Any]], bool]:
    """The run's films, failures first, and whether the page holds them: it does where they are
    small together, else it links to them."""
    names, found = settings["samplers"], []
    order = [(e.success, e.seed, names.index(e.sampler), i) for i, e in enumerate(episodes)]
    for success, seed, which, line in sorted(order):
        outcome = "success" if success else "failure"
        path = videos / f"{settings['task']}_seed{seed}_{names[which]}_{outcome}.mp4"
        if path.is_file():
            found.append((line, episodes[line], path))
    embedded = sum(path.stat().st_size for *_, path in found) <= EMBEDDED_BYTES
    films = [
        {
            "line": line,
            "episode": episode,
            "source": _source(path, embedded),
            "poster": _poster(path) if shown < _POSTERS else None,
        }
        for shown, (line, episode, path) in enumerate(found)
    ]
    return films, embedded


def _source(path: Path, embedded: bool) -> str:
    if not embedded:
        return "videos/" + quote(path.name)
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def _poster(path: Path) -> str | None:
    """A picture from the middle of a film, where the robot is at work, small enough to be part of
    the page; None of a film that cannot be read."""
    frame = middle_frame(path)
    if frame is None:
        return None
    picture = Image.fromarray(frame)
    picture.thumbnail((_POSTER_WIDTH, 4 * _POSTER_WIDTH))
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=75)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
