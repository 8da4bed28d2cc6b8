"""Imports inside eval/ go one way: what is kept and asked, what computes, what shows, studies,
commands. And none goes in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

EVAL = Path(__file__).resolve().parents[2] / "eval"
pytestmark = pytest.mark.skipif(not EVAL.is_dir(), reason="needs the checkout")

# Room → its modules, below asd_policy.eval; a folder stands for all that is in it.
ROOMS = {
    "runs": ("runs",),  # what is kept, and the words that numbers and machines are described in
    "options": (  # what is asked, and what that comes to
        "options", "samplers", "subject", "plan", "resume", "demonstrations", "script",
        "studies.bench.options", "studies.compare.options", "studies.verify.options",
    ),
    "stats": ("stats",),
    "rollout": ("rollout", "slots"),
    "show": ("show",),
    "studies": ("studies",),
    "commands": (
        "commands", "gpu", "studies.tasks.command", "studies.bench.gpu",
        "studies.bench.first_minutes", "studies.bench.rejoining",
    ),
}  # fmt: skip
RANK = {
    "runs": 0, "options": 1, "stats": 2, "rollout": 2, "show": 3, "studies": 4, "commands": 5,
}  # fmt: skip
EVALUATION = "studies.evaluate"  # the study that others are made of


def modules() -> dict[str, Path]:
    """Name below asd_policy.eval → file, without the faces of packages."""
    found = {}
    for path in sorted(EVAL.rglob("*.py")):
        if path.name != "__init__.py":
            found[".".join(path.relative_to(EVAL).with_suffix("").parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Modules of asd_policy.eval that a file imports, wherever in it."""
    there = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module == "asd_policy.eval" or node.module.startswith("asd_policy.eval."):
            base = node.module.removeprefix("asd_policy.eval").removeprefix(".")
            for alias in node.names:  # from asd_policy.eval.rollout.cluster import connect
                inner = f"{base}.{alias.name}".removeprefix(".")
                yield inner if inner in there else base


def room_of(module: str) -> str:
    """Of the longest name in ROOMS that is the module's, or its folder's."""
    fitting = [
        (len(name), room)
        for room, names in ROOMS.items()
        for name in names
        if f"{module}.".startswith(f"{name}.")
    ]
    assert fitting, f"asd_policy.eval.{module} is in no room: add it to ROOMS"
    return max(fitting)[1]


def test_every_module_has_a_room():
    assert {room_of(module) for module in modules()} == set(ROOMS)
    assert ROOMS.keys() == RANK.keys()


def test_imports_inside_eval_go_one_way():
    wrong = []
    for module, path in modules().items():
        ours = room_of(module)
        for other in imports(path):
            theirs = room_of(other)
            if theirs != ours and RANK[theirs] >= RANK[ours]:
                wrong.append(f"{module} ({ours}) → {other} ({theirs})")
    assert not wrong, "\n".join(wrong)


def test_a_study_uses_no_other_but_the_evaluation():
    wrong = []
    studies = {m: path for m, path in modules().items() if room_of(m) == "studies"}
    for module, path in studies.items():
        for other in imports(path):
            same = other.split(".")[:2] == module.split(".")[:2]
            used = other in studies and not same and other != EVALUATION
            if used:
                wrong.append(f"{module} → {other}")
    assert not wrong, "\n".join(wrong)


def test_no_imports_go_in_a_circle():
    direct = {module: set(imports(path)) for module, path in modules().items()}

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        left = [module]
        while left:
            new = direct.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    assert not [module for module in direct if module in reached(module)]


def test_options_are_resolved_once():
    """Who takes the options of an evaluation: they become a plan, and travel no further."""
    takers = set()
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                kinds = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
                if "EvalOptions" in kinds:
                    takers.add(module)
    assert takers <= {"options", "samplers", "plan", "resume", "studies.evaluate"}
