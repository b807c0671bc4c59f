"""A command is imported when somebody asks for it, and no other one with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from bridge.cli.lazy import LazyCommands
from deploy.local.paths import REPOSITORY

SHOW_MODULES = """
import sys
from bridge.cli import main
try:
    main()
finally:
    print(*sorted(sys.modules), file=sys.stderr)
"""


def modules_after(*words: str) -> set[str]:
    """What a command has imported at its end, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_MODULES, *words],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return set(done.stderr.split())


def test_a_command_imports_no_library_that_only_others_need() -> None:
    loaded = modules_after("schema")
    assert not loaded & {"aio_pika", "asyncssh", "libcloud", "bridge.consume.service"}


def test_a_machine_is_created_without_the_library_that_runs_scripts() -> None:
    assert "asyncssh" not in modules_after("machine", "create", "--help")


def test_names_are_known_before_a_command_is_loaded() -> None:
    def load(module: str) -> str:
        raise AssertionError(f"{module} was loaded")

    assert list(LazyCommands({"one": "first", "two": "second"}, load)) == ["one", "two"]


def test_a_command_is_loaded_once() -> None:
    loaded: list[str] = []
    commands = LazyCommands({"one": "first"}, loaded.append)
    _ = commands["one"], commands["one"]
    assert loaded == ["first"]


def test_a_name_that_is_no_command_is_a_missing_key() -> None:
    with pytest.raises(KeyError):
        LazyCommands({"one": "first"}, str)["two"]
