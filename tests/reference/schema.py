"""A JSON schema small enough to read: what a file must hold, and nothing besides."""

from __future__ import annotations

from typing import Any

NUMBER = (int, float)


def check(value: Any, schema: Any, path: str = "") -> None:
    """Raise AssertionError unless ``value`` has exactly the keys and types of ``schema``.

    A schema is a type or a tuple of types and None; a dict of schemas by key; a list of one
    schema, of every item; a set of allowed values; or ``{"*": schema}``, a dict with any keys.
    """
    if isinstance(schema, dict):
        assert isinstance(value, dict), f"{path}: expected an object, got {value!r}"
        if schema.keys() == {"*"}:
            schema = dict.fromkeys(value, schema["*"])
        assert value.keys() == schema.keys(), f"{path}: {sorted(value.keys() ^ schema.keys())}"
        for key, part in schema.items():
            check(value[key], part, f"{path}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), f"{path}: expected a list, got {value!r}"
        for i, item in enumerate(value):
            check(item, schema[0], f"{path}[{i}]")
    elif isinstance(schema, set):
        assert value in schema, f"{path}: expected one of {schema}, got {value!r}"
    else:
        allowed = schema if isinstance(schema, tuple) else (schema,)
        types = tuple(type(None) if kind is None else kind for kind in allowed)
        assert isinstance(value, types), f"{path}: expected {schema}, got {value!r}"
        whole = {bool, object} & set(types)
        assert not isinstance(value, bool) or whole, f"{path}: expected {schema}, got {value!r}"
