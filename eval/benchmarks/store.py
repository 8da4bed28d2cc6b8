"""bench.json: written whole after every cell, so that a kill loses at most what was being measured.

Top level: schema_version, started, settings, machine (a list: one entry for each machine or version
that went on with the run), networks, ceilings, costs (C(n) of every form of a network), cells,
calls_against_steps, complete.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from asd_policy.errors import OutputExistsError
from asd_policy.eval.benchmarks.summary import add_speedups
from asd_policy.eval.folder import default_folder, write_json
from asd_policy.files import writing

Json = dict[str, Any]
SCHEMA_VERSION = 1
FILE = "bench.json"
FIXED = ("chunks", "device", "seed", "quick", "threads", "data")  # on resuming; lists may grow


class Store:
    """One benchmark's file.

    Attributes:
        content: what the file holds.
    """

    def __init__(self, folder: Path, content: Json) -> None:
        self.folder, self.content = folder, content

    @classmethod
    def claim(cls, out: Path | None, settings: Json, machine: Json, resume: bool) -> Store:
        """Start in a new folder, or go on with the benchmark in one.

        Raises:
            OutputExistsError: the folder holds something else, or a benchmark with other settings,
                or one that ``resume`` was not given for.
        """
        folder = out or default_folder("bench", Path("outputs/bench"))
        there = check_folder(folder, settings, resume)
        if there is None:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            there = {
                "schema_version": SCHEMA_VERSION,
                "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                "settings": settings,
                "machine": [machine],
                "networks": {},
                "ceilings": None,
                "costs": [],
                "cells": [],
                "calls_against_steps": [],
                "complete": False,
            }
        there["settings"] = settings
        if machine not in there["machine"]:
            there["machine"].append(machine)
        store = cls(folder, there)
        store.write()
        return store

    @property
    def done(self) -> set[str]:
        """Keys of the cells that were measured (those that failed are tried again)."""
        return {c["key"] for c in self.content["cells"] if "error" not in c}

    def add_cell(self, cell: Json) -> None:
        """Keep a cell, in place of a failure of the same one; on the disk before this returns."""
        cells = self.content["cells"]
        assert cell["key"] not in self.done, f"{cell['key']} was measured already"
        self.content["cells"] = [c for c in cells if c["key"] != cell["key"]] + [cell]
        add_speedups(self.content["cells"])
        self.write()

    def write(self, **entries: Any) -> None:
        """Replace the file, with these entries set."""
        self.content.update(entries)
        write_json(self.folder / FILE, self.content)


def check_folder(folder: Path, settings: Json, resume: bool) -> Json | None:
    """What the folder's file holds, if a benchmark with ``settings`` may go on there; None if one
    may start. Raises OutputExistsError otherwise. Writes nothing."""
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"the output must be a folder, but {folder} is a file")
    if not (folder / FILE).exists():
        if folder.exists() and any(folder.iterdir()) and not resume:
            raise OutputExistsError(f"{folder} holds other files; choose another --out")
        return None
    there = read_bench(folder)
    changed = [
        f"{key}: {there['settings'].get(key)} there, {settings.get(key)} now"
        for key in FIXED
        if there["settings"].get(key) != settings.get(key)
    ]
    if changed:
        raise OutputExistsError(
            f"{folder} holds a benchmark with other settings ({'; '.join(changed)}); "
            "choose another --out"
        )
    if not resume:
        raise OutputExistsError(
            f"{folder} already holds a benchmark; add --resume to go on with it, or choose "
            "another --out"
        )
    return there


def read_bench(folder: Path) -> Json:
    """The content of a folder's bench.json.

    Raises:
        ValueError: no such file, or not one that this version knows.
    """
    path = folder if folder.suffix == ".json" else folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"no benchmark at {path}: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise ValueError(f"{path}: expected schema_version {SCHEMA_VERSION}, got {version!r}")
    return content
