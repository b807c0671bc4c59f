"""The supervisor of a run, on the machine: prepares the work, runs the script, and records how it
ended.

`remote_helper` starts it, in the run's folder, with the run's lock open and its standard error in
the run's `stderr`. It has `remote_checkout` do a checkout, in a process of its own. Like the helper
it needs only Python 3.8 or later and the standard library.

    python3 supervisor.py

It makes `work/` (where the script runs), and last `status.json`. The client removes `may-run` to
have the run stopped.
"""

# It works on bytes and descriptors, and imports little, as the machine may be slow: the functions
# of `os`, not pathlib.
# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH105, PTH108, PTH110, PTH116, PTH118, PTH123

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

TICK = 0.2
"""Seconds between looks for reasons to stop the script."""
KILL_TIMEOUT = 10.0
_PR_SET_CHILD_SUBREAPER = 36
_FULL_BELOW = 1_000_000  # bytes
_LONGEST_ERROR = 4000
_LONGEST_FIRST_LINE = 256  # bytes, as in Linux
_BYTE_ORDER_MARK, _ELF = b"\xef\xbb\xbf", b"\x7fELF"


class PrepareFailed(Exception):
    """The script could not be started. The text is one line."""


class Stopped(Exception):
    """The run was stopped: at its time limit, or at the client's request."""


class Run:
    """One run, from its preparation to its status. The current folder is the run's."""

    def __init__(self) -> None:
        self.request = json.loads(_read("request.json"))
        self.began = time.monotonic()
        self.phase = "prepare"
        self._child_ended = _readable_when_a_child_ends()

    def run_to_end(self) -> None:
        """Prepare, run the script, and record how it ended."""
        status: dict[str, Any] = {}
        out_of_memory_before = _out_of_memory_kills()
        try:
            os.mkdir("work", 0o700)
            self._check_out()
            self._place_files()
            self.phase = "script"
            status = self._execute()
        except Stopped as stopped:
            status = {"stopped": str(stopped)}
        except PrepareFailed as failed:
            self.phase = "prepare"
            status = {"error": str(failed)[:_LONGEST_ERROR]}
        except Exception as error:  # noqa: BLE001  (the client must hear of it, whatever it is)
            status = {"error": f"{type(error).__name__}: {error}"[:_LONGEST_ERROR]}
        status["phase"] = self.phase
        status["seconds"] = round(time.monotonic() - self.began, 3)
        # Whatever fails from here on must not hide how the script ended.
        with suppress(Exception):
            _kill_descendants()
        with suppress(Exception):
            status.update(_shortages(out_of_memory_before))
        # The script may have removed the run's folder.
        with suppress(FileNotFoundError):
            _write_status(status)

    def _check_out(self) -> None:
        if not self.request["git_repository"]:
            return
        command = [sys.executable, "-I", "checkout.py"]
        if self._wait(_spawn(command, ".", os.environb, "stderr", "stderr")):
            reason = _read("checkout-error").decode("utf-8", "replace")
            raise PrepareFailed(reason or "the checkout ended without a word")

    def _place_files(self) -> None:
        """Put the input files where the script runs, over what a checkout may have brought."""
        for folder, _, names in os.walk("files"):
            inside = os.path.relpath(folder, "files")
            target = os.path.join("work", inside)
            shown = repr(os.path.join(inside, *names[:1]))
            if not _is_in_work(target):
                raise PrepareFailed(
                    f"can't place the input file {shown}: its folder is a link out of the checkout"
                )
            try:
                os.makedirs(target, exist_ok=True)
                for name in names:
                    os.replace(os.path.join(folder, name), os.path.join(target, name))
            except OSError as error:
                raise PrepareFailed(
                    f"can't place the input file {shown}: {error.strerror}"
                ) from error

    def _execute(self) -> dict[str, Any]:
        """Run the script to its end, and return its part of the status."""
        path = self._script()
        head = b""
        try:
            os.chmod(path, os.stat(path).st_mode | stat.S_IRUSR | stat.S_IXUSR)
            with open(path, "rb") as script:
                head = script.read(_LONGEST_FIRST_LINE)
            command = _command(path, head)
            environment = _environment()
            process = _spawn(command, "work", environment, "stdout", "stderr")
        except (OSError, ValueError) as error:
            reason = _why_not_started(head, error)
            raise PrepareFailed(f"the script can't be started: {reason}") from error
        code = self._wait(process)
        if code < 0:
            return {"signal": -code}
        return {"exit_code": code}

    def _script(self) -> str:
        """The absolute path of the script.

        Raises:
            PrepareFailed: the checkout has no such script, or its file is elsewhere.
        """
        name = self.request["script"]
        if not name:
            return os.path.abspath("script")
        path = os.path.join("work", name)
        if not os.path.lexists(path):
            raise PrepareFailed(f"the checkout has no script {name!r}")
        if not _is_in_work(path):
            raise PrepareFailed(f"the script {name!r} is a link out of the checkout")
        return os.path.abspath(path)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the process's end, or stop its process group when it is time.

        Raises:
            Stopped: it was stopped.
        """
        # Not process.wait(TICK), which looks up to a hundred times a second.
        while process.poll() is None:
            reason = self._reason_to_stop()
            if reason:
                self._stop(process)
                raise Stopped(reason)
            if select.select([self._child_ended], [], [], TICK)[0]:
                os.read(self._child_ended, 4096)
        return process.returncode

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        _signal_group(process.pid, signal.SIGTERM)
        try:
            process.wait(self.request["grace"])
        except subprocess.TimeoutExpired:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def _reason_to_stop(self) -> str | None:
        if not os.path.exists("may-run"):
            return "asked"
        limit = self.request["time_limit"]
        if limit and time.monotonic() >= self.began + limit:
            return "time"
        return None


def _readable_when_a_child_ends() -> int:
    """A descriptor that can be read from once a child has ended since the last time."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    return reader


