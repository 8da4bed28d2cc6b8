"""Whether a JSON file has the form that its schema says, and whether the schema says anything."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from typing import Any

import jsonschema

from asd_policy.eval.runs.schemas import read, schema

# (path, new value): what no versioned file may be.
NEVER = (("schema_version", 99), ("schema_version", KeyError), ("more", 1))


@functools.cache
def validator(name: str) -> jsonschema.Draft202012Validator:
    """Of the schema that is made from a type, by an implementation that is not pydantic's."""
    return jsonschema.Draft202012Validator(schema(name))


def is_read(name: str, content: Any) -> bool:
    """Whether the type takes a file's content, as JSON."""
    try:
        read(name, json.dumps(content))
    except ValueError:
        return False
    return True


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
    """A file that was written has the form of a type and of its schema, and changed it has not.

    Args:
        content: read from the file, so that it is what JSON makes of it. Of a versioned one.
        wrong: (path, new value), as `changed` takes them, each to be refused; besides `NEVER`.
    """
    form = validator(name)
    form.validate(content)
    read(name, json.dumps(content))
    for path, new in (*NEVER, *wrong):
        other = changed(content, path, new)
        assert not form.is_valid(other), f"{name}: {path} = {new!r} passed"
        assert not is_read(name, other), f"{name}: {path} = {new!r} was read"
