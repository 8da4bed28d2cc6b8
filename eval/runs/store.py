"""Whose run a folder holds, and whether one with these options may start or go on there.

Every command that keeps a run has a `Store`, which says what file holds the options it was begun
with, and which of them may be others when it is continued.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from asd_policy.errors import InputError, OutputExistsError
from asd_policy.eval.runs.files import check_is_folder
from asd_policy.eval.runs.schemas import VERSION, read_json
from asd_policy.files import LOCK_FILE, writing

Json = dict[str, Any]
_NO_OPTIONS = ("checkpoint_sha256", "schema_version", "code", "observations_from", "horizons")
_OF_A_MACHINE = ("device", "engine", "precision", "compile", "threads")


@dataclasses.dataclass(frozen=True)
class Store:
    """Where the runs of a command keep their options, and what may change.

    Attributes:
        what: as a message names what the folder holds, such as "a run".
        form: of the file, in `asd_policy.eval.runs.schemas`.
        file: its name. key: the part of it that holds the options.
        ours: whether the content of such a file is of this command.
        fixed: options that must be the same to go on; none given: all but those that are `free`.
        may_grow: may be larger numbers, or lists with more in them.
        restores: whether options that are left out are the run's own.
    """

    what: str
    form: str
    file: str = "config.json"
    key: str = "settings"
    ours: Callable[[Json], bool] = lambda content: True
    fixed: Sequence[str] = ()
    free: Sequence[str] = ()
    may_grow: Sequence[str] = ()
    restores: bool = False

    def read(self, folder: Path) -> Json | None:
        """What the folder's file holds; None where there is none, or it is of something else.

        Raises:
            ValueError: it is damaged: no JSON, or of this version and of another form.
        """
        path = folder / self.file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError as error:
            raise InputError(f"{path} is damaged, or of something else: {error}") from error
        if not (isinstance(content, dict) and isinstance(content.get(self.key), dict)):
            return None
        if not self.ours(content):
            return None
        if content.get("schema_version") == VERSION[self.form]:
            read_json(path, self.form)
        return content

    def begun(self, folder: Path) -> Json:
        """What the file of the run holds that --resume is to continue.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        content = self.read(folder)
        if content is None:
            raise InputError(
                f"--resume: expected {self.what} in {folder}; found none (without --resume, one "
                "begins there)"
            )
        return content

    def check(self, folder: Path, options: Json, resume: bool, beside: bool = False) -> Json | None:
        """What the file of a run holds that these options (or those that are known so far) may
        continue; None where one may start. Writes nothing.

        Args:
            resume: whether it was asked to continue. beside: it may start beside other files.

        Raises:
            OutputExistsError: the folder holds something else, or a run with other options, or one
                that `resume` was not given for.
        """
        with writing(folder):
            check_is_folder(folder)
            if not folder.exists() or self._nothing_kept(folder):
                return None
        kept = self.read(folder)
        if kept is None and beside and not (folder / self.file).exists():
            return None
        if kept is None:
            raise OutputExistsError(
                f"the output folder must be new, empty, or hold {self.what}; {folder} holds other "
                "files"
            )
        there = kept[self.key] | {"schema_version": kept.get("schema_version")}
        now = {k: v for k, v in options.items() if not self.fixed or k in self.fixed}
        self._check_same(folder, there, now | {"schema_version": VERSION[self.form]})
        if not resume:
            raise OutputExistsError(
                f"{folder} already holds {self.what} with these settings; add --resume to continue "
                "it, or choose another --out"
            )
        return kept

    def _nothing_kept(self, folder: Path) -> bool:
        """Empty, or left by a run that was killed before its file was written."""
        sizes = {entry.name: entry.stat().st_size for entry in folder.iterdir()}
        others = [
            name
            for name in sizes
            if name not in ("episodes.jsonl", LOCK_FILE) and not fnmatch(name, f"{self.file}.*part")
        ]
        return not others and not sizes.get("episodes.jsonl", 0)

    def _check_same(self, folder: Path, there: Json, now: Json) -> None:
        found = differing(there, now, self.free, self.may_grow)
        if found:
            raise OutputExistsError(
                _refusal(folder, self.what, found, "go on with --resume" * self.restores)
            )


def check_same(folder: Path, there: Json, now: Json) -> None:
    """Raise OutputExistsError, naming each option, the value that is kept and the one that came,
    where the options `now` are not those of the run in `folder`."""
    found = differing(there, now)
    if found:
        raise OutputExistsError(_refusal(folder, "a run", found, "go on"))


def differing(
    there: Json, now: Json, free: Sequence[str] = (), may_grow: Sequence[str] = ()
) -> dict[str, str]:
    """Option → the value that is kept and the one that came, where they may not differ so."""
    found = {}
    for key in sorted(now.keys() - set(free)):
        grows = key in may_grow and there.get(key) is not None
        if not (_reaches(now[key], there[key]) if grows else now[key] == there.get(key)):
            only = "only " * grows
            found[key] = f"{_said(there.get(key))} there, {only}{_said(now[key])} now"
    return found


def _refusal(folder: Path, what: str, found: dict[str, str], going_on: str) -> str:
    named = "; ".join(f"{_option(key)}: {_short(text)}" for key, text in found.items())
    why = "; a run has one machine setting, so that its latencies are of one" * bool(
        found.keys() & set(_OF_A_MACHINE)
    )
    leave = bool(going_on) and not found.keys() & set(_NO_OPTIONS)
    mend = f"leave them out to {going_on}, or " * leave + "choose another --out"
    return f"{folder} holds {what} with other settings ({named}){why}; {mend}"


def _reaches(now: Any, there: Any) -> bool:
    return set(there) <= set(now) if isinstance(there, list) else bool(now >= there)


def _option(key: str) -> str:
    if key == "checkpoint_sha256":
        return "SHA-256 of the policy's weights"
    return key if key in _NO_OPTIONS else "--" + key.replace("_", "-")


def _short(text: str) -> str:
    """A digest is told by its first digits."""
    return re.sub(r"\b([0-9a-f]{8})[0-9a-f]{56}\b", r"\1…", text)


def _said(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
