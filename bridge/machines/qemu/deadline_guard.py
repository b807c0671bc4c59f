"""Ends a machine at its deadline, whoever else has gone.

One such process stands beside each machine. It belongs to no command: neither the end of the worker
nor that of Kestra ends it, and it needs nothing but the machine's folder. What ends it as well, the
end of the host or of the container, also ends the machine.

It runs as a file of its own and imports nothing of the bridge, so that it is small.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

LONGEST_WAIT = 5.0
"""Seconds until it looks again whether the machine is still there."""
KILL_TIMEOUT = 20.0


def guard(directory: Path, name: str, machine_id: str, deadline: float) -> None:
    """Return once the machine is gone. At its deadline, which is in seconds since 1970, end it."""
    folder, process = directory / name, None
    while process is not None or may_exist(folder, machine_id):
        process = process or _process(folder, machine_id)
        left = deadline - time.time()
        if left <= 0:
            end(directory, name, machine_id, process)
            return
        if process is None:
            # It is about to be started, or died by itself: its folder goes at the deadline.
            time.sleep(min(left, 1.0))
        elif _ended_within(process, min(left, LONGEST_WAIT)):
            os.close(process)
            process = None


def may_exist(folder: Path, machine_id: str) -> bool:
    """Whether the folder is that machine's, or can't be read any more.

    False for that of a later machine of the same name.
    """
    if not folder.is_dir():
        return False
    return _id(folder) in (machine_id, None)


def end(directory: Path, name: str, machine_id: str, process: int | None) -> None:
    """Kill the machine's process and remove its folder.

    `process` is a descriptor of the process, which is known even where the folder has gone.
    """
    folder, discarded = directory / name, directory / f".{name}"
    # Before the lock: whoever holds it may hang.
    _kill(process)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not may_exist(folder, machine_id):
            return
        # It may have been started only now.
        _kill(_process(folder, machine_id))
        shutil.rmtree(discarded, ignore_errors=True)
        folder.rename(discarded)
        shutil.rmtree(discarded, ignore_errors=True)


def _id(folder: Path) -> str | None:
    """The id of the folder's machine; None where it can't be read."""
    try:
        state = json.loads((folder / "machine.json").read_text())
        return str(state["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ended_within(process: int, seconds: float) -> bool:
    """Wait that long, or until the process ends; returns whether it did."""
    ended, _, _ = select.select([process], [], [], seconds)
    return bool(ended)


def _kill(process: int | None) -> None:
    if process is None:
        return
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [], KILL_TIMEOUT)
    finally:
        os.close(process)


def _process(folder: Path, machine_id: str) -> int | None:
    """A descriptor of the machine's process. None if there is none."""
    pid = _process_id(folder)
    if pid is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    # The descriptor is the machine's only if the number and the folder still are.
    if _process_id(folder) == pid and may_exist(folder, machine_id):
        return descriptor
    os.close(descriptor)
    return None


def _process_id(folder: Path) -> int | None:
    """The number of the process that names the folder's `pid` file in its command line."""
    file = folder / "pid"
    try:
        number = int(file.read_text())
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    if os.fsencode(file) in words:
        return number
    return None


def _leave() -> None:
    """Go on as a process that belongs to nobody, and let the one that was called end."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nowhere, descriptor)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    _leave()
    guard(Path(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]))