def _is_in_work(path: str) -> bool:
    """Whether the path, with all its links followed, is the folder of the checkout or in it."""
    work = os.path.realpath("work")
    return os.path.commonpath((work, os.path.realpath(path))) == work


def _command(path: str, head: bytes) -> list[str]:
    """The command that runs the script, which begins with `head`.

    Raises:
        ValueError: the script would be run by something else than its first line says.
    """
    if head.startswith(_BYTE_ORDER_MARK + b"#!"):
        raise ValueError(
            "it begins with a byte order mark, which hides its #! line: save it without one"
        )
    if head.startswith((b"#!", _ELF)):
        return [path]
    # Found by our own PATH: the script's may be given, and lead elsewhere.
    return [shutil.which("bash") or "/bin/bash", path]


def _why_not_started(head: bytes, error: Exception) -> str:
    """The reason on one line, with what is missing."""
    reason = str(getattr(error, "strerror", None) or error)
    number = getattr(error, "errno", None)
    if number == errno.E2BIG:
        return reason + ": its variables are too long together"
    if number not in (errno.ENOENT, errno.EACCES):
        return reason
    if head.startswith(_ELF):
        return reason + ": it is a program whose loader the machine lacks"
    if not head.startswith(b"#!"):
        return reason + ": bash"
    first_line = head[2:].partition(b"\n")[0].strip(b" \t")
    interpreter = re.split(rb"[ \t]", first_line)[0]
    if interpreter.endswith(b"\r"):
        return reason + ": its first line ends with a carriage return, as on Windows"
    return reason + f": its first line names the program {os.fsdecode(interpreter)!a}"


def _spawn(
    command: list[str], folder: str, environment: Any, out_file: str, err_file: str
) -> subprocess.Popen[bytes]:
    with open(out_file, "ab") as out, open(err_file, "ab") as err:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )


def _signal_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _kill_descendants() -> None:
    """Kill whatever the script has left running.

    It takes rounds: when a parent is killed, its children become ours.
    """
    me = os.getpid()
    give_up_at = time.monotonic() + KILL_TIMEOUT
    while time.monotonic() < give_up_at:
        for child in _read(f"/proc/{me}/task/{me}/children").split():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(int(child), signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def _environment() -> dict[bytes, bytes]:
    """The script's environment: the user's, with the run's variables.

    Their file is removed: it may hold secrets.
    """
    variables = dict(os.environb)
    # The user's shell is sh for our commands' sake. Programs that ask for a shell want the usual.
    if variables.get(b"SHELL") == b"/bin/sh":
        variables[b"SHELL"] = b"/bin/bash"
    for pair in _read("environment").split(b"\0"):
        name, equals, value = pair.partition(b"=")
        if equals:
            variables[name] = value
    os.unlink("environment")
    return variables


def _read(path: str) -> bytes:
    """The file's content, empty if there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def _shortages(out_of_memory_before: int) -> dict[str, Any]:
    """What the machine ran out of, as a part of the status."""
    shortages = {
        "disk_full": _is_disk_full(),
        "out_of_memory": _out_of_memory_kills() > out_of_memory_before,
    }
    return {name: True for name, is_short in shortages.items() if is_short}


def _is_disk_full() -> bool:
    disk = os.statvfs(".")
    has_no_more_files = disk.f_files > 0 and disk.f_favail == 0
    return has_no_more_files or disk.f_bavail * disk.f_frsize < _FULL_BELOW


def _out_of_memory_kills() -> int:
    """The processes that the kernel has killed for want of memory since it started."""
    for line in _read("/proc/vmstat").splitlines():
        name, _, number = line.partition(b" ")
        if name == b"oom_kill":
            return int(number)
    return 0


def _write_status(status: dict[str, Any]) -> None:
    """Write the status into the room that is kept for it. It appears all at once."""
    descriptor = os.open("status.json.new", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "wb") as file:
        file.write(json.dumps(status).encode())
        file.truncate()
    os.replace("status.json.new", "status.json")


def main() -> None:
    """Take the run to its end."""
    # It becomes the parent of whatever the script leaves behind, however far that detaches.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    Run().run_to_end()


if __name__ == "__main__":
    main()
