"""What the commands for machines tell Kestra by their last line."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from typer.testing import CliRunner

from bridge.cli import machine
from tests.unit.machines.support import SECRET, MemoryDriver, MemoryProvider, use_memory


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> MemoryDriver:
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", SECRET)
    monkeypatch.setenv("BRIDGE_MACHINE_PROVIDER", "memory")
    return use_memory(monkeypatch)


def outputs(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(machine.app, [*arguments, "--outputs"])
    assert done.exit_code == 0, done.output
    last = done.output.splitlines()[-1]
    told: dict[str, Any] = json.loads(last.removeprefix("::").removesuffix("::"))["outputs"]
    return told


@pytest.mark.usefixtures("memory")
def test_create_tells_the_size_and_when_the_machine_was_created() -> None:
    before = int(time.time())
    told = outputs("create", "--execution", "e", "--deadline", "60", "--size", "large")
    assert (told["size"], told["created"] >= before) == ("large", True)


@pytest.mark.usefixtures("memory")
def test_create_tells_which_of_several_sizes_it_got() -> None:
    told = outputs("create", "--execution", "e", "--deadline", "60", "--size", "small,large")
    assert told["size"] == "small"


@pytest.mark.usefixtures("memory")
def test_destroy_tells_for_how_long_a_machine_was_there_that_is_gone_already(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryProvider, "lists_at_once", True)
    told = outputs("destroy", "--execution", "e", "--created", str(time.time() - 100))
    assert 100 <= told["seconds"] < 1000
