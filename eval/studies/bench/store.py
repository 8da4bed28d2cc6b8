"""bench.json: written whole after every cell, so that a kill loses at most what was being measured.

Top level: schema_version, started, settings, machine (a list: one entry for each machine or version
that went on with the run), networks, ceilings, costs (C(n) of every form of a network), cells,
window_choices ("auto" against fixed windows), calls_against_steps, complete.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.runs.files import default_folder, now, write_json
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.eval.runs.store import Store
from asd_policy.eval.studies.bench.summary import add_speedups
from asd_policy.eval.studies.bench.windows import window_choices

Json = dict[str, Any]
FILE = "bench.json"
STORE = Store(
    what="a benchmark",
    form="bench",
    file=FILE,
    fixed=("chunks", "device", "seed", "quick", "threads", "data"),  # the lists may grow
)


class BenchFile:
    """One benchmark's file.

    Attributes:
        content: what the file holds. owes: cells of what was asked before, and is not now.
    """

    def __init__(self, folder: Path, content: Json, machine: int, owes: bool) -> None:
        self.folder, self.content, self._machine, self.owes = folder, content, machine, owes

    @classmethod
    def claim(cls, out: Path | None, settings: Json, machine: Json, resume: bool) -> BenchFile:
        """Start in a new folder, or go on with the benchmark in one.

        Raises:
            OutputExistsError: the folder holds something else, or a benchmark with other settings,
                or one that ``resume`` was not given for.
        """
        folder = out or default_folder("bench", Path("outputs/bench"))
        there = STORE.check(folder, settings, resume, beside=resume)  # a training, say
        if there is None:
            there = {
                "schema_version": VERSION["bench"],
                "started": now(),
                "settings": settings,
                "machine": [machine],
                "networks": {},
                "ceilings": None,
                "costs": [],
                "cells": [],
                "calls_against_steps": [],
                "complete": False,
            }
        whole = _with_those_of(there["settings"], settings)
        owes = not there["complete"] and any(
            isinstance(value, list) and len(value) > len(settings[key])
            for key, value in whole.items()
        )
        there |= {"settings": whole, "complete": False}
        if machine not in there["machine"]:
            there["machine"].append(machine)
        store = cls(folder, there, there["machine"].index(machine), owes)
        store.write()
        return store

    @property
    def done(self) -> set[str]:
        """Keys of the cells that were measured (those that failed are tried again)."""
        return {c["key"] for c in self.content["cells"] if "error" not in c}

    def add_networks(self, networks: dict[str, Json]) -> None:
        """Keep what the networks are, by name.

        Raises:
            OutputExistsError: cells are there of another network of such a name.
        """
        there = self.content["networks"]
        for name, network in networks.items():
            kept = there.get(name, {}).get("sha256")
            if kept not in (None, network["sha256"]):
                raise OutputExistsError(
                    f"{self.folder} holds measurements of another network {name}, with weights "
                    f"{kept[:12]}…; now they are {network['sha256'][:12]}…; choose another --out"
                )
        self.write(networks=there | networks)

    def add_cell(self, cell: Json) -> None:
        """Keep a cell, in place of a failure of the same one; on the disk before this returns."""
        cells = self.content["cells"]
        assert cell["key"] not in self.done, f"{cell['key']} was measured already"
        self.content["cells"] = [c for c in cells if c["key"] != cell["key"]]
        self.content["cells"].append(cell | {"machine": self._machine})
        add_speedups(self.content["cells"])
        self.content["window_choices"] = window_choices(self.content["cells"])
        self.write()

    def write(self, **entries: Any) -> None:
        """Replace the file, with these entries set."""
        self.content.update(entries)
        write_json(self.folder / FILE, self.content)


def _with_those_of(before: Json, now: Json) -> Json:
    """The settings of now, whose lists hold what was asked before, too."""
    return {
        key: list(dict.fromkeys([*before[key], *value])) if isinstance(value, list) else value
        for key, value in now.items()
    }


def read_bench(folder: Path) -> Json:
    """The content of a folder's bench.json.

    Raises:
        ValueError: no such file, or not one that this version knows.
    """
    path = folder if folder.suffix == ".json" else folder / FILE
    try:
        return read_json(path, "bench")
    except ValueError as error:
        raise InputError(f"no benchmark at {error}") from error
