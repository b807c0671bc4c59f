"""The program on the machine that starts a run once, and follows it whatever happens to the
connection.

It is uploaded and run where nothing of the bridge is installed. So it needs only Python 3.8 or
later and the standard library.

    python3 helper.py start STAGED RUN
        Start the run that is staged in the folder STAGED, as the folder RUN, and follow it.
    python3 helper.py follow RUN STDOUT STDERR
        Follow RUN, from these numbers of bytes of its outputs on.

A run is a folder. It comes into being when a staged folder is renamed: if two clients start the
same run, one of them starts it and the other follows. The client puts `request.json`,
`environment`, `files/`, `script`, `digest` and the programs into it. The supervisor
(`remote_supervisor`) adds the rest, last `status.json`. It holds a lock on `lock` as long as it
lives. So a follower knows when the supervisor has vanished. If the machine has not booted anew
meanwhile, something on it has killed the supervisor. A script can remove the run's folder, which
stops the run as well.

A script may fill the disk. So the room for the status is taken before the run begins, and a run is
stopped by removing a file, `may-run`, which needs no room.
"""

# It works on bytes and descriptors, and imports little, as the machine may be slow: the functions
# of `os`, not pathlib.
# ruff: noqa: PTH104, PTH110, PTH118, PTH123

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys

DONE, GONE, REFUSED, FULL, KILLED, REMOVED = 0, 203, 204, 205, 206, 207
"""Exit statuses of a follower: the run has ended, and its status says how; it has vanished; it was
made for other work; the disk has no room for it; its supervisor was killed; its files were removed.
They are numbers with which no start-up file of a user's shell is likely to end."""
STATUS_ROOM = 65_536
"""Bytes that are kept for `status.json`."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
"""Seconds between looks for more output. They grow while there is none, as a machine that is
emulated spends milliseconds on each look."""
BLOCK_SIZE = 65_536
BOOT_ID = "/proc/sys/kernel/random/boot_id"


def start(staged: str, run: str) -> int:
    """Start the staged run, unless it exists already, and follow it. Returns an exit status."""
    try:
        lock = _prepare(staged)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _remove(staged)
        return FULL
    try:
        os.rename(staged, run)
    except OSError:
        same = _read(os.path.join(staged, "digest")) == _read(os.path.join(run, "digest"))
        _remove(staged)
        if not same:
            return REFUSED
    else:
        if os.fork() == 0:
            _become_supervisor(run, lock)
    os.close(lock)
    return follow(run, 0, 0)


def follow(run: str, out_seen: int, err_seen: int) -> int:
    """Pass on the run's output until it has ended, or until its reader has gone. Returns an exit
    status.
    """
    lock = os.open(os.path.join(run, "lock"), os.O_RDWR)
    out = os.open(os.path.join(run, "stdout"), os.O_RDONLY)
    err = os.open(os.path.join(run, "stderr"), os.O_RDONLY)
    os.lseek(out, out_seen, os.SEEK_SET)
    os.lseek(err, err_seen, os.SEEK_SET)
    reader_gone = select.poll()
    reader_gone.register(1, 0)
    pause = SHORTEST_PAUSE
    while True:
        # Looked at before reading: what was written before the end is then still passed on.
        end = _end_of(run, lock)
        out_moved = _pass_on(out, 1)
        err_moved = _pass_on(err, 2)
        if out_moved or err_moved:
            pause = SHORTEST_PAUSE
            continue
        if end is not None:
            return end
        if reader_gone.poll(pause * 1000):
            return GONE
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _prepare(staged: str) -> int:
    """Make what must be there before the run exists, and return the descriptor of its lock."""
    lock = os.open(os.path.join(staged, "lock"), os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    for name in ("stdout", "stderr", "may-run"):
        os.close(os.open(os.path.join(staged, name), os.O_WRONLY | os.O_CREAT, 0o600))
    with open(os.path.join(staged, "boot"), "wb") as boot:
        boot.write(_read(BOOT_ID))
    # Not zeros, for which some file systems take no room.
    with open(os.path.join(staged, "status.json.new"), "wb") as room:
        room.write(os.urandom(STATUS_ROOM))
    return lock


def _remove(folder: str) -> None:
    # Rarely needed, and its import takes as long as the rest of this program's start.
    import shutil  # noqa: PLC0415

    shutil.rmtree(folder, ignore_errors=True)


def _become_supervisor(run: str, lock: int) -> None:
    """Replace this process, a child, by the run's supervisor. Never returns."""
    try:
        os.setsid()
        os.chdir(run)
        nothing = os.open(os.devnull, os.O_RDWR)
        errors = os.open("stderr", os.O_WRONLY | os.O_APPEND)
        os.dup2(nothing, 0)
        os.dup2(nothing, 1)
        os.dup2(errors, 2)
        os.set_inheritable(lock, True)
        os.execv(sys.executable, [sys.executable, "-I", "supervisor.py"])  # noqa: S606
    finally:
        os._exit(1)


def _pass_on(source: int, target: int) -> bool:
    data = os.read(source, BLOCK_SIZE)
    view = memoryview(data)
    while view:
        view = view[os.write(target, view) :]
    return bool(data)


def _end_of(run: str, lock: int) -> int | None:
    """DONE if the run has ended, None while it goes on. Else its supervisor has vanished: REMOVED
    with its folder, KILLED if the machine has run all the while, or GONE.
    """
    status = os.path.join(run, "status.json")
    if os.path.exists(status):
        return DONE
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return None
    # It may have ended between the first look and the lock.
    if os.path.exists(status):
        return DONE
    if not os.path.exists(run):
        return REMOVED
    boot = _read(os.path.join(run, "boot"))
    return KILLED if boot and boot == _read(BOOT_ID) else GONE


def _read(path: str) -> bytes:
    """The file's content, empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def main(arguments: list[str]) -> int:
    """Do what the arguments say, and return an exit status."""
    try:
        if arguments[0] == "start":
            return start(arguments[1], arguments[2])
        return follow(arguments[1], int(arguments[2]), int(arguments[3]))
    except BrokenPipeError:
        return GONE
    except FileNotFoundError:
        return REMOVED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
