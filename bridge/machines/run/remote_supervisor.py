"""The supervisor of a run, on the machine: prepares the work, runs the script, and records how it
ended.

`remote_helper` starts it, in the run's folder, with the run's lock open and its standard error in
the run's `stderr`. It has `remote_checkout` do a checkout, in a process of its own. Like the helper
it needs only Python 3.8 or later and the standard library.

    python3 supervisor.py

It makes `work/` (where the script runs), `results`, and last `status.json`. The client makes
`stop` to have the run stopped.
"""

# It works on bytes and descriptors, and imports little, as the machine may be slow: the functions
# of `os`, not pathlib.
# ruff: noqa: PTH100, PTH101, PTH102, PTH103, PTH105, PTH108, PTH110, PTH113, PTH116, PTH118, PTH123

from __future__ import annotations

import ctypes
import fnmatch
import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

TICK = 0.05
"""Seconds between looks at the script and at reasons to stop it."""
KILL_TIMEOUT = 10.0
_PR_SET_CHILD_SUBREAPER = 36


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
        os.mkdir("work", 0o700)

    def run_to_end(self) -> None:
        """Prepare, run the script, list the results, and record how it ended."""
        status: dict[str, Any] = {}
        try:
            self._check_out()
            self._place_files()
            self.phase = "script"
            status = self._execute()
        except Stopped as stopped:
            status = {"stopped": str(stopped)}
        except PrepareFailed as failed:
            self.phase = "prepare"
            status = {"error": str(failed)}
        except Exception as error:  # noqa: BLE001  (the client must hear of it, whatever it is)
            status = {"error": f"{type(error).__name__}: {error}"}
        _kill_descendants()
        results = _find_results(self.request["results"])
        _write("results", b"".join(name + b"\0" for name in results))
        status["phase"] = self.phase
        status["seconds"] = round(time.monotonic() - self.began, 3)
        _write("status.json", json.dumps(status).encode())

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
            try:
                os.makedirs(os.path.join("work", inside), exist_ok=True)
                for name in names:
                    os.replace(os.path.join(folder, name), os.path.join("work", inside, name))
            except OSError as error:
                name = os.path.join(inside, *names[:1])
                raise PrepareFailed(
                    f"can't place the input file {name!r}: {error.strerror}"
                ) from error

    def _execute(self) -> dict[str, Any]:
        """Run the script to its end, and return its part of the status."""
        path = "script"
        if self.request["script"]:
            path = os.path.join("work", self.request["script"])
        path = os.path.abspath(path)
        try:
            os.chmod(path, os.stat(path).st_mode | stat.S_IRUSR | stat.S_IXUSR)
            with open(path, "rb") as script:
                is_executable = script.read(4).startswith((b"#!", b"\x7fELF"))
            command = [path] if is_executable else ["bash", path]
            environment = {**os.environb, **_take_environment()}
            process = _spawn(command, "work", environment, "stdout", "stderr")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise PrepareFailed(f"the script can't be started: {reason}") from error
        code = self._wait(process)
        if code < 0:
            return {"signal": -code}
        return {"exit_code": code}

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the process's end, or stop its process group when it is time.

        Raises:
            Stopped: it was stopped.
        """
        while True:
            try:
                return process.wait(TICK)
            except subprocess.TimeoutExpired:
                reason = self._reason_to_stop()
            if reason:
                _signal_group(process.pid, signal.SIGTERM)
                try:
                    process.wait(self.request["grace"])
                except subprocess.TimeoutExpired:
                    _signal_group(process.pid, signal.SIGKILL)
                    process.wait()
                raise Stopped(reason)

    def _reason_to_stop(self) -> str | None:
        if os.path.exists("stop"):
            return "asked"
        limit = self.request["time_limit"]
        if limit and time.monotonic() >= self.began + limit:
            return "time"
        return None


def _find_results(texts: list[str]) -> list[bytes]:
    """The files in `work` that match any of the patterns.

    Not by `glob`, which follows links to folders, and so may never end.
    """
    if not texts:
        return []
    patterns = [os.path.normpath(text).split("/") for text in texts]
    found = []
    for folder, _, names in os.walk("work"):
        for name in names:
            path = os.path.join(folder, name)
            parts = os.path.relpath(path, "work").split("/")
            is_wanted = any(matches(parts, pattern) for pattern in patterns)
            # A pipe or a device would block its reader.
            if is_wanted and os.path.isfile(path):
                found.append(os.fsencode("/".join(parts)))
    return sorted(found)


def matches(path: list[str], pattern: list[str]) -> bool:
    """Whether a file, or a folder above it, matches a pattern, both given as their parts.

    `*`, `?` and `[...]` match within a name, `**` matches any folders. As in a shell, a leading dot
    must be matched by a dot.
    """
    if not pattern:
        return True
    if pattern == ["**"]:
        return not any(part.startswith(".") for part in path)
    if not path:
        return False
    name, rest = path[0], path[1:]
    if pattern[0] == "**":
        is_hidden = name.startswith(".")
        if matches(path, pattern[1:]):
            return True
        return not is_hidden and matches(rest, pattern)
    return _name_matches(name, pattern[0]) and matches(rest, pattern[1:])


def _name_matches(name: str, pattern: str) -> bool:
    if name == pattern:
        return True
    if name.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(name, pattern)


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


def _take_environment() -> dict[bytes, bytes]:
    """The script's variables. Their file is removed: it may hold secrets."""
    variables = {}
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


def _write(path: str, data: bytes) -> None:
    """Write the file, all at once or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(data)
    os.replace(path + ".new", path)


def main() -> None:
    """Take the run to its end."""
    # It becomes the parent of whatever the script leaves behind, however far that detaches.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    Run().run_to_end()


if __name__ == "__main__":
    main()
