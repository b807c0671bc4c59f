"""The folders of the machines: one directory for all, and in it one folder for each machine."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter

from bridge.errors import MachineError, MachineRejected, MachineUnavailable
from bridge.machines.qemu.processes import kill, machine_processes

_STATE_FILE = "machine.json"
_OURS = frozenset(
    ("authorized_keys", "console", "disk.qcow2", "host_key", "hosts", "name", "pid", "user")
)
"""What else a machine's folder holds."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class QemuState:
    """What a machine's folder records about the machine. `created` is in seconds since 1970."""

    id: str
    name: str
    port: int
    size: str
    created: float
    tags: Mapping[str, str]

    @classmethod
    def new(cls, name: str, *, size: str, tags: Mapping[str, str]) -> QemuState:
        """The state of a machine that is about to be made, without a port yet."""
        return cls(
            id=secrets.token_hex(8),
            name=name,
            port=0,
            size=size,
            created=time.time(),
            tags=dict(tags),
        )

    @classmethod
    def read(cls, folder: Path) -> QemuState | None:
        """Read the state in that folder. None if it has none that can be read, or has gone."""
        file = folder / _STATE_FILE
        try:
            # A pipe would never be read to its end.
            return _STATE.validate_json(file.read_bytes(), strict=True) if file.is_file() else None
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        """Write the state to that folder, all at once."""
        draft = folder / f".{_STATE_FILE}"
        write_private(draft, json.dumps(asdict(self)))
        draft.replace(folder / _STATE_FILE)


_STATE = TypeAdapter(QemuState)


def make_directory(directory: Path) -> None:
    """Make the directory of all machines, for this user only.

    Raises:
        MachineUnavailable: it can't be made, or belongs to another user.
    """
    with _errors_as(MachineUnavailable, directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = directory.stat().st_uid
    if owner != os.geteuid():
        raise MachineUnavailable(f"the folder {directory} belongs to another user")


def read_states(directory: Path) -> list[QemuState]:
    """Read the states of all machines, and remove drafts that were left. Needs the lock.

    A machine's folder appears and goes with its state in it. So a folder without one is either
    damaged, and its machine may run, or is none of ours. It is left alone.

    Raises:
        MachineUnavailable: a process can't be ended.
    """
    states = []
    for folder in sorted(directory.iterdir()):
        if _is_draft(folder):
            remove(directory, folder.name.removeprefix("."))
        elif not folder.name.startswith(".") and folder.is_dir():
            state = QemuState.read(folder)
            if state is None:
                log.warning("a folder without a machine's state is left alone", folder=str(folder))
            else:
                states.append(state)
    return states


def make_folder(directory: Path, state: QemuState, files: Mapping[str, str]) -> Path:
    """Make a machine's folder with its state and those files. Needs the lock.

    The folder appears with its state in it, so that whoever lists the machines sees its owner.
    """
    folder = directory / state.name
    draft = directory / f".{state.name}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    state.write(draft)
    for name, text in files.items():
        write_private(draft / name, text)
    return draft.rename(folder)


def check_place(directory: Path, name: str) -> None:
    """Return where a machine of that name may replace what has its name.

    Raises:
        MachineRejected: it is a folder that holds more than a machine's.
    """
    folder = directory / name
    if folder.is_dir() and QemuState.read(folder) is None and not _holds_only_ours(folder):
        raise MachineRejected(f"{folder} is in the way, and is no machine's: move it away")


def remove(directory: Path, name: str) -> None:
    """End a machine's process and remove its folder, whichever of them exists. Needs the lock.

    Raises:
        MachineUnavailable: the process can't be ended.
    """
    folder = directory / name
    discarded = directory / f".{name}"
    shutil.rmtree(discarded, ignore_errors=True)
    # Moved away first: a process that a killed creator has yet to start then finds no files.
    with suppress(FileNotFoundError):
        folder.rename(discarded)
    # QEMU is two processes for a moment while it starts.
    while pid := machine_processes(directory).get(name):
        kill(pid)
    with suppress(FileNotFoundError):
        shutil.rmtree(discarded)


@contextmanager
def locked(directory: Path, name: str = ".lock") -> Iterator[None]:
    """Hold a lock in the directory, shared by all processes on this host.

    Raises:
        MachineRejected: its file can't be used.
        MachineUnavailable: something else in the directory can't be used within the block.
    """
    with _errors_as(MachineRejected, directory):
        file = (directory / name).open("w")
    with file, _errors_as(MachineUnavailable, directory):
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_private(file: Path, text: str) -> None:
    """Write a file that only this user can read."""
    file.touch(mode=0o600)
    file.write_text(text)


def _is_draft(folder: Path) -> bool:
    """Whether it was left by a process that was killed while it made or removed a machine.

    It bears the machine's name. A folder of that name beside it is no part of it, and must not go
    with it.
    """
    name = folder.name.removeprefix(".")
    if name == folder.name or not folder.is_dir() or (folder.parent / name).exists():
        return False
    return _holds_only_ours(folder)


def _holds_only_ours(folder: Path) -> bool:
    ours = (_STATE_FILE, f".{_STATE_FILE}", *_OURS)
    return all(entry.name in ours and not entry.is_dir() for entry in folder.iterdir())


@contextmanager
def _errors_as(kind: type[MachineError], directory: Path) -> Iterator[None]:
    """Turn errors of the file system into ours. Nobody has to ask then what may have been done."""
    try:
        yield
    except OSError as error:
        place = error.filename or directory
        raise kind(f"can't use {place}: {error.strerror or error}") from error
