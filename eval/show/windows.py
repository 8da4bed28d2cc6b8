"""Which window each sampler of a run used, and the command that uses the same again."""

from __future__ import annotations

import shlex
from typing import Any

from asd_policy.eval.runs.evaluation import Results, UsedWindow
from asd_policy.eval.samplers import is_autospeculative

Json = dict[str, Any]


def windows_used(window: UsedWindow) -> list[int]:
    """The windows that chunks were sampled with, ascending; none before the first chunk.

    Args:
        window: results.json's `samplers/NAME/window`. Runs of earlier versions could change the
            window from one chunk to the next.
    """
    counted = window.get("chunks_by_window")
    if counted:
        return sorted(map(int, counted))
    return [] if window["chosen"] is None else [window["chosen"]]


def window_text(window: UsedWindow) -> str:
    """ "24", "24 (auto)", "1 to 24 (auto)"; "–" before the first chunk."""
    used = windows_used(window)
    if not used:
        return "–"
    ends = str(used[0]) if len(used) == 1 else f"{used[0]} to {used[-1]}"
    return ends + " (auto)" * (window["requested"] == "auto")


def window_phrases(results: Results) -> list[str]:
    """What the line of settings says: ["window 24 (auto)"] where all samplers with a window used
    the same, else one phrase for each window and its samplers; none without such a sampler."""
    samplers_of: dict[str, list[str]] = {}
    for name, summary in results["samplers"].items():
        window = summary["window"]
        if window is not None and windows_used(window):
            plural = "s" * (len(windows_used(window)) > 1)
            samplers_of.setdefault(f"window{plural} {window_text(window)}", []).append(name)
    if len(samplers_of) <= 1:
        return list(samplers_of)
    return [f"{text} for {'/'.join(names)}" for text, names in samplers_of.items()]


def sampled_sequentially(results: Results) -> list[str]:
    """Forms of ASD for which "auto" found no window that pays for itself, in any chunk."""
    return [
        name
        for name, summary in results["samplers"].items()
        if is_autospeculative(name)
        and (window := summary["window"]) is not None
        and window["requested"] == "auto"
        and windows_used(window) == [1]
    ]


def base_command(command: str) -> str:
    """A run's command without its folder: run again, it starts a run of its own. What is no
    command line is left as it is."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--out", "--resume"):
            kept.append(word)
        skip = not skip and word == "--out"
    return shlex.join(kept)


def fixed_options(config: Json, results: Results) -> list[tuple[str, tuple[str, ...]]]:
    """Options to add to `base_command`, so that what "auto" came to is used again: each with the
    place in results.json of its value.

    `--window` is among them where it was "auto" and all samplers with a window used one and the
    same in every chunk; `--threads` where none were asked for; `--engine` where it was "auto", for
    what it comes to hangs on what is installed and on a timing, and two differ in the last bits.
    With `--remote` all are the server's, and nothing is added.
    """
    added: list[tuple[str, tuple[str, ...]]] = []
    if " --remote " in config.get("command", ""):
        return added
    place = _common_window(results)
    if config["settings"]["window"] == "auto" and place is not None:
        added.append(("--window", place))
    if config["settings"].get("threads") is None and results["resolved"]["threads"]:
        added.append(("--threads", ("resolved", "threads")))
    if config["settings"].get("engine") == "auto":
        added.append(("--engine", ("resolved", "engine")))
    return added


def windows_differ(results: Results) -> bool:
    """Whether no single --window reproduces a run whose window was "auto"."""
    windows = [s["window"] for s in results["samplers"].values() if s["window"] is not None]
    used = {window for each in windows for window in windows_used(each)}
    return len(used) > 1 and any(window["requested"] == "auto" for window in windows)


def _common_window(results: Results) -> tuple[str, ...] | None:
    """The place of the one window that every sampler with a window used."""
    resolved = results["resolved"].get("windows") or {}
    places: list[tuple[str, ...]] = []
    used: set[int] = set()
    for name, summary in results["samplers"].items():
        if summary["window"] is None:
            continue
        drawn = windows_used(summary["window"])
        if drawn:
            places.append(("samplers", name, "window", "chosen"))
            used.update(drawn)
        elif name in resolved:  # known, though no chunk was sampled
            places.append(("resolved", "windows", name))
            used.add(resolved[name])
    return places[0] if len(used) == 1 else None
