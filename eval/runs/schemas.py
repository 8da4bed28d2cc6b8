"""JSON Schemas of every kept file, made from the types; and files read back through them.

    python -m asd_policy.eval.runs.schemas DIR

writes the schemas, <name>.json each. Importing this is quick, and needs nothing but Python.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asd_policy.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Json = dict[str, Any]
# Name of a schema → the `schema_version` that is written and read. (A line of episodes.jsonl has
# none: config.json's counts.) Raise one when a reader of the old form would be misled.
VERSION = {
    "config": 2, "env": 2, "results": 2, "options": 1, "rates": 1, "tasks": 1, "replay": 1,
    "recording": 2, "compare": 2, "first_minutes": 1, "rejoining": 1, "plan": 1,
    "doctor": 1,
    "bench": 1, "layers": 1, "rounds": 1, "verify": 1, "verify_config": 1, "pusht": 1,
    "pictures_calls": 1, "pictures_quality": 1, "pictures_clock": 1, "pictures_samples": 1,
    "modes": 1, "devices": 1, "in_loop": 2,
}  # fmt: skip
# Name of a schema → where its type is, below asd_policy.eval.
FORMS = {
    "config": "runs.evaluation.Config", "env": "runs.evaluation.Env",
    "episode": "runs.episode.Episode", "results": "runs.evaluation.Results",
    "options": "runs.studies.Options", "rates": "runs.studies.Rates",
    "tasks": "runs.studies.Tasks", "replay": "runs.comparisons.Replay",
    "recording": "runs.comparisons.Recording", "compare": "runs.comparisons.Compare",
    "first_minutes": "runs.studies.FirstMinutes", "rejoining": "runs.studies.Rejoining",
    "pusht": "runs.studies.PushT", "modes": "runs.modes.Modes",
    "plan": "runs.studies.Plan", "doctor": "runs.studies.Doctor",
    "bench": "runs.bench.Bench", "layers": "runs.layers.Layers",
    "rounds": "runs.layers.Rounds", "verify": "runs.verify.Verify",
    "verify_config": "runs.verify.VerifyConfig", "devices": "runs.devices.Devices",
    "in_loop": "runs.in_loop.InLoop",
    "pictures_calls": "runs.pictures.PicturesCalls",
    "pictures_quality": "runs.pictures.PicturesQuality",
    "pictures_clock": "runs.pictures.PicturesClock",
    "pictures_samples": "runs.pictures.PicturesSamples",
}  # fmt: skip


@functools.cache
def adapter(name: str) -> TypeAdapter[Any]:
    """What pydantic makes of the type of FORMS."""
    from pydantic import TypeAdapter  # a tenth of a second, and only where a file is read

    module, _, kind = FORMS[name].rpartition(".")
    return TypeAdapter(getattr(importlib.import_module(f"asd_policy.eval.{module}"), kind))


def schema(name: str) -> Json:
    """The JSON Schema (2020-12) of a file of FORMS; it refers to no other."""
    made = adapter(name).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | _plain(made)


def _plain(made: Any) -> Any:
    """Without the titles that pydantic makes of each key."""
    if isinstance(made, list):
        return [_plain(each) for each in made]
    if not isinstance(made, dict):
        return made
    titled = isinstance(made.get("title"), str)
    return {k: _plain(v) for k, v in made.items() if not (titled and k == "title")}


def read(name: str, text: str | bytes) -> Any:
    """The content of a file of FORMS.

    Raises:
        ValueError: it is of another form; the message names the place, what must be there and what
            came.
    """
    from pydantic import ValidationError

    try:
        return adapter(name).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "/".join(map(str, first["loc"])) or "the whole"
        came = json.dumps(first["input"], default=str)
        raise InputError(f"{place}: {first['msg']}, got {came:.60}") from error


def read_json(path: Path, name: str) -> Json:
    """A file of FORMS, as its JSON is.

    Raises:
        ValueError: it cannot be read, or is of another form or version; the message names the file.
    """
    try:
        text = path.read_bytes()
        content = json.loads(text)
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != VERSION[name]:
            raise InputError(f"expected schema_version {VERSION[name]}, got {version!r}")
        if importlib.util.find_spec("pydantic"):  # a bare checkout can benchmark too: eval/gpu.py
            read(name, text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    return dict(content)


def main(folder: str) -> None:
    """Write every schema into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in FORMS:
        text = json.dumps(schema(name), indent=2, ensure_ascii=False)
        (Path(folder) / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
