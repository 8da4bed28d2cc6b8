"""Whether a JSON file has the form that its schema says, and whether the schema says anything."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jsonschema
from referencing import Registry, Resource

FOLDER = resources.files("asd_policy.eval").joinpath("schemas")
# (path, new value): what no versioned file may be.
NEVER = (("schema_version", 99), ("schema_version", KeyError), ("more", 1))


@functools.cache
def schemas() -> dict[str, Any]:
    """File name → schema."""
    files = [file for file in FOLDER.iterdir() if file.name.endswith(".json")]
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of schemas/<name>.json. Schemas refer to parts of each other by file name."""
    parts = [(file, Resource.from_contents(schema)) for file, schema in schemas().items()]
    return jsonschema.Draft202012Validator(
        schemas()[f"{name}.json"],
        registry=Registry().with_resources(parts),
        format_checker=jsonschema.FormatChecker(),
    )


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy with the value at a path replaced; `KeyError` as `new` removes it."""
    value = copy.deepcopy(value)
    *way, last = path.split("/")
    inner = value
    for key in way:
        inner = inner[int(key)] if isinstance(inner, list) else inner[key]
    if new is KeyError:
        del inner[last]
    else:
        inner[last] = new
    return value


def check(name: str, content: Any, wrong: Sequence[tuple[str, Any]] = ()) -> None:
    """A file that was written has the form of a schema, and changed it has not.

    Args:
        content: read from the file, so that it is what JSON makes of it. Of a versioned one.
        wrong: (path, new value), as `changed` takes them, each to be refused; besides `NEVER`.
    """
    form = validator(name)
    form.validate(content)
    for path, new in (*NEVER, *wrong):
        assert not form.is_valid(changed(content, path, new)), f"{name}: {path} = {new!r} passed"
