"""House style, as far as a program can read it: sizes and names (docs/architecture.md; CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re

from tests.house.tree import ROOT, python_files, shown, tree_of

MODULE_LINES = 400
FUNCTION_LINES = 50
EXCUSE = f"Longer than {FUNCTION_LINES} lines"
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc"}
# Base units only: seconds, bytes, ratios. Peers' own field names (wire.openai, …) are strings, not names of ours.
FOREIGN_UNIT = re.compile(
    r"(^|_)(ms|millis|milliseconds|us|minutes|hours|kb|mb|gb|kib|mib|gib|megabytes|gigabytes|pct|percent|percentage)$"
)
Function = ast.FunctionDef | ast.AsyncFunctionDef

OURS = python_files("dispatcher", "exporter", "scripts")
ALL = [*OURS, *python_files("tests")]


def lines_of(function: Function) -> int:
    """From its `def` line on: decorators (a click command has many) are not the function."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def is_constant(name: str) -> bool:
    return name.isupper()


def public_names(tree: ast.Module) -> list[tuple[int, str]]:
    """Functions, classes, parameters and annotated or assigned module and class attributes, without constants: GIB is
    a number of bytes, not a quantity in GiB."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef):
            found.append((node.lineno, node.name))
        if isinstance(node, ast.arg):
            found.append((node.lineno, node.arg))
        if isinstance(node, ast.Module | ast.ClassDef):
            for statement in node.body:
                targets = statement.targets if isinstance(statement, ast.Assign) else []
                targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
                found += [(target.lineno, target.id) for target in targets if isinstance(target, ast.Name)]
    return [(line, name) for line, name in found if not name.startswith("_") and not is_constant(name)]


def test_modules_are_at_most_400_lines():
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in ALL}

    assert {} == {path: length for path, length in lengths.items() if length > MODULE_LINES}


def test_a_function_of_more_than_50_lines_says_why_in_its_docstring():
    too_long = [
        f"{shown(path)}:{node.lineno} {node.name}: {lines_of(node)} lines"
        for path in ALL
        for node in ast.walk(tree_of(path))
        if isinstance(node, Function)
        and lines_of(node) > FUNCTION_LINES
        and EXCUSE not in (ast.get_docstring(node) or "")
    ]

    assert [] == too_long


def test_no_module_has_a_name_that_says_nothing():
    parts = {shown(path): {part.removesuffix(".py") for part in path.relative_to(ROOT).parts} for path in ALL}

    assert [] == [path for path, names in parts.items() if names & EMPTY_NAMES]


def test_names_carry_base_units():
    found = [
        f"{shown(path)}:{line} {name}"
        for path in OURS
        for line, name in public_names(tree_of(path))
        if FOREIGN_UNIT.search(name)
    ]

    assert [] == found


def test_every_package_and_module_says_in_a_docstring_why_it_is_there():
    silent = [
        shown(path)
        for path in OURS
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree_of(path))
    ]

    assert [] == silent
