"""Cells that are measured whole or not at all, and kept at once: a run that was stopped goes on."""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from asd_policy.eval.runs.files import now, write_json
from asd_policy.eval.runs.schemas import VERSION
from asd_policy.eval.runs.store import Store

Json = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class KeptCell:
    """What one measurement is of."""

    @property
    def key(self) -> str:
        """Names it in the file."""
        return "/".join(map(str, dataclasses.astuple(self)))

    def described(self) -> Json:
        """For the file."""
        return {"key": self.key, **dataclasses.asdict(self)}


Kind = TypeVar("Kind", bound=KeptCell)


def measure_cells(
    store: Store, out: Path, cells: Sequence[Kind], measure: Callable[[Kind], Json],
    summary: Callable[[Json], str], settings: Json, machine: Json, say: Say, deadline: float,
) -> int:  # fmt: skip
    """Measure what is not in the folder yet. Returns the exit status: 1 where the clock stopped it
    or a cell failed."""
    content = _claim(store, out, settings, machine)
    done = {c["key"] for c in content["cells"] if "failed" not in c}
    pending = [one for one in cells if one.key not in done]
    for number, one in enumerate(pending, start=1):
        if time.monotonic() > deadline:
            say("Stopped by the clock; run the same command to go on.")
            break
        say(f"[{number}/{len(pending)}] {one.key}")
        found = one.described() | _measured(one, measure)
        say("  " + (f"failed: {found['failed']}" if "failed" in found else summary(found)))
        content["cells"] = [c for c in content["cells"] if c["key"] != one.key] + [found]
        write_json(out / store.file, content)
    keys = {c["key"] for c in content["cells"] if "failed" not in c}
    content["complete"] = all(one.key in keys for one in cells)
    write_json(out / store.file, content)
    say(f"Kept: {out / store.file}")
    return 0 if content["complete"] else 1


def _claim(store: Store, out: Path, settings: Json, machine: Json) -> Json:
    content = store.check(out, settings, True, beside=True)
    if content is None:
        content = {
            "schema_version": VERSION[store.form], "started": now(), "settings": settings,
            "machine": [], "cells": [], "complete": False,
        }  # fmt: skip
    if machine not in content["machine"]:
        content["machine"].append(machine)
    return content


def _measured(one: Kind, measure: Callable[[Kind], Json]) -> Json:
    try:
        return measure(one)
    except Exception as error:
        return failure(error)


def failure(error: Exception) -> Json:
    """What is kept of what could not be measured."""
    text = f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))[-3000:]
    return {"failed": text, "traceback": trace}
