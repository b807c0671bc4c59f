"""The package keeps its shape: each library has its room.

`lint-imports` holds the order of the rooms (pyproject.toml); this file holds what it can't see.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in sorted((ROOT / "bridge").rglob("*.py"))
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
NODES = [(name, node) for name, tree in TREES.items() for node in ast.walk(tree)]
"""Every node of every module, each with its module's name."""


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
