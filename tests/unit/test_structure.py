"""The package keeps its shape: small pieces, plain code, and rooms that don't know each other.

`lint-imports` holds the order of the rooms (pyproject.toml); this file holds what it can't see.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from radon.complexity import cc_visit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in sorted((ROOT / "bridge").rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
LINES = sum(len(text.splitlines()) for text in SOURCES.values())

Function = ast.FunctionDef | ast.AsyncFunctionDef


NODES = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]
"""Every node of every module, each with its module's name."""


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for name, node in NODES:
        if isinstance(node, ast.ClassDef):
            yield name, node


def functions() -> Iterator[tuple[str, Function]]:
    for name, node in NODES:
        if isinstance(node, Function):
            yield name, node


def body_lines(function: Function) -> int:
    """The lines of a function's body without its docstring; 0 if there is nothing else."""
    statements = function.body
    if ast.get_docstring(function) is not None:
        statements = statements[1:]
    if not statements:
        return 0
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1


def importers(library: str) -> set[str]:
    """The modules that import the library or a part of it."""
    found = set()
    for name, node in NODES:
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported = [node.module or ""]
        else:
            continue
        if any(each.split(".")[0] == library for each in imported):
            found.add(name)
    return found


@pytest.mark.parametrize("library", ["aio_pika", "aiormq"])
def test_only_the_rabbitmq_room_speaks_amqp(library: str) -> None:
    outside = {name for name in importers(library) if not name.startswith("bridge/rabbitmq/")}
    assert outside == set()


def test_only_the_kestra_room_the_management_api_and_the_proxy_check_speak_http() -> None:
    allowed = {"bridge/rabbitmq/management.py", "bridge/settings/environment.py"}
    elsewhere = importers("httpx") - allowed
    assert {name for name in elsewhere if not name.startswith("bridge/kestra/")} == set()


def test_no_module_is_longer_than_350_lines() -> None:
    lengths = {name: len(text.splitlines()) for name, text in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}


def test_no_class_is_longer_than_200_lines() -> None:
    lengths = {
        f"{name} {each.name}": (each.end_lineno or 0) - each.lineno + 1 for name, each in classes()
    }
    assert {name: length for name, length in lengths.items() if length > 200} == {}


def test_no_class_has_more_than_15_methods() -> None:
    counts = {
        f"{name} {each.name}": sum(isinstance(member, Function) for member in each.body)
        for name, each in classes()
    }
    assert {name: count for name, count in counts.items() if count > 15} == {}


def test_no_class_name_is_used_twice() -> None:
    places = defaultdict(list)
    for name, each in classes():
        places[each.name].append(name)
    assert {each: names for each, names in places.items() if len(names) > 1} == {}


def test_no_function_body_is_longer_than_45_lines() -> None:
    lengths = {f"{name}:{each.lineno} {each.name}": body_lines(each) for name, each in functions()}
    assert {name: length for name, length in lengths.items() if length > 45} == {}


@cache
def complexities() -> dict[tuple[str, int], int]:
    """Radon's cyclomatic complexity of each function and method, by module and line."""
    return {
        (name, block.lineno): block.complexity
        for name, text in SOURCES.items()
        for block in cc_visit(text)
        if block.letter in {"F", "M"}
    }


def test_no_function_is_more_complex_than_10() -> None:
    assert {place: value for place, value in complexities().items() if value > 10} == {}


def test_a_line_of_a_body_has_a_complexity_of_at_most_0_43() -> None:
    complexity_at = complexities()
    measured = [each for each in functions() if (each[0], each[1].lineno) in complexity_at]
    complexity = sum(complexity_at[name, each.lineno] for name, each in measured)
    lines = sum(body_lines(each) for _, each in measured)
    assert complexity / lines <= 0.43


def test_no_conditional_expression_holds_another() -> None:
    nested = [
        f"{name}:{node.lineno}"
        for name, node in NODES
        if isinstance(node, ast.IfExp)
        and any(isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node)
    ]
    assert nested == []


def test_1000_lines_have_at_most_15_conditional_expressions() -> None:
    count = sum(isinstance(node, ast.IfExp) for _, node in NODES)
    assert count / LINES * 1000 <= 15


def test_the_consume_path_loads_no_command_no_operation_and_no_machine() -> None:
    command = "import sys, bridge.consume.service; print(*sys.modules, sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    kept_out = ("bridge.operate.", "bridge.machines.", "bridge.cli.")
    assert [each for each in loaded if f"{each}.".startswith(kept_out)] == []
