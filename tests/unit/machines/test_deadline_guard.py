"""The process that ends a machine at its deadline, beside a process that stands for QEMU."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bridge.machines.qemu.command import guard_command
from bridge.machines.qemu.deadline_guard import end, guard
from bridge.machines.qemu.processes import run

NAME = "kestra-a"
TIMEOUT = 60.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A machine's folder, of the machine `one`."""
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / "machine.json").write_text(json.dumps({"id": "one"}))
    return folder


@pytest.fixture
def machine(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The machine's process."""
    words = ["-c", "import time; time.sleep(600)", "-pidfile", str(folder / "pid")]
    with subprocess.Popen([sys.executable, *words]) as process:
        (folder / "pid").write_text(f"{process.pid}\n")
        yield process
        process.kill()


def test_at_its_deadline_a_machine_is_ended_without_a_trace(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    guard(folder.parent, NAME, "one", time.time() + 0.1)
    assert machine.wait(TIMEOUT) == -signal.SIGKILL
    assert [path.name for path in folder.parent.iterdir()] == [".lock"]


def test_a_machine_that_died_leaves_no_folder_after_its_deadline(folder: Path) -> None:
    guard(folder.parent, NAME, "one", time.time() + 0.1)
    assert not folder.exists()


def test_a_later_machine_of_that_name_is_left_alone(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    guard(folder.parent, NAME, "another", time.time() - 1)
    assert (machine.poll(), folder.exists()) == (None, True)


def test_a_process_that_only_has_the_machines_number_is_left_alone(folder: Path) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    guard(folder.parent, NAME, "one", time.time() - 1)
    assert not folder.exists()


def test_a_lock_that_is_never_given_back_keeps_no_machine_alive(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ending = threading.Thread(target=end, args=(folder.parent, NAME, "one"))
        ending.start()
        assert machine.wait(TIMEOUT) == -signal.SIGKILL
    ending.join(TIMEOUT)
    assert not folder.exists()


def guards(folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder.parent) in (process.info["cmdline"] or [])
    ]


@pytest.fixture
def started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> psutil.Process:
    """A guard as a command starts it, of a machine with ten minutes to live."""
    monkeypatch.setenv("BRIDGE_MACHINE_SECRET", "a secret of sixteen or more")
    deadline = time.time() + 600
    run(guard_command(folder.parent, NAME, machine_id="one", deadline=deadline))
    (process,) = guards(folder)
    return process


def test_it_belongs_to_no_command_and_knows_no_secret(started: psutil.Process) -> None:
    assert os.getpid() not in [parent.pid for parent in started.parents()]
    assert "BRIDGE_MACHINE_SECRET" not in started.environ()
    started.kill()


def test_it_ends_when_its_machine_is_destroyed(folder: Path, started: psutil.Process) -> None:
    folder.rename(folder.with_name(f".{NAME}"))
    assert started.wait(TIMEOUT) is None
