"""The process that ends a machine at its deadline, beside a process that stands for QEMU."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from bridge.errors import MachineUnavailable
from bridge.machines.lifecycle import Machines
from bridge.machines.order import name_of
from bridge.machines.qemu.deadline_guard import guard
from bridge.machines.qemu.processes import kill, machine_processes, start_guard
from tests.support.harness import eventually
from tests.unit.machines.support import settings

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


def test_a_machine_whose_state_is_damaged_ends_at_its_deadline(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    (folder / "machine.json").write_text("{")
    guard(folder.parent, NAME, "one", time.time() + 0.1)
    assert machine.wait(TIMEOUT) == -signal.SIGKILL
    assert not folder.exists()


def is_held(pid: int) -> bool:
    """Whether this process has a descriptor of that process."""
    for entry in Path("/proc/self/fdinfo").iterdir():
        # The descriptor that lists them has gone by now.
        with suppress(FileNotFoundError):
            if f"Pid:\t{pid}\n" in entry.read_text():
                return True
    return False


async def test_a_machine_whose_folder_was_removed_ends_at_its_deadline(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    guarding = threading.Thread(target=guard, args=(folder.parent, NAME, "one", time.time() + 2))
    guarding.start()
    await eventually(lambda: is_held(machine.pid), "the guard holds the machine's process")
    shutil.rmtree(folder)
    assert machine.wait(TIMEOUT) == -signal.SIGKILL
    guarding.join(TIMEOUT)


def test_a_process_that_only_has_the_machines_number_is_left_alone(folder: Path) -> None:
    (folder / "pid").write_text(str(os.getpid()))
    guard(folder.parent, NAME, "one", time.time() - 1)
    assert not folder.exists()


def test_a_lock_that_is_never_given_back_keeps_no_machine_alive(
    folder: Path, machine: subprocess.Popen[bytes]
) -> None:
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ending = threading.Thread(target=guard, args=(folder.parent, NAME, "one", 0.0))
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
    start_guard(folder.parent, NAME, machine_id="one", deadline=deadline)
    (process,) = guards(folder)
    return process


def test_it_belongs_to_no_command_and_knows_no_secret(started: psutil.Process) -> None:
    assert os.getpid() not in [parent.pid for parent in started.parents()]
    assert "BRIDGE_MACHINE_SECRET" not in started.environ()
    started.kill()


def test_it_ends_when_its_machine_is_destroyed(folder: Path, started: psutil.Process) -> None:
    folder.rename(folder.with_name(f".{NAME}"))
    assert started.wait(TIMEOUT) is None


QEMU = """#!/bin/bash
for last; do
    if [ "$previous" = -pidfile ]; then file=$last; fi
    previous=$last
done
(exec -a qemu-system-x86_64 PYTHON -c 'import time; time.sleep(600)' "$@" >/dev/null 2>&1) &
echo $! >"$file"
until [ "$(head -c4 /proc/$!/cmdline)" = qemu ]; do sleep 0.01; done
"""
"""A program that takes QEMU's place: it leaves a process with QEMU's name and arguments."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    """Machines of this host, where a program takes QEMU's place."""
    programs, image = tmp_path / "bin", tmp_path / "images" / "debian"
    for directory in (programs, image):
        directory.mkdir(parents=True)
    for name in ("kernel", "initrd", "disk.qcow2"):
        (image / name).touch()
    qemu = QEMU.replace("PYTHON", os.path.realpath(sys.executable))
    for name, text in (("qemu-system-x86_64", qemu), ("qemu-img", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    given = {"machine_image_directory": image.parent, "machine_accelerator": "tcg"}
    yield Machines(settings(machine_directory=tmp_path / "machines", **given))
    for pid in machine_processes(tmp_path / "machines").values():
        kill(pid)
    shutil.rmtree(tmp_path / "machines", ignore_errors=True)


async def test_five_machines_end_at_their_deadlines_with_nobody_there_to_end_them(
    host: Machines, tmp_path: Path
) -> None:
    directory = tmp_path / "machines"
    kept = await host.create("long", "job", 600)
    for number in range(5):
        await host.create(f"execution-{number}", "job", 8)

    def only_the_other_is_left() -> bool:
        folders = [path.name for path in directory.iterdir() if path.is_dir()]
        return folders == [*machine_processes(directory)] == [kept.name]

    await eventually(only_the_other_is_left, "none of the five is left", timeout=TIMEOUT)


async def test_no_guard_is_left_of_a_machine_that_is_destroyed(
    host: Machines, tmp_path: Path
) -> None:
    machine = await host.create("3xAbC", "job", 600)
    (started,) = guards(tmp_path / "machines" / machine.name)
    await host.destroy(execution="3xAbC")
    assert started.wait(TIMEOUT) is None


async def test_a_create_that_can_not_write_says_so_at_once_and_leaves_nothing(
    host: Machines, tmp_path: Path
) -> None:
    directory = tmp_path / "machines"
    directory.mkdir()
    (directory / f".{name_of('3xAbC')}").touch()
    with pytest.raises(MachineUnavailable, match=r"can't use .*kestra-3xabc.*: "):
        await asyncio.wait_for(host.create("3xAbC", "job", 600), TIMEOUT)
    assert machine_processes(directory) == {}


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_destroy_that_can_not_read_a_machines_state_is_no_success(
    host: Machines, tmp_path: Path, is_gone: bool
) -> None:
    machine = await host.create("3xAbC", "job", 600)
    folder = tmp_path / "machines" / machine.name
    if is_gone:
        shutil.rmtree(folder)
    else:
        (folder / "machine.json").write_text("{")
    with pytest.raises(MachineUnavailable, match=r"it ends at its deadline: its process .* runs"):
        await host.destroy(execution="3xAbC")
    assert list(machine_processes(tmp_path / "machines")) == [machine.name]
