"""The configuration in a file of diffusion_policy (Chi et al., 2023), without omegaconf or hydra.

It is kept as it was written, with references (``${horizon}``) and sums (``${eval: …}``) that are
resolved when a value is asked for.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from asd_policy.errors import CheckpointError

_INNERMOST = re.compile(r"\$\{([^${}]*)\}")
_SUMS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}  # fmt: skip


class Settings:
    """A nested configuration, read by dotted names.

    Args:
        tree: dictionaries, lists and plain values, with references as text.
    """

    def __init__(self, tree: Mapping[str, Any]) -> None:
        self._tree = tree

    def get(self, name: str, default: Any = None) -> Any:
        """The value at a dotted name ("policy.horizon"), its references resolved; ``default`` where
        there is none.

        Raises:
            CheckpointError: a reference to nothing, or a computation other than sums and choices.
        """
        value: Any = self._tree
        for part in name.split("."):
            value = self._resolved(value)
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        return self._plain(value)

    def _plain(self, value: Any) -> Any:
        value = self._resolved(value)
        if isinstance(value, Mapping):
            return {key: self._plain(item) for key, item in value.items()}
        return [self._plain(item) for item in value] if isinstance(value, list) else value

    def _resolved(self, value: Any, depth: int = 0) -> Any:
        while isinstance(value, str) and (match := _INNERMOST.search(value)):
            if depth > 20:
                raise CheckpointError(f"the configuration refers to itself: {value!r}")
            found = self._resolved(self._found(match[1].strip()), depth + 1)
            if match[0] == value.strip():
                return found
            value = value[: match.start()] + str(found) + value[match.end() :]
            depth += 1
        return value

    def _found(self, words: str) -> Any:
        """What stands between ``${`` and ``}``: a name, or a computation."""
        if words.startswith("eval:"):
            return _computed(words.removeprefix("eval:").strip().strip("'\""))
        value: Any = self._tree
        for part in words.split("."):
            value = self._resolved(value)
            if not isinstance(value, Mapping) or part not in value:
                raise CheckpointError(f"the configuration refers to ${{{words}}}, which it lacks")
            value = value[part]
        return value


def _computed(text: str) -> Any:
    """A sum of numbers, or a choice between two: all that their configurations compute."""
    try:
        return _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, KeyError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"expected sums and choices of numbers in the configuration, got {text!r}"
        ) from error


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.BinOp():
            return _SUMS[type(node.op)](_number(node.left), _number(node.right))
        case ast.UnaryOp(op=ast.USub()):
            return -_number(node.operand)
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand)
        case ast.BoolOp():
            values = [_value(item) for item in node.values]
            return any(values) if isinstance(node.op, ast.Or) else all(values)
        case ast.IfExp():
            return _value(node.body) if _value(node.test) else _value(node.orelse)
    raise TypeError(ast.dump(node))


def _number(node: ast.expr) -> int | float:
    """Text is no number: "9" * 9 ** 9 would fill the memory."""
    value = _value(node)
    if isinstance(value, (int, float)) and abs(value) < 1e9:
        return value
    raise TypeError(f"no number: {value!r}")
